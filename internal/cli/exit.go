package cli

import (
	"errors"

	"github.com/tarn-storage/tarn/errs"
)

// exitStatus is the one table from kinds to exit statuses.
var exitStatus = map[errs.Kind]int{
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

// Statuses that do not come from an error.
const (
	statusRefused  = 5  // the gate's verdict is reject
	statusProblems = 10 // doctor found some
)

// Status returns the exit status of a kind; one that a newer daemon knows and
// this build does not is 1.
func Status(k errs.Kind) int {
	if s, ok := exitStatus[k]; ok {
		return s
	}
	return exitStatus[errs.Internal]
}

// kinded gives an error without one a kind, so that only the grammar's errors
// lack it.
func kinded(err error) error {
	var e *errs.Error
	var code exit
	if err == nil || errors.As(err, &e) || errors.As(err, &code) {
		return err
	}
	return errs.Wrap(err, "cli", "")
}
