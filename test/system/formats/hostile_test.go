package formats_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"
)

// common is what can be wrong with an image of every format.
func common(sound []byte) []row {
	return []row{
		{"no bytes", nil, "EMPTY", "", "", nil},
		{"noise", tarnNoise(), "FORMAT_MISMATCH", "", "", nil},
		{"half of it", sound[:len(sound)/2], "TRUNCATED", "", "", nil},
		{"too large", sound, "QUOTA", "65536", "--max-virtual-size 64K", nil},
		{"another digest", sound, "CHECKSUM", "SHA-256", "--sha256 " + strings.Repeat("0", 64), nil},
	}
}

// tarnNoise looks like nothing.
func tarnNoise() []byte { return bytes.Repeat([]byte("neither fish nor fowl "), 50_000) }

func (w *world) qcow2() (sound []byte, rows []row) {
	sound = converted(w.t, "qcow2")
	l1 := int(binary.BigEndian.Uint64(sound[40:]))
	l2 := int(binary.BigEndian.Uint64(sound[l1:]) & 0x00fffffffffffe00)
	backing := func(name string) []byte {
		return with(sound, be64(8, 2048), be32(16, uint32(len(name))), put(2048, name))
	}
	file := with(sound, be32(76, 4), put(112, "\x44\x41\x54\x41"), be32(116, uint32(len(w.canary.Path))), put(120, w.canary.Path+strings.Repeat("\x00", 400)))
	return sound, []row{
		{"backing file", backing(w.canary.Path), "EXTERNAL_REFERENCE", "backing", "", nil},
		{"backing file by JSON", backing(fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"file","filename":%q}}`, w.canary.Path)), "EXTERNAL_REFERENCE", "backing", "", nil},
		{"backing file by NBD", backing(w.url("nbd")), "EXTERNAL_REFERENCE", "backing", "", nil},
		{"backing file by HTTP", backing(w.url("http")), "EXTERNAL_REFERENCE", "backing", "", nil},
		{"backing file without a name", with(sound, be64(8, 2048)), "EXTERNAL_REFERENCE", "backing", "", nil},
		{"data file", file, "EXTERNAL_REFERENCE", "another file", "", nil},
		{"data file without the bit", with(file, be32(76, 0)), "EXTERNAL_REFERENCE", "", "", nil},
		{"L1 table misplaced", with(sound, be64(40, 1000)), "CORRUPT", "L1", "", nil},
		{"L1 table past the end", with(sound, be64(40, 1<<40)), "TRUNCATED", "L1", "", nil},
		{"one cluster twice", with(sound, put(l2+8, string(sound[l2:l2+8]))), "OVERLAP", "0x", "", nil},
		{"many snapshots", with(sound, be32(60, 70_000), be64(64, 65536)), "LIMIT", "70000", "", nil},
		{"dirty", with(sound, be32(76, 1)), "DIRTY", "dirty", "", nil},
		{"encrypted", with(sound, be32(32, 1)), "UNSUPPORTED_FEATURE", "encrypt", "", nil},
		{"unknown feature", with(sound, be32(76, 64)), "UNSUPPORTED_FEATURE", "unknown", "", nil},
		{"version 4", with(sound, be32(4, 4)), "UNSUPPORTED_VERSION", "version 4", "", nil},
		{"2^64 bytes", with(sound, be64(24, 1<<64-512)), "QUOTA", "virtual size", "", nil},
	}
}

func (w *world) vmdk() (sound []byte, rows []row) {
	sound = converted(w.t, "vmdk")
	gd := int(binary.LittleEndian.Uint64(sound[56:])) * 512
	gt := int(binary.LittleEndian.Uint32(sound[gd:])) * 512
	flat := fmt.Sprintf(`FLAT "%s" 0`, w.canary.Path)
	extent := string(sound[512:1536])
	extent = extent[strings.Index(extent, "SPARSE"):]
	extent, _, _ = strings.Cut(extent, "\n")
	text := func(typ string) []byte {
		return fmt.Appendf(nil, "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"%s\"\nRW 6144 %s\n", typ, flat)
	}
	return sound, []row{
		{"flat extent elsewhere", with(sound, swap(extent, flat)), "EXTERNAL_REFERENCE", "line", "", nil},
		{"parent", with(sound, swap("parentCID=ffffffff", "parentCID=00000001\nparentFileNameHint=\""+w.canary.Path+"\"")), "EXTERNAL_REFERENCE", "another file", "", nil},
		{"two extents", with(sound, swap("RW ", "RW 6144 "+flat+"\nRW ")), "EXTERNAL_REFERENCE", "line", "", nil},
		{"change tracking", with(sound, swap("RW ", "changeTrackPath=\""+w.canary.Path+"\"\nRW ")), "EXTERNAL_REFERENCE", "", "", nil},
		{"text alone", text("monolithicFlat"), "UNSUPPORTED_FORMAT", "descriptor", "", nil},
		{"text of a device", text("fullDevice"), "UNSUPPORTED_FORMAT", "descriptor", "", nil},
		{"COWD", with(sound, put(0, "COWD")), "UNSUPPORTED_FORMAT", "COWD", "", nil},
		{"newline test", with(sound, put(0x4b, "\n")), "CORRUPT", "0x49", "", nil},
		{"grain past the end", with(sound, le32(gt, 1<<31)), "TRUNCATED", "0x", "", nil},
		{"one grain twice", with(sound, put(gt+4, string(sound[gt:gt+4]))), "OVERLAP", "0x", "", nil},
		{"grains of 2 MiB", with(sound, le64(0x14, 4096)), "LIMIT", "0x14", "", nil},
		{"unclean", with(sound, put(0x48, "\x01")), "DIRTY", "0x48", "", nil},
		{"unknown flag", with(sound, le32(8, 0x13)), "UNSUPPORTED_FEATURE", "0x8", "", nil},
		{"version 4", with(sound, le32(4, 4)), "UNSUPPORTED_VERSION", "0x4", "", nil},
		{"65 TiB", with(sound, le64(12, 65<<31)), "QUOTA", "virtual size", "", nil},
	}
}

func (w *world) vhd() (sound []byte, rows []row) {
	sound = converted(w.t, "vpc", "-o", "force_size=on")
	const header, table = 512, 1536
	name := func(order binary.AppendByteOrder) string {
		var b []byte
		for _, u := range utf16.Encode([]rune(w.canary.Path)) {
			b = order.AppendUint16(b, u)
		}
		return string(b)
	}
	locator := func(b []byte) []byte {
		return with(b, put(64, name(binary.BigEndian)), put(576, "W2ku"), be32(580, 512), be32(584, 512), be64(592, 2048))
	}
	return sound, []row{
		{"a parent", with(sound, summed(0, be32(60, 4)), summed(header, func(b []byte) []byte { copy(b, locator(b)); return b })), "EXTERNAL_REFERENCE", "0x", "", nil},
		{"a parent of a whole disk", with(sound, summed(header, func(b []byte) []byte { copy(b, locator(b)); return b })), "EXTERNAL_REFERENCE", "0x", "", nil},
		{"footer's checksum", with(sound, put(20, "x"), put(len(sound)-492, "x")), "CORRUPT", "checksum", "", nil},
		{"block past the end", with(sound, be32(table, 1<<30)), "TRUNCATED", "block 0", "", nil},
		{"one block twice", with(sound, put(table+4, string(sound[table:table+4]))), "OVERLAP", "block", "", nil},
		{"4 TiB", with(sound, summed(0, be64(48, 4<<40))), "LIMIT", "footer", "", nil},
		{"saved state", with(sound, summed(0, put(84, "\x01"))), "DIRTY", "footer", "", nil},
		{"unknown feature", with(sound, summed(0, be32(8, 6))), "UNSUPPORTED_FEATURE", "footer", "", nil},
		{"version 2", with(sound, summed(0, be32(12, 0x20000))), "UNSUPPORTED_VERSION", "0x00020000", "", nil},
		{"type 5", with(sound, summed(0, be32(60, 5))), "UNSUPPORTED_FORMAT", "type 5", "", nil},
	}
}

func (w *world) vhdx() (sound []byte, rows []row) {
	sound = converted(w.t, "vhdx", "-o", "block_size=1M")
	const table, metadata = 2 * mib, 3 * mib
	params := metadata + int(binary.LittleEndian.Uint32(sound[metadata+32+16:]))
	count := int(binary.LittleEndian.Uint16(sound[metadata+10:]))
	text := func(s string) string {
		var b []byte
		for _, u := range utf16.Encode([]rune(s)) {
			b = binary.LittleEndian.AppendUint16(b, u)
		}
		return string(b)
	}
	key, value := text("absolute_win32_path"), text(w.canary.Path)
	locator := "\xb7\xef\x4a\xb0\x9e\xd1\x81\x4a\xb7\x89\x25\xb8\xe9\x44\x59\x13\x00\x00\x01\x00" + string([]byte{32, 0, 0, 0, byte(32 + len(key)), 0, 0, 0, byte(len(key)), 0, byte(len(value)), byte(len(value) >> 8)}) + key + value
	at := metadata + 32 + 32*count
	parent := with(sound, put(metadata+10, string(rune(count+1))), put(at, "\x2d\x5f\xd3\xa8\x0b\xb3\x4d\x45\xab\xf7\xd3\xd8\x48\x34\xab\x0c"),
		le32(at+16, 0x20000), le32(at+20, uint32(len(locator))), le32(at+24, 4), put(metadata+0x20000, locator))
	return sound, []row{
		{"a parent", with(parent, le32(params+4, 2)), "EXTERNAL_REFERENCE", "0x", "", nil},
		{"a parent's locator alone", parent, "EXTERNAL_REFERENCE", "0x", "", nil},
		{"headers' checksums", with(sound, put(64<<10+100, "x"), put(128<<10+100, "x")), "CORRUPT", "header at 0x", "", nil},
		{"block past the end", with(sound, le64(table, 1<<40|6)), "TRUNCATED", "block 0 at 0x10000000000", "", nil},
		{"one block twice", with(sound, put(table+8, string(sound[table:table+8]))), "OVERLAP", "block 1 at 0x", "", nil},
		{"many regions", with(sound, regions(le32(8, 2048))), "LIMIT", "region table at 0x", "", nil},
		{"a log", with(sound, headers(put(48, "\x01"))), "DIRTY", "log at 0x", "", nil},
		{"a required region", with(sound, regions(func(b []byte) []byte {
			copy(b, with(b, le32(8, 3), put(80, "0123456789abcdef"), le64(96, 7*mib), le32(104, mib), le32(108, 1)))
			return b
		})), "UNSUPPORTED_FEATURE", "0x", "", nil},
		{"version 2", with(sound, headers(put(66, "\x02"))), "UNSUPPORTED_VERSION", "version 2", "", nil},
	}
}

func (w *world) vdi() (sound []byte, rows []row) {
	sound = converted(w.t, "vdi")
	const table = 512
	return sound, []row{
		{"a difference", with(sound, le32(0x4c, 4), put(0x1a8, "0123456789abcdef0123456789abcdef")), "EXTERNAL_REFERENCE", "type 4", "", nil},
		{"a link", with(sound, put(0x1a8, "0123456789abcdef")), "EXTERNAL_REFERENCE", "0x1a8", "", nil},
		{"fewer blocks than the disk", with(sound, le32(0x180, 2)), "CORRUPT", "0x180", "", nil},
		{"data past the end", with(sound, le32(0x158, 1<<31)), "TRUNCATED", "the data", "", nil},
		{"one block twice", with(sound, le32(table+8, 0)), "OVERLAP", "entry 2 of the block map, at 0x208", "", nil},
		{"type 5", with(sound, le32(0x4c, 5)), "UNSUPPORTED_FEATURE", "0x4c", "", nil},
		{"version 0.1", with(sound, le32(0x44, 1)), "UNSUPPORTED_VERSION", "0x44", "", nil},
		{"65 TiB", with(sound, le64(0x170, 65<<40)), "QUOTA", "virtual size", "", nil},
	}
}

func (w *world) ploop() (sound []byte, rows []row) {
	sound = converted(w.t, "parallels")
	bundle := func(description string) map[string][]byte {
		return map[string][]byte{"DiskDescriptor.xml": []byte(description), "root.hds": sound}
	}
	entity := `<!DOCTYPE x [<!ENTITY e SYSTEM "file://` + w.canary.Path + `">]><Parallels_disk_image `
	return sound, []row{
		{"description of a path", nil, "EXTERNAL_REFERENCE", "File", "", bundle(description(w.canary.Path))},
		{"description of another file", nil, "EXTERNAL_REFERENCE", "another file", "", bundle(description("other.hds"))},
		{"description of a URL", nil, "EXTERNAL_REFERENCE", "File", "", bundle(description(w.url("http")))},
		{"description with an entity", nil, "UNSAFE_XML", "DTD", "", bundle(strings.Replace(description("&e;"), "<Parallels_disk_image ", entity, 1))},
		{"description of another disk", nil, "CORRUPT", "bytes", "", bundle(strings.ReplaceAll(description("root.hds"), "6144", "6145"))},
		{"state of another image", nil, "CORRUPT", "GUID", "", bundle(strings.Replace(description("root.hds"), "<Shot><GUID>{5", "<Shot><GUID>{6", 1))},
		{"no tracks", with(sound, le32(28, 0)), "CORRUPT", "0x1c", "", nil},
		{"cluster past the end", with(sound, le32(64, 1<<31)), "TRUNCATED", "entry 0 of the block map, at 0x40", "", nil},
		{"one cluster twice", with(sound, put(68, string(sound[64:68]))), "OVERLAP", "entry 1 of the block map", "", nil},
		{"huge clusters", with(sound, le32(28, 1<<20)), "LIMIT", "0x1c", "", nil},
		{"in use", with(sound, le32(44, 0x746f6e59)), "DIRTY", "0x2c", "", nil},
		{"format extension", with(sound, le64(56, 2048)), "UNSUPPORTED_FEATURE", "0x38", "", nil},
		{"version 3", with(sound, le32(16, 3)), "UNSUPPORTED_VERSION", "0x10", "", nil},
		{"65 TiB", with(sound, le64(36, 65<<31)), "QUOTA", "virtual size", "", nil},
	}
}

func (w *world) iso() (sound []byte, rows []row) {
	sound = disc(w.t)
	const pvd = 16 * 2048
	udf := with(sound, put(pvd, "\x00BEA01\x01"), put(pvd+2048, "\x00NSR02\x01"), put(pvd+4096, "\x00TEA01\x01"))
	endless := bytes.Clone(sound)
	for off := pvd + 2048; off < pvd+40*2048; off += 2048 {
		endless = with(endless, put(off, "\x00CD001\x01some boot record"))
	}
	return sound, []row{
		{"sizes differ", with(sound, le32(pvd+80, 17)), "CORRUPT", "0x8050", "", nil},
		{"volume past the end", with(sound, le32(pvd+80, 1<<30), be32(pvd+84, 1<<30)), "TRUNCATED", "volume", "", nil},
		{"path table on the descriptor", with(sound, le32(pvd+140, 16)), "OVERLAP", "path table", "", nil},
		{"no last descriptor", endless, "LIMIT", "16 volume descriptors", "", nil},
		{"a partition", with(sound, put(pvd+2048, "\x03")), "UNSUPPORTED_FEATURE", "0x8800", "", nil},
		{"version 2", with(sound, put(pvd+6, "\x02")), "UNSUPPORTED_VERSION", "0x8000", "", nil},
		{"UDF alone", udf, "UNSUPPORTED_FORMAT", "UDF", "", nil},
	}
}

func (w *world) luks() (sound []byte, rows []row) {
	sound = luks()
	return sound, []row{
		{"data elsewhere", with(sound, be32(104, 0)), "EXTERNAL_REFERENCE", "0x68", "", nil},
		{"few stripes", with(sound, be32(252, 3999)), "CORRUPT", "key slot 0", "", nil},
		{"data past the end", with(sound, be32(104, 1<<31)), "TRUNCATED", "encrypted data", "", nil},
		{"slot on another", with(sound, be32(248+48, 100)), "OVERLAP", "key slot 1", "", nil},
		{"many rounds", with(sound, be32(164, 1<<32-1)), "LIMIT", "4294967295", "", nil},
		{"unknown cipher", with(sound, put(8, "xor")), "UNSUPPORTED_FEATURE", "cipher", "", nil},
		{"version 3", with(sound, put(7, "\x03")), "UNSUPPORTED_VERSION", "version 3", "", nil},
	}
}

func (w *world) ova() (sound []byte, rows []row) {
	vmdk := converted(w.t, "vmdk", "-o", "subformat=streamOptimized")
	described := func(text string, more ...member) []byte {
		return archive(w.t, append([]member{{name: "vm.ovf", body: text}, {name: "d.vmdk", body: string(vmdk)}}, more...)...)
	}
	changed := func(old, now string) []byte { return described(strings.Replace(envelope, old, now, 1)) }
	entity := `?><!DOCTYPE x [<!ENTITY e SYSTEM "file://` + w.canary.Path + `">]>`
	_, parts := w.vmdk()
	return described(envelope), []row{
		{"symbolic link for the disk", archive(w.t, member{name: "vm.ovf", body: envelope}, member{name: "d.vmdk", link: w.canary.Path, kind: '2'}), "UNSAFE_ARCHIVE", "member 2", "", nil},
		{"hard link for the disk", archive(w.t, member{name: "vm.ovf", body: envelope}, member{name: "d.vmdk", link: w.canary.Path, kind: '1'}), "UNSAFE_ARCHIVE", "member 2", "", nil},
		{"path for a name", described(envelope, member{name: "../../etc/cron.d/x", body: "x"}), "UNSAFE_ARCHIVE", "member 3", "", nil},
		{"disk twice", described(envelope, member{name: "d.vmdk", body: "x"}), "UNSAFE_ARCHIVE", "name of another", "", nil},
		{"entity", changed("?>", entity), "UNSAFE_XML", "byte", "", nil},
		{"disk by a path", changed("d.vmdk", w.canary.Path), "EXTERNAL_REFERENCE", "plain file name", "", nil},
		{"disk by a URL", changed("d.vmdk", w.url("http")), "EXTERNAL_REFERENCE", "plain file name", "", nil},
		{"disk with a parent", changed("<Disk ", `<Disk ovf:parentRef="p" `), "EXTERNAL_REFERENCE", "change to another", "", nil},
		{"disk that refers elsewhere", archive(w.t, member{name: "vm.ovf", body: envelope}, member{name: "d.vmdk", body: string(parts[0].file)}), "EXTERNAL_REFERENCE", "line", "", nil},
		{"manifest", described(envelope, member{name: "vm.mf", body: fmt.Sprintf("SHA256(vm.ovf)= %x\nSHA256(d.vmdk)= %064d\n", sha256.Sum256([]byte(envelope)), 0)}), "CHECKSUM", "manifest", "", nil},
		{"manifest without the disk", described(envelope, member{name: "vm.mf"}), "CORRUPT", "does not list", "", nil},
		{"another disk for who ignores namespaces", described(strings.Replace(envelope, "<Disk ", `<Disk xmlns:x="urn:x" x:fileRef="g" `, 1)), "UNSAFE_XML", "two attributes fileRef", "", nil},
		{"another archive behind it", append(described(envelope), described(envelope)...), "CORRUPT", "behind its end", "", nil},
		{"another capacity", changed("3145728", "99999999"), "CORRUPT", "its image 3145728", "", nil},
		{"two disks", changed("<Disk ", `<Disk ovf:diskId="e" ovf:fileRef="f"/><Disk `), "UNSUPPORTED_FEATURE", "2 disks", "", nil},
		{"format", changed("vmdk.html#streamOptimized", "tape"), "UNSUPPORTED_FORMAT", "format", "", nil},
		{"version", changed(`xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"`, `xmlns="urn:x"`), "UNSUPPORTED_VERSION", "version", "", nil},
		{"size", changed("ovf:id", `ovf:size="1" ovf:id`), "CORRUPT", "the description says 1", "", nil},
		{"long description", described(envelope + strings.Repeat(" ", 1<<20)), "LIMIT", "1048576", "", nil},
	}
}

