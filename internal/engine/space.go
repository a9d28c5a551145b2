package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// foreignAge is how old a sample of what others use may get before it is taken
// anew in the background: it costs a walk over every extent of the pool.
const foreignAge = 30 * time.Second

// gauge is the last sample of what others than tarn use in a domain.
type gauge struct {
	foreign  int64
	at       time.Time
	sampling bool
	via      disk.PoolID // an open pool of the domain
	last     measured    // what the last measurement of the domain said
	samples  []sample    // of the time of the trend, oldest first
}

// gauges holds one gauge per domain. Its zero value is ready.
type gauges struct {
	mu sync.Mutex
	of map[disk.DomainID]*gauge
}

func (g *gauges) get(id disk.DomainID) *gauge {
	if g.of == nil {
		g.of = map[disk.DomainID]*gauge{}
	}
	if g.of[id] == nil {
		g.of[id] = &gauge{}
	}
	return g.of[id]
}

// forget makes the next measurement take a new sample first. What the last one
// said stays: operations decide on it meanwhile.
func (g *gauges) forget(id disk.DomainID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.get(id).at = time.Time{}
}

// last returns what the last measurement of a domain said.
func (g *gauges) last(id disk.DomainID) measured {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.get(id).last
}

func (g *gauges) keep(id disk.DomainID, m measured) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last := g.get(id).last; m.foreignAt.Before(last.foreignAt) { // measured meanwhile
		m.foreign, m.foreignAt = last.foreign, last.foreignAt
	}
	g.get(id).last = m
}

// measured is what the technology says of a domain, outside of any
// transaction.
type measured struct {
	capacity, free, foreign int64
	foreignAt               time.Time

	thin driver.Usage // what it says of a thin pool, and of what ails it
}

// space completes a measurement with what is promised, inside the transaction
// that decides.
func (m measured) space(ctx context.Context, tx *store.Tx, id disk.DomainID) (plan.Space, error) {
	sums, err := tx.DomainSums(ctx, id)
	return plan.Space{Capacity: m.capacity, Free: m.free, Foreign: m.foreign, Committed: sums.Committed, Writing: sums.Writing}, err
}

// measure asks the technology of an active pool of domain id how much space
// there is. The foreign share comes from the last sample; only the first
// measurement of a domain waits for one.
func (e *Engine) measure(ctx context.Context, id disk.DomainID) (measured, error) {
	u, err := e.witness(ctx, id)
	if err != nil {
		return measured{}, err
	}
	foreign, at, err := e.foreign(ctx, id, u)
	return e.measured(id, u, foreign, at), err
}

// measured keeps what was measured of domain id.
func (e *Engine) measured(id disk.DomainID, u driver.Usage, foreign int64, at time.Time) measured {
	m := measured{capacity: u.Capacity, free: u.Free, foreign: foreign, foreignAt: at, thin: u}
	if e.cfg.Ballast != nil { // what it gave up is for deletes, not for whoever comes first
		m.free = max(0, m.free-e.cfg.Ballast.Missing())
	}
	e.space.keep(id, m)
	return m
}

// witness returns what an open pool of domain id says of it: the pool that was
// asked last time while it answers.
func (e *Engine) witness(ctx context.Context, id disk.DomainID) (driver.Usage, error) {
	e.space.mu.Lock()
	via := e.space.get(id).via
	e.space.mu.Unlock()
	if p, ok := e.pools.get(via); ok {
		if u, err := p.Stat(ctx); !errors.Is(err, errs.Unavailable) {
			return u, err
		}
	}
	pools, err := e.domainPools(ctx, id)
	if err != nil {
		return driver.Usage{}, err
	}
	name := string(id)
	for _, r := range pools {
		name = r.Name
		p, ok := e.pools.get(r.ID)
		if !ok {
			continue
		}
		var u driver.Usage
		if u, err = p.Stat(ctx); errors.Is(err, errs.Unavailable) {
			continue // another pool may answer
		}
		e.space.mu.Lock()
		e.space.get(id).via = r.ID
		e.space.mu.Unlock()
		return u, err
	}
	if err != nil {
		return driver.Usage{}, err
	}
	return driver.Usage{}, errs.New(errs.Unavailable, "pool", name, "pool %s is not active", name).WithHint("tarn pool start %s", name)
}

// foreign returns the sample of what others use, refreshing it behind the
// caller's back when it is old.
func (e *Engine) foreign(ctx context.Context, id disk.DomainID, u driver.Usage) (int64, time.Time, error) {
	e.space.mu.Lock()
	g := e.space.get(id)
	if ctx.Value(unsampled{}) != nil {
		defer e.space.mu.Unlock()
		return g.foreign, g.at, nil
	}
	first, old := g.at.IsZero(), e.now().Sub(g.at) > foreignAge
	sample := (first || old) && !g.sampling
	if sample && !first {
		g.sampling = true
	}
	foreign, at := g.foreign, g.at
	e.space.mu.Unlock()
	switch {
	case first:
		return e.sampleForeign(ctx, id, u)
	case sample:
		e.background.Go(func() {
			if _, _, err := e.sampleForeign(e.life, id, u); err != nil {
				e.cfg.Log.Warn("the space others use could not be measured", "domain", id, "error", err)
			}
			e.restoreBallast(e.life)
		})
	}
	return foreign, at, nil
}

// sampleForeign measures used space minus tarn's own physical bytes.
func (e *Engine) sampleForeign(ctx context.Context, id disk.DomainID, u driver.Usage) (int64, time.Time, error) {
	own, err := e.physical(ctx, id)
	e.space.mu.Lock()
	defer e.space.mu.Unlock()
	g := e.space.get(id)
	g.sampling = false
	if err != nil {
		return g.foreign, g.at, err
	}
	g.foreign, g.at = max(0, u.Capacity-u.Free-own), e.now()
	return g.foreign, g.at, nil
}

// physical adds up what the open pools of a domain occupy.
func (e *Engine) physical(ctx context.Context, id disk.DomainID) (int64, error) {
	pools, err := e.domainPools(ctx, id)
	if err != nil {
		return 0, err
	}
	var own int64
	for _, r := range pools {
		p, ok := e.pools.get(r.ID)
		if !ok {
			continue
		}
		if ph, ok := p.Driver.(driver.Physical); ok {
			n, err := ph.Physical(ctx)
			if errors.Is(err, errs.Unavailable) {
				continue // what is left there counts as others'
			}
			if err != nil {
				return 0, err
			}
			own += n
		}
	}
	return own, nil
}

// headroom returns what an operation of unknown size may be promised and write
// in domain id, in bytes.
func (e *Engine) headroom(ctx context.Context, id disk.DomainID) (int64, error) {
	m, err := e.measure(ctx, id)
	if err != nil {
		return 0, err
	}
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (int64, error) {
		d, err := tx.Domains.Get(ctx, id)
		if err != nil {
			return 0, err
		}
		s, err := m.space(ctx, tx, id)
		return max(0, min(plan.Available(d, s), s.Free-d.Reserve.Of(s.Capacity)-s.Writing)), err
	})
}

// admit decides inside tx whether domain id can take on need, on measurements
// taken before.
func admit(ctx context.Context, tx *store.Tx, id disk.DomainID, m measured, need plan.Need) error {
	d, err := tx.Domains.Get(ctx, id)
	if err != nil {
		return err
	}
	s, err := m.space(ctx, tx, id)
	if err != nil {
		return err
	}
	return plan.Admit(d, s, need)
}
