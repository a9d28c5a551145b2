package ploopdrv_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/ploopdrv"
)

// volume is a published volume in a pool of its own.
type volume struct {
	driver.Driver
	driver.Snapshotter
	c driver.Config
	r driver.Ref
}

// newVolume makes a volume of size bytes. When the test ends QEMU checks its
// images.
func newVolume(t *testing.T, size int64) volume {
	t.Helper()
	ctx := t.Context()
	c := harness(func(t *testing.T) string { return t.TempDir() }).Place(t)
	if err := ploopdrv.Type.Prepare(ctx, c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	d, _, err := ploopdrv.Type.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "v"}
	if err := d.Create(ctx, driver.Spec{ID: r.ID, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Publish(ctx, r.ID, r.Name, false, nil); err != nil {
		t.Fatal(err)
	}
	return volume{d, d.(driver.Snapshotter), c, r}
}

func (v volume) path(name string) string { return filepath.Join(v.c.Path, v.r.Name, name) }

// chain returns the volume's description.
func (v volume) chain(t *testing.T) bundle.Chain {
	t.Helper()
	b, err := os.ReadFile(v.path(bundle.Name))
	if err != nil {
		t.Fatal(err)
	}
	c, err := bundle.ParseChain(b)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// snapshot takes a snapshot.
func (v volume) snapshot(t *testing.T, id disk.SnapshotID) {
	t.Helper()
	if err := v.Snapshot(t.Context(), v.r, id); err != nil {
		t.Fatalf("Snapshot %s: %v", id, err)
	}
}

// TestRefusedDescriptions asks for what no description can say.
func TestRefusedDescriptions(t *testing.T) {
	const a = "11111111-aaaa-4333-8444-555555555555"
	for _, c := range []struct {
		name string
		had  int // snapshots beside a
		ask  func(t *testing.T, v volume) error
		want errs.Kind
	}{
		{"the UUID of another", 0, func(t *testing.T, v volume) error {
			return v.Snapshot(t.Context(), v.r, disk.SnapshotID(strings.ToUpper(a)))
		}, errs.Conflict},
		{"the UUID of the disk", 0, func(t *testing.T, v volume) error { return v.Snapshot(t.Context(), v.r, bundle.Top) }, errs.Conflict},
		{"one more than can be", 1023, func(t *testing.T, v volume) error { return v.Snapshot(t.Context(), v.r, "more") }, errs.Conflict},
		{"larger than a disk can be", 0, func(t *testing.T, v volume) error {
			return v.Resize(t.Context(), v.r, parallels.MaxVirtualSize+4096)
		}, errs.Invalid},
		{"larger than a description can say", 0, func(t *testing.T, v volume) error { return v.Resize(t.Context(), v.r, 1<<62+4096) }, errs.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVolume(t, 4<<20)
			v.snapshot(t, a)
			v.layers(t, c.had)
			before := drivertest.Files(t, v.c)
			chain := string(v.chain(t).Bytes())
			if err := c.ask(t, v); errs.KindOf(err) != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if got := drivertest.Files(t, v.c); !slices.Equal(got, before) {
				t.Errorf("the files are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(before, "\n"))
			}
			if got := string(v.chain(t).Bytes()); got != chain {
				t.Errorf("the description is\n%s\nwant\n%s", got, chain)
			}
		})
	}
}

// layers gives the volume n snapshots more, as n calls would, until QEMU checks
// the images.
func (v volume) layers(t *testing.T, n int) {
	t.Helper()
	c := v.chain(t)
	top := len(c.Layers) - 1
	empty, err := os.ReadFile(v.path(c.Layers[top].File))
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		l := bundle.Layer{File: fmt.Sprintf("root.hds.n%d", i), GUID: bundle.Top, Size: c.Size}
		c.Layers[top+i].GUID = fmt.Sprintf("00000000-0000-4000-8000-%012d", i)
		c.Layers = append(c.Layers, l)
		if err := os.WriteFile(v.path(l.File), empty, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(v.path(l.File)) })
	}
	defer writable(t, v.path(bundle.Name))()
	if err := os.WriteFile(v.path(bundle.Name), c.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
}

// writable lets whoever runs the test, who need not be root, write a file of a
// volume that nobody is to write, until the returned function is called.
func writable(t *testing.T, path string) (protect func()) {
	t.Helper()
	info, err := os.Stat(path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Chmod(path, info.Mode()); err != nil {
			t.Error(err)
		}
	}
}
