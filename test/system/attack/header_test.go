// Package attack_test has a guest write headers of disk image formats into its
// disks and damage the metadata of its overlays, and then runs every command of
// tarn's own tree: no byte may decide how a disk is opened, and no file that a
// header names may be opened.
package attack_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/test/system/tarntest"
)

const (
	clusterBits = 16
	cluster     = 1 << clusterBits
	diskSize    = 1 << 20
)

// form is one header that makes a program which guesses formats open a file.
type form struct {
	name  string
	bytes func(target string) []byte
	fixed bool // QEMU itself no longer falls for it
}

// forms are the headers that guests have used against clouds.
var forms = []form{
	{"qcow2 backing file", func(p string) []byte { return qcow2Header(p, 0, nil) }, false},
	{"qcow2 backing file with its format", func(p string) []byte {
		return qcow2Header(p, 0, map[uint32]string{0xE2792ACA: "raw"})
	}, false},
	{"qcow2 json backing file", func(p string) []byte {
		return qcow2Header(`json:{"driver":"raw","file":{"driver":"file","filename":"`+p+`"}}`, 0, nil)
	}, false},
	{"qcow2 json backing file, dotted", func(p string) []byte {
		return qcow2Header(`json:{"driver":"raw","file.driver":"file","file.filename":"`+p+`"}`, 0, nil)
	}, false},
	{"qcow2 external data file", func(p string) []byte {
		return qcow2Header("", 1<<2, map[uint32]string{0x44415441: p})
	}, false},
	{"qcow2 json external data file", func(p string) []byte {
		return qcow2Header("", 1<<2, map[uint32]string{0x44415441: `json:{"driver":"file","filename":"` + p + `"}`})
	}, true}, // CVE-2024-4467
	{"vmdk flat extent", func(p string) []byte {
		return []byte("# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\n" +
			"# Extent description\nRW 1 FLAT \"" + p + "\" 0\n\n# The Disk Data Base\n#DDB\nddb.virtualHWVersion = \"4\"\n" +
			"ddb.geometry.cylinders = \"1\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n")
	}, false},
	{"luks header", func(string) []byte { return luksHeader() }, true}, // which locks the disk's owner out: it wants a key
}

// luksHeader returns a header of LUKS 1 without keys: the fields of 592 bytes up
// to the key slots, of which none is in use.
func luksHeader() []byte {
	b := make([]byte, 592)
	copy(b, "LUKS\xba\xbe\x00\x01")
	copy(b[8:], "aes")
	copy(b[40:], "xts-plain64")
	copy(b[72:], "sha256")
	be := binary.BigEndian
	be.PutUint32(b[104:], 8) // payload, in sectors
	be.PutUint32(b[108:], 64)
	be.PutUint32(b[164:], 1000)
	copy(b[168:], "f3a0a3a6-6a5b-4b43-8a2b-5a1c3a0b6d11")
	for slot := range 8 {
		be.PutUint32(b[208+48*slot:], 0x0000dead)
		be.PutUint32(b[208+48*slot+44:], 4000)
	}
	return b
}

// qcow2Header returns a whole, valid qcow2 image of version 3 without data: the
// header's cluster, refcount table, refcount block and L1 table. With an
// external data file the L1 table has one L2 table that maps the first cluster
// into it.
func qcow2Header(backing string, incompatible uint64, extensions map[uint32]string) []byte {
	b := make([]byte, 5*cluster)
	be := binary.BigEndian
	copy(b, "QFI\xfb")
	be.PutUint32(b[4:], 3)
	be.PutUint32(b[20:], clusterBits)
	be.PutUint64(b[24:], diskSize)
	be.PutUint32(b[36:], 1) // L1 entries
	be.PutUint64(b[40:], 3*cluster)
	be.PutUint64(b[48:], cluster) // refcount table
	be.PutUint32(b[56:], 1)
	be.PutUint64(b[72:], incompatible)
	be.PutUint32(b[96:], 4) // refcounts of 16 bits
	be.PutUint32(b[100:], 112)
	at := 112
	for kind, text := range extensions {
		be.PutUint32(b[at:], kind)
		be.PutUint32(b[at+4:], uint32(len(text)))
		copy(b[at+8:], text)
		at += 8 + (len(text)+7)/8*8
	}
	at += 8 // end of extensions
	if backing != "" {
		be.PutUint64(b[8:], uint64(at))
		be.PutUint32(b[16:], uint32(len(backing)))
		copy(b[at:], backing)
	}
	be.PutUint64(b[cluster:], 2*cluster)
	for i := range 5 {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	if incompatible&(1<<2) != 0 {
		be.PutUint64(b[3*cluster:], 4*cluster|1<<63)
		be.PutUint64(b[4*cluster:], 1<<63) // offset 0 of the data file
	}
	return b
}

// TestFormsAreLive shows that a program which guesses formats falls for every
// form: what cannot harm anybody proves nothing.
func TestFormsAreLive(t *testing.T) {
	qemuImg := tarntest.NeedTool(t, "qemu-img")
	for _, f := range forms {
		if f.fixed {
			continue
		}
		t.Run(f.name, func(t *testing.T) {
			bait := append([]byte("bait of "+f.name+"\n"), make([]byte, 1<<20)...)
			path := tarntest.WriteFile(t, "bait", bait)
			victim := make([]byte, diskSize)
			copy(victim, f.bytes(path))
			disk := tarntest.WriteFile(t, "victim", victim)
			out := filepath.Join(t.TempDir(), "out")
			if msg, err := exec.Command(qemuImg, "convert", "-O", "raw", disk, out).CombinedOutput(); err != nil {
				t.Fatalf("qemu-img: %v\n%s", err, msg)
			}
			got, err := os.ReadFile(out)
			if err != nil || !strings.HasPrefix(string(got), "bait of ") {
				t.Errorf("a guessing program read %q, %v, want the bait: the header is not an attack", got[:min(len(got), 16)], err)
			}
		})
	}
}
