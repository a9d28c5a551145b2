package inspect_test

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

const canary = "/etc/passwd"

// hostileSparse are changes to the sound monolithicSparse image, and what must
// be said of them.
var hostileSparse = []struct {
	name  string
	spoil change
	class string
	says  string
}{
	{"empty file", cut(0), strict.Empty, "empty"},
	{"one byte", cut(1), strict.Mismatch, "magic"},
	{"not VMDK", put32(0, 0xfb494651), strict.Mismatch, "magic at 0x0 is 514649fb"},
	{"cut in the header", cut(100), strict.Truncated, "100 bytes"},
	{"COWD", put32(0, 0x44574f43), strict.Format, "COWD"},
	{"space-efficient sparse", put32(0, 0xcafebabe), strict.Format, "space-efficient"},
	{"unfinished", put32(0, 0x766d646b), strict.Dirty, "never finished"},
	{"version 0", put32(4, 0), strict.Version, "version 0"},
	{"version 4", put32(4, 4), strict.Version, "version 4"},
	{"unknown flag", put32(8, 0x13), strict.Feature, "flags: 0x13"},
	{"unknown high flag", put32(8, 0x40003), strict.Feature, "flags: 0x40003"},
	{"newline test", put8(0x4b, '\n'), strict.Corrupt, "newline test bytes at 0x49"},
	{"padding", put8(300, 1), strict.Feature, "behind its fields"},
	{"unclean", put8(0x48, 1), strict.Dirty, "0x48"},
	{"compressed without markers", put32(8, 0x10003), strict.Feature, "not both"},
	{"markers without compression", put32(8, 0x20003), strict.Feature, "not both"},
	{"compression 2", put8(77, 2), strict.Feature, "unknown compression 2"},
	{"compression without flag", put8(77, 1), strict.Corrupt, "contradict"},
	{"flags of a stream", all(put32(8, 0x30003), put8(77, 1)), strict.Corrupt, "createType"},
	{"table of 256", put32(0x2c, 256), strict.Feature, "256 entries"},
	{"table of 1 GiB", put32(0x2c, 1<<28), strict.Feature, "0x2c"},
	{"grain 0", put64(0x14, 0), strict.Corrupt, "0x14"},
	{"grain of 4 sectors", put64(0x14, 4), strict.Corrupt, "grains of 4 sectors"},
	{"grain of 96 sectors", put64(0x14, 96), strict.Corrupt, "grains of 96 sectors"},
	{"grain of 2 MiB", put64(0x14, 4096), strict.Limit, "grains of 4096 sectors"},
	{"grain of 2^63", put64(0x14, 1<<63), strict.Limit, "grains of"},
	{"capacity 0", put64(0xc, 0), strict.Empty, "virtual size is 0"},
	{"capacity over the limit", put64(0xc, 65<<40/512), strict.Quota, "the virtual size"},
	{"capacity 2^64", put64(0xc, 1<<64-1), strict.Quota, "the virtual size"},
	{"capacity unlike the extent", put64(0xc, 10_000), strict.Corrupt, "10000 sectors, the descriptor's extent 321"},
	{"capacity below the extent", put64(0xc, 320), strict.Corrupt, "320 sectors"},
	{"too many tables", all(put64(0xc, 60<<40/512), put64(0x14, 8), text("RW 321", "RW 128849018880")), strict.Limit, "grain tables"},
	{"overhead behind the end", put64(0x40, 1<<40), strict.Truncated, "0x40"},
	{"no grain directory", put64(0x38, 0), strict.Corrupt, "no grain directory"},
	{"directory at the end", put64(0x38, 1<<64-1), strict.Corrupt, "behind a stream"},
	{"directory behind the end", put64(0x38, 1<<40), strict.Truncated, "the grain directory"},
	{"directory wraps around", put64(0x38, 1<<55), strict.Truncated, "the grain directory"},
	{"directory at 2^64-2", put64(0x38, 1<<64-2), strict.Truncated, "the grain directory"},
	{"directory on the descriptor", put64(0x38, 2), strict.Overlap, "the grain directory at 0x400"},
	{"redundant directory behind the end", put64(0x30, 1<<30), strict.Truncated, "redundant grain directory"},
	{"redundant directory on the first", put64(0x30, gd/sector), strict.Overlap, "redundant grain directory"},
	{"table behind the end", put32(gd, 1<<31), strict.Truncated, "a grain table"},
	{"table on the directory", put32(gd, gd/sector), strict.Overlap, "a grain table"},
	{"table missing", put32(gd, 0), strict.Corrupt, "redundant grain directory"},
	{"redundant table missing", put32(rgd, 0), strict.Corrupt, "redundant grain directory"},
	{"redundant table behind the end", put32(rgd, 1<<31), strict.Truncated, "a redundant grain table"},
	{"redundant table is the first", put32(rgd, gt/sector), strict.Overlap, "a redundant grain table"},
	{"redundant table differs", put32(rgt+4, 128), strict.Corrupt, "the redundant grain table at 0x2c00"},
	{"grain behind the end", put32(gt, 1<<31), strict.Truncated, "a grain at 0x10000000000"},
	{"grain half behind the end", put32(gt, (sparseG0+512)/sector), strict.Truncated, "a grain"},
	{"grain on the table", put32(gt, gt/sector), strict.Overlap, "a grain"},
	{"grain on the header", put32(gt+4, 1), strict.Overlap, "a grain"},
	{"grain on half of another", put32(gt+4, (sparseG2+512)/sector), strict.Overlap, "a grain"},
	{"grain twice", put32(gt+4, sparseG0/sector), strict.Overlap, "a grain"},
	{"grain behind the disk", put32(gt+12, sparseG2/sector), strict.Corrupt, "past the disk's 321"},
	{"no descriptor", put64(0x1c, 0), strict.Format, "no descriptor"},
	{"descriptor of no size", put64(0x24, 0), strict.Format, "no descriptor"},
	{"descriptor elsewhere", put64(0x1c, 2), strict.Corrupt, "at sector 2"},
	{"descriptor of 1 MiB", put64(0x24, 2048), strict.Limit, "2048 sectors"},
	{"descriptor of 2^63", put64(0x24, 1<<63), strict.Limit, "sectors"},
	{"descriptor behind the end", put64(0x24, 1000), strict.Truncated, "the descriptor"},
	{"cut in the descriptor", cut(3000), strict.Truncated, "the descriptor"},
	{"text behind the descriptor", put8(20*512, 'x'), strict.Corrupt, "behind its end"},
	{"another text behind the descriptor", put8(sector+len(sparseText)+1, 'x'), strict.Corrupt, "behind its end"},
	{"too much behind the descriptor", put8(sector+len(sparseText)+7, '\n'), strict.Corrupt, "behind its end"},

	{"parent", text("parentCID=ffffffff", "parentCID=12345678"), strict.External, "parent"},
	{"parent hint", text("createType", `parentFileNameHint="`+canary+`"`+"\ncreateType"), strict.External, "another file"},
	{"parent hint in another case", text("createType", `ParentFilenameHint="`+canary+`"`+"\ncreateType"), strict.External, "another file"},
	{"parent hint in a comment", text("#DDB", `# parentFileNameHint="`+canary+`"`), strict.External, "another file"},
	{"change tracking", add(`changeTrackPath="` + canary + `"`), strict.External, "another file"},
	{"native parent", add(`ddb.nativeParentHint = "` + canary + `"`), strict.External, "refers to another"},
	{"sidecar", add(`ddb.sidecars = "x_1.vmfd;"`), strict.External, "refers to another"},
	{"parent uuid", add(`ddb.uuid.parent="4d8b5ac7-0000-4000-8000-000000000000"`), strict.External, "snapshot"},
	{"native snapshot", text("createType", "isNativeSnapshot=\"yes\"\ncreateType"), strict.External, "snapshot"},
	{"flat", all(text(`"monolithicSparse"`, `"monolithicFlat"`), text(`SPARSE "disk.vmdk"`, `FLAT "`+canary+`" 0`)), strict.External, "another type than SPARSE"},
	{"flat extent only", text(`SPARSE "disk.vmdk"`, `FLAT "`+canary+`" 0`), strict.External, "line 8"},
	{"flat type only", text(`"monolithicSparse"`, `"monolithicFlat"`), strict.External, "createType"},
	{"two files", text("# The Disk", "RW 321 SPARSE \"b.vmdk\"\n# The Disk"), strict.External, "second extent"},
	{"two files, indented", text("# The Disk", "\t rw 321 FLAT \""+canary+"\" 0\n# The Disk"), strict.External, "second extent"},
	{"twoGbMaxExtentSparse", text("monolithicSparse", "twoGbMaxExtentSparse"), strict.External, "createType"},
	{"device", all(text("monolithicSparse", "fullDevice"), text(`SPARSE "disk.vmdk"`, `FLAT "/dev/sda" 0`)), strict.External, "SPARSE"},
	{"vmfs", text("SPARSE", "VMFS"), strict.External, "SPARSE"},
	{"vmfsSparse", text("SPARSE", "VMFSSPARSE"), strict.External, "SPARSE"},
	{"seSparse", text("SPARSE", "SESPARSE"), strict.External, "SPARSE"},
	{"zero extent", text("SPARSE", "ZERO"), strict.Format, "without a file"},
	{"extent elsewhere", text("disk.vmdk", canary), strict.External, "another place"},
	{"extent by protocol", text("disk.vmdk", "json:{}"), strict.External, "another place"},
	{"extent on Windows", text("disk.vmdk", `..\x.vmdk`), strict.External, "another place"},
	{"extent with offset", text(`"disk.vmdk"`, `"disk.vmdk" 0`), strict.Corrupt, "line 8"},
	{"extent without name", text(` "disk.vmdk"`, ""), strict.Corrupt, "line 8"},
	{"extent with open name", text(`"disk.vmdk"`, `"disk.vmdk`), strict.Corrupt, "line 8"},
	{"extent without type", text(`RW 321 SPARSE "disk.vmdk"`, "RW 321"), strict.Corrupt, "line 8"},
	{"extent of no number", text("RW 321", "RW -1"), strict.Corrupt, "line 8"},
	{"extent of no access", text("RW 321", "NOACCESS 321"), strict.Feature, "may not be read"},
	{"no extent", text("RW 321", "# RW 321"), strict.Corrupt, "no extent"},
	{"unknown type", text("monolithicSparse", "monolithicsparse"), strict.Format, "createType"},
	{"no type", text("createType", "#"), strict.Corrupt, "no createType"},
	{"no parent id", text("parentCID=ffffffff\n", ""), strict.Corrupt, "parentCID"},
	{"bad id", text("CID=c913ed87", "CID=c913ed870"), strict.Corrupt, "CID"},
	{"descriptor version", text("version=1", "version=4"), strict.Version, "descriptor's version"},
	{"encrypted", add(`encryptionKeys = "vmware:key/list"`), strict.Feature, "encrypted"},
	{"unknown key", add(`ddb.whatIsThis = "1"`), strict.Feature, "not known"},
	{"key twice", add(`CID=00000000`), strict.Corrupt, "again"},
	{"key twice in another case", add(`PARENTcid=00000000`), strict.Corrupt, "again"},
	{"no key", add("hello there"), strict.Corrupt, "neither"},
	{"umlaut", add("# \xc3\xbc"), strict.Corrupt, "0xc3"},
	{"escape", add("# \x1b[2J"), strict.Corrupt, "0x1b"},
	{"lone carriage return", text("version=1\n", "version=1\rx=1\n"), strict.Corrupt, "0x0d"},
	{"quote inside", add(`ddb.comment = "a"b"`), strict.Corrupt, "quote"},
	{"quote open", add(`ddb.comment = "`), strict.Corrupt, "without an end"},
}

