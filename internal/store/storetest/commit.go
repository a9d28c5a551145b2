package storetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/store"
)

// fate injects into the commits of transactions and counts them.
type fate struct {
	before, after error
	commits       atomic.Int64
}

func (f *fate) Before(e faults.Effect) error {
	if e.Kind != faults.Tx {
		return nil
	}
	f.commits.Add(1)
	return f.before
}

func (f *fate) After(e faults.Effect, err error) error {
	if e.Kind == faults.Tx && f.after != nil {
		return f.after
	}
	return err
}

// together calls Update with every function at the same time while the writer
// is held up, so that they wait for it together.
func together(t *testing.T, s *store.Store, fns []func(context.Context, *store.Tx) error) []error {
	t.Helper()
	held, release := make(chan struct{}), make(chan struct{})
	var all, about sync.WaitGroup
	var once sync.Once // an update may run more than once
	all.Go(func() {
		err := s.Update(t.Context(), func(context.Context, *store.Tx) error {
			once.Do(func() { close(held) })
			<-release
			return nil
		})
		if err != nil {
			t.Errorf("the first update: %v", err)
		}
	})
	<-held
	result := make([]error, len(fns))
	for n, fn := range fns {
		about.Add(1)
		all.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					result[n] = fmt.Errorf("panic: %v", p)
				}
			}()
			about.Done()
			result[n] = s.Update(t.Context(), fn)
		})
	}
	about.Wait()
	close(release)
	all.Wait()
	return result
}

func testGroupCommit(t *testing.T, place Place) {
	const writers, each = 64, 20
	open := place(t)
	s := open(t)
	var seen fate
	remove := faults.Install(&seen)
	defer remove()
	fns := make([]func(context.Context, *store.Tx) error, writers)
	for n := range fns {
		fns[n] = func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Insert(ctx, newHost(id(n))) }
	}
	for n, err := range together(t, s, fns) {
		if err != nil {
			t.Errorf("writer %d: %v", n, err)
		}
	}
	if n := seen.commits.Load(); n > writers/2 {
		t.Errorf("%d updates that waited together took %d commits, want at most %d", writers+1, n, writers/2)
	}
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range each {
				err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					_, err := tx.NextGeneration(ctx, "count")
					return errors.Join(err, tx.Hosts.Insert(ctx, newHost(fmt.Sprintf("%d/%d", w, n))))
				})
				if err != nil {
					t.Errorf("writer %d, update %d: %v", w, n, err)
				}
			}
		})
	}
	all.Wait()
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = opened(t, open)
	if got, want := countHosts(t, s), writers*(each+1); got != want {
		t.Errorf("rows after reopening: got %d, want %d", got, want)
	}
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		n, err := tx.NextGeneration(ctx, "count")
		if n != writers*each+1 {
			t.Errorf("the counter's next value: got %d, want %d: an update was lost", n, writers*each+1)
		}
		return err
	})
}

func testBatchIsolation(t *testing.T, place Place) {
	s := fresh(t, place)
	sentinel := errors.New("stop")
	var fns []func(context.Context, *store.Tx) error
	for n := range 60 {
		fns = append(fns, func(ctx context.Context, tx *store.Tx) error {
			if err := tx.Hosts.Insert(ctx, newHost(id(n))); err != nil {
				return err
			}
			switch n % 4 {
			case 1:
				return sentinel
			case 2:
				panic("in the middle")
			case 3:
				return tx.Hosts.Insert(ctx, newHost(id(n))) // its own id again
			}
			return nil
		})
	}
	for n, err := range together(t, s, fns) {
		switch {
		case n%4 == 0 && err != nil:
			t.Errorf("update %d: %v, want success", n, err)
		case n%4 == 1 && !errors.Is(err, sentinel):
			t.Errorf("update %d: %v, want its own error", n, err)
		case n%4 == 2 && !strings.Contains(fmt.Sprint(err), "in the middle"):
			t.Errorf("update %d: %v, want its own panic", n, err)
		case n%4 == 3 && !errors.Is(err, errs.Exists):
			t.Errorf("update %d: %v, want exists", n, err)
		}
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		items, _, err := tx.Hosts.List(ctx, store.Query{})
		for n, h := range items {
			if string(h.ID) != id(4*n) {
				t.Errorf("row %d is %s, want %s", n, h.ID, id(4*n))
			}
		}
		if len(items) != 15 {
			t.Errorf("got %d rows, want those of the 15 updates that succeeded", len(items))
		}
		return err
	})
}

