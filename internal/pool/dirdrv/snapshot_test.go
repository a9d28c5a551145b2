package dirdrv_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// TestSnapshotsWithoutTheirVolume takes the volume away from its snapshot.
func TestSnapshotsWithoutTheirVolume(t *testing.T) {
	d, c := newPool(t, fsloop.XFS(t, 512<<20).Dir)
	s := d.(driver.Snapshotter)
	r := newVolume(t, d, "v", 4096, false)
	snap := disk.SnapshotID(drivertest.NewID())
	file := string(r.ID) + "_" + string(snap)
	at := func(dir string) string { return filepath.Join(c.Path, dir, file) }
	half := at(".tarn-snapshots") + "-2.new" // of one that a crash left half made
	err := errors.Join(s.Snapshot(t.Context(), r, snap), os.WriteFile(half, nil, 0o600))
	if err == nil {
		err = d.(driver.Leftovers).SetAside(t.Context(), r)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{at(".tarn-quarantine"), filepath.Join(c.Path, ".tarn-quarantine", "v"), half} {
		if _, err := os.Stat(name); err != nil {
			t.Errorf("after SetAside: %v", err)
		}
	}
	if err := errors.Join(os.Rename(at(".tarn-quarantine"), at(".tarn-snapshots")), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := dirdrv.Type.Remove(t.Context(), c); !errors.Is(err, errs.Conflict) {
		t.Errorf("Remove of a pool that holds a snapshot = %v, want a conflict", err)
	}
	if err := os.Remove(at(".tarn-snapshots")); err != nil {
		t.Fatal(err)
	}
	if err := dirdrv.Type.Remove(t.Context(), c); err != nil {
		t.Errorf("Remove when the snapshot is gone: %v", err)
	}
}
