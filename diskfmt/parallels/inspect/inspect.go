// Package inspect judges files that somebody claims to be Parallels expandable
// images, as ploop's root.hds is one, and reads those that it found harmless. It
// refuses everything that is not exactly one closed image of version 2, opens
// and returns no name, and takes no record. Only ingest may use it.
package inspect

import (
	"context"
	"fmt"
	"io"

	"github.com/tarn-storage/tarn/diskfmt/internal/blockmap"
	"github.com/tarn-storage/tarn/diskfmt/parallels/internal/layout"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// HeaderSize is how many of a file's first bytes Header needs.
const HeaderSize = layout.HeaderSize

// Bounds that hold whatever Limits say. They keep the walk to 16 passes over a
// table of 1 GiB; clusters of 1 MiB reach neither within 128 TiB.
const (
	maxCluster = 128 << 20 // bytes
	maxEntries = 1 << 28
	maxSlots   = 1 << 31
)

const op = "parallels.inspect"

// Source reads a file that Open has accepted. It is a diskfmt.Mapper, safe for
// concurrent use; nothing is Backing or compressed.
type Source struct {
	*blockmap.Source
	cluster int64
}

// ClusterSize returns the bytes of a cluster, which a DiskDescriptor.xml repeats
// as its Blocksize.
func (s *Source) ClusterSize() int64 { return s.cluster }

// Header gives the fast verdict by the first HeaderSize bytes of a file of size
// bytes. Errors are errs.Unsafe with one of the classes EMPTY, FORMAT_MISMATCH,
// UNSUPPORTED_VERSION, UNSUPPORTED_FEATURE, DIRTY, TRUNCATED, CORRUPT, OVERLAP,
// LIMIT and QUOTA.
//
// A format extension, where ploop keeps its dirty bitmaps, is refused: an import
// has no use for one. The flag "empty" is ignored, as ploop and QEMU do: ploop
// sets it in every image it makes and never takes it back, so that to believe it
// would be to lose data. Clusters need not be a power of two: 63 sectors were
// the default once.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	_, rep, err := header(strict.File{R: r, Size: uint64(size)}, lim)
	return rep, errs.Wrap(err, op, "")
}

// Open gives the full verdict: Header's, and a walk over the BAT, in which each
// entry must name a whole cluster of the data area that no other one names.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	f := strict.File{R: r, Size: uint64(size)}
	h, rep, err := header(f, lim)
	if err != nil {
		return nil, rep, errs.Wrap(err, op, "")
	}
	if n := slots(f, &h); n > maxSlots {
		err = strict.Refuse(strict.Limit, "the file has room for %d clusters; %d is the most", n, uint64(maxSlots))
		return nil, rep, errs.Wrap(err, op, "")
	}
	d := &blockmap.Disk{
		File: f, Op: "parallels", Size: uint64(rep.VirtualSize), Block: h.Cluster(),
		Table: layout.HeaderSize, Entries: uint64(h.Entries),
		Data: h.Data(), Slots: slots(f, &h), Place: place(f, h),
	}
	stored, named, err := d.Check(ctx, lim)
	if err != nil {
		return nil, rep, errs.Wrap(err, op, "")
	}
	if named > stored {
		rep.Features = append(rep.Features, fmt.Sprintf("%d clusters behind the end of the disk, left out", named-stored))
	}
	rep.DataBytes = int64(min(stored*d.Block, d.Size))
	return &Source{blockmap.NewSource(d), int64(d.Block)}, rep, nil
}

// slots returns how many clusters the data area has.
func slots(f strict.File, h *layout.Header) uint64 { return (f.Size - h.Data()) / h.Cluster() }

// place judges BAT entries ("BAT").
func place(f strict.File, h layout.Header) func(uint32) (uint64, bool, error) {
	data, cluster := h.Data(), h.Cluster()
	return func(e uint32) (uint64, bool, error) {
		if e == 0 {
			return 0, false, nil
		}
		off := h.Offset(e)
		switch {
		case off < h.TableEnd():
			return 0, false, strict.Refuse(strict.Overlap, "0x%x names the offset 0x%x, where the header or the BAT lies", e, off)
		case off < data:
			return 0, false, strict.Refuse(strict.Corrupt, "0x%x names the offset 0x%x, before the data at 0x%x", e, off, data)
		case (off-data)%cluster != 0:
			return 0, false, strict.Refuse(strict.Corrupt, "0x%x names the offset 0x%x, where no cluster begins", e, off)
		}
		if err := f.Inside(off, cluster, "the cluster"); err != nil {
			return 0, false, err
		}
		return (off - data) / cluster, true, nil
	}
}

