// Package layout knows how a qcow2 file is laid out: header, extensions, tables,
// entries and compressed clusters, as docs/interop/qcow2.txt of QEMU defines
// them. Both doors to the format stand on it. It refuses to decide what is
// acceptable beyond structure, and to open or follow any name it meets.
package layout

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
)

// The header's fixed values ("Header" in the specification).
const (
	Magic         = 0x514649fb
	headerV2      = 72
	headerV3      = 104
	HeaderLength  = 112 // what this package writes, as QEMU does since 5.1
	MaxBacking    = 1023
	MinBits       = 9
	MaxBits       = 21
	MaxL1Bytes    = 32 << 20 // QEMU's QCOW_MAX_L1_SIZE
	MaxRefTable   = 8 << 20  // QEMU's QCOW_MAX_REFTABLE_SIZE
	MaxSnapshots  = 65536
	MaxSnapTable  = 64 << 20
	firstRead     = 4096
	maxExtensions = 64
)

// Incompatible, compatible and autoclear feature bits.
const (
	Dirty           = 1 << 0
	CorruptMark     = 1 << 1
	DataFile        = 1 << 2
	CompressionBit  = 1 << 3
	ExtendedL2Bit   = 1 << 4
	KnownIncompat   = Dirty | CorruptMark | DataFile | CompressionBit | ExtendedL2Bit
	LazyRefcounts   = 1 << 0 // compatible
	AutoBitmaps     = 1 << 0 // autoclear
	AutoDataFileRaw = 1 << 1 // autoclear
)

// Header extension types.
const (
	ExtEnd           = 0
	ExtBackingFormat = 0xe2792aca
	ExtFeatureNames  = 0x6803f857
	ExtBitmaps       = 0x23852875
	ExtCrypto        = 0x0537be77
	ExtDataFile      = 0x44415441
)

// Classes of refusal. The trusted door turns each of them into errs.Corrupt.
const (
	ClassEmpty     = "EMPTY"
	ClassMismatch  = "FORMAT_MISMATCH"
	ClassVersion   = "UNSUPPORTED_VERSION"
	ClassFeature   = "UNSUPPORTED_FEATURE"
	ClassExternal  = "EXTERNAL_REFERENCE"
	ClassTruncated = "TRUNCATED"
	ClassCorrupt   = "CORRUPT"
	ClassOverlap   = "OVERLAP"
	ClassLimit     = "LIMIT"
	ClassQuota     = "QUOTA"
	ClassDirty     = "DIRTY"
)

// Classes of a wrong call, which say nothing about the file.
const (
	ClassRange = "range" // an offset outside the disk
	ClassBelow = "below" // a read of what another layer holds
)

// Fault says what is wrong with the file or the call, and of which class it is.
type Fault struct {
	Class string
	Msg   string
}

func (f *Fault) Error() string { return f.Msg }

// Faultf makes a Fault.
func Faultf(class, format string, args ...any) error {
	return &Fault{Class: class, Msg: fmt.Sprintf(format, args...)}
}

// Compression types of the header's byte 104.
const (
	Zlib = 0
	Zstd = 1
)

// Header is a parsed header. Offsets are as found; Check judges them.
type Header struct {
	Version         uint32
	BackingOffset   uint64
	BackingSize     uint32
	ClusterBits     uint32
	Size            uint64
	Crypt           uint32
	L1Size          uint32 // entries
	L1Offset        uint64
	RefTableOffset  uint64
	RefTableCluster uint32 // clusters
	Snapshots       uint32
	SnapshotsOffset uint64
	Incompat        uint64
	Compat          uint64
	Autoclear       uint64
	RefcountOrder   uint32
	Length          uint32
	Compression     uint8

	BackingName   []byte // the bytes of the backing string, nil without one
	BackingFormat []byte // the backing format extension, nil without one
	HasBackingFmt bool
	HasDataFile   bool // the data file extension is there
	HasCrypto     bool
	Bitmaps       []byte // the bitmaps extension, nil without one
	Extensions    int
}

// ClusterSize returns the size of a cluster in bytes.
func (h *Header) ClusterSize() uint64 { return 1 << h.ClusterBits }