func testTransactionRules(t *testing.T, place Place) {
	s := seeded(t, place)
	var kept *store.Tx
	keep := func(ctx context.Context, tx *store.Tx) error {
		kept = tx
		return nil
	}
	for _, row := range []struct {
		name string
		do   func(context.Context, func(context.Context, *store.Tx) error) error
	}{{"Update", s.Update}, {"View", s.View}} {
		if err := row.do(t.Context(), keep); err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		_, err := kept.Hosts.Get(t.Context(), "h")
		wantKind(t, "read after "+row.name, err, errs.Internal)
		wantKind(t, "write after "+row.name, kept.Hosts.Insert(t.Context(), newHost("x")), errs.Internal)
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		_, err := tx.NextGeneration(ctx, "x")
		wantKind(t, "counter in a View", err, errs.Internal)
		wantKind(t, "event in a View", tx.Emit(ctx, store.Event{Type: "x"}), errs.Internal)
		wantKind(t, "insert in a View", tx.Hosts.Insert(ctx, newHost("x")), errs.Internal)
		return nil
	})
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		wantKind(t, "Update in an Update", s.Update(ctx, keep), errs.Internal)
		return nil
	})
	if got := countHosts(t, s); got != 1 {
		t.Errorf("hosts: got %d, want 1", got)
	}
	if got := s.SchemaVersion(); got != 6 {
		t.Errorf("schema version: got %d, want 6", got)
	}
}

func testCancellation(t *testing.T, place Place) {
	s := fresh(t, place)
	gone, cancel := context.WithCancel(t.Context())
	ran := false
	held, release, first := make(chan struct{}), make(chan struct{}), make(chan error)
	go func() {
		first <- s.Update(t.Context(), func(context.Context, *store.Tx) error {
			close(held)
			<-release
			return nil
		})
	}()
	<-held
	second := make(chan error)
	go func() {
		second <- s.Update(gone, func(context.Context, *store.Tx) error {
			ran = true
			return nil
		})
	}()
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled while waiting: got %v, want context.Canceled", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Errorf("the update before: %v", err)
	}
	update(t, s, func(context.Context, *store.Tx) error { return nil })
	if ran {
		t.Error("the cancelled update ran")
	}

	going, cancel := context.WithCancel(t.Context())
	err := s.Update(going, func(ctx context.Context, tx *store.Tx) error {
		err := tx.Hosts.Insert(ctx, newHost("a"))
		cancel()
		return errors.Join(err, ctx.Err(), tx.Hosts.Insert(going, newHost("b")))
	})
	if err != nil {
		t.Errorf("cancelled after the start: got %v, want it completed", err)
	}
	if got := countHosts(t, s); got != 2 {
		t.Errorf("hosts: got %d, want both of the update cancelled half-way", got)
	}
	if err := s.View(going, func(context.Context, *store.Tx) error { return nil }); errs.KindOf(err) != errs.Cancelled {
		t.Errorf("view with a cancelled context: got %v, want cancelled", err)
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		if _, err := tx.Hosts.Get(going, "a"); errs.KindOf(err) != errs.Cancelled {
			t.Errorf("read with a cancelled context: got %v, want cancelled", err)
		}
		return nil
	})
}

func testPanic(t *testing.T, place Place) {
	s := fresh(t, place)
	inPanic := func(do func(context.Context, func(context.Context, *store.Tx) error) error) (p any) {
		defer func() { p = recover() }()
		err := do(t.Context(), func(context.Context, *store.Tx) error { panic("boom") })
		return err
	}
	for name, do := range map[string]func(context.Context, func(context.Context, *store.Tx) error) error{"Update": s.Update, "View": s.View} {
		if p := inPanic(do); !strings.Contains(fmt.Sprint(p), "boom") {
			t.Errorf("panic in %s: the caller got %v, want the panic", name, p)
		}
	}
	err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Hosts.Insert(ctx, newHost("x")); err != nil {
			return err
		}
		runtime.Goexit()
		return nil
	})
	wantKind(t, "an update whose goroutine exits", err, errs.Internal)
	update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Insert(ctx, newHost("y")) })
	if got := countHosts(t, s); got != 1 {
		t.Errorf("hosts: got %d, want only the one written afterwards", got)
	}
}

