package journal

import (
	"context"

	"github.com/tarn-storage/tarn/errs"
)

// Holds reports whether this runner runs the operation, is about to, or has
// left it for the next start. An unfinished operation that its owner does not
// hold stands still.
func (r *Runner[T]) Holds(id ID) bool {
	if r.task(id) != nil {
		return true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.submitting[id] != nil
}

// announce tells Holds and started that the operation is about to be recorded,
// until the returned function is called.
func (r *Runner[T]) announce(id ID) (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	begun := make(chan struct{})
	r.submitting[id] = begun
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.submitting, id)
		close(begun)
	}
}

// Retry undoes an operation that asks for an operator once more, from the step
// it stopped at; another state is errs.Conflict. It returns when the undo has
// begun.
func (r *Runner[T]) Retry(ctx context.Context, id ID) error {
	if err := r.enter(); err != nil {
		return err
	}
	var op Operation
	err := r.rows.Update(ctx, func(ctx context.Context, tx T) (err error) {
		if op, err = r.rows.Operation(ctx, tx, id); err != nil {
			return err
		}
		if op.State != NeedsOperator {
			return errs.New(errs.Conflict, "operation.retry", string(id), "the operation is %s", op.State)
		}
		if err := r.known(&op, errs.Version); err != nil {
			return err
		}
		op.State, op.Attempts = Undoing, 0
		return r.rows.UpdateOperation(ctx, tx, op)
	})
	if err != nil {
		r.wg.Done()
		return err
	}
	t := newTask(op)
	t.begun = reached(&op)
	r.start(ctx, t, false)
	return nil
}
