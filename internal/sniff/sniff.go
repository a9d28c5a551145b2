// Package sniff says what bytes look like, for the gate's refusals and the
// hints in them. It refuses to decide how bytes are opened: a format is what a
// user or a record states, and nothing but ingest may import this package.
package sniff

import (
	"bytes"
	"encoding/binary"
	"io"
	"math"

	"github.com/tarn-storage/tarn/diskfmt"
)

// HeadSize is how many of the first bytes Look wants to see, or all of a
// shorter file. TailSize is the same for the last bytes.
const (
	HeadSize = 68 << 10
	TailSize = 1024
)

// Kind says what sort of thing bytes look like.
type Kind uint8

// The kinds. A disk image wraps a disk, a compressed file or an archive wraps
// anything, and an encrypted disk can be used by nobody without its key: none
// of them is what raw bytes of a disk begin with. An optical disc is its own
// raw form.
const (
	DiskImage Kind = iota + 1
	Compressed
	Archive
	Encrypted
	OpticalDisc
)

// Guess is one thing that the bytes look like.
type Guess struct {
	Name   string // for people: "qcow2", "VMDK (monolithicSparse or streamOptimized)"
	Kind   Kind
	Format diskfmt.Format // the format to claim instead, "" where tarn has none
}

// signature is a run of bytes at a place of the head.
type signature struct {
	offset int
	magic  string
	guess  Guess
}

var signatures = []signature{
	{0, "QFI\xfb\x00\x00\x00\x01", Guess{Name: "qcow version 1", Kind: DiskImage}},
	{0, "QFI\xfb", Guess{Name: "qcow2", Kind: DiskImage, Format: diskfmt.Qcow2}},
	{0, "QED\x00", Guess{Name: "QED", Kind: DiskImage}},
	{0, "KDMV", Guess{Name: "VMDK", Format: diskfmt.VMDK, Kind: DiskImage}},
	{0, "COWD", Guess{Name: "VMDK (COWD)", Format: diskfmt.VMDK, Kind: DiskImage}},
	{0, "conectix", Guess{Name: "VHD", Format: diskfmt.VHD, Kind: DiskImage}},
	{0, "vhdxfile", Guess{Name: "VHDX", Format: diskfmt.VHDX, Kind: DiskImage}},
	{0x40, "\x7f\x10\xda\xbe", Guess{Name: "VDI", Format: diskfmt.VDI, Kind: DiskImage}},
	{0, "WithoutFreeSpace", Guess{Name: "Parallels", Format: diskfmt.Ploop, Kind: DiskImage}},
	{0, "WithouFreSpacExt", Guess{Name: "Parallels", Format: diskfmt.Ploop, Kind: DiskImage}},
	{0, "Bochs Virtual HD Image", Guess{Name: "Bochs", Kind: DiskImage}},
	{0, "#!/bin/sh\n#V2.0", Guess{Name: "cloop", Kind: DiskImage}},
	{0, "LUKS\xba\xbe", Guess{Name: "LUKS", Format: diskfmt.LUKS, Kind: Encrypted}},
	{0, "\x1f\x8b\x08", Guess{Name: "gzip", Kind: Compressed}},
	{0, "\xfd7zXZ\x00", Guess{Name: "xz", Kind: Compressed}},
	{0, "\x28\xb5\x2f\xfd", Guess{Name: "zstd", Kind: Compressed}},
	{0, "BZh", Guess{Name: "bzip2", Kind: Compressed}},
	{0, "\x04\x22\x4d\x18", Guess{Name: "lz4", Kind: Compressed}},
	{0, "\x02\x21\x4c\x18", Guess{Name: "lz4", Kind: Compressed}}, // the legacy frame
	{0, "\x89LZO\x00\r\n\x1a\n", Guess{Name: "lzop", Kind: Compressed}},
	{0, "\x1f\x9d\x90", Guess{Name: "compress (.Z)", Kind: Compressed}},
	{0, "Rar!\x1a\x07", Guess{Name: "RAR", Kind: Archive}},
	{0, "LZIP", Guess{Name: "lzip", Kind: Compressed}},
	{0, "7z\xbc\xaf\x27\x1c", Guess{Name: "7z", Kind: Archive}},
	{0, "PK\x03\x04", Guess{Name: "zip", Kind: Archive}},
	{0, "PK\x05\x06", Guess{Name: "zip", Kind: Archive}}, // of no files
	{257, "ustar", Guess{Name: "tar", Format: diskfmt.OVA, Kind: Archive}},
	{32769, "CD001", Guess{Name: "ISO 9660", Format: diskfmt.ISO, Kind: OpticalDisc}},
	{32769, "NSR0", Guess{Name: "UDF", Kind: OpticalDisc}},
	{34817, "NSR0", Guess{Name: "UDF", Kind: OpticalDisc}},
	{36865, "NSR0", Guess{Name: "UDF", Kind: OpticalDisc}},
}

// luks2Offsets are where LUKS2 keeps its second header, which alone makes a
// file one ("LUKS2 On-Disk Format Specification", section 2).
var luks2Offsets = [...]int64{0x4000, 0x8000, 0x10000, 0x20000, 0x40000, 0x80000, 0x100000, 0x200000, 0x400000}

