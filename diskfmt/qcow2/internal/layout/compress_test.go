package layout

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

func deflated(t *testing.T, plain []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := flate.NewWriter(&b, 6)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(plain); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestDecompressWantsExactlyOneCluster(t *testing.T) {
	const cluster = 65536
	plain := make([]byte, cluster+1)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range plain {
		plain[i] = byte(rng.IntN(4))
	}
	frame := func(b []byte, o ...zstd.EOption) []byte {
		e, err := zstd.NewWriter(nil, o...)
		if err != nil {
			t.Fatal(err)
		}
		return e.EncodeAll(b, nil)
	}
	tail := bytes.Repeat([]byte{0x28, 0xb5, 0x2f, 0xfd}, 64) // what follows a cluster is anything
	whole, long := frame(plain[:cluster]), frame(plain)
	for _, c := range []struct {
		name string
		typ  uint8
		src  []byte
		ok   bool
	}{
		{"deflate", Zlib, deflated(t, plain[:cluster]), true},
		{"deflate and a tail", Zlib, append(deflated(t, plain[:cluster]), tail...), true},
		{"deflate too short", Zlib, deflated(t, plain[:cluster-1]), false},
		{"deflate too long", Zlib, deflated(t, plain), false},
		{"deflate cut off", Zlib, deflated(t, plain[:cluster])[:1000], false},
		{"deflate of nothing", Zlib, nil, false},
		{"zstd", Zstd, whole, true},
		{"zstd and a tail", Zstd, append(bytes.Clone(whole), tail...), true},
		{"zstd with a checksum", Zstd, append(frame(plain[:cluster], zstd.WithEncoderCRC(true)), tail...), true},
		{"zstd without a checksum", Zstd, append(frame(plain[:cluster], zstd.WithEncoderCRC(false)), tail...), true},
		{"zstd of one segment", Zstd, append(frame(plain[:cluster], zstd.WithSingleSegment(true)), tail...), true},
		{"zstd of equal bytes", Zstd, append(frame(bytes.Repeat([]byte{7}, cluster)), tail...), true},
		{"zstd too short", Zstd, frame(plain[:cluster-1]), false},
		{"zstd too long", Zstd, long, false},
		{"zstd cut off", Zstd, whole[:len(whole)-9], false},
		{"zstd of nothing", Zstd, nil, false},
	} {
		dst := make([]byte, cluster)
		err := Decompress(c.typ, dst, c.src)
		var f *Fault
		if (err == nil) != c.ok || err != nil && !errors.As(err, &f) {
			t.Errorf("%s: got %v, want success: %v", c.name, err, c.ok)
		}
		if want := plain[:cluster]; c.ok && c.name != "zstd of equal bytes" && !bytes.Equal(dst, want) {
			t.Errorf("%s: the bytes differ", c.name)
		}
	}
}

func TestRefcountsOfEveryWidth(t *testing.T) {
	for order := range uint32(7) {
		b, model := make([]byte, 64), make([]uint64, 512>>order)
		rng := rand.New(rand.NewPCG(uint64(order), 2))
		for range 2000 {
			i := rng.Uint64N(uint64(len(model)))
			model[i] = rng.Uint64() & (1<<(1<<order) - 1)
			SetRefcount(b, order, i, model[i])
		}
		for i, want := range model {
			if got := Refcount(b, order, uint64(i)); got != want {
				t.Errorf("width %d: refcount %d is %d, want %d", 1<<order, i, got, want)
			}
		}
	}
}
