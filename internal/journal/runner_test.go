package journal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
)

// slow is a store whose answer to the first commit comes when it is let.
type slow struct {
	*files
	once         sync.Once
	reached, let chan struct{}
}

func (s *slow) Update(ctx context.Context, fn func(context.Context, *tx) error) error {
	err := s.files.Update(ctx, fn)
	s.once.Do(func() { close(s.reached); <-s.let })
	return err
}

// TestWaitWhileSubmitted waits for an operation that is on record and whose
// Submit has not come back yet, and cancels another one.
func TestWaitWhileSubmitted(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		b := newBench(t, newFiles(t))
		rows := &slow{files: b.rows, reached: make(chan struct{}), let: make(chan struct{})}
		b.Runner = journal.NewRunner(rows, b.o)
		hold := make(chan struct{})
		b.a.act = func(ctx context.Context, _ *journal.Call) error {
			if cancel {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			<-hold
			return nil
		}
		done := make(chan error, 1)
		go func() {
			_, _, err := b.Submit(t.Context(), journal.Operation{ID: "x", Kind: "test", Steps: []journal.Step{journal.NewStep("a/v1", nil)}}, nil)
			done <- err
		}()
		<-rows.reached
		go func() { close(rows.let); close(hold) }()
		want := journal.Done
		if cancel {
			want = journal.Cancelled
			if _, err := b.Cancel(t.Context(), "x"); err != nil {
				t.Errorf("Cancel: %v", err)
			}
		}
		expect(t, "state", b.wait(t, "x").State, want)
		if err := <-done; err != nil {
			t.Error(err)
		}
		b.close(t)
	}
}

func TestTransactions(t *testing.T) {
	for steps, want := range map[string]int{"a": 2, "a b": 3, "a b c": 4} {
		b := newBench(t, newFiles(t))
		op := b.wait(t, b.submit(t, strings.Fields(steps)...))
		expect(t, steps+" ends", op.State, journal.Done)
		expect(t, steps+": transactions", b.rows.commits(), want)
	}
}

func TestHandedToCommitOnly(t *testing.T) {
	b := newBench(t, newFiles(t))
	var got any
	b.a.act = func(_ context.Context, c *journal.Call) error { c.Hand(7); return nil }
	b.a.commit = func(c *journal.Call) error { got = c.Handed(); return nil }
	b.b.commit = func(c *journal.Call) error { expect(t, "what another step left", c.Handed(), nil); return nil }
	expect(t, "end", b.wait(t, b.submit(t, "a", "b")).State, journal.Done)
	expect(t, "handed to Commit", got, any(7))
	expect(t, "persisted output", string(b.rows.content(t).Operations[0].Steps[0].Output), "")
}

func TestOutputAndResult(t *testing.T) {
	b := newBench(t, newFiles(t))
	b.a.act = func(_ context.Context, c *journal.Call) error { return c.SetOutput(map[string]int{"size": 7}) }
	b.b.commit = func(c *journal.Call) error {
		var out struct{ Size int }
		if err := json.Unmarshal(c.Op.Steps[0].Output, &out); err != nil {
			return err
		}
		return c.SetResult(out.Size * 6)
	}
	op := b.wait(t, b.submit(t, "a", "b"))
	expect(t, "result", string(op.Result), "42")
	row := b.rows.content(t).Operations[0]
	expect(t, "persisted result", string(row.Result), "42")
	expect(t, "persisted output", string(row.Steps[0].Output), `{"size":7}`)
	expect(t, "progress", row.Progress, journal.Progress{Done: 2, Total: 2, Unit: "steps"})
}

