package engine

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/generate"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// volumeArgs names the volume a step works on. Undoing the making of an
// instance's last volume removes the instance as well, if the operation added
// it.
type volumeArgs struct {
	Volume disk.VolumeID   `json:"volume"`
	Added  disk.InstanceID `json:"added,omitempty"`
}

// diskRecords is everything recorded about one disk.
type diskRecords struct {
	pool     disk.Pool
	volume   disk.Volume
	disk     disk.Disk
	instance disk.Instance
	lease    *disk.Lease
}

func (r diskRecords) sidecar() disk.Sidecar {
	d, i := r.disk, r.instance
	return disk.Sidecar{Volume: r.volume, Disk: &d, Instance: &i, Lease: r.lease}
}

// recordsOf collects the records around volume id.
func recordsOf(ctx context.Context, tx *store.Tx, id disk.VolumeID) (r diskRecords, err error) {
	if r.volume, err = tx.Volumes.Get(ctx, id); err != nil {
		return r, err
	}
	if r.pool, err = tx.Pools.Get(ctx, r.volume.PoolID); err != nil {
		return r, err
	}
	if r.disk, err = tx.Disks.One(ctx, store.Eq("volume_id", id)); err != nil {
		return r, err
	}
	if r.lease, err = leaseOf(ctx, tx, id); err != nil {
		return r, err
	}
	r.instance, err = tx.Instances.Get(ctx, r.disk.InstanceID)
	return r, err
}

// volumeCreate makes one recorded volume: step volume.create/v1.
func (e *Engine) volumeCreate() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a volumeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			r, err := e.toMake(ctx, a.Volume)
			if err != nil {
				return err
			}
			v, err := e.makeVolume(ctx, c, r)
			if err != nil {
				return errs.Wrap(err, "disk.create", r.instance.Name+"/"+r.disk.Name)
			}
			c.Hand(v)
			return nil
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			v := c.Handed().(disk.Volume)
			if err := tx.Volumes.Update(ctx, v); err != nil {
				return err
			}
			return e.emit(ctx, tx, "volume.ready", volumeSubject(v), c.Op.ID)
		},
		undo: e.volumeRemove,
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			if err := e.volumeForget(ctx, tx, c); err != nil {
				return err
			}
			return e.forgetUnmade(ctx, tx, c)
		},
	}
}

