package inspect

import (
	"context"
	"encoding/binary"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/pages"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

var _ strict.Source = (*Source)(nil)

const (
	pageSize   = 64 << 10 // bytes of the table that are read at once
	perPage    = pageSize / layout.BATEntry
	scanBlocks = 1 << 16 // that one Map looks at before it answers
)

// walk reads the block allocation table and checks every entry. It returns how
// many guest bytes are stored.
func (im *image) walk(ctx context.Context, lim strict.Limits) (stored uint64, err error) {
	m := strict.NewMap(im.file.Size, layout.MiB)
	m.Next() // maxContainer takes one pass
	if err := im.markTables(m); err != nil {
		return 0, err
	}
	total := layout.Entries(im.blocks, im.chunk)
	buf := make([]byte, min(16*pageSize, total*layout.BATEntry))
	for i, block, inChunk := uint64(0), uint64(0), uint64(0); i < total; {
		if err := lim.Tell(ctx, int64(i), int64(total)); err != nil {
			return 0, err
		}
		b := buf[:min(uint64(len(buf)), (total-i)*layout.BATEntry)]
		if err := im.file.Read(b, im.bat.Offset+i*layout.BATEntry, "the block allocation table"); err != nil {
			return 0, err
		}
		for ; len(b) > 0; b, i = b[layout.BATEntry:], i+1 {
			e := binary.LittleEndian.Uint64(b)
			if inChunk == im.chunk {
				inChunk = 0
				err = im.markBitmap(m, i, e)
			} else {
				var n uint64
				n, err = im.markBlock(m, block, e)
				stored += n
				block++
				inChunk++
			}
			if err != nil {
				return 0, err
			}
		}
	}
	return stored, nil
}

func (im *image) markTables(m *strict.Map) error {
	if err := m.Mark(0, layout.HeaderSection, "the header section"); err != nil {
		return err
	}
	if err := m.Mark(im.log[0], im.log[1], "the log"); err != nil {
		return err
	}
	for _, r := range im.regions {
		if err := m.Mark(r.Offset, uint64(r.Length), "a region"); err != nil {
			return err
		}
	}
	return nil
}

// markBlock notes where the payload block with the entry e lies, and returns how
// many guest bytes it holds.
func (im *image) markBlock(m *strict.Map, block, e uint64) (uint64, error) {
	off, stored, err := im.payload(block, e)
	if err != nil || !stored {
		return 0, err
	}
	if m.Mark(off, min(im.block, im.file.Size-off), "") != nil {
		return 0, strict.Refuse(strict.Overlap, "block %d at 0x%x lies on something else", block, off)
	}
	return im.visible(block), nil
}

// visible returns how many guest bytes the block has: the last one may have less.
func (im *image) visible(block uint64) uint64 { return min(im.block, im.size-block*im.block) }

// payload judges the entry e of a payload block. Blocks that are not present,
// undefined, zero or unmapped read as zeroes, as QEMU and Hyper-V have it: the
// file holds no bytes for them. The part of the last block that lies behind the end of
// the disk may be missing: QEMU's fixed disks end so.
func (im *image) payload(block, e uint64) (off uint64, stored bool, err error) {
	off = e &^ (layout.MiB - 1)
	switch state := e & layout.StateMask; {
	case e&layout.ReservedMask != 0:
		return 0, false, strict.Refuse(strict.Corrupt, "block %d has the entry 0x%x, which uses reserved bits", block, e)
	case state <= layout.Unmapped:
		return 0, false, nil
	case state == layout.PartiallyPresent:
		return 0, false, strict.Refuse(strict.Corrupt, "block %d is said to lie in part in another file, but the disk has no parent", block)
	case state != layout.FullyPresent:
		return 0, false, strict.Refuse(strict.Corrupt, "block %d has the unknown state %d", block, state)
	case off < layout.HeaderSection:
		return 0, false, strict.Refuse(strict.Overlap, "block %d at 0x%x lies on the header section", block, off)
	}
	if n := im.visible(block); off > im.file.Size || n > im.file.Size-off {
		return 0, false, strict.Refuse(strict.Truncated, "block %d at 0x%x (%d bytes) reaches past the end of the file (%d bytes)", block, off, n, im.file.Size)
	}
	return off, true, nil
}

// markBitmap judges the entry of a sector bitmap, which disks without parent do
// not need: where one is, it must be in a place of its own.
func (im *image) markBitmap(m *strict.Map, i, e uint64) error {
	off := e &^ (layout.MiB - 1)
	switch state := e & layout.StateMask; {
	case e&layout.ReservedMask != 0 || state != layout.NotPresent && state != layout.FullyPresent:
		return strict.Refuse(strict.Corrupt, "entry %d of the block allocation table, 0x%x, is none of a sector bitmap", i, e)
	case state == layout.NotPresent:
		return nil
	}
	if err := im.file.Inside(off, layout.MiB, "a sector bitmap"); err != nil {
		return err
	}
	return m.Mark(off, layout.MiB, "a sector bitmap")
}

// Source reads a file that Open has accepted. It is safe for concurrent use. It
// keeps every check while it reads, should the file change under it.
type Source struct {
	im    *image
	pages pages.Cache
}

// Size returns the virtual size in bytes.
func (s *Source) Size() int64 { return int64(s.im.size) }

// ReadAt reads guest bytes.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	return s.im.file.ReadMapped("vhdx.read", p, off, s.Size(), s.mapping)
}