// ExtendedL2 reports whether L2 entries are 128 bits wide and have subclusters.
func (h *Header) ExtendedL2() bool { return h.Incompat&ExtendedL2Bit != 0 }

// L2Bits returns the base-2 logarithm of the number of entries of an L2 table.
func (h *Header) L2Bits() uint32 {
	if h.ExtendedL2() {
		return h.ClusterBits - 4
	}
	return h.ClusterBits - 3
}

// L1Needed returns how many L1 entries a disk of size bytes takes.
func (h *Header) L1Needed(size uint64) uint64 {
	shift := h.ClusterBits + h.L2Bits()
	n := size >> shift
	if size&(1<<shift-1) != 0 {
		n++
	}
	return n
}

// BlockRefs returns how many refcounts a refcount block holds.
func (h *Header) BlockRefs() uint64 { return (h.ClusterSize() * 8) >> h.RefcountOrder }

var headerBuf = sync.Pool{New: func() any { b := make([]byte, firstRead); return &b }}

var errShort = errors.New("more of the first cluster is needed")

// ReadHeader reads and parses the header with one read of 4 KiB, or a second
// one of the whole first cluster when extensions reach beyond. size is the
// container's. The error is a *Fault or the reader's own.
func ReadHeader(r io.ReaderAt, size int64) (*Header, error) {
	if size <= 0 {
		return nil, Faultf(ClassEmpty, "the file is empty")
	}
	bp := headerBuf.Get().(*[]byte)
	defer headerBuf.Put(bp)
	h := new(Header)
	buf := *bp
	for {
		buf = buf[:min(int64(len(buf)), size)]
		if err := ReadFull(r, buf, 0); err != nil {
			return nil, err
		}
		err := h.parse(buf, size)
		if err != errShort {
			if err != nil {
				return nil, err
			}
			return h, nil
		}
		cluster := int64(h.ClusterSize())
		if int64(len(buf)) >= cluster || int64(len(buf)) >= size {
			return nil, Faultf(ClassTruncated, "the header's extensions or backing name end past the first cluster or the file (%d bytes)", size)
		}
		*h = Header{}
		buf = make([]byte, cluster)
	}
}

// ReadFull reads exactly len(p) bytes at off.
func ReadFull(r io.ReaderAt, p []byte, off uint64) error {
	n, err := r.ReadAt(p, int64(off))
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return Faultf(ClassTruncated, "the file ends at 0x%x, inside the %d bytes at 0x%x", off+uint64(n), len(p), off)
	}
	return err
}

func (h *Header) parse(b []byte, size int64) error {
	be := binary.BigEndian
	if len(b) < 8 || be.Uint32(b) != Magic {
		return Faultf(ClassMismatch, "the file does not begin with qcow2's magic number")
	}
	h.Version = be.Uint32(b[4:])
	if h.Version != 2 && h.Version != 3 {
		return Faultf(ClassVersion, "header version %d; only 2 and 3 are known", h.Version)
	}
	fixed := headerV2
	if h.Version == 3 {
		fixed = headerV3
	}
	if len(b) < fixed {
		return Faultf(ClassTruncated, "the file has %d bytes, its header alone has %d", size, fixed)
	}
	h.BackingOffset = be.Uint64(b[8:])
	h.BackingSize = be.Uint32(b[16:])
	h.ClusterBits = be.Uint32(b[20:])
	h.Size = be.Uint64(b[24:])
	h.Crypt = be.Uint32(b[32:])
	h.L1Size = be.Uint32(b[36:])
	h.L1Offset = be.Uint64(b[40:])
	h.RefTableOffset = be.Uint64(b[48:])
	h.RefTableCluster = be.Uint32(b[56:])
	h.Snapshots = be.Uint32(b[60:])
	h.SnapshotsOffset = be.Uint64(b[64:])
	h.RefcountOrder, h.Length = 4, headerV2
	if h.Version == 3 {
		h.Incompat = be.Uint64(b[72:])
		h.Compat = be.Uint64(b[80:])
		h.Autoclear = be.Uint64(b[88:])
		h.RefcountOrder = be.Uint32(b[96:])
		h.Length = be.Uint32(b[100:])
	}
	if h.ClusterBits < MinBits || h.ClusterBits > MaxBits {
		return Faultf(ClassCorrupt, "cluster_bits at 0x14 is %d; %d to %d are allowed", h.ClusterBits, MinBits, MaxBits)
	}
	if h.RefcountOrder > 6 {
		return Faultf(ClassCorrupt, "refcount_order at 0x60 is %d; 6 is the most", h.RefcountOrder)
	}
	if h.Version == 3 && (h.Length < headerV3 || h.Length%8 != 0 || uint64(h.Length) > h.ClusterSize()) {
		return Faultf(ClassCorrupt, "header_length at 0x64 is %d; it must be a multiple of 8 from %d to the cluster size", h.Length, headerV3)
	}
	if h.Length > headerV3 {
		if len(b) <= headerV3 {
			return errShort
		}
		h.Compression = b[headerV3]
	}
	return h.parseNames(b)
}

