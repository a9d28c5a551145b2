package journal_test

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
)

// Cancel in the midst of each of three steps.
func TestCancelInAct(t *testing.T) {
	for at, want := range []string{"a -a -a!", "a a! b -b -b! -a -a!", "a a! b b! c -c -c! -b -b! -a -a!"} {
		for _, obeys := range []bool{true, false} {
			b := newBench(t, newFiles(t))
			in, out := make(chan struct{}), make(chan struct{})
			[]*step{b.a, b.b, b.c}[at].act = func(ctx context.Context, _ *journal.Call) error {
				close(in)
				if !obeys {
					<-out
					return nil
				}
				<-ctx.Done()
				return context.Cause(ctx)
			}
			id := b.submit(t, "a", "b", "c")
			<-in
			repeats := 1
			if !obeys {
				repeats = 2
			}
			for range repeats {
				if op, err := b.Cancel(t.Context(), id); err != nil || !op.Cancel {
					t.Errorf("Cancel in step %d: %v, %v", at, op.Cancel, err)
				}
			}
			close(out)
			op := b.wait(t, id)
			expect(t, "state", op.State, journal.Cancelled)
			expect(t, "kind", op.Error.Kind, errs.Cancelled)
			expect(t, "calls", b.log, want)
			if _, err := b.Cancel(t.Context(), id); !errors.Is(err, errs.Conflict) {
				t.Errorf("cancelling an ended operation: %v, want a conflict", err)
			}
		}
	}
}

func TestCancelWhileQueued(t *testing.T) {
	b := newBench(t, newFiles(t))
	b.o.Workers = 1
	b.Runner = journal.NewRunner(b.rows, b.o)
	in, out := make(chan struct{}), make(chan struct{})
	b.b.act = func(context.Context, *journal.Call) error { close(in); <-out; return nil }
	first := b.submit(t, "b")
	<-in
	second := b.submit(t, "a")
	if _, err := b.Cancel(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	close(out)
	expect(t, "first", b.wait(t, first).State, journal.Done)
	expect(t, "second", b.wait(t, second).State, journal.Cancelled)
	if strings.Contains(b.log.String(), " a") {
		t.Errorf("the cancelled operation acted: %s", b.log)
	}
}

func TestCancelIrreversible(t *testing.T) {
	for _, c := range []struct {
		name  string
		obeys bool
		state journal.State
		calls string
	}{
		{"interrupted", true, journal.Cancelled, "a a! b"},
		{"too late", false, journal.Done, "a a! b b! c c!"},
	} {
		b := newBench(t, newFiles(t))
		b.handlers["b/v1"] = irreversible{b.b}
		in, out, later := make(chan struct{}), make(chan struct{}), make(chan struct{})
		b.b.act = func(ctx context.Context, _ *journal.Call) error {
			close(in)
			if c.obeys {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			<-out
			return nil
		}
		b.c.act = func(context.Context, *journal.Call) error { <-later; return nil }
		id := b.submit(t, "a", "b", "c")
		<-in
		if _, err := b.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		close(out)
		if !c.obeys {
			for !strings.HasSuffix(b.log.String(), "c") {
				time.Sleep(time.Millisecond)
			}
			if _, err := b.Cancel(t.Context(), id); !errors.Is(err, errs.Conflict) {
				t.Errorf("past the point of no return: %v, want a conflict", err)
			}
		}
		close(later)
		op := b.wait(t, id)
		expect(t, c.name+": state", op.State, c.state)
		expect(t, c.name+": calls", b.log, c.calls)
	}
}

func TestUndoAsksForAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := newFiles(t)
		b := newBench(t, rows)
		var at []time.Duration
		start := time.Now()
		breaks := func(b *bench) {
			b.a.undo = func(context.Context, *journal.Call) error {
				at = append(at, time.Since(start))
				return errs.New(errs.Unavailable, "volume.delete", "v", "no answer")
			}
			b.b.act = func(context.Context, *journal.Call) error {
				return errs.New(errs.NoSpace, "volume.create", "v", "full")
			}
		}
		breaks(b)
		id := b.submit(t, "a", "b")
		time.Sleep(1500 * time.Millisecond)
		b.close(t) // after two attempts; two are in the row
		expect(t, "attempts in the row", rows.content(t).Operations[0].Attempts, 2)

		b = newBench(t, rows)
		breaks(b)
		if err := b.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		op := b.wait(t, id)
		expect(t, "state", op.State, journal.NeedsOperator)
		expect(t, "attempts", op.Attempts, 5)
		expect(t, "times", at, "[0s 1s 1.5s 5.5s 13.5s]")
		expect(t, "kind", op.Error.Kind, errs.NoSpace)
		if !strings.Contains(op.Error.Message, "no answer") || op.Error.Hint == "" {
			t.Errorf("failure %+v does not say why undo failed and what to do", *op.Error)
		}
	})
}

