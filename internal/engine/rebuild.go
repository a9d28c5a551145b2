package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// rebuildArgs is what pool.rebuild/v1 reads.
type rebuildArgs struct {
	Driver string          `json:"driver"`
	Path   string          `json:"path"`
	Source disk.PoolSource `json:"source,omitzero"`
	Pool   disk.PoolID     `json:"pool"`
}

// at is where the pool is, as a driver is told.
func (a rebuildArgs) at() driver.Config { return driver.Config{Path: a.Path, Source: a.Source} }

// PoolImport takes a pool into the records by what it says of itself: its
// marker and the sidecars of its volumes. No volume's bytes are looked at.
func (e *Engine) PoolImport(ctx context.Context, o api.Options, r api.PoolImport) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "pool.import", r); out != nil || err != nil {
		return answer(out, err)
	}
	t, err := e.driverType(r.Driver)
	if err != nil {
		return api.Outcome{}, err
	}
	a := rebuildArgs{Driver: r.Driver}
	if a.Path, a.Source, err = orderSource(t, r.Path, r.Source); err != nil {
		return api.Outcome{}, err
	}
	place := disk.Pool{HostID: e.cfg.Host.ID, Path: a.Path, Source: a.Source}
	pools, seen, err := e.look(ctx, place)
	if err == nil {
		err = e.apart(place, pools, seen)
	}
	if err != nil {
		return api.Outcome{}, err // before its storage is set going
	}
	m, err := pool.ReadMarker(ctx, t, a.at())
	where := place.Where()
	if errors.Is(err, errs.NotFound) {
		return api.Outcome{}, errs.New(errs.NotFound, "pool.import", where, "there is no pool at %s", where).WithHint("tarn pool create makes one")
	}
	if err != nil {
		return api.Outcome{}, err
	}
	a.Source = a.Source.Like(m.Pool.Source)
	d := newDraft("pool.import", poolSubject(m.Pool))
	a.Pool, m.Pool.Path, m.Pool.Source, m.Pool.HostID = m.Pool.ID, a.Path, a.Source, e.cfg.Host.ID
	d.request, d.resources = r, append(placesOf(m.Pool), "pool:"+string(m.Pool.ID)) // one import of a pool at a time
	d.steps = []journal.Step{journal.NewStep(stepPoolRebuild, a), journal.NewStep(stepSidecars, sidecarArgs{All: true})}
	d.notes = []string{"takes pool " + m.Pool.Name + " at " + where + " into the records"}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		p, err := optionally(tx.Pools.Get(ctx, m.Pool.ID))
		if err == nil && p != nil {
			err = errs.New(errs.Exists, "pool.import", m.Pool.Name, "pool %s is on record already, at %s", p.Name, p.Where())
		}
		return err
	}
	out, err := e.submitApart(ctx, o, d, m.Pool)
	if err != nil || out.Operation == nil {
		if err := e.pools.rest(ctx, t, m.Pool); err != nil {
			e.cfg.Log.Warn("the storage of a pool that is not imported was not stopped", "pool", m.Pool.Name, "error", err)
		}
	}
	return out, err
}

// dropUnrecorded closes the pool that an import opened and could not record, and
// ends what that set going, behind the transaction: none waits for storage.
func (e *Engine) dropUnrecorded(ctx context.Context, tx *store.Tx, op *journal.Operation) {
	if op.Kind != "pool.import" || op.State == journal.Done {
		return
	}
	id := disk.PoolID(op.Subject.ID)
	if _, err := tx.Pools.Get(ctx, id); !errors.Is(err, errs.NotFound) {
		return
	}
	p, ok := e.pools.get(id)
	if !ok {
		return
	}
	e.background.Go(func() {
		if err := e.pools.stopThis(e.life, id, p); err != nil {
			e.cfg.Log.Warn("a pool that was not imported could not be closed", "pool", op.Subject.Name, "error", err)
		}
	})
}

