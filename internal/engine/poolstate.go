package engine

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// poolSet is a request to change a pool.
type poolSet struct {
	Pool string      `json:"pool"`
	Set  api.PoolSet `json:"set"`
}

// PoolSet changes a pool's name and policy, and its capacity domain's
// overcommit and reserve.
func (e *Engine) PoolSet(ctx context.Context, o api.Options, ref string, s api.PoolSet) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "pool.set", poolSet{ref, s}); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	p, err := e.pool(r)
	if err != nil {
		return api.Outcome{}, err
	}
	change, err := poolChange(s, p.Caps)
	if err != nil {
		return api.Outcome{}, err
	}
	// Every pool of the domain carries the domain's settings in its marker.
	pools := []disk.Pool{r}
	if s.Overcommit != nil || s.Reserve != nil {
		if pools, err = e.domainPools(ctx, r.DomainID); err != nil {
			return api.Outcome{}, err
		}
	}
	d := newDraft("pool.set", poolSubject(r))
	d.request, d.resources = poolSet{ref, s}, []string{"pool:" + string(r.ID)}
	a := sidecarArgs{}
	for _, other := range pools {
		if _, err := e.pool(other); err != nil {
			return api.Outcome{}, err
		}
		a.Pools = append(a.Pools, other.ID)
		if other.ID != r.ID {
			d.notes = append(d.notes, "overcommit and reserve also become those of pool "+other.Name)
		}
	}
	d.steps = []journal.Step{journal.NewStep(stepSidecars, a)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		m, err := markerOf(ctx, tx, r.ID)
		if err != nil {
			return err
		}
		change(&m)
		m.Pool.UpdatedAt = e.now()
		return errors.Join(tx.Pools.Update(ctx, m.Pool), tx.Domains.Update(ctx, m.Domain))
	}
	return e.submit(ctx, o, d)
}

func (e *Engine) domainPools(ctx context.Context, id disk.DomainID) ([]disk.Pool, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Pool, error) {
		pools, _, err := tx.Pools.List(ctx, store.Query{Where: []store.Where{store.Eq("domain_id", id)}})
		return pools, err
	})
}

// poolChange validates s and returns what it does to a pool and its domain.
func poolChange(s api.PoolSet, caps disk.Capabilities) (func(*disk.Marker), error) {
	var over int64
	var reserve disk.Reserve
	var formats []diskfmt.Format
	var err error
	if s.Name == nil && s.DiskFormat == nil && s.ImageFormats == nil && s.Overcommit == nil && s.Reserve == nil {
		return nil, errs.New(errs.Invalid, "pool.set", "", "nothing to change was given").WithHint("for example --overcommit 1.5")
	}
	if s.Name != nil {
		err = errors.Join(err, disk.CheckName("pool", *s.Name))
	}
	if s.DiskFormat != nil {
		err = errors.Join(err, checkPolicy(disk.FormatPolicy(*s.DiskFormat), caps))
	}
	if s.ImageFormats != nil && err == nil {
		formats, err = parseImageFormats(*s.ImageFormats)
	}
	if s.Overcommit != nil && err == nil {
		over, err = parseOvercommit(*s.Overcommit)
	}
	if s.Reserve != nil && err == nil {
		reserve, err = parseReserve(*s.Reserve)
	}
	return func(m *disk.Marker) {
		if s.Name != nil {
			m.Pool.Name = *s.Name
		}
		if s.DiskFormat != nil {
			m.Pool.DiskFormat = disk.FormatPolicy(*s.DiskFormat)
		}
		if s.ImageFormats != nil {
			m.Pool.ImageFormats = formats
		}
		if s.Overcommit != nil {
			m.Domain.Overcommit = over
		}
		if s.Reserve != nil {
			m.Domain.Reserve = reserve
		}
	}, err
}

// PoolStart makes a stopped or unavailable pool active.
func (e *Engine) PoolStart(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "pool.start", named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	if r.State == disk.PoolActive && e.answers(ctx, r) {
		return e.present(ctx, o, "pool.start", poolSubject(r), named{ref})
	}
	if r.State == disk.PoolInactive && unprepared(r) {
		return e.startDefined(ctx, o, ref, r)
	}
	return e.changePoolState(ctx, o, "pool.start", ref, r, disk.PoolActive)
}

