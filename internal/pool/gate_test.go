package pool

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// storage stands for what calls go into: while it is stopped they do not return.
type storage struct {
	mu      sync.Mutex
	stopped chan struct{}
	inside  atomic.Int32 // calls that are in it
	served  atomic.Int32 // calls that came back
}

func (s *storage) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopped = make(chan struct{})
}

func (s *storage) goOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.stopped)
	s.stopped = nil
}

func (s *storage) call() error {
	s.inside.Add(1)
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped != nil {
		<-stopped
	}
	s.inside.Add(-1)
	s.served.Add(1)
	return nil
}

// stat is what the gate asks, which is no call.
func (s *storage) stat(context.Context) (driver.Usage, error) {
	defer s.served.Add(-1)
	return driver.Usage{Capacity: 1}, s.call()
}

var small = bounds{workers: 3, deadline: 10 * time.Second, opening: 30 * time.Second, silence: time.Second, patience: time.Second, age: time.Minute}

func gated(t *testing.T, test func(t *testing.T, g *gate, s *storage)) {
	synctest.Test(t, func(t *testing.T) {
		g, s := newGate("here", small), &storage{}
		g.serve(s.stat, nil)
		test(t, g, s)
	})
}

// TestHangingCallsAreBounded has many calls meet storage that hangs: all return
// in time, and no more workers than the gate has are in it, but for one that asks.
func TestHangingCallsAreBounded(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		s.stop()
		start := time.Now()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				if err := g.act(t.Context(), "test", s.call); !errors.Is(err, errs.Unavailable) {
					t.Errorf("a call that hangs: %v, want unavailable", err)
				}
			})
		}
		all.Wait()
		if took := time.Since(start); took > 2*(small.deadline+small.patience) {
			t.Errorf("the last caller was kept for %v", took)
		}
		if n := s.inside.Load(); n != int32(small.workers)+1 {
			t.Errorf("%d workers hang, want %d and the one that asks", n, small.workers)
		}
		s.goOn()
		synctest.Wait()
		if err := g.act(t.Context(), "test", s.call); err != nil {
			t.Errorf("when the storage goes on: %v", err)
		}
		if n := s.served.Load(); n != int32(small.workers)+1 {
			t.Errorf("%d calls came through, want those of %d workers and the new one", n, small.workers)
		}
	})
}

// TestLateCallsComeFirst leaves a call and makes the next one: what the first
// still does, and what undoes its result, is done before.
func TestLateCallsComeFirst(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		var order []string
		s.stop()
		_, err := through(t.Context(), g, "open", g.deadline, func() (int, error) {
			err := s.call()
			order = append(order, "late")
			return 1, err
		}, func(n int, err error) {
			if n != 1 || err != nil {
				t.Errorf("late got %d, %v", n, err)
			}
			order = append(order, "closed")
		})
		if !errors.Is(err, errs.Unavailable) {
			t.Fatalf("a call that hangs: %v", err)
		}
		next := make(chan error)
		go func() {
			next <- g.act(t.Context(), "next", func() error { order = append(order, "next"); return nil })
		}()
		time.Sleep(small.deadline / 2)
		s.goOn()
		if err := <-next; err != nil {
			t.Errorf("the next call: %v", err)
		}
		if want := []string{"late", "closed", "next"}; !slices.Equal(order, want) {
			t.Errorf("the order was %v, want %v", order, want)
		}
	})
}

// TestSlowIsNotHanging keeps a call for an hour while the storage answers.
func TestSlowIsNotHanging(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		if err := g.act(t.Context(), "slow", func() error { time.Sleep(time.Hour); return nil }); err != nil {
			t.Errorf("a slow call: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		done := false
		if err := g.act(ctx, "slow", func() error { time.Sleep(time.Minute); done = true; return nil }); err != nil || !done {
			t.Errorf("a slow call that was cancelled in the middle: %v, done %v; want it completed", err, done)
		}
		var all sync.WaitGroup
		for range 2 * small.workers {
			all.Go(func() {
				if err := g.act(t.Context(), "slow", func() error { time.Sleep(time.Hour); return nil }); err != nil {
					t.Errorf("a slow call that waits for a worker: %v", err)
				}
			})
		}
		all.Wait()
	})
}