// TestUndoWaitsForWhatIsSilent: attempts that meet silence are not counted, those
// before and after it are, and a daemon that stops meanwhile goes on later.
func TestUndoWaitsForWhatIsSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := newFiles(t)
		errHushed := errors.New("hush")
		start := time.Now()
		tries, awaited := 0, 0
		fresh := func() *bench {
			b := newBench(t, rows)
			b.o.Await = func(ctx context.Context, err error) bool {
				if !errors.Is(err, errHushed) {
					return false
				}
				awaited++
				select {
				case <-ctx.Done():
				case <-time.After(time.Hour - time.Since(start)):
				}
				return true
			}
			b.Runner = journal.NewRunner(rows, b.o)
			b.a.undo = func(context.Context, *journal.Call) error {
				switch tries++; {
				case tries == 1:
					return errors.New("not yet")
				case tries <= 13 || time.Since(start) < time.Hour:
					return errs.New(errs.Unavailable, "volume.delete", "v", "%w", errHushed)
				}
				return nil
			}
			b.b.act = func(context.Context, *journal.Call) error { return errors.New("no") }
			return b
		}
		b := fresh()
		id := b.submit(t, "a", "b")
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		expect(t, "attempts while it is silent", rows.content(t).Operations[0].Attempts, 1)
		b.close(t)

		b = fresh()
		if err := b.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		op := b.wait(t, id)
		expect(t, "state", op.State, journal.Failed)
		if awaited < 12 {
			t.Errorf("silence was met %d times, want at least 12", awaited)
		}
	})
}

func TestUndoSucceedsLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newFiles(t))
		n := 0
		b.a.undoCommit = func(*journal.Call) error {
			if n++; n < 4 {
				return errors.New("not now")
			}
			return nil
		}
		b.b.act = func(context.Context, *journal.Call) error { return errors.New("no") }
		start := time.Now()
		op := b.wait(t, b.submit(t, "a", "b"))
		expect(t, "state", op.State, journal.Failed)
		expect(t, "attempts", op.Attempts, 0)
		expect(t, "after", time.Since(start), 7*time.Second)
	})
}

// A failing store that holds up undo itself: undo is done all the same.
func TestUndoWithoutRoomForItsMark(t *testing.T) {
	b := newBench(t, newFiles(t))
	full := true
	b.a.act = func(context.Context, *journal.Call) error {
		b.rows.on(func() {
			b.rows.fail = func(*content) error {
				if full {
					return syscall.ENOSPC
				}
				return nil
			}
		})
		return syscall.ENOSPC
	}
	b.a.undo = func(context.Context, *journal.Call) error { b.rows.on(func() { full = false }); return nil }
	op := b.wait(t, b.submit(t, "a"))
	expect(t, "state", op.State, journal.Failed)
	expect(t, "kind", op.Error.Kind, errs.NoSpace)
	expect(t, "calls", b.log, "a -a -a!")
}
