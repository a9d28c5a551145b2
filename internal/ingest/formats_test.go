package ingest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
	"github.com/tarn-storage/tarn/errs"
)

// sample is an image as somebody may bring it.
type sample struct {
	format, compression string
	file                []byte
	disk                []byte // what the guest sees
	description         []byte
}

// imageOf makes an image of the disk b with qemu-img.
func imageOf(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	raw, file := filepath.Join(dir, "raw"), filepath.Join(dir, "file")
	if err := os.WriteFile(raw, b, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O"}, args...), raw, file)...)
	out, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// packedBy compresses b with the tool of that name.
func packedBy(t testing.TB, name string, b []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(b)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

// disc makes an optical disc with one file in it.
func disc(t testing.TB, b []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "iso")
	tool(t, "genisoimage", "-quiet", "-R", "-o", out, dir)
	all, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// encrypted makes a disk behind a LUKS1 header, by hand: qemu-img gives up on a
// busy machine, where it cannot measure how long a key takes.
func encrypted() []byte {
	const payload = 1024 * 512
	b := bytes.Repeat([]byte{0xa5}, payload+2*mib)
	clear(b[:4096])
	be := binary.BigEndian
	copy(b, "LUKS\xba\xbe\x00\x01aes")
	copy(b[40:], "xts-plain64")
	copy(b[72:], "sha256")
	copy(b[168:], "53372b33-9f2d-4e06-a871-9aee74d20120")
	be.PutUint32(b[104:], payload/512)
	be.PutUint32(b[108:], 16)
	be.PutUint32(b[164:], 1000)
	for i := range 8 {
		slot := b[208+48*i:]
		be.PutUint32(slot, 0xdead)
		be.PutUint32(slot[40:], uint32(8+126*i))
		be.PutUint32(slot[44:], 4000)
	}
	be.PutUint32(b[208:], 0xac71f3)
	be.PutUint32(b[212:], 1000)
	return b
}

const ovf = `<?xml version="1.0"?><Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References><File ovf:href="d.vmdk" ovf:id="f"/></References><DiskSection><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="3145728"
 ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection></Envelope>`

// archived makes an OVA of a disk in VMDK; sum is what its manifest says of it.
func archived(t testing.TB, disk []byte, sum [32]byte) []byte {
	t.Helper()
	return archive(t, ovf, disk, sum)
}

func archive(t testing.TB, ovf string, disk []byte, sum [32]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range []struct {
		name string
		body []byte
	}{{"vm.ovf", []byte(ovf)}, {"d.vmdk", disk}, {"vm.mf", fmt.Appendf(nil, "SHA256(vm.ovf)= %x\nSHA256(d.vmdk)= %x\n", sha256.Sum256([]byte(ovf)), sum)}} {
		if err := w.WriteHeader(&tar.Header{Name: m.name, Mode: 0o644, Size: int64(len(m.body))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(m.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// described is a DiskDescriptor.xml of a disk of so many sectors.
func described(kind, file string, sectors, cluster int) []byte {
	return fmt.Appendf(nil, `<?xml version="1.0" encoding="UTF-8"?><Parallels_disk_image Version="1.0">
<Disk_Parameters><Disk_size>%d</Disk_size><Padding>0</Padding></Disk_Parameters>
<StorageData><Storage><Start>0</Start><End>%d</End><Blocksize>%d</Blocksize>
<Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>%s</Type><File>%s</File></Image></Storage></StorageData>
<Snapshots><Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots>
</Parallels_disk_image>`, sectors, sectors, cluster/512, kind, file)
}

func samples(t testing.TB) map[string]sample {
	disk := mixed(41, 3*mib)
	stream, qcow2 := imageOf(t, disk, "vmdk", "-o", "subformat=streamOptimized"), qcow2Of(t, disk)
	iso, luks := disc(t, disk), encrypted()
	ploop := imageOf(t, disk, "parallels")
	return map[string]sample{
		"raw":                    {format: "raw", file: disk, disk: disk},
		"qcow2":                  {format: "qcow2", file: qcow2, disk: disk},
		"vmdk, sparse":           {format: "vmdk", file: imageOf(t, disk, "vmdk"), disk: disk},
		"vmdk, stream":           {format: "vmdk", file: stream, disk: disk},
		"vhd, fixed":             {format: "vhd", file: imageOf(t, disk, "vpc", "-o", "subformat=fixed,force_size=on"), disk: disk},
		"vhd, dynamic":           {format: "vhd", file: imageOf(t, disk, "vpc", "-o", "force_size=on"), disk: disk},
		"vhdx":                   {format: "vhdx", file: imageOf(t, disk, "vhdx"), disk: disk},
		"vdi":                    {format: "vdi", file: imageOf(t, disk, "vdi"), disk: disk},
		"ploop":                  {format: "ploop", file: ploop, disk: disk},
		"ploop with description": {format: "ploop", file: ploop, disk: disk, description: described("Compressed", "root.hds", len(disk)/512, mib)},
		"plain ploop":            {format: "ploop", file: disk, disk: disk, description: described("Plain", "root.hds", len(disk)/512, mib)},
		"iso":                    {format: "iso", file: iso, disk: iso},
		"luks":                   {format: "luks", file: luks, disk: luks},
		"ova of qcow2": {format: "ova", disk: disk, file: archive(t,
			strings.Replace(ovf, "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized", "http://www.gnome.org/~markmc/qcow-image-format.html", 1),
			qcow2, sha256.Sum256(qcow2))},
		"ova": {format: "ova", file: archived(t, stream, sha256.Sum256(stream)), disk: disk},
	}
}

// TestFormats imports every format as a file, as a stream with and without a
// size, and wrapped likewise: one of each way of converting in every compression.
func TestFormats(t *testing.T) {
	for name, s := range samples(t) {
		t.Run(name, func(t *testing.T) {
			each := map[string]sample{"plain": s}
			wrappers := unpack.Names()
			if name != "raw" && name != "vhd, fixed" && name != "qcow2" || testing.Short() {
				wrappers = []string{"gzip"}
			}
			for _, c := range wrappers {
				p := s
				p.compression, p.file = c, packedBy(t, c, s.file)
				each[c] = p
			}
			for how, s := range each {
				claim := Claim{Format: s.format, Compression: s.compression, SHA256: sha256Of(s.file)}
				sources := map[string]Source{
					"file":               {File: writeFile(t, s.file)},
					"stream":             {Stream: dribble{bytes.NewReader(s.file)}, Size: -1},
					"stream with a size": {Stream: dribble{bytes.NewReader(s.file)}, Size: int64(len(s.file))},
				}
				for kind, src := range sources {
					src.Name, src.Description = how+" "+kind, s.description
					got, err := importSource(t.Context(), t, src, claim)
					if err != nil {
						t.Errorf("%s: %v", src.Name, err)
						continue
					}
					if got.header.VirtualSize < 0 {
						if err := got.file.Truncate(int64(len(s.disk))); err != nil {
							t.Fatal(err)
						}
						got.bytes = contents(t, got.file)
					}
					check(t, src.Name, got, s.disk, s.file)
				}
			}
		})
	}
}

// TestStreamsOfUnknownSize: nothing that only the whole file tells is held
// against a stream before its end, however much may come.
func TestStreamsOfUnknownSize(t *testing.T) {
	all := samples(t)
	disk := all["raw"].disk
	all["ploop, small clusters"] = sample{format: "ploop", file: imageOf(t, disk, "parallels", "-o", "cluster_size=512"), disk: disk}
	all["luks of 4 KiB sectors"] = luks2(t)
	for name, s := range all {
		for _, reserved := range []int64{1<<30 + 512, 64 << 40} {
			claim := Claim{Format: s.format, MaxVirtualSize: 64*mib + 512, MaxUnannounced: reserved}
			got, err := importSource(t.Context(), t, Source{Stream: bytes.NewReader(s.file), Size: -1, Description: s.description}, claim)
			if want := contentOf(s.disk); err != nil || got.result.Content != want {
				t.Errorf("%s, of at most %d bytes: %v, content %q, want %q", name, reserved, err, got.result.Content, want)
			}
		}
	}
}

// luks2 is an encrypted disk of large sectors, as cryptsetup makes it.
func luks2(t *testing.T) sample {
	file := filepath.Join(t.TempDir(), "luks2")
	if err := os.WriteFile(file, make([]byte, 20*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "cryptsetup", "luksFormat", "--batch-mode", "--key-file=/etc/hostname", "--type=luks2", "--sector-size=4096", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return sample{format: "luks", file: b, disk: b}
}

// TestFormatsRefused has what goes wrong between the formats; the formats' own
// refusals are tested with their doors.
func TestFormatsRefused(t *testing.T) {
	all := samples(t)
	disk, stream := all["raw"].disk, all["vmdk, stream"].file
	for name, row := range map[string]struct {
		sample
		max  int64
		want refusal
	}{
		"claimed as raw":             {sample{format: "raw", file: all["vdi"].file}, 0, refusal{errs.Unsafe, strict.Mismatch, "look like VDI"}},
		"claimed as another":         {sample{format: "vhdx", file: all["vdi"].file}, 0, refusal{errs.Unsafe, strict.Mismatch, "look like VDI"}},
		"only LUKS2's second header": {sample{format: "raw", file: put(put(mixed(43, 5*mib), 4*mib, []byte("SKUL\xba\xbe\x00\x02")...), 4*mib+256, 0, 0, 0, 0, 0, 0x40, 0, 0)}, 0, refusal{errs.Unsafe, strict.Mismatch, "look like LUKS"}},
		"packed by pzstd":            {sample{format: "raw", file: append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00\x00\x00\x00\x00"), packedBy(t, "zstd", disk)...)}, 0, refusal{errs.Unsafe, strict.Mismatch, "look like zstd"}},
		"two formats":                {sample{format: "vdi", file: append(bytes.Clone(all["vdi"].file), put(make([]byte, 512), 0, []byte("conectix")...)...)}, 0, refusal{errs.Unsafe, strict.Mismatch, "look like VHD"}},
		"not that compression":       {sample{format: "raw", compression: "xz", file: packedBy(t, "gzip", disk)}, 0, refusal{errs.Unsafe, strict.Mismatch, "not xz"}},
		"compressed twice":           {sample{format: "raw", compression: "gzip", file: packedBy(t, "gzip", packedBy(t, "gzip", disk))}, 0, refusal{errs.Unsafe, strict.Mismatch, "look like gzip"}},
		"compressed and cut":         {sample{format: "raw", compression: "gzip", file: packedBy(t, "gzip", disk)[:20000]}, 0, refusal{errs.Unsafe, strict.Truncated, "ends early"}},
		"bomb":                       {sample{format: "raw", compression: "xz", file: packedBy(t, "xz", make([]byte, 80*mib))}, 64 * mib, refusal{errs.Unsafe, strict.Quota, "67108864"}},
		"wrong manifest":             {sample{format: "ova", file: archived(t, stream, sha256.Sum256(nil))}, 0, refusal{errs.Unsafe, strict.Checksum, "manifest"}},
		"archive of another format":  {sample{format: "ova", file: archived(t, disk, sha256.Sum256(disk))}, 0, refusal{errs.Unsafe, strict.Mismatch, ""}},
		"another capacity":           {sample{format: "ova", file: archive(t, strings.Replace(ovf, "3145728", "99999999", 1), stream, sha256.Sum256(stream))}, 0, refusal{errs.Unsafe, strict.Corrupt, "99999999 bytes, its image 3145728"}},
		"description of another":     {sample{format: "ploop", file: all["ploop"].file, description: described("Compressed", "root.hds", 512, mib)}, 0, refusal{errs.Unsafe, strict.Corrupt, "262144 bytes"}},
		"clusters of another":        {sample{format: "ploop", file: all["ploop"].file, description: described("Compressed", "root.hds", len(disk)/512, 2*mib)}, 0, refusal{errs.Unsafe, strict.Corrupt, "clusters"}},
		"description of a path":      {sample{format: "ploop", file: all["ploop"].file, description: described("Compressed", "/etc/passwd", len(disk)/512, mib)}, 0, refusal{errs.Unsafe, strict.External, ""}},
		"description elsewhere":      {sample{format: "ploop", file: all["ploop"].file, description: described("Compressed", "other.hds", len(disk)/512, mib)}, 0, refusal{errs.Unsafe, strict.External, "another file"}},
		"description with entities":  {sample{format: "ploop", file: all["ploop"].file, description: []byte(`<!DOCTYPE x [<!ENTITY e "e">]>` + string(described("Compressed", "root.hds", 1, mib)))}, 0, refusal{errs.Unsafe, strict.UnsafeXML, ""}},
		"description of no ploop":    {sample{format: "raw", file: disk, description: described("Plain", "root.hds", len(disk)/512, mib)}, 0, refusal{errs.Unsafe, strict.Mismatch, "ploop"}},
		"compression unknown":        {sample{format: "raw", compression: "lzma", file: disk}, 0, refusal{errs.Unsafe, strict.Format, "lzma"}},
		"cut disc":                   {sample{format: "iso", file: all["iso"].file[:mib]}, 0, refusal{errs.Unsafe, strict.Truncated, ""}},
	} {
		claim := Claim{Format: row.format, Compression: row.compression, MaxUnannounced: row.max}
		_, err := importSource(t.Context(), t, Source{File: writeFile(t, row.file), Description: row.description}, claim)
		row.want.check(t, name, err)
		_, err = importSource(t.Context(), t, Source{Stream: bytes.NewReader(row.file), Size: -1, Description: row.description}, claim)
		row.want.check(t, name+" as a stream", err)
	}
}

// TestSizeLimitOfFormats: every format's virtual size is held against the limit.
func TestSizeLimitOfFormats(t *testing.T) {
	for name, s := range samples(t) {
		for compression, file := range map[string][]byte{"": s.file, "gzip": packedBy(t, "gzip", s.file)} {
			_, err := importSource(t.Context(), t, Source{File: writeFile(t, file), Description: s.description}, Claim{Format: s.format, Compression: compression, MaxVirtualSize: 512 * kib})
			var e *errs.Error
			if !errors.As(err, &e) || e.Class != strict.Quota || !strings.Contains(e.Hint, "--max-virtual-size") {
				t.Errorf("%s, compression %q: got %v, want QUOTA with a hint", name, compression, err)
			}
		}
	}
}

// TestHintsFitTheFormat: what nothing converts is not told to be converted.
func TestHintsFitTheFormat(t *testing.T) {
	luks := encrypted()
	for name, row := range map[string]struct {
		file []byte
		hint string
	}{
		"a key of 24 bytes": {put(luks, 108, 0, 0, 0, 24), "cryptsetup's defaults"},
		"an unknown hash":   {put(luks, 72, 'm', 'd', '5', 0, 0, 0, 0, 0), "cryptsetup's defaults"},
	} {
		_, err := importSource(t.Context(), t, Source{File: writeFile(t, row.file)}, Claim{Format: "luks"})
		var e *errs.Error
		if !errors.As(err, &e) || e.Class != strict.Feature || !strings.Contains(e.Hint, row.hint) {
			t.Errorf("%s: got %v, want UNSUPPORTED_FEATURE with the hint %q", name, err, row.hint)
		}
	}
}
