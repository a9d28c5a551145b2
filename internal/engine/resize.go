package engine

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/generate"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// resizeArgs is a resize that was decided. Sizes are bytes, rounded to the
// pool's unit but for Requested.
type resizeArgs struct {
	Volume    disk.VolumeID `json:"volume"`
	From      int64         `json:"from"`
	To        int64         `json:"to"`
	Requested int64         `json:"requested"`
	WasAsked  int64         `json:"was_asked"`
}

// resizeRequest is a request to resize a disk.
type resizeRequest struct {
	Disk   string         `json:"disk"`
	Resize api.DiskResize `json:"resize"`
}

// DiskResize sets the size of a disk that nobody uses.
func (e *Engine) DiskResize(ctx context.Context, o api.Options, ref string, r api.DiskResize) (api.Outcome, error) {
	if (r.Size == 0) == (r.By == 0) || r.By < 0 {
		return api.Outcome{}, errs.New(errs.Invalid, "disk.resize", ref, "give either a size or an amount to grow by, above 0").WithHint("tarn disk resize DISK 40G, or +10G")
	}
	request := resizeRequest{ref, r}
	if out, err := e.seen(ctx, o, "disk.resize", request); out != nil || err != nil {
		return answer(out, err)
	}
	rec, err := e.diskByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	p, err := e.pool(rec.pool)
	if err != nil {
		return api.Outcome{}, err
	}
	want := r.Size
	if r.By > 0 {
		want = rec.volume.VirtualSize + r.By
	}
	subject := diskSubject(rec)
	if err := plan.CheckResize(rec.disk.Role, rec.volume.Format, rec.volume.VirtualSize, want, r.Shrink, rec.disk.Source.Kind == string(generate.Blank), p.Caps); err != nil {
		return api.Outcome{}, errs.Wrap(err, "disk.resize", subject.Name)
	}
	if err := usable(rec.volume, "disk.resize", subject.Name); err != nil {
		return api.Outcome{}, err
	}
	if err := e.notInUse(ctx, "disk.resize", []disk.Volume{rec.volume}); err != nil {
		return api.Outcome{}, err
	}
	a := resizeArgs{Volume: rec.volume.ID, From: rec.volume.VirtualSize, To: disk.RoundUp(want, p.Caps.SizeUnit), Requested: want, WasAsked: rec.volume.RequestedSize}
	space, err := e.measure(ctx, rec.pool.DomainID)
	if err != nil {
		return api.Outcome{}, err
	}
	// Decided once before the container is opened: not all full storage opens one.
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		_, err := admitResize(ctx, tx, a, rec.pool.DomainID, space)
		return err
	})
	if err != nil {
		return api.Outcome{}, err
	}
	if err := e.opens(ctx, p, rec.volume, driver.Read); err != nil {
		return api.Outcome{}, errs.Wrap(err, "disk.resize", subject.Name)
	}
	d := newDraft("disk.resize", subject)
	d.request = request
	d.resources = []string{"volume:" + string(a.Volume)}
	d.steps = []journal.Step{journal.NewStep(stepVolumeResize, a)}
	d.notes = []string{"resizes " + subject.Name + " from " + disk.FormatSize(a.From) + " to " + disk.FormatSize(a.To)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		return e.intendResize(ctx, tx, a, rec.pool.DomainID, space)
	}
	return e.submit(ctx, o, d)
}

// opens reports why a volume, or one that it reads from, is not what its record
// says, or nil. A container that a guest has damaged is refused by it before an
// operation starts on it, which could go neither on nor back.
func (e *Engine) opens(ctx context.Context, p *pool.Pool, v disk.Volume, m driver.Mode) error {
	chain, err := e.soundChain(ctx, v)
	if err != nil {
		return err
	}
	c, err := p.OpenChain(ctx, chain, m)
	if err != nil {
		return err
	}
	return c.Close()
}

// intendResize promises the space of a grow and marks the volume.
func (e *Engine) intendResize(ctx context.Context, tx *store.Tx, a resizeArgs, domain disk.DomainID, space measured) error {
	v, err := admitResize(ctx, tx, a, domain, space)
	if err != nil {
		return err
	}
	v.State = disk.VolumeResizing
	return tx.Volumes.Update(ctx, v)
}

