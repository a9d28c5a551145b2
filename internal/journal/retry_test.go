package journal_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
)

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newFiles(t))
		b.a.undo = func(context.Context, *journal.Call) error {
			return errs.New(errs.Unavailable, "volume.delete", "v", "no answer")
		}
		b.b.act = func(context.Context, *journal.Call) error {
			return errs.New(errs.NoSpace, "volume.create", "v", "full")
		}
		id := b.submit(t, "a", "b")
		expect(t, "state", b.wait(t, id).State, journal.NeedsOperator)
		if err := b.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		expect(t, "state while the cause lasts", b.wait(t, id).State, journal.NeedsOperator)
		b.a.undo = nil
		if err := b.Retry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		op := b.wait(t, id)
		expect(t, "state when it is gone", op.State, journal.Failed)
		expect(t, "kind", op.Error.Kind, errs.NoSpace)
		expect(t, "held", b.Holds(id), false)
		if err := b.Retry(t.Context(), id); !errors.Is(err, errs.Conflict) {
			t.Errorf("retrying what is undone: %v, want %s", err, errs.Conflict)
		}
		if err := b.Retry(t.Context(), "none"); !errors.Is(err, errs.NotFound) {
			t.Errorf("retrying what is not there: %v, want %s", err, errs.NotFound)
		}
	})
}
