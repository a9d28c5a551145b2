package journal

import (
	"context"
	"encoding/json"
	"errors"
	"runtime/debug"
	"strconv"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// run takes t to its end, or to where the runner has to let go.
func (r *Runner[T]) run(t *task, resume bool) error {
	err := r.forward(t, resume)
	if err == nil || isHalted(err) {
		return err
	}
	if err := r.turn(t, err); err != nil || t.state().Final() {
		return err
	}
	return r.backward(t)
}

// retire ends the runner's work on t. An operation left for the next start
// stays visible with the reason.
func (r *Runner[T]) retire(t *task, err error) {
	t.mu.Lock()
	t.reason = err
	t.mu.Unlock()
	if err == nil || errors.Is(err, errLost) {
		r.mu.Lock()
		delete(r.tasks, t.id)
		r.mu.Unlock()
	}
	if err != nil {
		r.o.Log.Warn("operation left unfinished", "operation", t.id, "error", err)
	}
	t.stop(nil)
	close(t.done)
}

// reached returns the step at hand: going forward the first that is not done,
// being undone the next to undo.
func reached(op *Operation) int {
	for i, s := range op.Steps {
		switch s.State {
		case StepUndone:
			return i - 1
		case StepPending:
			return i
		}
	}
	return len(op.Steps) - 1
}

func (r *Runner[T]) irreversible(op *Operation, i int) bool {
	if i < 0 {
		return false
	}
	h, ok := r.o.Handlers[op.Steps[i].Kind].(Irreversible)
	return ok && h.Irreversible()
}

// floor returns the lowest step that may be undone: the one above the last done
// irreversible step.
func (r *Runner[T]) floor(op *Operation) int {
	for i := len(op.Steps) - 1; i >= 0; i-- {
		if op.Steps[i].State == StepDone && r.irreversible(op, i) {
			return i + 1
		}
	}
	return 0
}

// errTurned is why the way forward ends for a cancelled operation.
var errTurned = errors.New("the operation is to be undone")

// forward performs the steps still to do.
func (r *Runner[T]) forward(t *task, resume bool) error {
	op := t.snapshot(r.o.Clock())
	switch {
	case op.State == Undoing:
		return errTurned
	case op.Cancel:
		return errs.New(errs.Cancelled, op.Kind, op.Subject.Name, "cancelled on request")
	case !resume && r.floor(&op) == 0:
		return errs.New(errs.Unavailable, op.Kind, op.Subject.Name,
			"interrupted by a restart of the daemon, and its source cannot be read again").WithHint("repeat the request")
	}
	for i := reached(&op); i < len(op.Steps); i++ {
		if err := r.step(t, i); err != nil {
			return err
		}
	}
	return nil
}

// maxAgain bounds how often a Commit may ask for another Act.
const maxAgain = 10

// step performs step i, repeating it while its Commit asks for that.
func (r *Runner[T]) step(t *task, i int) error {
	for range maxAgain {
		c, err := r.act(t, i)
		if err != nil {
			return err
		}
		err = r.commit(t, i, c)
		if !errors.Is(err, Again) {
			return err
		}
	}
	return errs.New(errs.Conflict, t.kind, t.subject, "step %d: %w", i+1, Again).
		WithHint("other operations keep changing what it needs; repeat it")
}

// act runs step i's Act in one of the places.
func (r *Runner[T]) act(t *task, i int) (*Call, error) {
	if err := r.slots.Acquire(t.ahead, 1); err != nil {
		return nil, r.interrupted(t)
	}
	defer r.slots.Release(1)
	if err := r.begin(t, i); err != nil {
		return nil, err
	}
	c := r.call(t, i)
	c.idle = r.idle
	err := r.guard(t, func() error { return r.o.Handlers[c.Step.Kind].Act(t.ahead, c) })
	switch {
	case err == nil:
		return c, nil
	case errors.Is(err, faults.ErrCrash):
		return nil, halted{err}
	case r.stopping():
		return nil, halted{errClosing}
	}
	return nil, err
}

// idle runs wait outside of the place that its caller holds. It always comes
// back with a place: act gives it up.
func (r *Runner[T]) idle(wait func() error) error {
	r.slots.Release(1)
	defer r.slots.Acquire(context.Background(), 1) // every other holder gives its place back
	return wait()
}

// begin notes that step i's Act begins, unless the operation was turned.
func (r *Runner[T]) begin(t *task, i int) error {
	t.row.Lock()
	defer t.row.Unlock()
	if t.ahead.Err() != nil {
		return r.interrupted(t)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.op.State == Undoing {
		return errTurned
	}
	t.op.State, t.begun = Running, i
	return nil
}

// interrupted says why ahead has ended.
func (r *Runner[T]) interrupted(t *task) error {
	if r.stopping() {
		return halted{errClosing}
	}
	return context.Cause(t.ahead)
}

// commit writes step i's database effect and its done-mark, and with the last
// step the operation's end. What an irreversible step did cannot be taken back
// because a store fails: it is written later instead.
func (r *Runner[T]) commit(t *task, i int, c *Call) error {
	h := r.o.Handlers[c.Step.Kind]
	last := i == len(c.Op.Steps)-1
	change := func(op *Operation) error {
		if op.State == Undoing {
			return errTurned
		}
		op.Steps[i].State = StepDone
		if !t.metered() {
			op.Progress = Progress{Done: int64(i + 1), Total: int64(len(op.Steps)), Unit: "steps"}
		}
		if op.Cancel { // of an irreversible step that was done first
			op.Cancel, op.Error = false, nil
			t.renew()
		}
		if last {
			op.State = Done
			op.Progress.ETASeconds = 0
		}
		return nil
	}
	output, result := c.Step.Output, c.Op.Result
	effect := func(ctx context.Context, tx T, op *Operation) error {
		c.Step.Output, c.Op.Result = output, result // what an earlier run changed is undone
		err := h.Commit(ctx, tx, c)
		op.Steps[i].Output, op.Result = c.Step.Output, c.Op.Result
		return err
	}
	if r.irreversible(c.Op, i) {
		return r.persist(t, change, effect)
	}
	return r.write(t, change, effect)
}

// turn records that t failed with err and is now undone or, when the step at
// hand is an irreversible one that was begun, that it ends here. A cancelled
// operation is turned already.
func (r *Runner[T]) turn(t *task, err error) error {
	change := func(op *Operation) error {
		if op.State == Undoing {
			return errNothing
		}
		if op.Error == nil {
			op.Error = failure(err)
		}
		op.State = Undoing
		if i := reached(op); r.irreversible(op, i) && t.begun == i {
			op.State = defeat(op)
		}
		return nil
	}
	op := t.snapshot(r.o.Clock())
	if i := reached(&op); r.irreversible(&op, i) && t.begun == i {
		err = r.persist(t, change, nil)
	} else {
		err = r.write(t, change, nil)
	}
	switch {
	case isHalted(err):
		return err
	case isStoreError(err):
		// Undo may be what makes room for the store to write again. If the
		// process dies before the first mark the next one acts again on what
		// undo left, which every Act bears.
		r.o.Log.Warn("undoing before it is recorded", "operation", t.id, "error", err)
		t.mu.Lock()
		defer t.mu.Unlock()
		_ = change(&t.op)
	}
	return nil
}

// defeat is the final state of an operation that did not succeed.
func defeat(op *Operation) State {
	if op.Cancel {
		return Cancelled
	}
	return Failed
}

// failure says err in the error vocabulary's words.
func failure(err error) *Failure {
	var e *errs.Error
	if errors.As(err, &e) {
		return &Failure{Kind: e.Kind, Class: e.Class, Op: e.Op, Subject: e.Subject, Message: e.Message, Hint: e.Hint}
	}
	return &Failure{Kind: errs.KindOf(err), Message: err.Error()}
}

// backward undoes from the step at hand down to the point of no return.
func (r *Runner[T]) backward(t *task) error {
	op := t.snapshot(r.o.Clock())
	from, floor := reached(&op), r.floor(&op)
	if from >= floor && r.irreversible(&op, from) {
		from-- // it was not begun, or the operation would not be undone
	}
	if from < floor {
		return r.persist(t, func(op *Operation) error { op.State = defeat(op); return nil }, nil)
	}
	for i := from; i >= floor; i-- {
		if err := r.undo(t, i, i == floor); err != nil || t.state().Final() {
			return err
		}
	}
	return nil
}

// undo undoes step i, trying again after a pause as often as UndoAttempts
// allows; then the operation asks for an operator. Attempts that meet silence do
// not count, see Await. With the last step the operation ends.
func (r *Runner[T]) undo(t *task, i int, last bool) error {
	for silent := 0; ; {
		err := r.undoOnce(t, i, last)
		if err == nil || isHalted(err) {
			return err
		}
		r.o.Log.Error("undo failed", "operation", t.id, "step", i+1, "error", err)
		if r.o.Await != nil && r.o.Await(t.life, err) {
			if err := r.pause(silent); err != nil {
				return err
			}
			silent++
			continue
		}
		op := t.snapshot(r.o.Clock())
		attempts := op.Attempts + 1
		count := func(op *Operation) error {
			op.Attempts = attempts
			if attempts >= r.o.UndoAttempts {
				op.State = NeedsOperator
				op.Error = stuck(op.Error, op.Steps[i].Kind, attempts, err)
			}
			return nil
		}
		if err := r.persist(t, count, nil); err != nil || attempts >= r.o.UndoAttempts {
			return err
		}
		if err := r.pause(attempts - 1); err != nil {
			return err
		}
	}
}

func (r *Runner[T]) undoOnce(t *task, i int, last bool) error {
	if err := r.slots.Acquire(t.life, 1); err != nil {
		return halted{errClosing}
	}
	defer r.slots.Release(1)
	if r.stopping() {
		return halted{errClosing}
	}
	c := r.call(t, i)
	h := r.o.Handlers[c.Step.Kind]
	err := r.guard(t, func() error { return h.Undo(t.life, c) })
	switch {
	case errors.Is(err, faults.ErrCrash):
		return halted{err}
	case err != nil && r.stopping():
		return halted{errClosing}
	case err != nil:
		return err
	}
	return r.persist(t, func(op *Operation) error {
		op.Steps[i].State, op.Attempts = StepUndone, 0
		if last {
			op.State = defeat(op)
		}
		return nil
	}, func(ctx context.Context, tx T, _ *Operation) error { return h.UndoCommit(ctx, tx, c) })
}

// stuck adds to the reason of a failure that it could not be undone.
func stuck(f *Failure, kind string, attempts int, err error) *Failure {
	s := failure(err)
	if f != nil {
		s.Kind, s.Class, s.Op, s.Subject = f.Kind, f.Class, f.Op, f.Subject
		s.Message = f.Message + "; undoing it failed: " + s.Message
	}
	s.Hint = "undo of " + kind + " was tried " + strconv.Itoa(attempts) + " times; repair the cause and look at what is left with tarn doctor"
	return s
}

// guard runs f and makes a panic an internal error.
func (r *Runner[T]) guard(t *task, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			r.o.Log.Error("panic in a step", "operation", t.id, "panic", p, "stack", string(debug.Stack()))
			err = errs.New(errs.Internal, t.kind, t.subject, "panic: %v", p).WithHint("this is a bug in tarn; its log has the details")
		}
	}()
	return f()
}

// newCall returns a call for step i of op, which becomes the call's own.
func newCall(op Operation, i int) *Call {
	c := &Call{Op: &op}
	c.Step = &op.Steps[i]
	c.save = func(context.Context, any) error { return nil }
	return c
}

// call returns a call that reports to t.
func (r *Runner[T]) call(t *task, i int) *Call {
	c := newCall(t.snapshot(r.o.Clock()), i)
	c.progress = func(done, total int64, unit string) {
		now := r.o.Clock()
		t.mu.Lock()
		defer t.mu.Unlock()
		t.meter.report(now, done, total, unit)
	}
	c.save = func(ctx context.Context, cursor any) error {
		b, err := json.Marshal(cursor)
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		err = r.write(t, func(op *Operation) error { op.Steps[i].Cursor = b; return nil }, nil)
		if err == nil {
			c.Step.Cursor = b
		}
		return err
	}
	return c
}