// admitResize returns the volume with what a resize commits, or why it cannot be.
func admitResize(ctx context.Context, tx *store.Tx, a resizeArgs, domain disk.DomainID, space measured) (disk.Volume, error) {
	v, err := tx.Volumes.Get(ctx, a.Volume)
	if err != nil {
		return v, err
	}
	if v.State != disk.VolumeReady || v.VirtualSize != a.From {
		return v, errs.New(errs.Busy, "disk.resize", v.Name, "the volume is %s and changed meanwhile", v.State).WithHint("try again")
	}
	if l, err := leaseOf(ctx, tx, v.ID); err != nil {
		return v, err
	} else if l != nil {
		return v, attachedError(ctx, tx, v)
	}
	need := max(commitment(v.Format, a.To), v.Committed)
	if err := admit(ctx, tx, domain, space, plan.Need{Commit: need - v.Committed, Write: 1 << 20}); err != nil {
		return v, errs.Wrap(err, "disk.resize", v.Name)
	}
	v.Committed = need
	return v, nil
}

// commitment is the space a writable volume of a format may come to need.
func commitment(f diskfmt.Format, size int64) int64 {
	if f == diskfmt.Qcow2 {
		return size + plan.Qcow2Metadata(size)
	}
	return size
}

// volumeResize sets a volume's size, in the container and beside it: step
// volume.resize/v1. A failed one gives the volume its old size back.
func (e *Engine) volumeResize() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a resizeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return e.resizeTo(ctx, a, a.From, a.To, a.Requested)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a resizeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return e.recordSize(ctx, tx, a.Volume, a.To, a.Requested, c.Op.ID)
		},
		undo: func(ctx context.Context, c *journal.Call) error {
			var a resizeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			a, err := e.takeBack(ctx, a)
			if err != nil {
				return err
			}
			return errors.Join(c.SetOutput(a), e.resizeTo(ctx, a, a.To, a.From, a.WasAsked))
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a resizeArgs
			if err := c.Output(&a); err != nil {
				return err
			}
			return e.recordSize(ctx, tx, a.Volume, a.From, a.WasAsked, c.Op.ID)
		},
	}
}

// takeBack returns the resize that undoing a means. A shrink that has cut the
// container cannot be taken back: what was cut off is gone, and a container of
// the old size would say otherwise. Such an undo ends with the new size.
func (e *Engine) takeBack(ctx context.Context, a resizeArgs) (resizeArgs, error) {
	if a.To >= a.From {
		return a, nil
	}
	v, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) { return tx.Volumes.Get(ctx, a.Volume) })
	if err != nil {
		return a, err
	}
	p, err := e.poolOf(ctx, v.PoolID)
	if err != nil {
		return a, err
	}
	obj, err := p.Describe(ctx, pool.Ref(v))
	if err == nil && obj.Size <= a.To {
		a.From, a.WasAsked = a.To, a.Requested
	}
	return a, err
}

// resizeTo brings the container from one size to another, whichever it has,
// and writes the sidecar that says so.
func (e *Engine) resizeTo(ctx context.Context, a resizeArgs, from, to, requested int64) error {
	r, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (diskRecords, error) { return recordsOf(ctx, tx, a.Volume) })
	if err != nil {
		return err
	}
	p, err := e.pool(r.pool)
	if err != nil {
		return err
	}
	chain, err := e.chain(ctx, r.volume)
	if err != nil {
		return err
	}
	chain[0].VirtualSize = from
	if err := p.Resize(ctx, chain, to); err != nil {
		return errs.Wrap(err, "disk.resize", r.instance.Name+"/"+r.disk.Name)
	}
	resized(&r.volume, &r.disk, to, requested)
	return p.WriteSidecar(ctx, r.sidecar())
}

// resized is what the records say after a resize, and so the sidecar before it
// is recorded. Times are the state's own: a repeat writes the same bytes.
func resized(v *disk.Volume, d *disk.Disk, size, requested int64) {
	v.State, v.VirtualSize, v.RequestedSize, v.Committed = disk.VolumeReady, size, requested, commitment(v.Format, size)
	v.Generation++
	d.Size = size
}

func (e *Engine) recordSize(ctx context.Context, tx *store.Tx, id disk.VolumeID, size, requested int64, op journal.ID) error {
	r, err := recordsOf(ctx, tx, id)
	if err != nil {
		return err
	}
	resized(&r.volume, &r.disk, size, requested)
	if err := tx.Volumes.Update(ctx, r.volume); err != nil {
		return err
	}
	if err := tx.Disks.Update(ctx, r.disk); err != nil {
		return err
	}
	return e.emit(ctx, tx, "volume.resized", volumeSubject(r.volume), op)
}
