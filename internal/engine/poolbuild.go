package engine

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// A pool's life: recorded (pool create --define), built (pool build), started.
// Its first start prepares the storage and learns what it is; until then the
// record has no identity and nothing of the pool is in the storage. Pool create
// does all of it at once.

// unprepared reports whether nothing of pool r is in its storage.
func unprepared(r disk.Pool) bool { return r.Identity == "" }

// checkBuilding validates what a request for a pool says of building it.
func checkBuilding(t driver.Type, r api.PoolCreate) error {
	switch {
	case r.Define && r.Build:
		return errs.New(errs.Invalid, "pool.create", r.Name, "a pool is either only recorded (--define) or built now (--build)").
			WithHint("tarn pool build builds what was recorded")
	case r.Overwrite && !r.Build:
		return errs.New(errs.Invalid, "pool.create", r.Name, "--overwrite is for --build")
	case r.Build:
		return buildable(t)
	}
	return nil
}

func buildable(t driver.Type) error {
	if t.Build == nil {
		return errs.New(errs.Invalid, "pool.build", t.Name, "there is nothing to build for a pool of driver %s", t.Name).
			WithHint("tarn pool create and tarn pool start find its storage as it is")
	}
	return nil
}

func buildNote(p disk.Pool, a poolArgs) string {
	if a.Overwrite {
		return "builds the storage of pool " + p.Name + " on " + p.Source.String() + ", whatever is there"
	}
	return "builds the storage of pool " + p.Name + " on " + p.Source.String() + ", unless something is there"
}

// poolBuildRequest is a request to build a pool.
type poolBuildRequest struct {
	Pool  string        `json:"pool"`
	Build api.PoolBuild `json:"build"`
}

// PoolBuild makes the storage of a pool that is not active from raw material,
// for its next start to prepare. A pool with volumes on record is refused.
func (e *Engine) PoolBuild(ctx context.Context, o api.Options, ref string, b api.PoolBuild) (api.Outcome, error) {
	request := poolBuildRequest{ref, b}
	if out, err := e.seen(ctx, o, "pool.build", request); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	t, err := e.driverType(r.Driver)
	if err == nil {
		err = buildable(t)
	}
	if err != nil {
		return api.Outcome{}, err
	}
	a := poolArgs{Pool: r.ID, Overwrite: b.Overwrite, Defined: true}
	d := newDraft("pool.build", poolSubject(r))
	d.request, d.resources = request, append(placesOf(r), "pool:"+string(r.ID))
	d.steps = []journal.Step{journal.NewStep(stepPoolBuild, a)}
	d.notes = []string{buildNote(r, a)}
	d.intent = func(ctx context.Context, tx *store.Tx) error { return e.intendBuild(ctx, tx, r.ID) }
	return e.submit(ctx, o, d)
}

// intendBuild refuses a pool that is in use.
func (e *Engine) intendBuild(ctx context.Context, tx *store.Tx, id disk.PoolID) error {
	r, err := tx.Pools.Get(ctx, id)
	if err != nil {
		return err
	}
	if r.State != disk.PoolInactive {
		return errs.New(errs.Busy, "pool.build", r.Name, "pool %s is %s", r.Name, r.State).WithHint("tarn pool stop %s", r.Name)
	}
	n, err := tx.Volumes.Count(ctx, store.Eq("pool_id", id))
	if err != nil {
		return err
	}
	if n > 0 {
		return errs.New(errs.Conflict, "pool.build", r.Name, "%d volumes of the pool are on record", n).
			WithHint("start the pool and delete them, or forget it: tarn pool delete %s --keep-data", r.Name)
	}
	return nil
}

// unprepare records that nothing of a pool is in its storage any more.
func (e *Engine) unprepare(ctx context.Context, tx *store.Tx, id disk.PoolID) error {
	r, err := tx.Pools.Get(ctx, id)
	if err != nil || unprepared(r) {
		return err
	}
	if err := e.moveDomain(ctx, tx, id, unsettled(id)); err != nil {
		return err
	}
	if r, err = tx.Pools.Get(ctx, id); err != nil {
		return err
	}
	r.Identity = ""
	return tx.Pools.Update(ctx, r)
}

