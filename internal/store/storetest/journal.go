package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

func testOperationRows(t *testing.T, place Place) {
	s := fresh(t, place)
	op := newOperation("o")
	bare := journal.Operation{ID: "bare", Kind: "pool.scan", State: journal.Queued, CreatedAt: epoch, UpdatedAt: epoch}
	insert := func(op journal.Operation) (got journal.Operation, found bool, err error) {
		err = s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) (err error) {
			got, found, err = s.InsertOperation(ctx, tx, op)
			return err
		})
		return got, found, err
	}
	for _, row := range []journal.Operation{op, bare} {
		if got, found, err := insert(row); err != nil || found || !cmp.Equal(got, row) {
			t.Fatalf("insert %s: got found %v, %v\n%s", row.ID, found, err, cmp.Diff(row, got))
		}
		view(t, s, func(ctx context.Context, tx *store.Tx) error {
			got, err := s.Operation(ctx, tx, row.ID)
			if diff := cmp.Diff(row, got); diff != "" {
				t.Errorf("operation %s differs (-want +got):\n%s", row.ID, diff)
			}
			return err
		})
	}

	again := newOperation("other")
	again.Key, again.Request = op.Key, []byte(`{"size":1}`)
	if got, found, err := insert(again); err != nil || !found || got.ID != op.ID {
		t.Errorf("the same request again: got %s, found %v, %v, want %s", got.ID, found, err, op.ID)
	}
	again.Request = []byte(`{"size":2}`)
	_, _, err := insert(again)
	wantKind(t, "another request with the same key", err, errs.Conflict)
	again.Kind = "disk.delete"
	if _, found, err := insert(again); err != nil || found {
		t.Errorf("the same key for another kind: found %v, %v, want a new row", found, err)
	}
	_, _, err = insert(bare)
	wantKind(t, "the same id", err, errs.Exists)
	for n := range 2 { // without a key nothing is the same
		row := bare
		row.ID = journal.ID(id(n))
		if _, found, err := insert(row); err != nil || found {
			t.Errorf("row %d without a key: found %v, %v, want a new row", n, found, err)
		}
	}
	err = s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		_, err := s.Operation(ctx, tx, "none")
		return err
	})
	wantKind(t, "a missing operation", err, errs.NotFound)
}

func testResources(t *testing.T, place Place) {
	s := fresh(t, place)
	insert := func(id string, resources ...string) error {
		return s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			op := newOperation(id)
			op.Resources = resources
			_, _, err := s.InsertOperation(ctx, tx, op)
			return err
		})
	}
	if err := insert("first", "disk/1", "pool/1", "disk/1"); err != nil {
		t.Fatalf("insert with a resource named twice: %v", err)
	}
	err := insert("second", "disk/2", "pool/1")
	wantKind(t, "a held resource", err, errs.Busy)
	for _, word := range []string{"operation first", "pool/1", "web/first"} {
		if !strings.Contains(fmt.Sprint(err), word) {
			t.Errorf("message %q does not name %q", err, word)
		}
	}
	if err := insert("third", "disk/2"); err != nil {
		t.Errorf("the refused operation left a resource behind: %v", err)
	}
	for n, state := range []journal.State{journal.Undoing, journal.Done, journal.Failed, journal.Cancelled, journal.NeedsOperator} {
		name := fmt.Sprintf("%s-%d", state, n)
		res := "res/" + name
		if err := insert(name, res); err != nil {
			t.Fatalf("insert %s: %v", name, err)
		}
		update(t, s, func(ctx context.Context, tx *store.Tx) error {
			op, err := s.Operation(ctx, tx, journal.ID(name))
			op.State = state
			return errors.Join(err, s.UpdateOperation(ctx, tx, op))
		})
		err := insert(name+"-next", res)
		if state.Final() && err != nil {
			t.Errorf("after state %s the resource is not free: %v", state, err)
		}
		if !state.Final() {
			wantKind(t, "resource of an operation in state "+string(state), err, errs.Busy)
		}
		view(t, s, func(ctx context.Context, tx *store.Tx) error {
			op, err := s.Operation(ctx, tx, journal.ID(name))
			if diff := cmp.Diff([]string{res}, op.Resources); diff != "" {
				t.Errorf("resources in the row after state %s (-want +got):\n%s", state, diff)
			}
			return err
		})
	}
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		held, err := tx.HeldByEnded(ctx)
		if len(held) > 0 {
			t.Errorf("ended operations hold %q", held)
		}
		return errors.Join(err, tx.ReleaseEnded(ctx))
	})
	wantKind(t, "a running operation's resource after the ended ones' were released", insert("last", "disk/1"), errs.Busy)
}

