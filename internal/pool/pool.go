// Package pool is the portable side of a storage pool: it knows records,
// formats and self-descriptions, and drives whatever driver serves the pool.
// It refuses to decide what a volume should be: that is planned before, and
// recorded.
package pool

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/volio"
)

// Pool is one started pool. It is safe for concurrent use; callers keep two
// operations from working on one volume at a time.
type Pool struct {
	driver.Driver
	Caps disk.Capabilities
	name string
}

// Config returns what the driver of a pool with record r is opened with.
func Config(r disk.Pool) driver.Config {
	return driver.Config{ID: r.ID, Path: r.Path, Source: r.Source, Owner: r.Owner}
}

// Open starts the pool of record r. Storage that carries no marker, or another
// pool's, is refused: then something else is mounted there.
func Open(ctx context.Context, t driver.Type, r disk.Pool) (*Pool, error) {
	m, err := ReadMarker(ctx, t, Config(r))
	if errors.Is(err, errs.NotFound) {
		return nil, errs.New(errs.Unavailable, "pool.start", r.Name, "there is no pool at %s", r.Where()).
			WithHint("is its file system mounted?")
	}
	if err != nil {
		return nil, err
	}
	if m.Pool.ID != r.ID {
		return nil, errs.New(errs.Conflict, "pool.start", r.Name, "%s holds pool %q (%s), not this one (%s)", r.Where(), m.Pool.Name, m.Pool.ID, r.ID).
			WithHint("is the right file system mounted there?")
	}
	d, caps, err := t.Open(ctx, Config(r))
	if err != nil {
		return nil, err
	}
	return &Pool{Driver: d, Caps: caps, name: r.Name}, nil
}

// glancer is a pool behind bounds.
type glancer interface {
	glance(ctx context.Context) (driver.Usage, error)
}

// Glance is Stat for who only looks and must not wait: of a pool that hangs it is
// errs.Unavailable in less than half a second.
func (p *Pool) Glance(ctx context.Context) (driver.Usage, error) {
	if b, ok := p.Driver.(glancer); ok {
		return b.glance(ctx)
	}
	return p.Stat(ctx)
}

// Hangs reports whether the pool's storage may stop answering.
func (p *Pool) Hangs() bool {
	_, ok := p.Driver.(glancer)
	return ok
}

// ReadMarker reads the self-description of the storage at c.
func ReadMarker(ctx context.Context, t driver.Type, c driver.Config) (disk.Marker, error) {
	data, err := t.Marker(ctx, c)
	if err != nil {
		return disk.Marker{}, err
	}
	return OpenMarker(disk.Pool{Path: c.Path, Source: c.Source}.Where(), data)
}

// Ref returns how the driver knows volume v. A staged volume has no name yet.
func Ref(v disk.Volume) driver.Ref {
	return driver.Ref{ID: v.ID, Name: v.Name, BackendID: v.BackendID}
}

// Fill writes a volume's first content into a device that reads as zeroes and
// has the volume's virtual size.
type Fill func(ctx context.Context, dev driver.Device) error

// Making is how Create makes a volume: the method that was planned, the base
// for the methods that need one, and what fills a generated one.
type Making struct {
	Method   plan.Method
	First    bool // no earlier call can have left anything staged
	Base     *disk.Volume
	Prealloc bool
	Fill     Fill
	Progress func(done, total int64)
}

// rawID is the staged id under which content is made before it is converted.
func rawID(id disk.VolumeID) disk.VolumeID { return id + ".raw" }

// Create makes s.Volume as planned and publishes it with s as its sidecar. It
// returns the volume as it is afterwards. A repeat finds what the first call
// made and finishes it.
func (p *Pool) Create(ctx context.Context, s disk.Sidecar, m Making) (disk.Volume, error) {
	if done, err := p.published(ctx, s.Volume); err != nil || done {
		if err != nil {
			return s.Volume, err
		}
		return p.finishAgain(ctx, s.Volume.ID, s)
	}
	if !m.First {
		if err := p.Discard(ctx, s.Volume.ID); err != nil {
			return s.Volume, err
		}
	}
	if err := p.stage(ctx, s.Volume, m); err != nil {
		return s.Volume, err
	}
	return p.finish(ctx, s.Volume.ID, s)
}

