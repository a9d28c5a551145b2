package vmdk_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
)

func BenchmarkOpen(b *testing.B) {
	img := export(b, source{content(64 << 20)}, vmdk.Options{Threads: 2})
	for b.Loop() {
		if _, _, err := inspect.Open(b.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRead reads mapping by mapping on one core, as each core of an import
// does.
func BenchmarkRead(b *testing.B) {
	s, rep := open(b, export(b, source{content(64 << 20)}, vmdk.Options{Threads: 2}))
	p := make([]byte, 1<<20)
	b.SetBytes(rep.DataBytes)
	for b.Loop() {
		for off := int64(0); off < s.Size(); {
			m, err := s.Map(off)
			if err == nil && m.Kind == diskfmt.Data {
				_, err = s.ReadAt(p[:m.Length], off)
			}
			if err != nil {
				b.Fatal(err)
			}
			off = m.End()
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	src := source{content(64 << 20)}
	for _, n := range []int{1, 2} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(src.Size())
			for b.Loop() {
				if err := vmdk.Write(b.Context(), io.Discard, blind{src}, vmdk.Options{Threads: n}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
