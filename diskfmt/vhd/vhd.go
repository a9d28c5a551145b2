// Package vhd writes disks as VHD for Hyper-V, Azure, XenServer, VirtualBox and
// QEMU. It refuses to read them: that is package inspect, for files that
// somebody claims to be VHD. The format is that of Microsoft's "Virtual Hard
// Disk Image Format Specification" of October 2006.
package vhd

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/blocks"
	"github.com/tarn-storage/tarn/diskfmt/vhd/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// Type is a variant of the format.
type Type string

// The variants that are written.
const (
	Fixed   Type = "fixed"   // all bytes of the disk, and a footer
	Dynamic Type = "dynamic" // only blocks with data
)

// MaxSize is the largest disk that the format holds, in bytes.
const MaxSize = layout.MaxSize

// blockSize is the specification's default, and all that some readers know.
const blockSize = 2 << 20

// epoch is the zero of the format's clock.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Options says how a disk is written.
type Options struct {
	Type Type      // "" means Dynamic
	ID   [16]byte  // the disk's unique id
	Time time.Time // of creation; the zero Time means 2000-01-01, the format's first second
}

// Write writes the disk src as a VHD to w, from front to back. The same source
// and options give the same bytes. progress, if not nil, is called with guest
// bytes. A dynamic disk holds the blocks of 2 MiB in which src has an extent of
// data.
//
// The disk keeps its size to the byte, in whole sectors of 512 bytes: the
// footer's current size is exact and its geometry the largest that there is, which
// tells QEMU (and what goes by its rule) to ignore the geometry; programs that
// know no geometry read the current size anyway. Azure takes fixed disks of whole MiB
// only: the caller rounds the disk up before, this function changes no size.
func Write(ctx context.Context, w io.Writer, src diskfmt.Reader, o Options, progress func(done, total int64)) error {
	if err := check(src, o); err != nil {
		return err
	}
	c := &blocks.Copier{Src: src, W: w, Progress: progress}
	if o.Type == Fixed {
		return errs.Wrap(writeFixed(ctx, c, o), "vhd.write", "")
	}
	return errs.Wrap(writeDynamic(ctx, c, o), "vhd.write", "")
}

// Size returns how many bytes Write will write.
func Size(ctx context.Context, src diskfmt.Reader, o Options) (int64, error) {
	if err := check(src, o); err != nil {
		return 0, err
	}
	if o.Type == Fixed {
		return src.Size() + layout.FooterSize, nil
	}
	p, err := blocks.NewPlan(ctx, src, blockSize)
	if err != nil {
		return 0, errs.Wrap(err, "vhd.size", "")
	}
	return firstBlock(p) + p.Used*(bitmapSize+blockSize) + layout.FooterSize, nil
}

func check(src diskfmt.Reader, o Options) error {
	const op = "vhd.write"
	switch n := src.Size(); {
	case o.Type != "" && o.Type != Fixed && o.Type != Dynamic:
		return errs.New(errs.Invalid, op, "", "%q is no type of VHD; use fixed or dynamic", o.Type)
	case n <= 0 || n%layout.Sector != 0:
		return errs.New(errs.Invalid, op, "", "a VHD holds whole sectors of 512 bytes, not %d bytes", n).
			WithHint("grow the disk to a multiple of 512 bytes first")
	case n > MaxSize:
		return errs.New(errs.Invalid, op, "", "a VHD holds at most %d bytes (2040 GiB), not %d", int64(MaxSize), n).
			WithHint("use the format vhdx")
	}
	return nil
}

func footer(size int64, o Options) layout.Footer {
	f := layout.Footer{
		Features: layout.Reserved, Version: layout.Version1, DataOffset: layout.NoOffset,
		CreatorVersion: 0x00010000, OriginalSize: uint64(size), CurrentSize: uint64(size),
		Cylinders: layout.MaxCylinders, Heads: layout.MaxHeads, Track: layout.MaxTrack,
		Type: layout.Fixed, ID: o.ID,
	}
	copy(f.Cookie[:], layout.Cookie)
	copy(f.CreatorApp[:], "tarn")
	copy(f.CreatorOS[:], "Wi2k") // Windows: the other value is Macintosh
	if s := o.Time.Sub(epoch) / time.Second; s > 0 && s < 1<<32 {
		f.Time = uint32(s)
	}
	return f
}

// writeFixed refuses a disk that begins as a footer does: QEMU would take its
// bytes for a dynamic disk's.
func writeFixed(ctx context.Context, c *blocks.Copier, o Options) error {
	var first [8]byte
	e, err := c.Src.Extent(0)
	if err != nil {
		return err
	}
	if e.Kind == diskfmt.Data {
		if _, err := io.ReadFull(io.NewSectionReader(c.Src, 0, 8), first[:]); err != nil {
			return err
		}
	}
	if string(first[:]) == layout.Cookie {
		return errs.New(errs.Unsafe, "", "", "the disk's first bytes are those of a VHD footer: as a fixed VHD it would be taken for a dynamic one").
			WithHint("use the type dynamic")
	}
	if err := c.Copy(ctx, 0, c.Src.Size()); err != nil {
		return err
	}
	_, err = c.W.Write(footer(c.Src.Size(), o).Bytes())
	return err
}

var bitmapSize = int64(layout.BitmapSize(blockSize))

// tableAt is where the block allocation table begins: behind the footer's copy
// and the header.
const tableAt = layout.FooterSize + layout.HeaderSize

// firstBlock returns where the first block begins: behind the table.
func firstBlock(p *blocks.Plan) int64 {
	return (tableAt + 4*p.Blocks + layout.Sector - 1) / layout.Sector * layout.Sector
}

func writeDynamic(ctx context.Context, c *blocks.Copier, o Options) error {
	p, err := blocks.NewPlan(ctx, c.Src, blockSize)
	if err != nil {
		return err
	}
	f := footer(c.Src.Size(), o)
	f.Type, f.DataOffset = layout.Dynamic, layout.FooterSize
	h := layout.Header{
		DataOffset: layout.NoOffset, TableOffset: tableAt, Version: layout.Version1,
		Entries: uint32(p.Blocks), BlockSize: blockSize,
	}
	copy(h.Cookie[:], layout.HeaderCookie)
	head := append(f.Bytes(), h.Bytes()...)
	next := firstBlock(p)
	for i := range p.Blocks {
		e := uint32(layout.Absent)
		if p.Has(i) {
			e = uint32(next / layout.Sector)
			next += bitmapSize + blockSize
		}
		head = binary.BigEndian.AppendUint32(head, e)
	}
	head = append(head, bytes.Repeat([]byte{0xff}, int(firstBlock(p))-len(head))...)
	if _, err := c.W.Write(head); err != nil {
		return err
	}
	bitmap := bytes.Repeat([]byte{0xff}, int(bitmapSize))
	for i := range p.Blocks {
		if !p.Has(i) {
			c.Reached((i + 1) * blockSize)
			continue
		}
		if _, err := c.W.Write(bitmap); err != nil {
			return err
		}
		if err := c.Copy(ctx, i*blockSize, blockSize); err != nil {
			return err
		}
	}
	_, err = c.W.Write(f.Bytes())
	return err
}