func TestFailureIsUndoneInReverse(t *testing.T) {
	noSpace := errs.New(errs.NoSpace, "volume.create", "v1", "no room").WithHint("make some").WithClass("QUOTA")
	for _, c := range []struct {
		name  string
		setup func(b *bench)
	}{
		{"act", func(b *bench) { b.c.act = func(context.Context, *journal.Call) error { return noSpace } }},
		{"commit", func(b *bench) { b.c.commit = func(*journal.Call) error { return noSpace } }},
		{"store", func(b *bench) {
			b.rows.fail = func(c *content) error {
				if c.Operations[0].State == journal.Done {
					return noSpace
				}
				return nil
			}
		}},
	} {
		b := newBench(t, newFiles(t))
		c.setup(b)
		op := b.wait(t, b.submit(t, "a", "b", "c"))
		expect(t, c.name+": state", op.State, journal.Failed)
		want := &journal.Failure{Kind: errs.NoSpace, Class: "QUOTA", Op: "volume.create", Subject: "v1", Message: "no room", Hint: "make some"}
		expect(t, c.name+": failure", *op.Error, *want)
		log := strings.Replace(b.log.String(), " c! ", " ", 1) // which the store took back
		expect(t, c.name+": calls", log, "a a! b b! c -c -c! -b -b! -a -a!")
		expect(t, c.name+": records left", len(b.rows.content(t).Records), 0)
		expect(t, c.name+": states", b.states[len(b.states)-2:], "[undoing failed]")
	}
}

func TestPanicIsUndone(t *testing.T) {
	b := newBench(t, newFiles(t))
	b.b.act = func(context.Context, *journal.Call) error { panic("oh") }
	op := b.wait(t, b.submit(t, "a", "b"))
	expect(t, "state", op.State, journal.Failed)
	expect(t, "kind", op.Error.Kind, errs.Internal)
	expect(t, "calls", b.log, "a a! b -b -b! -a -a!")
}

func TestIrreversible(t *testing.T) {
	fail := func(context.Context, *journal.Call) error { return errs.New(errs.Busy, "x", "y", "held") }
	for _, c := range []struct {
		name, steps, fails, calls string
	}{
		{"itself fails", "a b c", "b", "a a! b"},
		{"a later one fails", "a b c", "c", "a a! b b! c -c -c!"},
		{"an earlier one fails", "a b c", "a", "a -a -a!"},
		{"first", "b c", "c", "b b! c -c -c!"},
		{"succeeds", "a b c", "", "a a! b b! c c!"},
	} {
		b := newBench(t, newFiles(t))
		b.handlers["b/v1"] = irreversible{b.b}
		want := journal.Done
		if s := map[string]*step{"a": b.a, "b": b.b, "c": b.c}[c.fails]; s != nil {
			s.act = fail
			want = journal.Failed
		}
		op := b.wait(t, b.submit(t, strings.Fields(c.steps)...))
		expect(t, c.name+": state", op.State, want)
		expect(t, c.name+": calls", b.log, c.calls)
	}
}

func TestAgain(t *testing.T) {
	b := newBench(t, newFiles(t))
	tries := 0
	b.a.commit = func(*journal.Call) error {
		if tries++; tries < 10 {
			return fmt.Errorf("base vanished: %w", journal.Again)
		}
		return nil
	}
	expect(t, "state after 10 tries", b.wait(t, b.submit(t, "a")).State, journal.Done)
	expect(t, "tries", tries, 10)

	tries = -1000
	op := b.wait(t, b.submit(t, "a"))
	expect(t, "state after more", op.State, journal.Failed)
	expect(t, "kind", op.Error.Kind, errs.Conflict)
	expect(t, "tries", tries, -990)
}

func TestIdempotencyByKey(t *testing.T) {
	b := newBench(t, newFiles(t))
	hold := make(chan struct{})
	b.a.act = func(context.Context, *journal.Call) error { <-hold; return nil }
	op := journal.Operation{Kind: "test", Key: "k", Request: json.RawMessage(`1`), Steps: []journal.Step{journal.NewStep("a/v1", nil)}}
	intents := 0
	intent := func(context.Context, *tx) error { intents++; return nil }
	first, existing, err := b.Submit(t.Context(), op, intent)
	if err != nil || existing {
		t.Fatalf("first: existing %v, %v", existing, err)
	}
	second, existing, err := b.Submit(t.Context(), op, intent)
	if err != nil || !existing || second.ID != first.ID {
		t.Errorf("repeat: %s existing %v, %v; want %s", second.ID, existing, err, first.ID)
	}
	close(hold)
	b.wait(t, first.ID)
	third, existing, err := b.Submit(t.Context(), op, intent)
	if err != nil || !existing || third.State != journal.Done {
		t.Errorf("repeat after the end: %s existing %v, %v", third.State, existing, err)
	}
	expect(t, "intents", intents, 1)
	expect(t, "transactions", b.rows.commits(), 2)
	op.Request = json.RawMessage(`2`)
	if _, _, err := b.Submit(t.Context(), op, intent); !errors.Is(err, errs.Conflict) {
		t.Errorf("the key with another request: %v, want a conflict", err)
	}
}

