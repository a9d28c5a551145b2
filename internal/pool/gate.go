package pool

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// bounds are what one storage that may hang can cost.
type bounds struct {
	workers int // calls that are in it at once

	// deadline is for how long a call is waited for before the storage is asked
	// whether it answers at all, and opening for how long one is that makes the
	// storage ready to be asked. A slow call is waited for as long as it takes.
	deadline, opening time.Duration

	// silence is how long the storage may leave that question open before the
	// call is given up: long enough for one that is busy.
	silence time.Duration

	// patience is for how long everything is waited for by who only looks or was
	// told to stop.
	patience time.Duration

	// age is how old a measurement may get that takes longer than patience.
	age time.Duration
}

var defaultBounds = bounds{workers: 16, deadline: 10 * time.Second, opening: 30 * time.Second, silence: 2 * time.Second,
	patience: 400 * time.Millisecond, age: 30 * time.Second}

// gate lets calls into storage that may hang. Each runs on a worker; one that
// hangs is given up by its caller with errs.Unavailable, while the worker stays
// where it is and counts. As long as one is left like that no other call begins:
// so workers do not become more, and what a late call still does to the world it
// has done before a new one looks.
type gate struct {
	bounds
	where string
	slots chan struct{}

	mu    sync.Mutex
	left  int           // workers whose callers have gone
	calm  chan struct{} // closed when left becomes 0
	asked *question

	// Of the pool that is open, nil without: what tells whether it answers, and
	// what measures it where that is something else.
	alive, stat measuring

	weighed *question // by stat, now
	last    driver.Usage
	lastErr error
	at      time.Time // of these two
}

// measuring is what Stat does.
type measuring func(context.Context) (driver.Usage, error)

func newGate(where string, b bounds) *gate {
	return &gate{bounds: b, where: where, slots: make(chan struct{}, b.workers)}
}

// question is one call of what tells how the storage is. Everybody who wants to
// know meanwhile shares it, so that asking takes one worker more at most.
type question struct {
	began time.Time
	done  chan struct{}
	usage driver.Usage
	err   error
}

// ErrSilent is the cause of errors that say that a pool's storage does not answer,
// rather than how. errLeft is that of a call that goes on without its caller.
var (
	ErrSilent = errors.New("the storage is silent")
	errLeft   = fmt.Errorf("%w, the call goes on", ErrSilent)
)

// Silent reports whether err has ErrSilent as its cause.
func Silent(err error) bool { return errors.Is(err, ErrSilent) }

// hush is a silence and where it is.
type hush struct {
	error
	g *gate
}

func (h *hush) Unwrap() error { return h.error }

// Await reports whether err is Silent. It returns when the storage that err tells
// of answers and has done all that it was left with, or when ctx ends; at once
// where that storage is not open.
func Await(ctx context.Context, err error) bool {
	var h *hush
	if errors.As(err, &h) {
		h.g.await(ctx)
	}
	return Silent(err)
}

func (g *gate) silent(op string, cause error) error {
	e := errs.New(errs.Unavailable, op, g.where, "the pool's storage does not answer").
		WithHint("see to its server and the network between; the pool goes on by itself when it answers")
	e.Err = &hush{cause, g}
	return e
}

// await waits until the storage answers and no worker is left.
func (g *gate) await(ctx context.Context) {
	for {
		if q := g.ask(ctx); q != nil {
			select {
			case <-q.done:
			case <-ctx.Done():
				return
			}
		}
		g.mu.Lock()
		calm := g.calm
		g.mu.Unlock()
		if calm == nil {
			return
		}
		select {
		case <-calm:
		case <-ctx.Done():
			return
		}
	}
}

// ask returns the question that is open, after asking it if there is none; nil
// where no pool is open that could be asked.
func (g *gate) ask(ctx context.Context) *question {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked == nil && g.alive != nil {
		g.asked = g.put(ctx, g.alive, func() { g.asked = nil })
	}
	return g.asked
}

