package formats_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/test/system/tarntest"
)

const mib = 1 << 20

// disk is what the sound images hold: 3 MiB of data.
func disk() []byte { return tarntest.Pattern(7, 3*mib) }

// converted is an image of the disk that qemu-img makes.
func converted(t *testing.T, args ...string) []byte {
	t.Helper()
	raw, out := tarntest.WriteFile(t, "raw", disk()), filepath.Join(t.TempDir(), "image")
	run(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O"}, args...), raw, out)...)
	return read(t, out)
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), tarntest.NeedTool(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// edit makes an image of another.
type edit func(b []byte) []byte

// with returns a copy of b with all edits.
func with(b []byte, edits ...edit) []byte {
	b = bytes.Clone(b)
	for _, e := range edits {
		b = e(b)
	}
	return b
}

func put(off int, s string) edit { return func(b []byte) []byte { copy(b[off:], s); return b } }

func le32(off int, v uint32) edit {
	return put(off, string(binary.LittleEndian.AppendUint32(nil, v)))
}
func le64(off int, v uint64) edit {
	return put(off, string(binary.LittleEndian.AppendUint64(nil, v)))
}
func be32(off int, v uint32) edit { return put(off, string(binary.BigEndian.AppendUint32(nil, v))) }
func be64(off int, v uint64) edit { return put(off, string(binary.BigEndian.AppendUint64(nil, v))) }

// swap replaces a text by another in the descriptor of a VMDK, which stays as
// long as it was.
func swap(old, now string) edit {
	return func(b []byte) []byte {
		const at, size = 512, 20 * 512
		text, _, _ := strings.Cut(string(b[at:at+size]), "\x00")
		if !strings.Contains(text, old) {
			panic("the descriptor has no " + old)
		}
		clear(b[at : at+size])
		copy(b[at:at+size], strings.Replace(text, old, now, 1))
		return b
	}
}

// summed changes VHD's footer and its copy, or with at the header behind the
// copy, and corrects the checksum.
func summed(at int, change edit) edit {
	return func(b []byte) []byte {
		size, sum, places := 512, 64, []int{0, len(b) - 512}
		if at > 0 {
			size, sum, places = 1024, 36, []int{at}
		}
		for _, at := range places {
			p := change(b[at : at+size])
			binary.BigEndian.PutUint32(p[sum:], 0)
			v := uint32(0)
			for _, c := range p {
				v += uint32(c)
			}
			binary.BigEndian.PutUint32(p[sum:], ^v)
		}
		return b
	}
}

// crc changes both copies of one of VHDX's structures of size bytes and corrects
// the checksums.
func crc(first, second, size int, change edit) edit {
	return func(b []byte) []byte {
		for _, at := range []int{first, second} {
			p := change(b[at : at+size])
			binary.LittleEndian.PutUint32(p[4:], 0)
			binary.LittleEndian.PutUint32(p[4:], crc32.Checksum(p, crc32.MakeTable(crc32.Castagnoli)))
		}
		return b
	}
}

func headers(change edit) edit { return crc(64<<10, 128<<10, 4096, change) }
func regions(change edit) edit { return crc(192<<10, 256<<10, 64<<10, change) }

// disc is an optical disc with one file.
func disc(t *testing.T) []byte {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "iso")
	if err := os.WriteFile(filepath.Join(dir, "file"), disk(), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "genisoimage", "-quiet", "-J", "-r", "-o", out, dir)
	return read(t, out)
}

// luks is a LUKS1 disk of 4 KiB with one key slot in use.
func luks() []byte {
	const payload = 1024 * 512
	b := bytes.Repeat([]byte{0xa5}, payload+4096)
	clear(b[:4096])
	b = with(b, put(0, "LUKS\xba\xbe\x00\x01aes"), put(40, "xts-plain64"), put(72, "sha256"), be32(104, payload/512), be32(108, 16),
		be32(164, 1000), put(168, "53372b33-9f2d-4e06-a871-9aee74d20120"))
	for i := range 8 {
		b = with(b, be32(208+48*i, 0xdead), be32(248+48*i, uint32(8+126*i)), be32(252+48*i, 4000))
	}
	return with(b, be32(208, 0xac71f3), be32(212, 1000))
}

// member is a part of an archive; kind says if it is more than a file.
type member struct {
	name, body, link string
	kind             byte
}

// archive is a tar file.
func archive(t *testing.T, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.body)), Linkname: m.link, Typeflag: max(m.kind, tar.TypeReg)}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// envelope is an OVF description of one disk.
const envelope = `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References><File ovf:href="d.vmdk" ovf:id="f"/></References><DiskSection><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="3145728"
 ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection></Envelope>`

const top = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

// description is the DiskDescriptor.xml of the disk.
func description(file string) string {
	return fmt.Sprintf(`<?xml version="1.0" encoding="UTF-8"?><Parallels_disk_image Version="1.0">
<Disk_Parameters><Disk_size>%[1]d</Disk_size><Padding>0</Padding></Disk_Parameters>
<StorageData><Storage><Start>0</Start><End>%[1]d</End><Blocksize>2048</Blocksize>
<Image><GUID>%[3]s</GUID><Type>Compressed</Type><File>%[2]s</File></Image></Storage></StorageData>
<Snapshots><Shot><GUID>%[3]s</GUID><ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots>
</Parallels_disk_image>`, len(disk())/512, file, top)
}

// packed is b as the tool of that name compresses it.
func packed(t *testing.T, name string, b []byte) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tarntest.NeedTool(t, name), "-c")
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
