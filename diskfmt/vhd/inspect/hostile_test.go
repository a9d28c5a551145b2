package inspect_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhd"
	"github.com/tarn-storage/tarn/diskfmt/vhd/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vhd/internal/layout"
)

// The sound dynamic image that the rows start from: the footer's copy 0x0, the
// header 0x200, the table 0x600 of 3 blocks, of which block 0 is at 0x800 (data
// from 0xa00 on) and block 2 at 0x200a00; the footer.
const (
	header   = 0x200
	table    = 0x600
	block0   = 0x800
	block2   = block0 + 512 + 2<<20
	diskSize = 5 << 20
)

var be = binary.BigEndian

// part is a source of a data extent at the beginning and one at the end.
type part struct{ *bytes.Reader }

func (p part) Extent(off int64) (diskfmt.Extent, error) {
	e := diskfmt.Extent{Offset: off, Length: p.Size() - off, Kind: diskfmt.Data}
	if low, high := min(p.Size(), 1024), p.Size()-512; off < low {
		e.Length = low - off
	} else if off < high {
		e.Length, e.Kind = high-off, diskfmt.Zero
	}
	return e, nil
}

func sound(t testing.TB, typ vhd.Type, size int) []byte {
	t.Helper()
	guest := make([]byte, size)
	copy(guest, strings.Repeat("guest", 100))
	copy(guest[size-512:], "the end")
	var out bytes.Buffer
	if err := vhd.Write(t.Context(), &out, part{bytes.NewReader(guest)}, vhd.Options{Type: typ}, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type edit = doortest.Change

func all(edits ...edit) edit { return doortest.All(edits...) }

// both changes the footer, and its copy if there is one, with right checksums.
func both(change func(f *layout.Footer)) edit {
	return func(b []byte) []byte {
		end := len(b) - layout.FooterSize
		f, _ := layout.ParseFooter(b[end:])
		change(&f)
		if f.Type != layout.Fixed {
			copy(b, f.Bytes())
		}
		copy(b[end:], f.Bytes())
		return b
	}
}

func head(change func(h *layout.Header)) edit {
	return func(b []byte) []byte {
		h, _ := layout.ParseHeader(b[header:])
		change(&h)
		copy(b[header:], h.Bytes())
		return b
	}
}

var (
	put32 = doortest.BE32
	put   = doortest.Put
	cut   = doortest.Cut
)

// without removes n bytes at off.
func without(off, n int) edit {
	return func(b []byte) []byte { return append(b[:off:off], b[off+n:]...) }
}

func geometry(app string, size uint64, c uint16, h, s uint8) edit {
	return both(func(f *layout.Footer) {
		copy(f.CreatorApp[:], app)
		f.CurrentSize, f.Cylinders, f.Heads, f.Track = size, c, h, s
	})
}

// xen makes room for a batmap behind the table: its header at 0x800, the bits at
// 0xa00, and moves the blocks.
func xen(change func(hdr, bits []byte)) edit {
	return func(b []byte) []byte {
		ext := make([]byte, 1024)
		copy(ext, "tdbatmap")
		be.PutUint64(ext[8:], 0xa00)
		be.PutUint32(ext[16:], 1)
		be.PutUint32(ext[20:], 0x00010002)
		ext[512] = 0xa0 // blocks 0 and 2
		change(ext, ext[512:])
		b = append(b[:block0:block0], append(ext, b[block0:]...)...)
		b = all(put32(table, block0/512+2), put32(table+8, block2/512+2))(b)
		return both(func(f *layout.Footer) { copy(f.CreatorApp[:], "tap\x00") })(b)
	}
}

var dynamicRows = []struct {
	name string
	edit edit
	want string
}{
	{"sound", all(), ""},
	{"empty", cut(0), strict.Empty},
	{"tiny", cut(511), strict.Mismatch},
	{"not a VHD", all(put(0, "connectix"), func(b []byte) []byte { copy(b[len(b)-512:], "connectix"); return b }), strict.Mismatch},
	{"no footer", func(b []byte) []byte { return b[:len(b)-512] }, strict.Truncated},
	{"a footer cut short", func(b []byte) []byte { return b[:len(b)-2] }, strict.Truncated},
	{"only the head", cut(4096), strict.Truncated},
	{"a footer of 511 bytes", func(b []byte) []byte { return b[:len(b)-1] }, ""},
	{"no copy", put(0, strings.Repeat("\x00", 512)), strict.Mismatch},
	{"another copy", put(500, "x"), strict.Corrupt},
	{"a wrong checksum", func(b []byte) []byte { b[len(b)-500] ^= 1; b[12] ^= 1; return b }, strict.Corrupt},
	{"a footer of version 2", both(func(f *layout.Footer) { f.Version = 0x20000 }), strict.Version},
	{"a difference", both(func(f *layout.Footer) { f.Type = layout.Differencing }), strict.External},
	{"type 5", both(func(f *layout.Footer) { f.Type = 5 }), strict.Format},
	{"an unknown feature", both(func(f *layout.Footer) { f.Features |= 4 }), strict.Feature},
	{"a temporary disk", both(func(f *layout.Footer) { f.Features |= layout.Temporary }), ""},
	{"a saved state", both(func(f *layout.Footer) { f.SavedState = 1 }), strict.Dirty},
	{"no bytes", both(func(f *layout.Footer) { f.CurrentSize = 0 }), strict.Empty},
	{"half a sector", both(func(f *layout.Footer) { f.CurrentSize -= 256 }), strict.Corrupt},
	{"past 2040 GiB", both(func(f *layout.Footer) { f.CurrentSize = layout.MaxSize + 512 }), strict.Limit},
	{"past the table", both(func(f *layout.Footer) { f.CurrentSize = 6<<20 + 512 }), strict.Corrupt},
	{"past the caller's limit", both(func(f *layout.Footer) { f.CurrentSize = 8<<20 + 512 }), strict.Quota},

	{"a header past the end", both(func(f *layout.Footer) { f.DataOffset = 1 << 40 }), strict.Truncated},
	{"a header past everything", both(func(f *layout.Footer) { f.DataOffset = 1<<64 - 512 }), strict.Truncated},
	{"a header within a sector", both(func(f *layout.Footer) { f.DataOffset = 0x201 }), strict.Corrupt},
	{"a header that is data", both(func(f *layout.Footer) { f.DataOffset = 0xa00 }), strict.Corrupt},
	{"a header with a wrong checksum", put(header+0x3ff, "x"), strict.Corrupt},
	{"a header of version 2", head(func(h *layout.Header) { h.Version = 0x20000 }), strict.Version},
	{"a parent's id", head(func(h *layout.Header) { h.ParentID[15] = 1 }), strict.External},
	{"a parent's name", head(func(h *layout.Header) { copy(h.ParentName[:], "\x00/\x00e\x00t\x00c") }), strict.External},
	{"a parent's locator", head(func(h *layout.Header) { h.Locators[7].Platform = 0x57326b75 }), strict.External},
	{"a second header", head(func(h *layout.Header) { h.DataOffset = 0x1000 }), strict.Feature},
	{"blocks of 3 MiB", head(func(h *layout.Header) { h.BlockSize = 3 << 20 }), strict.Corrupt},
	{"blocks of 0", head(func(h *layout.Header) { h.BlockSize = 0 }), strict.Corrupt},
	{"blocks of 256", head(func(h *layout.Header) { h.BlockSize = 256 }), strict.Corrupt},
	{"blocks of 2 KiB", head(func(h *layout.Header) { h.BlockSize = 2048 }), strict.Feature},
	{"blocks of 1 GiB", head(func(h *layout.Header) { h.BlockSize = 1 << 30 }), strict.Limit},
	{"too few blocks", head(func(h *layout.Header) { h.Entries = 2 }), strict.Corrupt},
	{"too many blocks", head(func(h *layout.Header) { h.Entries = 1<<32 - 1 }), strict.Limit},
	{"a table past the end", head(func(h *layout.Header) { h.Entries = 8 << 20 }), strict.Truncated},
	{"a table far away", head(func(h *layout.Header) { h.TableOffset = 1<<64 - 512 }), strict.Truncated},
	{"a table within a sector", head(func(h *layout.Header) { h.TableOffset = table + 4 }), strict.Corrupt},
	{"a table on the header", head(func(h *layout.Header) { h.TableOffset = header }), strict.Overlap},
	{"a table on a block", all(head(func(h *layout.Header) { h.TableOffset = block0 }),
		put32(block0, block0/512), put32(block0+4, layout.Absent), put32(block0+8, layout.Absent)), strict.Overlap},

	{"a block on the copy", put32(table, 0), strict.Overlap},
	{"a block on the header", put32(table, 1), strict.Overlap},
	{"a block on the table", put32(table, table/512), strict.Overlap},
	{"a block twice", put32(table+4, block0/512), strict.Overlap},
	{"a block on half of another", put32(table+4, block0/512+100), strict.Overlap},
	{"a block on the footer", put32(table+8, block2/512+1), strict.Truncated},
	{"a block past the end", put32(table+4, 1<<31), strict.Truncated},
	{"a block past all", put32(table+4, layout.Absent-1), strict.Truncated},
	{"a block cut out", without(block2+4096, 4096), strict.Truncated},

	{"the size by geometry", geometry("vpc ", diskSize, 602, 1, 17), strict.Corrupt}, // data lies behind it
	{"no geometry", geometry("vpc ", diskSize, 0, 0, 0), strict.Corrupt},
	{"a geometry too large", geometry("qemu", diskSize, 603, 1, 17), strict.Corrupt},
	{"a geometry far too small", geometry("qemu", diskSize, 2, 4, 17), strict.Corrupt},
	{"the largest geometry", geometry("vpc ", diskSize, 65535, 16, 255), ""},
	{"the geometry of another program", geometry("vbox", diskSize, 2, 4, 17), ""},

	{"a batmap", xen(func(hdr, bits []byte) {}), ""},
	{"a batmap of version 2", xen(func(hdr, bits []byte) { hdr[21] = 2 }), strict.Version},
	{"an encrypted batmap", xen(func(hdr, bits []byte) { hdr[29] = 1 }), strict.Feature},
	{"a batmap far away", xen(func(hdr, bits []byte) { hdr[8] = 1 }), strict.Truncated},
	{"a batmap within a sector", xen(func(hdr, bits []byte) { hdr[15] = 1 }), strict.Corrupt},
	{"a batmap on a block", xen(func(hdr, bits []byte) { be.PutUint64(hdr[8:], block2) }), strict.Overlap},
	{"a batmap that bitmaps contradict", all(xen(func(hdr, bits []byte) {}), put(block2+1024, "\xfe")), strict.Corrupt},
	{"a batmap that is not set", all(xen(func(hdr, bits []byte) { bits[0] = 0x80 }), put(block2+1024, "\xfe")), ""},
}

func TestHostileDynamic(t *testing.T) {
	fresh := sound(t, vhd.Dynamic, diskSize)
	for _, row := range dynamicRows {
		judge(t, row.name, row.edit(bytes.Clone(fresh)), row.want)
	}
}

// judge opens an image whose disk may have 8 MiB and checks the class.
func judge(t *testing.T, name string, img []byte, want string) {
	t.Helper()
	lim := strict.Limits{VirtualSize: 8 << 20}
	_, rep, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), lim)
	if got := strict.ClassOf(err); got != want || (err == nil) != (want == "") {
		t.Errorf("%s: got %v, want class %q", name, err, want)
	}
	if err == nil && (rep.VirtualSize == 0 || len(rep.Features) == 0) {
		t.Errorf("%s: report %+v", name, rep)
	}
	fast, ferr := inspect.Header(bytes.NewReader(img), int64(len(img)), lim)
	if ferr != nil && strict.ClassOf(ferr) != want || ferr == nil && fast.VirtualSize == 0 {
		t.Errorf("%s: Header says %v, want class %q", name, ferr, want)
	}
}

