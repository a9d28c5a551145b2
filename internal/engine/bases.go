package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// baseIn returns the base of a pool that holds content, in any state. One that was
// adopted is none of an image's.
func baseIn(ctx context.Context, tx *store.Tx, p disk.PoolID, content string) (disk.Volume, error) {
	return tx.Volumes.One(ctx, store.Eq("pool_id", p), store.Eq("kind", disk.KindBase), store.Eq("content", content), store.Eq("adopted", false))
}

// ensureArgs is what base.ensure/v1 sees to.
type ensureArgs struct {
	Image disk.ImageID `json:"image"`
	Pool  disk.PoolID  `json:"pool"`
}

// baseEnsure sees to it that an image's base is in a pool: step base.ensure/v1.
// It makes no base itself: it joins the operation that does, or starts it, so
// that however many disks wait for one base it is copied once.
func (e *Engine) baseEnsure() journal.Handler[*store.Tx] {
	return simple{act: func(ctx context.Context, c *journal.Call) error {
		var a ensureArgs
		if err := c.Args(&a); err != nil {
			return err
		}
		return e.ensureBase(ctx, c, a)
	}}
}

func (e *Engine) ensureBase(ctx context.Context, c *journal.Call, a ensureArgs) error {
	for {
		made, err := e.ensureOnce(ctx, c, a)
		if made || err != nil {
			return err
		}
	}
}

// ensureOnce looks for the base, and makes or awaits it. It reports whether the
// base was ready.
func (e *Engine) ensureOnce(ctx context.Context, c *journal.Call, a ensureArgs) (bool, error) {
	var i disk.Image
	var p disk.Pool
	base, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (v disk.Volume, err error) {
		if i, err = tx.Images.Get(ctx, a.Image); err != nil {
			return v, errs.New(errs.Conflict, "disk.create", string(a.Image), "the image was deleted meanwhile: %w", err)
		}
		if p, err = tx.Pools.Get(ctx, a.Pool); err != nil {
			return v, errs.New(errs.Conflict, "disk.create", string(a.Pool), "the pool was deleted meanwhile: %w", err)
		}
		return baseIn(ctx, tx, p.ID, i.Content)
	})
	switch {
	case err == nil && base.State == disk.VolumeReady:
		return true, nil
	case err == nil && base.State == disk.VolumeDeleting:
		return false, e.awaitDeleted(ctx, c, base)
	case err == nil && base.State == disk.VolumeCreating:
		return false, e.copied(e.await(ctx, c, journal.ID(base.CreatedBy)))
	case err == nil && base.State != disk.VolumeLost:
		return false, damaged("disk.create", base)
	case err != nil && !errors.Is(err, errs.NotFound):
		return false, err
	}
	d, err := e.draftBase(ctx, i, p, base, false)
	if err != nil {
		return false, err
	}
	out, err := e.submit(ctx, api.Options{}, d)
	if errors.Is(err, errs.Busy) || errors.Is(err, errs.Exists) {
		return false, nil // somebody was faster: look again
	}
	if err != nil {
		return false, err
	}
	return false, e.copied(e.await(ctx, c, journal.ID(out.Operation.ID)))
}

// awaitDeleted waits until the operation that deletes a base has ended: then
// there is none, and one can be made.
func (e *Engine) awaitDeleted(ctx context.Context, c *journal.Call, base disk.Volume) error {
	worked := false
	err := c.Idle(ctx, func(ctx context.Context) (err error) {
		worked, err = e.awaitVolume(ctx, base.ID)
		return err
	})
	if err != nil || worked {
		return err
	}
	now, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) { return tx.Volumes.Get(ctx, base.ID) })
	if err == nil && now.State == disk.VolumeDeleting {
		return errs.New(errs.Busy, "disk.create", base.Name, "base %s is recorded as deleting, and no operation is at work on it", base.Name).
			WithHint("tarn doctor --repair ends it")
	}
	return ignore(errs.NotFound, err)
}

// copied is joined for a copy that somebody else may cancel: who still needs it
// looks again.
func (e *Engine) copied(op journal.Operation, err error) error {
	if err == nil && op.State == journal.Cancelled {
		return nil
	}
	return e.joined(op, err)
}