// forgetUnmade removes the records of the volumes that c's operation was going
// to make and never reached, and the instance that it added once it has no disk.
func (e *Engine) forgetUnmade(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	for _, s := range c.Op.Steps {
		if s.Kind != stepVolumeCreate {
			continue
		}
		var a volumeArgs
		step := journal.Call{Op: c.Op, Step: &s}
		err := step.Args(&a)
		if err == nil && s.State == journal.StepPending {
			err = e.forgetVolume(ctx, tx, a.Volume, c.Op.ID)
		}
		if err == nil {
			err = unplace(ctx, tx, a.Added)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// toMake returns what the making of volume id needs to know.
func (e *Engine) toMake(ctx context.Context, id disk.VolumeID) (making, error) {
	if m, ok := e.planned.take(id); ok {
		m.first = true
		return m, nil
	}
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (m making, err error) {
		if m.diskRecords, err = recordsOf(ctx, tx, id); err != nil || m.volume.Backing == nil {
			return m, err
		}
		base, err := tx.Volumes.Get(ctx, m.volume.Backing.VolumeID)
		m.base = &base
		return m, err
	})
}

// makeVolume performs the making that the records of r plan, and returns the
// volume as it is then.
func (e *Engine) makeVolume(ctx context.Context, c *journal.Call, r making) (disk.Volume, error) {
	if r.disk.Source.Kind == "image" {
		return e.CreateFromImage(ctx, c, r)
	}
	g := generate.Request{Kind: generate.Kind(r.disk.Source.Kind), FS: generate.FS(r.disk.Source.FS), Label: r.disk.Source.Label}
	if r.disk.Role == disk.RoleConfig {
		g.Kind, g.Label, g.Time = generate.ConfigDrive, r.disk.Source.Kind, r.disk.CreatedAt
	}
	return e.CreateFromFunc(ctx, c, r, g)
}

// CreateFromImage makes a disk whose first content is an image's: a clone of
// the base, an overlay over it or a copy, as the recorded format and the pool's
// capabilities say. Its cost does not depend on the image's size, but for a
// copy. It is one of the two ways to make a disk.
func (e *Engine) CreateFromImage(ctx context.Context, c *journal.Call, r making) (disk.Volume, error) {
	p, err := e.pool(r.pool)
	if err != nil {
		return r.volume, err
	}
	made, err := plan.Volume(plan.VolumeRequest{Caps: p.Caps, Want: disk.FormatPolicy(r.volume.Format), Size: r.volume.RequestedSize,
		Base: r.base, Prealloc: r.disk.Prealloc == "full"})
	if err != nil {
		return r.volume, err
	}
	if made.Method != plan.Overlay {
		r.volume.Backing = nil // the reference guarded the base while it is read
	}
	return p.Create(ctx, e.finished(r.diskRecords), pool.Making{Method: made.Method, First: r.first, Base: r.base, Prealloc: r.disk.Prealloc == "full",
		Progress: func(done, total int64) { c.Progress(done, total, "bytes") }})
}

// CreateFromFunc makes a disk whose first content a generator writes. It is
// the other way to make a disk.
func (e *Engine) CreateFromFunc(ctx context.Context, c *journal.Call, r making, g generate.Request) (disk.Volume, error) {
	p, err := e.pool(r.pool)
	if err != nil {
		return r.volume, err
	}
	m := pool.Making{Method: plan.Blank, First: r.first, Prealloc: r.disk.Prealloc == "full"}
	if g.Kind != generate.Blank {
		m.Method = plan.Generate
		m.Fill = func(ctx context.Context, dev driver.Device) error { return e.fill(ctx, c, p, r.diskRecords, g, dev) }
	}
	v, err := p.Create(ctx, e.finished(r.diskRecords), m)
	if err == nil && g.Kind == generate.ConfigDrive {
		err = p.Driver.Delete(ctx, driver.Ref{ID: spoolID(v.ID)})
	}
	return v, err
}

// finished is the sidecar of a volume once it is made.
func (e *Engine) finished(r diskRecords) disk.Sidecar {
	r.volume.Writing, r.volume.UpdatedAt = 0, e.now()
	return r.sidecar()
}

// describer is a device that tools of the host can open by its descriptor.
type describer interface{ Descriptor() *os.File }

// fill runs a generator on a staged device.
func (e *Engine) fill(ctx context.Context, c *journal.Call, p *pool.Pool, r diskRecords, g generate.Request, dev driver.Device) error {
	t := generate.Target{W: dev, Size: r.volume.VirtualSize}
	if d, ok := dev.(describer); ok {
		t.File = d.Descriptor()
	} else if g.Kind == generate.FileSystem {
		return e.fillByScratch(ctx, g, dev, t.Size)
	}
	if g.Kind != generate.ConfigDrive {
		return g.Run(ctx, t, nil)
	}
	input, err := e.spooled(c)
	if err != nil {
		return err
	}
	g.Input = &input
	spool, err := p.Driver.Open(ctx, driver.Ref{ID: spoolID(r.volume.ID)}, driver.Staged)
	if err != nil {
		return err
	}
	defer spool.Close()
	return g.Run(ctx, t, io.NewSectionReader(spool, 0, input.Size))
}

// fillByScratch runs a generator that needs a descriptor for a device without one.
func (e *Engine) fillByScratch(ctx context.Context, g generate.Request, dev driver.Device, size int64) error {
	f, err := e.scratch()
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = g.Run(ctx, generate.Target{W: f, Size: size, File: f.Descriptor()}, nil)
	}
	if err == nil {
		err = fromScratch(ctx, dev, f)
	}
	return errors.Join(err, f.Close())
}

// volumeRemove takes back whatever making a volume left in its pool.
func (e *Engine) volumeRemove(ctx context.Context, c *journal.Call) error {
	var a volumeArgs
	if err := c.Args(&a); err != nil {
		return err
	}
	v, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) { return tx.Volumes.Get(ctx, a.Volume) })
	if errs.KindOf(err) == errs.NotFound && err != nil {
		return nil // never planned, or forgotten by an earlier undo
	}
	if err != nil {
		return err
	}
	p, err := e.poolOf(ctx, v.PoolID)
	if err != nil {
		return err
	}
	return e.makingRoom(ctx, p, func() error { return p.Delete(ctx, v) })
}

// volumeForget removes the records of a volume that is gone, its disk's
// included.
func (e *Engine) volumeForget(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	var a volumeArgs
	if err := c.Args(&a); err != nil {
		return err
	}
	return e.forgetVolume(ctx, tx, a.Volume, c.Op.ID)
}

func (e *Engine) forgetVolume(ctx context.Context, tx *store.Tx, id disk.VolumeID, op journal.ID) error {
	v, err := tx.Volumes.Get(ctx, id)
	if err != nil {
		if errs.KindOf(err) == errs.NotFound {
			return nil
		}
		return err
	}
	d, err := tx.Disks.One(ctx, store.Eq("volume_id", id))
	if err == nil {
		err = tx.Disks.Delete(ctx, d.ID)
	} else if errs.KindOf(err) == errs.NotFound {
		err = nil
	}
	if err != nil {
		return err
	}
	if err := tx.Leases.Delete(ctx, id); err != nil {
		return err
	}
	if err := tx.Volumes.Delete(ctx, id); err != nil {
		return err
	}
	return e.emit(ctx, tx, "volume.deleted", volumeSubject(v), op)
}

func volumeSubject(v disk.Volume) journal.Subject {
	return journal.Subject{Type: "volume", ID: string(v.ID), Name: v.Name}
}