// PoolStop makes a pool inactive: nothing touches its storage until it is
// started again. Attached disks keep running.
func (e *Engine) PoolStop(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "pool.stop", named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	if r.State == disk.PoolInactive {
		return e.present(ctx, o, "pool.stop", poolSubject(r), named{ref})
	}
	return e.changePoolState(ctx, o, "pool.stop", ref, r, disk.PoolInactive)
}

// stateArgs is the state that pool.open/v1 brings a pool to.
type stateArgs struct {
	Pool disk.PoolID    `json:"pool"`
	To   disk.PoolState `json:"to"`
	From disk.PoolState `json:"from"`
}

func (e *Engine) changePoolState(ctx context.Context, o api.Options, kind, ref string, r disk.Pool, to disk.PoolState) (api.Outcome, error) {
	d := newDraft(kind, poolSubject(r))
	d.request = named{ref}
	d.resources = []string{"pool:" + string(r.ID)}
	d.steps = []journal.Step{journal.NewStep(stepPoolOpen, stateArgs{r.ID, to, r.State})}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		if to != disk.PoolInactive {
			return nil
		}
		if n := e.reading.count(r.ID); n > 0 {
			return errs.New(errs.Busy, "pool.stop", r.Name, "%d exports or copies read from the pool", n).WithHint("wait until they are done")
		}
		return e.idle(ctx, tx, r)
	}
	return e.submit(ctx, o, d)
}

// idle refuses to stop a pool while operations are at work on its volumes. What
// an operation left that ended without success keeps no pool from being
// stopped: its storage may have to be mended first.
func (e *Engine) idle(ctx context.Context, tx *store.Tx, r disk.Pool) error {
	ops, err := unfinished(ctx, tx)
	if err != nil {
		return err
	}
	working := workOf(ops)
	for _, s := range []disk.VolumeState{disk.VolumeCreating, disk.VolumeResizing, disk.VolumeDeleting} {
		vols, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("pool_id", r.ID), store.Eq("state", s)}})
		if err != nil {
			return err
		}
		n := 0
		for _, v := range vols {
			if working.ids[string(v.ID)] {
				n++
			}
		}
		if n > 0 {
			return errs.New(errs.Busy, "pool.stop", r.Name, "%d volumes of the pool are %s", n, s).WithHint("wait for their operations: tarn operation list")
		}
		if left := len(vols) - n; left > 0 {
			e.cfg.Log.Warn("a pool is stopped with volumes that failed operations left", "pool", r.Name, "volumes", left, "state", s)
		}
	}
	return nil
}

// poolOpen opens or closes a pool: step pool.open/v1.
func (e *Engine) poolOpen() journal.Handler[*store.Tx] {
	set := func(ctx context.Context, tx *store.Tx, c *journal.Call, state func(stateArgs) disk.PoolState) error {
		var a stateArgs
		if err := c.Args(&a); err != nil {
			return err
		}
		p, err := tx.Pools.Get(ctx, a.Pool)
		if err != nil {
			return err
		}
		p.State = state(a)
		return errors.Join(tx.Pools.Update(ctx, p), e.emit(ctx, tx, "pool."+string(p.State), poolSubject(p), c.Op.ID))
	}
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a stateArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			if a.To == disk.PoolInactive {
				return errs.Wrap(e.pools.stop(ctx, a.Pool), "pool.stop", c.Op.Subject.Name)
			}
			r, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, a.Pool) })
			if err != nil {
				return err
			}
			e.space.forget(r.DomainID)
			if err := e.openPool(ctx, r); err != nil {
				return err
			}
			return e.followPool(ctx, r.ID)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			return set(ctx, tx, c, func(a stateArgs) disk.PoolState { return a.To })
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			return set(ctx, tx, c, func(a stateArgs) disk.PoolState { return a.From })
		},
	}
}

// poolDelete is a request to give a pool up.
type poolDelete struct {
	Pool     string `json:"pool"`
	KeepData bool   `json:"keep_data"`
}

