// Package layout holds what the reader and the writer of VMDK sparse extents
// share: the header, the markers of streams and their numbers. It refuses to
// judge: a field is decoded whatever it says. The format is that of VMware's
// "Virtual Disk Format 5.0", sections "Hosted Sparse Extents" and
// "Stream-Optimized Compressed Sparse Extents"; all numbers are little-endian.
package layout

import "encoding/binary"

// Sizes, in bytes unless said otherwise.
const (
	Sector       = 512
	TableEntries = 512 // grain table entries of one grain table
	TableBytes   = TableEntries * 4
	MarkerHead   = 12 // LBA and size, before the compressed bytes of a grain
	FooterBytes  = 3 * Sector
)

// Magics: the first four bytes of a file.
const (
	Magic       = 0x564d444b // "KDMV": a hosted sparse extent
	MagicCOWD   = 0x44574f43 // "COWD": an ESX Server sparse extent
	MagicSE     = 0xcafebabe // a space-efficient sparse extent
	MagicUnmade = 0x766d646b // "kdmv": a sparse extent that open-vmdk did not finish
)

// Flags of the header.
const (
	FlagNewline   = 1 << 0  // the newline test bytes are set
	FlagRedundant = 1 << 1  // there is a redundant grain directory
	FlagZeroGrain = 1 << 2  // a grain table entry of 1 means a grain of zeroes
	FlagCompress  = 1 << 16 // grains are compressed
	FlagMarkers   = 1 << 17 // markers stand before grains and metadata
	KnownFlags    = FlagNewline | FlagRedundant | FlagZeroGrain | FlagCompress | FlagMarkers
)

// Other values of the header's fields.
const (
	AtEnd   = ^uint64(0) // GDOffset: the footer says where the grain directory is
	Deflate = 1          // Compression: zlib, although the specification says bare deflate
)

// Types of a marker without compressed bytes.
const (
	MarkEnd       = 0
	MarkTable     = 1
	MarkDirectory = 2
	MarkFooter    = 3
	MarkProgress  = 4 // says only how far VMware is
)

// Newline is the value of the four newline test bytes.
const Newline = "\n \r\n"

// Header is a SparseExtentHeader. Offsets and sizes are in sectors.
type Header struct {
	Magic       uint32
	Version     uint32
	Flags       uint32
	Capacity    uint64
	Grain       uint64
	DescOffset  uint64
	DescSize    uint64
	TableSize   uint32 // entries of a grain table
	RGDOffset   uint64
	GDOffset    uint64
	Overhead    uint64
	Unclean     bool
	Newline     [4]byte
	Compression uint16
	Padding     bool // the bytes behind the fields are not all zero
}

// Decode returns the header in a sector.
func Decode(b []byte) Header {
	le := binary.LittleEndian
	h := Header{
		Magic: le.Uint32(b), Version: le.Uint32(b[4:]), Flags: le.Uint32(b[8:]), Capacity: le.Uint64(b[12:]),
		Grain: le.Uint64(b[20:]), DescOffset: le.Uint64(b[28:]), DescSize: le.Uint64(b[36:]), TableSize: le.Uint32(b[44:]),
		RGDOffset: le.Uint64(b[48:]), GDOffset: le.Uint64(b[56:]), Overhead: le.Uint64(b[64:]), Unclean: b[72] != 0,
		Newline: [4]byte(b[73:77]), Compression: le.Uint16(b[77:]),
	}
	for _, c := range b[79:Sector] {
		h.Padding = h.Padding || c != 0
	}
	return h
}

// Encode returns the header as a sector.
func (h *Header) Encode() []byte {
	le, b := binary.LittleEndian, make([]byte, Sector)
	le.PutUint32(b, h.Magic)
	le.PutUint32(b[4:], h.Version)
	le.PutUint32(b[8:], h.Flags)
	le.PutUint64(b[12:], h.Capacity)
	le.PutUint64(b[20:], h.Grain)
	le.PutUint64(b[28:], h.DescOffset)
	le.PutUint64(b[36:], h.DescSize)
	le.PutUint32(b[44:], h.TableSize)
	le.PutUint64(b[48:], h.RGDOffset)
	le.PutUint64(b[56:], h.GDOffset)
	le.PutUint64(b[64:], h.Overhead)
	if h.Unclean {
		b[72] = 1
	}
	copy(b[73:], h.Newline[:])
	le.PutUint16(b[77:], h.Compression)
	return b
}

// GrainBytes returns the bytes of a grain.
func (h *Header) GrainBytes() uint64 { return h.Grain * Sector }

// Tables returns how many grain tables the capacity needs.
func (h *Header) Tables() uint64 {
	per := h.Grain * TableEntries
	return (h.Capacity-1)/per + 1
}

// Marker is the head of a marker. Size is 0 for metadata, and Value then the
// sectors that follow; else Size is that of the compressed bytes, which begin
// at MarkerHead, and Value the guest sector of the grain.
type Marker struct {
	Value uint64
	Size  uint32
	Type  uint32
}

// DecodeGrain returns the marker of a grain, of which b has at least MarkerHead
// bytes.
func DecodeGrain(b []byte) Marker {
	return Marker{Value: binary.LittleEndian.Uint64(b), Size: binary.LittleEndian.Uint32(b[8:])}
}

// DecodeMarker returns the marker in at least 16 bytes.
func DecodeMarker(b []byte) Marker {
	le := binary.LittleEndian
	return Marker{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])}
}

// Encode returns a metadata marker as a sector.
func (m Marker) Encode() []byte {
	le, b := binary.LittleEndian, make([]byte, Sector)
	le.PutUint64(b, m.Value)
	le.PutUint32(b[8:], m.Size)
	le.PutUint32(b[12:], m.Type)
	return b
}
