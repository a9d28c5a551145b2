package layout

import (
	"encoding/binary"
	"io"
	"slices"
	"sort"
	"sync"
)

// Bits of L1, L2, refcount table entries ("Cluster mapping" in the specification).
const (
	Copied       = uint64(1) << 63
	CompressFlag = uint64(1) << 62
	ZeroFlag     = uint64(1)
	OffsetMask   = uint64(0x00fffffffffffe00)
	l1Reserved   = ^(Copied | OffsetMask)
	l2Reserved   = ^(Copied | CompressFlag | OffsetMask | ZeroFlag)
)

// CompressedRange decodes a compressed cluster's descriptor: the host offset of
// its first byte and the bytes up to the end of its last sector ("Compressed
// Clusters Descriptor").
func (h *Header) CompressedRange(entry uint64) (off, length uint64) {
	shift := 62 - (h.ClusterBits - 8)
	off = entry & (1<<shift - 1)
	sectors := (entry>>shift)&(1<<(h.ClusterBits-8)-1) + 1
	return off, sectors*512 - off&511
}

// CheckCompressed judges a compressed cluster's descriptor and returns its host
// range, cut at the end of the file: the last sector need not be whole.
func (h *Header) CheckCompressed(entry, size uint64) (off, length uint64, err error) {
	off, length = h.CompressedRange(entry)
	switch {
	case entry&Copied != 0:
		return 0, 0, Faultf(ClassCorrupt, "the compressed entry 0x%016x has the COPIED flag", entry)
	case length >= h.ClusterSize()+512:
		return 0, 0, Faultf(ClassCorrupt, "the compressed entry 0x%016x has %d bytes, more than a cluster", entry, length)
	case off >= size || length > size-off && length-(size-off) >= 512:
		return 0, 0, Faultf(ClassTruncated, "the compressed entry 0x%016x points to 0x%x (%d bytes), past the end of the file (%d bytes)", entry, off, length, size)
	}
	return off, min(length, size-off), nil
}

// CheckTableEntry judges an L1 or refcount table entry that is to point to one
// whole cluster of metadata.
func (h *Header) CheckTableEntry(entry, reserved, size uint64) error {
	off := entry & OffsetMask
	switch {
	case entry&reserved != 0:
		return Faultf(ClassCorrupt, "0x%016x has reserved bits", entry)
	case off&(h.ClusterSize()-1) != 0:
		return Faultf(ClassCorrupt, "0x%016x does not point to a cluster's start", entry)
	case off >= size || h.ClusterSize() > size-off:
		return Faultf(ClassTruncated, "0x%016x points to 0x%x, past the end of the file (%d bytes)", entry, off, size)
	}
	return nil
}

// L1Reserved and RefReserved are the reserved bits of the two kinds of table entry.
const (
	L1Reserved  = l1Reserved
	RefReserved = ^OffsetMask
)

const window = 64 << 10

var windowBuf = sync.Pool{New: func() any { b := make([]byte, window); return &b }}

// ReadTable reads n big-endian 64-bit entries at off, in windows of 64 KiB.
func ReadTable(r io.ReaderAt, off, n uint64) ([]uint64, error) {
	out := make([]uint64, n)
	bp := windowBuf.Get().(*[]byte)
	defer windowBuf.Put(bp)
	for i := uint64(0); i < n; {
		b := (*bp)[:min(window, (n-i)*8)]
		if err := ReadFull(r, b, off+i*8); err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[8:] {
			out[i] = binary.BigEndian.Uint64(b)
			i++
		}
	}
	return out, nil
}

// Meta is the set of host ranges that hold metadata. Insertion order does not
// matter; Seal sorts and finds overlaps.
type Meta struct {
	bits  uint32
	spans []Span
	base  []uint64            // sorted offsets of single clusters
	added map[uint64]struct{} // those a writer added since
}

// NewMeta returns a set with the ranges that the header lays down.
func NewMeta(h *Header) *Meta {
	m := &Meta{bits: h.ClusterBits}
	m.SetSpans(h)
	return m
}

// SetSpans replaces the header's ranges after a table has moved.
func (m *Meta) SetSpans(h *Header) {
	m.spans = m.spans[:0]
	for _, s := range h.Spans() {
		if s.Length > 0 {
			s.Length = (s.Length + 1<<m.bits - 1) &^ (1<<m.bits - 1)
			m.spans = append(m.spans, s)
		}
	}
	if h.Snapshots > 0 {
		m.spans = append(m.spans, Span{"the snapshot table", h.SnapshotsOffset, 1})
	}
}

// Seal takes the offsets of all L2 tables and refcount blocks and refuses any
// that lie on each other or on a table.
func (m *Meta) Seal(clusters []uint64) error {
	if !slices.IsSorted(clusters) {
		slices.Sort(clusters)
	}
	m.base = clusters
	for i, c := range clusters {
		if i > 0 && clusters[i-1] == c {
			return Faultf(ClassOverlap, "two tables point to the same cluster at 0x%x", c)
		}
	}
	for _, s := range m.spans {
		if i := m.search(s.Offset &^ (1<<m.bits - 1)); i < len(m.base) && m.base[i] < s.Offset+s.Length {
			return Faultf(ClassOverlap, "a table at 0x%x overlaps %s at 0x%x", m.base[i], s.Name, s.Offset)
		}
	}
	return nil
}

func (m *Meta) search(off uint64) int {
	return sort.Search(len(m.base), func(i int) bool { return m.base[i] >= off })
}

// Add puts one cluster into the set.
func (m *Meta) Add(off uint64) {
	if m.added == nil {
		m.added = make(map[uint64]struct{})
	}
	m.added[off] = struct{}{}
}

// Hit reports whether the range overlaps metadata, and what it is.
func (m *Meta) Hit(off, length uint64) (string, bool) {
	for i := range m.spans {
		if s := &m.spans[i]; off < s.Offset+s.Length && s.Offset < off+length {
			return s.Name, true
		}
	}
	first := off &^ (1<<m.bits - 1)
	lo, hi := 0, len(m.base)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); m.base[mid] < first {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(m.base) && m.base[lo] < off+length {
		return "a table", true
	}
	if len(m.added) > 0 {
		for c := first; c < off+length; c += 1 << m.bits {
			if _, ok := m.added[c]; ok {
				return "a table", true
			}
		}
	}
	return "", false
}
