package journal

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// task is an operation in the hands of a runner.
type task struct {
	id      ID
	kind    string
	subject string

	base  context.Context // never ends: for writes
	life  context.Context // ends when the runner closes: for undo
	ahead context.Context // ends also when the operation is cancelled: for acts

	stop      context.CancelCauseFunc // ends life
	interrupt context.CancelCauseFunc // ends ahead
	done      chan struct{}           // closed when the runner has let go

	row sync.Mutex // held over a whole write, so that the writes of one row are serial

	mu     sync.Mutex // guards what follows
	op     Operation
	stored State // the state in the row, which lags behind a queued operation that runs
	begun  int   // the highest step whose Act may have begun, or -1
	meter  meter
	reason error // why the runner let go before the end
}

func newTask(op Operation) *task {
	return &task{id: op.ID, kind: op.Kind, subject: op.Subject.Name, op: op, stored: op.State, begun: -1, done: make(chan struct{})}
}

// detach gives t contexts that carry ctx's values but not its end.
func (t *task) detach(ctx context.Context) {
	t.base = context.WithoutCancel(ctx)
	t.life, t.stop = context.WithCancelCause(t.base)
	t.renew()
}

// renew lets acts go on after a cancel that came too late. The caller holds row,
// or t is its own.
func (t *task) renew() { t.ahead, t.interrupt = context.WithCancelCause(t.life) }

// snapshot returns a copy of the operation with its progress at now.
func (t *task) snapshot(now time.Time) Operation {
	t.mu.Lock()
	defer t.mu.Unlock()
	op := clone(t.op)
	if t.meter.used() && !op.State.Final() {
		op.Progress = t.meter.progress(now)
	}
	return op
}

func clone(op Operation) Operation {
	op.Steps = slices.Clone(op.Steps)
	return op
}

func (t *task) left() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reason
}

func (t *task) state() State {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.op.State
}

// halted is the end of the runner's work on an operation that is not at its
// own end: nothing more is written or undone.
type halted struct{ error }

func (h halted) Unwrap() error { return h.error }

func isHalted(err error) bool {
	var h halted
	return errors.As(err, &h)
}

// errLost is why a runner lets go of an operation that another one took over.
var errLost = errs.New(errs.Conflict, "operation.run", "", "another daemon has taken the operation over")

// storeError is a write that the store failed, as opposed to one that a handler
// refused.
type storeError struct{ error }

func (e storeError) Unwrap() error { return e.error }

func isStoreError(err error) bool {
	var e storeError
	return errors.As(err, &e)
}

// write changes t's row in one transaction, with effect beside it. Five things
// might happen:
//  1. change refuses: its error is returned and no transaction was made;
//  2. effect refuses: its error is returned and nothing was written;
//  3. the row belongs to another fence, or the process has crashed: halted;
//  4. the store failed: storeError, unless a look shows that it wrote;
//  5. it is written, and t holds the new operation.
//
// change sees the operation as it is; effect may run more than once, each time
// on a fresh copy of what change made.
func (r *Runner[T]) write(t *task, change func(*Operation) error, effect func(ctx context.Context, tx T, op *Operation) error) error {
	t.row.Lock()
	defer t.row.Unlock()
	base := t.snapshot(r.o.Clock())
	if err := change(&base); err != nil {
		return err
	}
	base.UpdatedAt = r.o.Clock()
	var next Operation
	var refused error
	var lost, sound bool
	err := r.rows.Update(t.base, func(ctx context.Context, tx T) error {
		next, refused, lost, sound = clone(base), nil, false, false
		if effect != nil {
			if refused = r.guard(t, func() error { return effect(ctx, tx, &next) }); refused != nil {
				return refused
			}
		}
		if r.o.OnFinal != nil && next.State != t.stored {
			if err := r.o.OnFinal(ctx, tx, &next); err != nil {
				return err
			}
		}
		err := r.rows.UpdateOperation(ctx, tx, next)
		lost, sound = errors.Is(err, errs.Conflict), err == nil
		return err
	})
	switch {
	case err == nil || sound && r.written(t.base, next, err):
	case errors.Is(err, faults.ErrCrash):
		return halted{err}
	case lost:
		return halted{errLost}
	case refused != nil:
		return refused
	default:
		return storeError{err}
	}
	t.mu.Lock()
	t.op, t.stored = next, next.State
	t.mu.Unlock()
	return nil
}

// The bounds of trying again, of a store that fails and of an undo that does.
const (
	storeRetries = 5
	firstPause   = time.Second
	longestPause = time.Minute
)

// persist is write for what must be written before the operation can go on. A
// failing store is tried again after a pause; then the operation is left for
// the next start.
func (r *Runner[T]) persist(t *task, change func(*Operation) error, effect func(context.Context, T, *Operation) error) error {
	for try := 0; ; try++ {
		err := r.write(t, change, effect)
		if !isStoreError(err) {
			return err
		}
		r.o.Log.Error("operation's outcome is not written", "operation", t.id, "try", try+1, "error", err)
		if try == storeRetries {
			return halted{errs.New(errs.KindOf(err), "operation.run", string(t.id),
				"its outcome could not be recorded: %w", err).WithHint("it goes on at the daemon's next start")}
		}
		if err := r.pause(try); err != nil {
			return err
		}
	}
}

// pause waits before try number n+2, twice as long each time.
func (r *Runner[T]) pause(n int) error {
	d := longestPause
	if n < 6 {
		d = min(firstPause<<n, longestPause)
	}
	select {
	case <-r.o.After(d):
		return nil
	case <-r.closing:
		return halted{errClosing}
	}
}

// metered reports whether a step of t has reported progress.
func (t *task) metered() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.meter.used()
}