// check holds what is said of a spoiled image against what must be.
func check(t *testing.T, err error, class, says string) {
	t.Helper()
	if !errors.Is(err, errs.Unsafe) || strict.ClassOf(err) != class || !strings.Contains(err.Error(), says) {
		t.Errorf("got %v (%s), want class %s and %q", err, strict.ClassOf(err), class, says)
	}
	if err != nil && (strings.Contains(err.Error(), canary) || strings.ContainsAny(err.Error(), "\x1b\r\n")) {
		t.Errorf("the error carries text of the file's: %q", err)
	}
}

func TestHostileSparse(t *testing.T) {
	for _, c := range hostileSparse {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := open(t, c.spoil(sparse()))
			check(t, err, c.class, c.says)
		})
	}
}

// hostileStream are changes to the sound streamOptimized image.
var hostileStream = []struct {
	name  string
	spoil change
	class string
	says  string
}{
	{"flags without compression", both(8, 3), strict.Corrupt, "contradict"},
	{"no compression", put8(77, 0), strict.Corrupt, "contradict"},
	{"type of a sparse disk", text("streamOptimized", "monolithicSparse"), strict.Corrupt, "createType"},
	{"cut to nothing", cut(0), strict.Empty, "empty"},
	{"cut in the descriptor", cut(5000), strict.Truncated, "the descriptor"},
	{"shorter than its overhead", cut(21 * 512), strict.Truncated, "0x40"},
	{"cut in a grain", cut(streamG0 + 20), strict.Truncated, "footer"},
	{"without end marker", func(b []byte) []byte { return b[:len(b)-512] }, strict.Truncated, "footer"},
	{"without last byte", func(b []byte) []byte { return b[:len(b)-1] }, strict.Truncated, "footer"},
	{"one byte more", func(b []byte) []byte { return append(b, 0) }, strict.Truncated, "bytes were added"},
	{"one sector more", func(b []byte) []byte { return append(b, make([]byte, 512)...) }, strict.Truncated, "bytes were added"},
	{"footer marker", in(func(b []byte, p places) { b[p.foot-512+12] = 2 }), strict.Corrupt, "not the footer's"},
	{"footer marker with size", in(func(b []byte, p places) { b[p.foot-512+8] = 2 }), strict.Corrupt, "not the footer's"},
	{"footer magic", in(func(b []byte, p places) { b[p.foot] = 2 }), strict.Truncated, "footer"},
	{"footer capacity", in(func(b []byte, p places) { b[p.foot+12]++ }), strict.Corrupt, "the same as the header"},
	{"footer flags", in(func(b []byte, p places) { b[p.foot+8] = 7 }), strict.Corrupt, "the same as the header"},
	{"footer version", in(func(b []byte, p places) { b[p.foot+4] = 1 }), strict.Corrupt, "the same as the header"},
	{"footer redundant directory", in(func(b []byte, p places) { b[p.foot+48] = 1 }), strict.Corrupt, "the same as the header"},
	{"footer without directory", in(func(b []byte, p places) { le.PutUint64(b[p.foot+56:], 1<<64-1) }), strict.Corrupt, "does not say where"},
	{"footer with directory 0", in(func(b []byte, p places) { le.PutUint64(b[p.foot+56:], 0) }), strict.Corrupt, "does not say where"},
	{"directory behind the end", in(func(b []byte, p places) { le.PutUint64(b[p.foot+56:], 1<<40) }), strict.Truncated, "the grain directory"},
	{"directory is the table", in(func(b []byte, p places) { le.PutUint64(b[p.foot+56:], uint64(p.gt/512)) }), strict.Corrupt, "no marker before it"},
	{"directory on the footer", in(func(b []byte, p places) { le.PutUint64(b[p.foot+56:], uint64(p.foot/512)); b[p.foot-512+12] = 2 }), strict.Corrupt, "footer"},
	{"end marker", in(func(b []byte, p places) { b[p.foot+512+12] = 1 }), strict.Corrupt, "end of the stream"},
	{"marker of no type", in(func(b []byte, p places) { b[p.gt-512+12] = 5 }), strict.Corrupt, "a grain table"},
	{"directory marker", in(func(b []byte, p places) { b[p.gd-512+12] = 1 }), strict.Corrupt, "the grain directory"},
	{"table marker", in(func(b []byte, p places) { b[p.gt-512+12] = 2 }), strict.Corrupt, "a grain table"},
	{"table elsewhere", in(func(b []byte, p places) { le.PutUint32(b[p.gd:], uint32(p.gt/512)+1) }), strict.Corrupt, "no marker before it"},
	{"table behind the end", in(func(b []byte, p places) { le.PutUint32(b[p.gd:], 1<<31) }), strict.Truncated, "a grain table"},
	{"grains exchanged", in(func(b []byte, p places) {
		le.PutUint32(b[p.gt:], uint32(p.g2/512))
		le.PutUint32(b[p.gt+8:], streamG0/512)
	}), strict.Corrupt, "is that of sector 256, not of sector 0"},
	{"grain twice", in(func(b []byte, p places) { le.PutUint32(b[p.gt+4:], streamG0/512) }), strict.Corrupt, "sector"},
	{"grain behind the end", in(func(b []byte, p places) { le.PutUint32(b[p.gt:], 1<<31) }), strict.Truncated, "marker of a grain"},
	{"lba of another grain", put64(streamG0, 128), strict.Corrupt, "sector 128, not of sector 0"},
	{"lba inside a grain", put64(streamG0, 1), strict.Corrupt, "sector 1"},
	{"lba behind the disk", put64(streamG0, 384), strict.Corrupt, "sector 384"},
	{"lba 2^63", put64(streamG0, 1<<63), strict.Corrupt, "sector"},
	{"no size", put32(streamG0+8, 0), strict.Corrupt, "no compressed bytes"},
	{"huge size", put32(streamG0+8, 1<<31), strict.Limit, "compressed bytes"},
	{"size over two grains", put32(streamG0+8, 2*grain+1), strict.Limit, "compressed bytes"},
	{"size past the end", put32(streamG0+8, 2*grain), strict.Truncated, "a compressed grain"},
	{"size on the next grain", in(func(b []byte, p places) { le.PutUint32(b[streamG0+8:], uint32(p.g2-streamG0)) }), strict.Overlap, "a grain"},
}