// parseNames reads the extensions, which end before the backing name or at the
// end of the first cluster, and the backing name.
func (h *Header) parseNames(b []byte) error {
	be := binary.BigEndian
	end := h.ClusterSize()
	if h.BackingOffset != 0 {
		if h.BackingSize > MaxBacking {
			return Faultf(ClassCorrupt, "the backing name at 0x%x has %d bytes; %d is the most", h.BackingOffset, h.BackingSize, MaxBacking)
		}
		if h.BackingOffset < uint64(h.Length) || h.BackingOffset > end || uint64(h.BackingSize) > end-h.BackingOffset {
			return Faultf(ClassCorrupt, "the backing name at 0x%x (%d bytes) is not inside the first cluster after the header", h.BackingOffset, h.BackingSize)
		}
		end = h.BackingOffset
	}
	seen := make([]uint32, 0, 8)
	for pos := uint64(h.Length); ; {
		if end-pos < 8 {
			if h.Version == 2 && pos == end {
				break
			}
			return Faultf(ClassCorrupt, "the header extensions that begin at 0x%x do not end before 0x%x", h.Length, end)
		}
		if uint64(len(b)) < pos+8 {
			return errShort
		}
		typ, n := be.Uint32(b[pos:]), uint64(be.Uint32(b[pos+4:]))
		if typ == ExtEnd {
			if n != 0 {
				return Faultf(ClassCorrupt, "the end of the header extensions at 0x%x has length %d", pos, n)
			}
			break
		}
		pos += 8
		padded := (n + 7) &^ 7
		if padded > end-pos {
			return Faultf(ClassCorrupt, "header extension 0x%08x at 0x%x has %d bytes and reaches past 0x%x", typ, pos-8, n, end)
		}
		if uint64(len(b)) < pos+padded {
			return errShort
		}
		for _, t := range seen {
			if t == typ {
				return Faultf(ClassCorrupt, "header extension 0x%08x at 0x%x is there twice", typ, pos-8)
			}
		}
		if len(seen) == maxExtensions {
			return Faultf(ClassLimit, "more than %d header extensions", maxExtensions)
		}
		seen = append(seen, typ)
		h.extension(typ, b[pos:pos+n])
		pos += padded
	}
	h.Extensions = len(seen)
	if h.BackingOffset != 0 {
		if uint64(len(b)) < h.BackingOffset+uint64(h.BackingSize) {
			return errShort
		}
		h.BackingName = append([]byte{}, b[h.BackingOffset:h.BackingOffset+uint64(h.BackingSize)]...)
	}
	return nil
}

func (h *Header) extension(typ uint32, data []byte) {
	switch typ {
	case ExtBackingFormat:
		h.HasBackingFmt = true
		h.BackingFormat = append([]byte{}, data...)
	case ExtDataFile:
		h.HasDataFile = true
	case ExtCrypto:
		h.HasCrypto = true
	case ExtBitmaps:
		h.Bitmaps = append([]byte{}, data...)
	}
}

// Span is the host byte range [Offset, Offset+Length) of the structure Name.
type Span struct {
	Name   string
	Offset uint64
	Length uint64
}

