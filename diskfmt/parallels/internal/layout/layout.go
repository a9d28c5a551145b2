// Package layout holds the header of Parallels expandable images, which ploop
// calls root.hds, after QEMU's docs/interop/parallels.rst ("Header", "BAT") and
// ploop's ploop1_image.h. It refuses to judge what a header says.
package layout

import "encoding/binary"

// Constants of the format.
const (
	Magic      = "WithoutFreeSpace" // the BAT counts sectors, sizes have 32 bits
	MagicExt   = "WithouFreSpacExt" // the BAT counts clusters
	Version    = 2
	HeaderSize = 64 // the BAT begins behind it
	EntrySize  = 4  // of the BAT; an entry of 0 stores nothing
	SectorSize = 512

	// in_use: what the last writer left.
	InUse     = 0x746f6e59 // it has the image open
	Closed    = 0x312e3276 // it closed the image
	ClosedOld = 0          // the same, and it knew no format extension

	// flags.
	FlagEmpty   = 1 // "no data was written" when the image was made: ploop never takes it back
	FlagConvert = 2 // ploop is converting the image to the other magic
)

// Header is the first HeaderSize bytes.
type Header struct {
	Magic            string
	Version          uint32
	Heads, Cylinders uint32 // geometry for the guest
	Tracks           uint32 // sectors of a cluster
	Entries          uint32 // of the BAT
	Sectors          uint64 // of the disk
	InUse            uint32
	DataOffset       uint32 // sectors; 0 with Magic: the first sector behind the BAT
	Flags            uint32
	Extension        uint64 // sectors; 0: there is none
}

// Parse decodes the first HeaderSize bytes of a file.
func Parse(b []byte) Header {
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	return Header{
		Magic: string(b[:16]), Version: u32(16), Heads: u32(20), Cylinders: u32(24), Tracks: u32(28), Entries: u32(32),
		Sectors: u64(36), InUse: u32(44), DataOffset: u32(48), Flags: u32(52), Extension: u64(56),
	}
}

// Bytes encodes the header.
func (h *Header) Bytes() []byte {
	b := make([]byte, HeaderSize)
	copy(b, h.Magic)
	for off, v := range map[int]uint32{
		16: h.Version, 20: h.Heads, 24: h.Cylinders, 28: h.Tracks, 32: h.Entries, 44: h.InUse, 48: h.DataOffset, 52: h.Flags,
	} {
		binary.LittleEndian.PutUint32(b[off:], v)
	}
	binary.LittleEndian.PutUint64(b[36:], h.Sectors)
	binary.LittleEndian.PutUint64(b[56:], h.Extension)
	return b
}

// Ext reports whether the BAT counts clusters.
func (h *Header) Ext() bool { return h.Magic == MagicExt }

// Cluster returns the bytes of a cluster.
func (h *Header) Cluster() uint64 { return uint64(h.Tracks) * SectorSize }

// TableEnd returns where the BAT ends, in bytes.
func (h *Header) TableEnd() uint64 { return HeaderSize + uint64(h.Entries)*EntrySize }

// Data returns where the data begins, in bytes.
func (h *Header) Data() uint64 {
	if h.DataOffset == 0 && !h.Ext() {
		return (h.TableEnd() + SectorSize - 1) &^ (SectorSize - 1)
	}
	return uint64(h.DataOffset) * SectorSize
}

// Offset returns where the cluster of a BAT entry lies, in bytes.
func (h *Header) Offset(entry uint32) uint64 {
	if h.Ext() {
		return uint64(entry) * h.Cluster()
	}
	return uint64(entry) * SectorSize
}
