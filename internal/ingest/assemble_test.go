package ingest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/tarn-storage/tarn/errs"
)

// intakeOf imports in this process what arrives as a file or as a stream.
func intakeOf(t *testing.T, b []byte, stream bool) (Result, []byte, error) {
	t.Helper()
	im := &intake{judge: judge{Format: "qcow2", Size: int64(len(b)), MaxVirtual: 64 * mib, MaxData: 64 * mib, Threads: 2, Stream: stream}}
	if stream {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		go func() {
			defer w.Close()
			_, _ = w.Write(b) // a refused stream is not read to its end
		}()
		im.src = descriptor(r.Fd())
	} else {
		f := writeFile(t, b)
		defer f.Close()
		im.src = descriptor(f.Fd())
	}
	h, err := im.open(context.Background())
	if err != nil {
		return Result{}, nil, err
	}
	dst := output(t, h.VirtualSize)
	defer dst.Close()
	passed := []descriptor{descriptor(dst.Fd())}
	if stream {
		spool := output(t, 0)
		defer spool.Close()
		passed = append(passed, descriptor(spool.Fd()))
	}
	if err := im.assign(convert{Spool: stream}, passed); err != nil {
		t.Fatal(err)
	}
	r, err := im.convert(t.Context())
	return r, contents(t, dst), err
}

// TestStreamsAreJudgedAsFilesAre spoils the tables of images at random, and
// demands that a stream is accepted exactly when the same bytes are as a file,
// with the same content in the output.
func TestStreamsAreJudgedAsFilesAre(t *testing.T) {
	images := [][]byte{
		qcow2Of(t, mixed(31, 5*mib), "-o", "cluster_size=4k"),
		qcow2Of(t, mixed(32, 3*mib), "-c", "-o", "cluster_size=4k"),
		qcow2Of(t, mixed(33, 3*mib)),
	}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	accepted, refused, rounds := 0, 0, 150
	if testing.Short() {
		rounds = 45
	}
	for i := range rounds {
		b := bytes.Clone(images[i%len(images)])
		spoilTables(r, b)
		file, fromFile, err1 := intakeOf(t, b, false)
		stream, fromStream, err2 := intakeOf(t, b, true)
		if (err1 == nil) != (err2 == nil) {
			t.Fatalf("seed %d, round %d: the file gives %v, the stream %v", seed, i, err1, err2)
		}
		if err1 != nil {
			refused++
			if errs.KindOf(err1) != errs.Unsafe || errs.KindOf(err2) != errs.Unsafe {
				t.Fatalf("seed %d, round %d: the file gives %v, the stream %v; want refusals", seed, i, err1, err2)
			}
			continue
		}
		accepted++
		if file != stream || !bytes.Equal(fromFile, fromStream) {
			t.Fatalf("seed %d, round %d: the file gives %+v, the stream %+v, or other bytes", seed, i, file, stream)
		}
		if want := contentOf(fromStream[:stream.VirtualSize]); stream.Content != want {
			t.Fatalf("seed %d, round %d: the output has the content %s, the result says %s", seed, i, want, stream.Content)
		}
	}
	if accepted < rounds/15 || refused < rounds/15 {
		t.Errorf("seed %d: %d images were accepted and %d refused: the test shows nothing", seed, accepted, refused)
	}
	t.Logf("%d accepted, %d refused", accepted, refused)
}

// spoilTables changes some entries of the L1 and L2 tables of b: swaps them,
// clears them, points them elsewhere, changes a bit.
func spoilTables(r *rand.Rand, b []byte) {
	cluster := uint64(1) << b[23]
	l1 := beAt(b, 40)
	for range 1 + r.IntN(2) {
		table := beAt(b, l1+8*r.Uint64N(max(1, beAt(b, 32)&0xffffffff))) & offsetBits
		if table == 0 || r.IntN(8) == 0 {
			table = l1
		}
		entry := func() []byte {
			off := table + 8*r.Uint64N(cluster/8)
			if off+8 > uint64(len(b)) {
				off = table
			}
			return b[off : off+8]
		}
		x, y := entry(), entry()
		switch r.IntN(5) {
		case 0:
			v := beAt(x, 0)
			copy(x, y)
			copy(y, be64(v))
		case 1:
			clear(x)
		case 2:
			copy(x, be64(r.Uint64N(uint64(len(b))/cluster)*cluster|1<<63))
		case 3:
			x[r.IntN(8)] ^= 1 << r.IntN(8)
		case 4:
			copy(x, y)
		}
	}
}

func TestBitmap(t *testing.T) {
	var m bitmap
	for _, i := range []int64{0, 63, 64, 1000, 1000, 5} {
		m.set(i)
	}
	if m.count != 5 {
		t.Errorf("count %d, want 5", m.count)
	}
	for i, want := range map[int64]bool{0: true, 1: false, 5: true, 63: true, 64: true, 999: false, 1000: true, 1 << 40: false} {
		if m.has(i) != want {
			t.Errorf("has(%d) is %v, want %v", i, !want, want)
		}
	}
}

func TestNewAssembledRefusesMisplacedClusters(t *testing.T) {
	b := qcow2Of(t, bytes.Repeat([]byte("data"), mib))
	im := &intake{judge: judge{Format: "qcow2", MaxVirtual: 64 * mib}}
	src, _, err := im.openQcow2(t.Context(), bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	m, err := src.Map(0)
	if err != nil {
		t.Fatal(err)
	}
	host := m.HostOffset >> 16
	for name, row := range map[string]struct {
		direct, placed int64
		good           bool
	}{
		"right":                 {host, 0, true},
		"elsewhere":             {host, 7, false},
		"of no guest cluster":   {1000, 0, false},
		"of a table's cluster":  {0, 0, false},
		"beyond the disk's end": {host, 1000, false},
	} {
		a := &assembler{bits: 16}
		a.direct.set(row.direct)
		a.placed.set(row.placed)
		_, err := newAssembled(src, a, nil)
		if (err == nil) != row.good || err != nil && !errors.Is(err, errs.Internal) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