func TestRefusedIntent(t *testing.T) {
	b := newBench(t, newFiles(t))
	op := journal.Operation{Kind: "test", Steps: []journal.Step{journal.NewStep("a/v1", nil)}}
	_, _, err := b.Submit(t.Context(), op, func(_ context.Context, x *tx) error {
		x.Records["r"] = "creating"
		return errs.New(errs.Quota, "create", "r", "too many")
	})
	if !errors.Is(err, errs.Quota) {
		t.Errorf("got %v, want errs.Quota", err)
	}
	c := b.rows.content(t)
	expect(t, "operations and records", len(c.Operations)+len(c.Records), 0)
	op.Steps[0].Kind = "z/v1"
	if _, _, err := b.Submit(t.Context(), op, nil); !errors.Is(err, errs.Internal) {
		t.Errorf("a step without a handler: %v, want errs.Internal", err)
	}
}

// The store refuses the end of an operation for a while, or for good.
func TestStoreFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name  string
			times int
			state journal.State
			after time.Duration
		}{
			{"three times", 3, journal.Done, 7 * time.Second},
			{"for good", 1000, journal.Running, 31 * time.Second},
		} {
			rows := newFiles(t)
			b := newBench(t, rows)
			b.handlers["b/v1"] = irreversible{b.b}
			left := c.times
			rows.fail = func(after *content) error {
				if left--; after.Operations[0].State == journal.Done && left >= 0 {
					return syscall.ENOSPC
				}
				return nil
			}
			start := time.Now()
			left++ // the intent
			id := b.submit(t, "b")
			op, err := b.Wait(t.Context(), id, time.Hour)
			expect(t, c.name+": state", op.State, c.state)
			expect(t, c.name+": after", time.Since(start), c.after)
			if c.state == journal.Done {
				continue
			}
			if !errors.Is(err, errs.NoSpace) {
				t.Errorf("%s: %v, want errs.NoSpace", c.name, err)
			}
			if err := b.Settle(t.Context()); !errors.Is(err, errs.NoSpace) {
				t.Errorf("%s: Settle says %v, want errs.NoSpace", c.name, err)
			}
			b.close(t)
			rows.fail = nil
			b = newBench(t, rows)
			b.handlers["b/v1"] = irreversible{b.b}
			if err := b.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			expect(t, c.name+": state after the next start", b.wait(t, id).State, journal.Done)
		}
	})
}

// A store whose answer is lost after it wrote.
func TestLostAnswer(t *testing.T) {
	b := newBench(t, newFiles(t))
	b.rows.lie = func(*content) error { return syscall.ECONNRESET }
	op := b.wait(t, b.submit(t, "a", "b"))
	expect(t, "state", op.State, journal.Done)
	expect(t, "calls", b.log, "a a! b b!")
}

func TestFence(t *testing.T) {
	rows := newFiles(t)
	first, second := newBench(t, rows), newBench(t, rows)
	in, out := make(chan struct{}), make(chan struct{})
	first.a.act = func(context.Context, *journal.Call) error { close(in); <-out; return errors.New("late") }
	id := first.submit(t, "a", "b")
	<-in
	if err := second.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, "under the second", second.wait(t, id).State, journal.Done)
	close(out)
	if err := first.Settle(t.Context()); err != nil && !errors.Is(err, errs.Conflict) {
		t.Error(err)
	}
	first.close(t)
	expect(t, "calls of the first", first.log, "a")
	expect(t, "records", len(rows.content(t).Records), 2)
	if first.Runner == second.Runner {
		t.Fatal("one runner")
	}
}