// PublishStaged publishes the complete bytes that are staged under id as
// s.Volume, with s as its sidecar. It returns the volume as it is afterwards; a
// repeat converges.
func (p *Pool) PublishStaged(ctx context.Context, id disk.VolumeID, s disk.Sidecar) (disk.Volume, error) {
	done, err := p.published(ctx, s.Volume)
	if err != nil {
		return s.Volume, err
	}
	if done {
		return p.finishAgain(ctx, id, s)
	}
	return p.finish(ctx, id, s)
}

// finishAgain finishes a volume that an earlier call published: its sidecar may
// say what was true then, and says s afterwards.
func (p *Pool) finishAgain(ctx context.Context, staged disk.VolumeID, s disk.Sidecar) (disk.Volume, error) {
	v, err := p.finish(ctx, staged, s)
	if err != nil {
		return v, err
	}
	s.Volume = v
	return v, p.WriteSidecar(ctx, s)
}

// Discard removes what a volume's making left staged.
func (p *Pool) Discard(ctx context.Context, id disk.VolumeID) error {
	if err := p.Driver.Delete(ctx, driver.Ref{ID: rawID(id)}); err != nil {
		return err
	}
	return p.Driver.Delete(ctx, driver.Ref{ID: id})
}

func (p *Pool) finish(ctx context.Context, staged disk.VolumeID, s disk.Sidecar) (disk.Volume, error) {
	v := &s.Volume
	v.State = disk.VolumeReady
	v.Generation++
	side, err := seal(sidecarKind, v.Generation, s)
	if err != nil {
		return *v, err
	}
	obj, err := p.Driver.Publish(ctx, staged, v.Name, v.Kind == disk.KindBase, side)
	if err != nil {
		return *v, err
	}
	v.BackendID, v.Allocated = obj.BackendID, obj.Allocated
	return *v, nil
}

