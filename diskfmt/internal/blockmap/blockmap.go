// Package blockmap judges and reads disks whose map is one array of 32-bit
// little-endian entries, an entry for each block of the guest, and whose blocks
// lie in slots of the same size behind one offset, as those of VDI and
// Parallels do. It refuses to know what an entry means, and to let two blocks
// share a slot.
package blockmap

import (
	"context"
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/pages"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

const (
	entrySize  = 4
	pageSize   = 64 << 10 // bytes of the map that are read at once
	perPage    = pageSize / entrySize
	scanPages  = 16 // that one Map or Extent looks at before it answers
	walkReport = 64 // pages between two reports of progress
)

// Disk is a container of Size guest bytes. Its fields must have been judged:
// Entries*Block >= Size, and the table lies inside the file, before Data.
type Disk struct {
	File    strict.File
	Op      string // of errors: "vdi"
	Size    uint64 // bytes of the disk
	Block   uint64 // bytes of a block
	Table   uint64 // where the map lies
	Entries uint64 // of the map
	Data    uint64 // where slot 0 lies
	Slots   uint64 // there can be: none at or behind it is ever named

	// Place returns the slot that the entry e names, and false where nothing is
	// stored and the block reads as zeroes.
	Place func(e uint32) (slot uint64, stored bool, err error)

	pages pages.Cache
}

// Check walks the whole map and refuses entries that Place refuses, slots that
// reach past the end of the file, and slots that are named twice. It returns
// how many are named by the blocks of the disk, and by all entries. Memory is
// bounded; more than 128 Mi slots take several passes.
func (d *Disk) Check(ctx context.Context, lim strict.Limits) (inDisk, named uint64, err error) {
	used := strict.NewMap(d.Slots, 1)
	blocks := d.blocks()
	total := int64(d.Entries) * used.Passes()
	for pass := int64(0); used.Next(); pass++ {
		err := d.walk(func(i uint64, e uint32) error {
			if i%(perPage*walkReport) == 0 {
				if err := lim.Tell(ctx, pass*int64(d.Entries)+int64(i), total); err != nil {
					return err
				}
			}
			slot, stored, err := d.slot(i, e)
			if err != nil || !stored {
				return err
			}
			if used.First() {
				named++
				if i < blocks {
					inDisk++
				}
			}
			if used.Mark(slot, 1, "a block") != nil {
				return d.fault(i, strict.Refuse(strict.Overlap, "the block at 0x%x belongs to another entry too", d.Data+slot*d.Block))
			}
			return nil
		})
		if err != nil {
			return 0, 0, err
		}
	}
	return inDisk, named, lim.Tell(ctx, total, total)
}

// blocks returns how many entries map bytes of the disk.
func (d *Disk) blocks() uint64 { return (d.Size + d.Block - 1) / d.Block }

// walk gives every entry to each, in order.
func (d *Disk) walk(each func(i uint64, e uint32) error) error {
	buf := make([]byte, min(pageSize, d.Entries*entrySize))
	for i := uint64(0); i < d.Entries; {
		b := buf[:min(uint64(len(buf)), (d.Entries-i)*entrySize)]
		if err := d.File.Read(b, d.Table+i*entrySize, "the block map"); err != nil {
			return err
		}
		for ; len(b) > 0; b, i = b[entrySize:], i+1 {
			if err := each(i, binary.LittleEndian.Uint32(b)); err != nil {
				return err
			}
		}
	}
	return nil
}

// slot judges entry i.
func (d *Disk) slot(i uint64, e uint32) (uint64, bool, error) {
	slot, stored, err := d.Place(e)
	switch {
	case err != nil:
	case !stored:
		return 0, false, nil
	case slot >= d.Slots:
		err = strict.Refuse(strict.Corrupt, "it names block %d of %d", slot, d.Slots)
	default:
		err = d.File.Inside(d.Data+slot*d.Block, d.Block, "the block")
	}
	if err != nil {
		return 0, false, d.fault(i, err)
	}
	return slot, true, nil
}

// fault says of which entry err is.
func (d *Disk) fault(i uint64, err error) error {
	if class := strict.ClassOf(err); class != "" {
		return strict.Refuse(class, "entry %d of the block map, at 0x%x: %w", i, d.Table+i*entrySize, err)
	}
	return err
}

// entry returns entry i through the cache.
func (d *Disk) entry(i uint64) (uint32, error) {
	n := i / perPage
	page := d.pages.Get(n)
	if page == nil {
		first := n * perPage
		page = make([]byte, min(pageSize, (d.Entries-first)*entrySize))
		if err := d.File.Read(page, d.Table+first*entrySize, "the block map"); err != nil {
			return 0, err
		}
		d.pages.Put(n, page)
	}
	return binary.LittleEndian.Uint32(page[i%perPage*entrySize:]), nil
}

// run returns the run that begins at off and ends by end. With byHost a run of
// data is contiguous in the container.
func (d *Disk) run(off, end uint64, byHost bool) (diskfmt.Mapping, error) {
	var m diskfmt.Mapping
	first := off / d.Block
	for pos, i := off, first; pos < end && (i-first) < scanPages*perPage; i++ {
		e, err := d.entry(i)
		if err != nil {
			return m, err
		}
		slot, stored, err := d.slot(i, e)
		if err != nil {
			return m, err
		}
		n := min((i+1)*d.Block, end) - pos
		kind, host := diskfmt.Zero, uint64(0)
		if stored {
			kind, host = diskfmt.Data, d.Data+slot*d.Block+pos%d.Block
		}
		if m.Length == 0 {
			m.Offset, m.Kind, m.HostOffset = int64(off), kind, int64(host)
		} else if kind != m.Kind || byHost && stored && int64(host) != m.HostOffset+m.HostLength {
			break
		}
		m.Length += int64(n)
		if stored {
			m.HostLength += int64(n)
		}
		pos += n
	}
	return m, nil
}

// Source is a diskfmt.Mapper of a Disk that Check has accepted. It is safe for
// concurrent use.
type Source struct{ d *Disk }

// NewSource returns a Source of d.
func NewSource(d *Disk) *Source { return &Source{d} }

// Size returns the virtual size in bytes.
func (s *Source) Size() int64 { return int64(s.d.Size) }

// ReadAt reads guest bytes.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	d := s.d
	if off < 0 {
		return 0, errs.New(errs.Invalid, d.Op+".read", "", "negative offset %d", off)
	}
	if uint64(off) >= d.Size {
		return 0, io.EOF
	}
	n, end := 0, min(uint64(off)+uint64(len(p)), d.Size)
	for pos := uint64(off); pos < end; {
		m, err := d.run(pos, end, true)
		if err == nil && m.Kind == diskfmt.Data {
			err = d.File.Read(p[n:n+int(m.Length)], uint64(m.HostOffset), "the block")
		}
		if err != nil {
			return n, errs.Wrap(err, d.Op+".read", "")
		}
		if m.Kind == diskfmt.Zero {
			clear(p[n : n+int(m.Length)])
		}
		n += int(m.Length)
		pos += uint64(m.Length)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent returns the extent at off: Data or Zero.
func (s *Source) Extent(off int64) (diskfmt.Extent, error) {
	m, err := s.mapping(off, false)
	return m.Extent, err
}

// Map returns the mapping at off: a Data mapping is contiguous in the file.
func (s *Source) Map(off int64) (diskfmt.Mapping, error) { return s.mapping(off, true) }

func (s *Source) mapping(off int64, byHost bool) (diskfmt.Mapping, error) {
	d := s.d
	if off < 0 || uint64(off) >= d.Size {
		return diskfmt.Mapping{}, errs.New(errs.Invalid, d.Op+".map", "", "offset %d is outside the disk of %d bytes", off, d.Size)
	}
	m, err := d.run(uint64(off), d.Size, byHost)
	return m, errs.Wrap(err, d.Op+".map", "")
}
