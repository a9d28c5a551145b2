package engine_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
)

// BenchmarkCreate makes root disks from a cached base, one at a time and by 64
// clients at once. TMPDIR says on which file system.
func BenchmarkCreate(b *testing.B) {
	for _, format := range []string{"auto", "qcow2"} {
		for _, clients := range []int{1, 64} {
			b.Run(fmt.Sprintf("format=%s/clients=%d", format, clients), func(b *testing.B) { benchmarkCreate(b, format, clients) })
		}
	}
}

func benchmarkCreate(b *testing.B, format string, clients int) {
	ctx := context.Background()
	w := newBench(b)
	over := 1000.0
	w.must(w.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "main", Driver: "dir", Path: filepath.Join(b.TempDir(), "pool"), Overcommit: &over}))
	w.image("debian", 8<<20, "")
	var n atomic.Int64
	b.SetParallelism(clients)
	b.ResetTimer()
	one := func() {
		name := fmt.Sprintf("vm%d", n.Add(1))
		out, err := w.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: name, Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: 20 << 20, Format: format}}})
		if err == nil {
			_, err = w.OperationWait(ctx, out.Operation.ID, time.Minute)
		}
		if err != nil {
			b.Error(err)
		}
	}
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
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "disks/s")
}