func TestHostileStream(t *testing.T) {
	for _, c := range hostileStream {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := open(t, c.spoil(stream(t)))
			check(t, err, c.class, c.says)
		})
	}
}

// deflate returns b compressed.
func deflate(b []byte) []byte {
	var out bytes.Buffer
	z := zlib.NewWriter(&out)
	z.Write(b) // into memory
	z.Close()
	return out.Bytes()
}

// What a grain holds is seen when it is read.
func TestHostileGrains(t *testing.T) {
	whole := guest()[:grain]
	packed := deflate(whole)
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-1] ^= 1
	for _, c := range []struct {
		name string
		z    []byte
	}{
		{"too long", deflate(append(bytes.Clone(whole), 1))},
		{"much too long", deflate(make([]byte, 10<<20))},
		{"too short", deflate(whole[:grain-1])},
		{"as short as the last", deflate(whole[:diskSize-2*grain])},
		{"empty", deflate(nil)},
		{"wrong checksum", flipped},
		{"cut off", packed[:len(packed)-5]},
		{"bare deflate", packed[2:]},
		{"noise", []byte("this is not compressed at all")},
	} {
		t.Run(c.name, func(t *testing.T) {
			img := replaceGrain(stream(t), c.z)
			s, _, err := open(t, img)
			if err != nil {
				t.Fatalf("Open: %v", err)
			}
			for _, n := range []int{grain, 100} {
				if _, err := s.ReadAt(make([]byte, n), 0); strict.ClassOf(err) != strict.Corrupt || !strings.Contains(err.Error(), "0x10000") {
					t.Errorf("reading %d bytes: got %v, want class CORRUPT and its place", n, err)
				}
			}
			if _, err := s.ReadAt(make([]byte, 100), 2*grain); err != nil {
				t.Errorf("reading another grain: %v", err)
			}
		})
	}
}

