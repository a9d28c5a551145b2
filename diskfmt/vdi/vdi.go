// Package vdi writes disks as VDI, VirtualBox's disk image: dynamic, of version
// 1.1, in blocks of 1 MiB. It refuses to read any, and to make up identifiers.
package vdi

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/bits"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/vdi/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

const op = "vdi.write"

// Options are what an image has besides its disk. Both identifiers are UUIDs in
// the byte order of RFC 4122, neither may be zero, and VirtualBox refuses to
// know two images with the same ID.
type Options struct {
	ID     [16]byte // of the image
	Change [16]byte // of its last change
}

// plan is what lies where in the image.
type plan struct {
	header layout.Header
	stored []uint64 // a bit for each block: 8 MiB for 64 TiB
}

// Size returns how many bytes Write will write.
func Size(src diskfmt.Reader, o Options) (int64, error) {
	p, err := newPlan(src, o)
	if err != nil {
		return 0, err
	}
	return int64(p.header.DataOffset) + int64(p.header.Allocated)*layout.BlockSize, nil
}

// Write writes the whole image front to back: the header, the block map, and at
// a multiple of 1 MiB the data, in the guest's order. Blocks that src knows to be
// Zero stay unallocated. Others are stored without a look at them, because the
// map that would have to tell lies before the data. The disk's size is rounded up
// to 512 bytes. The same src and Options give the same bytes. progress, if not
// nil, is called with the guest bytes done and in all. An extent of kind Backing
// is errs.Invalid.
func Write(ctx context.Context, w io.Writer, src diskfmt.Reader, o Options, progress func(done, total int64)) error {
	p, err := newPlan(src, o)
	if err != nil {
		return err
	}
	if _, err := w.Write(p.header.Bytes()); err != nil {
		return errs.Wrap(err, op, "")
	}
	if err := p.writeMap(w); err != nil {
		return errs.Wrap(err, op, "")
	}
	return errs.Wrap(p.writeData(ctx, w, src, progress), op, "")
}

func newPlan(src diskfmt.Reader, o Options) (*plan, error) {
	size := uint64(src.Size())
	blocks := (size + layout.BlockSize - 1) / layout.BlockSize
	data := (layout.HeaderSize + blocks*layout.EntrySize + layout.BlockSize - 1) &^ (layout.BlockSize - 1)
	switch {
	case size == 0:
		return nil, errs.New(errs.Invalid, op, "", "a VDI image cannot hold a disk of no bytes")
	case blocks > layout.MaxBlocks || data > 1<<32-1:
		return nil, errs.New(errs.Invalid, op, "", "a VDI image cannot hold a disk of %d bytes", size).WithHint("use another format")
	case o.ID == [16]byte{} || o.Change == [16]byte{}:
		return nil, errs.New(errs.Invalid, op, "", "a VDI image needs two identifiers that are not zero")
	}
	p := &plan{stored: make([]uint64, (blocks+63)/64), header: layout.Header{
		Signature: layout.Signature, Version: layout.Version, Size: layout.Header1Plus, Type: layout.TypeDynamic,
		MapOffset: layout.HeaderSize, DataOffset: uint32(data), SectorSize: layout.SectorSize,
		DiskSize: (size + layout.SectorSize - 1) &^ (layout.SectorSize - 1), BlockSize: layout.BlockSize, Blocks: uint32(blocks),
		Image: o.ID, Snapshot: o.Change,
	}}
	for off := int64(0); off < src.Size(); {
		e, err := src.Extent(off)
		if err != nil {
			return nil, errs.Wrap(err, op, "")
		}
		switch e.Kind {
		case diskfmt.Data:
			p.store(off, e.End())
		case diskfmt.Zero:
		default:
			return nil, errs.New(errs.Invalid, op, "", "%d bytes at %d belong to a layer below the source", e.Length, off)
		}
		off = e.End()
	}
	for _, word := range p.stored {
		p.header.Allocated += uint32(bits.OnesCount64(word))
	}
	return p, nil
}

// store notes that the blocks with bytes of [from, to) are stored.
func (p *plan) store(from, to int64) {
	for i := from / layout.BlockSize; i <= (to-1)/layout.BlockSize; i++ {
		p.stored[i/64] |= 1 << (i % 64)
	}
}

func (p *plan) isStored(i uint32) bool { return p.stored[i/64]&(1<<(i%64)) != 0 }

// writeMap writes the block map and zeroes up to the data.
func (p *plan) writeMap(w io.Writer) error {
	buf := make([]byte, 0, 64<<10)
	next := uint32(0)
	for i := range p.header.Blocks {
		entry := uint32(layout.Free)
		if p.isStored(i) {
			entry = next
			next++
		}
		if buf = binary.LittleEndian.AppendUint32(buf, entry); len(buf) == cap(buf) {
			if _, err := w.Write(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	pad := int(p.header.DataOffset - p.header.MapOffset - p.header.Blocks*layout.EntrySize)
	_, err := w.Write(append(buf, bytes.Repeat([]byte{0}, pad)...))
	return err
}

func (p *plan) writeData(ctx context.Context, w io.Writer, src diskfmt.Reader, progress func(done, total int64)) error {
	buf := make([]byte, layout.BlockSize)
	for i := range p.header.Blocks {
		off := int64(i) * layout.BlockSize
		n := min(layout.BlockSize, src.Size()-off)
		if p.isStored(i) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := io.ReadFull(io.NewSectionReader(src, off, n), buf[:n]); err != nil {
				return err
			}
			clear(buf[n:])
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
		if progress != nil && (p.isStored(i) || off+n == src.Size()) {
			progress(off+n, src.Size())
		}
	}
	return nil
}