// luks2Size is how much of a second header is looked at: its magic, and the
// place that it says it is at. A LUKS2 partition of a raw disk says another.
const luks2Size = 264

// Far is what lies at the places behind the head where formats may have more of
// themselves. The zero value has seen nothing.
type Far [len(luks2Offsets)][]byte

// Pass notes what of the file's bytes p from off on is of interest. The bytes
// must pass in their order; the others between may be left out.
func (f *Far) Pass(off int64, p []byte) {
	if off >= luks2Offsets[len(luks2Offsets)-1]+luks2Size {
		return
	}
	for i, at := range luks2Offsets {
		from, to := max(at+int64(len(f[i]))-off, 0), min(at+luks2Size-off, int64(len(p)))
		if from < to {
			f[i] = append(f[i], p[from:to]...)
		}
	}
}

// Read passes what r, a file of size bytes, has at the places of interest. A
// file that ends early is no error.
func (f *Far) Read(r io.ReaderAt, size int64) error {
	b := make([]byte, luks2Size)
	for _, at := range luks2Offsets {
		if at >= size {
			break
		}
		n, err := r.ReadAt(b[:min(luks2Size, size-at)], at)
		if f.Pass(at, b[:n]); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

func (f *Far) luks2() bool {
	for i, b := range f {
		if has(b, 0, "SKUL\xba\xbe") && len(b) == luks2Size && binary.BigEndian.Uint64(b[256:]) == uint64(luks2Offsets[i]) {
			return true
		}
	}
	return false
}

// Look returns everything that a file of size bytes looks like, judged by its
// first HeadSize and last TailSize bytes (all of a shorter file in both) and by
// what lies far behind its beginning. Raw
// disks, partition tables and file systems included, look like nothing. The
// same name is returned once.
func Look(head, tail []byte, far Far, size int64) []Guess {
	var found []Guess
	add := func(g Guess) {
		for _, f := range found {
			if f.Name == g.Name || g.Name == "qcow2" && f.Name == "qcow version 1" {
				return
			}
		}
		found = append(found, g)
	}
	for _, s := range signatures {
		if has(head, s.offset, s.magic) {
			add(s.guess)
		}
	}
	if far.luks2() {
		add(Guess{Name: "LUKS", Format: diskfmt.LUKS, Kind: Encrypted})
	}
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && has(head, 1, "\x2a\x4d\x18") { // a frame to skip, as pzstd begins
		add(Guess{Name: "zstd", Kind: Compressed})
	}
	if lzma(head) {
		add(Guess{Name: "lzma", Kind: Compressed})
	}
	if vmdkDescriptor(head) {
		add(Guess{Name: "VMDK (text descriptor)", Format: diskfmt.VMDK, Kind: DiskImage})
	}
	if size >= 512 && len(tail) >= 512 {
		lookAtTail(tail, add)
	}
	return found
}

// lookAtTail finds the formats that end in a footer. VHD's may be one byte
// short: old versions of Virtual PC wrote 511 bytes.
func lookAtTail(tail []byte, add func(Guess)) {
	end := len(tail)
	if has(tail, end-512, "conectix") || has(tail, end-511, "conectix") {
		add(Guess{Name: "VHD", Format: diskfmt.VHD, Kind: DiskImage})
	}
	if has(tail, end-512, "koly") && binary.BigEndian.Uint32(tail[end-504:]) == 512 {
		add(Guess{Name: "DMG", Kind: DiskImage})
	}
}

func has(b []byte, off int, magic string) bool {
	return off >= 0 && len(b) >= off+len(magic) && string(b[off:off+len(magic)]) == magic
}

// lzma reports whether b begins as .lzma files do, which have no magic: the usual
// parameters, a dictionary of 2^n or 2^n+2^(n-1) bytes from 4 KiB on, a size that
// is left open or below 256 GiB, and the 0 that the coder begins with.
func lzma(b []byte) bool {
	if len(b) < 14 || b[0] != 0x5d || b[13] != 0 {
		return false
	}
	dictionary, size := binary.LittleEndian.Uint32(b[1:]), binary.LittleEndian.Uint64(b[5:])
	top := dictionary & -dictionary // its lowest bit
	return dictionary >= 4096 && (dictionary == top || dictionary == 3*top) && (size == math.MaxUint64 || size > 0 && size < 1<<38)
}

// vmdkDescriptor reports whether b begins as a VMDK text descriptor does for
// QEMU: comments and blank lines, then "version=". Bytes outside ASCII do not
// hide one.
func vmdkDescriptor(b []byte) bool {
	if len(b) == 0 || b[0] != '#' && b[0] != 'v' && b[0] != ' ' && b[0] != '\n' && b[0] != '\r' {
		return false
	}
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0:
		case bytes.HasPrefix(bytes.ToLower(line), []byte("# disk descriptorfile")):
			return true
		case line[0] == '#':
		default:
			return bytes.HasPrefix(line, []byte("version="))
		}
		b = rest
	}
	return false
}
