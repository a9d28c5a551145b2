package inspect_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/blocks/blockstest"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhdx"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/internal/layout"
)

const miB = 1 << 20

// The sound image that the rows start from: the log at 1 MiB, the metadata at 2
// MiB with 5 items, the block allocation table of two blocks of 8 MiB at 3 MiB,
// of which the first lies at 4 MiB.
const (
	metadata = 2 * miB
	items    = metadata + 64<<10
	table    = 3 * miB
	data     = 4 * miB
	fullAt   = data | layout.FullyPresent
)

func sound(t testing.TB) []byte {
	t.Helper()
	src := blockstest.Disk{Bytes: 12 * miB, Pieces: []diskfmt.Extent{{Offset: 4096, Length: 8192}}}
	var out bytes.Buffer
	o := vhdx.Options{ID: [16]byte{1}, FileWrite: [16]byte{2}, DataWrite: [16]byte{3}}
	if err := vhdx.Write(t.Context(), &out, src, o, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

type edit = doortest.Change

var (
	all  = doortest.All
	put  = doortest.Put
	le32 = doortest.LE32
	le64 = doortest.LE64
	cut  = doortest.Cut
)

// header changes a header and gives it its checksum.
func header(at int, change func(h *layout.Header)) edit {
	return func(b []byte) []byte {
		var h layout.Header
		layout.Decode(b[at:], &h)
		change(&h)
		copy(b[at:], layout.Append(nil, h))
		layout.SetSum(b[at : at+layout.HeaderSize])
		return b
	}
}

// current changes the current header.
func current(change func(h *layout.Header)) edit { return header(layout.Header2, change) }

// regions changes both region tables, and gives them their checksums.
func regions(changes ...edit) edit {
	return func(b []byte) []byte {
		t := all(changes...)(b[layout.Region1 : layout.Region1+layout.TableSize])
		layout.SetSum(t)
		copy(b[layout.Region2:], t)
		return b
	}
}

// region returns a new region as an entry of the region tables.
func region(i int, e layout.Region) edit {
	return put(16+i*layout.EntrySize, string(layout.Append(nil, e)))
}

// item changes an entry of the metadata table.
func item(i int, change func(e *layout.Item)) edit {
	return func(b []byte) []byte {
		at := metadata + (i+1)*layout.EntrySize
		var e layout.Item
		layout.Decode(b[at:], &e)
		change(&e)
		copy(b[at:], layout.Append(nil, e))
		if n := binary.LittleEndian.Uint16(b[metadata+10:]); int(n) <= i {
			binary.LittleEndian.PutUint16(b[metadata+10:], uint16(i+1))
		}
		return b
	}
}

// grown makes the disk larger than one chunk of blocks: the sector bitmap's
// entry is the 8193rd of blocks of 1 MiB.
var grown = all(le32(items, miB), le64(items+8, 9000*miB), le64(table, fullAt))

var rows = []struct {
	name string
	edit edit
	want string
}{
	{"sound", all(), ""},
	{"empty", cut(0), strict.Empty},
	{"a byte", cut(1), strict.Mismatch},
	{"another signature", put(0, "vhdxfilm"), strict.Mismatch},
	{"the signature alone", cut(8), strict.Truncated},
	{"no log", cut(miB), strict.Truncated},
	{"no block", cut(data), strict.Truncated},
	{"no end of the block", cut(data + 8*miB - 1), strict.Truncated},

	{"header 1 without signature", put(layout.Header1, "haed"), strict.Corrupt},
	{"header 2 without signature", put(layout.Header2, "haed"), strict.Corrupt},
	{"header 1 with a wrong checksum", put(layout.Header1+4095, "x"), strict.Corrupt},
	{"header 2 with a wrong checksum", put(layout.Header2+4095, "x"), strict.Corrupt},
	{"version 2", current(func(h *layout.Header) { h.Version = 2 }), strict.Version},
	{"the same sequence", current(func(h *layout.Header) { h.Sequence = 1; h.DataWrite[0] = 9 }), strict.Corrupt},
	{"the same header", current(func(h *layout.Header) { h.Sequence = 1 }), ""},
	{"a log", current(func(h *layout.Header) { h.Log[15] = 1 }), strict.Dirty},
	{"a log of the old header", header(layout.Header1, func(h *layout.Header) { h.Log[15] = 1 }), ""},
	{"a log of the other header", header(layout.Header1, func(h *layout.Header) { h.Log[15] = 1; h.Sequence = 3 }), strict.Dirty},
	{"log version 1", current(func(h *layout.Header) { h.LogVersion = 1 }), strict.Version},
	{"a log past the end", current(func(h *layout.Header) { h.LogOffset = 1 << 40 }), strict.Truncated},
	{"a log past everything", current(func(h *layout.Header) { h.LogOffset = 1<<64 - miB; h.LogLength = 2 * miB }), strict.Truncated},
	{"a log between", current(func(h *layout.Header) { h.LogOffset += 4096 }), strict.Corrupt},
	{"a log on the headers", current(func(h *layout.Header) { h.LogOffset = 0 }), strict.Overlap},
	{"a log on the metadata", current(func(h *layout.Header) { h.LogOffset = metadata }), strict.Overlap},

	{"no region table", put(layout.Region1, "igre"), strict.Corrupt},
	{"a region table with a wrong checksum", all(put(layout.Region1+99, "x"), put(layout.Region2+99, "x")), strict.Corrupt},
	{"another second region table", put(layout.Region2+65535, "x"), strict.Corrupt},
	{"too many regions", regions(le32(8, 2048)), strict.Limit},
	{"no table", regions(le32(8, 1)), strict.Corrupt},
	{"a region twice", regions(le32(8, 3), region(2, layout.Region{ID: layout.RegionBAT, Offset: data, Length: miB})), strict.Corrupt},
	{"an unknown region", regions(le32(8, 3), region(2, layout.Region{ID: layout.GUID{1}, Offset: metadata - miB, Length: miB})), strict.Overlap},
	{"a required region", regions(le32(8, 3), region(2, layout.Region{ID: layout.GUID{1}, Offset: data, Length: miB, Required: 1})), strict.Feature},
	{"a region on a block", regions(le32(8, 3), region(2, layout.Region{ID: layout.GUID{1}, Offset: data, Length: miB})), strict.Overlap},
	{"a region on the headers", regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: 0, Length: miB})), strict.Corrupt},
	{"a region of half a MiB", regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: table, Length: miB / 2})), strict.Corrupt},
	{"a region of no bytes", regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: table})), strict.Corrupt},
	{"a region past the end", regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: 1<<64 - miB, Length: miB * 2})), strict.Truncated},
	{"a region with unknown flags", regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: table, Length: miB, Required: 3})), strict.Feature},
	{"both regions in one place", regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: metadata, Length: miB})), strict.Overlap},

	{"no metadata", put(metadata, "atadatem"), strict.Corrupt},
	{"too many items", put(metadata+10, "\x00\x08"), strict.Limit},
	{"no physical sectors", put(metadata+10, "\x04\x00"), strict.Corrupt},
	{"an item twice", item(5, func(e *layout.Item) { *e = layout.Item{ID: layout.ItemSize, Offset: 0x20000, Length: 8, Flags: 6} }), strict.Corrupt},
	{"an item on another", item(4, func(e *layout.Item) { e.Offset = 0x10000 + 33 }), strict.Overlap},
	{"an item on the table", item(4, func(e *layout.Item) { e.Offset = 0xfffc }), strict.Overlap},
	{"an item behind the metadata", item(4, func(e *layout.Item) { e.Offset = miB - 3 }), strict.Corrupt},
	{"an item far behind", item(4, func(e *layout.Item) { e.Offset = 1<<32 - 1 }), strict.Corrupt},
	{"an item of the wrong length", item(4, func(e *layout.Item) { e.Length = 8 }), strict.Corrupt},
	{"an item of a user's", item(4, func(e *layout.Item) { e.Flags |= layout.ItemUser }), strict.Corrupt},
	{"an item with unknown flags", item(4, func(e *layout.Item) { e.Flags |= 8 }), strict.Feature},
	{"a required unknown item", item(5, func(e *layout.Item) { *e = layout.Item{ID: layout.GUID{1}, Flags: layout.ItemRequired} }), strict.Feature},
	{"an unknown item", item(5, func(e *layout.Item) {
		*e = layout.Item{ID: layout.GUID{1}, Offset: 0x20000, Length: 99, Flags: layout.ItemUser}
	}), ""},
	{"a huge item", item(5, func(e *layout.Item) { *e = layout.Item{ID: layout.GUID{1}, Offset: 0x20000, Length: miB + 1} }), strict.Limit},
	{"a parent's locator", item(5, func(e *layout.Item) {
		*e = layout.Item{ID: layout.ItemParent, Offset: 0x20000, Length: 99, Flags: layout.ItemRequired}
	}), strict.External},

	{"a parent", le32(items+4, 2), strict.External},
	{"unknown parameters", le32(items+4, 4), strict.Feature},
	{"blocks that stay", le32(items+4, 1), ""},
	{"blocks of 512 KiB", le32(items, miB/2), strict.Corrupt},
	{"blocks of 3 MiB", le32(items, 3*miB), strict.Corrupt},
	{"blocks of 512 MiB", le32(items, 512*miB), strict.Corrupt},
	{"blocks of 0", le32(items, 0), strict.Corrupt},
	{"physical sectors of 1024", le32(items+36, 1024), strict.Corrupt},
	{"logical sectors of 1024", le32(items+32, 1024), strict.Corrupt},
	{"logical sectors of 4096", le32(items+32, 4096), ""},
	{"no bytes", le64(items+8, 0), strict.Empty},
	{"half a sector", le64(items+8, 12*miB-256), strict.Corrupt},
	{"past 64 TiB", le64(items+8, 64<<40+512), strict.Limit},
	{"past everything", le64(items+8, 1<<64-512), strict.Limit},
	{"past the caller's limit", le64(items+8, 1<<40), strict.Quota},
	{"past the table", all(le32(items, miB), le64(items+8, 512<<30)), strict.Corrupt},

	{"a block on the headers", le64(table, layout.FullyPresent), strict.Overlap},
	{"a block on the log", le64(table, miB|layout.FullyPresent), strict.Overlap},
	{"a block on the table", le64(table, table|layout.FullyPresent), strict.Overlap},
	{"a block twice", le64(table+8, fullAt), strict.Overlap},
	{"a block on half of another", le64(table+8, fullAt+2*miB), strict.Overlap},
	{"a block past the end", le64(table+8, 1<<40|layout.FullyPresent), strict.Truncated},
	{"a block past everything", le64(table+8, 1<<64-miB+layout.FullyPresent), strict.Truncated},
	{"reserved bits", le64(table, fullAt|8), strict.Corrupt},
	{"a block elsewhere", le64(table, data|layout.PartiallyPresent), strict.Corrupt},
	{"state 4", le64(table, data|4), strict.Corrupt},
	{"state 5", le64(table, data|5), strict.Corrupt},
	{"undefined", le64(table, layout.Undefined), ""},
	{"unmapped", le64(table, data|layout.Unmapped), ""},
	{"not present", le64(table, 0), ""},

	{"a large disk", grown, ""},
	{"a sector bitmap", all(grown, le64(table+4096*8, (data+miB)|layout.FullyPresent)), ""},
	{"a sector bitmap on a block", all(grown, le64(table+4096*8, fullAt)), strict.Overlap},
	{"a sector bitmap past the end", all(grown, le64(table+4096*8, 1<<40|layout.FullyPresent)), strict.Truncated},
	{"a sector bitmap that is zero", all(grown, le64(table+4096*8, layout.Zero)), strict.Corrupt},
	{"a sector bitmap with reserved bits", all(grown, le64(table+4096*8, 8)), strict.Corrupt},
}

