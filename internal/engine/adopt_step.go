package engine

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// adoptArgs names the volume that an object becomes, or was.
type adoptArgs struct {
	Volume disk.VolumeID `json:"volume"`
}

// volumeAdopt takes a foreign object for a recorded volume: step
// volume.adopt/v1. Undoing it lets the object go again and never removes it.
func (e *Engine) volumeAdopt() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a adoptArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			v, err := e.adopt(ctx, c, a.Volume)
			if err != nil {
				return errs.Wrap(err, opAdopt, c.Op.Subject.Name)
			}
			c.Hand(v)
			return nil
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			v := c.Handed().(disk.Volume)
			if err := tx.Volumes.Update(ctx, v); err != nil {
				return err
			}
			e.measureAnew(ctx, tx, v.PoolID)
			return e.emit(ctx, tx, "volume.adopted", volumeSubject(v), c.Op.ID)
		},
		undo: e.volumeDisown,
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a adoptArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return e.forgetVolume(ctx, tx, a.Volume, c.Op.ID)
		},
	}
}

// measureAnew has the next measurement count again what is foreign in the domain
// of a pool.
func (e *Engine) measureAnew(ctx context.Context, tx *store.Tx, id disk.PoolID) {
	if p, err := tx.Pools.Get(ctx, id); err == nil {
		e.space.forget(p.DomainID)
	}
}

// adopt makes the object the volume that is on record, opens it once as its users
// will, and finds out what a base holds once nobody can write it any more.
func (e *Engine) adopt(ctx context.Context, c *journal.Call, id disk.VolumeID) (disk.Volume, error) {
	s, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Sidecar, error) { return sidecarOf(ctx, tx, id) })
	if err != nil {
		return s.Volume, err
	}
	p, err := e.poolOf(ctx, s.Volume.PoolID)
	if err != nil {
		return s.Volume, err
	}
	s.Volume.Writing, s.Volume.UpdatedAt = 0, s.Volume.CreatedAt
	v, err := p.Adopt(ctx, s)
	if err != nil {
		return v, err
	}
	chain, err := e.soundChain(ctx, v)
	if err != nil {
		return v, err
	}
	in, err := p.OpenChain(ctx, chain, driver.Base)
	if err != nil {
		return v, err
	}
	if v.Kind == disk.KindBase {
		v.Content, err = blkio.SumSource(ctx, in, v.ContentSize, func(done int64) { c.Progress(done, v.ContentSize, "bytes") })
	}
	if err := errors.Join(err, in.Close()); err != nil || v.Kind == disk.KindDisk {
		return v, err
	}
	s.Volume = v
	return v, p.WriteSidecar(ctx, s)
}

// volumeDisown makes a volume a foreign object again.
func (e *Engine) volumeDisown(ctx context.Context, c *journal.Call) error {
	var a adoptArgs
	if err := c.Args(&a); err != nil {
		return err
	}
	v, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) { return tx.Volumes.Get(ctx, a.Volume) })
	if err != nil {
		return ignore(errs.NotFound, err)
	}
	e.awaitDescribed(v.ID)
	p, err := e.poolOf(ctx, v.PoolID)
	if err != nil {
		return err
	}
	return p.Disown(ctx, v)
}

// volumeRelease lets an adopted volume go: step volume.release/v1.
func (e *Engine) volumeRelease() journal.Handler[*store.Tx] {
	return simple{
		final: true,
		act: func(ctx context.Context, c *journal.Call) error {
			return errs.Wrap(e.volumeDisown(ctx, c), opForget, c.Op.Subject.Name)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a adoptArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			v, err := tx.Volumes.Get(ctx, a.Volume)
			if err != nil {
				return ignore(errs.NotFound, err)
			}
			e.measureAnew(ctx, tx, v.PoolID)
			return errors.Join(e.forgetVolume(ctx, tx, v.ID, c.Op.ID), e.emit(ctx, tx, "volume.released", volumeSubject(v), c.Op.ID))
		},
	}
}

// VolumeRelease takes an adopted volume out of the records. The object stays
// where it lies, as it is, and is foreign again.
func (e *Engine) VolumeRelease(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, opForget, named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	var v disk.Volume
	var r disk.Pool
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if v, err = findVolume(ctx, tx, ref); err == nil {
			r, err = tx.Pools.Get(ctx, v.PoolID)
		}
		return err
	})
	if err != nil {
		return api.Outcome{}, err
	}
	name := r.Name + "/" + v.Name
	if !v.Adopted {
		return api.Outcome{}, errs.New(errs.Conflict, opForget, name, "tarn made this volume: only what was adopted can be released").
			WithHint("tarn disk export copies a disk's content out")
	}
	p, err := e.pool(r)
	if err != nil {
		return api.Outcome{}, err
	}
	if err := e.releasable(ctx, p, v, name); err != nil {
		return api.Outcome{}, err
	}
	d := newDraft(opForget, journal.Subject{Type: "volume", ID: string(v.ID), Name: name})
	d.request = named{ref}
	d.resources = []string{volumeResource(v.ID)}
	d.steps = []journal.Step{journal.NewStep(stepVolumeRelease, adoptArgs{v.ID})}
	d.notes = []string{"takes " + name + " out of the records; the object stays where it lies"}
	d.intent = func(ctx context.Context, tx *store.Tx) error { return e.intendRelease(ctx, tx, v, name) }
	return e.submit(ctx, o, d)
}

// releasable refuses a volume that anybody uses.
func (e *Engine) releasable(ctx context.Context, p *pool.Pool, v disk.Volume, name string) error {
	if v.State == disk.VolumeReady && v.Kind == disk.KindDisk {
		return e.notInUse(ctx, opForget, []disk.Volume{v})
	}
	if around := (around{volume: v}); v.State == disk.VolumeReady || around.out() {
		return nil
	}
	return usable(v, opForget, name)
}

// intendRelease marks the volume, unless others read from it.
func (e *Engine) intendRelease(ctx context.Context, tx *store.Tx, was disk.Volume, name string) error {
	v, err := tx.Volumes.Get(ctx, was.ID)
	if err != nil {
		return err
	}
	if v.State != was.State {
		return errs.New(errs.Busy, opForget, name, "the volume is %s by now", v.State).WithHint("try again")
	}
	readers, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("backing_id", v.ID)}, Limit: 1})
	if err != nil {
		return err
	}
	if len(readers) > 0 {
		return errs.New(errs.Busy, opForget, name, "volume %s reads from it", readers[0].Name).WithHint("release or delete that first")
	}
	if l, err := leaseOf(ctx, tx, v.ID); err != nil {
		return err
	} else if l != nil {
		return attachedError(ctx, tx, v)
	}
	v.State = disk.VolumeDeleting
	return tx.Volumes.Update(ctx, v)
}