// put asks f; over is called under the lock when it has answered. The caller holds
// the lock.
func (g *gate) put(ctx context.Context, f measuring, over func()) *question {
	q := &question{began: time.Now(), done: make(chan struct{})}
	go func() {
		q.usage, q.err = f(context.WithoutCancel(ctx)) // it is others' too
		g.mu.Lock()
		over()
		g.mu.Unlock()
		close(q.done)
	}()
	return q
}

// answers reports whether the storage answers within limit, or done is closed
// meanwhile.
func (g *gate) answers(ctx context.Context, limit time.Duration, done <-chan struct{}) bool {
	var answered <-chan struct{}
	if q := g.ask(ctx); q != nil {
		answered = q.done
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-answered:
	case <-done:
	case <-timer.C:
		return false
	}
	return true
}

// glance is Stat for who only looks: it is errs.Unavailable at once while the
// storage is known not to answer, else when patience is over. Where measuring
// takes longer than that it says what was measured last.
func (g *gate) glance(ctx context.Context) (driver.Usage, error) {
	const op = "pool.stat"
	q := g.ask(ctx)
	if q == nil {
		return driver.Usage{}, g.silent(op, ErrSilent)
	}
	if err := g.patient(ctx, op, q); err != nil {
		return driver.Usage{}, err
	}
	g.mu.Lock()
	left, apart := g.left, g.stat != nil
	g.mu.Unlock()
	switch {
	case q.err != nil:
		return q.usage, q.err
	case left > 0:
		return q.usage, g.silent(op, ErrSilent)
	case apart:
		return g.recent(ctx, op)
	}
	return q.usage, nil
}

// patient waits for q as long as patience goes.
func (g *gate) patient(ctx context.Context, op string, q *question) error {
	timer := time.NewTimer(g.patience - time.Since(q.began))
	defer timer.Stop()
	select {
	case <-q.done:
		return nil
	case <-timer.C:
		return g.silent(op, ErrSilent)
	case <-ctx.Done():
		return errs.Wrap(ctx.Err(), op, g.where)
	}
}

// recent returns what was measured last. What is old, or was none, is measured
// anew, and waited for as long as patience goes.
func (g *gate) recent(ctx context.Context, op string) (driver.Usage, error) {
	g.mu.Lock()
	u, err, at, q := g.last, g.lastErr, g.at, g.weighed
	if old := err != nil || time.Since(at) > g.age; q == nil && old && g.stat != nil {
		stat := g.stat
		g.weighed = g.put(ctx, func(ctx context.Context) (driver.Usage, error) { return g.keep(stat(ctx)) }, func() { g.weighed = nil })
		q = g.weighed
	}
	g.mu.Unlock()
	if q != nil && g.patient(ctx, op, q) == nil {
		return q.usage, q.err
	}
	if at.IsZero() {
		err = errs.New(errs.Unavailable, op, g.where, "the pool was not measured yet")
	}
	return u, err
}

// keep notes what was measured.
func (g *gate) keep(u driver.Usage, err error) (driver.Usage, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stat != nil {
		g.last, g.lastErr, g.at = u, err, time.Now()
	}
	return u, err
}

// enter waits until a worker is free and none is left by its caller.
func (g *gate) enter(ctx context.Context, op string) error {
	timer := time.NewTimer(g.deadline)
	defer timer.Stop()
	for {
		g.mu.Lock()
		calm := g.calm
		g.mu.Unlock()
		slots := g.slots
		if calm != nil {
			slots = nil
		}
		select {
		case slots <- struct{}{}:
			g.mu.Lock()
			calm = g.calm
			g.mu.Unlock()
			if calm == nil {
				return nil
			}
			<-g.slots
		case <-calm:
		case <-ctx.Done():
			return errs.Wrap(ctx.Err(), op, g.where)
		case <-timer.C:
			if calm != nil || !g.answers(ctx, g.silence, nil) {
				return g.silent(op, ErrSilent)
			}
			timer.Reset(g.deadline) // it is slow
		}
	}
}

