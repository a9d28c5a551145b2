package engine_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
)

// TestOldOperationsArePruned lets time pass: what ended goes with its request
// id and its events, and who resumes behind them is told.
func TestOldOperationsArePruned(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	first, err := b.EventPage(ctx, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	k := api.Options{RequestID: "k"}
	create := func(o api.Options) string {
		t.Helper()
		return b.must(b.InstanceCreate(ctx, o, api.InstanceCreate{Name: "web1"})).ID
	}
	old := create(k)
	if again := create(k); again != old {
		t.Errorf("the same request id gave operation %s and then %s", old, again)
	}
	b.sql("UPDATE operations SET state = 'needs_operator' WHERE kind = 'pool.create'")

	// The second tick is taken when the pruning of the first has ended.
	later, tick := time.Now(), make(chan time.Time)
	b.configure = func(c *engine.Config) {
		c.Clock, c.Tick, c.KeepOperations = func() time.Time { return later }, tick, 30*24*time.Hour
	}
	b.restart()
	tick <- later
	tick <- later
	if again := create(k); again != old {
		t.Errorf("before its time the request id gave operation %s, want %s", again, old)
	}
	b.stop()
	later = later.Add(31 * 24 * time.Hour)
	b.start()
	tick <- later
	tick <- later

	if _, err := b.Operation(ctx, old); !errors.Is(err, errs.NotFound) {
		t.Errorf("an operation of 31 days ago: got %v, want %s", err, errs.NotFound)
	}
	if left := listOf(b.Operations(ctx, "", api.Page{})).Items; len(left) != 1 || left[0].Kind != "pool.create" {
		t.Errorf("operations %+v are left, want the one that waits for an operator", left)
	}
	b.fails(errs.Exists, api.Outcome{}, second(b.InstanceCreate(ctx, k, api.InstanceCreate{Name: "web1"})))

	page, err := b.EventPage(ctx, first[0].ID, 1000)
	if err != nil || len(page) != 1 || page[0].Type != "events.lost" {
		t.Fatalf("resuming behind an event that is gone gave %+v, %v, want that events were lost", page, err)
	}
	if rest, err := b.EventPage(ctx, page[0].ID, 1000); err != nil || len(rest) != 0 {
		t.Errorf("resuming behind that gave %+v, %v, want nothing", rest, err)
	}
	if all, err := b.EventPage(ctx, 0, 1000); err != nil || len(all) != 0 {
		t.Errorf("asking for all there is gave %+v, %v, want nothing", all, err)
	}
}

// TestEventsOfALostDatabaseAreMissed resumes behind an id that the new database
// has not come to.
func TestEventsOfALostDatabaseAreMissed(t *testing.T) {
	b := newBench(t)
	b.pool("main")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var types []string
	for ev, err := range b.Events(ctx, 5000) {
		if err != nil {
			t.Fatal(err)
		}
		if types = append(types, ev.Type); len(types) == 2 {
			break
		}
	}
	if types[0] != "events.lost" || types[1] != "operation.queued" {
		t.Errorf("resuming behind an event that never was gave %v, want that events were lost and then the first", types)
	}
}
