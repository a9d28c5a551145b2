package engine_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/faults"
)

// TestAShrinkThatHasCutIsNotTakenBack cancels a shrink when the volume is cut
// already: no size that it had before may be told of it.
func TestAShrinkThatHasCutIsNotTakenBack(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 8 << 20, Format: "raw"})
	path := mustDisk(t, b, "web1/data0").Path
	want := bytes.Repeat([]byte("tarn"), 1<<20)
	if err := os.WriteFile(path, append(bytes.Clone(want), make([]byte, 4<<20)...), 0); err != nil {
		t.Fatal(err)
	}
	cut := behind(faults.Ioctl, "file.truncate ")
	defer faults.Install(holds{cut})()
	defer cut.let()
	op := b.begin(b.DiskResize(ctx, api.Options{}, "web1/data0", api.DiskResize{Size: 4 << 20, Shrink: true}))
	<-cut.reached
	if _, err := b.OperationCancel(ctx, op.ID); err != nil {
		t.Fatal(err)
	}
	cut.let()
	if op, err := b.OperationWait(ctx, op.ID, time.Minute); err != nil || op.State != "cancelled" {
		t.Fatalf("the shrink ended as %s, %v, want cancelled", op.State, err)
	}
	if d := mustDisk(t, b, "web1/data0"); d.Size != 4<<20 {
		t.Errorf("the disk is recorded with %d bytes, want what is left of it, %d", d.Size, 4<<20)
	}
	if got := b.read("web1/data0"); !bytes.Equal(got, want) {
		t.Errorf("the disk reads as %d bytes, want the first %d as they were", len(got), len(want))
	}
	b.silent("a shrink that was cancelled too late")
}

// TestDeletesTakeTheBallastBack takes the pools' ballast away, as a full pool
// does, before everything that frees space.
func TestDeletesTakeTheBallastBack(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	ballast := filepath.Join(b.pool("main"), ".tarn-tmp", "ballast")
	b.pool("two")
	b.image("i", 8192, "main")
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "i", Pool: "two"}))
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "main"}, api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "main"})
	for _, row := range []struct {
		name string
		do   func() (api.Outcome, error)
	}{
		{"disk delete", func() (api.Outcome, error) { return b.DiskDelete(ctx, none, "web1/data0") }},
		{"instance delete", func() (api.Outcome, error) { return b.InstanceDelete(ctx, none, "web1") }},
		{"cache prune", func() (api.Outcome, error) { return b.CachePrune(ctx, none, api.CachePrune{Pool: "two"}) }},
		{"image delete", func() (api.Outcome, error) { return b.ImageDelete(ctx, none, "i") }},
		{"pool delete", func() (api.Outcome, error) { return b.PoolDelete(ctx, none, "two", false) }},
	} {
		taken := behind(faults.Create, "create ballast")
		taken.let()
		remove := faults.Install(holds{taken})
		err := os.Remove(ballast)
		b.must(row.do())
		select {
		case <-taken.reached:
		case <-time.After(time.Minute):
			err = errors.Join(err, errors.New("nothing took the ballast back"))
		}
		remove()
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
	}
}

// asked is a context that calls back when it is asked the n-th time whether it
// has ended.
type asked struct {
	context.Context
	left atomic.Int64
	call func()
}

func (a *asked) Err() error {
	if a.left.Add(-1) == 0 {
		a.call()
	}
	return a.Context.Err()
}

// TestNoExportOfWhatWasLeasedMeanwhile attaches a disk at every moment of an
// export: one of the two is refused.
func TestNoExportOfWhatWasLeasedMeanwhile(t *testing.T) {
	b := newBench(t)
	b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 64 << 10})
	attached := 0
	for n := int64(1); ; n++ {
		attach := errs.New(errs.Internal, "", "", "not called")
		ctx := &asked{Context: context.Background()}
		var err error = attach
		ctx.call = func() { _, err = b.DiskAttach(context.Background(), "web1/data0", api.Attach{As: "qemu"}) }
		ctx.left.Store(n)
		exported := b.DiskExport(ctx, "web1/data0", api.Export{Format: "raw"}, engine.Sink{Stream: &bytes.Buffer{}}, nil)
		switch {
		case err == attach: // the export is over before
			if exported != nil {
				t.Errorf("an export that nothing disturbs: %v", exported)
			}
			if attached == 0 {
				t.Error("the disk was never attached before the export had its locks")
			}
			return
		case err == nil:
			attached++
			if !errors.Is(exported, errs.Busy) {
				t.Errorf("attached at question %d, the export ended with %v, want %s", n, exported, errs.Busy)
			}
			if err := b.DiskDetach(context.Background(), "web1/data0", api.Detach{}); err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, errs.Busy) || exported != nil:
			t.Errorf("at question %d attach ended with %v, want %s, and the export with %v", n, err, errs.Busy, exported)
		}
	}
}

// TestPoolStartReleasesOldLeases reboots a host while a pool is away: its leases
// are released when the pool is back.
func TestPoolStartReleasesOldLeases(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.stop()
	b.boot = "earlier"
	b.start()
	dir := b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20})
	if _, err := b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu"}); err != nil {
		t.Fatal(err)
	}
	b.stop()
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	b.boot = ""
	b.start()
	if d := mustDisk(t, b, "web1/data0"); d.Attached == nil {
		t.Fatal("the lease was released while nobody could look at the locks")
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	b.must(b.PoolStart(ctx, api.Options{}, "main"))
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for ev, err := range b.Events(waiting, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Type == "operation.done" && ev.Subject.Type == "host" {
			break
		}
	}
	if d := mustDisk(t, b, "web1/data0"); d.Attached != nil {
		t.Errorf("the lease of an earlier boot is still there: %+v", d.Attached)
	}
	b.silent("a pool that came back")
}
