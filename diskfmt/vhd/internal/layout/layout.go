// Package layout holds what the strict door and the writer of VHD share: the
// structures of Microsoft's "Virtual Hard Disk Image Format Specification"
// (October 2006) and their checksum. It refuses to judge: what a field may hold
// is decided by package inspect.
package layout

import "encoding/binary"

// Sizes and marks of the specification. All numbers in a VHD are big-endian.
const (
	Sector     = 512
	FooterSize = 512  // "Hard Disk Footer Format"
	HeaderSize = 1024 // "Dynamic Disk Header Format"

	Cookie        = "conectix"
	HeaderCookie  = "cxsparse"
	Version1      = 0x00010000
	NoOffset      = 1<<64 - 1 // a data offset that leads nowhere
	Absent        = 1<<32 - 1 // a BAT entry without a block
	Reserved      = 2         // the feature bit that is always set
	Temporary     = 1         // the feature bit of a disk to be deleted at shutdown
	MaxSize       = 2040 << 30
	MaxCylinders  = 65535
	MaxHeads      = 16
	MaxTrack      = 255
	KnownFeatures = Reserved | Temporary
)

// The types of disk ("Disk Type").
const (
	Fixed        = 2
	Dynamic      = 3
	Differencing = 4
)

// Footer is the hard disk footer.
type Footer struct {
	Cookie         [8]byte
	Features       uint32
	Version        uint32
	DataOffset     uint64 // of the dynamic disk header
	Time           uint32 // seconds since 2000-01-01 00:00:00 UTC
	CreatorApp     [4]byte
	CreatorVersion uint32
	CreatorOS      [4]byte
	OriginalSize   uint64
	CurrentSize    uint64
	Cylinders      uint16
	Heads          uint8
	Track          uint8 // sectors of a track
	Type           uint32
	Checksum       uint32
	ID             [16]byte
	SavedState     uint8
	Reserved       [427]byte
}

// footerSum and headerSum are the offsets of the checksums.
const (
	footerSum = 64
	headerSum = 36
)

// Locator is one of the header's references to a parent.
type Locator struct {
	Platform uint32
	Space    uint32
	Length   uint32
	Reserved uint32
	Offset   uint64
}

// Header is the dynamic disk header.
type Header struct {
	Cookie      [8]byte
	DataOffset  uint64
	TableOffset uint64 // of the block allocation table
	Version     uint32
	Entries     uint32 // of that table
	BlockSize   uint32 // bytes of data of a block, without its bitmap
	Checksum    uint32
	ParentID    [16]byte
	ParentTime  uint32
	Reserved    uint32
	ParentName  [512]byte
	Locators    [8]Locator
	Reserved2   [256]byte
}

// sum returns the one's complement of the sum of the bytes of b without the
// four at off.
func sum(b []byte, off int) uint32 {
	s := uint32(0)
	for i, c := range b {
		if i < off || i >= off+4 {
			s += uint32(c)
		}
	}
	return ^s
}

// ParseFooter returns the footer in b and whether its checksum is right.
func ParseFooter(b []byte) (f Footer, ok bool) {
	n, err := binary.Decode(b[:FooterSize], binary.BigEndian, &f)
	return f, err == nil && n == FooterSize && sum(b[:FooterSize], footerSum) == f.Checksum
}

// ParseHeader returns the dynamic disk header in b and whether its checksum is
// right.
func ParseHeader(b []byte) (h Header, ok bool) {
	n, err := binary.Decode(b[:HeaderSize], binary.BigEndian, &h)
	return h, err == nil && n == HeaderSize && sum(b[:HeaderSize], headerSum) == h.Checksum
}

// Bytes returns the footer's bytes with a right checksum.
func (f Footer) Bytes() []byte {
	b, _ := binary.Append(make([]byte, 0, FooterSize), binary.BigEndian, f) // the struct is of fixed size
	binary.BigEndian.PutUint32(b[footerSum:], sum(b, footerSum))
	return b
}

// Bytes returns the header's bytes with a right checksum.
func (h Header) Bytes() []byte {
	b, _ := binary.Append(make([]byte, 0, HeaderSize), binary.BigEndian, h) // the struct is of fixed size
	binary.BigEndian.PutUint32(b[headerSum:], sum(b, headerSum))
	return b
}

// GeometrySize returns the bytes that the footer's geometry describes.
func (f Footer) GeometrySize() uint64 { return uint64(f.Cylinders) * f.Cylinder() }

// Cylinder returns the bytes of a cylinder of the footer's geometry.
func (f Footer) Cylinder() uint64 { return uint64(f.Heads) * uint64(f.Track) * Sector }

// MaxGeometry reports whether the geometry is the largest that there is, which
// says nothing of the size.
func (f Footer) MaxGeometry() bool {
	return f.Cylinders == MaxCylinders && f.Heads == MaxHeads && f.Track == MaxTrack
}

// BitmapSize returns the bytes of the sector bitmap before each block of
// blockSize bytes (4096 at least), padded to whole sectors ("Block Allocation
// Table and Data Blocks"). The first sector is the highest bit of the first byte.
func BitmapSize(blockSize uint64) uint64 {
	return (blockSize/Sector/8 + Sector - 1) / Sector * Sector
}
