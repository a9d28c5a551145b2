package engine

import (
	"context"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/store"
)

// EventPage returns the next events after the given one, oldest first, at most
// limit. An empty page means that there are none yet.
func (e *Engine) EventPage(ctx context.Context, after int64, limit int) ([]api.Event, error) {
	rows, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]store.Event, error) {
		return tx.Events(ctx, after, limit)
	})
	page := make([]api.Event, 0, len(rows))
	for _, ev := range rows {
		page = append(page, api.Event{
			ID: ev.ID, Time: ev.Time, Type: ev.Type, Op: ev.OperationID,
			Subject: api.Subject{Type: ev.SubjectType, ID: ev.SubjectID, Name: ev.SubjectName},
		})
	}
	return page, err
}
