package dirdrv_test

import (
	"errors"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
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
