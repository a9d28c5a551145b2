package ingest

import (
	"context"
	"crypto/sha256"
	"hash"

	"github.com/tarn-storage/tarn/diskfmt"
)

// nearby is how many bytes of a source may stand between what is digested and
// what a conversion read, to be read for the digest alone: tables, as a rule.
const nearby = 4 << 20

// sourceDigest is the SHA-256 of a source, computed from what a conversion
// reads as far as that comes in the source's order. The rest is read here:
// whatever the order, every byte passes once, and the two keep pace.
type sourceDigest struct {
	h     hash.Hash
	src   descriptor
	size  int64    // of a file; 0 of a stream, all of which is taken
	count *counter // nil: the conversion alone is progress
	pos   int64    // so many bytes passed
	buf   []byte

	extent diskfmt.Extent // of the file, the last looked up: that costs more the longer it is
}

func newSourceDigest(src descriptor, size int64) *sourceDigest {
	return &sourceDigest{h: sha256.New(), src: src, size: size}
}

// take digests b, which lies at off of the source, if it comes next. Three
// things might happen:
//  1. b begins at the next byte, or nearby: what is between is read first;
//  2. b, or its beginning, passed before: only the rest is taken;
//  3. b lies further on: as many bytes of what comes next are read instead, so
//     that the digest goes on while a conversion reads in another order.
func (d *sourceDigest) take(ctx context.Context, b []byte, off int64) error {
	end := off + int64(len(b))
	switch {
	case off > d.pos+nearby:
		return d.advance(ctx, int64(len(b)))
	case end <= d.pos:
		return nil
	}
	if err := d.read(ctx, off); err != nil {
		return err
	}
	d.add(b[d.pos-off:])
	return nil
}

// advance reads and digests the next n bytes, or what is left.
func (d *sourceDigest) advance(ctx context.Context, n int64) error {
	return d.read(ctx, min(d.pos+n, d.size))
}

func (d *sourceDigest) add(b []byte) {
	d.h.Write(b)
	d.pos += int64(len(b))
	if d.count != nil {
		d.count.done.Add(int64(len(b)))
	}
}

// read digests the file up to end, if that is not done, holes without reading
// them.
func (d *sourceDigest) read(ctx context.Context, end int64) error {
	if d.buf == nil && d.pos < end {
		d.buf = make([]byte, 1<<20)
	}
	for d.pos < end {
		if d.extent.End() <= d.pos {
			var err error
			if d.extent, err = d.src.extent(d.pos, d.size); err != nil {
				return err
			}
		}
		for stop := min(d.extent.End(), end); d.pos < stop; {
			b := zeroes[:min(int64(len(d.buf)), stop-d.pos)]
			if d.extent.Kind == diskfmt.Data {
				b = d.buf[:len(b)]
				if _, err := d.src.ReadAt(b, d.pos); err != nil {
					return short(err)
				}
			}
			d.add(b)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}
