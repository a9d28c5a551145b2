package inspect_test

import (
	"runtime"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/internal/layout"
)

// The fuzz target gets the structures of an image packed together, each with the
// length that matters, and spreads them over a file.
var parts = []struct{ at, n int64 }{
	{0, 16}, {layout.Header1, 80}, {layout.Header2, 80}, {layout.Region1, 112}, {metadata, 256}, {items, 40}, {table, 256}, {data, 64},
}

// packed takes an image apart.
func packed(img []byte) (p []byte) {
	for _, x := range parts {
		p = append(p, img[x.at:x.at+x.n]...)
	}
	return p
}

// spread makes the pieces of an image of packed structures, with right checksums
// if mend is set.
func spread(p []byte, mend bool) map[int64][]byte {
	out := map[int64][]byte{}
	for _, x := range parts {
		n := min(x.n, int64(len(p)))
		out[x.at] = p[:n]
		p = p[n:]
	}
	for at, n := range map[int64]int{layout.Header1: layout.HeaderSize, layout.Header2: layout.HeaderSize, layout.Region1: layout.TableSize} {
		b := make([]byte, n)
		copy(b, out[at])
		if mend {
			layout.SetSum(b)
		}
		out[at] = b
	}
	out[layout.Region2] = out[layout.Region1]
	return out
}

// FuzzInspect: whatever the bytes, the untrusted door answers without panicking
// or allocating without bound, and every refusal has a class. What it accepts is
// readable from end to end.
func FuzzInspect(f *testing.F) {
	f.Add(packed(sound(f)), uint8(12), true)
	f.Fuzz(func(t *testing.T, p []byte, size uint8, mend bool) {
		whole := int64(size%20) * miB
		flat := make([]byte, min(whole, data+64))
		for at, b := range spread(p, mend) {
			copy(flat[min(at, int64(len(flat))):], b)
		}
		doortest.Fuzz(t, flat, uint32(whole-int64(len(flat))), inspect.Open, inspect.Header, whole)
	})
}

// A table of 128 MiB must not take more memory than promised.
func TestMemoryIsBounded(t *testing.T) {
	img := sound(t)[:data]
	const blocks = 16 << 20
	n := int64(layout.Entries(blocks, layout.Chunk(miB, 512))*8+miB-1) / miB * miB
	all(le32(items, miB), le64(items+8, blocks*miB), regions(region(1, layout.Region{ID: layout.RegionBAT, Offset: 4 * miB, Length: uint32(n)})))(img)
	f := doortest.Sparse{Size: 4*miB + n, Pieces: map[int64][]byte{0: img}}
	var before, opened, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, _, err := inspect.Open(t.Context(), f, f.Size, strict.Limits{})
	if err != nil || s.Size() != blocks*miB {
		t.Fatalf("Open: %v", err)
	}
	runtime.ReadMemStats(&opened)
	for off := int64(0); off < s.Size(); off += s.Size() / 1000 {
		if _, err := s.ReadAt(make([]byte, 1), off); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(s)
	const most = 64 << 20
	if got := opened.TotalAlloc - before.TotalAlloc; got > most {
		t.Errorf("Open allocated %d bytes, want at most %d", got, most)
	}
	if got := int64(after.HeapAlloc) - int64(before.HeapAlloc); got > most {
		t.Errorf("a Source that was read all over keeps %d bytes, want at most %d", got, most)
	}
}
