package fsdrv_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/fsdrv"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// effects are what each call has on any of the file systems.
var effects = map[string]int{
	"Prepare": 11, "Remove": 9, "Create": 3, "Create preallocated": 4, "Publish": 7, "Publish immutable": 8,
	"Resize": 2, "Delete": 3, "Delete staged": 2, "PutSidecar": 5, "PutSidecar of the marker": 5,
}

// on returns the configuration of a pool on device, unmounted when t ends.
func on(t *testing.T, device, kind string) driver.Config {
	c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(t.TempDir(), "pool"),
		Source: disk.PoolSource{Device: device, FileSystem: kind}, Owner: disk.Owner{UID: 65534, GID: 65534}}
	t.Cleanup(func() {
		if err := unix.Unmount(c.Path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("unmount %s: %v", c.Path, err)
		}
	})
	return c
}

func harness(kind string) drivertest.Harness {
	h := drivertest.Harness{
		Type: fsdrv.Type,
		Raw: func(t *testing.T) driver.Config {
			return on(t, fsloop.Device(t, "", 640<<20), kind)
		},
		Place: func(t *testing.T) driver.Config {
			return on(t, fsloop.Device(t, kind, 640<<20), kind)
		},
		Small: func(t *testing.T) driver.Config {
			return on(t, fsloop.Device(t, kind, 64<<20), "") // its signature tells the kind
		},
		Foreign: drivertest.PutFile,
		Settle:  drivertest.Flush,
		Residue: residue,
		Effects: effects,
	}
	if kind != "btrfs" { // which has no call that cuts its power
		h.Power = func(t *testing.T) (driver.Config, func()) {
			c := h.Place(t)
			return c, func() { fsloop.Cut(t, c.Path) }
		}
	}
	return h
}

// residue lists the files beside the pool's path and on its device, mounted or
// not, with mode and size.
func residue(t *testing.T, c driver.Config) []string {
	all := drivertest.Files(t, c)
	at := t.TempDir()
	if err := unix.Mount(c.Source.Device, at, c.Source.FileSystem, 0, ""); err != nil {
		return all // nothing was built there
	}
	defer unix.Unmount(at, 0)
	return append(all, drivertest.Tree(t, at)...)
}

// TestContract runs the suite; on the other file systems, where it takes minutes,
// with TARN_SLOW=1 only: dirdrv's own tests run it there.
func TestContract(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			h := harness(kind)
			if kind != "xfs" && os.Getenv("TARN_SLOW") == "" {
				drivertest.RunParts(t, h, "Place", "Build", "Stop", "Served", "List", "Stat", "Leftovers", "PowerLoss")
				return
			}
			drivertest.Run(t, h)
		})
	}
}

// TestBehindItsBack unmounts an open pool's file system, mounts another one over
// its path, and puts its device elsewhere.
func TestBehindItsBack(t *testing.T) {
	ctx := t.Context()
	h := harness("ext4")
	c := h.Place(t)
	marker := drivertest.Marker(c)
	if err := fsdrv.Type.Prepare(ctx, c, marker); err != nil {
		t.Fatal(err)
	}
	open := func() driver.Driver {
		d, _, err := fsdrv.Type.Open(ctx, c)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	wants := func(what string, err error, want errs.Kind) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %s", what, err, want)
		}
	}
	d := open()
	must(t, unix.Unmount(c.Path, unix.MNT_DETACH))
	_, err := d.Stat(ctx)
	wants("Stat of an unmounted pool", err, errs.Unavailable)
	wants("Create in an unmounted pool", d.Create(ctx, driver.Spec{ID: "a", Size: 4096}), errs.Unavailable)
	must(t, d.Close())
	d = open()
	if _, err := d.Stat(ctx); err != nil {
		t.Errorf("Stat of a pool that was opened again: %v", err)
	}
	must(t, d.(driver.Stopper).Stop(ctx))

	other := fsloop.Device(t, "ext4", 64<<20)
	must(t, unix.Mount(other, c.Path, "ext4", 0, ""))
	_, _, err = fsdrv.Type.Open(ctx, c)
	wants("Open where another file system is mounted", err, errs.Conflict)
	wants("Remove where another file system is mounted", fsdrv.Type.Remove(ctx, c), errs.Conflict)
	must(t, unix.Unmount(c.Path, 0))
	there := t.TempDir()
	must(t, unix.Mount(c.Source.Device, there, "ext4", 0, ""))
	_, _, err = fsdrv.Type.Open(ctx, c)
	wants("Open of a device that is mounted elsewhere", err, errs.Conflict)
	wants("Build of a device that is mounted elsewhere", fsdrv.Type.Build(ctx, c, true), errs.Busy)
	must(t, unix.Unmount(there, 0))
	must(t, os.WriteFile(filepath.Join(c.Path, "mine"), nil, 0o600))
	_, _, err = fsdrv.Type.Open(ctx, c)
	wants("Open over files", err, errs.Conflict)
	must(t, os.Remove(filepath.Join(c.Path, "mine")))
	must(t, open().(driver.Stopper).Stop(ctx))
}

