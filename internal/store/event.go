package store

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"
)

// keptEvents is how many events are kept; the first event of a connection and
// every so many behind it prune them.
const (
	keptEvents = 100_000
	pruneEvery = 1_000
)

// Event says that something happened to a subject. Ids rise in the order of
// commits.
type Event struct {
	ID          int64
	Time        time.Time
	Type        string
	SubjectType string
	SubjectID   string
	SubjectName string
	OperationID string
}

// Emit adds an event, whose ID it ignores. Followers see it after the commit.
func (tx *Tx) Emit(ctx context.Context, e Event) error {
	_, err := tx.exec(ctx, `INSERT INTO events (at, type, subject_type, subject_id, subject_name, operation_id)
		VALUES ($1, $2, $3, $4, $5, $6)`, e.Time.UnixMicro(), e.Type, e.SubjectType, e.SubjectID, e.SubjectName, e.OperationID)
	if err != nil {
		return tx.failed("event.emit", e.Type, err)
	}
	tx.events = true
	if tx.conn.emitted++; tx.conn.emitted%pruneEvery != 1 {
		return nil
	}
	_, newest, err := tx.EventBounds(ctx)
	if err == nil {
		_, err = tx.trimEvents(ctx, newest-keptEvents)
	}
	return err
}

// Events returns at most limit events behind the id after, oldest first; limit
// 0 means all that are kept.
func (tx *Tx) Events(ctx context.Context, after int64, limit int) ([]Event, error) {
	text := `SELECT id, at, type, subject_type, subject_id, subject_name, operation_id
		FROM events WHERE id > $1 ORDER BY id`
	args := []any{after}
	if limit > 0 {
		text += " LIMIT $2"
		args = append(args, int64(limit))
	}
	return tx.listEvents(ctx, text, args)
}

// EventsOf is Events, all of them, of the given types.
func (tx *Tx) EventsOf(ctx context.Context, after int64, types ...string) ([]Event, error) {
	text := `SELECT id, at, type, subject_type, subject_id, subject_name, operation_id
		FROM events WHERE id > $1 AND type IN (`
	args := []any{after}
	for i, t := range types {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("$%d", i+2)
		args = append(args, t)
	}
	return tx.listEvents(ctx, text+") ORDER BY id", args)
}

func (tx *Tx) listEvents(ctx context.Context, text string, args []any) (list []Event, err error) {
	err = tx.query(ctx, text, args, func(row []driver.Value) error {
		var e Event
		err := scan(row, &e.ID, stampCodec{&e.Time}, &e.Type, &e.SubjectType, &e.SubjectID, &e.SubjectName, &e.OperationID)
		list = append(list, e)
		return err
	})
	return list, tx.failed("event.list", "", err)
}

// NextGeneration returns the next value of the durable counter name: 1, 2, ...
func (tx *Tx) NextGeneration(ctx context.Context, name string) (int64, error) {
	if err := tx.writes(ctx); err != nil {
		return 0, err
	}
	var n int64
	_, err := tx.row(ctx, `INSERT INTO counters (name, value) VALUES ($1, 1)
		ON CONFLICT (name) DO UPDATE SET value = counters.value + 1 RETURNING value`, []any{name}, &n)
	return n, err
}

// RaiseGeneration has the durable counter name go on behind least, if it has not
// come so far: when what it numbered comes back from elsewhere.
func (tx *Tx) RaiseGeneration(ctx context.Context, name string, least int64) error {
	_, err := tx.exec(ctx, `INSERT INTO counters (name, value) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET value = excluded.value WHERE counters.value < excluded.value`, name, least)
	return tx.failed("counter.raise", name, err)
}

// writes refuses a read transaction; it comes before writing statements that
// return rows.
func (tx *Tx) writes(ctx context.Context) error {
	_, err := tx.enter(ctx, true)
	if err == nil {
		tx.dirty = true
		tx.mu.Unlock()
	}
	return err
}
