// Package inspect judges files that somebody claims to be VDI, VirtualBox's
// disk image, and reads those that it found harmless. It refuses everything
// that is not exactly one self-contained image of version 1.1 (differencing and
// undo images are not), opens and returns no name, and takes no record. Only
// ingest may use it.
package inspect

import (
	"context"
	"io"

	"github.com/tarn-storage/tarn/diskfmt/internal/blockmap"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vdi/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// HeaderSize is how many of a file's first bytes Header needs.
const HeaderSize = layout.HeaderSize

const op = "vdi.inspect"

// Source reads a file that Open has accepted. It is a diskfmt.Mapper, safe for
// concurrent use; nothing is Backing or compressed.
type Source struct{ *blockmap.Source }

// Header gives the fast verdict by the first HeaderSize bytes of a file of size
// bytes. Errors are errs.Unsafe with one of the classes EMPTY, FORMAT_MISMATCH,
// UNSUPPORTED_VERSION, UNSUPPORTED_FEATURE, EXTERNAL_REFERENCE, TRUNCATED,
// CORRUPT, OVERLAP and QUOTA. A disk whose size is no multiple of 512 bytes, as
// VirtualBox makes them, is rounded up: so QEMU shows it to a guest.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	_, rep, err := header(strict.File{R: r, Size: uint64(size)}, lim)
	return rep, errs.Wrap(err, op, "")
}

// Open gives the full verdict: Header's, and a walk over the block map, in
// which each entry must name a block inside the file that no other one names,
// and as many as the header counts. A count that differs is what a crash leaves
// behind, with or without a loss, and `qemu-img check` calls it an error too.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	f := strict.File{R: r, Size: uint64(size)}
	h, rep, err := header(f, lim)
	if err != nil {
		return nil, rep, errs.Wrap(err, op, "")
	}
	d := &blockmap.Disk{
		File: f, Op: "vdi", Size: uint64(rep.VirtualSize), Block: layout.BlockSize,
		Table: uint64(h.MapOffset), Entries: uint64(h.Blocks),
		Data: uint64(h.DataOffset), Slots: uint64(h.Allocated), Place: place,
	}
	stored, _, err := d.Check(ctx, lim)
	if err == nil && stored != uint64(h.Allocated) {
		err = strict.Refuse(strict.Corrupt, "the header at 0x184 counts %d allocated blocks, the block map at 0x%x has %d", h.Allocated, h.MapOffset, stored).
			WithHint("the image was not closed by its last writer: let VirtualBox repair or clone it")
	}
	if err != nil {
		return nil, rep, errs.Wrap(err, op, "")
	}
	rep.DataBytes = int64(min(stored*layout.BlockSize, d.Size))
	return &Source{blockmap.NewSource(d)}, rep, nil
}

func place(e uint32) (uint64, bool, error) {
	return uint64(e), e < layout.Discarded, nil
}

func header(f strict.File, lim strict.Limits) (layout.Header, strict.Report, error) {
	var h layout.Header
	var rep strict.Report
	if f.Size == 0 {
		return h, rep, strict.Refuse(strict.Empty, "the file is empty")
	}
	const end = 0x44 // of the signature
	if f.Size < end {
		return h, rep, strict.Refuse(strict.Mismatch, "a file of %d bytes has no VDI signature at 0x40", f.Size)
	}
	b := make([]byte, HeaderSize)
	if err := f.Read(b[:min(HeaderSize, f.Size)], 0, "the header"); err != nil {
		return h, rep, err
	}
	h = layout.Parse(b)
	if h.Signature != layout.Signature {
		return h, rep, strict.Refuse(strict.Mismatch, "the bytes %s at 0x40 are not VDI's signature", strict.Quote(b[0x40:end]))
	}
	if err := f.Inside(0, HeaderSize, "the header"); err != nil {
		return h, rep, err
	}
	if h.Version != layout.Version {
		return h, rep, strict.Refuse(strict.Version, "version %d.%d at 0x44; only 1.1 is known", h.Version>>16, h.Version&0xffff)
	}
	rep.VirtualSize = int64(min(h.DiskSize, 1<<62)+layout.SectorSize-1) &^ (layout.SectorSize - 1)
	if err := judge(&h); err != nil {
		return h, rep, err
	}
	if err := lim.Check(h.DiskSize); err != nil {
		return h, rep, err
	}
	rep.Features = []string{"dynamic"}
	if h.Type == layout.TypeStatic {
		rep.Features[0] = "static"
	}
	return h, rep, judgeLayout(f, &h)
}