func TestCloseAndResume(t *testing.T) {
	rows := newFiles(t)
	b := newBench(t, rows)
	saved := make(chan struct{})
	b.b.act = func(ctx context.Context, c *journal.Call) error {
		c.Progress(40, 100, "bytes")
		if err := c.SaveCursor(ctx, 40); err != nil {
			return err
		}
		close(saved)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	id := b.submit(t, "a", "b", "c")
	<-saved
	b.close(t)
	op, err := b.Wait(t.Context(), id, time.Hour)
	if !errors.Is(err, errs.Unavailable) || op.State.Final() {
		t.Errorf("waiting for an interrupted operation: %s, %v; want errs.Unavailable", op.State, err)
	}
	if _, _, err := b.Submit(t.Context(), op, nil); !errors.Is(err, errs.Unavailable) {
		t.Errorf("submitting to a closed runner: %v, want errs.Unavailable", err)
	}
	expect(t, "calls before", b.log, "a a! b")
	row := rows.content(t).Operations[0]
	expect(t, "row", fmt.Sprint(row.State, row.Progress.Done, string(row.Steps[1].Cursor)), "running4040")

	b = newBench(t, rows)
	b.b.act = func(_ context.Context, c *journal.Call) error {
		expect(t, "cursor", string(c.Step.Cursor), "40")
		return nil
	}
	if err := b.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, "state", b.wait(t, id).State, journal.Done)
	expect(t, "calls after", b.log, "b b! c c!")
	b.close(t)

	n := rows.commits()
	b = newBench(t, rows)
	if err := errors.Join(b.Recover(t.Context()), b.Settle(t.Context())); err != nil {
		t.Fatal(err)
	}
	expect(t, "transactions of another start", rows.commits()-n, 0)
	if err := b.Recover(t.Context()); !errors.Is(err, errs.Internal) {
		t.Errorf("recovering twice: %v, want errs.Internal", err)
	}
}

func TestNotResumableIsUndone(t *testing.T) {
	for steps, want := range map[string]string{"a b": "-b -b! -a -a!", "b a": "-b -b!"} {
		rows := newFiles(t)
		b := newBench(t, rows)
		in := make(chan struct{})
		b.b.act = func(ctx context.Context, _ *journal.Call) error { close(in); <-ctx.Done(); return ctx.Err() }
		id := b.submit(t, strings.Fields(steps)...)
		<-in
		b.close(t)
		b = newBench(t, rows)
		b.handlers["b/v1"] = unresumable{b.b}
		if err := b.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		op := b.wait(t, id)
		expect(t, steps+": state", op.State, journal.Failed)
		expect(t, steps+": kind", op.Error.Kind, errs.Unavailable)
		expect(t, steps+": calls", b.log, want)
	}
}

func TestUnknownStepIsRefusedUntouched(t *testing.T) {
	rows := newFiles(t)
	b := newBench(t, rows)
	in := make(chan struct{}, 2)
	b.a.act = func(ctx context.Context, _ *journal.Call) error { in <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	b.submit(t, "a")
	id := b.submit(t, "a", "c")
	<-in
	<-in
	b.close(t)
	before := rows.content(t)

	b = newBench(t, rows)
	delete(b.handlers, "c/v1")
	err := b.Recover(t.Context())
	if !errors.Is(err, errs.Version) || !strings.Contains(err.Error(), string(id)) || !strings.Contains(err.Error(), "c/v1") {
		t.Errorf("got %v, want errs.Version that names %s and c/v1", err, id)
	}
	expect(t, "store", rows.content(t), before)
	expect(t, "calls", b.log, "")
}

func TestProgressRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newFiles(t))
		b.a.act = func(_ context.Context, c *journal.Call) error {
			for i := range int64(100) {
				speed := time.Second
				if i >= 50 {
					speed = time.Second / 10
				}
				c.Progress(i*1000, 100_000, "bytes")
				time.Sleep(speed)
			}
			return nil
		}
		id := b.submit(t, "a")
		for _, c := range []struct {
			at   time.Duration
			want journal.Progress
		}{
			{20*time.Second + 1, journal.Progress{Done: 20_000, Total: 100_000, Unit: "bytes", Rate: 1000, ETASeconds: 80}},
			{49*time.Second + 1, journal.Progress{Done: 49_000, Total: 100_000, Unit: "bytes", Rate: 1000, ETASeconds: 51}},
			{54*time.Second + 1, journal.Progress{Done: 90_000, Total: 100_000, Unit: "bytes", Rate: 4600, ETASeconds: 2}},
		} {
			time.Sleep(c.at - time.Since(synctestStart))
			op, err := b.Wait(t.Context(), id, 0)
			if op.Progress.Rate == c.want.Rate-1 {
				op.Progress.Rate++ // the nanosecond that keeps the instants apart
			}
			if err != nil || op.Progress != c.want || op.State != journal.Running {
				t.Errorf("after %v: %s %+v, %v; want %+v", c.at, op.State, op.Progress, err, c.want)
			}
		}
		op := b.wait(t, id)
		expect(t, "done", op.Progress.Done, 99_000)
		expect(t, "transactions", b.rows.commits(), 2)
	})
}

