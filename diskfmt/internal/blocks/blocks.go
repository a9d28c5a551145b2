// Package blocks writes the bytes of a disk into a container that keeps them in
// blocks of one size behind a table that must be known first: it plans which
// blocks are needed, and then copies them in order. It refuses to know a format,
// and goes by the source's extents alone: to find zeroes in data it would have
// to read everything twice.
package blocks

import (
	"context"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// piece is how many bytes are copied at once.
const piece = 1 << 20

// Plan tells which blocks of a disk hold data.
type Plan struct {
	Blocks int64 // of the whole disk, the last one perhaps shorter
	Used   int64 // of them, those that hold data
	bits   []uint64
}

// Has reports whether block i holds data.
func (p *Plan) Has(i int64) bool { return p.bits[i/64]&(1<<(i%64)) != 0 }

func (p *Plan) add(i int64) {
	if !p.Has(i) {
		p.bits[i/64] |= 1 << (i % 64)
		p.Used++
	}
}

// NewPlan walks the extents of src, which must have no layer below.
func NewPlan(ctx context.Context, src diskfmt.Reader, block int64) (*Plan, error) {
	n := (src.Size() + block - 1) / block
	p := &Plan{Blocks: n, bits: make([]uint64, (n+63)/64)}
	for off := int64(0); off < src.Size(); {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		e, err := extent(src, off)
		if err != nil {
			return nil, err
		}
		if e.Kind == diskfmt.Data {
			for i := off / block; i*block < e.End(); i++ {
				p.add(i)
			}
		}
		off = e.End()
	}
	return p, nil
}

func extent(src diskfmt.Reader, off int64) (diskfmt.Extent, error) {
	e, err := src.Extent(off)
	if err == nil && e.Kind != diskfmt.Data && e.Kind != diskfmt.Zero {
		err = errs.New(errs.Invalid, "", "", "%d bytes at %d belong to a layer below the source", e.Length, off)
	}
	e.Length = min(e.Length, src.Size()-off)
	return e, err
}

// Copier writes parts of a disk to W, from front to back.
type Copier struct {
	Src      diskfmt.Reader
	W        io.Writer
	Progress func(done, total int64) // guest bytes; may be nil
	buf      []byte
}

// Copy writes the n guest bytes at off; past the end of the disk they are zero.
func (c *Copier) Copy(ctx context.Context, off, n int64) error {
	if c.buf == nil {
		c.buf = make([]byte, piece)
	}
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := c.buf[:min(n, piece)]
		if err := c.fill(b, off); err != nil {
			return err
		}
		if _, err := c.W.Write(b); err != nil {
			return err
		}
		off += int64(len(b))
		n -= int64(len(b))
		c.Reached(off)
	}
	return nil
}

// Reached reports progress up to the guest offset off.
func (c *Copier) Reached(off int64) {
	if c.Progress != nil {
		c.Progress(min(off, c.Src.Size()), c.Src.Size())
	}
}

// fill reads the guest bytes at off.
func (c *Copier) fill(b []byte, off int64) error {
	for len(b) > 0 {
		if off >= c.Src.Size() {
			clear(b)
			return nil
		}
		e, err := extent(c.Src, off)
		if err != nil {
			return err
		}
		part := b[:min(int64(len(b)), e.Length)]
		if e.Kind == diskfmt.Zero {
			clear(part)
		} else if _, err := io.ReadFull(io.NewSectionReader(c.Src, off, int64(len(part))), part); err != nil {
			return err
		}
		b, off = b[len(part):], off+int64(len(part))
	}
	return nil
}
