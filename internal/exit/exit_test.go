package exit

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/tarn-storage/tarn/errs"
)

// The documented statuses, one kind each.
func TestStatus(t *testing.T) {
	for _, row := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("a bug"), 1},
		{errs.New(errs.Invalid, "op", "", "m"), 2},
		{errs.New(errs.NotFound, "op", "", "m"), 3},
		{errs.New(errs.Exists, "op", "", "m"), 4},
		{errs.New(errs.Conflict, "op", "", "m"), 4},
		{errs.New(errs.Unsafe, "op", "", "m"), 5},
		{errs.New(errs.NoSpace, "op", "", "m"), 6},
		{errs.New(errs.Quota, "op", "", "m"), 6},
		{errs.New(errs.Busy, "op", "", "m"), 7},
		{errs.New(errs.Unavailable, "op", "", "m"), 8},
		{errs.New(errs.Cancelled, "op", "", "m"), 9},
		{errs.New(errs.Corrupt, "op", "", "m"), 10},
		{errs.New(errs.Corrupt, "op", "", "m").WithClass("CORRUPT"), 5}, // the gate's
		{errs.New("from_the_future", "op", "", "m"), 1},
		{fmt.Errorf("wrapped: %w", Problems), 10},
	} {
		if got := Status(row.err); got != row.want {
			t.Errorf("%v: got %d, want %d", row.err, got, row.want)
		}
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	for _, k := range errs.Kinds() {
		if s := statuses[k]; s < 1 || s > 10 {
			t.Errorf("kind %s has the status %d, want 1 to 10", k, s)
		}
	}
	if len(statuses) != len(errs.Kinds()) {
		t.Errorf("the table has %d kinds, want the %d there are", len(statuses), len(errs.Kinds()))
	}
}

func TestPrint(t *testing.T) {
	e := errs.New(errs.NotFound, "pool.show", "fast", "no such pool\x1b[31m\nroot: x").WithHint("see tarn pool list")
	for _, row := range []struct {
		name   string
		err    error
		asJSON bool
		want   string
	}{
		{"text", e, false, "tarn: fast: no such pool?[31m root: x\nhint: see tarn pool list\n"},
		{"subject in the message", errs.New(errs.NotFound, "x", `"a"`, "pool a is not there"), false, "tarn: pool a is not there\n"},
		{"class", errs.New(errs.Unsafe, "x", "", "no").WithClass("EXTERNAL_REFERENCE"), false, "tarn: no [EXTERNAL_REFERENCE]\n"},
		{"JSON", e, true, `{"error":{"kind":"not_found","op":"pool.show","subject":"fast","message":"no such pool\u001b[31m\nroot: x","hint":"see tarn pool list"}}` + "\n"},
		{"code", Refused, false, ""},
	} {
		var b bytes.Buffer
		Print(&b, "tarn", row.err, row.asJSON)
		if b.String() != row.want {
			t.Errorf("%s: got %q, want %q", row.name, b.String(), row.want)
		}
	}
}