// joined turns the end of an operation that another waited for into the
// waiter's error.
func (e *Engine) joined(op journal.Operation, err error) error {
	if err != nil || op.State == journal.Done {
		return err
	}
	if op.Error != nil {
		return errs.New(op.Error.Kind, op.Error.Op, op.Error.Subject, "%s", op.Error.Message).WithHint("%s", op.Error.Hint)
	}
	return errs.New(errs.Cancelled, op.Kind, op.Subject.Name, "the operation that this one waited for was %s", op.State)
}

// await waits until operation id has ended and shows its progress as c's own.
// A step that waits holds no worker's place.
func (e *Engine) await(ctx context.Context, c *journal.Call, id journal.ID) (op journal.Operation, err error) {
	err = c.Idle(ctx, func(ctx context.Context) error {
		for {
			op, err = e.runner.Wait(ctx, id, 200*time.Millisecond)
			if err != nil || op.State.Final() {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			c.Progress(op.Progress.Done, op.Progress.Total, op.Progress.Unit)
		}
	})
	return op, err
}

// copyArgs is what base.copy/v1 makes, and the record as it was of a base out of
// use that it makes again.
type copyArgs struct {
	Volume disk.VolumeID `json:"volume"`
	From   disk.VolumeID `json:"from"`
	Lost   *disk.Volume  `json:"lost,omitempty"`
}

// draftBase drafts the operation that copies an image's base into pool p from
// another, to stay whatever its age if it is pinned.
func (e *Engine) draftBase(ctx context.Context, i disk.Image, p disk.Pool, had disk.Volume, pinned bool) (draft, error) {
	if _, err := e.pool(p); err != nil {
		return draft{}, err
	}
	from, err := e.anyBase(ctx, i)
	if err != nil {
		return draft{}, err
	}
	return e.draftCopy(ctx, i, p, from, had, pinned)
}

// draftCopy drafts the operation that copies base from into pool p. A base out of
// use that the pool had is made again under its record, so that what reads from
// it reads the same content again (I6).
func (e *Engine) draftCopy(ctx context.Context, i disk.Image, p disk.Pool, from, had disk.Volume, pinned bool) (draft, error) {
	d := newDraft("cache.add", imageSubject(i))
	opened, err := e.pool(p)
	if err != nil {
		return d, err
	}
	space, err := e.measure(ctx, p.DomainID)
	if err != nil {
		return d, err
	}
	now := e.now()
	v := disk.Volume{
		ID: disk.VolumeID(newID()), PoolID: p.ID, Name: BaseName(i.Content, diskfmt.Raw), Kind: disk.KindBase, State: disk.VolumeCreating, Format: diskfmt.Raw,
		VirtualSize: disk.RoundUp(from.ContentSize, opened.Caps.SizeUnit), RequestedSize: from.ContentSize, ContentSize: from.ContentSize,
		Content: i.Content, Extents: from.Extents, Pinned: pinned, Committed: from.Committed, Writing: from.Allocated,
		CreatedBy: disk.OperationID(d.id), CreatedAt: now, UpdatedAt: now,
	}
	a := copyArgs{Volume: v.ID, From: from.ID}
	if had.ID != "" {
		if err := vacant(ctx, opened, p, had); err != nil {
			return d, err
		}
		a.Volume, a.Lost = had.ID, &had
	}
	d.resources = []string{"base:" + string(p.ID) + ":" + i.Content}
	d.steps = []journal.Step{journal.NewStep(stepBaseCopy, a)}
	d.notes = []string{"copies " + disk.FormatSize(from.Allocated) + " into pool " + p.Name}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		need := plan.Need{Commit: max(0, from.Committed-had.Committed), Write: from.Allocated}
		if err := admit(ctx, tx, p.DomainID, space, need); err != nil {
			return errs.Wrap(err, "cache.add", i.Name)
		}
		if a.Lost != nil {
			return remake(ctx, tx, had, v)
		}
		return tx.Volumes.Insert(ctx, v)
	}
	return d, nil
}

// damaged refuses a base that is out of use.
func damaged(op string, base disk.Volume) error {
	return errs.New(errs.Corrupt, op, base.Name, "base %s is recorded as %s: it does not hold what was imported", base.Name, base.State).
		WithHint("tarn doctor --scrub --repair makes it again")
}