// synctestStart is when time begins in a bubble.
var synctestStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func TestWaitGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newFiles(t))
		b.a.act = func(context.Context, *journal.Call) error { time.Sleep(time.Minute); return nil }
		id := b.submit(t, "a")
		op, err := b.Wait(t.Context(), id, 10*time.Second)
		if err != nil || op.State.Final() || time.Since(synctestStart) != 10*time.Second {
			t.Errorf("after %v: %s, %v", time.Since(synctestStart), op.State, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.Wait(ctx, id, time.Hour); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's end", err)
		}
		if _, err := b.Wait(t.Context(), "none", time.Hour); !errors.Is(err, errs.NotFound) {
			t.Errorf("got %v, want errs.NotFound", err)
		}
		b.wait(t, id)
	})
}

func TestConcurrent(t *testing.T) {
	b := newBench(t, newFiles(t))
	b.o.Workers, b.o.OnFinal = 8, nil
	b.Runner = journal.NewRunner(b.rows, b.o)
	var now, most, acts atomic.Int32
	full := make(chan struct{}) // closed once all places are taken
	act := func(_ context.Context, c *journal.Call) error {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		i := acts.Add(1)
		if i == 8 {
			close(full)
		}
		<-full
		if i%10 == 0 {
			return errs.New(errs.NoSpace, "x", "y", "full")
		}
		c.Progress(1, 1, "bytes")
		return nil
	}
	b.a.act, b.b.act = act, act
	var ids []journal.ID
	for i := range 200 {
		id := b.submit(t, "a", "b")
		ids = append(ids, id)
		if i%20 != 0 {
			continue
		}
		if _, err := b.Cancel(t.Context(), id); err != nil && !errors.Is(err, errs.Conflict) {
			t.Error(err)
		}
	}
	count := map[journal.State]int{}
	for _, id := range ids {
		count[b.wait(t, id).State]++
	}
	expect(t, "at once", most.Load(), 8)
	expect(t, "ended", count[journal.Done]+count[journal.Failed]+count[journal.Cancelled], 200)
	expect(t, "records", len(b.rows.content(t).Records), 2*count[journal.Done])
	t.Logf("%v, %d at once", count, most.Load())
}

// An operation of many steps lets others in between.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newFiles(t))
		b.o.Workers = 1
		b.Runner = journal.NewRunner(b.rows, b.o)
		in, out := make(chan struct{}), make(chan struct{})
		var once sync.Once
		b.a.act = func(context.Context, *journal.Call) error { once.Do(func() { close(in); <-out }); return nil }
		long := b.submit(t, slices.Repeat([]string{"a"}, 50)...)
		<-in
		short := b.submit(t, "b")
		synctest.Wait() // it waits for the worker
		close(out)
		b.wait(t, short)
		b.wait(t, long)
		if i := slices.Index(b.log.all, "b"); i > 20 {
			t.Errorf("the short operation came after %d calls of the long one", i)
		}
	})
}
