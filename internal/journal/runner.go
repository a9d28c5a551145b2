package journal

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/semaphore"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// Options configures a Runner. Zero values are the defaults named here.
type Options[T any] struct {
	Owner    string                                 // the host in whose name operations run
	Handlers map[string]Handler[T]                  // by step kind
	Clock    func() time.Time                       // time.Now
	After    func(d time.Duration) <-chan time.Time // time.After; every pause and every Wait uses it
	NewID    func() ID                              // UUIDv7
	Log      *slog.Logger                           // discards

	// Workers bounds how many steps act at once (128). A place is given up
	// between steps and handed on in the order of asking, so that an operation
	// of many steps does not keep a short one waiting for all of them.
	Workers int

	// UndoAttempts is how often in a row the undo of one step may fail, over
	// restarts, before the operation asks for an operator (5).
	UndoAttempts int

	// Await, when set, is told why an undo failed. It reports whether that is the
	// silence of what the undo works on, after waiting until that may answer
	// again, ctx ends, or it knows no better. Such attempts are not counted.
	Await func(ctx context.Context, err error) bool

	// OnFinal, when set, runs in every transaction that changes the state of an
	// existing row, before the row is written; op carries the new state. The
	// insertion itself is the intent's affair.
	OnFinal func(ctx context.Context, tx T, op *Operation) error
}

func (o *Options[T]) ensureDefaults() {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.After == nil {
		o.After = time.After
	}
	if o.NewID == nil {
		o.NewID = func() ID { return ID(uuid.Must(uuid.NewV7()).String()) }
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Workers <= 0 {
		o.Workers = 128
	}
	if o.UndoAttempts <= 0 {
		o.UndoAttempts = 5
	}
}

// Runner runs the operations of one owner. It is safe for concurrent use.
//
// A simulated crash (faults.ErrCrash) from anywhere stops the operation that
// met it without another write or undo, as the death of the process would.
type Runner[T any] struct {
	rows    Rows[T]
	o       Options[T]
	fence   int64
	slots   *semaphore.Weighted
	closing chan struct{}

	mu         sync.Mutex
	tasks      map[ID]*task         // running, and those left for the next start
	submitting map[ID]chan struct{} // recorded, or about to be, and not in tasks yet; closed then
	closed     bool
	began      bool
	wg         sync.WaitGroup
}

// NewRunner returns a runner over rows. Recover comes before the first Submit.
func NewRunner[T any](rows Rows[T], o Options[T]) *Runner[T] {
	o.ensureDefaults()
	return &Runner[T]{
		rows:       rows,
		o:          o,
		fence:      newFence(o.Clock()),
		slots:      semaphore.NewWeighted(int64(o.Workers)),
		closing:    make(chan struct{}),
		tasks:      map[ID]*task{},
		submitting: map[ID]chan struct{}{},
	}
}

// newFence returns a number that no earlier run of the daemon used: it grows
// with the clock, and its low bits are random so that two runs started at one
// instant differ.
func newFence(now time.Time) int64 {
	const low = 1<<20 - 1
	return now.UnixNano()&^low | rand.Int64N(low+1)
}

// errNothing rolls back a transaction that found nothing to write.
var errNothing = errors.New("nothing to write")

// Recover takes over the owner's unfinished operations under a new fence and
// starts each again in the background, oldest first: an operation that was
// going forward resumes with its first step that is not done, unless a step
// still to do is not Resumable; one that was being undone or cancelled goes on
// being undone. A step kind that this build does not know fails with
// errs.Version before anything is touched. With no unfinished operation nothing
// is written. Recover is called once.
func (r *Runner[T]) Recover(ctx context.Context) error {
	r.mu.Lock()
	again := r.began
	r.began = true
	r.mu.Unlock()
	if again {
		return errs.New(errs.Internal, "journal.recover", "", "the runner has already begun")
	}
	var ops []Operation
	err := r.rows.Update(ctx, func(ctx context.Context, tx T) error {
		var err error
		if ops, err = r.rows.TakeUnfinished(ctx, tx, r.o.Owner, r.fence); err != nil {
			return err
		}
		if len(ops) == 0 {
			return errNothing
		}
		for i := range ops {
			if err := r.known(&ops[i], errs.Version); err != nil {
				return err
			}
			ops[i].Fence = r.fence
		}
		return nil
	})
	if len(ops) == 0 && errors.Is(err, errNothing) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, op := range ops {
		if err := r.enter(); err != nil {
			return err
		}
		r.o.Log.Info("operation taken over", "operation", op.ID, "kind", op.Kind, "state", op.State)
		t := newTask(op)
		// Whether the step at hand was begun is not recorded: an irreversible
		// one may have been.
		t.begun = reached(&op)
		r.start(ctx, t, r.resumable(&op))
	}
	return nil
}

// known refuses an operation with a step that has no handler.
func (r *Runner[T]) known(op *Operation, kind errs.Kind) error {
	for _, s := range op.Steps {
		if r.o.Handlers[s.Kind] == nil {
			return errs.New(kind, "operation.run", string(op.ID),
				"%s has a step of kind %q, which this build does not know", op.Kind, s.Kind).
				WithHint("start the version of tarn that wrote it and let it finish")
		}
	}
	if len(op.Steps) == 0 {
		return errs.New(errs.Internal, "operation.run", string(op.ID), "%s has no steps", op.Kind)
	}
	return nil
}

// resumable asks the handlers of all steps still to do.
func (r *Runner[T]) resumable(op *Operation) bool {
	for i, s := range op.Steps {
		if h, ok := r.o.Handlers[s.Kind].(Resumer); ok && s.State == StepPending {
			c := newCall(*op, i)
			if !h.Resumable(c) {
				return false
			}
		}
	}
	return true
}

// enter counts one more operation in, unless the runner is closed.
func (r *Runner[T]) enter() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errs.New(errs.Unavailable, "operation.submit", "", "the daemon is stopping")
	}
	r.began = true
	r.wg.Add(1)
	return nil
}