// Extent returns the extent at off: Data or Zero.
func (s *Source) Extent(off int64) (diskfmt.Extent, error) {
	m, err := s.run(off, false)
	return m.Extent, err
}

// Map returns the mapping at off. A Data mapping is contiguous in the file.
func (s *Source) Map(off int64) (diskfmt.Mapping, error) {
	return s.run(off, true)
}

// run returns the run of blocks of one kind at off. With byHost a run of data is
// contiguous in the file.
func (s *Source) run(off int64, byHost bool) (diskfmt.Mapping, error) {
	if off < 0 || off >= s.Size() {
		return diskfmt.Mapping{}, errs.New(errs.Invalid, "vhdx.map", "", "offset %d is outside the disk of %d bytes", off, s.im.size)
	}
	m, err := s.mapping(off)
	if err != nil {
		return diskfmt.Mapping{}, errs.Wrap(err, "vhdx.map", "")
	}
	for range scanBlocks {
		if m.End() >= s.Size() {
			break
		}
		next, err := s.mapping(m.End())
		if err != nil || next.Kind != m.Kind || byHost && m.Kind == diskfmt.Data && next.HostOffset != m.HostOffset+m.Length {
			break // whoever asks for that offset gets the error
		}
		m.Length += next.Length
	}
	if m.Kind == diskfmt.Data {
		m.HostLength = m.Length
	}
	return m, nil
}

// mapping returns the run at off, which is inside the disk, within its block.
func (s *Source) mapping(off int64) (diskfmt.Mapping, error) {
	block, in := uint64(off)/s.im.block, uint64(off)%s.im.block
	m := diskfmt.Mapping{Extent: diskfmt.Extent{Offset: off, Length: int64(s.im.visible(block) - in), Kind: diskfmt.Zero}}
	e, err := s.entry(block + block/s.im.chunk)
	if err != nil {
		return m, err
	}
	at, stored, err := s.im.payload(block, e)
	if err != nil || !stored {
		return m, err
	}
	m.Kind, m.HostOffset, m.HostLength = diskfmt.Data, int64(at+in), m.Length
	return m, nil
}

// entry returns entry i of the block allocation table through the cache.
func (s *Source) entry(i uint64) (uint64, error) {
	n := i / perPage
	page := s.pages.Get(n)
	if page == nil {
		var err error
		page, err = s.im.file.Bytes(s.im.bat.Offset+n*pageSize, min(pageSize, uint64(s.im.bat.Length)-n*pageSize), "the block allocation table")
		if err != nil {
			return 0, err
		}
		s.pages.Put(n, page)
	}
	return binary.LittleEndian.Uint64(page[i%perPage*layout.BATEntry:]), nil
}
