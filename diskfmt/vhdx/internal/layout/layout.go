// Package layout holds what the strict door and the writer of VHDX share: the
// structures of Microsoft's [MS-VHDX] and their checksums. It refuses to judge:
// what a field may hold is decided by package inspect.
package layout

import (
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
)

// Places and sizes of [MS-VHDX], section 2.2. All numbers are little-endian.
const (
	MiB            = 1 << 20
	Signature      = "vhdxfile" // at 0
	Header1        = 64 << 10
	Header2        = 128 << 10
	HeaderSize     = 4 << 10 // of which a checksum is made
	Region1        = 192 << 10
	Region2        = 256 << 10
	TableSize      = 64 << 10 // of a region table, and of the metadata table
	HeaderSection  = 1 << 20  // what all that takes
	EntrySize      = 32       // of an entry of these tables
	MaxEntries     = 2047     // of these tables
	MaxUserItems   = 1024
	ItemsAt        = 64 << 10 // in the metadata region, the first item
	MaxItems       = 1 << 20  // bytes of all of them, and of one
	MaxSize        = 64 << 40
	MinBlock       = 1 << 20
	MaxBlock       = 256 << 20
	Version        = 1
	ChunkSectors   = 1 << 23 // logical sectors that one block of a sector bitmap describes
	BATEntry       = 8
	StateMask      = 7
	ReservedMask   = 1<<20 - 1 - StateMask
	RegionRequired = 1
	ItemUser       = 1
	ItemDisk       = 2
	ItemRequired   = 4
	ItemFlags      = ItemUser | ItemDisk | ItemRequired
	LeaveAllocated = 1 // file parameters: blocks stay allocated, a fixed disk
	HasParent      = 2
)

// The states of a payload block (section 2.5.1.1).
const (
	NotPresent       = 0
	Undefined        = 1
	Zero             = 2
	Unmapped         = 3
	FullyPresent     = 6
	PartiallyPresent = 7
)

// Signatures of structures.
const (
	HeaderSignature   = "head"
	RegionSignature   = "regi"
	MetadataSignature = "metadata"
)

// GUID is an identifier as it lies in the file.
type GUID [16]byte

func guid(s string) (g GUID) {
	copy(g[:], must(hex.DecodeString(s)))
	return g
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err) // a constant of this file is wrong
	}
	return b
}

// The known regions (section 2.2.3.2) and metadata items (section 2.6.2).
var (
	RegionBAT      = guid("6677c22d23f600429d64115e9bfd4a08")
	RegionMetadata = guid("06a27c8b90479a4bb8fe575f050f886e")

	ItemParameters = guid("3767a1ca36fa434db3b633f0aa44e76b")
	ItemSize       = guid("2442a52f1bcd7648b2115dbed83bf4b8")
	ItemDiskID     = guid("ab12cabee6b2234593efc309e000c746")
	ItemLogical    = guid("1dbf41816fa90947ba47f233a8faab5f")
	ItemPhysical   = guid("c748a3cd5d4471449cc9e9885251c556")
	ItemParent     = guid("2d5fd3a80bb34d45abf7d3d84834ab0c")
)

// Header is one of the two headers (section 2.2.2).
type Header struct {
	Signature  [4]byte
	Checksum   uint32
	Sequence   uint64
	FileWrite  GUID
	DataWrite  GUID
	Log        GUID
	LogVersion uint16
	Version    uint16
	LogLength  uint32
	LogOffset  uint64
}

// Region is an entry of a region table (section 2.2.3.2).
type Region struct {
	ID       GUID
	Offset   uint64
	Length   uint32
	Required uint32
}

// Item is an entry of the metadata table (section 2.6.1.2).
type Item struct {
	ID       GUID
	Offset   uint32 // in the metadata region
	Length   uint32
	Flags    uint32
	Reserved uint32
}

// Decode fills the structure v, of fixed size, from b.
func Decode(b []byte, v any) {
	if _, err := binary.Decode(b, binary.LittleEndian, v); err != nil {
		panic(err) // b is too short: the caller is wrong
	}
}

// Append appends the structure v, of fixed size, to b.
func Append(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(err) // v is not of fixed size: the caller is wrong
	}
	return b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumAt is the offset of the checksum in headers and region tables.
const sumAt = 4

// Sum returns the CRC-32C of b with its own checksum taken as 0.
func Sum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:sumAt])
	c = crc32.Update(c, castagnoli, make([]byte, 4))
	return crc32.Update(c, castagnoli, b[sumAt+4:])
}

// SumOf returns the checksum that b carries.
func SumOf(b []byte) uint32 { return binary.LittleEndian.Uint32(b[sumAt:]) }

// SetSum gives b its checksum.
func SetSum(b []byte) { binary.LittleEndian.PutUint32(b[sumAt:], Sum(b)) }

// Chunk returns how many payload blocks lie between two entries of sector
// bitmaps in the BAT (section 2.5).
func Chunk(block, sector uint64) uint64 { return ChunkSectors * sector / block }

// Entries returns how many entries the BAT of a disk without parent has.
func Entries(blocks, chunk uint64) uint64 { return blocks + (blocks-1)/chunk }
