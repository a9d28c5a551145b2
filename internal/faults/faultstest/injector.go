// Package faultstest injects faults into the effects that pass faults.Do:
// counting them, crashing before or after the n-th, failing the n-th, and
// driving an operation through all of these in turn. Only tests import it; it
// refuses to know what the effects are for.
package faultstest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/tarn-storage/tarn/internal/faults"
)

// Side says on which side of an effect a crash comes.
type Side string

// A crash comes before its effect is performed, or after it was and before
// anybody learns of that.
const (
	Before Side = "before"
	After  Side = "after"
)

// Counter records the effects that were begun, in order.
type Counter struct {
	mu      sync.Mutex
	effects []faults.Effect
}

// Before records e.
func (c *Counter) Before(e faults.Effect) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.effects = append(c.effects, e)
	return nil
}

// After changes nothing.
func (c *Counter) After(_ faults.Effect, err error) error { return err }

// Effects returns what was recorded.
func (c *Counter) Effects() []faults.Effect {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.effects)
}

// Crash is an injector that ends the process in simulation.
type Crash struct {
	n    int
	side Side

	mu      sync.Mutex
	begun   int
	ended   int
	crashed bool
	at      faults.Effect
}

// CrashAt returns an injector that crashes at the n-th effect, counted from 0:
// before it is performed, or after. From then on no effect is performed and
// each returns faults.ErrCrash; one that was under way elsewhere completes, but
// nobody learns of it.
func CrashAt(n int, side Side) *Crash { return &Crash{n: n, side: side} }

// Before refuses e once the crash has come.
func (c *Crash) Before(e faults.Effect) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.crashed && c.side == Before && c.begun == c.n {
		c.crashed, c.at = true, e
	}
	c.begun++
	if c.crashed {
		return faults.ErrCrash
	}
	return nil
}

// After hides the result of e once the crash has come.
func (c *Crash) After(e faults.Effect, err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.crashed && c.side == After && c.ended == c.n {
		c.crashed, c.at = true, e
	}
	c.ended++
	if c.crashed {
		return faults.ErrCrash
	}
	return err
}

// Crashed reports whether the crash has come.
func (c *Crash) Crashed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.crashed
}

// String names the crash and, when it has come, its effect.
func (c *Crash) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return point(c.side, c.n, c.at)
}

func point(side Side, n int, e faults.Effect) string {
	if e.Kind == "" {
		return fmt.Sprintf("%s effect %d, not reached", side, n)
	}
	return fmt.Sprintf("%s effect %d (%s %s)", side, n, e.Kind, e.Name)
}

// Fail is an injector that makes effects fail.
type Fail struct {
	n          int
	err        error
	persistent bool
	kinds      []faults.Kind

	mu      sync.Mutex
	matched int
	failed  []faults.Effect
	later   []faults.Effect
}

// FailAt returns an injector that makes the n-th effect of the given kinds (all
// when none is given), counted from 0, return err instead of being performed.
// A persistent one fails every such effect from the n-th on.
func FailAt(n int, err error, persistent bool, kinds ...faults.Kind) *Fail {
	return &Fail{n: n, err: err, persistent: persistent, kinds: kinds}
}

// FailSyncAt makes the n-th sync return err; Retried then tells whether it was
// tried again, which no fsync may be.
func FailSyncAt(n int, err error) *Fail { return FailAt(n, err, false, faults.Sync) }

// Before fails e when its turn has come.
func (f *Fail) Before(e faults.Effect) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.failed) > 0 {
		f.later = append(f.later, e)
	}
	if len(f.kinds) > 0 && !slices.Contains(f.kinds, e.Kind) {
		return nil
	}
	n := f.matched
	f.matched++
	if n == f.n || f.persistent && n > f.n {
		f.failed = append(f.failed, e)
		return f.err
	}
	return nil
}

// After changes nothing.
func (f *Fail) After(_ faults.Effect, err error) error { return err }

// Failed returns the effects that were made to fail.
func (f *Fail) Failed() []faults.Effect {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.failed)
}

// Retried reports whether the first failed effect was asked for again.
func (f *Fail) Retried() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.failed) > 0 && slices.Contains(f.later, f.failed[0])
}

// String names the failure and, when it has come, its effect.
func (f *Fail) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var e faults.Effect
	if len(f.failed) > 0 {
		e = f.failed[0]
	}
	return fmt.Sprintf("%v at %s", f.err, point("", f.n, e))
}
