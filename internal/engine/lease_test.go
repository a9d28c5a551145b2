package engine_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// probed is a directory pool that calls behind once when it has found a volume
// unlocked.
type probed struct {
	driver.Driver
	driver.Attacher
	driver.Prober
	behind *atomic.Pointer[func()]
}

func (p probed) Probe(ctx context.Context, r driver.Ref) error {
	err := p.Prober.Probe(ctx, r)
	if call := p.behind.Swap(nil); call != nil {
		(*call)()
	}
	return err
}

// probing has b's pools call what behind holds.
func probing(b *bench) (behind *atomic.Pointer[func()]) {
	behind = &atomic.Pointer[func()]{}
	typ := dirdrv.Type
	typ.Open = func(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
		d, caps, err := dirdrv.Type.Open(ctx, c)
		if err != nil {
			return nil, caps, err
		}
		return probed{d, d.(driver.Attacher), d.(driver.Prober), behind}, caps, nil
	}
	b.stop()
	b.configure = func(c *engine.Config) { c.Types = []driver.Type{typ} }
	b.start()
	return behind
}

// released waits for the end of an operation that releases leases, begun after
// call began.
func (b *bench) released(call func()) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	before := len(b.operations("lease.release"))
	call()
	for _, err := range b.Events(ctx, 0) {
		if err != nil {
			b.t.Fatal(err)
		}
		if ops := b.operations("lease.release"); len(ops) > before && ops[0].State == "done" {
			return
		}
	}
}

// TestALeaseGrantedMeanwhileStays attaches a disk anew, and starts a guest on
// it, between the moment in which a detach, or the release of an earlier boot's
// leases, has seen that nobody uses it and the moment in which the lease goes.
func TestALeaseGrantedMeanwhileStays(t *testing.T) {
	ctx := context.Background()
	for _, name := range []string{"detach", "release"} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			behind := probing(b)
			b.pool("main")
			b.pool("spare")
			b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "main"})
			attach := func() { do(t, second2(b.DiskAttach(ctx, "v/data0", api.Attach{As: "qemu"}))) }
			attach()
			path := mustDisk(t, b, "v/data0").Path
			if name == "release" {
				let := lockedByQEMU(t, path) // so that the start keeps the lease
				b.boot = "another-boot"
				b.restart()
				let()
			}
			anew := func() {
				do(t, b.DiskDetach(ctx, "v/data0", api.Detach{Force: true}))
				attach()
				t.Cleanup(lockedByQEMU(t, path))
			}
			behind.Store(&anew)
			if name == "detach" {
				if err := b.DiskDetach(ctx, "v/data0", api.Detach{}); !errors.Is(err, errs.Busy) {
					t.Errorf("detach: got %v, want kind busy", err)
				}
			} else {
				b.must(b.PoolStop(ctx, api.Options{}, "spare"))
				b.released(func() { b.must(b.PoolStart(ctx, api.Options{}, "spare")) })
			}
			if behind.Load() != nil {
				t.Error("nobody looked at the locks")
			}
			if d := mustDisk(t, b, "v/data0"); d.Attached == nil {
				t.Error("the lease of a guest that runs is gone")
			}
		})
	}
}

// TestOldLeasesAreReleasedAroundABusyOne has an operation at work on a volume
// while the leases of an earlier boot are released: the others' go at once, its
// own when it has ended.
func TestOldLeasesAreReleasedAroundABusyOne(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	b.pool("main")
	b.pool("spare")
	refs := []string{"v/data0", "w/data0", "w/data1", "w/data2"}
	data := api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "main"}
	b.instance("v", data)
	b.instance("w", data, data, data)
	var lets []func()
	for _, ref := range refs {
		do(t, second2(b.DiskAttach(ctx, ref, api.Attach{As: "qemu"})))
		lets = append(lets, lockedByQEMU(t, mustDisk(t, b, ref).Path))
	}
	b.boot = "another-boot"
	b.restart()
	for _, let := range lets {
		let()
	}
	renaming := before(faults.Rename, "rename "+filepath.Base(mustDisk(t, b, "v/data0").Path)+".tarn.json")
	remove := faults.Install(holds{renaming})
	defer remove()
	defer renaming.let()
	op := b.begin(b.InstanceRename(ctx, none, "v", "v2"))
	<-renaming.reached
	b.released(func() {
		b.must(b.PoolStop(ctx, none, "spare"))
		b.must(b.PoolStart(ctx, none, "spare"))
	})
	b.settledBut(op.ID)
	for _, ref := range refs[1:] {
		if d := mustDisk(t, b, ref); d.Attached != nil {
			t.Errorf("the lease of %s is still there", ref)
		}
	}
	if d := mustDisk(t, b, "v2/data0"); d.Attached == nil {
		t.Error("the lease of a volume that an operation is at work on is gone")
	}
	b.released(func() {
		renaming.let()
		b.ended(op)
	})
	if d := mustDisk(t, b, "v2/data0"); d.Attached != nil {
		t.Error("the lease is still there when the operation has ended")
	}
	b.silent("leases that were released around an operation")
}

// settledBut waits until no operation but one runs.
func (b *bench) settledBut(id string) {
	b.t.Helper()
	for _, op := range b.operations("lease.release") {
		if op.ID != id {
			b.ended(op)
		}
	}
}
