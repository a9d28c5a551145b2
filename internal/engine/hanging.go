package engine

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// What pools that may hang are given at least at the start before it goes on
// without them, and at most where their storage answers but is slow; and how long
// after one that could not be opened is tried again.
const (
	openMoment = 600 * time.Millisecond
	openMost   = time.Minute
	openAgain  = 10 * time.Second
)

// openHanging opens the pools that may hang in the background, and waits for each
// as long as that takes where its storage answers. The others come when they do.
func (e *Engine) openHanging(pools []disk.Pool, recovered <-chan struct{}) {
	var tried sync.WaitGroup
	for _, r := range pools {
		t := e.types[r.Driver]
		if r.State != disk.PoolActive || !t.Hangs {
			continue
		}
		tried.Add(1)
		done := sync.OnceFunc(tried.Done)
		late := time.AfterFunc(max(openMoment, t.Opens), done)
		marker := t.Marker // what is asked first
		t.Marker = func(ctx context.Context, c driver.Config) ([]byte, error) {
			m, err := marker(ctx, c)
			if err == nil {
				late.Reset(openMost)
			}
			return m, err
		}
		e.background.Go(func() { e.openUntilDone(t, r, done, recovered) })
	}
	tried.Wait()
}

// openUntilDone opens the pool of r, again and again while its storage does not
// answer, as long as the pool is to be active.
func (e *Engine) openUntilDone(t driver.Type, r disk.Pool, tried func(), recovered <-chan struct{}) {
	err := e.openAs(e.life, t, r)
	tried()
	for errors.Is(err, errs.Unavailable) {
		e.cfg.Log.Warn("a pool could not be started yet", "pool", r.Name, "error", err)
		select {
		case <-e.life.Done():
			return
		case <-time.After(openAgain):
		}
		if r, err = e.stillActive(r.ID); err != nil {
			return
		}
		if _, open := e.pools.get(r.ID); open {
			return
		}
		err = e.openPool(e.life, r)
	}
	select {
	case <-e.life.Done():
		return
	case <-recovered:
	}
	if err == nil {
		err = e.opened(r.ID)
	}
	if err != nil && e.life.Err() == nil {
		e.cfg.Log.Warn("a pool could not be started", "pool", r.Name, "error", err)
	}
}

// opened does what the start does with pools that are open by then.
func (e *Engine) opened(id disk.PoolID) error {
	if _, err := e.stillActive(id); err != nil { // stopped meanwhile
		return e.pools.stop(e.life, id)
	}
	return errors.Join(e.releaseOldLeases(e.life, true), e.followPool(e.life, id))
}

// stillActive returns the record of a pool that is to be active.
func (e *Engine) stillActive(id disk.PoolID) (disk.Pool, error) {
	r, err := query(e.life, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, id) })
	if err == nil && r.State != disk.PoolActive {
		err = errs.New(errs.Conflict, "pool.start", r.Name, "the pool is %s", r.State)
	}
	return r, err
}

// askPools asks those of rows that may hang whether they answer, all at once: who
// looks at them one by one then waits for none.
func (e *Engine) askPools(ctx context.Context, rows []disk.Pool) {
	var asked sync.WaitGroup
	for _, r := range rows {
		if p, ok := e.pools.get(r.ID); ok && p.Hangs() {
			asked.Go(func() { _, _ = p.Glance(ctx) })
		}
	}
	asked.Wait()
}

// sight is how a pool is, for who only looks.
type sight struct {
	measured
	state, reason string
	unknown       error // why nothing is measured
}

// lookAt says how pool r is. It does not wait for a pool that hangs: what was
// known of its domain's space is shown.
func (e *Engine) lookAt(ctx context.Context, r disk.Pool) sight {
	s := sight{state: string(r.State)}
	if e.types[r.Driver].Hangs {
		s.measured = e.space.last(r.DomainID)
		if s.capacity == 0 {
			s.unknown = errs.New(errs.Unavailable, "pool.stat", r.Name, "nothing was measured of the pool since the daemon's start")
		}
	} else {
		s.measured, s.unknown = e.measure(ctx, r.DomainID)
	}
	if r.State != disk.PoolActive {
		return s
	}
	u, err := e.peek(ctx, r)
	switch {
	case err != nil:
		s.state, s.reason = stateDegraded, reasonOf(err)
	case e.types[r.Driver].Hangs:
		foreign, at := e.foreignSoon(ctx, r.DomainID, u)
		s.measured, s.unknown = e.measured(r.DomainID, u, foreign, at), nil
	}
	if err == nil && s.thin.Ailing != "" {
		s.state, s.reason = stateDegraded, s.thin.Ailing
	}
	return s
}

// peek looks at the storage of pool r, which is to be active.
func (e *Engine) peek(ctx context.Context, r disk.Pool) (driver.Usage, error) {
	p, ok := e.pools.get(r.ID)
	if ok {
		return p.Glance(ctx)
	}
	if err := e.pools.failure(r.ID); err != nil {
		return driver.Usage{}, err
	}
	return driver.Usage{}, errs.New(errs.Unavailable, "pool.stat", r.Name, "the pool is not open yet")
}

// reasonOf is an error in words for people.
func reasonOf(err error) string {
	var e *errs.Error
	if errors.As(err, &e) && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

// foreignSoon is foreign for who only looks: the first sample of a domain is
// waited for a moment, and is 0 until it comes.
func (e *Engine) foreignSoon(ctx context.Context, id disk.DomainID, u driver.Usage) (int64, time.Time) {
	e.space.mu.Lock()
	g := e.space.get(id)
	first, known := g.at.IsZero() && ctx.Value(unsampled{}) == nil, *g
	g.sampling = g.sampling || first
	e.space.mu.Unlock()
	taken := make(chan struct{})
	switch {
	case !first:
		foreign, at, _ := e.foreign(ctx, id, u) // it takes samples in the background
		return foreign, at
	case !known.sampling:
		e.background.Go(func() {
			defer close(taken)
			if _, _, err := e.sampleForeign(e.life, id, u); err != nil && e.life.Err() == nil {
				e.cfg.Log.Warn("the space others use could not be measured", "domain", id, "error", err)
			}
		})
	}
	select {
	case <-taken:
	case <-time.After(openMoment / 2):
	}
	e.space.mu.Lock()
	defer e.space.mu.Unlock()
	return e.space.get(id).foreign, e.space.get(id).at
}