// poolRebuild reads a pool's self-descriptions and records what they say: step
// pool.rebuild/v1. It writes nothing to the storage. What other pools told of the
// same objects may be newer: the step after it brings self-descriptions in line,
// the marker of a pool that moved included. There is nothing to take back.
func (e *Engine) poolRebuild() journal.Handler[*store.Tx] {
	return simple{
		final: true,
		act: func(ctx context.Context, c *journal.Call) error {
			var a rebuildArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			found, err := e.readPool(ctx, a, c)
			if err != nil {
				return errs.Wrap(err, "pool.import", c.Op.Subject.Name)
			}
			return c.SetOutput(found)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var found rebuilt
			if err := c.Output(&found); err != nil {
				return err
			}
			if err := e.recordPool(ctx, tx, found); err != nil {
				return err
			}
			c.Step.Output = nil // the records say it now
			return e.emit(ctx, tx, "pool.imported", c.Op.Subject, c.Op.ID)
		},
	}
}

// rebuilt is what a pool says of itself.
type rebuilt struct {
	Marker   disk.Marker    `json:"marker"`
	Sidecars []disk.Sidecar `json:"sidecars"`
}

// readPool opens the pool and collects what it says. A sidecar that does not
// parse, or whose volume is not there, is reported and left alone.
func (e *Engine) readPool(ctx context.Context, a rebuildArgs, c *journal.Call) (out rebuilt, err error) {
	t, err := e.driverType(a.Driver)
	if err != nil {
		return out, err
	}
	if out.Marker, err = pool.ReadMarker(ctx, t, a.at()); err != nil {
		return out, err
	}
	m := &out.Marker
	m.Pool.Path, m.Pool.Source, m.Pool.State, m.Pool.HostID = a.Path, a.Source, disk.PoolActive, e.cfg.Host.ID
	p, err := e.pools.reopen(ctx, t, m.Pool)
	if err != nil {
		return out, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, end(context.WithoutCancel(ctx), p.Driver))
		}
	}()
	u, err := p.Stat(ctx)
	if err != nil {
		return out, err
	}
	m.Domain.Identity, m.Pool.Identity = u.Identity, u.Identity+":"+m.Pool.Where()
	for rec, err := range p.Sidecars(ctx) {
		if err != nil {
			return out, err
		}
		s, err := e.readSidecar(ctx, p, rec)
		if errors.Is(err, errs.Version) {
			return out, err
		}
		if err != nil {
			e.cfg.Log.Warn("a sidecar was left out of the import", "pool", m.Pool.Name, "volume", rec.Name, "error", err)
			continue
		}
		s.Volume.PoolID = m.Pool.ID
		out.Sidecars = append(out.Sidecars, s)
		c.Progress(int64(len(out.Sidecars)), 0, "volumes")
	}
	e.pools.put(m.Pool.ID, p)
	return out, nil
}

// readSidecar completes one sidecar with what the driver sees of its volume.
func (e *Engine) readSidecar(ctx context.Context, p *pool.Pool, rec driver.Record) (disk.Sidecar, error) {
	s, err := pool.OpenSidecar(rec.Name, rec.Data)
	if err != nil {
		return s, err
	}
	if s.Volume.Name != rec.Name {
		return s, errs.New(errs.Corrupt, "pool.import", rec.Name, "the sidecar is that of %s", s.Volume.Name)
	}
	obj, err := p.Describe(ctx, driver.Ref{ID: s.Volume.ID, Name: rec.Name})
	if err != nil {
		return s, err
	}
	s.Volume.BackendID, s.Volume.Allocated = obj.BackendID, obj.Allocated
	return s, nil
}