// unsettled is the identity of the capacity domain of a pool whose storage has
// not told it yet.
func unsettled(id disk.PoolID) string { return "new:" + string(id) }

// poolBuilt is what pool.build/v1 did.
type poolBuilt struct {
	Kept bool `json:"kept,omitempty"` // the storage is the pool's as it is
}

// poolBuild makes a pool's storage: step pool.build/v1. What was built stays when
// the operation is undone: what was there before cannot come back.
func (e *Engine) poolBuild() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			r, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, a.Pool) })
			if err != nil {
				return err
			}
			out, err := e.buildPool(ctx, r, a.Overwrite)
			if err != nil {
				return errs.Wrap(err, "pool.build", r.Name)
			}
			return c.SetOutput(out)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a poolArgs
			var out poolBuilt
			if err := errors.Join(c.Args(&a), c.Output(&out)); err != nil {
				return err
			}
			if !out.Kept {
				if err := e.unprepare(ctx, tx, a.Pool); err != nil {
					return err
				}
			}
			return e.emit(ctx, tx, "pool.built", c.Op.Subject, c.Op.ID)
		},
		undoCommit: undoMaking,
	}
}

// buildPool builds the storage of r. Unless it overwrites, storage that carries
// a marker stays as it is: r's own is built already, another's is refused.
func (e *Engine) buildPool(ctx context.Context, r disk.Pool, overwrite bool) (poolBuilt, error) {
	t, err := e.driverType(r.Driver)
	if err != nil {
		return poolBuilt{}, err
	}
	if !unprepared(r) && !overwrite {
		m, err := pool.ReadMarker(ctx, t, pool.Config(r))
		if err == nil {
			found := r
			found.ID = m.Pool.ID
			if err := e.pools.rest(ctx, t, found); err != nil {
				return poolBuilt{}, err
			}
			if m.Pool.ID != r.ID {
				return poolBuilt{}, errs.New(errs.Conflict, "pool.build", r.Name, "%s holds pool %q (%s), not this one (%s)", r.Where(), m.Pool.Name, m.Pool.ID, r.ID).
					WithHint("--overwrite destroys it")
			}
			return poolBuilt{Kept: true}, nil
		}
		if errors.Is(err, errs.Corrupt) || errors.Is(err, errs.Version) { // its storage was set going
			return poolBuilt{}, errors.Join(err, e.pools.rest(ctx, t, r))
		}
	}
	return poolBuilt{}, t.Build(ctx, pool.Config(r), overwrite)
}

// poolDefine records a pool: step pool.define/v1.
func (e *Engine) poolDefine() journal.Handler[*store.Tx] {
	return simple{
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			m, err := markerOf(ctx, tx, disk.PoolID(c.Op.Subject.ID))
			if err != nil {
				return err
			}
			a.setDomain(&m.Domain) // its own, until its first start
			m.Pool.State = disk.PoolInactive
			return errors.Join(tx.Domains.Update(ctx, m.Domain), tx.Pools.Update(ctx, m.Pool), e.emit(ctx, tx, "pool.defined", c.Op.Subject, c.Op.ID))
		},
		undoCommit: undoMaking,
	}
}

// undoMaking takes the record of a pool away whose making failed, unless it was
// on record before.
func undoMaking(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	var a poolArgs
	if err := c.Args(&a); err != nil || a.Defined {
		return err
	}
	return forgetPool(ctx, tx, a.Pool)
}