// PoolDelete gives a pool up. Without keepData its storage is cleared of what
// tarn made, which needs that no disk is left in it; with keepData only the
// records go and tarn pool import brings them back.
func (e *Engine) PoolDelete(ctx context.Context, o api.Options, ref string, keepData bool) (api.Outcome, error) {
	request := poolDelete{ref, keepData}
	if out, err := e.seen(ctx, o, "pool.delete", request); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	vols, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Volume, error) { return volumesIn(ctx, tx, r.ID) })
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("pool.delete", poolSubject(r))
	d.request = request
	d.resources = []string{"pool:" + string(r.ID)}
	keepData = keepData || r.State == disk.PoolInactive && unprepared(r) // nothing of it is in the storage
	a := poolArgs{Pool: r.ID, KeepData: keepData}
	if !keepData {
		p, err := e.pool(r)
		if err == nil {
			err = allRecorded(ctx, p, r, vols)
		}
		if err != nil && r.State != disk.PoolDeleting { // which is closed already
			return api.Outcome{}, err
		}
		for _, v := range vols {
			d.steps = append(d.steps, journal.NewStep(stepVolumeDelete, volumeArgs{Volume: v.ID}))
			d.notes = append(d.notes, "deletes base "+v.Name)
		}
	} else {
		d.notes = append(d.notes, "forgets "+strconv.Itoa(len(vols))+" volumes; their data stays in "+r.Where())
	}
	d.steps = append(d.steps, journal.NewStep(stepPoolForget, a))
	d.intent = func(ctx context.Context, tx *store.Tx) error { return e.intendPoolDelete(ctx, tx, r, vols, keepData) }
	return e.submit(ctx, o, d)
}

// allRecorded refuses a pool that holds volumes of tarn's which are not on
// record: clearing it would leave them behind without an owner.
func allRecorded(ctx context.Context, p *pool.Pool, r disk.Pool, vols []disk.Volume) error {
	known := map[string]bool{}
	for _, v := range vols {
		known[v.Name] = true
	}
	for rec, err := range p.Sidecars(ctx) {
		if err != nil {
			return err
		}
		if known[rec.Name] {
			continue
		}
		if _, gone := p.Describe(ctx, driver.Ref{Name: rec.Name}); pool.IsSidecar(rec.Data) || !errors.Is(gone, errs.NotFound) {
			return errs.New(errs.Conflict, "pool.delete", r.Name, "the pool holds the volume %s, which is not on record", rec.Name).
				WithHint("tarn doctor --pool %s says what it is; --keep-data gives the pool up as it stands", r.Name)
		}
	}
	return nil
}

func volumesIn(ctx context.Context, tx *store.Tx, id disk.PoolID) ([]disk.Volume, error) {
	vols, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("pool_id", id)}})
	return vols, err
}

// intendPoolDelete refuses what would lose something, and marks the rest.
func (e *Engine) intendPoolDelete(ctx context.Context, tx *store.Tx, r disk.Pool, planned []disk.Volume, keepData bool) error {
	vols, err := volumesIn(ctx, tx, r.ID)
	if err != nil {
		return err
	}
	if len(vols) != len(planned) {
		return errs.New(errs.Busy, "pool.delete", r.Name, "volumes of the pool changed meanwhile").WithHint("try again")
	}
	for _, v := range vols {
		if err := deletableWithPool(ctx, tx, r, v, keepData); err != nil {
			return err
		}
		if !keepData {
			v.State = disk.VolumeDeleting
			if err := tx.Volumes.Update(ctx, v); err != nil {
				return err
			}
		}
	}
	r, err = tx.Pools.Get(ctx, r.ID)
	if err != nil {
		return err
	}
	r.State = disk.PoolDeleting
	return tx.Pools.Update(ctx, r)
}

