package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// checkPools looks at the pools themselves. One that cannot be trusted is left
// out of the further checks, which would misread it.
func (c *checkup) checkPools(ctx context.Context) error {
	for _, id := range sortedKeys(c.pools) {
		f, sound, err := c.checkPool(ctx, c.pools[id])
		if err == nil && f != nil { // once more: an operation may have been at it
			f, sound, err = c.checkPool(ctx, c.pools[id])
		}
		if err != nil {
			return err
		}
		if f != nil {
			c.add(ctx, *f)
		}
		if !sound {
			delete(c.pools, id)
		}
	}
	return nil
}

func sortedKeys[K ~string, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// checkPool reports whether the storage of r can be believed to be r's, and
// what is wrong with it.
func (c *checkup) checkPool(ctx context.Context, r disk.Pool) (*finding, bool, error) {
	var w work
	var want disk.Marker
	err := c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if w, err = underway(ctx, tx); err == nil {
			want, err = markerOf(ctx, tx, r.ID)
		}
		return err
	})
	if errors.Is(err, errs.NotFound) {
		return nil, false, nil // given up meanwhile
	}
	if err != nil {
		return nil, false, err
	}
	r = want.Pool
	if w.pools {
		return nil, r.State == disk.PoolActive && !w.ids[string(r.ID)], nil
	}
	switch r.State {
	case disk.PoolInactive:
		c.note("pool %s is inactive and was not checked", r.Name)
		return nil, false, nil
	case disk.PoolCreating, disk.PoolDeleting:
		f := found("I1", r.Name, "pool %s is recorded as %s, and no operation is at work on it", r.Name, r.State).
			advise("tarn pool delete %s --keep-data forgets it; tarn pool import brings back what is there", r.Name)
		return &f, false, nil
	}
	p, ok := c.e.pools.get(r.ID)
	if !ok {
		f := found("I14", r.Name, "pool %s is active on record but could not be started: %s", r.Name, c.e.whyClosed(ctx, r)).
			advise("see to its storage, then tarn pool start %s", r.Name)
		return &f, false, nil
	}
	if _, err := p.Glance(ctx); err != nil {
		f := unreadable(r, err)
		return &f, false, ctx.Err()
	}
	f, sound := c.checkMarker(ctx, p, want)
	return f, sound, nil
}

// unreadable says that the storage of pool r does not answer.
func unreadable(r disk.Pool, err error) finding {
	return found("I14", r.Name, "the storage of pool %s cannot be looked at: %s", r.Name, message(err)).
		advise("see to it, then tarn pool stop %s and tarn pool start %s", r.Name, r.Name)
}

// leaveOut reports that the storage of a pool does not answer, and takes the
// pool out of the further checks: those of the others go on. It returns what is
// no fault of the pool.
func (c *checkup) leaveOut(ctx context.Context, r disk.Pool, err error) error {
	if ctx.Err() != nil {
		return err
	}
	c.add(ctx, unreadable(r, err))
	delete(c.pools, r.ID)
	return nil
}

// whyClosed tries to open a pool and tells what happened.
func (e *Engine) whyClosed(ctx context.Context, r disk.Pool) string {
	t, err := e.driverType(r.Driver)
	if err != nil {
		return err.Error()
	}
	if err := e.pools.try(ctx, t, r); err != nil {
		return err.Error()
	}
	return "its storage was not there when tarnd started"
}

func (c *checkup) checkMarker(ctx context.Context, p *pool.Pool, want disk.Marker) (*finding, bool) {
	name := want.Pool.Name
	got, err := p.Marker(ctx)
	rewrite := func(ctx context.Context) (string, error) {
		return "rewrote the marker from the records", c.e.writeMarker(ctx, want.Pool.ID)
	}
	var f finding
	sound := true
	switch {
	case errors.Is(err, errs.Version):
		f = found("I13", name, "the marker of pool %s was written by a newer tarn: %v", name, err).advise("use the tarn that wrote it")
		sound = false
	case errors.Is(err, errs.NotFound):
		f = found("I14", name, "pool %s has lost its marker", name).repair("rewrites the marker from the records", rewrite)
	case errors.Is(err, errs.Corrupt):
		f = found("I14", name, "the marker of pool %s cannot be read: %v", name, err).repair("rewrites the marker from the records", rewrite)
	case err != nil:
		f = found("I14", name, "the marker of pool %s cannot be read: %v", name, err).advise("see to the pool's storage")
		sound = false
	case got.Pool.ID != want.Pool.ID:
		f = found("I14", name, "the storage of pool %s carries the marker of another pool, %s (%s)", name, got.Pool.Name, got.Pool.ID).
			advise("stop pool %s and mount its own storage", name)
		sound = false
	case !sameMarker(got, want):
		f = found("I14", name, "the marker of pool %s says something else than the records: %s", name, difference(got, want)).
			repair("rewrites the marker from the records", rewrite)
	default:
		return nil, true
	}
	return &f, sound
}

// sameMarker compares what a marker says with the records. The state is the
// daemon's: a marker never says that its pool is stopped.
// Where its space is counted is compared with the storage itself.
func sameMarker(got, want disk.Marker) bool {
	got.Pool.State, got.Domain.Identity = want.Pool.State, want.Domain.Identity
	return sameJSON(got, want)
}

