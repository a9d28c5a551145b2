package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/silence"
)

// hanging is the directory pool as a technology that hangs.
func hanging() driver.Type {
	t := dirdrv.Type
	t.Hangs = true
	return pool.Bound(t)
}

// TestContractBehindGate runs the contract through the bounds: nothing of it is
// lost there.
func TestContractBehindGate(t *testing.T) {
	h := drivertest.Directory(hanging(), func(t *testing.T) string { return t.TempDir() })
	h.Effects = map[string]int{"Create": 3, "Publish": 7, "Resize": 2, "Delete": 3}
	drivertest.Run(t, h)
}

// TestHangingFileSystem stops the server of a real file system under an open
// pool and lets it go on.
func TestHangingFileSystem(t *testing.T) {
	far := silence.New(t)
	ctx := t.Context()
	tech := hanging()
	r := disk.Pool{ID: disk.PoolID(drivertest.NewID()), Name: "p", Path: filepath.Join(far.Dir, "p"), Owner: disk.Owner{UID: -1, GID: -1}}
	marker, err := pool.SealMarker(disk.Marker{Pool: r})
	if err == nil {
		err = os.Mkdir(r.Path, 0o711) // FUSE has no rename that keeps what is there
	}
	if err == nil {
		err = tech.Prepare(ctx, pool.Config(r), marker)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, tech, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Glance(ctx); err != nil {
		t.Errorf("a glance at a pool that is well: %v", err)
	}
	far.Stop()
	start := time.Now()
	for i := range 10 {
		if _, err := p.Glance(ctx); !errors.Is(err, errs.Unavailable) {
			t.Errorf("glance %d at a pool that hangs: %v, want unavailable", i, err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("ten glances took %v", took)
	}

	// More calls than there are workers, told to stop soon: all come back, and
	// what they were about to do is done when the server goes on, once.
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	failed := make(chan error)
	for i := range 40 {
		go func() {
			failed <- p.Driver.Create(short, driver.Spec{ID: disk.VolumeID(fmt.Sprintf("hung-%d", i)), Size: 1 << 20})
		}()
	}
	for range 40 {
		if err := <-failed; !errors.Is(err, errs.Unavailable) && !errors.Is(err, errs.Cancelled) {
			t.Errorf("a call that hangs: %v", err)
		}
	}
	if n := threads(t); n > 40 {
		t.Errorf("%d threads while calls hang", n)
	}
	far.Continue()
	if err := p.Driver.Create(ctx, driver.Spec{ID: "hung-0", Size: 1 << 20}); err != nil {
		t.Errorf("repeating a call: %v", err)
	}
	if _, err := p.Stat(ctx); err != nil {
		t.Errorf("Stat when the server goes on: %v", err)
	}

	// A daemon that ends while the server is stopped does not wait for it.
	far.Stop()
	start = time.Now()
	if err := p.Close(); err != nil && !errors.Is(err, errs.Unavailable) {
		t.Errorf("Close: %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("Close took %v", took)
	}
}

// TestNoSharingBehindGate copies between devices. What goes past the bounds, and
// would share what is promised to each, does not happen behind them; descriptors
// are there for others all the same.
func TestNoSharingBehindGate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		tech   driver.Type
		shares bool
	}{{"dir", dirdrv.Type, true}, {"dir behind the gate", hanging(), false}} {
		t.Run(tt.name, func(t *testing.T) {
			var count faultstest.Counter
			src, dst := twoDevices(t, tt.tech)
			defer faults.Install(&count)()
			if err := blkio.Copy(t.Context(), dst, src, nil); err != nil {
				t.Fatal(err)
			}
			shares := slices.ContainsFunc(count.Effects(), func(e faults.Effect) bool {
				return e.Kind == faults.Ioctl && strings.HasPrefix(e.Name, "share ")
			})
			if shares != tt.shares {
				t.Errorf("the copy tries to share extents: %v, want %v", shares, tt.shares)
			}
			want, got := make([]byte, src.Size()), make([]byte, src.Size())
			_, err := src.ReadAt(want, 0)
			if _, err2 := dst.ReadAt(got, 0); err != nil || err2 != nil || !bytes.Equal(got, want) {
				t.Errorf("the copy differs: %v, %v", err, err2)
			}
		})
	}
}

// twoDevices opens a device with data and an empty one in a new pool. Both have
// descriptors.
func twoDevices(t *testing.T, tech driver.Type) (src, dst driver.Device) {
	ctx := t.Context()
	c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(t.TempDir(), "pool"), Owner: disk.Owner{UID: -1, GID: -1}}
	if err := tech.Prepare(ctx, c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	d, _, err := tech.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	const size = 1 << 20
	volume := func(id disk.VolumeID) driver.Device {
		if err := d.Create(ctx, driver.Spec{ID: id, Size: size}); err != nil {
			t.Fatal(err)
		}
		dev, err := d.Open(ctx, driver.Ref{ID: id}, driver.Staged)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { dev.Close() })
		if _, ok := dev.(interface{ Descriptor() *os.File }); !ok {
			t.Errorf("%T has no descriptor", dev)
		}
		return dev
	}
	src, dst = volume("src"), volume("dst")
	if _, err := src.WriteAt(bytes.Repeat([]byte("data"), size/4), 0); err != nil {
		t.Fatal(err)
	}
	return src, dst
}

// threads returns how many threads this process has.
func threads(t *testing.T) (n int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(status), "\nThreads:")
	if _, err := fmt.Sscan(line, &n); err != nil {
		t.Fatal(err)
	}
	return n
}