// recordPool writes the records that a pool described. Where another pool told
// of the same instance or image, the newer description wins.
func (e *Engine) recordPool(ctx context.Context, tx *store.Tx, r rebuilt) error {
	if err := recordDomain(ctx, tx, &r.Marker); err != nil {
		return err
	}
	if err := tx.Pools.Insert(ctx, r.Marker.Pool); err != nil {
		return err
	}
	lowestFirst(r.Sidecars, func(s disk.Sidecar) disk.Volume { return s.Volume })
	for _, s := range r.Sidecars {
		if err := e.recordSidecar(ctx, tx, s); err != nil {
			return errs.Wrap(err, "pool.import", s.Volume.Name)
		}
	}
	return nil
}

// lowestFirst brings bases before what reads from them. A circle, which no honest
// pool has, stays somewhere.
func lowestFirst[T any](all []T, volume func(T) disk.Volume) {
	below := map[disk.VolumeID]disk.VolumeID{}
	for _, x := range all {
		if v := volume(x); v.Backing != nil {
			below[v.ID] = v.Backing.VolumeID
		}
	}
	depth := func(x T) (n int) {
		for id, ok := below[volume(x).ID]; ok && n <= len(below); id, ok = below[id] {
			n++
		}
		return n
	}
	slices.SortStableFunc(all, func(a, b T) int { return depth(a) - depth(b) })
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// recordDomain finds or adds the domain that the marker's pool is in now.
func recordDomain(ctx context.Context, tx *store.Tx, m *disk.Marker) error {
	d, err := tx.Domains.One(ctx, store.Eq("identity", m.Domain.Identity))
	if err == nil {
		m.Pool.DomainID = d.ID
		return nil
	}
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	if _, err := tx.Domains.Get(ctx, m.Domain.ID); err == nil {
		m.Domain.ID = disk.DomainID(newID()) // that id is another space by now
	}
	m.Pool.DomainID = m.Domain.ID
	return tx.Domains.Insert(ctx, m.Domain)
}

func (e *Engine) recordSidecar(ctx context.Context, tx *store.Tx, s disk.Sidecar) error {
	s.Volume.CreatedBy = "" // operations do not come back
	if err := tx.Volumes.Insert(ctx, s.Volume); err != nil {
		return err
	}
	for _, i := range s.Images {
		if err := newest(ctx, tx.Images, i.ID, i, func(i disk.Image) int64 { return i.Generation }); err != nil {
			return err
		}
	}
	if s.Instance != nil {
		if err := newest(ctx, tx.Instances, s.Instance.ID, *s.Instance, func(i disk.Instance) int64 { return i.Generation }); err != nil {
			return err
		}
	}
	if s.Disk != nil {
		if err := tx.Disks.Insert(ctx, *s.Disk); err != nil {
			return err
		}
	}
	if s.Lease == nil {
		return nil
	}
	if err := knownHost(ctx, tx, *s.Lease); err != nil {
		return err
	}
	s.Lease.State = disk.LeaseUnverified
	if err := tx.RaiseGeneration(ctx, leaseCounter, s.Lease.Generation); err != nil { // the next grant's is higher
		return err
	}
	return tx.Leases.Insert(ctx, *s.Lease)
}

// knownHost adds a record of the host that a rebuilt lease names, by its id
// until that host says its name.
func knownHost(ctx context.Context, tx *store.Tx, l disk.Lease) error {
	_, err := tx.Hosts.Get(ctx, l.HostID)
	if errors.Is(err, errs.NotFound) {
		return tx.Hosts.Insert(ctx, disk.Host{ID: l.HostID, Name: string(l.HostID), BootID: l.BootID, CreatedAt: l.CreatedAt, UpdatedAt: l.CreatedAt})
	}
	return err
}

// newest inserts r, or updates the row of that id if r is newer: if its
// generation is higher. Times decide nothing, a clock may have been set back.
func newest[K ~string, R any](ctx context.Context, t store.Table[K, R], id K, r R, generation func(R) int64) error {
	have, err := t.Get(ctx, id)
	switch {
	case errors.Is(err, errs.NotFound):
		return t.Insert(ctx, r)
	case err != nil:
		return err
	case generation(r) > generation(have):
		return t.Update(ctx, r)
	}
	return nil
}
