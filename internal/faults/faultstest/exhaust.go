package faultstest

import (
	"fmt"
	"os"
	"testing"

	"github.com/tarn-storage/tarn/internal/faults"
)

// Options configures the exhaustive loops.
type Options struct {
	// MinEffects is how many effects the operation must have at least: a test
	// that stops seeing effects must not go on passing.
	MinEffects int
	// RecoveryPoints bounds, outside the slow suite, at how many points each
	// recovery is crashed (4); they are spread over it and move with n. With
	// TARN_SLOW=1 it is crashed at every one.
	RecoveryPoints int
	// Every has Exhaust crash at every so manyth effect only, before or after it
	// in turn, where each history takes long (1). It is odd.
	Every int
	// First is the first effect that Exhaust crashes at (0).
	First int
	// Kinds limits Errors to effects of these kinds (all).
	Kinds []faults.Kind
}

// Exhaust crashes run before and after each of its effects n = 0, 1, 2, ...
// until it completes without reaching n, and at each n crashes the recovery in
// the same way at m = 0, 1, 2, ... After every one of these histories a recovery
// without a crash must succeed, check must be content, and one more recovery
// must have no effect at all and leave check content. With -short it crashes at
// a sample of the points, as Errors fails at a sample of the effects.
//
// setup builds a fresh world. run performs the operation in a new process, so
// to speak: it opens what it needs, works, and returns when nothing of it runs
// any more, after a crash too. Its error is of no interest after a crash, else
// it must be nil. recover starts such a process that recovers, lets it settle
// and ends it. Reading is no effect, nor is closing.
func Exhaust[W any](t *testing.T, o Options, setup func(t *testing.T) W, run, recover func(w W) error, check func(t *testing.T, w W)) {
	t.Helper()
	if o.RecoveryPoints == 0 {
		o.RecoveryPoints = 4
	}
	sides := func(int) []Side { return []Side{Before, After} }
	if testing.Short() {
		o.RecoveryPoints = 1
	}
	if testing.Short() || o.Every > 1 {
		sides = func(n int) []Side { return []Side{[]Side{Before, After}[n%2]} }
	}
	x := exhaust[W]{o, setup, run, recover, check}
	histories := 0
	for n := o.First; ; n += max(o.Every, stride()) {
		done := true
		for _, side := range sides(n) {
			completed := false
			t.Run(fmt.Sprintf("n=%d,%s", n, side), func(t *testing.T) {
				var h int
				h, completed = x.at(t, n, side)
				histories += h
			})
			done = done && completed
			if t.Failed() {
				t.Fatalf("stopped at the first crash point that fails: %s effect %d", side, n)
			}
		}
		if done {
			t.Logf("%d effects, %d histories", n, histories)
			if n < o.MinEffects {
				t.Errorf("the operation has %d effects, want at least %d", n, o.MinEffects)
			}
			return
		}
	}
}

// stride is how far one n is from the next. It is odd, so that sides alternate.
func stride() int {
	if testing.Short() {
		return 31
	}
	return 1
}

type exhaust[W any] struct {
	o       Options
	setup   func(t *testing.T) W
	run     func(w W) error
	recover func(w W) error
	check   func(t *testing.T, w W)
}

// at plays all histories that crash at n, and reports how many there were and
// whether run completed instead.
func (x *exhaust[W]) at(t *testing.T, n int, side Side) (histories int, completed bool) {
	w, c := x.crashed(t, n, side)
	if !c.Crashed() {
		x.check(t, w)
		x.settled(t, w, "the operation, which completed")
		return 1, true
	}
	total := x.recoverCounted(t, w, c)
	histories = 1
	for m, msides := range points(total, n, x.o.RecoveryPoints) {
		for _, mside := range msides {
			w, c := x.crashed(t, n, side)
			mc := CrashAt(m, mside)
			err := inject(mc, func() error { return x.recover(w) })
			where := fmt.Sprintf("crash %s, in recovery crash %s", c, mc)
			if !mc.Crashed() && err != nil {
				t.Fatalf("%s: recovery failed: %v", where, err)
			}
			if err := x.recover(w); err != nil {
				t.Fatalf("%s: recovery failed: %v", where, err)
			}
			x.finish(t, w, where)
			histories++
		}
	}
	return histories, false
}

