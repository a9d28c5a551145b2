package dirdrv_test

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
)

// TestCloseWhileCallsRun closes a pool under its users: each call ends well, or
// says that the pool is not there any more; none may touch another file that
// got the descriptor's number.
func TestCloseWhileCallsRun(t *testing.T) {
	for range 20 {
		d, _ := newPool(t, t.TempDir())
		var wg sync.WaitGroup
		begun := make(chan struct{}, 8)
		for range cap(begun) {
			wg.Go(func() {
				for first := true; ; first = false {
					id := disk.VolumeID(drivertest.NewID())
					_, err := d.Stat(t.Context())
					err = errors.Join(err, d.Create(t.Context(), driver.Spec{ID: id, Size: 4096}))
					if first {
						begun <- struct{}{}
					}
					if err == nil {
						continue
					}
					if !errors.Is(err, errs.Unavailable) {
						t.Errorf("a call on a closed pool: got %v, want kind unavailable", err)
					}
					return
				}
			})
		}
		for range cap(begun) {
			<-begun
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}

// TestNothingOutlivesClose closes a pool and a volume while their descriptors
// have copies, as a process has them that is being started: both can be opened
// again at once.
func TestNothingOutlivesClose(t *testing.T) {
	dir := t.TempDir()
	d, c := newPool(t, dir)
	r := newVolume(t, d, "v.raw", 4096, false)
	for range 2 {
		dev, err := d.Open(t.Context(), r, driver.Write)
		if err != nil {
			t.Fatal(err)
		}
		copies(t, dir)
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, _, err := dirdrv.Type.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

// copies duplicates every descriptor of something below dir.
func copies(t *testing.T, dir string) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range open {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || !strings.HasPrefix(to, dir) {
			continue
		}
		fd, _ := strconv.Atoi(e.Name())
		dup, err := unix.Dup(fd)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(dup) })
		n++
	}
	if n < 3 {
		t.Fatalf("%d descriptors below %s, want the pool's two directories and the volume", n, dir)
	}
}