// task is one call that runs on a worker.
type task struct {
	done   chan struct{}
	ended  bool // these two under the gate's lock
	leaver bool // nobody waits for it
}

// end notes that t's work is done; what late has to undo comes first where
// nobody waits.
func (g *gate) end(t *task, late func()) {
	g.mu.Lock()
	t.ended = true
	leaver := t.leaver
	g.mu.Unlock()
	if !leaver {
		close(t.done)
		return
	}
	late()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.left--; g.left == 0 {
		close(g.calm)
		g.calm = nil
	}
}

// leave gives t up, unless it has just ended.
func (g *gate) leave(t *task) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.ended {
		return false
	}
	t.leaver = true
	if g.left++; g.left == 1 {
		g.calm = make(chan struct{})
	}
	return true
}

// wait waits for t until it ends, or the storage is found not to answer after
// limit, or sooner when ctx ends. It reports whether t was left.
func (g *gate) wait(ctx context.Context, t *task, limit time.Duration) (left bool) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	stop, silence := ctx.Done(), g.silence
	for {
		select {
		case <-t.done:
			return false
		case <-stop: // a call is completed nevertheless, if the storage lets it
			stop, limit, silence = nil, g.patience, g.patience
		case <-timer.C:
		}
		if !g.answers(ctx, silence, t.done) && g.leave(t) {
			return true
		}
		timer.Reset(limit)
	}
}

// through runs do on a worker of g. Where its caller has gone when do returns,
// late gets what it returned, before anything else happens; it may be nil.
func through[T any](ctx context.Context, g *gate, op string, limit time.Duration, do func() (T, error), late func(T, error)) (T, error) {
	var none, out T
	if err := g.enter(ctx, op); err != nil {
		return none, err
	}
	var err error
	t := &task{done: make(chan struct{})}
	go func() {
		out, err = do()
		<-g.slots
		g.end(t, func() {
			if late != nil {
				late(out, err)
			}
		})
	}()
	if g.wait(ctx, t, limit) {
		return none, g.silent(op, errLeft)
	}
	return out, err
}

// act is through for what returns an error alone.
func (g *gate) act(ctx context.Context, op string, do func() error) error {
	_, err := through(ctx, g, op, g.deadline, func() (struct{}, error) { return struct{}{}, do() }, nil)
	return err
}

// aside runs do, which releases something, without letting it in: there are as
// many of those at most as there is to release.
func (g *gate) aside(ctx context.Context, op string, limit time.Duration, do func() error) error {
	t := &task{done: make(chan struct{})}
	var err error
	go func() {
		err = do()
		g.end(t, func() {})
	}()
	if g.wait(ctx, t, limit) {
		return g.silent(op, errLeft)
	}
	return err
}

// portion is how many items of a sequence one call yields: between portions no
// worker is held, whatever the reader does.
const portion = 256

// each is seq with every portion of it taken through g.
func each[V any](ctx context.Context, g *gate, op string, seq iter.Seq2[V, error]) iter.Seq2[V, error] {
	type item struct {
		v   V
		err error
	}
	return func(yield func(V, error) bool) {
		next, stop := iter.Pull2(seq)
		left := false
		defer func() {
			if !left {
				stop()
			}
		}()
		for {
			items, err := through(ctx, g, op, g.deadline, func() (items []item, err error) {
				for len(items) < portion {
					v, e, ok := next()
					if !ok {
						break
					}
					items = append(items, item{v, e})
				}
				return items, nil
			}, func([]item, error) { stop() })
			if left = errors.Is(err, errLeft); err != nil {
				var none V
				yield(none, err)
				return
			}
			for _, i := range items {
				if !yield(i.v, i.err) {
					return
				}
			}
			if len(items) < portion {
				return
			}
		}
	}
}