// raw has no structure; what it must not be is one of the other formats.
func (w *world) raw() (sound []byte, rows []row) {
	sound = disk()
	for name, make := range w.formats() {
		if name == "iso" || name == "raw" || name == "ova" {
			continue
		}
		other, hostile := make()
		rows = append(rows, row{name, other, "FORMAT_MISMATCH", "look like", "", nil})
		if hostile[0].files == nil {
			rows = append(rows, row{name + " that refers elsewhere", hostile[0].file, "FORMAT_MISMATCH", "look like", "", nil})
		}
	}
	for _, name := range []string{"QED\x00", "QFI\xfb\x00\x00\x00\x01", "Bochs Virtual HD Image", "#!/bin/sh\n#V2.0 Format\n", "COWD", "BZh9", "\x28\xb5\x2f\xfd"} {
		rows = append(rows, row{fmt.Sprintf("%q", name), with(sound, put(0, name)), "FORMAT_MISMATCH", "look like", "", nil})
	}
	dmg := with(sound, put(len(sound)-512, "koly\x00\x00\x00\x04\x00\x00\x02\x00"))
	text := fmt.Appendf(nil, "#\xe4\n\n# a comment\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"%s\" 0\n", w.canary.Path)
	return sound, append(rows, row{"DMG", dmg, "FORMAT_MISMATCH", "DMG", "", nil}, row{"VMDK by text", text, "FORMAT_MISMATCH", "VMDK", "", nil})
}

