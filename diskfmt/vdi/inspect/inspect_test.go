package inspect_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vdi/inspect"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*inspect.Source)(nil)

const mib = 1 << 20

// The sound image has four blocks, of which 2 and 0 are stored, in that order,
// and one is marked as zero. It was not made by this project's writer.
const (
	mapAt    = 0x200
	dataAt   = 0x400
	diskSize = 4*mib - 1536
)

func sound() []byte {
	b := make([]byte, dataAt+2*mib)
	copy(b, "<<< Oracle VM VirtualBox Disk Image >>>\n")
	put := func(off int, vs ...uint32) {
		for i, v := range vs {
			binary.LittleEndian.PutUint32(b[off+4*i:], v)
		}
	}
	put(0x40, 0xbeda107f, 0x10001, 0x190, 1, 0)
	put(0x154, mapAt, dataAt)
	put(0x168, 512, 0)
	put(0x170, diskSize, 0, mib, 0, 4, 2)
	copy(b[0x188:], "image's own uuidlast change uuid")
	put(mapAt, 1, 0xfffffffe, 0, 0xffffffff)
	copy(b[dataAt:], bytes.Repeat([]byte("block two "), mib/10))
	copy(b[dataAt+mib:], bytes.Repeat([]byte("block nought "), mib/13))
	return b
}

func open(ctx context.Context, img []byte, lim strict.Limits) (*inspect.Source, strict.Report, error) {
	return inspect.Open(ctx, bytes.NewReader(img), int64(len(img)), lim)
}

