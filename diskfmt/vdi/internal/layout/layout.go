// Package layout holds the header of VDI files. The format has no specification
// beyond VirtualBox's VDICore.h ("VDIPREHEADER", "VDIHEADER1PLUS"), which QEMU's
// block/vdi.c agrees with. It refuses to judge what a header says.
package layout

import (
	"bytes"
	"encoding/binary"
)

// Constants of the format.
const (
	Signature   = 0xbeda107f
	Version     = 0x00010001
	HeaderSize  = 512        // bytes of the file that Parse wants; the block map begins behind them
	Header1     = 0x180      // the least size of the header behind the version
	Header1Plus = 0x190      // with the LCHS geometry, as VirtualBox writes it
	SectorSize  = 512        // the only one there is
	BlockSize   = 1 << 20    // the default of VirtualBox, and the only one QEMU knows
	MaxBlocks   = 0x3fffffff // block/vdi.c: VDI_BLOCKS_IN_IMAGE_MAX
	EntrySize   = 4          // of the block map
	Free        = 0xffffffff // an entry: never allocated
	Discarded   = 0xfffffffe // an entry: all zeroes
	TypeDynamic = 1          // VDI_IMAGE_TYPE_NORMAL
	TypeStatic  = 2          // VDI_IMAGE_TYPE_FIXED
	TypeUndo    = 3          // VDI_IMAGE_TYPE_UNDO
	TypeDiff    = 4          // VDI_IMAGE_TYPE_DIFF
	FlagExpand  = 1          // fill new blocks with zeroes
	text        = "<<< tarn Virtual Disk Image >>>\n"
	plain       = 0x48              // the place of header_size
	offsets     = plain + 4*3 + 256 // of the offsets behind the comment
	uuids       = 0x188
)

// UUID is an identifier in the byte order of RFC 4122.
type UUID [16]byte

// Header is what the first 512 bytes say, but for geometries and texts.
type Header struct {
	Signature, Version    uint32
	Size                  uint32 // of the header, counted from this field's place on
	Type, Flags           uint32
	MapOffset, DataOffset uint32 // bytes
	SectorSize            uint32
	DiskSize              uint64 // bytes
	BlockSize, BlockExtra uint32
	Blocks, Allocated     uint32
	Image, Snapshot       UUID // of the image, and of its last change
	Link, Parent          UUID // of the image below, and of that one's last change
}

// Parse decodes the first HeaderSize bytes of a file.
func Parse(b []byte) Header {
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	return Header{
		Signature: u32(0x40), Version: u32(0x44), Size: u32(plain), Type: u32(0x4c), Flags: u32(0x50),
		MapOffset: u32(offsets), DataOffset: u32(offsets + 4), SectorSize: u32(0x168),
		DiskSize: binary.LittleEndian.Uint64(b[0x170:]), BlockSize: u32(0x178), BlockExtra: u32(0x17c),
		Blocks: u32(0x180), Allocated: u32(0x184),
		Image: swapped(b[uuids:]), Snapshot: swapped(b[uuids+16:]), Link: swapped(b[uuids+32:]), Parent: swapped(b[uuids+48:]),
	}
}

// Bytes encodes h as the first HeaderSize bytes of a file.
func (h *Header) Bytes() []byte {
	b := make([]byte, HeaderSize)
	put := func(off int, v uint32) { binary.LittleEndian.PutUint32(b[off:], v) }
	copy(b, text)
	put(0x40, h.Signature)
	put(0x44, h.Version)
	put(plain, h.Size)
	put(0x4c, h.Type)
	put(0x50, h.Flags)
	put(offsets, h.MapOffset)
	put(offsets+4, h.DataOffset)
	put(0x168, h.SectorSize)
	binary.LittleEndian.PutUint64(b[0x170:], h.DiskSize)
	put(0x178, h.BlockSize)
	put(0x17c, h.BlockExtra)
	put(0x180, h.Blocks)
	put(0x184, h.Allocated)
	for i, u := range []UUID{h.Image, h.Snapshot, h.Link, h.Parent} {
		u = swapped(u[:])
		copy(b[uuids+16*i:], u[:])
	}
	put(0x1d4, h.SectorSize) // LCHSGeometry.cbSector; the rest is 0: not calculated
	return b
}

// swapped turns the first three fields of a UUID from little-endian, as the
// file has them, to big-endian, and back.
func swapped(b []byte) UUID {
	return UUID{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

// IsZero reports whether u is no identifier.
func (u UUID) IsZero() bool { return bytes.Count(u[:], []byte{0}) == len(u) }
