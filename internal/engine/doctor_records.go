package engine

import (
	"context"
	"errors"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// retryWait bounds how long a repair waits for an operation that it started.
const retryWait = 30 * time.Second

// pages calls do with every record of a table, a page to a transaction.
func pages[K ~string, R any](ctx context.Context, e *Engine, table func(*store.Tx) store.Table[K, R], do func(ctx context.Context, tx *store.Tx, rows []R) error) error {
	for after := ""; ; {
		err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
			rows, next, err := table(tx).List(ctx, store.Query{After: after, Limit: doctorPage})
			if err != nil {
				return err
			}
			after = next
			return do(ctx, tx, rows)
		})
		if err != nil || after == "" {
			return err
		}
	}
}

// checkReferences looks for records that refer to volumes that are not there.
func (c *checkup) checkReferences(ctx context.Context) error {
	var fs []finding
	err := c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		fs = nil
		disks, leases, err := tx.Dangling(ctx)
		for _, id := range disks {
			if err != nil {
				return err
			}
			var d disk.Disk
			d, err = tx.Disks.Get(ctx, id)
			fs = append(fs, found("I1", d.Serial, "disk %s (%s) has volume %s, which is not on record", d.Name, d.Serial, d.VolumeID).
				advise("if its pool still holds the volume: tarn pool delete POOL --keep-data, then tarn pool import"))
		}
		for _, id := range leases {
			if err != nil {
				return err
			}
			var l disk.Lease
			l, err = tx.Leases.Get(ctx, id)
			fs = append(fs, found("I8", string(id), "a lease of host %s is for volume %s, which is not on record", l.HostID, id).
				repair("removes the lease, which guards nothing", func(ctx context.Context) (string, error) {
					return "removed the lease, which guarded nothing", c.e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.Leases.Delete(ctx, id) })
				}))
		}
		return err
	})
	if err != nil {
		return err
	}
	c.add(ctx, fs...)
	return nil
}

// checkImages looks for images that nobody is importing, or that are nowhere.
func (c *checkup) checkImages(ctx context.Context) error {
	var fs []finding
	err := pages(ctx, c.e, func(tx *store.Tx) store.Table[disk.ImageID, disk.Image] { return tx.Images }, func(ctx context.Context, tx *store.Tx, rows []disk.Image) error {
		w, err := underway(ctx, tx)
		if err != nil {
			return err
		}
		for _, i := range rows {
			bases, err := basesOf(ctx, tx, i.Content)
			if err != nil {
				return err
			}
			switch {
			case w.ids[string(i.ID)]:
			case i.State != disk.ImageReady:
				fs = append(fs, c.unfinishedImage(i))
			case len(bases) == 0:
				fs = append(fs, found("I4", i.Name, "image %s is on record, and no pool on record holds its content", i.Name).
					advise("import it again, or take the pool that holds it into the records: tarn pool import"))
			}
		}
		return nil
	})
	c.add(ctx, fs...)
	return err
}

func (c *checkup) unfinishedImage(i disk.Image) finding {
	return found("I1", i.Name, "image %s is recorded as %s, and no operation is at work on it", i.Name, i.State).
		repair("forgets the image, whose import never ended", func(ctx context.Context) (string, error) {
			return "forgot the image, whose import had never ended", c.e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.Images.Delete(ctx, i.ID) })
		})
}

// residue explains a volume in an -ing state that no operation works on: what a
// lost journal left. A making is undone and a deletion finished; the resize of a
// container that has its recorded size never happened. An object that tarn did not
// make is let go: nothing tells whether it was to be deleted.
func (c *checkup) residue(a around, p *pool.Pool) finding {
	f := found("I1", a.name(), "volume %s is recorded as %s, and no operation is at work on it", a.volume.Name, a.volume.State)
	switch {
	case p == nil:
		return f.advise("start its pool: tarn pool start %s", a.pool.Name)
	case a.lease != nil:
		return f.advise("detach it first: tarn disk detach %s", a.name())
	case a.volume.State == disk.VolumeResizing:
		return f.repair("records the size its container has as it was, or takes it out of use", func(ctx context.Context) (string, error) { return c.e.settleResize(ctx, p, a.volume) })
	}
	if a.volume.Adopted {
		return f.repair("lets the object go, which tarn did not make", func(ctx context.Context) (string, error) { return c.e.letGo(ctx, a.volume) })
	}
	return f.repair("removes what is left of it", func(ctx context.Context) (string, error) { return c.e.clear(ctx, a.volume) })
}

