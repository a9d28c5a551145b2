package engine

import (
	"context"
	"time"

	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// What is old is pruned in transactions of so many rows, between which others
// get their turn, and looked for so often.
const (
	pruneBatch = 500
	pruneEvery = time.Hour
)

// pruneOld prunes now and at every tick, until the engine stops.
func (e *Engine) pruneOld(tick <-chan time.Time) {
	for {
		if err := e.prune(e.life); err != nil && e.life.Err() == nil {
			e.cfg.Log.Warn("old operations and events could not be pruned", "error", err)
		}
		select {
		case <-tick:
		case <-e.life.Done():
			return
		}
	}
}

// prune removes the operations that ended, and the events that happened, longer
// ago than they are kept.
func (e *Engine) prune(ctx context.Context) error {
	before := e.now().Add(-e.cfg.KeepOperations)
	operations, events := 0, 0
	for after, more := journal.ID(""), true; more; more = after != "" {
		n, next := 0, journal.ID("")
		err := e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			n, next, err = tx.PruneOperations(ctx, before, after, pruneBatch)
			return err
		})
		if err != nil {
			return err
		}
		operations, after = operations+n, next
	}
	for more := true; more; {
		n := 0
		err := e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
			n, err = tx.TrimEvents(ctx, before, pruneBatch)
			return err
		})
		if err != nil {
			return err
		}
		events, more = events+n, n == pruneBatch
	}
	if operations+events > 0 {
		e.cfg.Log.Info("pruned what is old", "operations", operations, "events", events)
	}
	return nil
}
