package engine

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/store"
)

// What is shown of a pool whose record says active: degraded when its storage does
// not serve, full when nothing new fits.
const (
	stateDegraded = "degraded"
	stateFull     = "full"
)

// poolStates are the types of the events that tell a pool's state.
var poolStates = []string{"pool." + string(disk.PoolActive), "pool." + stateDegraded, "pool." + stateFull, "pool." + string(disk.PoolInactive)}

const (
	// lookEvery is how often pools are looked at, for their trend and for changes
	// of their state that nobody asks about.
	lookEvery = 10 * time.Second
	// lookAgain is how long after a change was seen it is looked for again, and
	// told if it is still there: storage may be slow for a moment.
	lookAgain = 2 * time.Second

	// trendWindow is the time whose mean rate time to full is reckoned from, and
	// trendLeast how much of it must be known.
	trendWindow = 10 * time.Minute
	trendLeast  = time.Minute
	// trendMost is the longest time to full that is told.
	trendMost = 10 * 365 * 24 * time.Hour
)

// unsampled is the key of contexts that leave what others use as it was measured
// for somebody: that is too dear for who looks all the time.
type unsampled struct{}

// health is what was told of pools' states. Its zero value is ready.
type health struct {
	mu    sync.Mutex
	told  map[disk.PoolID]string
	after int64 // the last event that was considered
	stir  chan struct{}
}

// watchPools looks at the pools now and then, and soon after somebody saw one in
// another state than was told, until the engine stops.
func (e *Engine) watchPools() {
	doubts := map[disk.PoolID]string{}
	for {
		wait := lookEvery
		if e.tellStates(e.life, doubts); len(doubts) > 0 {
			wait = lookAgain
		}
		select {
		case <-time.After(wait):
		case <-e.health.stir:
			select {
			case <-time.After(lookAgain):
			case <-e.life.Done():
			}
		case <-e.life.Done():
		}
		if e.life.Err() != nil {
			return
		}
	}
}

// stir has the pools looked at soon if state is not what was told of pool id.
func (e *Engine) stir(id disk.PoolID, state string) {
	e.health.mu.Lock()
	told := e.health.told[id]
	e.health.mu.Unlock()
	if told == "" || told == state {
		return
	}
	select {
	case e.health.stir <- struct{}{}:
	default:
	}
}

// tellStates looks at every pool, takes a sample of its domain, and emits an event
// for each whose state is not the one told last. That its storage does not serve
// is told when it was seen twice; doubts has what was seen once.
func (e *Engine) tellStates(ctx context.Context, doubts map[disk.PoolID]string) {
	if err := e.readStates(ctx); err != nil {
		e.complain("what was told of pools could not be read", err)
		return
	}
	pools, err := e.Pools(context.WithValue(ctx, unsampled{}, true), api.Page{Limit: -1})
	if err != nil {
		e.complain("the pools could not be looked at", err)
		return
	}
	for _, p := range pools.Items {
		id := disk.PoolID(p.ID)
		seen := doubts[id]
		delete(doubts, id)
		e.health.mu.Lock()
		told := e.health.told[id]
		e.health.mu.Unlock()
		if told == "" {
			told = string(disk.PoolActive) // imported
		}
		switch {
		case p.State != string(disk.PoolActive) && p.State != stateDegraded && p.State != stateFull || p.State == told:
		case p.State == stateDegraded && seen != p.State:
			doubts[id] = p.State
		default:
			if err := e.tellState(ctx, id, p); err != nil {
				e.complain("a pool's state could not be told", err)
			}
		}
	}
}

func (e *Engine) complain(what string, err error) {
	if e.life.Err() == nil {
		e.cfg.Log.Warn(what, "error", err)
	}
}

// readStates takes in the events that tell states, whoever emitted them.
func (e *Engine) readStates(ctx context.Context) error {
	e.health.mu.Lock()
	after := e.health.after
	e.health.mu.Unlock()
	events, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]store.Event, error) {
		return tx.EventsOf(ctx, after, poolStates...)
	})
	e.health.mu.Lock()
	defer e.health.mu.Unlock()
	if e.health.told == nil {
		e.health.told = map[disk.PoolID]string{}
	}
	for _, ev := range events {
		e.health.told[disk.PoolID(ev.SubjectID)] = ev.Type[len("pool."):]
		e.health.after = ev.ID
	}
	return err
}

