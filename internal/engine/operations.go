package engine

import (
	"context"
	"iter"
	"runtime"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// Operations lists operations, those in one state or with an empty one all.
func (e *Engine) Operations(ctx context.Context, state string, p api.Page) (api.List[api.Operation], error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.List[api.Operation], error) {
		var where []store.Where
		if state != "" {
			where = append(where, store.Eq("state", state))
		}
		rows, next, err := tx.Operations.List(ctx, pageQuery(p, where...))
		return listed(ctx, rows, next, err, func(_ context.Context, op journal.Operation) (api.Operation, error) {
			return operationView(e.runner.Overlay(op)), nil
		})
	})
}

// operationID refuses what cannot be an operation's id before the store is asked.
func operationID(id string) (journal.ID, error) {
	if id == "" {
		return "", errs.New(errs.Invalid, "operation", "", "which operation? none was named").WithHint("tarn operation list")
	}
	return journal.ID(strings.ToLower(id)), nil
}

// Operation shows one operation as it is now.
func (e *Engine) Operation(ctx context.Context, id string) (api.Operation, error) {
	return e.OperationWait(ctx, id, 0)
}

// OperationWait returns the operation when it has ended, or after d.
func (e *Engine) OperationWait(ctx context.Context, id string, d time.Duration) (api.Operation, error) {
	jid, err := operationID(id)
	if err != nil {
		return api.Operation{}, err
	}
	op, err := e.runner.Wait(ctx, jid, d)
	return operationView(op), err
}

// OperationCancel asks an operation to stop and to take back what it did.
func (e *Engine) OperationCancel(ctx context.Context, id string) (api.Operation, error) {
	jid, err := operationID(id)
	if err != nil {
		return api.Operation{}, err
	}
	op, err := e.runner.Cancel(ctx, jid)
	return operationView(op), err
}

// eventPage is how many events are read at once.
const eventPage = 1000

// Events yields every event after the given one, then waits for new ones until
// ctx ends. EventPage says what it yields where events are missing.
func (e *Engine) Events(ctx context.Context, after int64) iter.Seq2[api.Event, error] {
	return func(yield func(api.Event, error) bool) {
		for {
			more := e.store.Notify()
			events, err := e.EventPage(ctx, after, eventPage)
			if err != nil {
				yield(api.Event{}, err)
				return
			}
			for _, ev := range events {
				after = ev.ID
				if !yield(ev, nil) {
					return
				}
			}
			if len(events) >= eventPage {
				continue
			}
			select {
			case <-ctx.Done():
				return
			case <-more:
			}
		}
	}
}

// Version says what runs.
func (e *Engine) Version(context.Context) api.Version {
	return api.Version{Version: e.cfg.Version, Go: runtime.Version(), API: "v1", Schema: e.store.SchemaVersion()}
}

// Settle returns when no operation is running, with the errors of those that
// were left for the next start.
func (e *Engine) Settle(ctx context.Context) error { return e.runner.Settle(ctx) }
