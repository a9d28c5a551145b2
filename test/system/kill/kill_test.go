// Package kill_test kills the shipped daemon with SIGKILL at random moments
// under load: nothing that was acknowledged may be lost, and what was cut off
// must be whole or gone.
package kill_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/storage"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// calls is how many a load gets answered at most before the end comes.
const calls = 12

func TestKillUnderLoadEverywhere(t *testing.T) {
	storage.Run(t, []storage.Technology{storage.Directory}, testKillUnderLoad)
}

func testKillUnderLoad(t *testing.T, tech storage.Technology) {
	rounds := 30
	if storage.Given() != nil {
		rounds = 2
	}
	if os.Getenv("TARN_SLOW") != "" {
		rounds = 200
	}
	d := tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	store := tech.New(t, 1<<30)
	d.Must(append([]string{"pool", "create", "main"}, store.Args...)...)
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 1))
	pool := tarntest.LoadPool{Raw: tech.Raw}
	if store.Dir == "" {
		pool.Write = func(v api.Volume, at int64, data []byte) error { store.Write(t, v, at, data); return nil }
	}
	load := tarntest.NewLoad(t, d, seed, pool)
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