// wrapped is a raw disk in a wrapper that is wrong.
func (w *world) wrapped(name string) []row {
	flag, sound := "--compression "+name, packed(w.t, name, disk())
	rows := []row{
		{name + " of no bytes", nil, "EMPTY", "", flag, nil},
		{name + " that is none", disk(), "FORMAT_MISMATCH", name, flag, nil},
		{name + " without the flag", sound, "FORMAT_MISMATCH", name, "", nil},
		{name + ", half of it", sound[:len(sound)/2], "TRUNCATED", "", flag, nil},
		{name + " with more behind it", append(bytes.Clone(sound), "and something else altogether"...), "CORRUPT", "", flag, nil},
		{name + " of a large disk", sound, "QUOTA", "65536", flag + " --max-virtual-size 64K", nil},
		{name + " of another digest", sound, "CHECKSUM", "SHA-256", flag + " --sha256 " + strings.Repeat("0", 64), nil},
	}
	switch name {
	case "xz":
		little := binary.LittleEndian
		b := little.AppendUint32([]byte("\xfd7zXZ\x00\x00\x01"), crc32.ChecksumIEEE([]byte{0, 1}))
		block := []byte{2, 0, 0x21, 1, 40, 0, 0, 0}
		rows = append(rows, row{"xz with 4 GiB of dictionary", append(little.AppendUint32(append(b, block...), crc32.ChecksumIEEE(block)), make([]byte, 64)...), "LIMIT", "MiB", flag, nil})
	case "zstd":
		rows = append(rows, row{"zstd with 2 GiB of window", []byte("\x28\xb5\x2f\xfd\x00\xa8\x09\x00\x00x"), "LIMIT", "MiB", flag, nil})
	}
	return rows
}