// deletableWithPool refuses a volume that must not go, or be forgotten, with
// its pool.
func deletableWithPool(ctx context.Context, tx *store.Tx, r disk.Pool, v disk.Volume, keepData bool) error {
	if strings.HasSuffix(string(v.State), "ing") && v.State != disk.VolumeDeleting {
		return errs.New(errs.Busy, "pool.delete", r.Name, "volume %s is %s", v.Name, v.State).WithHint("wait for its operation: tarn operation list")
	}
	if l, err := leaseOf(ctx, tx, v.ID); err != nil {
		return err
	} else if l != nil {
		return attachedError(ctx, tx, v)
	}
	if keepData {
		return nil
	}
	if v.Kind == disk.KindDisk {
		return errs.New(errs.Busy, "pool.delete", r.Name, "the pool still holds disks, %s for one", v.Name).
			WithHint("delete them first, or give the pool up with --keep-data")
	}
	if v.Adopted {
		return errs.New(errs.Busy, "pool.delete", r.Name, "the pool still holds the base %s, which tarn did not make", v.Name).
			WithHint("tarn volume release %s/%s, or give the pool up with --keep-data", r.Name, v.Name)
	}
	named, err := tx.Images.Count(ctx, store.Eq("content", v.Content))
	if err != nil {
		return err
	}
	copies, err := tx.Volumes.Count(ctx, store.Eq("kind", disk.KindBase), store.Eq("content", v.Content), store.Eq("state", disk.VolumeReady), store.Eq("adopted", false))
	if err != nil {
		return err
	}
	if named > 0 && copies < 2 {
		return errs.New(errs.Busy, "pool.delete", r.Name, "the pool holds the last copy of an image (base %s)", v.Name).
			WithHint("delete the image first, or copy it: tarn cache add IMAGE --pool POOL")
	}
	return nil
}

// poolForget closes a pool, takes its marker away unless its data is kept, and
// removes the records: step pool.forget/v1.
func (e *Engine) poolForget() journal.Handler[*store.Tx] {
	return simple{
		final: true,
		act: func(ctx context.Context, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			if a.KeepData {
				return errs.Wrap(e.pools.stop(ctx, a.Pool), "pool.delete", c.Op.Subject.Name)
			}
			return errs.Wrap(e.clearPool(ctx, a), "pool.delete", c.Op.Subject.Name)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			if err := e.forgetVolumes(ctx, tx, a.Pool); err != nil {
				return err
			}
			return errors.Join(forgetPool(ctx, tx, a.Pool), e.emit(ctx, tx, "pool.deleted", c.Op.Subject, c.Op.ID))
		},
	}
}

// forgetVolumes removes the records of a pool's volumes and disks, of instances
// that have no disk elsewhere, and of images whose content is nowhere else.
func (e *Engine) forgetVolumes(ctx context.Context, tx *store.Tx, id disk.PoolID) error {
	vols, err := volumesIn(ctx, tx, id)
	if err != nil {
		return err
	}
	owners := map[disk.InstanceID]bool{}
	contents := map[string]bool{}
	lowestFirst(vols, func(v disk.Volume) disk.Volume { return v })
	for _, v := range slices.Backward(vols) { // what reads from a base before it
		contents[v.Content] = true
		d, err := tx.Disks.One(ctx, store.Eq("volume_id", v.ID))
		if err == nil {
			owners[d.InstanceID] = true
			err = tx.Disks.Delete(ctx, d.ID)
		} else if errors.Is(err, errs.NotFound) {
			err = nil
		}
		if err := errors.Join(err, tx.Volumes.Delete(ctx, v.ID)); err != nil {
			return err
		}
	}
	for id := range owners {
		left, err := disksOf(ctx, tx, id)
		if err == nil && len(left) == 0 {
			err = tx.Instances.Delete(ctx, id)
		}
		if err != nil {
			return err
		}
	}
	return forgetImages(ctx, tx, contents)
}

// forgetImages removes the images whose content no base holds any more.
func forgetImages(ctx context.Context, tx *store.Tx, contents map[string]bool) error {
	for content := range contents {
		bases, err := basesOf(ctx, tx, content)
		if err != nil {
			return err
		}
		if content == "" || len(bases) > 0 {
			continue
		}
		images, _, err := tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", content)}})
		if err != nil {
			return err
		}
		for _, i := range images {
			if err := tx.Images.Delete(ctx, i.ID); err != nil {
				return err
			}
		}
	}
	return nil
}
