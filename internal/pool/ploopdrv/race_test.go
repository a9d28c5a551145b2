package ploopdrv_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
)

// during is an injector that calls do ahead of the first effect whose name
// begins with at.
type during struct {
	at string
	do func()
}

func (d *during) Before(e faults.Effect) error {
	if do := d.do; do != nil && strings.HasPrefix(e.Name, d.at) {
		d.do = nil
		do()
	}
	return nil
}

func (d *during) After(_ faults.Effect, err error) error { return err }

// inject has do called during call.
func inject(t *testing.T, at string, do, call func()) {
	t.Helper()
	d := &during{at, do}
	func() {
		defer faults.Install(d)()
		call()
	}()
	if d.do != nil {
		t.Fatalf("there was no effect %q", at)
	}
}

// TestSnapshotDuring has another call try to change the description that a
// snapshot is about to replace.
func TestSnapshotDuring(t *testing.T) {
	for name, other := range map[string]func(ctx context.Context, v volume) error{
		"another":      func(ctx context.Context, v volume) error { return v.Snapshot(ctx, v.r, "b") },
		"the same":     func(ctx context.Context, v volume) error { return v.Snapshot(ctx, v.r, "a") },
		"its deletion": func(ctx context.Context, v volume) error { return v.DeleteSnapshot(ctx, v.r, "a") },
		"a resize":     func(ctx context.Context, v volume) error { return v.Resize(ctx, v.r, 4<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			v, ctx := newVolume(t, 2<<20), t.Context()
			v.write(t, 0, 'x')
			inject(t, "create DiskDescriptor.xml", func() {
				if err := other(ctx, v); !errors.Is(err, errs.Busy) {
					t.Errorf("%s while a snapshot is taken: %v, want busy", name, err)
				}
			}, func() { v.snapshot(t, "a") })
			v.write(t, 0, 'y')
			dev, err := v.OpenSnapshot(ctx, v.r, "a")
			if got := content(t, dev, err); got[0] != 'x' {
				t.Errorf("the snapshot begins with %q, want x", got[0])
			}
			if err := other(ctx, v); err != nil {
				t.Errorf("%s afterwards: %v", name, err)
			}
		})
	}
}

// between makes a volume with the snapshots a and b and calls open, which finds
// the lowest image left in use and mends it: meanwhile b is deleted, and the
// images above the lowest are others than those that open chose.
func between(t *testing.T, open func(v volume)) volume {
	t.Helper()
	v := newVolume(t, 4<<20)
	for i, id := range []disk.SnapshotID{"a", "b"} {
		v.write(t, int64(i)<<20, 'a'+byte(i))
		v.snapshot(t, id)
	}
	v.write(t, 2<<20, 'c')
	writable(t, v.path("root.hds")) // and left so
	f, err := os.OpenFile(v.path("root.hds"), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("Ynot"), 44) // in use (parallels.rst)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	inject(t, "", func() {
		if err := v.DeleteSnapshot(t.Context(), v.r, "b"); err != nil {
			t.Errorf("DeleteSnapshot: %v", err)
		}
	}, func() { open(v) })
	return v
}

// TestOpenDuring has the description replaced between its reading and the locks.
func TestOpenDuring(t *testing.T) {
	want := make([]byte, 4<<20)
	for i := range 3 {
		copy(want[i<<20:], bytes.Repeat([]byte{'a' + byte(i)}, 4096))
	}
	for _, m := range []driver.Mode{driver.Base, driver.Read, driver.Write} {
		v := between(t, func(v volume) {
			dev, err := v.Open(t.Context(), v.r, m)
			if got := content(t, dev, err); !bytes.Equal(got, want) {
				t.Errorf("mode %d reads other bytes", m)
			}
		})
		dev, err := v.Open(t.Context(), v.r, driver.Read)
		if got := content(t, dev, err); !bytes.Equal(got, want) {
			t.Errorf("after mode %d the volume has other bytes", m)
		}
	}
	between(t, func(v volume) {
		if _, err := v.OpenSnapshot(t.Context(), v.r, "b"); !errors.Is(err, errs.NotFound) {
			t.Errorf("OpenSnapshot of one that was deleted meanwhile: %v, want not found", err)
		}
	})
	between(t, func(v volume) {
		layers, err := v.Driver.(driver.Layered).Layers(t.Context(), v.r)
		var got []string
		for _, l := range layers {
			got = append(got, l.Path)
		}
		if want := []string{v.path("root.hds.a"), v.path("root.hds")}; err != nil || !slices.Equal(got, want) {
			t.Errorf("Layers = %q, %v; want %q", got, err, want)
		}
	})
}

// TestLockedUntilRemoved finds the image that a deletion takes away locked for
// as long as it has a name.
func TestLockedUntilRemoved(t *testing.T) {
	v := newVolume(t, 2<<20)
	v.snapshot(t, "a")
	inject(t, "unlink root.hds.a", func() {
		f, err := os.Open(v.path("root.hds.a"))
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		if err := imagelock.Take(f, driver.Write); !errors.Is(err, errs.Busy) {
			t.Errorf("the image's locks, ahead of its end: %v, want busy", err)
		}
	}, func() {
		if err := v.DeleteSnapshot(t.Context(), v.r, "a"); err != nil {
			t.Errorf("DeleteSnapshot: %v", err)
		}
	})
}