func TestHostileFixed(t *testing.T) {
	fresh := sound(t, vhd.Fixed, diskSize)
	for _, row := range []struct {
		name string
		edit edit
		want string
	}{
		{"sound", all(), ""},
		{"a footer of 511 bytes", func(b []byte) []byte { return b[:len(b)-1] }, ""},
		{"no footer", func(b []byte) []byte { return b[:len(b)-512] }, strict.Mismatch},
		{"less data", without(4096, 512), strict.Truncated},
		{"more data", func(b []byte) []byte { return append(make([]byte, 512), b...) }, strict.Corrupt},
		{"a footer's copy", func(b []byte) []byte { copy(b, b[len(b)-512:]); return b }, strict.Mismatch},
		{"a footer's first bytes", put(0, "conectix"), strict.Mismatch},
		{"a header", both(func(f *layout.Footer) { f.DataOffset = 512 }), strict.Corrupt},
		{"an old data offset", both(func(f *layout.Footer) { f.DataOffset = 0xffffffff }), ""},
		{"called dynamic", both(func(f *layout.Footer) { f.Type = layout.Dynamic; f.DataOffset = 512 }), strict.Corrupt},
		{"a wrong checksum", func(b []byte) []byte { b[len(b)-500] ^= 1; return b }, strict.Corrupt},
		{"data behind the geometry", geometry("vpc ", diskSize, 602, 1, 17), strict.Corrupt},
		{"zeroes behind the geometry", all(geometry("vpc ", diskSize, 602, 1, 17), put(diskSize-512, "\x00\x00\x00\x00\x00\x00\x00")), ""},
	} {
		judge(t, row.name, row.edit(bytes.Clone(fresh)), row.want)
	}
}