// settleResize ends the resize of a volume whose operation is lost.
func (e *Engine) settleResize(ctx context.Context, p *pool.Pool, v disk.Volume) (string, error) {
	obj, err := p.Describe(ctx, pool.Ref(v))
	if err == nil {
		err = e.unlocked(ctx, v)
	}
	if err == nil {
		err = p.Examine(ctx, v, obj)
	}
	switch {
	case err == nil:
		if err := e.mark(ctx, v, disk.VolumeReady); err != nil {
			return "", err
		}
		return "recorded it as ready: its container still has the recorded size", e.renewSidecar(ctx, v.ID)
	case errors.Is(err, errs.Corrupt):
		return "recorded it as corrupt: its container no longer has the recorded size", e.mark(ctx, v, disk.VolumeCorrupt)
	}
	return "", err
}

// clear removes, as an operation of its own, what is left of a volume that was
// never finished or was being deleted.
func (e *Engine) clear(ctx context.Context, v disk.Volume) (string, error) {
	return "removed what was left of it", e.endVolume(ctx, v, journal.NewStep(stepVolumeDelete, volumeArgs{Volume: v.ID}))
}

// letGo is clear for an object that tarn did not make.
func (e *Engine) letGo(ctx context.Context, v disk.Volume) (string, error) {
	return "let the object go: it lies where it lay, and is foreign", e.endVolume(ctx, v, journal.NewStep(stepVolumeRelease, adoptArgs{v.ID}))
}

// endVolume ends a volume's record by one step.
func (e *Engine) endVolume(ctx context.Context, v disk.Volume, by journal.Step) error {
	d := newDraft("volume.clear", volumeSubject(v))
	d.resources = []string{"volume:" + string(v.ID)}
	d.steps = []journal.Step{by}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		now, err := tx.Volumes.Get(ctx, v.ID)
		if err != nil {
			return err
		}
		if now.State != v.State || now.Generation != v.Generation {
			return errs.New(errs.Busy, "doctor", v.Name, "the volume changed meanwhile").WithHint("try again")
		}
		now.State = disk.VolumeDeleting
		return tx.Volumes.Update(ctx, now)
	}
	return e.run(ctx, d)
}

// checkOperations looks for operations that stand still.
func (c *checkup) checkOperations(ctx context.Context) error {
	for _, s := range []journal.State{journal.Queued, journal.Running, journal.Undoing} {
		ops, err := c.operations(ctx, s)
		if err != nil {
			return err
		}
		for _, op := range ops {
			if op.Owner != string(c.e.cfg.Host.ID) || c.e.runner.Holds(op.ID) {
				continue
			}
			now, err := c.e.runner.Get(ctx, op.ID) // it may just have begun, or ended
			if err != nil {
				return err
			}
			if !now.State.Final() && !c.e.runner.Holds(op.ID) {
				c.add(ctx, found("I12", string(op.ID), "operation %s (%s %s) is recorded as %s, and this daemon does not run it", op.ID, op.Kind, op.Subject.Name, op.State).
					advise("restart tarnd: it resumes or undoes it"))
			}
		}
	}
	ops, err := c.operations(ctx, journal.NeedsOperator)
	for _, op := range ops {
		c.add(ctx, c.stuck(op))
	}
	if err != nil {
		return err
	}
	held, err := query(ctx, c.e, func(ctx context.Context, tx *store.Tx) ([]string, error) { return tx.HeldByEnded(ctx) })
	for _, r := range held {
		c.add(ctx, found("I12", r, "an operation that has ended still holds %s, so that no other can work on it", r).
			repair("releases it", func(ctx context.Context) (string, error) {
				return "released it", c.e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.ReleaseEnded(ctx) })
			}))
	}
	return err
}

func (c *checkup) operations(ctx context.Context, s journal.State) ([]journal.Operation, error) {
	return query(ctx, c.e, func(ctx context.Context, tx *store.Tx) ([]journal.Operation, error) {
		ops, _, err := tx.Operations.List(ctx, store.Query{Where: []store.Where{store.Eq("state", s)}})
		return ops, err
	})
}

// stuck explains an operation whose undo failed too often.
func (c *checkup) stuck(op journal.Operation) finding {
	why := "its undo failed"
	if op.Error != nil {
		why = op.Error.Message
	}
	return found("I12", string(op.ID), "operation %s (%s %s) could not be undone and asks for an operator: %s", op.ID, op.Kind, op.Subject.Name, why).
		repair("tries to undo it once more", func(ctx context.Context) (string, error) {
			if err := c.e.runner.Retry(ctx, op.ID); err != nil {
				return "", err
			}
			now, err := c.e.runner.Wait(ctx, op.ID, retryWait)
			if err == nil && (!now.State.Final() || now.State == journal.NeedsOperator) {
				err = errs.New(errs.Busy, "doctor", string(op.ID), "undoing it has not succeeded yet").WithHint("tarn operation show %s", op.ID)
			}
			return "undid it", err
		})
}