func testFences(t *testing.T, place Place) {
	s := fresh(t, place)
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		states := []journal.State{journal.Queued, journal.Running, journal.Undoing, journal.Done, journal.Failed, journal.Cancelled, journal.NeedsOperator}
		for n, state := range states {
			op := newOperation(string(state))
			op.State, op.CreatedAt = state, epoch.Add(-time.Duration(n)*time.Second)
			foreign := newOperation("foreign " + string(state))
			foreign.State, foreign.Owner = state, "other"
			for _, op := range []journal.Operation{op, foreign} {
				if _, _, err := s.InsertOperation(ctx, tx, op); err != nil {
					return err
				}
			}
		}
		return nil
	})
	var taken []journal.Operation
	update(t, s, func(ctx context.Context, tx *store.Tx) (err error) {
		taken, err = s.TakeUnfinished(ctx, tx, "h", 5)
		return err
	})
	var ids []journal.ID
	for _, op := range taken {
		ids = append(ids, op.ID)
		if op.Fence != 5 {
			t.Errorf("operation %s was taken with fence %d, want 5", op.ID, op.Fence)
		}
	}
	if diff := cmp.Diff([]journal.ID{"undoing", "running", "queued"}, ids); diff != "" {
		t.Errorf("taken operations, oldest first (-want +got):\n%s", diff)
	}
	write := func(op journal.Operation) error {
		return s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return s.UpdateOperation(ctx, tx, op) })
	}
	op := taken[0]
	op.Attempts = 77
	if err := write(op); err != nil {
		t.Errorf("write with the fence: %v", err)
	}
	stale := op
	stale.Fence, stale.Attempts = 4, 78
	wantKind(t, "write with an old fence", write(stale), errs.Conflict)
	stale.Fence = 6
	wantKind(t, "write with a fence of the future", write(stale), errs.Conflict)
	missing := newOperation("missing")
	wantKind(t, "write of a missing row", write(missing), errs.Conflict)
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		got, err := s.Operation(ctx, tx, op.ID)
		if diff := cmp.Diff(op, got); diff != "" {
			t.Errorf("operation after refused writes (-want +got):\n%s", diff)
		}
		other, err2 := s.Operation(ctx, tx, "foreign running")
		if other.Fence != 4 {
			t.Errorf("another owner's operation: fence %d, want 4", other.Fence)
		}
		return errors.Join(err, err2)
	})
}

func testGenerations(t *testing.T, place Place) {
	open := place(t)
	s := open(t)
	next := func(name string) (n int64) {
		update(t, s, func(ctx context.Context, tx *store.Tx) (err error) {
			n, err = tx.NextGeneration(ctx, name)
			return err
		})
		return n
	}
	got := []int64{next("fence"), next("fence"), next("lease/x")}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = opened(t, open)
	got = append(got, next("fence"), next("lease/x"))
	for _, least := range []int64{10, 4} { // the second is behind already
		update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.RaiseGeneration(ctx, "fence", least) })
	}
	update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.RaiseGeneration(ctx, "new", 6) })
	got = append(got, next("fence"), next("new"))
	if diff := cmp.Diff([]int64{1, 2, 1, 3, 2, 11, 7}, got); diff != "" {
		t.Errorf("generations (-want +got):\n%s", diff)
	}
}

func testEvents(t *testing.T, place Place) {
	s := fresh(t, place)
	emit := func(fail error, names ...string) error {
		return s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			for _, name := range names {
				e := store.Event{Time: epoch, Type: "disk." + name, SubjectType: "disk", SubjectID: "k", SubjectName: name, OperationID: "o"}
				if err := tx.Emit(ctx, e); err != nil {
					return err
				}
			}
			return fail
		})
	}
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	followed := s.Notify()
	update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Insert(ctx, newHost("h")) })
	if err := emit(errs.Busy, "lost"); !errors.Is(err, errs.Busy) {
		t.Errorf("emit and fail: got %v, want busy", err)
	}
	if closed(followed) {
		t.Error("followers were woken by commits without events")
	}
	if err := errors.Join(emit(nil, "a", "b"), emit(nil, "c")); err != nil {
		t.Fatalf("emit: %v", err)
	}
	if !closed(followed) {
		t.Error("a commit with events did not wake followers")
	}
	if closed(s.Notify()) {
		t.Error("a new follower is woken by an old commit")
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		all, err := tx.Events(ctx, 0, 0)
		var names []string
		for n, e := range all {
			names = append(names, e.SubjectName)
			if n > 0 && e.ID <= all[n-1].ID {
				t.Errorf("event ids %d, %d do not rise", all[n-1].ID, e.ID)
			}
		}
		if diff := cmp.Diff([]string{"a", "b", "c"}, names); diff != "" {
			t.Fatalf("events (-want +got):\n%s", diff)
		}
		want := store.Event{ID: all[1].ID, Time: epoch, Type: "disk.b", SubjectType: "disk", SubjectID: "k", SubjectName: "b", OperationID: "o"}
		page, err2 := tx.Events(ctx, all[0].ID, 1)
		if diff := cmp.Diff([]store.Event{want}, page); diff != "" {
			t.Errorf("one event behind the first (-want +got):\n%s", diff)
		}
		of, err3 := tx.EventsOf(ctx, 0, "disk.b", "none")
		if diff := cmp.Diff([]store.Event{want}, of); diff != "" {
			t.Errorf("events of two types (-want +got):\n%s", diff)
		}
		of, err4 := tx.EventsOf(ctx, want.ID, "disk.a", "disk.b")
		if len(of) > 0 {
			t.Errorf("behind the last event of two types there are %+v", of)
		}
		return errors.Join(err, err2, err3, err4)
	})
}

func testEventPruning(t *testing.T, place Place) {
	if testing.Short() {
		t.Skip("writes 102,500 events; run without -short")
	}
	const emitted, kept, slack = 102_500, 100_000, 1_000
	s := fresh(t, place)
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		for range emitted {
			if err := tx.Emit(ctx, store.Event{Time: epoch, Type: "x"}); err != nil {
				return err
			}
		}
		return nil
	})
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		all, err := tx.Events(ctx, 0, 0)
		if n := len(all); n < kept || n >= kept+slack {
			t.Fatalf("%d events are kept of %d, want %d to %d", n, emitted, kept, kept+slack)
		}
		if last := all[len(all)-1].ID; last != emitted {
			t.Errorf("the last event is %d, want %d", last, emitted)
		}
		return err
	})
}
