// Package power_test cuts the power of the file systems below the shipped
// daemon at random moments under load: what was acknowledged must be on them
// afterwards, whatever was not synced.
package power_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// calls is how many a load gets answered at most before the end comes.
const calls = 12

func TestPowerLossUnderLoad(t *testing.T) {
	rounds := 8
	if os.Getenv("TARN_SLOW") != "" {
		rounds = 40
	}
	for _, tt := range []struct{ name, state, pool string }{
		{"both on one xfs", "xfs", ""},
		{"both on one ext4", "ext4", ""},
		{"state on ext4, pool on xfs", "ext4", "xfs"},
		{"state on xfs, pool on ext4", "xfs", "ext4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := []*fsloop.FS{fsloop.New(t, tt.state, 512<<20)}
			if tt.pool != "" {
				all = append(all, fsloop.New(t, tt.pool, 512<<20))
			}
			lose(t, all, rounds)
		})
	}
}

// lose runs rounds of load, power loss and recovery. The state directory is on
// the first file system, the pool on the last.
func lose(t *testing.T, all []*fsloop.FS, rounds int) {
	d := tarntest.Start(t, filepath.Join(all[0].Dir, "state"))
	d.Must("pool", "create", "main", "--driver", "dir", "--path", filepath.Join(all[len(all)-1].Dir, "pool"))
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	load := tarntest.NewLoad(t, d, seed, tarntest.LoadPool{})
	disks := 0
	for round := range rounds {
		load.Run(rng.IntN(calls), func() {
			d.KillAnd(func() { // the daemon must not see one file system without the other
				for _, fs := range all {
					fs.Shutdown()
				}
			})
		})
		for _, fs := range all {
			fs.Remount()
		}
		d.Start()
		disks += load.Recovered()
		if t.Failed() {
			t.Fatalf("seed %d, round %d of %d\ntarnd warned:\n%s", seed, round, rounds, d.Warnings())
		}
	}
	t.Logf("seed %d: %d rounds, %d calls acknowledged, %d disks read", seed, rounds, load.Acknowledged.Load(), disks)
}
