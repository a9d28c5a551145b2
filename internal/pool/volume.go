package pool

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/volio"
)

// Chain is an open volume with everything it reads from.
type Chain struct {
	*volio.Volume
	devices []driver.Device
}

// Close releases every layer.
func (c *Chain) Close() error {
	var all error
	for _, d := range c.devices {
		all = errors.Join(all, d.Close())
	}
	return all
}

// OpenChain opens the volumes of a backing chain, the top first, for reading
// what the guest sees. The top is opened with mode m, the others are bases. A
// layer that contradicts its record is errs.Corrupt.
func (p *Pool) OpenChain(ctx context.Context, chain []disk.Volume, m driver.Mode) (*Chain, error) {
	c := &Chain{}
	var layers []volio.Layer
	for i, v := range chain {
		if i > 0 || v.Kind == disk.KindBase {
			m = driver.Base
		}
		dev, err := p.Driver.Open(ctx, Ref(v), m)
		if err != nil {
			return nil, errors.Join(missing(err, v), c.Close())
		}
		c.devices = append(c.devices, dev)
		layers = append(layers, volio.Layer{Device: dev, Recorded: v.Recorded()})
	}
	vol, err := volio.Open(layers)
	if err != nil {
		return nil, errors.Join(errs.Wrap(err, "volume.open", chain[0].Name), c.Close())
	}
	c.Volume = vol
	return c, nil
}

// missing turns a driver's "not found" into what it means for a volume that is
// on record: its bytes are gone.
func missing(err error, v disk.Volume) error {
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Corrupt, "volume.open", v.Name, "the volume is on record but its bytes are not in the pool").
			WithHint("run tarn doctor")
	}
	return err
}

// Delete removes volume v, or what its making left, and nothing else: an object
// of v's name that was never v's own stays, and one that was put in v's place,
// beside v's sidecar, is errs.Corrupt.
func (p *Pool) Delete(ctx context.Context, v disk.Volume) error {
	if err := p.Discard(ctx, v.ID); err != nil {
		return err
	}
	own, err := p.owns(ctx, v)
	if own {
		return p.Driver.Delete(ctx, Ref(v))
	}
	// A sidecar that is gone or damaged does not make the bytes somebody
	// else's: the record knows the object itself.
	if v.BackendID != "" && (err == nil || errors.Is(err, errs.Corrupt)) {
		if _, gone := p.Describe(ctx, Ref(v)); gone == nil || errors.Is(gone, errs.NotFound) && err != nil {
			return p.Driver.Delete(ctx, Ref(v))
		}
	}
	if err != nil {
		return errs.New(errs.Corrupt, "volume.delete", v.Name, "what lies beside the volume does not say whose it is: %w", err).
			WithHint("look at it with tarn doctor; move the file out of the pool if it is not tarn's")
	}
	return nil
}

// Resize sets the virtual size of the first volume of a chain to size bytes,
// durably. A grown range reads as zeroes, also over a longer backing. The
// volume may have that size already: a repeat converges. A shrink of a qcow2
// volume is possible only to take back a grow that no guest has seen.
func (p *Pool) Resize(ctx context.Context, chain []disk.Volume, size int64) error {
	v := chain[0]
	switch v.Format {
	case diskfmt.Raw:
		return missing(p.Driver.Resize(ctx, Ref(v), size), v)
	case diskfmt.Qcow2:
		dev, err := p.Driver.Open(ctx, Ref(v), driver.Write)
		if err != nil {
			return missing(err, v)
		}
		err = p.resizeQcow2(ctx, dev, chain, size)
		return errs.Wrap(errors.Join(err, dev.Close()), "volume.resize", v.Name)
	}
	return errs.New(errs.Unsupported, "volume.resize", v.Name, "volumes of format %s cannot be resized", v.Format)
}

// container is a device as package qcow2 writes it.
type container struct{ driver.Device }

func (c container) Size() (int64, error) { return c.Device.Size(), nil }

func (p *Pool) resizeQcow2(ctx context.Context, dev driver.Device, chain []disk.Volume, size int64) error {
	want := chain[0]
	want.VirtualSize = size
	if _, err := qcow2.Open(dev, dev.Size(), want.Recorded()); err == nil {
		return dev.Sync()
	}
	if size < chain[0].VirtualSize {
		return qcow2.Ungrow(container{dev}, chain[0].Recorded(), size)
	}
	var backing diskfmt.Reader
	if len(chain) > 1 {
		below, err := p.OpenChain(ctx, chain[1:], driver.Base)
		if err != nil {
			return err
		}
		defer below.Close()
		backing = below
	}
	w, err := qcow2.OpenWriter(container{dev}, chain[0].Recorded(), backing)
	if err != nil {
		return err
	}
	return errors.Join(w.Grow(size), w.Close())
}

// WriteSidecar replaces the sidecar of s.Volume durably.
func (p *Pool) WriteSidecar(ctx context.Context, s disk.Sidecar) error {
	data, err := seal(sidecarKind, s.Volume.Generation, s)
	if err != nil {
		return err
	}
	return missing(p.PutSidecar(ctx, s.Volume.Name, data), s.Volume)
}

// WriteMarker replaces the pool's self-description durably.
func (p *Pool) WriteMarker(ctx context.Context, m disk.Marker) error {
	data, err := SealMarker(m)
	if err != nil {
		return err
	}
	return p.PutSidecar(ctx, "", data)
}

// Path returns where QEMU finds volume v, or "" if it cannot open it by itself.
func (p *Pool) Path(v disk.Volume) string {
	if a, ok := p.Driver.(driver.Attacher); ok {
		return a.Attachment(Ref(v)).Path
	}
	return ""
}

// InUse returns errs.Busy while a program outside of tarn holds volume v open
// for writing, as far as the technology can tell, and errs.Corrupt if another
// object has v's name.
func (p *Pool) InUse(ctx context.Context, v disk.Volume) error {
	if pr, ok := p.Driver.(driver.Prober); ok {
		return pr.Probe(ctx, Ref(v))
	}
	return nil
}
