package inspect_test

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhd"
	"github.com/tarn-storage/tarn/diskfmt/vhd/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vhd/internal/layout"
)

// small makes a dynamic image with blocks of 4 KiB.
func small(t testing.TB) []byte {
	b := sound(t, vhd.Dynamic, 8192)[:table]
	head(func(h *layout.Header) { h.BlockSize, h.Entries = 4096, 2 })(b)
	end := bytes.Clone(b[:layout.FooterSize])
	b = append(b, bytes.Repeat([]byte{0xff}, 512)...)
	put32(table+4, block0/512)(b)
	b = append(b, bytes.Repeat([]byte{0x7f}, 512+4096)...)
	return append(b, end...)
}

// FuzzInspect: whatever the bytes, the untrusted door answers without panicking
// or allocating without bound, and every refusal has a class. What it accepts is
// readable from end to end.
func FuzzInspect(f *testing.F) {
	f.Add(small(f), true)
	f.Add(sound(f, vhd.Fixed, 1024), true)
	f.Fuzz(func(t *testing.T, img []byte, mend bool) {
		if mend {
			img = mended(img)
		}
		doortest.Fuzz(t, img, 0, inspect.Open, inspect.Header, int64(len(img)))
	})
}

// mended returns the image with right checksums, so that what lies behind them
// is reached.
func mended(img []byte) []byte {
	if len(img) < layout.FooterSize+layout.HeaderSize {
		return img
	}
	b := bytes.Clone(img)
	f, _ := layout.ParseFooter(b[len(b)-layout.FooterSize:])
	copy(b[len(b)-layout.FooterSize:], f.Bytes())
	if f.Type == layout.Dynamic {
		copy(b, f.Bytes())
		if off := f.DataOffset; off < uint64(len(b)) && uint64(len(b))-off >= layout.HeaderSize {
			h, _ := layout.ParseHeader(b[off:])
			copy(b[off:], h.Bytes())
		}
	}
	return b
}

// The largest table that is let in must not take more memory than promised.
func TestMemoryIsBounded(t *testing.T) {
	const entries = 8 << 20
	b := sound(t, vhd.Dynamic, diskSize)[:table]
	head(func(h *layout.Header) { h.Entries, h.BlockSize = entries, 256<<10 })(b)
	f, _ := layout.ParseFooter(b)
	f.CurrentSize = layout.MaxSize
	copy(b, f.Bytes())
	b = append(b, bytes.Repeat([]byte{0xff}, 4*entries)...)
	b = append(b, f.Bytes()...)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, _, err := inspect.Open(t.Context(), bytes.NewReader(b), int64(len(b)), strict.Limits{})
	runtime.ReadMemStats(&after)
	if err != nil || s.Size() != layout.MaxSize {
		t.Fatalf("Open: %v", err)
	}
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(64<<20); got > most {
		t.Errorf("Open allocated %d bytes, want at most %d", got, most)
	}
}
