package engine

import (
	"context"
	"sync"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// started holds the pools that are open. Its zero value is ready.
type started struct {
	mu   sync.RWMutex
	open map[disk.PoolID]*pool.Pool

	opening sync.Mutex // held while storage is opened: a look at it must not keep a start away
}

// reopen opens the pool of r, in place of what is open under its id: storage is
// served once, and the steps that open pools may be repeated. The pool is not
// among those that get returns until it is put there.
func (s *started) reopen(ctx context.Context, t driver.Type, r disk.Pool) (*pool.Pool, error) {
	s.opening.Lock()
	defer s.opening.Unlock()
	if err := s.drop(r.ID); err != nil {
		return nil, err
	}
	return pool.Open(ctx, t, r)
}

// try opens the pool of r if it is not open, and closes it again.
func (s *started) try(ctx context.Context, t driver.Type, r disk.Pool) error {
	s.opening.Lock()
	defer s.opening.Unlock()
	if _, ok := s.get(r.ID); ok {
		return nil
	}
	p, err := pool.Open(ctx, t, r)
	if err != nil {
		return err
	}
	return p.Close()
}

func (s *started) get(id disk.PoolID) (*pool.Pool, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, ok := s.open[id]
	return p, ok
}

// must returns an open pool, or errs.Unavailable.
func (s *started) must(id disk.PoolID) (*pool.Pool, error) {
	if p, ok := s.get(id); ok {
		return p, nil
	}
	return nil, errs.New(errs.Unavailable, "pool", string(id), "the pool is not active").WithHint("tarn pool start")
}

func (s *started) put(id disk.PoolID, p *pool.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[disk.PoolID]*pool.Pool{}
	}
	s.open[id] = p
}

func (s *started) drop(id disk.PoolID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.open[id]
	delete(s.open, id)
	if !ok {
		return nil
	}
	return p.Close()
}

func (s *started) closeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, p := range s.open {
		p.Close()
		delete(s.open, id)
	}
}

func (s *started) all() map[disk.PoolID]*pool.Pool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make(map[disk.PoolID]*pool.Pool, len(s.open))
	for id, p := range s.open {
		out[id] = p
	}
	return out
}

// openPools starts every pool whose record says active. One that cannot start
// now is reported and stays unavailable; it does not keep the others away.
func (e *Engine) openPools(ctx context.Context) error {
	pools, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Pool, error) {
		pools, _, err := tx.Pools.List(ctx, store.Query{})
		return pools, err
	})
	if err != nil {
		return err
	}
	for _, r := range pools {
		if r.State != disk.PoolActive {
			continue
		}
		if err := e.openPool(ctx, r); err != nil {
			e.cfg.Log.Warn("a pool could not be started", "pool", r.Name, "error", err)
		}
	}
	return nil
}

func (e *Engine) openPool(ctx context.Context, r disk.Pool) error {
	t, err := e.driverType(r.Driver)
	if err != nil {
		return err
	}
	p, err := e.pools.reopen(ctx, t, r)
	if err != nil {
		return err
	}
	e.pools.put(r.ID, p)
	return nil
}

// pool returns the open pool of record r, or errs.Unavailable.
func (e *Engine) pool(r disk.Pool) (*pool.Pool, error) {
	if p, ok := e.pools.get(r.ID); ok {
		return p, nil
	}
	return nil, errs.New(errs.Unavailable, "pool", r.Name, "pool %s is not active", r.Name).
		WithHint("tarn pool start %s", r.Name)
}

// poolOf returns the open pool with the given id, or errs.Unavailable.
func (e *Engine) poolOf(ctx context.Context, id disk.PoolID) (*pool.Pool, error) {
	if p, ok := e.pools.get(id); ok {
		return p, nil
	}
	r, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, id) })
	if err != nil {
		return nil, err
	}
	return e.pool(r)
}

// restoreBallast takes the space back that was given up for deletes, where
// there is room again; the records' before the pools'.
func (e *Engine) restoreBallast(ctx context.Context) {
	if e.cfg.Ballast != nil {
		if err := e.cfg.Ballast.Restore(); err != nil {
			e.cfg.Log.Debug("no room for the state directory's ballast", "error", err)
		}
	}
	for id, p := range e.pools.all() {
		if b, ok := p.Driver.(driver.Ballast); ok {
			if err := b.RestoreBallast(ctx); err != nil {
				e.cfg.Log.Debug("no room for the pool's ballast", "pool", id, "error", err)
			}
		}
	}
}

// query runs fn in a read transaction and returns its value.
func query[R any](ctx context.Context, e *Engine, fn func(context.Context, *store.Tx) (R, error)) (R, error) {
	var out R
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		out, err = fn(ctx, tx)
		return err
	})
	return out, err
}