func TestHostile(t *testing.T) {
	fresh, img := sound(t), make([]byte, 0)
	for _, row := range rows {
		img = row.edit(append(img[:0], fresh...))
		lim := strict.Limits{VirtualSize: 1<<40 - 512}
		_, rep, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), lim)
		if got := strict.ClassOf(err); got != row.want || (err == nil) != (row.want == "") {
			t.Errorf("%s: got %v, want class %q", row.name, err, row.want)
		}
		if err == nil && (rep.VirtualSize == 0 || len(rep.Features) == 0) {
			t.Errorf("%s: report %+v", row.name, rep)
		}
		if _, fast := inspect.Header(bytes.NewReader(img), int64(len(img)), lim); fast != nil && strict.ClassOf(fast) != row.want {
			t.Errorf("%s: Header says %v, want class %q", row.name, fast, row.want)
		}
	}
}

func TestTruncation(t *testing.T) {
	img := sound(t)
	var lengths []int
	for _, at := range []int{0, 8, 64 << 10, 128 << 10, 192 << 10, 256 << 10, 320 << 10, miB, metadata, items, table, table + 16, data, len(img) - 8*miB, len(img)} {
		for _, n := range []int{at - 4096, at - 1, at, at + 1} {
			if n >= 0 && n < len(img) {
				lengths = append(lengths, n)
			}
		}
	}
	doortest.Truncations(t, inspect.Open, img, lengths...)
}