// startDefined makes a pool active for the first time. The settings it was
// defined with become its domain's, the defaults do not.
func (e *Engine) startDefined(ctx context.Context, o api.Options, ref string, r disk.Pool) (api.Outcome, error) {
	own, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Domain, error) { return tx.Domains.Get(ctx, r.DomainID) })
	if err != nil {
		return api.Outcome{}, err
	}
	a := poolArgs{Pool: r.ID, Defined: true}
	if own.Overcommit != defaultOvercommit {
		a.Overcommit = own.Overcommit
	}
	if own.Reserve != (disk.Reserve{Permille: defaultReserve}) {
		a.Reserve = &own.Reserve
	}
	d := newDraft("pool.start", poolSubject(r))
	d.request, d.resources = named{ref}, append(placesOf(r), "pool:"+string(r.ID))
	d.steps = []journal.Step{journal.NewStep(stepPoolPrepare, a)}
	d.notes = []string{"sets " + r.Where() + " aside as pool " + r.Name}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		now, err := tx.Pools.Get(ctx, r.ID)
		if err == nil && (now.State != disk.PoolInactive || !unprepared(now)) {
			err = errs.New(errs.Busy, "pool.start", r.Name, "pool %s changed meanwhile", r.Name).WithHint("try again")
		}
		return err
	}
	return e.submit(ctx, o, d)
}

// PoolRefresh looks at a pool's space, at what others have in it and at what its
// volumes take, again now.
func (e *Engine) PoolRefresh(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "pool.refresh", named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	if _, err := e.pool(r); err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("pool.refresh", poolSubject(r))
	d.request, d.resources = named{ref}, []string{"pool:" + string(r.ID)}
	d.steps = []journal.Step{journal.NewStep(stepPoolRefresh, poolArgs{Pool: r.ID})}
	d.notes = []string{"measures the space of pool " + r.Name}
	return e.submit(ctx, o, d)
}

// poolRefresh measures a pool: step pool.refresh/v1. Measurements are
// information: there is nothing to take back.
func (e *Engine) poolRefresh() journal.Handler[*store.Tx] {
	return simple{
		final: true,
		act: func(ctx context.Context, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			r, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, a.Pool) })
			if err != nil {
				return err
			}
			p, err := e.pool(r)
			if err == nil {
				_, err = p.Stat(ctx) // also where another pool of the domain would answer
			}
			if err == nil {
				e.space.forget(r.DomainID)
				_, err = e.measure(ctx, r.DomainID)
			}
			if err != nil {
				return err
			}
			return e.remeasure(ctx, r.ID)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			return e.emit(ctx, tx, "pool.refreshed", c.Op.Subject, c.Op.ID)
		},
	}
}

// remeasure records what the volumes of pool id take.
func (e *Engine) remeasure(ctx context.Context, id disk.PoolID) error {
	for after := ""; ; {
		vols, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (vols []disk.Volume, err error) {
			vols, after, err = tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("pool_id", id)}, After: after, Limit: doctorPage})
			return vols, err
		})
		if err != nil {
			return err
		}
		measured := e.measureVolumes(ctx, vols)
		err = e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			for id, n := range measured {
				v, err := optionally(tx.Volumes.Get(ctx, id))
				if err == nil && v != nil && v.Allocated != n {
					v.Allocated = n
					err = tx.Volumes.Update(ctx, *v)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil || after == "" {
			return err
		}
	}
}

// Drivers lists the pool technologies of this build and what they declare.
func (e *Engine) Drivers(context.Context) (api.List[api.Driver], error) {
	var l api.List[api.Driver]
	for _, t := range e.cfg.Types {
		c := t.Capabilities
		l.Items = append(l.Items, api.Driver{
			Name: t.Name, Description: c.Description, Formats: words(c.Formats), Clone: string(c.Clone), Snapshot: string(c.Snapshot),
			Shrink: c.Shrink, LiveGrow: c.LiveGrow, GrowFrozen: c.GrowFrozen, HolesKnown: c.HolesKnown, Thick: c.Thick, Build: t.Build != nil,
			SizeUnit: c.SizeUnit, MaxName: c.MaxName, MaxVolumes: c.MaxVolumes, Needs: words(t.Needs), Takes: words(t.Takes),
		})
	}
	return l, nil
}

// words returns all as plain text, never nil.
func words[T ~string](all []T) []string {
	out := make([]string, 0, len(all))
	for _, w := range all {
		out = append(out, string(w))
	}
	return out
}