// replaceGrain gives the sound stream another first grain, and moves the rest.
func replaceGrain(img, z []byte) []byte {
	p := find(img)
	out := bytes.Clone(img[:streamG0+12])
	le.PutUint32(out[streamG0+8:], uint32(len(z)))
	out = append(out, z...)
	out = append(out, make([]byte, -len(out)&511)...)
	by := len(out) - p.g2
	out = append(out, img[p.g2:]...)
	le.PutUint32(out[p.gt+by+8:], uint32((p.g2+by)/512))
	le.PutUint32(out[p.gd+by:], uint32((p.gt+by)/512))
	le.PutUint64(out[p.foot+by+56:], uint64((p.gd+by)/512))
	return out
}

// No image that was cut anywhere is let in.
func TestTruncation(t *testing.T) {
	for name, img := range map[string][]byte{"sparse": sparse(), "stream": stream(t)} {
		for n := 0; n < len(img); n += 1 + n%3*255 {
			_, _, err := open(t, img[:n])
			if !classed(err) {
				t.Errorf("%s of %d bytes: got %v, want a refusal", name, n, err)
			}
		}
	}
}

func TestSoundImages(t *testing.T) {
	packed, want := stream(t), guest()
	for _, c := range []struct {
		name     string
		img      []byte
		features []string
	}{
		{"sparse", sparse(), []string{"monolithicSparse", "version 1", "grains of 65536 bytes", "redundant grain directory"}},
		{"carriage returns", text(sparseText, strings.ReplaceAll(sparseText, "\n", "\r\n"))(sparse()), nil},
		{"leftovers of a longer CID", leftover(sparse()), nil},
		{"renamed", text("disk.vmdk", "My old server (2).vmdk")(sparse()), nil},
		{"read only", text("RW 321", "RDONLY 321")(sparse()), nil},
		{"version 3", put32(4, 3)(sparse()), nil},
		{"zeroed grain", all(put32(4, 2), put32(8, 7), put32(gt+4, 1), put32(rgt+4, 1))(sparse()), nil},
		{"without redundant directory", all(put32(8, 1), put32(rgd, 1<<31))(sparse()), nil},
		{"last grain cut at the disk's end", exchange(sparse()), nil},
		{"extent below the capacity", text("RW 321", "RW 300")(sparse()), nil},
		{"stream", packed, []string{"streamOptimized", "version 3", "grains of 65536 bytes", "zlib grains", "grain directory at the end"}},
		{"stream, old bytes in the end marker", in(func(b []byte, p places) { b[p.foot+512+16] = 1 })(bytes.Clone(packed)), nil},
		{"stream, progress", progress(packed), nil},
		{"stream, short last grain", shortLast(packed), nil},
		{"stream, VirtualBox's keys", add("ddb.uuid.parent=\"00000000-0000-0000-0000-000000000000\"\nddb.comment=\"\"\nddb.geometry.biosHeads=\"255\"")(bytes.Clone(packed)), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, rep, err := open(t, c.img)
			if err != nil {
				t.Fatal(err)
			}
			if rep.VirtualSize != diskSize || c.features != nil && !slices.Equal(rep.Features, c.features) || rep.DataBytes != 2*grain {
				t.Errorf("the report is %+v, want %d bytes, %q", rep, diskSize, c.features)
			}
			got, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("reading: %v, equal: %v", err, bytes.Equal(got, want))
			}
		})
	}
}