func sameJSON(a, b any) bool {
	x, errx := json.Marshal(a)
	y, erry := json.Marshal(b)
	return errx == nil && erry == nil && bytes.Equal(x, y)
}

// checkDomains compares promises with what there is (I11).
func (c *checkup) checkDomains(ctx context.Context) error {
	storages := map[string]string{}
	done := map[disk.DomainID]bool{}
	for _, id := range sortedKeys(c.pools) {
		r := c.pools[id]
		if err := c.checkSums(ctx, r); err != nil {
			return err
		}
		p, ok := c.open(id)
		if !ok {
			continue
		}
		u, err := p.Stat(ctx)
		if _, open := c.open(id); !open {
			continue // stopped meanwhile
		}
		if err != nil {
			if err := c.leaveOut(ctx, r, err); err != nil {
				return err
			}
			continue
		}
		if other, ok := storages[u.Storage]; ok {
			c.add(ctx, found("I11", r.Name, "pools %s and %s are the same storage (%s)", other, r.Name, u.Storage).
				advise("give one of them up: tarn pool delete NAME --keep-data"))
		}
		storages[u.Storage] = r.Name
		wrong, err := c.checkDomain(ctx, r, u.Identity)
		if err != nil {
			return err
		}
		if !wrong && !done[r.DomainID] {
			done[r.DomainID] = true
			if err := c.checkPromises(ctx, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkSums compares the sums that planning uses with the volumes.
func (c *checkup) checkSums(ctx context.Context, r disk.Pool) error {
	var have, want store.Sums
	err := c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if have, err = tx.PoolSums(ctx, r.ID); err == nil {
			want, err = tx.CountSums(ctx, r.ID)
		}
		return err
	})
	if err != nil || have == want {
		return err
	}
	c.add(ctx, found("I11", r.Name, "the ledger of pool %s says %s committed and %s provisioned, its volumes add up to %s and %s", r.Name,
		disk.FormatSize(have.Committed), disk.FormatSize(have.Provisioned), disk.FormatSize(want.Committed), disk.FormatSize(want.Provisioned)).
		repair("adds the volumes up again", func(ctx context.Context) (string, error) {
			return "added the volumes up again", c.e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.Recount(ctx, r.ID) })
		}))
	return nil
}

// checkDomain reports whether r is recorded in another domain than its storage
// is in.
func (c *checkup) checkDomain(ctx context.Context, r disk.Pool, identity string) (bool, error) {
	d, err := query(ctx, c.e, func(ctx context.Context, tx *store.Tx) (disk.Domain, error) { return tx.Domains.Get(ctx, r.DomainID) })
	if err != nil || d.Identity == identity {
		return false, err
	}
	c.add(ctx, found("I11", r.Name, "pool %s is recorded in capacity domain %s, its storage is in %s", r.Name, d.Identity, identity).
		repair("counts its space where its storage is", func(ctx context.Context) (string, error) {
			err := c.e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return c.e.moveDomain(ctx, tx, r.ID, identity) })
			return "its space is counted in " + identity + " now", errors.Join(err, c.e.writeMarker(ctx, r.ID))
		}))
	return true, nil
}

// moveDomain puts a pool into the domain with the given identity, with its old
// domain's settings if that is new.
func (e *Engine) moveDomain(ctx context.Context, tx *store.Tx, id disk.PoolID, identity string) error {
	m, err := markerOf(ctx, tx, id)
	if err != nil {
		return err
	}
	old := m.Domain.ID
	d, err := tx.Domains.One(ctx, store.Eq("identity", identity))
	if errors.Is(err, errs.NotFound) {
		d = m.Domain
		d.ID, d.Identity, d.CreatedAt, d.UpdatedAt = disk.DomainID(newID()), identity, e.now(), e.now()
		err = tx.Domains.Insert(ctx, d)
	}
	if err != nil {
		return err
	}
	m.Pool.DomainID, m.Pool.Identity, m.Pool.UpdatedAt = d.ID, identity+":"+m.Pool.Where(), e.now()
	if err := tx.Pools.Update(ctx, m.Pool); err != nil {
		return err
	}
	left, err := tx.Pools.Count(ctx, store.Eq("domain_id", old))
	if err != nil || left > 0 {
		return err
	}
	return tx.Domains.Delete(ctx, old)
}

// checkPromises compares what a domain has promised with what it may.
func (c *checkup) checkPromises(ctx context.Context, r disk.Pool) error {
	m, err := c.e.measure(ctx, r.DomainID)
	if err != nil {
		return err
	}
	var d disk.Domain
	var s plan.Space
	err = c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if d, err = tx.Domains.Get(ctx, r.DomainID); err == nil {
			s, err = m.space(ctx, tx, r.DomainID)
		}
		return err
	})
	if err != nil {
		return err
	}
	if over := s.Committed - plan.Promisable(d, s); s.Committed > 0 && over > 0 {
		c.add(ctx, found("I11", r.Name, "%s has promised %s more than it may: %s are committed, of %s others use %s and %s are reserved, overcommit is %.2f",
			d.Identity, disk.FormatSize(over), disk.FormatSize(s.Committed), disk.FormatSize(s.Capacity), disk.FormatSize(s.Foreign),
			disk.FormatSize(d.Reserve.Of(s.Capacity)), float64(d.Overcommit)/1000).
			advise("free space that others use, delete disks, or raise --overcommit of pool %s; until then nothing more can be made there", r.Name))
	}
	return nil
}
