package inspect

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/internal/layout"
)

// known are the items that every disk has, with their lengths. Parents have one
// more.
var known = map[layout.GUID]uint32{
	layout.ItemParameters: 8,
	layout.ItemSize:       8,
	layout.ItemDiskID:     16,
	layout.ItemLogical:    4,
	layout.ItemPhysical:   4,
}

// readItems reads and judges the metadata table.
func (im *image) readItems() error {
	base := im.metadata.Offset
	b, err := im.file.Bytes(base, layout.TableSize, "the metadata table")
	if err != nil {
		return err
	}
	count := int(binary.LittleEndian.Uint16(b[10:]))
	switch {
	case string(b[:8]) != layout.MetadataSignature:
		return strict.Refuse(strict.Corrupt, "the metadata table at 0x%x begins with %s", base, strict.Quote(b[:8]))
	case count > layout.MaxEntries:
		return strict.Refuse(strict.Limit, "the metadata table at 0x%x has %d entries; %d is the most", base, count, layout.MaxEntries)
	}
	im.items = map[layout.GUID]layout.Item{}
	all := make([]layout.Item, count)
	users := 0
	for i := range all {
		at := (i + 1) * layout.EntrySize
		layout.Decode(b[at:], &all[i])
		if err := im.judgeItem(&all[i], base+uint64(at)); err != nil {
			return err
		}
		if all[i].Flags&layout.ItemUser != 0 {
			users++
		}
		if _, ok := known[all[i].ID]; ok {
			im.items[all[i].ID] = all[i]
		}
	}
	switch {
	case users > layout.MaxUserItems:
		return strict.Refuse(strict.Limit, "the metadata table at 0x%x has %d items of users; %d is the most", base, users, layout.MaxUserItems)
	case len(im.items) != len(known):
		return strict.Refuse(strict.Corrupt, "the metadata table at 0x%x has %d of the %d required items", base, len(im.items), len(known))
	}
	return apart(all, base)
}

// judgeItem judges the entry e that lies at at.
func (im *image) judgeItem(e *layout.Item, at uint64) error {
	length, isKnown := known[e.ID]
	switch {
	case e.ID == layout.ItemParent:
		return strict.Refuse(strict.External, "the metadata table's entry at 0x%x names a parent", at)
	case e.Flags&^layout.ItemFlags != 0:
		return strict.Refuse(strict.Feature, "the metadata table's entry at 0x%x has the unknown flags 0x%x", at, e.Flags)
	case !isKnown && e.Flags&layout.ItemRequired != 0:
		return strict.Refuse(strict.Feature, "the metadata table's entry at 0x%x requires the unknown item %s", at, strict.Quote(e.ID[:]))
	case isKnown && (e.Length != length || e.Flags&layout.ItemUser != 0):
		return strict.Refuse(strict.Corrupt, "the metadata table's entry at 0x%x has %d bytes and the flags 0x%x; a required item of %d is due", at, e.Length, e.Flags, length)
	case e.Length > layout.MaxItems:
		return strict.Refuse(strict.Limit, "the metadata table's entry at 0x%x has %d bytes; %d is the most", at, e.Length, layout.MaxItems)
	case e.Length == 0 && e.Offset == 0:
		return nil
	case e.Offset < layout.ItemsAt:
		return strict.Refuse(strict.Overlap, "the metadata table's entry at 0x%x points to 0x%x, into the table itself", at, im.metadata.Offset+uint64(e.Offset))
	case uint64(e.Offset)+uint64(e.Length) > uint64(im.metadata.Length):
		return strict.Refuse(strict.Corrupt, "the metadata table's entry at 0x%x points to 0x%x (%d bytes), behind the metadata", at, im.metadata.Offset+uint64(e.Offset), e.Length)
	}
	return nil
}