// crashed returns a world in which run has crashed at n.
func (x *exhaust[W]) crashed(t *testing.T, n int, side Side) (W, *Crash) {
	t.Helper()
	w := x.setup(t)
	c := CrashAt(n, side)
	err := inject(c, func() error { return x.run(w) })
	if !c.Crashed() && err != nil {
		t.Fatalf("crash %s: the operation failed: %v", c, err)
	}
	return w, c
}

// recoverCounted recovers w and returns how many effects that took.
func (x *exhaust[W]) recoverCounted(t *testing.T, w W, c *Crash) int {
	t.Helper()
	var count Counter
	where := fmt.Sprintf("crash %s", c)
	if err := inject(&count, func() error { return x.recover(w) }); err != nil {
		t.Fatalf("%s: recovery failed: %v", where, err)
	}
	x.finish(t, w, where)
	return len(count.Effects())
}

// finish checks a recovered world, and that recovering it again does nothing.
func (x *exhaust[W]) finish(t *testing.T, w W, where string) {
	t.Helper()
	x.check(t, w)
	if t.Failed() {
		t.Fatalf("%s: the check failed", where)
	}
	x.settled(t, w, where)
}

func (x *exhaust[W]) settled(t *testing.T, w W, where string) {
	t.Helper()
	var count Counter
	if err := inject(&count, func() error { return x.recover(w) }); err != nil {
		t.Fatalf("%s: the second recovery failed: %v", where, err)
	}
	if e := count.Effects(); len(e) != 0 {
		t.Fatalf("%s: the second recovery had %d effects, want none: %v", where, len(e), e)
	}
	x.check(t, w)
	if t.Failed() {
		t.Fatalf("%s: the check failed after the second recovery", where)
	}
}

// points returns at which effects a recovery of total effects is crashed, and
// on which sides. The one past the last shows that it then completes.
func points(total, n, most int) map[int][]Side {
	at := map[int][]Side{}
	if os.Getenv("TARN_SLOW") == "1" {
		for m := range total {
			at[m] = []Side{Before, After}
		}
		return at
	}
	stride := max(1, (total+most-1)/most)
	for m := n % stride; m < total; m += stride {
		at[m] = []Side{[]Side{Before, After}[(n+m)%2]}
	}
	return at
}

func inject(i faults.Injector, f func() error) error {
	defer faults.Install(i)()
	return f()
}

// Errors makes each effect n = 0, 1, 2, ... of run return err instead of being
// performed, and with persistent also all effects after it, until run completes
// without reaching n. check sees the world, the error that run returned, and
// what was made to fail; it runs without faults.
func Errors[W any](t *testing.T, o Options, err error, persistent bool, setup func(t *testing.T) W, run func(w W) error, check func(t *testing.T, w W, got error, f *Fail)) {
	t.Helper()
	for n := 0; ; n += stride() {
		f := FailAt(n, err, persistent, o.Kinds...)
		t.Run(fmt.Sprintf("n=%d", n), func(t *testing.T) {
			w := setup(t)
			got := inject(f, func() error { return run(w) })
			if len(f.Failed()) == 0 && got != nil {
				t.Errorf("the operation failed by itself: %v", got)
			}
			check(t, w, got, f)
			if t.Failed() {
				t.Logf("with %s", f)
			}
		})
		if t.Failed() {
			t.Fatal("stopped at the first failure that is borne badly")
		}
		if len(f.Failed()) == 0 {
			t.Logf("%d effects made to fail", n)
			if n < o.MinEffects {
				t.Errorf("the operation has %d effects to fail, want at least %d", n, o.MinEffects)
			}
			return
		}
	}
}