// anyBase returns a ready base of image i in an active pool.
func (e *Engine) anyBase(ctx context.Context, i disk.Image) (disk.Volume, error) {
	bases, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Volume, error) { return basesOf(ctx, tx, i.Content) })
	if err != nil {
		return disk.Volume{}, err
	}
	for _, b := range bases {
		if _, ok := e.pools.get(b.PoolID); ok && b.State == disk.VolumeReady {
			return b, nil
		}
	}
	if len(bases) > 0 && !slices.ContainsFunc(bases, func(b disk.Volume) bool { return !(around{volume: b}).out() }) {
		return disk.Volume{}, errs.New(errs.Corrupt, "image", i.Name, "every copy of the content of image %s is lost or damaged", i.Name).
			WithHint("tarn doctor --scrub --repair fetches it again if it is known from where; importing the same bytes under another name makes it again, too")
	}
	return disk.Volume{}, noBase(i)
}

func noBase(i disk.Image) error {
	return errs.New(errs.Unavailable, "image", i.Name, "no active pool holds the content of image %s", i.Name).
		WithHint("start the pool that holds it: tarn image show %s", i.Name)
}

// baseCopy copies a base from one pool to another and verifies the content:
// step base.copy/v1.
func (e *Engine) baseCopy() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a copyArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			v, err := e.copyBase(ctx, c, a)
			if err != nil {
				return errs.Wrap(err, "cache.add", c.Op.Subject.Name)
			}
			return c.SetOutput(v)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var v disk.Volume
			if err := c.Output(&v); err != nil {
				return err
			}
			return errors.Join(tx.Volumes.Update(ctx, v), e.emit(ctx, tx, "volume.ready", volumeSubject(v), c.Op.ID))
		},
		undo: func(ctx context.Context, c *journal.Call) error {
			var a copyArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			if a.Lost == nil {
				return e.volumeRemove(ctx, c)
			}
			return e.takeBackBase(ctx, c, a.Volume, *a.Lost)
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a copyArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			if a.Lost != nil {
				return loseAgain(ctx, tx, *a.Lost, c.Handed() == true)
			}
			return e.forgetVolume(ctx, tx, a.Volume, c.Op.ID)
		},
	}
}

func (e *Engine) copyBase(ctx context.Context, c *journal.Call, a copyArgs) (disk.Volume, error) {
	var to, from disk.Volume
	side, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (s disk.Sidecar, err error) {
		if from, err = tx.Volumes.Get(ctx, a.From); err != nil {
			return s, err
		}
		s, err = sidecarOf(ctx, tx, a.Volume)
		return s, err
	})
	if err != nil {
		return to, err
	}
	src, err := e.poolOf(ctx, from.PoolID)
	if err != nil {
		return to, err
	}
	dst, err := e.poolOf(ctx, side.Volume.PoolID)
	if err != nil {
		return to, err
	}
	side.Volume.Writing, side.Volume.UpdatedAt = 0, e.now()
	defer e.reading.take(from.PoolID)()
	m := pool.Making{Method: plan.Generate, Fill: func(ctx context.Context, dev driver.Device) error {
		err := copyVerified(ctx, c, src, from, dev)
		if err == nil && a.Lost != nil {
			err = e.unread(ctx, *a.Lost) // the last moment
		}
		return err
	}}
	if a.Lost != nil {
		return dst.Replace(ctx, side, *a.Lost, m)
	}
	return dst.Create(ctx, side, m)
}

// shortened is a container without what its technology rounded it up by.
type shortened struct {
	driver.Device
	size int64
}

func (s shortened) Size() int64 { return s.size }

// copyVerified copies a base's bytes and proves that what arrived is the
// recorded content (I6).
func copyVerified(ctx context.Context, c *journal.Call, src *pool.Pool, from disk.Volume, dst driver.Device) error {
	in, err := src.Driver.Open(ctx, pool.Ref(from), driver.Base)
	if err != nil {
		return err
	}
	defer in.Close()
	var bytes blkio.Source = in
	if in.Size() > dst.Size() {
		bytes = shortened{in, dst.Size()}
	}
	if err := blkio.Copy(ctx, dst, bytes, func(done int64) { c.Progress(done, 2*from.VirtualSize, "bytes") }); err != nil {
		return err
	}
	sum, err := blkio.SumSource(ctx, dst, from.ContentSize, func(done int64) { c.Progress(from.VirtualSize+done, 2*from.VirtualSize, "bytes") })
	if err != nil {
		return err
	}
	if sum != from.Content {
		return errs.New(errs.Corrupt, "cache.add", from.Name, "the base reads as %s and is recorded as %s", sum, from.Content).WithHint("run tarn doctor")
	}
	return nil
}