// formats makes, by format, a sound image and hostile ones.
func (w *world) formats() map[string]func() ([]byte, []row) {
	return map[string]func() ([]byte, []row){
		"raw": w.raw, "qcow2": w.qcow2, "vmdk": w.vmdk, "vhd": w.vhd, "vhdx": w.vhdx, "vdi": w.vdi, "ploop": w.ploop, "iso": w.iso, "luks": w.luks, "ova": w.ova,
	}
}

// classes are what a refusal may be.
var classes = strings.Fields("EXTERNAL_REFERENCE FORMAT_MISMATCH CORRUPT TRUNCATED OVERLAP LIMIT QUOTA DIRTY UNSUPPORTED_FEATURE UNSUPPORTED_VERSION " +
	"UNSUPPORTED_FORMAT CHECKSUM EMPTY NOT_REGULAR UNSAFE_ARCHIVE UNSAFE_XML")

func TestHostileImages(t *testing.T) {
	w := newWorld(t)
	for name, make := range w.formats() {
		sound, rows := make()
		path := filepath.Join(w.dir, "sound")
		if err := os.WriteFile(path, sound, 0o644); err != nil {
			t.Fatal(err)
		}
		w.d.Must("image", "inspect", path, "--format", name)
		for _, r := range common(sound) {
			if name == "raw" && (r.class == "FORMAT_MISMATCH" || r.class == "TRUNCATED") {
				continue // there is nothing to tell it by
			}
			w.refuse(name, r)
		}
		for _, r := range rows {
			w.refuse(name, r)
		}
	}
	for _, name := range []string{"gzip", "xz", "zstd", "bzip2"} {
		for _, r := range w.wrapped(name) {
			w.refuse("raw", r)
		}
	}
	w.sources()
	for _, class := range classes {
		if w.seen[class] == 0 {
			t.Errorf("no image was refused as %s", class)
		}
	}
	t.Logf("refused: %v", w.seen)
	w.finish()
}

// sources are no files, and are refused before a byte is read.
func (w *world) sources() {
	w.t.Helper()
	fifo, folder := filepath.Join(w.dir, "fifo"), filepath.Join(w.dir, "folder")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Mkdir(folder, 0o755); err != nil {
		w.t.Fatal(err)
	}
	for _, r := range []row{{name: fifo, says: "a FIFO"}, {name: folder, says: "a directory"}, {name: "/dev/zero", says: "a device"}} {
		for _, verb := range []string{"inspect", "import new"} {
			for _, format := range []string{"raw", "qcow2", "vmdk", "ova"} {
				got := w.d.Run(append(strings.Fields("image "+verb), r.name, "--format", format, "-o", "json")...)
				said := got.Stderr
				if verb == "inspect" { // whose answer is the verdict
					said = got.Stdout
				}
				if got.Status != 5 || !strings.Contains(said, "NOT_REGULAR") || !strings.Contains(said, r.says) {
					w.t.Errorf("want NOT_REGULAR and %q of %v", r.says, got)
				}
			}
		}
		w.seen["NOT_REGULAR"]++
	}
}