// States without data read as zeroes; sector bitmaps do not shift the blocks
// behind them.
func TestStates(t *testing.T) {
	img := all(grown, put(data, "first"), le64(table+8, data|layout.Unmapped), le64(table+16, layout.Undefined),
		le64(table+4097*8, (data+2*miB)|layout.FullyPresent), put(data+2*miB, "behind"),
		le64(table+4098*8, (data+3*miB)|layout.FullyPresent), put(data+3*miB, "next"))(sound(t))
	s, rep, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		off  int64
		want string
	}{{0, "first"}, {miB, "\x00\x00"}, {2 * miB, "\x00\x00"}, {4096 * miB, "behind"}, {4097 * miB, "next"}} {
		b := make([]byte, len(row.want))
		if _, err := s.ReadAt(b, row.off); err != nil || string(b) != row.want {
			t.Errorf("ReadAt(%d) = %q, %v, want %q", row.off, b, err, row.want)
		}
	}
	want := diskfmt.Mapping{Extent: diskfmt.Extent{Offset: 4096 * miB, Length: 2 * miB, Kind: diskfmt.Data}, HostOffset: data + 2*miB, HostLength: 2 * miB}
	if m, err := s.Map(4096 * miB); err != nil || m != want {
		t.Errorf("Map = %+v, %v, want %+v", m, err, want)
	}
	if m, err := s.Map(miB); err != nil || m.Kind != diskfmt.Zero || m.Length != 4095*miB {
		t.Errorf("Map(1 MiB) = %+v, %v, want zeroes up to 4 GiB", m, err)
	}
	if rep.DataBytes != 3*miB {
		t.Errorf("%d bytes of data, want 3 MiB", rep.DataBytes)
	}
	doortest.Bounds(t, s)
}

func TestMessagesNameStructureAndOffset(t *testing.T) {
	img := le64(table+8, 1<<40|layout.FullyPresent)(sound(t))
	_, _, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if want := "block 1 at 0x10000000000"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want it to name %q", err, want)
	}
}

func TestConcurrentReads(t *testing.T) {
	img := sound(t)
	s, _, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	doortest.AtOnce(t, s, img)
}

func TestWalkTellsAndEnds(t *testing.T) { doortest.Walk(t, inspect.Open, sound(t), 2) }