// An error that fn keeps to itself must never turn its success into a lie.
func testSwallowed(t *testing.T, place Place) {
	s := fresh(t, place)
	err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		if err := tx.Hosts.Insert(ctx, newHost("x")); err != nil {
			return err
		}
		wantKind(t, "an event without a type", tx.Emit(ctx, store.Event{}), errs.Internal)
		return nil
	})
	want := 0
	if err == nil {
		want = 1
	}
	if got := countHosts(t, s); got != want {
		t.Errorf("hosts after Update returned %v: got %d, want %d", err, got, want)
	}
}

func testSnapshot(t *testing.T, place Place) {
	s := fresh(t, place)
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		before, err := tx.Hosts.Count(ctx)
		update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Insert(ctx, newHost("x")) })
		after, err2 := tx.Hosts.Count(ctx)
		if before != 0 || after != 0 {
			t.Errorf("one view saw %d hosts, then %d, want 0 both times", before, after)
		}
		return errors.Join(err, err2)
	})
	if got := countHosts(t, s); got != 1 {
		t.Errorf("the next view sees %d hosts, want 1", got)
	}
}

// insertUnder inserts a host while f decides over commits.
func insertUnder(t *testing.T, s *store.Store, f *fate, name string) error {
	defer faults.Install(f)()
	return s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.Hosts.Insert(ctx, newHost(name)), tx.Emit(ctx, store.Event{Type: "x"}))
	})
}

func testCrash(t *testing.T, place Place) {
	open := place(t)
	s := open(t)
	for name, f := range map[string]*fate{"before": {before: faults.ErrCrash}, "after": {after: faults.ErrCrash}} {
		if err := insertUnder(t, s, f, name); !errors.Is(err, faults.ErrCrash) {
			t.Errorf("crash %s the commit: got %v, want the crash", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = opened(t, open)
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		items, _, err := tx.Hosts.List(ctx, store.Query{})
		if len(items) != 1 || items[0].ID != "after" {
			t.Errorf("hosts after the crashes: got %v, want only the one whose commit was performed", items)
		}
		return err
	})
}

func testIOError(t *testing.T, place Place) {
	open := place(t)
	s := open(t)
	failed := &fate{before: syscall.EIO}
	wantKind(t, "commit with EIO", insertUnder(t, s, failed, "x"), errs.Unavailable)
	if n := failed.commits.Load(); n != 1 {
		t.Errorf("the failed commit was tried %d times, want once", n)
	}
	wantKind(t, "commit afterwards", insertUnder(t, s, &fate{}, "y"), errs.Unavailable)
	if got := countHosts(t, s); got != 0 {
		t.Errorf("hosts: got %d, want none, and reading to work", got)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = opened(t, open)
	if err := insertUnder(t, s, &fate{}, "z"); err != nil {
		t.Errorf("write after reopening: %v", err)
	}
}

func testFull(t *testing.T, place Place) {
	s := fresh(t, place)
	wantKind(t, "commit with ENOSPC", insertUnder(t, s, &fate{before: syscall.ENOSPC}, "x"), errs.NoSpace)
	if err := insertUnder(t, s, &fate{}, "y"); err != nil {
		t.Errorf("write when there is room again: %v", err)
	}
	if got := countHosts(t, s); got != 1 {
		t.Errorf("hosts: got %d, want 1", got)
	}
}

func testClose(t *testing.T, place Place) {
	s := place(t)(t)
	var all sync.WaitGroup
	for n := range 32 {
		all.Go(func() {
			err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Insert(ctx, newHost(id(n))) })
			if err != nil && !errors.Is(err, errs.Unavailable) {
				t.Errorf("update beside Close: got %v, want success or unavailable", err)
			}
		})
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	all.Wait()
	nothing := func(context.Context, *store.Tx) error { return nil }
	wantKind(t, "Update of a closed store", s.Update(t.Context(), nothing), errs.Unavailable)
	wantKind(t, "View of a closed store", s.View(t.Context(), nothing), errs.Unavailable)
}
