package layout

import (
	"encoding/binary"

	"github.com/tarn-storage/tarn/diskfmt"
)

// Part is a changed byte range of an L2 table: Bytes belong at host offset Off.
type Part struct {
	Off   uint64
	Bytes []byte
	s     *slice
}

// Clean marks the part as written.
func (p Part) Clean() { p.s.dirtyLo, p.s.dirtyHi = 0, 0 }

// Table returns the offset of the L2 table that the part belongs to.
func (p Part) Table(clusterBits uint32) uint64 { return p.Off &^ (1<<clusterBits - 1) }

// Entry returns the L2 entry, and the subcluster bitmap if there is one, of the
// guest cluster at pos. Both are 0 where no L2 table exists.
func (r *Reader) Entry(pos uint64) (e, bitmap uint64, err error) {
	i := pos >> r.l1Shift
	if i >= uint64(len(r.L1)) || r.L1[i] == 0 {
		return 0, 0, nil
	}
	s, err := r.slice(r.L1[i]&OffsetMask, pos)
	if err != nil {
		return 0, 0, err
	}
	b := s.buf[r.inSlice(pos):]
	e = binary.BigEndian.Uint64(b)
	if r.entry == 16 {
		bitmap = binary.BigEndian.Uint64(b[8:])
	}
	return e, bitmap, nil
}

// SetEntry changes the entry of the guest cluster at pos in memory. Its L2 table
// must exist.
func (r *Reader) SetEntry(pos, e, bitmap uint64) error {
	s, err := r.slice(r.L1[pos>>r.l1Shift]&OffsetMask, pos)
	if err != nil {
		return err
	}
	lo := int(r.inSlice(pos))
	binary.BigEndian.PutUint64(s.buf[lo:], e)
	if r.entry == 16 {
		binary.BigEndian.PutUint64(s.buf[lo+8:], bitmap)
	}
	hi := lo + int(r.entry)
	if s.dirtyHi == 0 {
		s.dirtyLo, s.dirtyHi = lo, hi
		r.dirty = append(r.dirty, s)
		return nil
	}
	s.dirtyLo, s.dirtyHi = min(s.dirtyLo, lo), max(s.dirtyHi, hi)
	return nil
}

func (r *Reader) inSlice(pos uint64) uint64 {
	return pos >> r.H.ClusterBits & (r.sliceSize/r.entry - 1) * r.entry
}

// DirtyCount returns how many slices of L2 tables have changes.
func (r *Reader) DirtyCount() int { return len(r.dirty) }

// TakeDirty returns the changed parts and forgets them; the caller writes each
// and calls Clean.
func (r *Reader) TakeDirty() []Part {
	parts := make([]Part, len(r.dirty))
	for i, s := range r.dirty {
		parts[i] = Part{Off: s.off + uint64(s.dirtyLo), Bytes: s.buf[s.dirtyLo:s.dirtyHi], s: s}
	}
	r.dirty = r.dirty[:0]
	return parts
}

// L1Index returns the L1 entry that maps guest offset pos.
func (r *Reader) L1Index(pos uint64) uint64 { return pos >> r.l1Shift }

// InPlace reports whether an entry's host cluster belongs to it alone, so that
// its bytes may be overwritten.
func InPlace(e uint64) bool { return e&CompressFlag == 0 && e&Copied != 0 && e&OffsetMask != 0 }

// AllData and AllZero are the bitmaps of a cluster whose subclusters share a state.
const (
	AllData = uint64(1)<<32 - 1
	AllZero = AllData << 32
)

// DataEntry returns the entry of a cluster wholly stored at host.
func (r *Reader) DataEntry(host uint64) (e, bitmap uint64) { return host | Copied, AllData }

// ZeroEntry returns the entry of a cluster that reads as zeroes and has no place.
func (r *Reader) ZeroEntry() (e, bitmap uint64) {
	if r.entry == 16 {
		return 0, AllZero
	}
	return ZeroFlag, 0
}

// Stored reports whether the run lies in this layer and may be overwritten.
func (run Run) Stored() bool {
	return run.Kind == diskfmt.Data && !run.Compressed && run.Copied
}

// Refcount reads refcount i of a block whose refcounts are 1<<order bits wide
// ("Host cluster management").
func Refcount(b []byte, order uint32, i uint64) uint64 {
	switch order {
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(b[i*8:])
	}
	bit := i << order
	return uint64(b[bit/8]>>(bit%8)) & (1<<(1<<order) - 1)
}

// SetRefcount writes refcount i of a block; v must fit.
func SetRefcount(b []byte, order uint32, i, v uint64) {
	switch order {
	case 3:
		b[i] = byte(v)
	case 4:
		binary.BigEndian.PutUint16(b[i*2:], uint16(v))
	case 5:
		binary.BigEndian.PutUint32(b[i*4:], uint32(v))
	case 6:
		binary.BigEndian.PutUint64(b[i*8:], v)
	default:
		bit := i << order
		mask := byte(1<<(1<<order)-1) << (bit % 8)
		b[bit/8] = b[bit/8]&^mask | byte(v)<<(bit%8)
	}
}
