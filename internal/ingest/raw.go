package ingest

import (
	"context"
	"io"
	"math"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/sniff"
)

// rawFile is a raw source: the file's bytes are the guest's.
type rawFile struct {
	file
	size int64
}

func (r rawFile) Size() int64 { return r.size }

func (r rawFile) Extent(off int64) (diskfmt.Extent, error) { return r.extent(off, r.size) }

// maxExtents bounds the walk that measures a disk's data; what lies behind it
// counts as data, as far as so much is stored.
const maxExtents = 1 << 20

// minHole is the shortest run of zeroes that a conversion leaves out for sure,
// two partly filled blocks around it included.
const minHole = 64<<10 + 2*blockSize

// stored is what a door knows of a disk's data once it has walked all tables.
type stored struct {
	bytes int64 // no more than these are in the file
	unit  int64 // in pieces of so many at least
}

// anything is what is known of a disk without tables.
var anything = stored{math.MaxInt64, 1 << 30}

// dataBytes returns an upper bound of what a conversion of r writes: its data in
// whole blocks, with the short gaps between. It looks no further than all that
// is stored, so that it takes no time for an empty disk, however large.
func (im *intake) dataBytes(ctx context.Context, r diskfmt.Reader, all stored) (int64, error) {
	var data, end, seen int64 // end of what was counted so far
	size := r.Size()
	off := int64(0)
	for i := 0; off < size && seen < all.bytes; i++ {
		if i == maxExtents {
			return min(data+min(size-off, all.rest(seen)), size), nil
		}
		if im.count.walked.Add(1)%1024 == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
		e, err := r.Extent(off)
		if err != nil {
			return 0, err
		}
		if off = e.End(); e.Kind == diskfmt.Zero {
			continue
		}
		seen += e.Length
		start := max(e.Offset&^(blockSize-1), end)
		if e.Offset-end < minHole {
			start = end
		}
		end = (e.End() + blockSize - 1) &^ (blockSize - 1)
		data += end - start
	}
	return min(data, size), nil
}

// rest bounds what is written of the pieces behind the first seen bytes: each in
// whole blocks, with a short gap before it.
func (s stored) rest(seen int64) int64 {
	n := (s.bytes - seen) / s.unit
	if n > math.MaxInt64/2/(s.unit+minHole) {
		return math.MaxInt64 / 2
	}
	return (n + 1) * (s.unit + minHole)
}

// ends returns the first and last bytes of a file, and others, as sniff wants
// them.
func ends(r io.ReaderAt, size int64) (head, tail []byte, far sniff.Far, err error) {
	head = make([]byte, min(size, sniff.HeadSize))
	tail = make([]byte, min(size, sniff.TailSize))
	if _, err = r.ReadAt(head, 0); err == nil {
		_, err = r.ReadAt(tail, size-int64(len(tail)))
	}
	if err == nil {
		err = far.Read(r, size)
	}
	if err == io.EOF {
		err = errChanged()
	}
	return head, tail, far, err
}

// checkLooks refuses bytes that look like another format than the one claimed.
// A raw disk may hold an optical disc, an optical disc two file systems, and
// neither anything else that wraps bytes; what partition tables and file systems
// say is the guest's business.
func checkLooks(claimed diskfmt.Format, head, tail []byte, far sniff.Far, size int64) error {
	for _, g := range sniff.Look(head, tail, far, size) {
		if g.Format == claimed || g.Kind == sniff.OpticalDisc && (claimed == diskfmt.Raw || claimed == diskfmt.ISO) {
			continue
		}
		e := strict.Refuse(strict.Mismatch, "the bytes look like %s, not like %s", g.Name, claimed)
		switch {
		case g.Kind == sniff.Compressed && unpack.Known(g.Name):
			return e.WithHint("say --compression %s if the image is compressed", g.Name)
		case g.Format == "" && (g.Kind == sniff.Compressed || g.Kind == sniff.Archive):
			return e.WithHint("unpack the image first")
		case g.Kind == sniff.Archive:
			return e.WithHint("say --format %s if a description in OVF comes first in it; else unpack the image", g.Format)
		case g.Format != "":
			return e.WithHint("say --format %s if that is what the image is", g.Format)
		}
		return e.WithHint("convert the image to raw or qcow2 first")
	}
	return nil
}

func errChanged() *errs.Error {
	return errs.New(errs.Conflict, "", "", "the file changed while it was read").
		WithHint("import it again when nobody writes to it")
}

func errEmpty() *errs.Error { return strict.Refuse(strict.Empty, "the image has no bytes") }

func errShort(got, want int64) *errs.Error {
	return strict.Refuse(strict.Truncated, "the stream ended after %d of the %d bytes that were announced", got, want)
}
