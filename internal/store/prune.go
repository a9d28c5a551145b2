package store

import (
	"context"
	"database/sql/driver"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
)

// trimmed names the counter that keeps the id of the newest event that was
// removed.
const trimmed = "events.trimmed"

// PruneOperations looks at the next limit operations behind the id after and
// removes those that ended before the given time. It returns how many it
// removed, and where to go on; "" once it has come to those that are too young.
// What has not ended, waits for an operator or holds a resource stays. A pruned
// operation's request id may be used anew.
func (tx *Tx) PruneOperations(ctx context.Context, before time.Time, after journal.ID, limit int) (n int, next journal.ID, err error) {
	const op = "operation.prune"
	var rows int
	var young bool
	err = tx.query(ctx, "SELECT id, created_at FROM operations WHERE id > $1 ORDER BY id LIMIT $2", []any{string(after), int64(limit)}, func(row []driver.Value) error {
		var id string
		var created int64
		err := scan(row, &id, &created)
		if young = young || created >= before.UnixMicro(); !young { // ids rise with time
			next = journal.ID(id)
			rows++
		}
		return err
	})
	if err != nil || rows == 0 {
		return 0, "", tx.failed(op, "", err)
	}
	removed, err := tx.exec(ctx, `DELETE FROM operations WHERE id > $1 AND id <= $2 AND updated_at < $3
		AND (state = 'done' OR state = 'failed' OR state = 'cancelled')
		AND NOT EXISTS (SELECT 1 FROM operation_resources r WHERE r.operation_id = operations.id)`, string(after), string(next), before.UnixMicro())
	if young || rows < limit {
		next = ""
	}
	return int(removed), next, tx.failed(op, "", err)
}

// TrimEvents removes at most limit of the events that happened before the given
// time and returns how many it removed. It stops at the first that did not, so
// that what is kept has no gaps.
func (tx *Tx) TrimEvents(ctx context.Context, before time.Time, limit int) (int, error) {
	var last int64
	var fresh bool
	err := tx.query(ctx, "SELECT id, at FROM events ORDER BY id LIMIT $1", []any{int64(limit)}, func(row []driver.Value) error {
		var id, at int64
		err := scan(row, &id, &at)
		if fresh = fresh || at >= before.UnixMicro(); !fresh {
			last = id
		}
		return err
	})
	if err != nil || last == 0 {
		return 0, tx.failed("event.prune", "", err)
	}
	return tx.trimEvents(ctx, last)
}

// trimEvents removes the events up to the given id, and remembers that.
func (tx *Tx) trimEvents(ctx context.Context, last int64) (int, error) {
	n, err := tx.exec(ctx, "DELETE FROM events WHERE id <= $1", last)
	if err == nil && n > 0 {
		_, err = tx.exec(ctx, `INSERT INTO counters (name, value) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE counters.value < excluded.value`, trimmed, last)
	}
	return int(n), tx.failed("event.prune", "", err)
}

// EventBounds returns the id of the newest event that is no longer kept and that
// of the newest there ever was; 0 if there is none.
func (tx *Tx) EventBounds(ctx context.Context) (gone, newest int64, err error) {
	found, err := tx.row(ctx, `SELECT COALESCE((SELECT value FROM counters WHERE name = $1), 0), COALESCE((SELECT MAX(id) FROM events), 0)`,
		[]any{trimmed}, &gone, &newest)
	if err == nil && !found {
		err = errs.New(errs.Internal, "event.bounds", "", "the database did not answer")
	}
	return gone, max(gone, newest), err
}
