package engine

import (
	"context"
	"errors"
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
	why  map[disk.PoolID]error // the last of those that could not be opened failed

	opening turns[disk.PoolID] // of those who open a pool's storage: a look at it must not keep a start away
}

// reopen opens the pool of r, in place of what is open under its id: storage is
// served once, and the steps that open pools may be repeated. The pool is not
// among those that get returns until it is put there.
func (s *started) reopen(ctx context.Context, t driver.Type, r disk.Pool) (*pool.Pool, error) {
	s.opening.Lock(r.ID)
	defer s.opening.Unlock(r.ID)
	if err := s.drop(r.ID); err != nil {
		return nil, err
	}
	return openOwn(ctx, t, r)
}

// openOwn opens the pool of r; another's is left as it was found.
func openOwn(ctx context.Context, t driver.Type, r disk.Pool) (*pool.Pool, error) {
	p, err := pool.Open(ctx, t, r)
	if errors.Is(err, errs.Conflict) {
		err = errors.Join(err, leave(ctx, t, r))
	}
	return p, err
}

// leave ends what looking for the pool of r set going where another pool is, that
// nobody serves.
func leave(ctx context.Context, t driver.Type, r disk.Pool) error {
	m, err := pool.ReadMarker(ctx, t, pool.Config(r))
	if err != nil || m.Pool.ID == r.ID {
		return nil // nothing was set going
	}
	r.ID = m.Pool.ID
	return openAndEnd(ctx, t, r)
}

// try opens the pool of r if it is not open, and closes it again.
func (s *started) try(ctx context.Context, t driver.Type, r disk.Pool) error {
	s.opening.Lock(r.ID)
	defer s.opening.Unlock(r.ID)
	if _, ok := s.get(r.ID); ok {
		return nil
	}
	p, err := openOwn(ctx, t, r)
	if err != nil {
		return err
	}
	return p.Close()
}

// rest ends what reading the marker of r, which is not to be served, set going.
// Storage that another process serves stays as it is.
func (s *started) rest(ctx context.Context, t driver.Type, r disk.Pool) error {
	s.opening.Lock(r.ID)
	defer s.opening.Unlock(r.ID)
	return openAndEnd(ctx, t, r)
}

func openAndEnd(ctx context.Context, t driver.Type, r disk.Pool) error {
	d, _, err := t.Open(ctx, pool.Config(r))
	if errors.Is(err, errs.Busy) {
		return nil
	}
	if err != nil {
		return err
	}
	return end(ctx, d)
}

// end closes d and ends what opening it set going, if nobody uses that.
func end(ctx context.Context, d driver.Driver) error {
	st, ok := d.(driver.Stopper)
	if !ok {
		return d.Close()
	}
	if err := st.Stop(ctx); err != nil {
		return errors.Join(err, d.Close())
	}
	return nil
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
	delete(s.why, id)
}

// failed notes why a pool could not be opened.
func (s *started) failed(id disk.PoolID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why = map[disk.PoolID]error{}
	}
	s.why[id] = err
}

// failure returns why a pool could not be opened; nil where it was not tried.
func (s *started) failure(id disk.PoolID) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.why[id]
}

func (s *started) drop(id disk.PoolID) error {
	s.mu.Lock()
	p, ok := s.open[id]
	delete(s.open, id)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	return p.Close()
}

// stop closes a pool like drop, and ends what opening it set going. While that
// is in use the pool stays open, and the error is errs.Busy.
func (s *started) stop(ctx context.Context, id disk.PoolID) error {
	s.opening.Lock(id)
	defer s.opening.Unlock(id)
	p, ok := s.get(id)
	if !ok {
		return nil
	}
	return s.halt(ctx, id, p)
}

// stopThis is stop unless p, which is open under id, was opened anew meanwhile.
func (s *started) stopThis(ctx context.Context, id disk.PoolID, p *pool.Pool) error {
	s.opening.Lock(id)
	defer s.opening.Unlock(id)
	if now, ok := s.get(id); !ok || now != p {
		return nil
	}
	return s.halt(ctx, id, p)
}

func (s *started) halt(ctx context.Context, id disk.PoolID, p *pool.Pool) error {
	st, ok := p.Driver.(driver.Stopper)
	if !ok {
		return s.drop(id)
	}
	if err := st.Stop(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, id)
	return nil
}

// closeAll closes every pool, all at once: some may hang.
func (s *started) closeAll() {
	var all sync.WaitGroup
	for id := range s.all() {
		all.Go(func() { _ = s.drop(id) })
	}
	all.Wait()
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
// now is reported and stays unavailable; it does not keep the others away. Those
// that may hang are waited for a moment only: see openHanging.
func (e *Engine) openPools(ctx context.Context, recovered <-chan struct{}) error {
	pools, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Pool, error) {
		pools, _, err := tx.Pools.List(ctx, store.Query{})
		return pools, err
	})
	if err != nil {
		return err
	}
	for _, r := range pools {
		if r.State != disk.PoolActive || e.types[r.Driver].Hangs {
			continue
		}
		if err := e.openPool(ctx, r); err != nil {
			e.cfg.Log.Warn("a pool could not be started", "pool", r.Name, "error", err)
		}
	}
	e.openHanging(pools, recovered)
	return nil
}

func (e *Engine) openPool(ctx context.Context, r disk.Pool) error {
	t, err := e.driverType(r.Driver)
	if err != nil {
		return err
	}
	return e.openAs(ctx, t, r)
}

// openAs is openPool with the technology's own words.
func (e *Engine) openAs(ctx context.Context, t driver.Type, r disk.Pool) error {
	p, err := e.pools.reopen(ctx, t, r)
	if err != nil {
		e.pools.failed(r.ID, err)
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
	if r.State == disk.PoolActive && e.types[r.Driver].Hangs {
		return nil, errs.New(errs.Unavailable, "pool", r.Name, "pool %s is not active yet: %w", r.Name, pool.ErrSilent).
			WithHint("see to its server and the network between; the pool goes on by itself when it answers")
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
