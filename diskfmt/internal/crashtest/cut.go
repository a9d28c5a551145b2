package crashtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// Version is what the guest sees after the effects up to At.
type Version struct {
	At      int
	Durable bool // it must survive
	Content []byte
}

// Run is what a run of a writer did to a container that held Base.
type Run struct {
	Seed uint64 // of what is chosen at random
	Base []byte
	Log  []Event
	Seen []Version
}

// Cut cuts the power behind each effect of r, with all, none or some of what was
// not synced on the disk, and fails unless check finds what it must in the image:
// the last durable version, or one that came after it, of each byte. Every
// hundredth or so is a sample for what takes long. It returns how many there were.
func Cut(t *testing.T, r Run, check func(img []byte, seen []Version, sample bool) error) (cuts int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(r.Seed, 9))
	durable := &File{r.Base} // all that is synced before the cut
	first := 0               // the first effect after it
	for cut := 0; cut <= len(r.Log); cut++ {
		seen := r.between(first, cut)
		for variant := range 4 {
			f := &File{bytes.Clone(durable.B)}
			for _, e := range r.Log[first:cut] {
				if variant == 0 || variant > 1 && rng.IntN(2) == 0 {
					e.apply(f)
				}
			}
			cuts++
			if err := check(f.B, seen, cuts%97 == 0); err != nil {
				t.Fatalf("seed %d, cut %d of %d effects, variant %d: %v", r.Seed, cut, len(r.Log), variant, err)
			}
		}
		if cut < len(r.Log) && r.Log[cut].Kind == Sync {
			for _, e := range r.Log[first : cut+1] {
				e.apply(durable)
			}
			first = cut + 1
		}
	}
	t.Logf("%d effects, %d cuts", len(r.Log), cuts)
	return cuts
}

// between returns the versions that may be seen after a cut, behind the effects
// up to which all is synced.
func (r Run) between(synced, cut int) []Version {
	lo, hi := 0, 0
	for i, v := range r.Seen {
		if v.Durable && v.At <= synced {
			lo = i
		}
		if hi = i; v.At >= cut {
			break
		}
	}
	return r.Seen[lo : hi+1]
}

// Verify holds what a crashed disk has against what the guest had seen: each byte
// is that of one of the versions, which read as zeroes behind their end, and its
// size is that of one and not less than the first's.
func Verify(got []byte, seen []Version) error {
	if len(got) < len(seen[0].Content) || !slices.ContainsFunc(seen, func(v Version) bool { return len(v.Content) == len(got) }) {
		return fmt.Errorf("the disk has %d bytes, durable were %d", len(got), len(seen[0].Content))
	}
	const sector = 512
	old := make([]byte, sector)
	for off := 0; off < len(got); off += sector {
		piece := got[off:min(off+sector, len(got))]
		if slices.ContainsFunc(seen, func(v Version) bool {
			clear(old)
			copy(old, v.Content[min(off, len(v.Content)):])
			return bytes.Equal(piece, old[:len(piece)])
		}) {
			continue
		}
		for i, b := range piece {
			if !slices.ContainsFunc(seen, func(v Version) bool { return v.at(off+i) == b }) {
				return fmt.Errorf("byte 0x%x is 0x%02x, which it was in none of the last %d versions", off+i, b, len(seen))
			}
		}
	}
	return nil
}

// at returns the byte at off.
func (v Version) at(off int) byte {
	if off < len(v.Content) {
		return v.Content[off]
	}
	return 0
}