// leftover has behind the descriptor what was the end of a longer one.
func leftover(b []byte) []byte {
	copy(b[sector+len(sparseText)+1:], "\"ide\"\n")
	return b
}

// exchange puts grain 0 first and cuts grain 2, now the last, at the disk's end.
func exchange(b []byte) []byte {
	for _, t := range []int{gt, rgt} {
		le.PutUint32(b[t:], sparseG2/sector)
		le.PutUint32(b[t+8:], sparseG0/sector)
	}
	g := guest()
	copy(b[sparseG2:], g[:grain])
	return b[:sparseG0+copy(b[sparseG0:], g[2*grain:])]
}

// progress puts VMware's progress markers before the grain table.
func progress(img []byte) []byte {
	p := find(img)
	b := bytes.Clone(img[:p.gt-512])
	for range 4 {
		b = append(b, layout.Marker{Type: layout.MarkProgress}.Encode()...)
		b[len(b)-512+16] = 128
	}
	b = append(b, img[p.gt-512:]...)
	le.PutUint32(b[p.gd+2048:], uint32(p.gt/512)+4)
	le.PutUint64(b[p.foot+2048+56:], uint64(p.gd/512)+4)
	return b
}

// shortLast gives the sound stream a last grain with only the disk's bytes.
func shortLast(img []byte) []byte {
	p := find(img)
	b := bytes.Clone(img)
	z := deflate(guest()[2*grain:])
	if len(z) > p.gt-512-p.g2-12 {
		panic("no room")
	}
	le.PutUint32(b[p.g2+8:], uint32(len(z)))
	copy(b[p.g2+12:], z)
	return b
}

