package sqlite_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
)

// benchDir returns a directory on a real file system: TARN_BENCH_DIR, else the
// system's temporary one.
func benchDir(b *testing.B) string {
	b.Helper()
	dir, err := os.MkdirTemp(os.Getenv("TARN_BENCH_DIR"), "tarn-store")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// rawRate returns how many times a second one record of 4 KiB is appended and
// synced: what the device gives to one writer.
func rawRate(b *testing.B, dir string, d time.Duration) float64 {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	record := make([]byte, 4096)
	n, begin := 0, time.Now()
	for time.Since(begin) < d {
		if _, err := f.Write(record); err != nil {
			b.Fatal(err)
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			b.Fatal(err)
		}
		n++
	}
	return float64(n) / time.Since(begin).Seconds()
}

// BenchmarkCommit compares durable transactions per second with the raw rate,
// in alternating rounds. Goals: 0.6 of it with one writer, 10 times with 64.
func BenchmarkCommit(b *testing.B) {
	work := []struct {
		name string
		do   func(context.Context, *store.Store, *store.Tx, int64) error
	}{
		{"counter", func(ctx context.Context, _ *store.Store, tx *store.Tx, n int64) error {
			_, err := tx.NextGeneration(ctx, "bench")
			return err
		}},
		{"lease", func(ctx context.Context, _ *store.Store, tx *store.Tx, n int64) error {
			return tx.Leases.Update(ctx, disk.Lease{VolumeID: "v", HostID: "h", Generation: n, State: disk.LeaseHeld})
		}},
		{"operation", func(ctx context.Context, s *store.Store, tx *store.Tx, n int64) error {
			op := benchOperation()
			op.Progress.Done = n
			return s.UpdateOperation(ctx, tx, op)
		}},
		{"volume", func(ctx context.Context, _ *store.Store, tx *store.Tx, n int64) error {
			return tx.Volumes.Insert(ctx, benchVolume(n))
		}},
	}
	for _, w := range work {
		for _, writers := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/writers=%d", w.name, writers), func(b *testing.B) {
				dir := benchDir(b)
				s := open(b, sqlite.Options{Dir: dir})
				defer s.Close()
				prepareBench(b, s)
				var raw, ours, cost []float64
				var serial atomic.Int64
				for b.Loop() {
					raw = append(raw, rawRate(b, dir, 200*time.Millisecond))
					before, first := cpuTime(b), serial.Load()
					ours = append(ours, commitRate(b, s, writers, 200*time.Millisecond, func(ctx context.Context, tx *store.Tx) error {
						return w.do(ctx, s, tx, serial.Add(1))
					}))
					cost = append(cost, float64((cpuTime(b)-before).Microseconds())/float64(serial.Load()-first))
				}
				b.ReportMetric(median(raw), "raw/s")
				b.ReportMetric(median(ours), "commits/s")
				b.ReportMetric(median(ours)/median(raw), "ratio")
				b.ReportMetric(median(cost), "cpu-us/commit")
			})
		}
	}
}

func commitRate(b *testing.B, s *store.Store, writers int, d time.Duration, fn func(context.Context, *store.Tx) error) float64 {
	b.Helper()
	var all sync.WaitGroup
	var done atomic.Int64
	begin := time.Now()
	for range writers {
		all.Go(func() {
			for time.Since(begin) < d {
				if err := s.Update(b.Context(), fn); err != nil {
					b.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(begin).Seconds()
}

// cpuTime returns the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

func benchOperation() journal.Operation {
	return journal.Operation{ID: "o", Kind: "disk.create", State: journal.Running, Owner: "h", Fence: 1,
		Subject: journal.Subject{Type: "disk", ID: "k", Name: "web/root"}, Request: []byte(`{"size":10737418240,"pool":"fast"}`),
		Steps: []journal.Step{journal.NewStep("volume.create/v1", map[string]string{"volume": "019a-0001"}), journal.NewStep("disk.record/v1", nil)}}
}

func benchVolume(n int64) disk.Volume {
	id := fmt.Sprintf("019a0000-0000-7000-8000-%012x", n)
	return disk.Volume{ID: disk.VolumeID(id), PoolID: "p", Name: id + "_root0.qcow2", Kind: disk.KindDisk, State: disk.VolumeReady,
		Format: "qcow2", VirtualSize: 20 << 30, RequestedSize: 20 << 30, ClusterSize: 65536, Committed: 20 << 30,
		Backing: &disk.Backing{VolumeID: "v", Name: "base.raw", Format: "raw", Content: "b3-4m:00"}, CreatedBy: "o"}
}

func prepareBench(b *testing.B, s *store.Store) {
	b.Helper()
	err := s.Update(b.Context(), func(ctx context.Context, tx *store.Tx) error {
		base := disk.Volume{ID: "v", PoolID: "p", Name: "base.raw", Kind: disk.KindBase, State: disk.VolumeReady, Format: "raw", Content: "b3-4m:00"}
		_, _, err := s.InsertOperation(ctx, tx, benchOperation())
		return errors.Join(err,
			tx.Domains.Insert(ctx, disk.Domain{ID: "d", Identity: "fs:d", Overcommit: 1000}),
			tx.Pools.Insert(ctx, disk.Pool{ID: "p", Name: "fast", Driver: "dir", State: disk.PoolActive, DomainID: "d", DiskFormat: disk.FormatAuto}),
			tx.Volumes.Insert(ctx, base),
			tx.Leases.Insert(ctx, disk.Lease{VolumeID: "v", HostID: "h", State: disk.LeaseHeld}))
	})
	if err != nil {
		b.Fatal(err)
	}
}

// BenchmarkPage reads a page of 100 of 1,000,000 volumes. Goal: under 20 ms.
func BenchmarkPage(b *testing.B) {
	const total = 1_000_000
	s := open(b, sqlite.Options{Dir: benchDir(b)})
	defer s.Close()
	prepareBench(b, s)
	for n := int64(0); n < total; {
		err := s.Update(b.Context(), func(ctx context.Context, tx *store.Tx) error {
			for range 10_000 {
				if err := tx.Volumes.Insert(ctx, benchVolume(n)); err != nil {
					return err
				}
				n++
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	middle := string(benchVolume(total / 2).ID)
	for name, q := range map[string]store.Query{
		"first":  {Limit: 100},
		"middle": {Limit: 100, After: middle},
		"pool":   {Limit: 100, After: middle, Where: []store.Where{store.Eq("pool_id", "p")}},
		"state":  {Limit: 100, After: middle, Where: []store.Where{store.Eq("state", disk.VolumeReady), store.Eq("kind", disk.KindDisk)}},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				err := s.View(b.Context(), func(ctx context.Context, tx *store.Tx) error {
					items, _, err := tx.Volumes.List(ctx, q)
					if len(items) != 100 {
						b.Fatalf("got %d volumes, %v, want 100", len(items), err)
					}
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("base", func(b *testing.B) {
		for b.Loop() {
			err := s.View(b.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.Volumes.One(ctx, store.Eq("pool_id", "p"), store.Eq("kind", disk.KindBase), store.Eq("content", "b3-4m:00"))
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("sums", func(b *testing.B) {
		for b.Loop() {
			err := s.View(b.Context(), func(ctx context.Context, tx *store.Tx) error {
				_, err := tx.DomainSums(ctx, "d")
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
}
