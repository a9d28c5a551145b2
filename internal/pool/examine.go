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

// Examine compares the container of v, of which the driver sees obj, with its
// record: errs.Corrupt names both sides of a difference. It takes no locks, so
// the caller sees to it that nobody writes v.
func (p *Pool) Examine(ctx context.Context, v disk.Volume, obj driver.Object) error {
	if v.Format == diskfmt.Raw {
		if obj.Size != v.VirtualSize {
			return errs.New(errs.Corrupt, "volume.examine", v.Name, "it has %d bytes, the record says %d", obj.Size, v.VirtualSize)
		}
		return nil
	}
	dev, err := p.Driver.Open(ctx, Ref(v), driver.Base)
	if err != nil {
		return missing(err, v)
	}
	_, err = qcow2.Open(dev, dev.Size(), v.Recorded())
	return errs.Wrap(errors.Join(err, dev.Close()), "volume.examine", v.Name)
}

// SidecarOf reads what lies beside the volume that has name; errs.NotFound
// without it, errs.Corrupt or errs.Version if it cannot be understood.
func (p *Pool) SidecarOf(ctx context.Context, name string) (disk.Sidecar, error) {
	data, err := p.Sidecar(ctx, name)
	if err != nil {
		return disk.Sidecar{}, err
	}
	return OpenSidecar(name, data)
}

// Marker reads the pool's self-description, as SidecarOf reads a volume's.
func (p *Pool) Marker(ctx context.Context) (disk.Marker, error) {
	data, err := p.Sidecar(ctx, "")
	if err != nil {
		return disk.Marker{}, err
	}
	return OpenMarker(p.name, data)
}