// start runs t in its own goroutine, detached from ctx's end: an operation
// outlives the request that made it. The caller has entered.
func (r *Runner[T]) start(ctx context.Context, t *task, resume bool) {
	t.detach(ctx)
	r.mu.Lock()
	r.tasks[t.id] = t
	if r.closed {
		t.stop(errClosing)
	}
	r.mu.Unlock()
	go func() {
		defer r.wg.Done()
		r.retire(t, r.run(t, resume))
	}()
}

// Submit makes op durable together with what intent writes, in one transaction,
// and starts it. Four things might happen:
//  1. the operation is new: it is returned with its id and runs;
//  2. the caller's Key named an earlier operation of the same kind and request:
//     that one is returned, existing is true and intent did not run;
//  3. intent, or the store, refuses: nothing was written;
//  4. the store lost its answer: an error is returned and the operation, if it
//     was written, runs at the next start.
//
// op needs Kind, Subject and Steps; ID may be given. Queued is how it is written;
// it costs no transaction to start running.
func (r *Runner[T]) Submit(ctx context.Context, op Operation, intent func(ctx context.Context, tx T) error) (Operation, bool, error) {
	r.prepare(&op)
	if err := r.known(&op, errs.Internal); err != nil {
		return op, false, err
	}
	if err := r.enter(); err != nil {
		return op, false, err
	}
	defer r.announce(op.ID)()
	var existing Operation
	var found, sound bool
	err := r.rows.Update(ctx, func(ctx context.Context, tx T) error {
		sound = false
		var err error
		existing, found, err = r.rows.InsertOperation(ctx, tx, op)
		if err == nil && found {
			err = errNothing
		}
		if err == nil && intent != nil {
			err = intent(ctx, tx)
		}
		sound = err == nil
		return err
	})
	if found && errors.Is(err, errNothing) {
		r.wg.Done()
		return r.Overlay(existing), true, nil
	}
	if err != nil && !(sound && r.written(ctx, op, err)) {
		r.wg.Done()
		return op, false, err
	}
	r.start(ctx, newTask(op), true)
	return op, false, nil
}

// prepare fills in what every new operation has.
func (r *Runner[T]) prepare(op *Operation) {
	if op.ID == "" {
		op.ID = r.o.NewID()
	}
	op.State, op.Owner, op.Fence = Queued, r.o.Owner, r.fence
	op.CreatedAt = r.o.Clock()
	op.UpdatedAt = op.CreatedAt
	op.Steps = slices.Clone(op.Steps)
	for i := range op.Steps {
		op.Steps[i].State = StepPending
	}
	op.Progress = Progress{Total: int64(len(op.Steps)), Unit: "steps"}
}

// written looks up whether a transaction whose answer was an error is in the
// store all the same.
func (r *Runner[T]) written(ctx context.Context, want Operation, cause error) bool {
	if errors.Is(cause, faults.ErrCrash) {
		return false
	}
	got, err := r.row(context.WithoutCancel(ctx), want.ID)
	return err == nil && got.Fence == want.Fence && got.State == want.State && got.Cancel == want.Cancel &&
		got.Attempts == want.Attempts && slices.EqualFunc(got.Steps, want.Steps, func(a, b Step) bool {
		return a.State == b.State && string(a.Cursor) == string(b.Cursor)
	})
}

func (r *Runner[T]) row(ctx context.Context, id ID) (op Operation, err error) {
	err = r.rows.View(ctx, func(ctx context.Context, tx T) error {
		op, err = r.rows.Operation(ctx, tx, id)
		return err
	})
	return op, err
}

func (r *Runner[T]) task(id ID) *task {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[id]
}

// started is task for who has seen an operation on record: one whose Submit has
// not come to starting it yet is waited for.
func (r *Runner[T]) started(ctx context.Context, id ID) *task {
	r.mu.Lock()
	t, submitting := r.tasks[id], r.submitting[id]
	r.mu.Unlock()
	if t != nil || submitting == nil {
		return t
	}
	select {
	case <-submitting:
	case <-ctx.Done():
	}
	return r.task(id)
}

