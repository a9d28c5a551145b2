package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// testPrunedOperations prunes in batches of two what is older than an hour.
func testPrunedOperations(t *testing.T, place Place) {
	s := fresh(t, place)
	limit := epoch.Add(time.Hour)
	var held []journal.ID
	for n, row := range []struct {
		state            journal.State
		created, updated time.Time
		stays            bool
	}{
		{journal.Done, epoch, epoch, false},
		{journal.Running, epoch, epoch, true},
		{journal.NeedsOperator, epoch, epoch, true},
		{journal.Failed, epoch, epoch, false},
		{journal.Done, epoch, limit, true}, // ended only then
		{journal.Queued, epoch, epoch, true},
		{journal.Undoing, epoch, epoch, true},
		{journal.Cancelled, epoch, epoch, false},
		{journal.Done, limit, limit, true},
		{journal.Done, epoch, epoch, true}, // the clock was set back: in time it goes, too
	} {
		op := newOperation(fmt.Sprintf("%02d", n))
		op.State, op.CreatedAt, op.UpdatedAt = row.state, row.created, row.updated
		op.Key, op.Resources = string(op.ID), []string{"r" + string(op.ID)}
		update(t, s, func(ctx context.Context, tx *store.Tx) error {
			_, _, err := s.InsertOperation(ctx, tx, op)
			return err
		})
		if row.stays {
			held = append(held, op.ID)
		}
	}
	removed, batches := 0, 0
	for after := journal.ID(""); batches == 0 || after != ""; batches++ {
		update(t, s, func(ctx context.Context, tx *store.Tx) error {
			n, next, err := tx.PruneOperations(ctx, limit, after, 2)
			removed, after = removed+n, next
			return err
		})
	}
	if removed != 3 || batches != 5 {
		t.Errorf("%d operations were removed in %d batches, want 3 in 5", removed, batches)
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		left, _, err := tx.Operations.List(ctx, store.Query{})
		ids := make([]journal.ID, len(left))
		for n, op := range left {
			ids[n] = op.ID
		}
		slices.Sort(ids)
		if diff := cmp.Diff(held, ids); diff != "" {
			t.Errorf("operations that stay (-want +got):\n%s", diff)
		}
		return err
	})
	again := newOperation("new")
	again.Key, again.Resources = "00", nil
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		got, found, err := s.InsertOperation(ctx, tx, again)
		if found {
			t.Errorf("the request id of a pruned operation still leads to %s", got.ID)
		}
		return err
	})
}

// testTrimmedEvents trims events by age and asks what is known of them then.
func testTrimmedEvents(t *testing.T, place Place) {
	s := fresh(t, place)
	bounds := func(gone, newest int64) {
		t.Helper()
		view(t, s, func(ctx context.Context, tx *store.Tx) error {
			g, n, err := tx.EventBounds(ctx)
			if g != gone || n != newest {
				t.Errorf("events up to %d of %d are gone, want %d of %d", g, n, gone, newest)
			}
			return err
		})
	}
	trim := func(before time.Time, want int) {
		t.Helper()
		update(t, s, func(ctx context.Context, tx *store.Tx) error {
			n, err := tx.TrimEvents(ctx, before, 2)
			if n != want {
				t.Errorf("%d events were trimmed, want %d", n, want)
			}
			return err
		})
	}
	bounds(0, 0)
	trim(epoch.Add(time.Hour), 0)
	update(t, s, func(ctx context.Context, tx *store.Tx) (err error) {
		for _, at := range []time.Duration{0, 1, 2, 9, 3} { // the clock was set back before the last
			err = errors.Join(err, tx.Emit(ctx, store.Event{Time: epoch.Add(at * time.Hour), Type: "x"}))
		}
		return err
	})
	bounds(0, 5)
	trim(epoch, 0)
	bounds(0, 5)
	for _, n := range []int{2, 1, 0} {
		trim(epoch.Add(5*time.Hour), n)
	}
	bounds(3, 5)
	for _, n := range []int{2, 0} {
		trim(epoch.Add(10*time.Hour), n)
	}
	bounds(5, 5)
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		left, err := tx.Events(ctx, 0, 0)
		if len(left) > 0 {
			t.Errorf("events %+v are left", left)
		}
		return err
	})
}