func TestHeaderNeedsOnlyTheHead(t *testing.T) {
	img := stream(t)
	rep, err := inspect.Header(bytes.NewReader(img[:21*512]), int64(len(img)), strict.Limits{})
	if err != nil || rep.VirtualSize != diskSize {
		t.Errorf("Header = %+v, %v", rep, err)
	}
	if _, err := inspect.Header(bytes.NewReader(img[:21*512]), int64(len(img)), strict.Limits{VirtualSize: diskSize - 1}); strict.ClassOf(err) != strict.Quota {
		t.Errorf("a disk over the limit: got %v, want class QUOTA", err)
	}
}

func TestTextDescriptors(t *testing.T) {
	for _, s := range []string{
		sparseText, "# \xff comment\n\n  \r\nversion=1\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"" + canary + "\" 0\n",
		"version=1\n" + strings.Repeat("#\n", 500), "# disk descriptorfile",
	} {
		_, _, err := open(t, []byte(s))
		check(t, err, strict.Format, "only the descriptor")
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	img := stream(t)
	if _, _, err := inspect.Open(ctx, bytes.NewReader(img), int64(len(img)), strict.Limits{}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("Open: got %v, want %v", err, errs.Cancelled)
	}
}

func TestOffsetsOutsideTheDiskAreInvalid(t *testing.T) {
	s, _, err := open(t, sparse())
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, diskSize, 1 << 62} {
		if _, err := s.Extent(off); !errors.Is(err, errs.Invalid) {
			t.Errorf("Extent(%d): got %v, want %v", off, err, errs.Invalid)
		}
	}
}
