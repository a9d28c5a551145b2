package inflate

import (
	"bytes"
	"hash/adler32"
	"math/rand/v2"
	"testing"
)

func TestAdler32(t *testing.T) {
	noise := make([]byte, 300_000)
	if _, err := rand.NewChaCha8([32]byte{3}).Read(noise); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string][]byte{"noise": noise, "zeroes": make([]byte, len(noise)), "the largest bytes": bytes.Repeat([]byte{0xff}, len(noise))} {
		for _, n := range []int{0, 1, 7, 127, 128, 129, 255, 256, 1000, 65535, 65536, 65537, 65536 + 128, len(p)} {
			if got, want := checksum(p[:n]), adler32.Checksum(p[:n]); got != want {
				t.Errorf("%d bytes of %s: got %08x, want %08x", n, name, got, want)
			}
		}
	}
}

func BenchmarkAdler32(b *testing.B) {
	p := bytes.Repeat([]byte("tarn"), 16<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		checksum(p)
	}
}