// TestCancelledCallsOfSilentStorage ends calls that hang, or wait for a worker,
// as soon as they are told to stop.
func TestCancelledCallsOfSilentStorage(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		s.stop()
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		for range 2 * small.workers {
			all.Go(func() {
				err := g.act(ctx, "test", s.call)
				if !errors.Is(err, errs.Unavailable) && !errors.Is(err, errs.Cancelled) {
					t.Errorf("a cancelled call that hangs: %v", err)
				}
			})
		}
		synctest.Wait()
		cancel()
		start := time.Now()
		all.Wait()
		if took := time.Since(start); took > small.patience {
			t.Errorf("they were kept for %v", took)
		}
		s.goOn()
	})
}

func TestGlance(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		look := func(within time.Duration, want error) {
			t.Helper()
			start := time.Now()
			u, err := g.glance(t.Context())
			if took := time.Since(start); took > within {
				t.Errorf("a glance took %v, want %v at most", took, within)
			}
			if want == nil && (err != nil || u.Capacity != 1) || !errors.Is(err, want) {
				t.Errorf("a glance: %+v, %v; want %v", u, err, want)
			}
		}
		look(0, nil)
		s.stop()
		look(small.patience, errs.Unavailable)
		look(0, errs.Unavailable) // it is known by now
		if n := s.inside.Load(); n != 1 {
			t.Errorf("%d workers ask, want 1", n)
		}
		s.goOn()
		synctest.Wait()
		look(0, nil)
	})
}

// TestSequenceHoldsNoWorker calls from the body of every loop of more than the
// gate has workers.
func TestSequenceHoldsNoWorker(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		const n = 3*portion + 1
		numbers := func(yield func(int, error) bool) {
			for i := range n {
				if !yield(i, nil) {
					return
				}
			}
		}
		var all sync.WaitGroup
		for range 2 * small.workers {
			all.Go(func() {
				got := 0
				for i, err := range each(t.Context(), g, "list", numbers) {
					if err != nil || i != got {
						t.Errorf("item %d is %d, %v", got, i, err)
					}
					got++
					if err := g.act(t.Context(), "test", s.call); err != nil {
						t.Error(err)
					}
				}
				if got != n {
					t.Errorf("%d items, want %d", got, n)
				}
			})
		}
		all.Wait()
	})
}

// TestSequenceThatHangs is ended once, when the storage lets it.
func TestSequenceThatHangs(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		ended := 0
		seq := func(yield func(int, error) bool) {
			defer func() { ended++ }()
			for i := 0; yield(i, nil); i++ {
				if i == portion {
					_ = s.call()
				}
			}
		}
		s.stop()
		got := 0
		var last error
		for _, err := range each(t.Context(), g, "list", seq) {
			if last = err; err == nil {
				got++
			}
		}
		if !errors.Is(last, errs.Unavailable) || got != portion || ended != 0 {
			t.Errorf("%d items, then %v; ended %d times", got, last, ended)
		}
		s.goOn()
		synctest.Wait()
		if ended != 1 {
			t.Errorf("the sequence ended %d times", ended)
		}
	})
}

// stopping is what a technology does to stop a pool.
type stopping func(ctx context.Context) error

func (s stopping) Stop(ctx context.Context) error { return s(ctx) }

// TestStopGivenUp stops a pool whose storage hangs: when it goes on, the call that
// was left finds that nobody waits for it.
func TestStopGivenUp(t *testing.T) {
	gated(t, func(t *testing.T, g *gate, s *storage) {
		s.stop()
		late := make(chan error, 1)
		p := &stoppable{&bounded{g: g}, stopping(func(ctx context.Context) error {
			_ = s.call()
			late <- ctx.Err()
			return ctx.Err()
		})}
		if err := p.Stop(t.Context()); !errors.Is(err, errLeft) {
			t.Errorf("stopping a pool that hangs: %v, want it left", err)
		}
		s.goOn()
		if err := <-late; err == nil {
			t.Error("a stop goes on for nobody")
		}
	})
}

// TestSilenceOfATechnology asks storage that hangs for its marker: how long it may
// stay silent is the technology's to say.
func TestSilenceOfATechnology(t *testing.T) {
	for _, silence := range []time.Duration{0, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			stopped := make(chan struct{})
			bound := Bound(driver.Type{Hangs: true, Silence: silence, Marker: func(context.Context, driver.Config) ([]byte, error) {
				<-stopped
				return nil, nil
			}})
			start := time.Now()
			_, err := bound.Marker(t.Context(), driver.Config{Path: "/there"})
			want := defaultBounds.opening + max(silence, defaultBounds.silence)
			if took := time.Since(start); !Silent(err) || took != want {
				t.Errorf("given up after %v with %v, want silence after %v", took, err, want)
			}
			close(stopped)
			synctest.Wait()
		})
	}
}
