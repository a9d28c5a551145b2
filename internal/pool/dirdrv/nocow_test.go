package dirdrv_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// TestNoCopyOnWrite has a pool on btrfs write in place: bases, their clones and
// snapshots are alike, because btrfs refuses to share extents between files that
// are not.
func TestNoCopyOnWrite(t *testing.T) {
	c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(fsloop.Btrfs(t, 512<<20).Dir, "pool"), Owner: drivertest.Owner()}
	c.Source.CopyOnWrite = "off"
	if err := dirdrv.Type.Prepare(t.Context(), c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	d, caps, err := dirdrv.Type.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if caps.Clone != driver.CloneReflink || caps.Snapshot != driver.SnapshotReflink {
		t.Errorf("the pool clones by %s and its snapshots are %s, want reflinks", caps.Clone, caps.Snapshot)
	}
	base := newVolume(t, d, "base", 1<<20, true)
	id, snap := disk.VolumeID(drivertest.NewID()), disk.SnapshotID(drivertest.NewID())
	err = d.(driver.Cloner).Clone(t.Context(), driver.Spec{ID: id, Size: 1 << 20}, base)
	if err == nil {
		_, err = d.Publish(t.Context(), id, "clone", false, []byte("sidecar"))
	}
	if err == nil {
		err = d.(driver.Snapshotter).Snapshot(t.Context(), driver.Ref{ID: id, Name: "clone"}, snap)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"base", "clone", ".tarn-snapshots/" + string(id) + "_" + string(snap)} {
		f, err := os.Open(filepath.Join(c.Path, name))
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		if f.Close(); err != nil || flags&0x00800000 == 0 {
			t.Errorf("%s has the flags %#x, %v; want the one that turns copy-on-write off", name, flags, err)
		}
	}
}

func TestNoCopyOnWriteIsRefused(t *testing.T) {
	for value, want := range map[string]errs.Kind{"off": errs.Unsupported, "on": errs.Invalid} {
		c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(fsloop.Ext4(t, 64<<20).Dir, "pool"), Owner: drivertest.Owner()}
		c.Source.CopyOnWrite = value
		before := drivertest.Files(t, c)
		if err := dirdrv.Type.Prepare(t.Context(), c, drivertest.Marker(c)); !errors.Is(err, want) {
			t.Errorf("Prepare on ext4 with copy-on-write %q = %v, want %s", value, err, want)
		}
		if after := drivertest.Files(t, c); len(after) != len(before) {
			t.Errorf("Prepare that is refused left %q, before there was %q", after, before)
		}
	}
}