// Get returns an operation as it is now, with the live progress of a running
// one, or errs.NotFound.
func (r *Runner[T]) Get(ctx context.Context, id ID) (Operation, error) {
	if t := r.task(id); t != nil {
		return t.snapshot(r.o.Clock()), nil
	}
	return r.row(ctx, id)
}

// Overlay returns row as it is now when this runner runs it, else row itself.
func (r *Runner[T]) Overlay(row Operation) Operation {
	if t := r.task(row.ID); t != nil {
		return t.snapshot(r.o.Clock())
	}
	return row
}

// Wait returns the operation when it is final, when the runner left it for the
// next start (with the reason), or after d. When ctx ends first the error is its
// cause.
func (r *Runner[T]) Wait(ctx context.Context, id ID, d time.Duration) (Operation, error) {
	t := r.started(ctx, id)
	if t == nil {
		return r.row(ctx, id)
	}
	select {
	case <-t.done:
		return t.snapshot(r.o.Clock()), t.left()
	default:
	}
	if d <= 0 {
		return t.snapshot(r.o.Clock()), nil
	}
	timeout := r.o.After(d)
	select {
	case <-t.done:
		return t.snapshot(r.o.Clock()), t.left()
	case <-timeout:
		return t.snapshot(r.o.Clock()), nil
	case <-ctx.Done():
		return t.snapshot(r.o.Clock()), context.Cause(ctx)
	}
}

// Cancel marks the operation durably as cancelled, interrupts its Act and has
// it undone; it does not wait for that. It returns errs.Conflict for an
// operation that has ended or is past its point of no return, and
// errs.Unavailable for one that another host runs. Repeating it, or cancelling
// an operation that is being undone already, changes nothing.
func (r *Runner[T]) Cancel(ctx context.Context, id ID) (Operation, error) {
	t := r.started(ctx, id)
	if t == nil {
		op, err := r.row(ctx, id)
		if err != nil {
			return op, err
		}
		if op.State.Final() {
			return op, ended(&op)
		}
		return op, errs.New(errs.Unavailable, "operation.cancel", string(id), "it is run by host %s", op.Owner)
	}
	var interrupt context.CancelCauseFunc
	err := r.write(t, func(op *Operation) error {
		interrupt = t.interrupt
		return r.markCancel(t, op)
	}, nil)
	switch {
	case err == nil:
		interrupt(errs.New(errs.Cancelled, "operation.run", string(id), "cancelled on request"))
	case errors.Is(err, errNothing):
		err = nil
	}
	return t.snapshot(r.o.Clock()), err
}

func ended(op *Operation) error {
	return errs.New(errs.Conflict, "operation.cancel", string(op.ID), "it has already ended: %s", op.State)
}

// markCancel changes op to one that is cancelled. An irreversible step that may
// have begun cannot be undone: then only the mark is set, and its Act decides.
func (r *Runner[T]) markCancel(t *task, op *Operation) error {
	i := reached(op)
	switch {
	case op.State.Final():
		return ended(op)
	case op.State == Undoing || op.Cancel:
		return errNothing
	case r.floor(op) > 0:
		return errs.New(errs.Conflict, "operation.cancel", string(op.ID), "it is past the point of no return").
			WithHint("wait for it to end")
	}
	op.Cancel = true
	op.Error = &Failure{Kind: errs.Cancelled, Op: op.Kind, Subject: op.Subject.Name, Message: "cancelled on request"}
	if !(r.irreversible(op, i) && t.begun == i) {
		op.State = Undoing
	}
	return nil
}

// Settle returns when no operation is running, with the errors of those that
// were left for the next start.
func (r *Runner[T]) Settle(ctx context.Context) error {
	seen := map[*task]bool{}
	var left error
	for {
		var next *task
		r.mu.Lock()
		for _, t := range r.tasks {
			if !seen[t] {
				next = t
				break
			}
		}
		r.mu.Unlock()
		if next == nil {
			return left
		}
		seen[next] = true
		select {
		case <-next.done:
			left = errors.Join(left, next.left())
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// errClosing is why Acts end when the daemon stops.
var errClosing = errs.New(errs.Unavailable, "operation.run", "", "the daemon is stopping; the operation goes on at its next start")

// Close takes no more work, interrupts what is running without undoing it, and
// waits for it to stop or for ctx to end. The next Recover resumes it.
func (r *Runner[T]) Close(ctx context.Context) error {
	r.mu.Lock()
	if !r.closed {
		r.closed = true
		close(r.closing)
	}
	for _, t := range r.tasks {
		t.stop(errClosing)
	}
	r.mu.Unlock()
	stopped := make(chan struct{})
	go func() { r.wg.Wait(); close(stopped) }()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for operations to stop: %w", context.Cause(ctx))
	}
}

func (r *Runner[T]) stopping() bool {
	select {
	case <-r.closing:
		return true
	default:
		return false
	}
}
