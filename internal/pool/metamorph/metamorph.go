// Package metamorph plays one seeded history of creates, clones, writes,
// snapshots, grows, shrinks, deletes and restarts on any technology, compares
// all that is read with what was written, and returns a digest of it: the same
// seed must read the same on every driver. What a driver declares it cannot do
// is done in another way (a clone by copying, a snapshot as a volume, a shrink
// by replacing the volume), never left out. It refuses to know any technology.
//
// A driver's own test of it is
//
//	func TestMetamorphic(t *testing.T) {
//		metamorph.Run(t, xdrv.Type, place, metamorph.Operations)
//	}
//
// where place is the Place of the driver's drivertest.Harness: it returns the
// configuration of fresh storage in which 256 MiB are free. Technologies that
// need long for each operation give fewer. With TARN_SLOW=1 in the environment
// the histories of more seeds, and longer ones, are played as well; a failure
// names the seed, which TARN_SEED=N plays alone.
package metamorph

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Operations is how long the history is where operations are fast.
const Operations = 2000

// Run plays the histories that the environment asks for on fresh pools of typ,
// the first with n operations, and fails t where one reads what it must not.
func Run(t *testing.T, typ driver.Type, place func(t *testing.T) driver.Config, n int) {
	t.Helper()
	RunBeside(t, typ, place, n, 1)
}

// RunBeside is Run where a technology is waited for most of the time: its n
// operations are those of several histories, which are played beside each other.
func RunBeside(t *testing.T, typ driver.Type, place func(t *testing.T) driver.Config, n, histories int) {
	t.Helper()
	seeds := map[uint64]int{}
	for h := range histories {
		seeds[uint64(1+h)] = n / histories
	}
	if os.Getenv("TARN_SLOW") == "1" {
		for seed := range uint64(3) {
			seeds[uint64(histories)+seed+1] = 5 * n
		}
	}
	if s := os.Getenv("TARN_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("TARN_SEED: %v", err)
		}
		seeds = map[uint64]int{seed: 5 * n}
	}
	for _, seed := range slices.Sorted(maps.Keys(seeds)) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			if histories > 1 {
				t.Parallel()
			}
			ops := history(seed, seeds[seed])
			got, err := play(t.Context(), typ, place(t), ops)
			if err != nil {
				t.Fatalf("seed %d on %s, %v", seed, typ.Name, err)
			}
			if want := expected(ops); got != want {
				t.Errorf("seed %d on %s reads %s, must read %s", seed, typ.Name, got, want)
			}
			t.Logf("%d operations of seed %d on %s read %s", len(ops), seed, typ.Name, got)
		})
	}
}

// expected returns the digest that a history must have on every driver: it is
// made from the history alone.
func expected(ops []op) string {
	vols, shots, of := map[int]content{}, map[int]content{}, map[int]int{}
	sum := sha256.New()
	for _, o := range ops {
		switch v := vols[o.Volume]; o.Kind {
		case create:
			vols[o.Volume] = newContent(o.Size)
			vols[o.Volume].put(o.Pieces)
		case clone:
			c := vols[o.From].copy()
			c.resize(o.Size)
			c.put(o.Pieces)
			vols[o.Volume] = c
		case write:
			v.put(o.Pieces)
		case grow, shrink:
			v.resize(o.Size)
			vols[o.Volume] = v
		case snapshot:
			shots[o.Snapshot], of[o.Snapshot] = v.copy(), o.Volume
		case deleteSnapshot:
			delete(shots, o.Snapshot)
		case remove:
			delete(vols, o.Volume)
			maps.DeleteFunc(shots, func(n int, _ content) bool { return of[n] == o.Volume })
		case check:
			v.sum(sum)
		case checkSnapshot:
			shots[o.Snapshot].sum(sum)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(vols)) {
		vols[n].sum(sum)
		for _, s := range slices.Sorted(maps.Keys(shots)) {
			if of[s] == n {
				shots[s].sum(sum)
			}
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}