// judge refuses what the header says of the image. What lies outside the file
// comes first, so that it is named whatever else is wrong.
func judge(h *layout.Header) error {
	switch {
	case h.Type == layout.TypeDiff || h.Type == layout.TypeUndo:
		return strict.Refuse(strict.External, "type %d at 0x4c: the image holds only what differs from another one", h.Type).
			WithHint("merge its snapshots, or clone the disk as a whole")
	case !h.Link.IsZero():
		return strict.Refuse(strict.External, "the header at 0x1a8 names an image below this one").
			WithHint("merge its snapshots, or clone the disk as a whole")
	case !h.Parent.IsZero():
		return strict.Refuse(strict.External, "the header at 0x1b8 names a change of an image below this one").
			WithHint("merge its snapshots, or clone the disk as a whole")
	case h.Type != layout.TypeDynamic && h.Type != layout.TypeStatic:
		return strict.Refuse(strict.Feature, "type %d at 0x4c is not known", h.Type)
	case h.Flags&^layout.FlagExpand != 0:
		return strict.Refuse(strict.Feature, "the flags 0x%x at 0x50 are not known", h.Flags)
	case h.SectorSize != layout.SectorSize:
		return strict.Refuse(strict.Feature, "sectors of %d bytes at 0x168; only 512 is known", h.SectorSize)
	case h.BlockSize != layout.BlockSize:
		return strict.Refuse(strict.Feature, "blocks of %d bytes at 0x178; only 1 MiB is known", h.BlockSize)
	case h.BlockExtra != 0:
		return strict.Refuse(strict.Feature, "%d bytes before each block at 0x17c, which nobody can read", h.BlockExtra)
	}
	return nil
}

// judgeLayout refuses tables that do not fit the disk or the file.
func judgeLayout(f strict.File, h *layout.Header) error {
	table := uint64(h.Blocks) * layout.EntrySize
	switch {
	case h.Size < layout.Header1 || h.Size > HeaderSize:
		return strict.Refuse(strict.Corrupt, "a header of 0x%x bytes at 0x48; 0x%x is usual", h.Size, layout.Header1Plus)
	case uint64(h.Blocks) != (h.DiskSize+layout.BlockSize-1)/layout.BlockSize:
		return strict.Refuse(strict.Corrupt, "%d blocks at 0x180 for a disk of %d bytes", h.Blocks, h.DiskSize)
	case h.Allocated > h.Blocks:
		return strict.Refuse(strict.Corrupt, "%d of %d blocks at 0x184 are allocated", h.Allocated, h.Blocks)
	case h.Type == layout.TypeStatic && h.Allocated != h.Blocks:
		return strict.Refuse(strict.Corrupt, "only %d of %d blocks at 0x184 are allocated in a static image", h.Allocated, h.Blocks)
	case h.MapOffset%layout.SectorSize != 0 || h.DataOffset%layout.SectorSize != 0:
		return strict.Refuse(strict.Corrupt, "the block map at 0x%x or the data at 0x%x does not begin at a sector", h.MapOffset, h.DataOffset)
	case h.MapOffset < HeaderSize:
		return strict.Refuse(strict.Overlap, "the block map at 0x%x lies on the header", h.MapOffset)
	case uint64(h.DataOffset) < uint64(h.MapOffset)+table:
		return strict.Refuse(strict.Overlap, "the data at 0x%x lies on the block map at 0x%x (%d bytes) or the header", h.DataOffset, h.MapOffset, table)
	}
	if err := f.Inside(uint64(h.MapOffset), table, "the block map"); err != nil {
		return err
	}
	return f.Inside(uint64(h.DataOffset), uint64(h.Allocated)*layout.BlockSize, "the data")
}