// TestRemoveUnplugged removes a pool whose disk is not there, which holds it
// nevertheless, and is removed from it when it is back.
func TestRemoveUnplugged(t *testing.T) {
	ctx := t.Context()
	c := harness("ext4").Place(t)
	disk, name := c.Source.Device, filepath.Join(t.TempDir(), "by-id")
	must(t, os.Symlink(disk, name))
	c.Source.Device = name
	must(t, fsdrv.Type.Prepare(ctx, c, drivertest.Marker(c)))
	must(t, unix.Unmount(c.Path, 0))
	must(t, os.Remove(name))
	if err := fsdrv.Type.Remove(ctx, c); !errors.Is(err, errs.NotFound) {
		t.Errorf("Remove without the disk: %v, want not found", err)
	}
	must(t, os.Symlink(disk, name))
	if got, err := fsdrv.Type.Marker(ctx, c); err != nil || !bytes.Equal(got, drivertest.Marker(c)) {
		t.Errorf("the marker when the disk is back: %q, %v", got, err)
	}
	must(t, fsdrv.Type.Remove(ctx, c))
	if _, err := os.Lstat(c.Path); !os.IsNotExist(err) {
		t.Errorf("Remove leaves %s: %v", c.Path, err)
	}
}

// TestBuildGoesOn repeats a build that was stopped when its mark was on the disk
// and the file system was not complete.
func TestBuildGoesOn(t *testing.T) {
	ctx := t.Context()
	c := harness("xfs").Raw(t)
	must(t, fsdrv.Type.Build(ctx, c, false))
	f, err := os.OpenFile(c.Source.Device, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	sb := make([]byte, 512)
	_, err = f.ReadAt(sb, 0)
	must(t, err)
	const inProgress, sum = 126, 224 // sb_inprogress and sb_crc
	sb[inProgress] = 1
	clear(sb[sum : sum+4])
	binary.LittleEndian.PutUint32(sb[sum:], crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli)))
	_, err = f.WriteAt(sb, 0)
	must(t, errors.Join(err, f.Sync()))
	if err := unix.Mount(c.Source.Device, t.TempDir(), "xfs", 0, ""); err != unix.EUCLEAN {
		t.Fatalf("mounting what is not complete: %v, want %v", err, unix.EUCLEAN)
	}
	must(t, fsdrv.Type.Build(ctx, c, false))
	must(t, fsdrv.Type.Prepare(ctx, c, drivertest.Marker(c)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDevices refuses what is no device to build on or carries something.
func TestDevices(t *testing.T) {
	ctx := t.Context()
	file := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(file, make([]byte, 4096), 0o600))
	for _, row := range []struct {
		what, device, kind string
		want               errs.Kind
	}{
		{"a device that is not there", file + "x", "xfs", errs.Unavailable},
		{"a file", file, "xfs", errs.Invalid},
		{"an unknown file system", fsloop.Device(t, "", 64<<20), "reiserfs", errs.Invalid},
		{"a file system that somebody made", fsloop.Device(t, "ext4", 64<<20), "ext4", errs.Conflict},
		{"one of another kind", fsloop.Device(t, "btrfs", 64<<20), "ext4", errs.Conflict},
	} {
		c := on(t, row.device, row.kind)
		if err := fsdrv.Type.Build(ctx, c, false); !errors.Is(err, row.want) {
			t.Errorf("Build on %s: got %v, want %s", row.what, err, row.want)
		}
		if _, err := os.Lstat(c.Path); err == nil {
			t.Errorf("Build on %s made %s", row.what, c.Path)
		}
	}
}