// published reports whether the object named as v is v's own.
func (p *Pool) published(ctx context.Context, v disk.Volume) (bool, error) {
	if _, err := p.Describe(ctx, driver.Ref{ID: v.ID, Name: v.Name}); errors.Is(err, errs.NotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	own, err := p.owns(ctx, v)
	if err != nil {
		return false, err
	}
	if !own {
		return false, errs.New(errs.Exists, "volume.create", v.Name, "pool %s already holds an object of that name that tarn did not make", p.name).
			WithHint("move it out of the pool")
	}
	return true, nil
}

// owns reports whether the sidecar beside v's name says that it is v.
func (p *Pool) owns(ctx context.Context, v disk.Volume) (bool, error) {
	data, err := p.Sidecar(ctx, v.Name)
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s, err := OpenSidecar(v.Name, data)
	if err != nil {
		return false, err
	}
	return s.Volume.ID == v.ID, nil
}

func (p *Pool) stage(ctx context.Context, v disk.Volume, m Making) error {
	if err := p.whole(ctx, m.Base); err != nil {
		return err
	}
	switch m.Method {
	case plan.Clone:
		c, ok := p.Driver.(driver.Cloner)
		if !ok {
			return errs.New(errs.Unsupported, "volume.create", v.Name, "the pool's technology cannot clone")
		}
		return c.Clone(ctx, driver.Spec{ID: v.ID, Size: v.VirtualSize}, Ref(*m.Base))
	case plan.Overlay:
		return p.stageQcow2(ctx, v)
	case plan.Copy:
		return p.stageFilled(ctx, v, m.Prealloc, func(ctx context.Context, dev driver.Device) error {
			return p.copyBase(ctx, *m.Base, dev, m.Progress)
		})
	case plan.Generate:
		return p.stageFilled(ctx, v, m.Prealloc, m.Fill)
	case plan.Blank:
		if v.Format == diskfmt.Qcow2 {
			return p.stageQcow2(ctx, v)
		}
		return p.Driver.Create(ctx, driver.Spec{ID: v.ID, Size: v.VirtualSize, Prealloc: m.Prealloc})
	}
	return errs.New(errs.Internal, "volume.create", v.Name, "unknown method %q", m.Method)
}

// whole refuses a base whose container was cut off or grew: what is missing would
// read as zeroes. A technology that clones by itself keeps the size of what it
// clones from.
func (p *Pool) whole(ctx context.Context, base *disk.Volume) error {
	if base == nil || base.Format != diskfmt.Raw || p.Caps.Clone == driver.CloneNative {
		return nil
	}
	o, err := p.Describe(ctx, Ref(*base))
	if err == nil && o.Size != base.VirtualSize {
		err = errs.New(errs.Corrupt, "volume.create", base.Name, "its container has %d bytes, on record are %d", o.Size, base.VirtualSize).
			WithHint("tarn doctor --scrub --repair makes a corrupt base again")
	}
	return missing(err, *base)
}

// stageQcow2 makes an empty qcow2 container, with v's backing link if it has
// one.
func (p *Pool) stageQcow2(ctx context.Context, v disk.Volume) error {
	r := v.Recorded()
	return p.staged(ctx, driver.Spec{ID: v.ID, Size: 0}, func(dev driver.Device) error {
		o := qcow2.CreateOptions{VirtualSize: r.VirtualSize, ClusterSize: r.ClusterSize, BackingName: r.BackingName, BackingFormat: r.BackingFmt}
		return qcow2.Create(dev, o)
	})
}

// stageFilled makes raw content and, for a qcow2 volume, converts it.
func (p *Pool) stageFilled(ctx context.Context, v disk.Volume, prealloc bool, fill Fill) error {
	id := v.ID
	if v.Format == diskfmt.Qcow2 {
		id = rawID(v.ID)
	}
	spec := driver.Spec{ID: id, Size: v.VirtualSize, Prealloc: prealloc && v.Format == diskfmt.Raw}
	if err := p.staged(ctx, spec, func(dev driver.Device) error { return fill(ctx, dev) }); err != nil || v.Format == diskfmt.Raw {
		return err
	}
	if err := p.convertStaged(ctx, v); err != nil {
		return err
	}
	return p.Driver.Delete(ctx, driver.Ref{ID: id})
}

func (p *Pool) convertStaged(ctx context.Context, v disk.Volume) error {
	src, err := p.Driver.Open(ctx, driver.Ref{ID: rawID(v.ID)}, driver.Staged)
	if err != nil {
		return err
	}
	defer src.Close()
	raw := disk.Volume{Format: diskfmt.Raw, VirtualSize: v.VirtualSize}
	in, err := volio.Open([]volio.Layer{{Device: src, Recorded: raw.Recorded()}})
	if err != nil {
		return err
	}
	return p.staged(ctx, driver.Spec{ID: v.ID}, func(dev driver.Device) error {
		return volio.Export(ctx, in, volio.Sink{Device: dev}, volio.Options{Format: v.Format}, nil)
	})
}

// staged creates a staged volume, lets write fill it and closes it again.
func (p *Pool) staged(ctx context.Context, s driver.Spec, write func(driver.Device) error) error {
	if err := p.Driver.Create(ctx, s); err != nil {
		return err
	}
	dev, err := p.Driver.Open(ctx, driver.Ref{ID: s.ID}, driver.Staged)
	if err != nil {
		return err
	}
	return errors.Join(write(dev), dev.Close())
}

func (p *Pool) copyBase(ctx context.Context, base disk.Volume, dst driver.Device, progress func(done, total int64)) error {
	src, err := p.Driver.Open(ctx, Ref(base), driver.Base)
	if err != nil {
		return err
	}
	defer src.Close()
	return blkio.Copy(ctx, dst, src, func(done int64) {
		if progress != nil {
			progress(done, src.Size())
		}
	})
}
