package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
)

// lose takes away the one file of a pool that matches, and has doctor record it.
func (b *bench) lose(t *testing.T, pool, pattern string) (at, aside string) {
	t.Helper()
	at, aside = file(t, pool, pattern), filepath.Join(t.TempDir(), "aside")
	do(t, os.Rename(at, aside))
	if r := b.doctor(true); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Fatalf("with %s gone doctor said %+v, want one problem that it repaired", at, r.Problems)
	}
	b.silent("recording it as lost")
	return at, aside
}

// TestRenameWithALostDisk renames an instance that has lost one of its disks:
// the sidecar of the other follows, and the lost one's does when it is back.
func TestRenameWithALostDisk(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	b.instance("old", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	at, aside := b.lose(t, pool, "*data0.raw")
	b.must(b.InstanceRename(ctx, none, "old", "new"))
	b.silent("a rename with a lost disk")
	if side := must(os.ReadFile(file(t, pool, "*data1.raw.tarn.json"))); !strings.Contains(string(side), `"name":"new"`) {
		t.Errorf("the sidecar of the other disk does not say the new name: %s", side)
	}
	do(t, os.Rename(aside, at))
	if r := b.doctor(true); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Errorf("with the disk back doctor said %+v, want one problem that it repaired", r.Problems)
	}
	b.silent("taking the disk into use again")
	if side := must(os.ReadFile(at + ".tarn.json")); !strings.Contains(string(side), `"name":"new"`) {
		t.Errorf("the sidecar of the disk that came back does not say the new name: %s", side)
	}
}

// TestRenameWritesWhatItCan renames an instance one of whose disks is gone
// without anybody knowing yet.
func TestRenameWritesWhatItCan(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	b.instance("old", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	do(t, os.Remove(file(t, pool, "*data0.raw")))
	b.do(b.InstanceRename(ctx, none, "old", "new"))
	if side := must(os.ReadFile(file(t, pool, "*data1.raw.tarn.json"))); !strings.Contains(string(side), `"name":"new"`) {
		t.Errorf("the sidecar of the other disk does not say the new name: %s", side)
	}
}
