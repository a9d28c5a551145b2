package sniff

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
)

// at returns size zero bytes with text at off.
func at(size, off int, text string) []byte {
	b := make([]byte, size)
	copy(b[off:], text)
	return b
}

func names(gs []Guess) []string {
	var n []string
	for _, g := range gs {
		n = append(n, g.Name)
	}
	return n
}

// look shows file to Look as ingest does.
func look(file []byte) []Guess {
	var far Far
	if err := far.Read(bytes.NewReader(file), int64(len(file))); err != nil {
		panic(err) // of memory
	}
	return Look(file[:min(len(file), HeadSize)], file[max(0, len(file)-TailSize):], far, int64(len(file)))
}

// second is size bytes with LUKS2's second header at off, which says that it is
// at said.
func second(size, off int, said uint64) []byte {
	b := at(size, off, "SKUL\xba\xbe\x00\x02")
	binary.BigEndian.PutUint64(b[off+256:], said)
	return b
}

func TestLook(t *testing.T) {
	const mib = 1 << 20
	for _, row := range []struct {
		name string
		file []byte
		want []string
	}{
		{"empty", nil, nil},
		{"one byte", []byte{'Q'}, nil},
		{"zeroes", make([]byte, mib), nil},
		{"partition table", at(mib, 510, "\x55\xaa"), nil},
		{"GPT", at(mib, 512, "EFI PART"), nil},
		{"FAT", at(mib, 0, "\xeb\x3c\x90mkfs.fat"), nil},
		{"ext4", at(mib, 0x438, "\x53\xef"), nil},
		{"shell script", at(mib, 0, "#!/bin/bash\necho version=1\n"), nil},
		{"qcow1", at(mib, 0, "QFI\xfb\x00\x00\x00\x01"), []string{"qcow version 1"}},
		{"qcow2 v2", at(mib, 0, "QFI\xfb\x00\x00\x00\x02"), []string{"qcow2"}},
		{"qcow2 v3", at(mib, 0, "QFI\xfb\x00\x00\x00\x03"), []string{"qcow2"}},
		{"four bytes of qcow2", []byte("QFI\xfb"), []string{"qcow2"}},
		{"QED", at(mib, 0, "QED\x00"), []string{"QED"}},
		{"VMDK sparse", at(mib, 0, "KDMV"), []string{"VMDK"}},
		{"VMDK COWD", at(mib, 0, "COWD"), []string{"VMDK (COWD)"}},
		{"VMDK text", at(mib, 0, "# Disk DescriptorFile\nversion=1\n"), []string{"VMDK (text descriptor)"}},
		{"VMDK text behind comments", at(mib, 0, "# \xc3\xa4 \xff\n\n  \r\n# more\nversion=1\n"), []string{"VMDK (text descriptor)"}},
		{"VHD at the start", at(mib, 0, "conectix"), []string{"VHD"}},
		{"VHD at the end", at(mib, mib-512, "conectix"), []string{"VHD"}},
		{"VHD of 511 bytes at the end", at(mib, mib-511, "conectix"), []string{"VHD"}},
		{"VHD at both ends", append(at(mib, 0, "conectix"), at(512, 0, "conectix")...), []string{"VHD"}},
		{"VHDX", at(mib, 0, "vhdxfile"), []string{"VHDX"}},
		{"VDI", at(mib, 0x40, "\x7f\x10\xda\xbe"), []string{"VDI"}},
		{"Parallels", at(mib, 0, "WithouFreSpacExt"), []string{"Parallels"}},
		{"old Parallels", at(mib, 0, "WithoutFreeSpace"), []string{"Parallels"}},
		{"Bochs", at(mib, 0, "Bochs Virtual HD Image"), []string{"Bochs"}},
		{"cloop", at(mib, 0, "#!/bin/sh\n#V2.0 Format\n"), []string{"cloop"}},
		{"DMG", at(mib, mib-512, "koly\x00\x00\x00\x04\x00\x00\x02\x00"), []string{"DMG"}},
		{"LUKS1", at(mib, 0, "LUKS\xba\xbe\x00\x01"), []string{"LUKS"}},
		{"LUKS2, first header wiped", second(mib, 0x8000, 0x8000), []string{"LUKS"}},
		{"LUKS2, first header wiped, the most metadata", second(5*mib, 4*mib, 4*mib), []string{"LUKS"}},
		{"LUKS2 in a partition", second(5*mib, 2*mib, mib), nil},
		{"half a second header", second(mib, 0x8000, 0x8000)[:0x8000+200], nil},
		{"gzip", at(mib, 0, "\x1f\x8b\x08"), []string{"gzip"}},
		{"xz", at(mib, 0, "\xfd7zXZ\x00"), []string{"xz"}},
		{"zstd", at(mib, 0, "\x28\xb5\x2f\xfd"), []string{"zstd"}},
		{"bzip2", at(mib, 0, "BZh91AY&SY"), []string{"bzip2"}},
		{"zstd by pzstd", at(mib, 0, "\x50\x2a\x4d\x18\x04\x00\x00\x00"), []string{"zstd"}},
		{"zstd with another frame to skip", at(mib, 0, "\x5f\x2a\x4d\x18"), []string{"zstd"}},
		{"no frame to skip", at(mib, 0, "\x60\x2a\x4d\x18"), nil},
		{"lzma", at(mib, 0, "\x5d\x00\x00\x80\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x6a"), []string{"lzma"}},
		{"lzma of a known size", at(mib, 0, "\x5d\x00\x00\xc0\x00\x00\x00\x30\x00\x00\x00\x00\x00\x00\x6a"), []string{"lzma"}},
		{"the number 93", at(mib, 0, "\x5d"), nil},
		{"not lzma's dictionary", at(mib, 0, "\x5d\x00\x00\x81\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x6a"), nil},
		{"legacy lz4", at(mib, 0, "\x02\x21\x4c\x18"), []string{"lz4"}},
		{"lzop", at(mib, 0, "\x89LZO\x00\r\n\x1a\n"), []string{"lzop"}},
		{"compress", at(mib, 0, "\x1f\x9d\x90"), []string{"compress (.Z)"}},
		{"RAR", at(mib, 0, "Rar!\x1a\x07\x01\x00"), []string{"RAR"}},
		{"empty zip", at(22, 0, "PK\x05\x06"), []string{"zip"}},
		{"lz4", at(mib, 0, "\x04\x22\x4d\x18"), []string{"lz4"}},
		{"lzip", at(mib, 0, "LZIP\x01"), []string{"lzip"}},
		{"7z", at(mib, 0, "7z\xbc\xaf\x27\x1c"), []string{"7z"}},
		{"zip", at(mib, 0, "PK\x03\x04"), []string{"zip"}},
		{"tar", at(mib, 257, "ustar\x0000"), []string{"tar"}},
		{"ISO", at(mib, 32769, "CD001"), []string{"ISO 9660"}},
		{"UDF", at(mib, 34817, "NSR03"), []string{"UDF"}},
		{"ISO with a boot sector", append(at(32769, 510, "\x55\xaa"), at(mib, 0, "CD001")...), []string{"ISO 9660"}},
		{"qcow2 and ISO", append(at(32769, 0, "QFI\xfb\x00\x00\x00\x03"), at(mib, 0, "CD001")...), []string{"qcow2", "ISO 9660"}},
		{"qcow2 and VHD", append(at(mib, 0, "QFI\xfb\x00\x00\x00\x03"), at(512, 0, "conectix")...), []string{"qcow2", "VHD"}},
	} {
		if got := names(look(row.file)); !slices.Equal(got, row.want) {
			t.Errorf("%s: got %q, want %q", row.name, got, row.want)
		}
	}
}

