// Package vdi writes disks as VDI, VirtualBox's disk image: dynamic, of version
// 1.1, in blocks of 1 MiB. It refuses to read any, and to make up identifiers.
package vdi

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/blocks"
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

// Size returns how many bytes Write will write.
func Size(ctx context.Context, src diskfmt.Reader, o Options) (int64, error) {
	h, _, err := plan(ctx, src, o)
	return int64(h.DataOffset) + int64(h.Allocated)*layout.BlockSize, errs.Wrap(err, op, "")
}

// Write writes the whole image front to back: the header, the block map, and at
// a multiple of 1 MiB the data, in the guest's order. Blocks that src knows to be
// Zero stay unallocated. Others are stored without a look at them, because the
// map that would have to tell lies before the data. The disk's size is rounded up
// to 512 bytes. The same src and Options give the same bytes. progress, if not
// nil, is called with the guest bytes done and in all. An extent of kind Backing
// is errs.Invalid.
func Write(ctx context.Context, w io.Writer, src diskfmt.Reader, o Options, progress func(done, total int64)) error {
	h, stored, err := plan(ctx, src, o)
	if err != nil {
		return errs.Wrap(err, op, "")
	}
	if _, err := w.Write(h.Bytes()); err != nil {
		return errs.Wrap(err, op, "")
	}
	if err := writeMap(w, &h, stored); err != nil {
		return errs.Wrap(err, op, "")
	}
	c := blocks.Copier{Src: src, W: w, Progress: progress}
	for i := range stored.Blocks {
		if stored.Has(i) {
			if err := c.Copy(ctx, i*layout.BlockSize, layout.BlockSize); err != nil {
				return errs.Wrap(err, op, "")
			}
		}
	}
	c.Reached(src.Size())
	return nil
}

// plan says what lies where in the image.
func plan(ctx context.Context, src diskfmt.Reader, o Options) (layout.Header, *blocks.Plan, error) {
	size := uint64(src.Size())
	n := (size + layout.BlockSize - 1) / layout.BlockSize
	data := (layout.HeaderSize + n*layout.EntrySize + layout.BlockSize - 1) &^ (layout.BlockSize - 1)
	var h layout.Header
	switch {
	case size == 0:
		return h, nil, errs.New(errs.Invalid, op, "", "a VDI image cannot hold a disk of no bytes")
	case n > layout.MaxBlocks || data > 1<<32-1:
		return h, nil, errs.New(errs.Invalid, op, "", "a VDI image cannot hold a disk of %d bytes", size).WithHint("use another format")
	case o.ID == [16]byte{} || o.Change == [16]byte{}:
		return h, nil, errs.New(errs.Invalid, op, "", "a VDI image needs two identifiers that are not zero")
	}
	stored, err := blocks.NewPlan(ctx, src, layout.BlockSize)
	if err != nil {
		return h, nil, err
	}
	return layout.Header{
		Signature: layout.Signature, Version: layout.Version, Size: layout.Header1Plus, Type: layout.TypeDynamic,
		MapOffset: layout.HeaderSize, DataOffset: uint32(data), SectorSize: layout.SectorSize,
		DiskSize: (size + layout.SectorSize - 1) &^ (layout.SectorSize - 1), BlockSize: layout.BlockSize,
		Blocks: uint32(n), Allocated: uint32(stored.Used), Image: o.ID, Snapshot: o.Change,
	}, stored, nil
}

// writeMap writes the block map and zeroes up to the data.
func writeMap(w io.Writer, h *layout.Header, stored *blocks.Plan) error {
	buf := make([]byte, 0, 64<<10)
	next := uint32(0)
	for i := range stored.Blocks {
		entry := uint32(layout.Free)
		if stored.Has(i) {
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
	pad := h.DataOffset - h.MapOffset - h.Blocks*layout.EntrySize
	_, err := w.Write(append(buf, bytes.Repeat([]byte{0}, int(pad))...))
	return err
}
