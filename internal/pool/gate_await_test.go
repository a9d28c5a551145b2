package pool

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// TestGlanceWhereMeasuringTakesLong: whether the storage answers is known at once,
// its figures are those of the last measurement, and of measurements one at a time
// runs.
func TestGlanceWhereMeasuringTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate("here", small), &storage{}
		var measured atomic.Int64
		var broken atomic.Bool
		g.serve(s.stat, func(context.Context) (driver.Usage, error) {
			time.Sleep(5 * time.Second)
			if broken.Load() {
				return driver.Usage{}, errs.New(errs.Unavailable, "stat", "here", "broken")
			}
			return driver.Usage{Capacity: measured.Add(1)}, nil
		})
		look := func(want int64, kind error) {
			t.Helper()
			start := time.Now()
			u, err := g.glance(t.Context())
			if took := time.Since(start); took > small.patience {
				t.Errorf("a glance took %v, want %v at most", took, small.patience)
			}
			if kind == nil && (err != nil || u.Capacity != want) || !errors.Is(err, kind) {
				t.Errorf("a glance: %+v, %v; want measurement %d, %v", u, err, want, kind)
			}
		}
		look(0, errs.Unavailable) // never measured
		look(0, errs.Unavailable)
		time.Sleep(5 * time.Second)
		look(1, nil)
		time.Sleep(2 * small.age)
		for range 3 { // old: measured anew, once
			look(1, nil)
		}
		time.Sleep(5 * time.Second)
		look(2, nil)

		time.Sleep(2 * small.age)
		broken.Store(true)
		look(2, nil)
		time.Sleep(5 * time.Second)
		look(0, errs.Unavailable)
		broken.Store(false) // before that look's measurement ends
		time.Sleep(5 * time.Second)
		look(3, nil)

		s.stop()
		look(0, errs.Unavailable)
		time.Sleep(2 * small.age)
		look(0, errs.Unavailable)
		if n := measured.Load(); n != 3 {
			t.Errorf("silent storage was measured, %d times in all, want 3", n)
		}
		s.goOn()
		synctest.Wait()
		look(3, nil)
		time.Sleep(5 * time.Second)
		look(4, nil)
	})
}

// TestAwait waits for what an error tells of: that the storage answers and what
// was left in it is done.
func TestAwait(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		s.stop()
		err := g.act(t.Context(), "test", s.call)
		if !Silent(err) {
			t.Fatalf("a call that hangs: %v, want one that is silent", err)
		}
		start := time.Now()
		short, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if !Await(short, err) || time.Since(start) != time.Hour {
			t.Errorf("Await ended after %v, want that of its context", time.Since(start))
		}
		time.AfterFunc(time.Hour, s.goOn)
		if !Await(t.Context(), err) || time.Since(start) != 2*time.Hour {
			t.Errorf("Await ended after %v, want when the storage went on", time.Since(start))
		}
		if Await(t.Context(), errs.New(errs.Unavailable, "test", "", "no")) {
			t.Error("what answers was taken for silent")
		}
		if err := g.act(t.Context(), "test", s.call); err != nil {
			t.Errorf("when the storage goes on: %v", err)
		}
	})
}