// Spans returns the ranges that the header itself lays down: the header's
// cluster, the active L1 table, the refcount table and nothing else.
func (h *Header) Spans() [3]Span {
	return [3]Span{
		{"the header", 0, h.ClusterSize()},
		{"the L1 table", h.L1Offset, uint64(h.L1Size) * 8},
		{"the refcount table", h.RefTableOffset, uint64(h.RefTableCluster) << h.ClusterBits},
	}
}

// Check judges the header's geometry against a container of size bytes: tables
// aligned, bounded, inside the file, disjoint, large enough for the disk, and
// feature fields that agree with each other.
func (h *Header) Check(size uint64) error {
	if err := h.checkFields(); err != nil {
		return err
	}
	spans := h.Spans()
	for _, s := range spans[1:] {
		if err := h.checkTable(s, size); err != nil {
			return err
		}
	}
	for i, a := range spans {
		for _, b := range spans[i+1:] {
			if a.Length > 0 && b.Length > 0 && a.Offset < b.Offset+b.Length && b.Offset < a.Offset+a.Length {
				return Faultf(ClassOverlap, "%s at 0x%x and %s at 0x%x overlap", a.Name, a.Offset, b.Name, b.Offset)
			}
		}
	}
	if h.Snapshots > MaxSnapshots {
		return Faultf(ClassLimit, "%d internal snapshots; %d is the most", h.Snapshots, MaxSnapshots)
	}
	if h.SnapshotsOffset&(h.ClusterSize()-1) != 0 || h.Snapshots > 0 && h.SnapshotsOffset == 0 {
		return Faultf(ClassCorrupt, "the snapshot table's offset 0x%x is not at a cluster's start", h.SnapshotsOffset)
	}
	if h.Snapshots > 0 && h.SnapshotsOffset >= size {
		return Faultf(ClassTruncated, "the snapshot table at 0x%x lies past the end of the file (%d bytes)", h.SnapshotsOffset, size)
	}
	return nil
}

func (h *Header) checkFields() error {
	switch {
	case h.ExtendedL2() && h.ClusterBits < 14:
		return Faultf(ClassCorrupt, "extended L2 entries need clusters of 16 KiB or more, the header says %d bytes", h.ClusterSize())
	case h.Compression > Zstd:
		return Faultf(ClassFeature, "compression type %d at 0x68 is unknown", h.Compression)
	case (h.Compression != Zlib) != (h.Incompat&CompressionBit != 0):
		return Faultf(ClassCorrupt, "compression type %d at 0x68 contradicts the incompatible feature bits 0x%x", h.Compression, h.Incompat)
	case h.Size%512 != 0:
		return Faultf(ClassCorrupt, "the virtual size %d is not a multiple of 512", h.Size)
	case uint64(h.L1Size)*8 > MaxL1Bytes:
		return Faultf(ClassLimit, "the L1 table has %d entries; %d is the most", h.L1Size, MaxL1Bytes/8)
	case uint64(h.L1Size) < h.L1Needed(h.Size):
		return Faultf(ClassCorrupt, "the L1 table has %d entries, a disk of %d bytes needs %d", h.L1Size, h.Size, h.L1Needed(h.Size))
	case h.RefTableCluster == 0:
		return Faultf(ClassCorrupt, "the refcount table has no cluster")
	case uint64(h.RefTableCluster)<<h.ClusterBits > MaxRefTable:
		return Faultf(ClassLimit, "the refcount table has %d clusters; %d MiB is the most", h.RefTableCluster, MaxRefTable>>20)
	}
	return nil
}

func (h *Header) checkTable(s Span, size uint64) error {
	if s.Length == 0 {
		return nil
	}
	if s.Offset == 0 || s.Offset&(h.ClusterSize()-1) != 0 {
		return Faultf(ClassCorrupt, "%s's offset 0x%x is not at a cluster's start", s.Name, s.Offset)
	}
	if s.Offset > size || s.Length > size-s.Offset {
		return Faultf(ClassTruncated, "%s at 0x%x (%d bytes) reaches past the end of the file (%d bytes)", s.Name, s.Offset, s.Length, size)
	}
	return nil
}
