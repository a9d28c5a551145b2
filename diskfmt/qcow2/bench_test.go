package qcow2_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
)

// fixed is a container whose writes land in memory that is there already.
type fixed struct{ b []byte }

func (f fixed) WriteAt(p []byte, off int64) (int, error) { return copy(f.b[off:], p), nil }

func benchImage(b *testing.B, size int64) (*memFile, diskfmt.Recorded) {
	b.Helper()
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(data)
	m := &memFile{}
	if err := qcow2.Convert(context.Background(), m, backingReader(b, data), qcow2.CreateOptions{VirtualSize: size}, nil); err != nil {
		b.Fatal(err)
	}
	return m, diskfmttest.Qcow2(size, 65536)
}

func BenchmarkOpen(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
	}{{"10GiB", 10 << 30}, {"64TiB", 64 << 40}} {
		b.Run(c.name, func(b *testing.B) {
			m := &memFile{}
			if err := qcow2.Create(m, qcow2.CreateOptions{VirtualSize: c.size, BackingName: "base.raw", BackingFormat: diskfmt.Raw}); err != nil {
				b.Fatal(err)
			}
			want := diskfmttest.Overlay(c.size, 65536, "base.raw", diskfmt.Raw)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := qcow2.Open(m, int64(len(m.B)), want); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkInspectHeader(b *testing.B) {
	m, _ := benchImage(b, 64<<20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := inspect.Header(m, int64(len(m.B)), inspect.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInspect(b *testing.B) {
	m, _ := benchImage(b, 256<<20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := inspect.Inspect(context.Background(), m, int64(len(m.B)), inspect.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
	}{{"10GiB", 10 << 30}, {"64TiB", 64 << 40}} {
		b.Run(c.name, func(b *testing.B) {
			f := fixed{make([]byte, 2<<20)}
			b.ReportAllocs()
			for b.Loop() {
				if err := qcow2.Create(f, qcow2.CreateOptions{VirtualSize: c.size, BackingName: "base.raw", BackingFormat: diskfmt.Raw}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	const size = 64 << 20
	m, want := benchImage(b, size)
	r, err := qcow2.Open(m, int64(len(m.B)), want)
	if err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name string
		n    int
	}{{"4KiB", 4096}, {"1MiB", 1 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			p := make([]byte, c.n)
			b.SetBytes(int64(c.n))
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := r.ReadAt(p, off); err != nil {
					b.Fatal(err)
				}
				off = (off + 7*int64(c.n)) % (size - int64(c.n))
			}
		})
	}
}

func BenchmarkReadCompressed(b *testing.B) {
	for _, typ := range []string{"zlib", "zstd"} {
		b.Run(typ, func(b *testing.B) {
			file, want := variant{cluster: 65536, size: 16 << 20, convert: "-c -o compression_type=" + typ}.make(b, 1)
			r := open(b, file, want)
			p := make([]byte, 1<<20)
			b.SetBytes(16 << 20)
			b.ReportAllocs()
			for b.Loop() {
				for off := int64(0); off < 16<<20; off += int64(len(p)) {
					if _, err := r.ReadAt(p, off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkConvert(b *testing.B) {
	const size = 64 << 20
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{2})
	rng.Read(data[:size/2])
	src := backingReader(b, data)
	dst := fixed{make([]byte, size+1<<20)}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if err := qcow2.Convert(context.Background(), dst, src, qcow2.CreateOptions{VirtualSize: size}, nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriteInPlace(b *testing.B) {
	m, want := benchImage(b, 64<<20)
	w, err := qcow2.OpenWriter(m, want, nil)
	if err != nil {
		b.Fatal(err)
	}
	p := bytes.Repeat([]byte("w"), 4096)
	b.SetBytes(4096)
	b.ReportAllocs()
	off := int64(0)
	for b.Loop() {
		if _, err := w.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
		off = (off + 28672) % (64<<20 - 4096)
	}
}
