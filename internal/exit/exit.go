// Package exit owns how a program of tarn ends: the one table from kinds of
// error to exit statuses, and the form of an error on standard error. It
// refuses to end the process itself.
package exit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// statuses is the table.
var statuses = map[errs.Kind]int{
	errs.Internal:    1,
	errs.Invalid:     2,
	errs.Unsupported: 2,
	errs.NotFound:    3,
	errs.Exists:      4,
	errs.Conflict:    4,
	errs.Unsafe:      5,
	errs.Version:     5,
	errs.NoSpace:     6,
	errs.Quota:       6,
	errs.Busy:        7,
	errs.Unavailable: 8,
	errs.Cancelled:   9,
	errs.Corrupt:     10,
}

// Statuses of commands whose answer was printed and is no error.
const (
	Refused  Code = 5  // the gate's verdict is reject
	Problems Code = 10 // doctor found some and did not mend all
)

// Code is an error that ends a program with a status and without a message:
// what there was to say was printed.
type Code int

// Error names the status, for logs.
func (c Code) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// Status returns the exit status of err; an error of a kind that this build
// does not know is internal. A refusal by the gate, which alone sets a class,
// is 5 whatever its kind.
func Status(err error) int {
	var code Code
	var e *errs.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &e) && e.Class != "":
		return int(Refused)
	}
	if s, ok := statuses[errs.KindOf(err)]; ok {
		return s
	}
	return statuses[errs.Internal]
}

// Print writes err as program and one line, with its hint on a second one, or
// as one line of JSON. A Code prints nothing.
func Print(w io.Writer, program string, err error, asJSON bool) {
	var code Code
	if errors.As(err, &code) {
		return
	}
	e := api.ErrorOf(err)
	if asJSON {
		text, _ := json.Marshal(api.ErrorBody{Error: e}) // strings only: cannot fail
		fmt.Fprintf(w, "%s\n", text)
		return
	}
	message := e.Message
	if e.Subject != "" && !strings.Contains(message, strings.Trim(e.Subject, `"`)) {
		message = e.Subject + ": " + message
	}
	if e.Class != "" {
		message += " [" + e.Class + "]"
	}
	fmt.Fprintf(w, "%s: %s\n", program, Printable(message))
	if e.Hint != "" {
		fmt.Fprintf(w, "hint: %s\n", Printable(e.Hint))
	}
}

// Printable replaces what could move a terminal's cursor or begin a new line.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}
