package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/exit"
)

// printJSON writes v the way "-o json" does.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return wrote(e.Encode(v))
}

// wrote names what failed when output could not be written.
func wrote(err error) error {
	if err == nil {
		return nil
	}
	return errs.New(errs.KindOf(err), "cli", "", "the output cannot be written: %w", err)
}

// printList writes a list: ids, JSON, or a table with one row per item.
func printList[T any](a *app, l api.List[T], id func(T) string, header string, row func(T) []string) error {
	if a.output == "json" {
		if l.Items == nil {
			l.Items = []T{}
		}
		return printJSON(a.Out, l)
	}
	if a.quiet {
		for _, item := range l.Items {
			if _, err := fmt.Fprintln(a.Out, id(item)); err != nil {
				return wrote(err)
			}
		}
		return nil
	}
	if len(l.Items) == 0 {
		return nil
	}
	rows := make([][]string, 0, len(l.Items)+1)
	rows = append(rows, strings.Fields(header))
	for _, item := range l.Items {
		rows = append(rows, row(item))
	}
	return printTable(a.Out, rows)
}

// printTable writes rows in columns. An empty cell shows as a dash.
func printTable(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			if cell == "" {
				cell = "-"
			}
			fmt.Fprint(tw, exit.Printable(cell))
		}
		fmt.Fprintln(tw)
	}
	return wrote(tw.Flush())
}

// field is one line of an object shown to people. Empty values are left out.
type field struct{ name, value string }

// printObject writes one object: its id, JSON, or one field a line.
func (a *app) printObject(v any, id string, fields []field) error {
	switch {
	case a.output == "json":
		return printJSON(a.Out, v)
	case a.quiet:
		_, err := fmt.Fprintln(a.Out, id)
		return wrote(err)
	}
	tw := tabwriter.NewWriter(a.Out, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if f.value != "" {
			fmt.Fprintf(tw, "%s:\t%s\n", f.name, exit.Printable(f.value))
		}
	}
	return wrote(tw.Flush())
}

// say prints one line for people; programs that asked for JSON or ids do not
// get it.
func (a *app) say(format string, args ...any) error {
	if a.output == "json" || a.quiet {
		return nil
	}
	_, err := fmt.Fprintln(a.Out, exit.Printable(fmt.Sprintf(format, args...)))
	return wrote(err)
}

func size(n int64) string { return disk.FormatSize(n) }

// sizeIfAny leaves a size of zero out.
func sizeIfAny(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

// when writes a time in the reader's zone.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
