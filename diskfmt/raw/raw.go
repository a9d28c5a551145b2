// Package raw reads raw disks: the container's bytes are the guest's bytes. It
// refuses to look at what the bytes mean, and a container whose size is not
// the one that the record states.
package raw

import (
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// Extents reports the holes of a container, as SEEK_HOLE does for a file.
// NextExtent returns the extent that begins at off (0 <= off < size): Data or
// Zero, with a positive length. It may reach past the size asked of Open.
type Extents interface {
	NextExtent(off int64) (diskfmt.Extent, error)
}

// Reader is a raw disk. It is safe for concurrent use when the container is.
type Reader struct {
	r    io.ReaderAt
	size int64
	ext  Extents
}

// Open returns the raw disk of want.VirtualSize bytes that r holds. The
// container must be exactly as long as the record says, because a raw disk's
// length is its size: errs.Corrupt otherwise, naming both. ext may be nil;
// then all is one data extent.
func Open(r io.ReaderAt, containerSize int64, want diskfmt.Recorded, ext Extents) (*Reader, error) {
	const op = "raw.open"
	switch {
	case want.Format != diskfmt.Raw:
		return nil, errs.New(errs.Internal, op, "", "the record says format %q, not raw", want.Format)
	case want.BackingName != "" || want.BackingFmt != "":
		return nil, errs.New(errs.Corrupt, op, "", "the record gives a raw disk the backing layer %q", want.BackingName)
	case want.VirtualSize <= 0 || containerSize != want.VirtualSize:
		return nil, errs.New(errs.Corrupt, op, "", "the container has %d bytes, the record says %d",
			containerSize, want.VirtualSize)
	}
	return &Reader{r: r, size: want.VirtualSize, ext: ext}, nil
}

// Size returns the virtual size in bytes.
func (d *Reader) Size() int64 { return d.size }

// ReadAt reads guest bytes; past the recorded size it returns io.EOF, even if
// the container has grown since.
func (d *Reader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errs.New(errs.Invalid, "raw.read", "", "negative offset %d", off)
	}
	if off >= d.size {
		return 0, io.EOF
	}
	if int64(len(p)) <= d.size-off {
		n, err := d.r.ReadAt(p, off)
		if n == len(p) {
			err = nil
		}
		return n, err
	}
	n, err := d.r.ReadAt(p[:d.size-off], off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// Extent returns the extent at off as the container reports it, cut at Size.
func (d *Reader) Extent(off int64) (diskfmt.Extent, error) {
	if off < 0 || off >= d.size {
		return diskfmt.Extent{}, errs.New(errs.Invalid, "raw.extent", "", "offset %d is outside the disk of %d bytes", off, d.size)
	}
	if d.ext == nil {
		return diskfmt.Extent{Offset: off, Length: d.size - off, Kind: diskfmt.Data}, nil
	}
	e, err := d.ext.NextExtent(off)
	if err != nil {
		return diskfmt.Extent{}, errs.Wrap(err, "raw.extent", "")
	}
	if e.Offset != off || e.Length <= 0 || (e.Kind != diskfmt.Data && e.Kind != diskfmt.Zero) {
		return diskfmt.Extent{}, errs.New(errs.Internal, "raw.extent", "",
			"the extent source answered %v [%d, +%d) for offset %d", e.Kind, e.Offset, e.Length, off)
	}
	e.Length = min(e.Length, d.size-off)
	return e, nil
}

// Map returns the extent at off; a raw disk's bytes lie where the guest sees them.
func (d *Reader) Map(off int64) (diskfmt.Mapping, error) {
	e, err := d.Extent(off)
	m := diskfmt.Mapping{Extent: e}
	if e.Kind == diskfmt.Data {
		m.HostOffset, m.HostLength = e.Offset, e.Length
	}
	return m, err
}
