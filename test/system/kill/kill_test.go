// Package kill_test kills the shipped daemon with SIGKILL at random moments
// under load: nothing that was acknowledged may be lost, and what was cut off
// must be whole or gone.
package kill_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// calls is how many a load gets answered at most before the end comes.
const calls = 12

func TestKillUnderLoad(t *testing.T) {
	rounds := 30
	if os.Getenv("TARN_SLOW") != "" {
		rounds = 200
	}
	dir := t.TempDir()
	d := tarntest.Start(t, filepath.Join(dir, "state"))
	d.Must("pool", "create", "main", "--driver", "dir", "--path", filepath.Join(dir, "pool"))
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	load := tarntest.NewLoad(t, d, seed)
	disks := 0
	for round := range rounds {
		load.Run(rng.IntN(calls), d.Kill)
		d.Start()
		disks += load.Recovered()
		d.Kill()
		d.Start()
		d.AssertSettled()
		if t.Failed() {
			t.Fatalf("seed %d, round %d of %d\ntarnd warned:\n%s", seed, round, rounds, d.Warnings())
		}
	}
	t.Logf("seed %d: %d rounds, %d calls acknowledged, %d disks read", seed, rounds, load.Acknowledged.Load(), disks)
}