// TestFar: however a file passes, the same is seen.
func TestFar(t *testing.T) {
	file := second(0x402000, 0x400000, 0x400000)
	for _, step := range []int{1 << 20, 4096, 1000, 263, 7} {
		var far Far
		for off := 0; off < len(file); off += step {
			far.Pass(int64(off), file[off:min(off+step, len(file))])
		}
		if got := names(Look(file[:HeadSize], file[len(file)-TailSize:], far, int64(len(file)))); !slices.Equal(got, []string{"LUKS"}) {
			t.Errorf("in steps of %d: got %q, want LUKS", step, got)
		}
	}
}

func TestOnlyKnownFormatsAreOffered(t *testing.T) {
	for _, s := range signatures {
		if s.guess.Format != "" {
			if _, err := diskfmt.ParseImageFormat(string(s.guess.Format)); err != nil {
				t.Errorf("%s: %v", s.guess.Name, err)
			}
		}
		if s.guess.Kind == 0 || s.guess.Name == "" {
			t.Errorf("signature %q has no kind or no name", s.magic)
		}
		if end := s.offset + len(s.magic); end > HeadSize {
			t.Errorf("%s: its signature ends at %d, HeadSize is %d", s.guess.Name, end, HeadSize)
		}
	}
}

func FuzzLook(f *testing.F) {
	f.Add([]byte("QFI\xfb"))
	f.Add([]byte(strings.Repeat("#\n", 300) + "version=1"))
	f.Add(bytes.Repeat([]byte("conectix"), 64))
	f.Fuzz(func(t *testing.T, file []byte) {
		seen := map[string]bool{}
		for _, g := range look(file) {
			if seen[g.Name] {
				t.Errorf("%s is there twice", g.Name)
			}
			seen[g.Name] = true
		}
	})
}
