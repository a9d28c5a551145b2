package metamorph

import (
	"context"
	"reflect"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/ploopdrv"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// dir returns places in file systems of a kind.
func dir(kind string) func(t *testing.T) driver.Config {
	return func(t *testing.T) driver.Config {
		return driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: fsloop.New(t, kind, 512<<20).Dir + "/pool", Owner: disk.Owner{UID: -1, GID: -1}}
	}
}

func TestDir(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} { // with reflinks and without
		t.Run(kind, func(t *testing.T) { Run(t, dirdrv.Type, dir(kind), Operations) })
	}
}

func TestPloop(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) { Run(t, ploopdrv.Type, dir(kind), Operations) })
	}
}

// TestPlannedAround declares less and less of a driver that can do it all.
func TestPlannedAround(t *testing.T) {
	for name, less := range map[string]func(*driver.Capabilities){
		"no shrink":    func(c *driver.Capabilities) { c.Shrink = false },
		"no growth":    func(c *driver.Capabilities) { c.GrowFrozen = false },
		"held bases":   func(c *driver.Capabilities) { c.HeldBases = true },
		"no clones":    func(c *driver.Capabilities) { c.Clone = driver.CloneCopy },
		"no snapshots": func(c *driver.Capabilities) { c.Snapshot = driver.SnapshotNone },
		"nothing": func(c *driver.Capabilities) {
			*c = driver.Capabilities{Clone: driver.CloneCopy, Snapshot: driver.SnapshotNone, SizeUnit: c.SizeUnit}
		},
	} {
		t.Run(name, func(t *testing.T) {
			typ := dirdrv.Type
			typ.Open = func(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
				d, caps, err := dirdrv.Type.Open(ctx, c)
				less(&caps)
				return d, caps, err
			}
			Run(t, typ, dir("xfs"), 300)
		})
	}
}

// forgetful loses one write of a pool's volumes.
type forgetful struct {
	driver.Driver
	writes *int
}

func (f forgetful) Open(ctx context.Context, r driver.Ref, m driver.Mode) (driver.Device, error) {
	d, err := f.Driver.Open(ctx, r, m)
	if err != nil {
		return nil, err
	}
	return forgetfulDevice{d, f.writes}, nil
}

type forgetfulDevice struct {
	driver.Device
	writes *int
}

func (f forgetfulDevice) WriteAt(p []byte, off int64) (int, error) {
	if *f.writes++; *f.writes == 100 {
		return len(p), nil
	}
	return f.Device.WriteAt(p, off)
}

// TestFailureIsFound plays on a driver that loses one write.
func TestFailureIsFound(t *testing.T) {
	typ, writes := dirdrv.Type, 0
	typ.Open = func(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
		d, caps, err := dirdrv.Type.Open(ctx, c)
		caps.Clone, caps.Snapshot = driver.CloneCopy, driver.SnapshotNone
		return forgetful{d, &writes}, caps, err
	}
	c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: t.TempDir() + "/pool", Owner: disk.Owner{UID: -1, GID: -1}}
	_, err := play(t.Context(), typ, c, history(1, Operations))
	if err == nil || !strings.Contains(err.Error(), "must be") || !strings.Contains(err.Error(), "the last operations were:") {
		t.Errorf("a driver that lost a write: got %v, want the difference and what led to it", err)
	}
}

// TestHistory checks that a history is its seed's and leaves nothing out.
func TestHistory(t *testing.T) {
	ops := history(1, Operations)
	if !reflect.DeepEqual(ops, history(1, Operations)) || reflect.DeepEqual(ops, history(2, Operations)) {
		t.Error("a history does not follow from its seed")
	}
	count := map[kind]int{}
	for _, o := range ops {
		count[o.Kind]++
	}
	for _, w := range weights {
		if count[w.kind] < 20 {
			t.Errorf("%q happens %d times in %d operations", w.kind, count[w.kind], len(ops))
		}
	}
	t.Log(count)
}
