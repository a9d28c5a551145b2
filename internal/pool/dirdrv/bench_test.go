package dirdrv_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// TestCreateCostsThreeSyncs holds the price of a durable volume.
func TestCreateCostsThreeSyncs(t *testing.T) {
	d, _ := newPool(t, t.TempDir())
	var count faultstest.Counter
	remove := faults.Install(&count)
	defer remove()
	newVolume(t, d, "v", 1<<20, false)
	n := 0
	for _, e := range count.Effects() {
		if e.Kind == faults.Sync {
			n++
		}
	}
	if n != 3 {
		t.Errorf("create and publish made %d syncs, want 3: %v", n, count.Effects())
	}
}

func BenchmarkCreatePublish(b *testing.B) {
	d, _ := newPool(b, fsloop.XFS(b, 2<<30).Dir)
	for b.Loop() {
		newVolume(b, d, drivertest.NewID(), 1<<30, false)
	}
}

// syncCounter counts the syncs of a benchmark.
type syncCounter struct{ n atomic.Int64 }

func (c *syncCounter) Before(e faults.Effect) error {
	if e.Kind == faults.Sync {
		c.n.Add(1)
	}
	return nil
}
func (c *syncCounter) After(_ faults.Effect, err error) error { return err }

func BenchmarkCreatePublish64(b *testing.B) {
	d, _ := newPool(b, fsloop.XFS(b, 2<<30).Dir)
	var count syncCounter
	defer faults.Install(&count)()
	b.SetParallelism(32) // on 2 processors
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			newVolume(b, d, drivertest.NewID(), 1<<30, false)
		}
	})
	b.ReportMetric(float64(count.n.Load())/float64(b.N), "syncs/op")
}

func BenchmarkClone(b *testing.B) {
	for _, kind := range []string{"xfs", "btrfs"} {
		for _, extents := range []int64{1, 2000, 20000} {
			b.Run(fmt.Sprintf("%s/extents=%d", kind, extents), func(b *testing.B) {
				d, _ := newPool(b, fsloop.New(b, kind, 4<<30).Dir)
				base := fragmented(b, d, extents)
				for b.Loop() {
					id := disk.VolumeID(drivertest.NewID())
					if err := d.(driver.Cloner).Clone(b.Context(), driver.Spec{ID: id, Size: 4 << 30}, base); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := d.Delete(b.Context(), driver.Ref{ID: id}); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
				}
			})
		}
	}
}

// fragmented makes a base with 64 KiB of data in every 128 KiB, or with one
// extent of 64 MiB.
func fragmented(b *testing.B, d driver.Driver, extents int64) driver.Ref {
	b.Helper()
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "base"}
	length := int64(64 << 10)
	if extents == 1 {
		length = 64 << 20
	}
	if err := d.Create(b.Context(), driver.Spec{ID: r.ID, Size: 2 * length * extents}); err != nil {
		b.Fatal(err)
	}
	dev, err := d.Open(b.Context(), driver.Ref{ID: r.ID}, driver.Staged)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, length)
	for i := range data {
		data[i] = 1
	}
	for i := range extents {
		if _, err := dev.WriteAt(data, 2*length*i); err != nil {
			b.Fatal(err)
		}
	}
	if err := dev.Close(); err != nil {
		b.Fatal(err)
	}
	if _, err := d.Publish(b.Context(), r.ID, r.Name, true, []byte("sidecar")); err != nil {
		b.Fatal(err)
	}
	return r
}