func TestSoundImage(t *testing.T) {
	img := sound()
	m, rep, err := open(t.Context(), img, strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if rep.VirtualSize != diskSize || rep.DataBytes != 2*mib || len(rep.Features) != 1 || rep.Features[0] != "dynamic" {
		t.Errorf("Open reports %+v", rep)
	}
	if fast, err := inspect.Header(bytes.NewReader(img[:inspect.HeaderSize]), int64(len(img)), strict.Limits{}); err != nil || fast.VirtualSize != diskSize {
		t.Errorf("Header = %+v, %v", fast, err)
	}
	want := make([]byte, diskSize)
	copy(want[:mib], img[dataAt+mib:])
	copy(want[2*mib:3*mib], img[dataAt:])
	if !bytes.Equal(doortest.Contents(t, m, img), want) {
		t.Error("the disk reads differently")
	}
	if e, err := m.Extent(mib + 5); err != nil || e != (diskfmt.Extent{Offset: mib + 5, Length: mib - 5, Kind: diskfmt.Zero}) {
		t.Errorf("Extent in the block marked as zero = %+v, %v", e, err)
	}
	doortest.Bounds(t, m)
}

func TestOddSizeIsRoundedUp(t *testing.T) {
	img := doortest.LE64(0x170, diskSize-100)(sound())
	m, rep, err := open(t.Context(), img, strict.Limits{})
	if err != nil || rep.VirtualSize != diskSize || m.Size() != diskSize {
		t.Errorf("a disk of %d bytes: %+v, %v; want %d", diskSize-100, rep, err, diskSize)
	}
}

func TestHostile(t *testing.T) {
	le, le64, all := doortest.LE32, doortest.LE64, doortest.All
	doortest.Refuses(t, inspect.Open, sound, []doortest.Row{
		{"empty", doortest.Cut(0), strict.Empty, "empty"},
		{"one byte", doortest.Cut(1), strict.Mismatch, "signature"},
		{"another signature", le(0x40, 0xbeda1080), strict.Mismatch, "8010dabe"},
		{"escapes for a signature", doortest.Put(0x40, "\x1b[2J"), strict.Mismatch, "1b5b324a"},
		{"version 0.1", le(0x44, 1), strict.Version, "0.1"},
		{"version 1.2", le(0x44, 0x10002), strict.Version, "1.2"},
		{"undo image", le(0x4c, 3), strict.External, "type 3"},
		{"differencing image", le(0x4c, 4), strict.External, "type 4"},
		{"type 0", le(0x4c, 0), strict.Feature, "type 0"},
		{"type 5", le(0x4c, 5), strict.Feature, "type 5"},
		{"link", le(0x1a8, 1), strict.External, "0x1a8"},
		{"parent", doortest.Put(0x1c7, "\x01"), strict.External, "0x1b8"},
		{"flags", le(0x50, 2), strict.Feature, "flags 0x2"},
		{"sectors of 4096", le(0x168, 4096), strict.Feature, "4096"},
		{"blocks of 2 MiB", le(0x178, 2*mib), strict.Feature, "2097152"},
		{"blocks of nothing", le(0x178, 0), strict.Feature, "blocks of 0"},
		{"bytes before blocks", le(0x17c, 512), strict.Feature, "512 bytes before each block"},
		{"no disk", le64(0x170, 0), strict.Empty, "virtual size"},
		{"65 TiB", le64(0x170, 65<<40), strict.Quota, "virtual size"},
		{"2^64-1 bytes", le64(0x170, 1<<64-1), strict.Quota, "virtual size"},
		{"short header", le(0x48, 0x17c), strict.Corrupt, "0x48"},
		{"long header", le(0x48, 1<<31), strict.Corrupt, "0x48"},
		{"fewer blocks than the disk", le(0x180, 3), strict.Corrupt, "0x180"},
		{"more blocks than the disk", le(0x180, 5), strict.Corrupt, "0x180"},
		{"more allocated than there are", le(0x184, 5), strict.Corrupt, "0x184"},
		{"static with holes", le(0x4c, 2), strict.Corrupt, "static"},
		{"map misaligned", le(0x154, 0x201), strict.Corrupt, "0x201"},
		{"data misaligned", le(0x158, 0x401), strict.Corrupt, "0x401"},
		{"map on the header", le(0x154, 0), strict.Overlap, "header"},
		{"data on the map", le(0x158, 0x200), strict.Overlap, "block map"},
		{"data on the header", all(le(0x154, 0x400), le(0x158, 0)), strict.Overlap, "header"},
		{"map past the end", all(le(0x154, 1<<31), le(0x158, 1<<31+512)), strict.Truncated, "block map"},
		{"data past the end", le(0x158, 1<<31), strict.Truncated, "the data"},
		{"cut by a byte", doortest.Cut(dataAt + 2*mib - 1), strict.Truncated, "the data"},
		{"block not allocated", le(mapAt, 2), strict.Corrupt, "entry 0 of the block map, at 0x200: it names block 2 of 2"},
		{"block far away", le(mapAt, 0xfffffffd), strict.Corrupt, "entry 0"},
		{"block named twice", le(mapAt+12, 0), strict.Overlap, "entry 3 of the block map, at 0x20c: the block at 0x400"},
		{"block lost", le(mapAt+8, 0xffffffff), strict.Corrupt, "has 1"},
	})
	lengths := []int{0, 1, 0x40, 0x43, 0x44, 0x1ff, 0x200, 0x20f, 0x210, 0x3ff, 0x400, dataAt + 1, dataAt + mib, dataAt + 2*mib - 1}
	doortest.Truncations(t, inspect.Open, sound(), lengths...)
}

func TestLimits(t *testing.T) {
	img := sound()
	if _, _, err := open(t.Context(), img, strict.Limits{VirtualSize: diskSize - 1}); strict.ClassOf(err) != strict.Quota {
		t.Errorf("a disk larger than allowed: got %v, want QUOTA", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := open(ctx, img, strict.Limits{}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
	var done, total int64
	if _, _, err := open(t.Context(), img, strict.Limits{Progress: func(d, n int64) { done, total = d, n }}); err != nil || done != 4 || total != 4 {
		t.Errorf("progress ended at %d of %d (%v), want 4 of 4", done, total, err)
	}
}

// A file that shrinks or changes after it was accepted must not give zeroes.
func TestChangedFile(t *testing.T) {
	img := sound()
	m, _, err := open(t.Context(), img, strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(img[mapAt:], 7)
	if _, err := m.ReadAt(make([]byte, 512), 0); strict.ClassOf(err) != strict.Corrupt {
		t.Errorf("a map that changed: got %v, want CORRUPT", err)
	}
}

func TestReadersAtOnce(t *testing.T) {
	img := sound()
	s, _, err := open(t.Context(), img, strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := doortest.Contents(t, s, img)
	s, _, err = open(t.Context(), img, strict.Limits{}) // with an empty cache
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			p := make([]byte, mib+512)
			for off := int64(i) * 4096; off < s.Size(); off += mib / 2 {
				if n, err := s.ReadAt(p, off); err != nil && err != io.EOF || !bytes.Equal(p[:n], want[off:off+int64(n)]) {
					t.Errorf("ReadAt(%d) = %d, %v, or other bytes", off, n, err)
				}
			}
		})
	}
	all.Wait()
}

// The largest disk there is by default, with a map of 256 MiB that names
// nothing, takes little memory and is read whole.
func TestMemoryIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long, and measures memory; -short is for the race detector, which makes it larger")
	}
	const blocks = 64 << 20
	head := sound()[:mapAt]
	for _, c := range []doortest.Change{
		doortest.LE64(0x170, blocks*mib), doortest.LE32(0x180, blocks), doortest.LE32(0x184, 1), doortest.LE32(0x158, mapAt+4*blocks),
	} {
		head = c(head)
	}
	f := ones{doortest.Sparse{Size: mapAt + 4*blocks + mib, Pieces: map[int64][]byte{0: head, mapAt: {0, 0, 0, 0}}}, mapAt + 4}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m, rep, err := inspect.Open(t.Context(), f, f.Size, strict.Limits{})
	if err != nil || rep.VirtualSize != 64<<40 || rep.DataBytes != mib {
		t.Fatalf("Open = %+v, %v", rep, err)
	}
	for off := int64(0); off < m.Size(); {
		e, err := m.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		off = e.End()
	}
	runtime.ReadMemStats(&after)
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(300<<20); got > most {
		t.Errorf("allocated %d bytes in all, want at most %d", got, most)
	}
	if got, most := after.HeapAlloc, before.HeapAlloc+64<<20; got > most {
		t.Errorf("%d bytes are in use, want at most %d", got, most)
	}
}

// ones reads 0xff from from on, as far as its pieces do not say otherwise.
type ones struct {
	doortest.Sparse
	from int64
}

func (o ones) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.Sparse.ReadAt(p, off)
	for i := max(0, o.from-off); i < int64(n); i++ {
		p[i] = 0xff
	}
	return n, err
}

func FuzzInspect(f *testing.F) {
	f.Fuzz(func(t *testing.T, img []byte, zeroes uint32) {
		doortest.Fuzz(t, img, zeroes, inspect.Open, inspect.Header, inspect.HeaderSize)
	})
}
