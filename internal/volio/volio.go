// Package volio makes a block device of a volume: what the guest sees, over the
// whole backing chain, from the records of its layers and their open
// containers. It refuses to open anything, to follow a name that a container
// carries, and to learn a format or a size from bytes.
package volio

import (
	"context"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/raw"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

// Device is an open container. Its extents are Data or Zero.
type Device = blkio.Source

// Layer is one volume of a backing chain: its container and what its record
// says of it.
type Layer struct {
	Device   Device
	Recorded diskfmt.Recorded
}

// Volume is the guest's view of a chain. Its extents are Data or Zero, and
// reads past the end of a shorter backing layer give zeroes. It is safe for
// concurrent use when the devices are.
type Volume struct {
	layers []diskfmt.Reader // the top first
}

// Open opens the layers of a chain, the top first. Each layer but the last must
// be recorded as backed, the last as not. A container that contradicts its
// record is errs.Corrupt. The devices stay the caller's and must outlive the
// volume.
func Open(layers []Layer) (*Volume, error) {
	const op = "volume.open"
	if len(layers) == 0 {
		return nil, errs.New(errs.Internal, op, "", "a chain without layers")
	}
	v := &Volume{}
	for i, l := range layers {
		backed := l.Recorded.BackingName != ""
		if last := i == len(layers)-1; backed == last {
			return nil, errs.New(errs.Internal, op, "", "layer %d of %d is recorded over %q", i, len(layers), l.Recorded.BackingName)
		}
		if backed && l.Recorded.BackingFmt != layers[i+1].Recorded.Format {
			return nil, errs.New(errs.Corrupt, op, "", "layer %d is recorded over %s, layer %d as %s",
				i, l.Recorded.BackingFmt, i+1, layers[i+1].Recorded.Format)
		}
		r, err := reader(l)
		if err != nil {
			return nil, errs.Wrap(err, op, "")
		}
		v.layers = append(v.layers, r)
	}
	return v, nil
}

// Over makes a Volume of layers that are open already, the top first: for
// containers that are chains of their own.
func Over(layers ...diskfmt.Reader) *Volume { return &Volume{layers} }

// reader opens the one layer l.
func reader(l Layer) (diskfmt.Reader, error) {
	switch l.Recorded.Format {
	case diskfmt.Raw:
		return raw.Open(l.Device, l.Device.Size(), l.Recorded, holes{l.Device})
	case diskfmt.Qcow2:
		return qcow2.Open(l.Device, l.Device.Size(), l.Recorded)
	}
	return nil, errs.New(errs.Unsupported, "volume.open", "", "format %q cannot be read", l.Recorded.Format)
}

// holes tells package raw of a device's holes.
type holes struct{ Device }

func (h holes) NextExtent(off int64) (diskfmt.Extent, error) { return h.Extent(off) }

// Size returns the virtual size in bytes.
func (v *Volume) Size() int64 { return v.layers[0].Size() }

// Extent returns a run at off that is Data in some layer, or Zero.
func (v *Volume) Extent(off int64) (diskfmt.Extent, error) {
	_, e, err := v.resolve(off)
	return e, err
}

// resolve returns the extent at off and the layer that holds it.
func (v *Volume) resolve(off int64) (diskfmt.Reader, diskfmt.Extent, error) {
	end := v.Size()
	for _, l := range v.layers {
		if off >= l.Size() { // above this layer's end nothing was ever there
			return nil, diskfmt.Extent{Offset: off, Length: end - off, Kind: diskfmt.Zero}, nil
		}
		e, err := l.Extent(off)
		if err != nil {
			return nil, e, err
		}
		end = min(end, e.End())
		if e.Kind != diskfmt.Backing {
			e.Length = end - off
			return l, e, nil
		}
	}
	return nil, diskfmt.Extent{}, errs.New(errs.Corrupt, "volume.read", "", "the bytes at %d belong to a layer below the last", off)
}

// ReadAt reads what the guest sees.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errs.New(errs.Invalid, "volume.read", "", "negative offset %d", off)
	}
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		if pos >= v.Size() {
			return done, io.EOF
		}
		l, e, err := v.resolve(pos)
		if err != nil {
			return done, err
		}
		part := p[done:min(int64(len(p)), int64(done)+e.Length)]
		if e.Kind == diskfmt.Zero {
			clear(part)
		} else if n, err := l.ReadAt(part, pos); n < len(part) {
			return done + n, short(err, pos)
		}
		done += len(part)
	}
	return done, nil
}

// short is the error of a layer that ends inside of what it says it has.
func short(err error, off int64) error {
	if err == nil || err == io.EOF {
		return errs.New(errs.Corrupt, "volume.read", "", "the container ends inside of the data at %d", off)
	}
	return err
}

// Digest returns the content digest of r, written b3-4m:HEX. progress may be
// nil.
func Digest(ctx context.Context, r diskfmt.Reader, progress func(done, total int64)) (string, error) {
	return blkio.SumSource(ctx, r, r.Size(), of(r.Size(), progress))
}

// of makes a progress function of one that is also told the total.
func of(total int64, progress func(done, total int64)) func(int64) {
	if progress == nil {
		return nil
	}
	return func(done int64) { progress(done, total) }
}
