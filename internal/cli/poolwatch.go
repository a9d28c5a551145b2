package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

// watching is how a list is followed.
type watching struct {
	on    bool
	every interval
}

// interval is a flag with a time.
type interval struct {
	time.Duration
	set bool
}

const (
	usualInterval = 2 * time.Second
	leastInterval = 100 * time.Millisecond
)

// String returns the present value.
func (i *interval) String() string {
	if !i.set {
		return ""
	}
	return i.Duration.String()
}

// Set accepts a time that the daemon bears.
func (i *interval) Set(s string) (err error) {
	if i.Duration, err = time.ParseDuration(s); err == nil && i.Duration < leastInterval {
		err = fmt.Errorf("must be %v at least", leastInterval)
	}
	i.set = true
	return err
}

// Type is what help calls the value.
func (i *interval) Type() string { return "TIME" }

// watchPools shows the pools until it is interrupted, which is its normal end.
func (a *app) watchPools(ctx context.Context, c *client.Client, w watching) error {
	if !w.on {
		return usage("--interval is for --watch")
	}
	every := usualInterval
	if w.every.set {
		every = w.every.Duration
	}
	show := a.appendPools()
	if terminal(a.Out) && a.output != "json" && !a.quiet {
		show = a.redrawPools()
	}
	for {
		l, err := c.Pools(ctx, everything)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = show(l.Items)
		}
		if err != nil {
			return err
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
			return nil
		}
	}
}

var watchHeader = strings.Fields("NAME STATE CAPACITY COMMITTED AVAILABLE FREE DATA METADATA FULL-IN REASON")

func watchRow(p api.Pool) []string {
	return []string{p.Name, p.State, size(p.Capacity), size(p.Committed), size(p.Available), size(p.Free), share(p.DataPercent), share(p.MetadataPercent), fullIn(p), p.Reason}
}

// share writes a percentage, "" if there is none.
func share(percent *float64) string {
	if percent == nil {
		return ""
	}
	return fmt.Sprintf("%.1f%%", *percent)
}

// fullIn writes when a pool is full, if that is known.
func fullIn(p api.Pool) string {
	if p.TimeToFull == 0 {
		return ""
	}
	left := time.Duration(p.TimeToFull) * time.Second
	if days := left / (24 * time.Hour); days > 2 {
		return fmt.Sprintf("%dd", days)
	}
	return left.String()
}

// redrawPools writes a table over the one before, as far as the terminal has room.
func (a *app) redrawPools() func([]api.Pool) error {
	above := 0
	return func(pools []api.Pool) error {
		rows := [][]string{watchHeader}
		for _, p := range pools {
			rows = append(rows, watchRow(p))
		}
		var table bytes.Buffer
		if err := printTable(&table, rows); err != nil {
			return err
		}
		lines := strings.Split(strings.TrimSuffix(table.String(), "\n"), "\n")
		if width, height, err := term.GetSize(int(a.Out.Fd())); err == nil && width > 0 && height > 1 {
			lines = lines[:min(len(lines), height-1)]
			for i, line := range lines {
				lines[i] = clipped(line, width-1)
			}
		}
		text := strings.Join(lines, "\n") + "\n\x1b[J"
		if above > 0 {
			text = fmt.Sprintf("\x1b[%dA", above) + strings.ReplaceAll(text, "\n", "\x1b[K\n")
		}
		above = len(lines)
		_, err := fmt.Fprint(a.Out, text)
		return wrote(err)
	}
}

// clipped returns the first n characters of a line.
func clipped(line string, n int) string {
	if utf8.RuneCountInString(line) <= n {
		return line
	}
	return string([]rune(line)[:n])
}

// appendPools writes what changed: the whole list as a line of JSON, else a line
// for each pool.
func (a *app) appendPools() func([]api.Pool) error {
	var before map[string]api.Pool
	return func(pools []api.Pool) error {
		rows := [][]string{}
		now := map[string]api.Pool{}
		for _, p := range pools {
			p.ForeignAt = time.Time{} // which moves by itself
			now[p.ID] = p
			if was, there := before[p.ID]; !there || !reflect.DeepEqual(was, p) {
				rows = append(rows, append([]string{p.ID}, watchRow(p)...))
			}
		}
		for id, p := range before {
			if _, there := now[id]; !there {
				rows = append(rows, []string{id, p.Name, "deleted"})
			}
		}
		first := before == nil
		before = now
		switch {
		case len(rows) == 0 && !first:
			return nil
		case a.output == "json":
			return a.printLine(api.List[api.Pool]{Items: append([]api.Pool{}, pools...)})
		case a.quiet:
			var err error
			for _, r := range rows {
				_, werr := fmt.Fprintln(a.Out, r[0])
				err = errors.Join(err, werr)
			}
			return wrote(err)
		}
		at := when(time.Now())
		for i, r := range rows {
			rows[i] = append([]string{at}, r[1:]...)
		}
		if first {
			rows = append([][]string{append([]string{"TIME"}, watchHeader...)}, rows...)
		}
		return printTable(a.Out, rows)
	}
}

// printLine writes v as JSON on one line.
func (a *app) printLine(v any) error {
	e := json.NewEncoder(a.Out)
	e.SetEscapeHTML(false)
	return wrote(e.Encode(v))
}
