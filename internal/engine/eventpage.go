package engine

import (
	"context"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/store"
)

// eventsLost is the type of the event that stands for those that can no longer
// be told.
const eventsLost = "events.lost"

// EventPage returns the next events after the given one, oldest first, at most
// limit. An empty page means that there are none yet. Where events after the
// given one are no longer kept, or it is none of these records' own because the
// database was lost since, one of the type events.lost comes before them: who
// follows must look at everything anew, and resumes behind that event's id. After
// 0 asks for what there is, and misses nothing.
func (e *Engine) EventPage(ctx context.Context, after int64, limit int) ([]api.Event, error) {
	var page []api.Event
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		page = []api.Event{}
		gone, newest, err := tx.EventBounds(ctx)
		if err != nil {
			return err
		}
		if after > 0 && (after < gone || after > newest) {
			after = gone
			page = append(page, api.Event{ID: gone, Time: e.now(), Type: eventsLost, Subject: api.Subject{Type: "events"}})
		}
		rows, err := tx.Events(ctx, after, limit)
		for _, ev := range rows {
			page = append(page, api.Event{
				ID: ev.ID, Time: ev.Time, Type: ev.Type, Op: ev.OperationID,
				Subject: api.Subject{Type: ev.SubjectType, ID: ev.SubjectID, Name: ev.SubjectName},
			})
		}
		return err
	})
	return page, err
}
