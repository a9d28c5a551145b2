package inflate_test

import (
	"bytes"
	"compress/flate"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	klauspost "github.com/klauspost/compress/flate"

	"github.com/tarn-storage/tarn/diskfmt/inflate"
)

// samples are contents of all sorts, each n bytes.
func samples(n int) map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	noise, few, text, skewed := make([]byte, n), make([]byte, n), make([]byte, 0, n), make([]byte, n)
	for i := range noise {
		noise[i], few[i] = byte(rng.Uint32()), "ab"[rng.IntN(2)]
		for skewed[i] = 0; rng.IntN(2) == 0 && skewed[i] < 250; skewed[i]++ { // codes of every length
		}
	}
	for len(text) < n {
		text = fmt.Appendf(text, "line %d: the quick brown fox %x\n", len(text), rng.IntN(5000))
	}
	period := bytes.Repeat([]byte("abc"), n/3+1)
	return map[string][]byte{
		"zeroes": make([]byte, n), "noise": noise, "two letters": few, "text": text[:n], "skewed": skewed, "period of three": period[:n],
		"mixed": append(append(append([]byte{}, text[:n/3]...), noise[:n/3]...), make([]byte, n-2*(n/3))...),
	}
}

func deflate(t testing.TB, level int, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, level)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDeflate(t *testing.T) {
	for _, size := range []int{0, 1, 2, 257, 258, 259, 300, 4096, 65535, 65536, 200_000} {
		for name, plain := range samples(size) {
			for level := -2; level <= 9; level++ {
				packed := deflate(t, level, plain)
				for _, tail := range []int{0, 1, 600} {
					got := make([]byte, size)
					used, err := inflate.Deflate(got, append(packed[:len(packed):len(packed)], bytes.Repeat([]byte{0xa5}, tail)...))
					if err != nil || used != len(packed) || !bytes.Equal(got, plain) {
						t.Fatalf("%s, %d bytes, level %d, tail %d: %v, used %d of %d", name, size, level, tail, err, used, len(packed))
					}
				}
			}
		}
	}
}

func TestWrongSizes(t *testing.T) {
	for name, plain := range samples(65536) {
		packed := deflate(t, 6, plain)
		for _, size := range []int{0, 1, 65535, 65537, 70000} {
			if _, err := inflate.Deflate(make([]byte, size), packed); !errors.Is(err, inflate.ErrSize) {
				t.Errorf("%s into %d bytes: got %v, want %v", name, size, err, inflate.ErrSize)
			}
		}
		step := max(1, len(packed)/400)
		for cut := 0; cut < len(packed); cut += step {
			if _, err := inflate.Deflate(make([]byte, 65536), packed[:cut]); !errors.Is(err, inflate.ErrShort) {
				t.Fatalf("%s cut to %d of %d bytes: got %v, want %v", name, cut, len(packed), err, inflate.ErrShort)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	for name, packed := range map[string][]byte{
		"block of type 3":             {0x07},
		"stored, lengths that differ": {0x01, 5, 0, 5, 0},
		"distance beyond the start":   {0x63, 0x00, 0x42, 0x00},
		"287 literals":                {0xf5, 0x01},
		"no code at all":              {0x05, 0x00, 0x00, 0x00, 0x00},
		"repeat without a length":     {0x05, 0xc0, 0x81, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0xff, 0x6b, 0x04},
	} {
		if _, err := inflate.Deflate(make([]byte, 100), append(packed, make([]byte, 64)...)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestZlib(t *testing.T) {
	for name, plain := range samples(65536) {
		var b bytes.Buffer
		w := zlib.NewWriter(&b)
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		packed, got := b.Bytes(), make([]byte, len(plain))
		if used, err := inflate.Zlib(got, append(packed[:len(packed):len(packed)], 1, 2, 3)); err != nil || used != len(packed) || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v, used %d of %d", name, err, used, len(packed))
		}
		for at, want := range map[int]error{0: inflate.ErrCorrupt, 1: inflate.ErrCorrupt, len(packed) - 1: inflate.ErrCorrupt} {
			broken := bytes.Clone(packed)
			broken[at] ^= 0x40
			if _, err := inflate.Zlib(got, broken); !errors.Is(err, want) {
				t.Errorf("%s, byte %d changed: got %v, want %v", name, at, err, want)
			}
		}
		for _, cut := range []int{0, 5, len(packed) - 1} {
			if _, err := inflate.Zlib(got, packed[:cut]); !errors.Is(err, inflate.ErrShort) {
				t.Errorf("%s cut to %d bytes: got %v, want %v", name, cut, err, inflate.ErrShort)
			}
		}
	}
}

// FuzzDeflate compares with compress/flate: what it decodes to the expected
// size is decoded to the same, what it refuses is refused.
func FuzzDeflate(f *testing.F) {
	for _, plain := range samples(600) {
		for _, level := range []int{-2, 0, 1, 9} {
			f.Add(deflate(f, level, plain), uint32(600))
		}
	}
	f.Fuzz(func(t *testing.T, packed []byte, size uint32) {
		size %= 1 << 18
		r := bytes.NewReader(packed)
		want, refused := io.ReadAll(io.LimitReader(flate.NewReader(r), int64(size)+1))
		got := make([]byte, size)
		used, err := inflate.Deflate(got, packed)
		switch {
		case err == nil && (refused != nil || !bytes.Equal(got, want)):
			t.Fatalf("accepted what compress/flate refuses or decodes otherwise: %v, %d of %d bytes", refused, len(want), size)
		case err == nil && used != len(packed)-r.Len():
			t.Fatalf("used %d bytes, compress/flate %d", used, len(packed)-r.Len())
		case err != nil && refused == nil && len(want) == int(size):
			t.Fatalf("refused (%v) what compress/flate decodes", err)
		case err != nil && !errors.Is(err, inflate.ErrCorrupt) && !errors.Is(err, inflate.ErrShort) && !errors.Is(err, inflate.ErrSize):
			t.Fatalf("an error of another kind: %v", err)
		}
	})
}

func BenchmarkDeflate(b *testing.B) {
	const cluster = 64 << 10
	for _, name := range []string{"text", "skewed", "mixed"} {
		plain := samples(cluster)[name]
		packed := deflate(b, 6, plain)
		dst := make([]byte, cluster)
		b.Run(name+"/inflate", func(b *testing.B) {
			b.SetBytes(cluster)
			for range b.N {
				if _, err := inflate.Deflate(dst, packed); err != nil {
					b.Fatal(err)
				}
			}
		})
		for peer, make := range map[string]func(io.Reader) io.ReadCloser{"compress-flate": flate.NewReader, "klauspost": klauspost.NewReader} {
			b.Run(name+"/"+peer, func(b *testing.B) {
				b.SetBytes(cluster)
				var in bytes.Reader
				r := make(&in)
				for range b.N {
					in.Reset(packed)
					if err := r.(flate.Resetter).Reset(&in, nil); err != nil {
						b.Fatal(err)
					}
					if _, err := io.ReadFull(r, dst); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