// A download that ended early is refused at every length.
func TestTruncation(t *testing.T) {
	for _, typ := range []vhd.Type{vhd.Dynamic, vhd.Fixed} {
		img := sound(t, typ, 1<<20)
		lengths := []int{len(img) - 2, len(img) - 511, len(img) - 512, len(img) - 513, len(img) - 1024, len(img) / 2}
		for n := 0; n < 8192; n += 128 {
			lengths = append(lengths, n, n+1)
		}
		doortest.Truncations(t, inspect.Open, img, lengths...)
	}
}

func TestMessagesNameStructureAndOffset(t *testing.T) {
	img := put32(table+4, 1<<31)(sound(t, vhd.Dynamic, diskSize))
	_, _, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if want := "block 1 at 0x10000000000"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want it to name %q", err, want)
	}
}

// Sectors that a bitmap says are absent read as zeroes, and are reported so.
func TestBitmapDecides(t *testing.T) {
	img := all(put(block0, "\x40\x00\xff\x00"), put(block0+512, strings.Repeat("x", 2<<20)))(sound(t, vhd.Dynamic, diskSize))
	clear(img[block0+4 : block0+512])
	s, rep, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4<<20)
	copy(want[512:], strings.Repeat("x", 512))
	copy(want[16*512:], strings.Repeat("x", 8*512))
	got := make([]byte, len(want))
	if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the sectors read are not those of the bitmap: %v", err)
	}
	runs := []diskfmt.Mapping{
		{Extent: diskfmt.Extent{Offset: 0, Length: 512, Kind: diskfmt.Zero}},
		{Extent: diskfmt.Extent{Offset: 512, Length: 512, Kind: diskfmt.Data}, HostOffset: block0 + 1024, HostLength: 512},
		{Extent: diskfmt.Extent{Offset: 1024, Length: 14 * 512, Kind: diskfmt.Zero}},
		{Extent: diskfmt.Extent{Offset: 16 * 512, Length: 8 * 512, Kind: diskfmt.Data}, HostOffset: block0 + 17*512, HostLength: 8 * 512},
		{Extent: diskfmt.Extent{Offset: 24 * 512, Length: 4<<20 - 24*512, Kind: diskfmt.Zero}},
	}
	for _, want := range runs {
		if got, err := s.Map(want.Offset); err != nil || got != want {
			t.Errorf("Map(%d) = %+v, %v, want %+v", want.Offset, got, err, want)
		}
	}
	if m, err := s.Map(700); err != nil || m.Length != 324 || m.HostOffset != block0+512+700 {
		t.Errorf("Map(700) = %+v, %v, want 324 bytes", m, err)
	}
	if rep.DataBytes != 3<<20 {
		t.Errorf("%d bytes of data, want the two blocks' 3 MiB", rep.DataBytes)
	}
}

func TestSourceBorders(t *testing.T) {
	img := sound(t, vhd.Dynamic, diskSize)
	s, _, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	doortest.Bounds(t, s)
}

func TestConcurrentReads(t *testing.T) {
	img := all(put(block0, "\x55\x55"))(sound(t, vhd.Dynamic, diskSize))
	s, _, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	doortest.AtOnce(t, s, img)
}

func TestWalkTellsAndEnds(t *testing.T) {
	doortest.Walk(t, inspect.Open, sound(t, vhd.Dynamic, diskSize), 3)
}
