package volio

import (
	"context"
	"crypto/rand"
	"io"
	"time"

	"github.com/google/uuid"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/vdi"
	"github.com/tarn-storage/tarn/diskfmt/vhd"
	"github.com/tarn-storage/tarn/diskfmt/vhdx"
	"github.com/tarn-storage/tarn/diskfmt/vmdk"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

// Target is an open container to export into. What it held is given up.
type Target interface {
	blkio.Target
	Size() int64
	Truncate(size int64) error
}

// Sink is where an export goes: exactly one member is set.
type Sink struct {
	Device Target    // holes are kept
	Stream io.Writer // gets every byte in order
}

// Compression is how the clusters of a qcow2 image are compressed. The zero
// value means not at all.
type Compression string

// The compressions of qcow2.
const (
	Zlib Compression = "zlib"
	Zstd Compression = "zstd"
)

// Type is a variant of VHD. The zero value means dynamic.
type Type = vhd.Type

// Options say how a volume is exported. A zero value is the default of what it
// stands for, but Format must be set.
type Options struct {
	Format      diskfmt.Format
	Compression Compression // of qcow2 alone; the others have their own, or none
	Type        Type        // of vhd alone
	Threads     int         // that compress at once; 0 means one

	Rand io.Reader // of the identifiers in the container; nil means crypto/rand
	Time time.Time // of its creation, in formats that say one
}

// Validate returns errs.Invalid where the options do not go together.
func (o Options) Validate() error {
	const op = "volume.export"
	if _, err := diskfmt.ParseExportFormat(string(o.Format)); err != nil {
		return errs.New(errs.Invalid, op, "", "%w", err)
	}
	switch {
	case o.Compression != "" && o.Compression != Zlib && o.Compression != Zstd:
		return errs.New(errs.Invalid, op, "", "%q is no compression of qcow2; use zlib or zstd", o.Compression)
	case o.Compression != "" && o.Format != diskfmt.Qcow2:
		return errs.New(errs.Invalid, op, "", "only the format qcow2 has a choice of compression, not %s", o.Format).
			WithHint("leave the compression out: vmdk is always compressed, and a raw stream can go through a compressor")
	case o.Type != "" && o.Type != vhd.Fixed && o.Type != vhd.Dynamic:
		return errs.New(errs.Invalid, op, "", "%q is no type of VHD; use dynamic or fixed", o.Type)
	case o.Type != "" && o.Format != diskfmt.VHD:
		return errs.New(errs.Invalid, op, "", "only the format vhd has types, not %s", o.Format)
	}
	return nil
}

// id draws an identifier.
func (o Options) id() ([16]byte, error) {
	r := o.Rand
	if r == nil {
		r = rand.Reader
	}
	return uuid.NewRandomFromReader(r)
}

// piece is how much is read and written at once.
const piece = 4 << 20

// Export writes what r holds to s as one container: the whole disk without a
// backing layer. r must not change meanwhile. progress is told how much is done
// and of how much, in bytes of the disk or of the container, and may be nil.
// Nothing is synced.
//
// Options that do not go together and a disk that the format cannot hold are
// refused before anything is written. After another failure a device is empty,
// or as it was, and a stream without its end.
func Export(ctx context.Context, r diskfmt.Reader, s Sink, o Options, progress func(done, total int64)) error {
	const op = "volume.export"
	if err := o.Validate(); err != nil {
		return err
	}
	if o.Compression != "" && s.Device == nil {
		return errs.New(errs.Invalid, op, "", "compressed qcow2 cannot be streamed: its header is written last").
			WithHint("write to a file, over the unix socket; what can be streamed is vmdk, or raw through a compressor")
	}
	out := &output{ctx: ctx, sink: s}
	err := out.export(checked{r}, o, progress)
	if err == nil {
		err = out.end()
	}
	if err != nil && out.begun {
		_ = s.Device.Truncate(0) // the caller hears what went wrong first
	}
	return errs.Wrap(err, op, "")
}

func (o *output) export(r diskfmt.Reader, x Options, progress func(done, total int64)) error {
	switch {
	case x.Format == diskfmt.Raw:
		return o.raw(r, progress)
	case x.Format == diskfmt.Qcow2 && r.Size() > qcow2.MaxVirtualSize:
		return errs.New(errs.Invalid, "", "", "a qcow2 image holds at most %d bytes (64 TiB), not %d", int64(qcow2.MaxVirtualSize), r.Size())
	case x.Format == diskfmt.Qcow2 && x.Compression == "":
		o.progress = progress
		return exportQcow2(o, r)
	case x.Format == diskfmt.Qcow2:
		if err := o.empty(); err != nil {
			return err
		}
		c := qcow2.CompressOptions{Zstd: x.Compression == Zstd, Threads: x.Threads}
		err := qcow2.Compress(o.ctx, o.sink.Device, r, c, of(r.Size(), progress))
		if o.pos = o.sink.Device.Size(); err == nil && progress != nil {
			progress(r.Size(), r.Size())
		}
		return err
	}
	var ids [3][16]byte
	for i := range ids {
		var err error
		if ids[i], err = x.id(); err != nil {
			return err
		}
	}
	switch x.Format {
	case diskfmt.VMDK:
		return vmdk.Write(o.ctx, o, r, vmdk.Options{ID: ids[0], Threads: x.Threads}, progress)
	case diskfmt.VHD:
		return vhd.Write(o.ctx, o, r, vhd.Options{Type: x.Type, ID: ids[0], Time: x.Time}, progress)
	case diskfmt.VHDX:
		return vhdx.Write(o.ctx, o, r, vhdx.Options{ID: ids[0], FileWrite: ids[1], DataWrite: ids[2]}, progress)
	case diskfmt.VDI:
		return vdi.Write(o.ctx, o, r, vdi.Options{ID: ids[0], Change: ids[1]}, progress)
	}
	return errs.New(errs.Internal, "", "", "nothing writes the format %s", x.Format)
}

// raw writes r as it is.
func (o *output) raw(r diskfmt.Reader, progress func(done, total int64)) error {
	if o.sink.Device == nil {
		o.total, o.progress = r.Size(), progress
		return o.copy(r, 0, r.Size())
	}
	if err := o.empty(); err != nil {
		return err
	}
	if err := o.sink.Device.Truncate(r.Size()); err != nil {
		return err
	}
	o.pos = r.Size()
	return blkio.Copy(o.ctx, o.sink.Device, r, of(r.Size(), progress))
}

// checked is a reader whose extents are what an export needs: some bytes at the
// offset asked for, of data or of zeroes.
type checked struct{ diskfmt.Reader }

// Extent returns the extent at off.
func (c checked) Extent(off int64) (diskfmt.Extent, error) {
	e, err := c.Reader.Extent(off)
	switch {
	case err != nil:
	case e.Length <= 0 || e.Offset != off:
		err = errs.New(errs.Internal, "extent", "", "asked at %d, got %d bytes at %d", off, e.Length, e.Offset)
	case e.Kind != diskfmt.Data && e.Kind != diskfmt.Zero:
		err = errs.New(errs.Internal, "extent", "", "a %v extent at %d has no bytes here", e.Kind, off)
	}
	return e, err
}

// output is a container that is written front to back.
type output struct {
	ctx      context.Context
	sink     Sink
	begun    bool // to change the device
	pos      int64
	total    int64
	progress func(done, total int64)
	buf      []byte
}

// empty makes a device empty, so that all of it reads as zeroes.
func (o *output) empty() error {
	o.begun = true
	return o.sink.Device.Truncate(0)
}

// end gives a device the size of what was written, zeroes at the end included.
func (o *output) end() error {
	d := o.sink.Device
	if d == nil || d.Size() == o.pos {
		return nil
	}
	return d.Truncate(o.pos)
}

// Write appends p. On a device, which is emptied before the first byte, runs of
// zeroes are left out.
func (o *output) Write(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	if err := o.append(p); err != nil {
		return 0, err
	}
	o.pos += int64(len(p))
	if o.progress != nil {
		o.progress(o.pos, o.total)
	}
	return len(p), nil
}

func (o *output) append(p []byte) error {
	if o.sink.Device == nil {
		_, err := o.sink.Stream.Write(p)
		return err
	}
	if !o.begun {
		if err := o.empty(); err != nil {
			return err
		}
	}
	return blkio.DataRuns(p, o.pos, func(p []byte, off int64) error {
		_, err := o.sink.Device.WriteAt(p, off)
		return err
	}, func(int64, int64) error { return nil })
}

// copy appends n bytes of r from off, those past its end as zeroes.
func (o *output) copy(r diskfmt.Reader, off, n int64) error {
	if o.buf == nil {
		o.buf = make([]byte, piece)
	}
	for n > 0 {
		p := o.buf[:min(n, int64(len(o.buf)))]
		inside := max(0, min(int64(len(p)), r.Size()-off))
		if got, err := r.ReadAt(p[:inside], off); int64(got) < inside {
			return short(err, off)
		}
		clear(p[inside:])
		if _, err := o.Write(p); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// Cut returns the first n bytes of r as a disk of their own.
func Cut(r diskfmt.Reader, n int64) diskfmt.Reader { return cut{r, min(n, r.Size())} }

type cut struct {
	diskfmt.Reader
	size int64
}

// Size returns how many bytes are left.
func (c cut) Size() int64 { return c.size }

// Extent returns the extent at off up to the new end.
func (c cut) Extent(off int64) (diskfmt.Extent, error) {
	e, err := c.Reader.Extent(off)
	e.Length = min(e.Length, c.size-off)
	return e, err
}

// ReadAt reads up to the new end.
func (c cut) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > c.size {
		return 0, io.EOF
	}
	if int64(len(p)) <= c.size-off {
		return c.Reader.ReadAt(p, off)
	}
	n, err := c.Reader.ReadAt(p[:c.size-off], off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}
