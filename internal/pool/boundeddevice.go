package pool

import (
	"context"
	"io"
	"os"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// transfer is how many bytes one call of a device behind a gate moves at most.
const transfer = 1 << 20

// boundedDevice is a device behind a gate. Bytes pass through buffers of its own,
// because a call that is left may use them when the caller's are others' again.
type boundedDevice struct {
	g    *gate
	in   driver.Device
	life context.Context // for calls that have none of their own
}

// boundedFile is one that has a descriptor. What is done with that is not
// bounded: it is for programs that it is handed to. blkio.Copy does not take it, and
// shares no extents with the device.
type boundedFile struct {
	*boundedDevice
	file interface{ Descriptor() *os.File }
}

// Descriptor returns the open file behind the device.
func (d boundedFile) Descriptor() *os.File { return d.file.Descriptor() }

// device puts what open returns behind the gate. One that arrives late is closed,
// with the locks that it brought.
func (b *bounded) device(ctx context.Context, op string, open func() (driver.Device, error)) (driver.Device, error) {
	in, err := through(ctx, b.g, op, b.g.deadline, open, func(d driver.Device, err error) {
		if err == nil {
			_ = d.Close()
		}
	})
	if err != nil {
		return nil, err
	}
	d := &boundedDevice{b.g, in, context.WithoutCancel(ctx)}
	if f, ok := in.(interface{ Descriptor() *os.File }); ok {
		return boundedFile{d, f}, nil
	}
	return d, nil
}

// moved is what a transfer did.
type moved struct {
	buf []byte
	n   int
}

func (d *boundedDevice) ReadAt(p []byte, off int64) (total int, err error) {
	for err == nil {
		var m moved
		size := min(len(p), transfer)
		m, err = through(d.life, d.g, "volume.read", d.g.deadline, func() (moved, error) {
			buf := make([]byte, size)
			n, err := d.in.ReadAt(buf, off)
			if err == io.EOF && n == size { // as io.ReaderAt may
				err = nil
			}
			return moved{buf, n}, err
		}, nil)
		copy(p, m.buf[:m.n])
		total += m.n
		if p, off = p[m.n:], off+int64(m.n); len(p) == 0 || m.n < size {
			break
		}
	}
	return total, err
}

func (d *boundedDevice) WriteAt(p []byte, off int64) (total int, err error) {
	for err == nil {
		buf := append([]byte(nil), p[:min(len(p), transfer)]...)
		var n int
		n, err = through(d.life, d.g, "volume.write", d.g.deadline, func() (int, error) { return d.in.WriteAt(buf, off) }, nil)
		total += n
		if p, off = p[n:], off+int64(n); len(p) == 0 {
			break
		}
	}
	return total, err
}

func (d *boundedDevice) Size() int64 { return d.in.Size() }

func (d *boundedDevice) Extent(off int64) (diskfmt.Extent, error) {
	return through(d.life, d.g, "volume.extent", d.g.deadline, func() (diskfmt.Extent, error) { return d.in.Extent(off) }, nil)
}

func (d *boundedDevice) Zero(off, n int64) error {
	return d.g.act(d.life, "volume.zero", func() error { return d.in.Zero(off, n) })
}

func (d *boundedDevice) Truncate(size int64) error {
	return d.g.act(d.life, "volume.truncate", func() error { return d.in.Truncate(size) })
}

func (d *boundedDevice) Sync() error {
	return d.g.act(d.life, "volume.sync", func() error { return d.in.Sync() })
}

// Close implements driver.Device.
func (d *boundedDevice) Close() error {
	return d.g.aside(d.life, "volume.close", d.g.deadline, d.in.Close)
}
