package pool_test

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
)

// BenchmarkCreateOverlay makes overlays with their sidecars, by one and by 64
// at once: what a root disk from a cached base costs without records, journal
// and API. TMPDIR says on which file system.
func BenchmarkCreateOverlay(b *testing.B) {
	for _, clients := range []int{1, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) { benchmarkCreate(b, clients) })
	}
}

// syncs counts syncs.
type syncs struct{ n atomic.Int64 }

func (c *syncs) Before(e faults.Effect) error {
	if e.Kind == faults.Sync {
		c.n.Add(1)
	}
	return nil
}

func (c *syncs) After(_ faults.Effect, err error) error { return err }

func benchmarkCreate(b *testing.B, clients int) {
	s := newShelf(b, b.TempDir(), diskfmt.Qcow2)
	var count syncs
	defer faults.Install(&count)()
	one := func() {
		v := s.record(uuid.NewString(), 4<<30)
		v.Backing = &disk.Backing{VolumeID: "base", Name: "base.raw", Format: diskfmt.Raw}
		if _, err := s.Create(s.ctx, disk.Sidecar{Volume: v}, pool.Making{Method: plan.Overlay, First: true}); err != nil {
			b.Error(err)
		}
	}
	b.ReportAllocs()
	b.SetParallelism(clients)
	b.ResetTimer()
	cpu := spent()
	if clients == 1 {
		for range b.N {
			one()
		}
	} else {
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				one()
			}
		})
	}
	b.ReportMetric(float64((spent()-cpu).Microseconds())/float64(b.N), "cpu-µs/op")
	b.ReportMetric(float64(count.n.Load())/float64(b.N), "syncs/op")
}

// spent returns the CPU time of this process.
func spent() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