func header(f strict.File, lim strict.Limits) (layout.Header, strict.Report, error) {
	var h layout.Header
	var rep strict.Report
	if f.Size == 0 {
		return h, rep, strict.Refuse(strict.Empty, "the file is empty")
	}
	const magic = len(layout.Magic)
	b := make([]byte, HeaderSize)
	if err := f.Read(b[:min(HeaderSize, f.Size)], 0, "the header"); err != nil {
		return h, rep, err
	}
	h = layout.Parse(b)
	if h.Magic != layout.Magic && h.Magic != layout.MagicExt {
		return h, rep, strict.Refuse(strict.Mismatch, "the bytes %s at 0x0 are not the magic of a Parallels image", strict.Quote(b[:magic]))
	}
	if err := f.Inside(0, HeaderSize, "the header"); err != nil {
		return h, rep, err
	}
	if h.Version != layout.Version {
		return h, rep, strict.Refuse(strict.Version, "version %d at 0x10; only 2 is known", h.Version)
	}
	if !h.Ext() && h.Sectors > 1<<32-1 {
		return h, rep, strict.Refuse(strict.Corrupt, "%d sectors at 0x24 are too many for this magic", h.Sectors)
	}
	rep.VirtualSize = int64(min(h.Sectors, 1<<53) * layout.SectorSize)
	if err := judge(&h); err != nil {
		return h, rep, err
	}
	if err := lim.Check(uint64(rep.VirtualSize)); err != nil {
		return h, rep, err
	}
	rep.Features = []string{fmt.Sprintf("clusters of %d bytes", h.Cluster())}
	return h, rep, judgeLayout(f, &h)
}

// judge refuses states and features.
func judge(h *layout.Header) error {
	switch {
	case h.InUse == layout.InUse || h.Flags&layout.FlagConvert != 0:
		return strict.Refuse(strict.Dirty, "the header says that a program has the image open (0x%x at 0x2c, flags 0x%x)", h.InUse, h.Flags).
			WithHint("stop the guest that uses it, or repair it with ploop check or qemu-img check -r all")
	case h.InUse != layout.Closed && h.InUse != layout.ClosedOld:
		return strict.Refuse(strict.Corrupt, "0x%x at 0x2c does not say whether the image was closed", h.InUse)
	case h.Flags&^(layout.FlagEmpty|layout.FlagConvert) != 0:
		return strict.Refuse(strict.Feature, "the flags 0x%x at 0x34 are not known", h.Flags)
	case h.Extension != 0:
		return strict.Refuse(strict.Feature, "the header at 0x38 names a format extension at sector %d", h.Extension).
			WithHint("convert the image with qemu-img, which leaves dirty bitmaps out")
	case h.Tracks == 0:
		return strict.Refuse(strict.Corrupt, "clusters of no sectors at 0x1c")
	case h.Cluster() > maxCluster:
		return strict.Refuse(strict.Limit, "clusters of %d sectors at 0x1c; %d is the most", h.Tracks, maxCluster/layout.SectorSize)
	case h.Entries > maxEntries:
		return strict.Refuse(strict.Limit, "a BAT of %d entries at 0x20; %d is the most", h.Entries, maxEntries)
	}
	return nil
}

// judgeLayout refuses tables that do not fit the disk or the file.
func judgeLayout(f strict.File, h *layout.Header) error {
	data := h.Data()
	switch need := (h.Sectors + uint64(h.Tracks) - 1) / uint64(h.Tracks); {
	case uint64(h.Entries) < need:
		return strict.Refuse(strict.Corrupt, "a BAT of %d entries at 0x20 for a disk of %d clusters", h.Entries, need)
	case data < h.TableEnd():
		return strict.Refuse(strict.Overlap, "the data at 0x%x (0x30) lies on the BAT, which ends at 0x%x", data, h.TableEnd())
	case h.Ext() && data%h.Cluster() != 0:
		return strict.Refuse(strict.Corrupt, "the data at 0x%x (0x30) does not begin at a cluster", data)
	}
	if err := f.Inside(layout.HeaderSize, h.TableEnd()-layout.HeaderSize, "the BAT"); err != nil {
		return err
	}
	return f.Inside(data, 0, "the data")
}
