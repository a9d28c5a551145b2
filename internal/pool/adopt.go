package pool

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// adopter returns the driver as one that adopts.
func (p *Pool) adopter(op, name string) (driver.Adopter, error) {
	if a, ok := p.Driver.(driver.Adopter); ok {
		return a, nil
	}
	return nil, errs.New(errs.Unsupported, op, name, "pool %s cannot adopt what lies in it", p.name)
}

// Candidate opens the foreign object that has name, to be judged.
func (p *Pool) Candidate(ctx context.Context, name string) (*driver.Candidate, error) {
	a, err := p.adopter("volume.adopt", name)
	if err != nil {
		return nil, err
	}
	return a.Candidate(ctx, name)
}

// Fits returns why the container of c could not be read as v, or nil: by those
// who will read it then, which a verdict of the gate's is not.
func (p *Pool) Fits(c *driver.Candidate, v disk.Volume) error {
	if v.Format != diskfmt.Qcow2 {
		return nil
	}
	if _, err := qcow2.Open(c, c.Size(), v.Recorded()); err != nil {
		return errs.New(errs.Unsafe, "volume.adopt", v.Name, "it cannot be a volume of tarn: %w", err)
	}
	return nil
}

// Adopt makes the foreign object of s.Volume's name and backend id that volume,
// where it lies. It returns the volume as it is afterwards. A repeat converges.
func (p *Pool) Adopt(ctx context.Context, s disk.Sidecar) (disk.Volume, error) {
	const op = "volume.adopt"
	v := &s.Volume
	a, err := p.adopter(op, v.Name)
	if err != nil {
		return *v, err
	}
	was, err := p.SidecarOf(ctx, v.Name)
	if err == nil && was.Volume.ID != v.ID {
		err = errs.New(errs.Exists, op, v.Name, "%s carries the sidecar of volume %s", v.Name, was.Volume.ID).WithHint("tarn doctor says what it is")
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return *v, err
	}
	v.State = disk.VolumeReady
	v.Generation++
	side, err := seal(sidecarKind, v.Generation, s)
	if err != nil {
		return *v, err
	}
	obj, err := a.Adopt(ctx, Ref(*v), v.Kind == disk.KindBase, side)
	if err != nil {
		return *v, err
	}
	v.Allocated = obj.Allocated
	return *v, nil
}

// Disown makes volume v a foreign object where it lies. What is not v's own stays
// as it is.
func (p *Pool) Disown(ctx context.Context, v disk.Volume) error {
	own, err := p.owns(ctx, v)
	if err != nil && !errors.Is(err, errs.Corrupt) || err == nil && !own {
		return err
	}
	a, err := p.adopter("volume.release", v.Name)
	if err != nil {
		return err
	}
	return a.Disown(ctx, Ref(v))
}