// tellState emits the event of the state that an active pool was seen in.
func (e *Engine) tellState(ctx context.Context, id disk.PoolID, seen api.Pool) error {
	told := false
	err := e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		told = false
		r, err := tx.Pools.Get(ctx, id)
		if errors.Is(err, errs.NotFound) || err == nil && r.State != disk.PoolActive {
			return nil // it was stopped or given up meanwhile, which its operation tells
		}
		if err != nil {
			return err
		}
		told = true
		return e.emit(ctx, tx, "pool."+seen.State, poolSubject(r), "")
	})
	switch {
	case err != nil || !told:
	case seen.State == string(disk.PoolActive):
		e.cfg.Log.Info("a pool is active again", "pool", seen.Name)
	default:
		e.cfg.Log.Warn("a pool is not as it should be", "pool", seen.Name, "state", seen.State, "reason", seen.Reason)
	}
	return err
}

// showSpace fills in what is known of a pool's space, and whether it is full.
func (e *Engine) showSpace(out *api.Pool, look sight, d disk.Domain, s plan.Space) {
	out.Capacity, out.Free, out.Foreign, out.ForeignAt = look.capacity, look.free, look.foreign, look.foreignAt
	out.Reserved, out.Available = d.Reserve.Of(look.capacity), plan.Available(d, s)
	if look.thin.MetadataPercent > 0 {
		out.DataPercent, out.MetadataPercent = &look.thin.DataPercent, &look.thin.MetadataPercent
	}
	if out.State != string(disk.PoolActive) {
		return
	}
	why := look.thin.Full
	if why == "" {
		why = plan.Full(d, s)
	}
	if why != "" {
		out.State, out.Reason = stateFull, why
	}
	trend := e.space.trend(d.ID, sample{e.now(), look.free, look.thin.MetadataPercent})
	if left, known := timeToFull(trend, out.Reserved, look.thin.MetadataMark); known {
		out.TimeToFull = max(1, int64(left/time.Second))
	}
}

// sample is what was free in a domain at one time, and how full its thin pool's
// metadata was, in percent.
type sample struct {
	at       time.Time
	free     int64
	metadata float64
}

// trend adds s to the samples of a domain, unless there is a fresh one, and
// returns those of the window with s at their end.
func (g *gauges) trend(id disk.DomainID, s sample) []sample {
	g.mu.Lock()
	defer g.mu.Unlock()
	of := g.get(id)
	first := 0
	for first < len(of.samples) && s.at.Sub(of.samples[first].at) > trendWindow {
		first++
	}
	of.samples = of.samples[first:]
	if n := len(of.samples); n == 0 || s.at.Sub(of.samples[n-1].at) >= lookEvery/2 {
		of.samples = append(of.samples, s)
	}
	return append(of.samples[:len(of.samples):len(of.samples)], s)
}

// timeToFull returns how long it takes at the mean rate of samples until what is
// free falls to floor, or metadata rises to mark (0: never), whichever comes first.
// It is not known where neither approaches, and of less than trendLeast.
func timeToFull(samples []sample, floor int64, mark float64) (time.Duration, bool) {
	if len(samples) == 0 {
		return 0, false
	}
	first, last := samples[0], samples[len(samples)-1]
	span := last.at.Sub(first.at)
	if span < trendLeast {
		return 0, false
	}
	left := math.Inf(1)
	if taken := first.free - last.free; taken > 0 && last.free > floor {
		left = float64(last.free-floor) / float64(taken)
	}
	if risen := last.metadata - first.metadata; risen > 0 && mark > last.metadata {
		left = min(left, (mark-last.metadata)/risen)
	}
	if left *= float64(span); left > float64(trendMost) {
		return 0, false
	}
	return time.Duration(left), true
}
