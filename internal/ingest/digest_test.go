package ingest

import (
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

// TestSourceDigestInAnyOrder gives a digest the pieces of a file in order, in
// another order, overlapping and with gaps, and wants the file's SHA-256.
func TestSourceDigestInAnyOrder(t *testing.T) {
	disk := mixed(41, 24*mib)
	clear(disk[9*mib : 16*mib])
	f := writeFile(t, disk)
	size := int64(len(disk))
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var inOrder, shuffled [][2]int64
	for off := int64(0); off < size; {
		n := min(1+r.Int64N(mib), size-off)
		inOrder = append(inOrder, [2]int64{off, n})
		off += n + r.Int64N(300*kib)
	}
	for _, i := range r.Perm(len(inOrder)) {
		shuffled = append(shuffled, inOrder[i])
	}
	for name, pieces := range map[string][][2]int64{
		"in order":         inOrder,
		"shuffled":         shuffled,
		"the end first":    {{size - 5, 5}, {0, 5}},
		"far behind a gap": {{0, mib}, {20 * mib, mib}, {2 * mib, mib}},
		"overlapping":      {{0, 3 * mib}, {2 * mib, 2 * mib}, {mib, mib}, {4*mib - 1, 2}},
		"nothing":          nil,
	} {
		var c counter
		d := newSourceDigest(descriptor(f.Fd()), size)
		d.count = &c
		for _, p := range pieces {
			if err := d.take(t.Context(), disk[p[0]:p[0]+p[1]], p[0]); err != nil {
				t.Fatalf("%s, seed %d: %v", name, seed, err)
			}
		}
		if err := d.read(t.Context(), size); err != nil {
			t.Fatalf("%s, seed %d: %v", name, seed, err)
		}
		if got, want := hex.EncodeToString(d.h.Sum(nil)), sha256Of(disk); got != want {
			t.Errorf("%s, seed %d: got %s, want %s", name, seed, got, want)
		}
		if done := c.done.Load(); done != size {
			t.Errorf("%s, seed %d: %d of %d bytes were counted", name, seed, done, size)
		}
	}
}

// TestSourceDigestTakesWhatIsRead demands that bytes that come in order are
// digested as they were read, and not read again.
func TestSourceDigestTakesWhatIsRead(t *testing.T) {
	disk := mixed(42, 4*mib)
	f := writeFile(t, disk)
	d := newSourceDigest(descriptor(f.Fd()), int64(len(disk)))
	if _, err := writable(t, f).WriteAt(make([]byte, len(disk)), 0); err != nil { // whoever reads again reads zeroes
		t.Fatal(err)
	}
	for off := 0; off < len(disk); off += 64 * kib {
		if err := d.take(t.Context(), disk[off:off+64*kib], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := hex.EncodeToString(d.h.Sum(nil)), sha256Of(disk); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
