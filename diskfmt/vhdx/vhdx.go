// Package vhdx writes disks as VHDX for Hyper-V, VirtualBox and QEMU. It refuses
// to read them: that is package inspect, for files that somebody claims to be
// VHDX. The format is that of Microsoft's [MS-VHDX].
package vhdx

import (
	"context"
	"encoding/binary"
	"io"
	"unicode/utf16"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/blocks"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// MaxSize is the largest disk that the format holds, in bytes.
const MaxSize = layout.MaxSize

// sector is the logical and physical sector size of the disks written.
const sector = 512

// Options says how a disk is written. The three identifiers must differ from 0;
// the caller makes them at random.
type Options struct {
	ID        [16]byte // the disk's, which guests see (SCSI page 83)
	FileWrite [16]byte // that of the file's last change
	DataWrite [16]byte // that of the contents' last change
}

// The container is laid out so: headers, log, metadata, block allocation table,
// blocks.
const (
	logAt      = layout.HeaderSection
	logSize    = layout.MiB
	metadataAt = logAt + logSize
	tableAt    = metadataAt + layout.MiB
)

// Write writes the disk src as a dynamic VHDX to w, from front to back. The same
// source and options give the same bytes. It holds the blocks in which src has
// an extent of data; all others are marked as zero. progress, if not nil, is
// called with guest bytes. The disk keeps its size, in whole sectors of 512 bytes.
func Write(ctx context.Context, w io.Writer, src diskfmt.Reader, o Options, progress func(done, total int64)) error {
	if err := check(src, o); err != nil {
		return err
	}
	p, err := newPlan(ctx, src)
	if err == nil {
		err = p.write(ctx, &blocks.Copier{Src: src, W: w, Progress: progress}, o)
	}
	return errs.Wrap(err, "vhdx.write", "")
}

// Size returns how many bytes Write will write.
func Size(ctx context.Context, src diskfmt.Reader, o Options) (int64, error) {
	if err := check(src, o); err != nil {
		return 0, err
	}
	p, err := newPlan(ctx, src)
	if err != nil {
		return 0, errs.Wrap(err, "vhdx.size", "")
	}
	return p.firstBlock() + p.Used*p.block, nil
}

func check(src diskfmt.Reader, o Options) error {
	const op = "vhdx.write"
	switch n := src.Size(); {
	case n <= 0 || n%sector != 0:
		return errs.New(errs.Invalid, op, "", "a VHDX holds whole sectors of 512 bytes, not %d bytes", n).
			WithHint("grow the disk to a multiple of 512 bytes first")
	case n > MaxSize:
		return errs.New(errs.Invalid, op, "", "a VHDX holds at most %d bytes (64 TiB), not %d", int64(MaxSize), n).WithHint("use the format raw or qcow2")
	case o.ID == [16]byte{} || o.FileWrite == [16]byte{} || o.DataWrite == [16]byte{}:
		return errs.New(errs.Invalid, op, "", "a VHDX needs three identifiers that are not zero")
	}
	return nil
}

// blockSize returns the size of blocks for a disk of n bytes: that of QEMU,
// which keeps the table small.
func blockSize(n int64) int64 {
	switch {
	case n > 32<<40:
		return 64 << 20
	case n > 100<<30:
		return 32 << 20
	case n > 1<<30:
		return 16 << 20
	}
	return 8 << 20
}

type plan struct {
	*blocks.Plan
	size, block int64
	chunk       int64 // payload blocks between two entries of sector bitmaps
	entries     int64 // of the block allocation table
}

func newPlan(ctx context.Context, src diskfmt.Reader) (*plan, error) {
	block := blockSize(src.Size())
	p, err := blocks.NewPlan(ctx, src, block)
	if err != nil {
		return nil, err
	}
	chunk := layout.Chunk(uint64(block), sector)
	entries := layout.Entries(uint64(p.Blocks), chunk)
	return &plan{p, src.Size(), block, int64(chunk), int64(entries)}, nil
}

// tableSize returns the bytes of the block allocation table's region.
func (p *plan) tableSize() int64 {
	return (p.entries*layout.BATEntry + layout.MiB - 1) / layout.MiB * layout.MiB
}

func (p *plan) firstBlock() int64 { return tableAt + p.tableSize() }

func (p *plan) write(ctx context.Context, c *blocks.Copier, o Options) error {
	head := make([]byte, tableAt) // headers, the empty log and the metadata
	p.putHeaders(head, o)
	p.putMetadata(head[metadataAt:], o)
	if _, err := c.W.Write(head); err != nil {
		return err
	}
	if _, err := c.W.Write(p.table()); err != nil {
		return err
	}
	for i := range p.Blocks {
		if !p.Has(i) {
			c.Reached((i + 1) * p.block)
		} else if err := c.Copy(ctx, i*p.block, p.block); err != nil {
			return err
		}
	}
	return nil
}

// putHeaders puts the file identifier, both headers and both region tables into
// b. The second header is the current one.
func (p *plan) putHeaders(b []byte, o Options) {
	copy(b, layout.Signature)
	for i, c := range utf16.Encode([]rune("tarn")) {
		binary.LittleEndian.PutUint16(b[len(layout.Signature)+2*i:], c)
	}
	h := layout.Header{FileWrite: o.FileWrite, DataWrite: o.DataWrite, Version: layout.Version, LogLength: logSize, LogOffset: logAt}
	copy(h.Signature[:], layout.HeaderSignature)
	for i, at := range []int{layout.Header1, layout.Header2} {
		h.Sequence = uint64(i + 1)
		copy(b[at:], layout.Append(nil, h))
		layout.SetSum(b[at : at+layout.HeaderSize])
	}
	t := make([]byte, 16, layout.TableSize)
	copy(t, layout.RegionSignature)
	binary.LittleEndian.PutUint32(t[8:], 2)
	t = layout.Append(t, layout.Region{ID: layout.RegionMetadata, Offset: metadataAt, Length: layout.MiB, Required: layout.RegionRequired})
	t = layout.Append(t, layout.Region{ID: layout.RegionBAT, Offset: tableAt, Length: uint32(p.tableSize()), Required: layout.RegionRequired})
	t = t[:layout.TableSize]
	layout.SetSum(t)
	copy(b[layout.Region1:], t)
	copy(b[layout.Region2:], t)
}

// putMetadata puts the metadata table and its items into the region b.
func (p *plan) putMetadata(b []byte, o Options) {
	le := binary.LittleEndian
	copy(b, layout.MetadataSignature)
	at := uint32(layout.ItemsAt)
	for i, item := range []struct {
		id    layout.GUID
		flags uint32
		value []byte
	}{
		{layout.ItemParameters, layout.ItemRequired, le.AppendUint64(nil, uint64(p.block))}, // and no flags
		{layout.ItemSize, layout.ItemRequired | layout.ItemDisk, le.AppendUint64(nil, uint64(p.size))},
		{layout.ItemDiskID, layout.ItemRequired | layout.ItemDisk, o.ID[:]},
		{layout.ItemLogical, layout.ItemRequired | layout.ItemDisk, le.AppendUint32(nil, sector)},
		{layout.ItemPhysical, layout.ItemRequired | layout.ItemDisk, le.AppendUint32(nil, sector)},
	} {
		e := layout.Item{ID: item.id, Offset: at, Length: uint32(len(item.value)), Flags: item.flags}
		copy(b[(i+1)*layout.EntrySize:], layout.Append(nil, e))
		copy(b[at:], item.value)
		at += e.Length
		le.PutUint16(b[10:], uint16(i+1))
	}
}

// table returns the block allocation table. There are no sector bitmaps: their
// entries stay 0.
func (p *plan) table() []byte {
	b := make([]byte, p.tableSize())
	next := p.firstBlock()
	for i := range p.Blocks {
		e := uint64(layout.Zero)
		if p.Has(i) {
			e = uint64(next) | layout.FullyPresent
			next += p.block
		}
		binary.LittleEndian.PutUint64(b[(i+i/p.chunk)*layout.BATEntry:], e)
	}
	return b
}