// apart refuses items that are there twice or lie on each other. It reorders them.
func apart(all []layout.Item, base uint64) error {
	type key struct {
		id   layout.GUID
		user uint32
	}
	seen := map[key]bool{}
	slices.SortFunc(all, func(a, b layout.Item) int { return cmp.Compare(a.Offset, b.Offset) })
	end := uint64(0)
	for _, e := range all {
		k := key{e.ID, e.Flags & layout.ItemUser}
		switch {
		case seen[k]:
			return strict.Refuse(strict.Corrupt, "the metadata table at 0x%x has the item %s twice", base, strict.Quote(e.ID[:]))
		case e.Length != 0 && uint64(e.Offset) < end:
			return strict.Refuse(strict.Overlap, "the metadata item at 0x%x (%d bytes) lies on another", base+uint64(e.Offset), e.Length)
		}
		seen[k] = true
		end = max(end, uint64(e.Offset)+uint64(e.Length))
	}
	return nil
}

// item returns the bytes of a known item and where they lie.
func (im *image) item(id layout.GUID) ([]byte, uint64, error) {
	e := im.items[id]
	at := im.metadata.Offset + uint64(e.Offset)
	b, err := im.file.Bytes(at, uint64(e.Length), "a metadata item")
	return b, at, err
}

// readParameters reads the file parameters and the sector sizes.
func (im *image) readParameters() error {
	b, at, err := im.item(layout.ItemParameters)
	if err != nil {
		return err
	}
	block, flags := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	switch {
	case flags&layout.HasParent != 0:
		return strict.Refuse(strict.External, "the file parameters at 0x%x say that this disk is the difference to another file", at).
			WithHint("merge the disk with its parent first")
	case flags&^layout.LeaveAllocated != 0:
		return strict.Refuse(strict.Feature, "the file parameters at 0x%x have the unknown flags 0x%x", at, flags)
	case block < layout.MinBlock || block > layout.MaxBlock || bits.OnesCount32(block) != 1:
		return strict.Refuse(strict.Corrupt, "the file parameters at 0x%x have blocks of %d bytes; a power of two from 1 to 256 MiB is needed", at, block)
	}
	im.block, im.fixed = uint64(block), flags&layout.LeaveAllocated != 0
	for _, s := range []struct {
		id   layout.GUID
		what string
	}{{layout.ItemPhysical, "physical"}, {layout.ItemLogical, "logical"}} {
		b, at, err := im.item(s.id)
		if err != nil {
			return err
		}
		if im.sector = binary.LittleEndian.Uint32(b); im.sector != 512 && im.sector != 4096 {
			return strict.Refuse(strict.Corrupt, "the %s sectors at 0x%x have %d bytes; 512 or 4096 are needed", s.what, at, im.sector)
		}
	}
	return nil
}

// readSize reads the virtual size and compares it with the block allocation table.
func (im *image) readSize(lim strict.Limits) error {
	b, at, err := im.item(layout.ItemSize)
	if err != nil {
		return err
	}
	im.size = binary.LittleEndian.Uint64(b)
	switch {
	case im.size > layout.MaxSize:
		return strict.Refuse(strict.Limit, "the virtual size at 0x%x is %d bytes; a VHDX has at most %d", at, im.size, int64(layout.MaxSize))
	case im.size%uint64(im.sector) != 0:
		return strict.Refuse(strict.Corrupt, "the virtual size at 0x%x is %d bytes, which are no whole sectors of %d", at, im.size, im.sector)
	}
	if err := lim.Check(im.size); err != nil {
		return err
	}
	im.blocks = (im.size + im.block - 1) / im.block
	im.chunk = layout.Chunk(im.block, uint64(im.sector))
	if n := layout.Entries(im.blocks, im.chunk); n > uint64(im.bat.Length)/layout.BATEntry {
		return strict.Refuse(strict.Corrupt, "the block allocation table at 0x%x has %d bytes, too few for %d entries", im.bat.Offset, im.bat.Length, n)
	}
	return nil
}
