package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// dying fails renames and unlinks, and so a create and its undo, as long as it
// is set.
type dying struct{ atomic.Bool }

func (d *dying) Before(e faults.Effect) error {
	if d.Load() && (e.Kind == faults.Rename || e.Kind == faults.Unlink) {
		return syscall.EIO
	}
	return nil
}

func (d *dying) After(_ faults.Effect, err error) error { return err }

// TestAPoolWhoseStorageFailedStops has a create and its undo fail on storage
// that gives errors: the pool can be stopped, so that its storage can be mended,
// and when it is back doctor ends what was left.
func TestAPoolWhoseStorageFailedStops(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	dir := b.pool("main")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20})
	storage := &dying{}
	defer faults.Install(storage)()
	storage.Store(true)
	op := b.do(b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20}}))
	if op.State != "needs_operator" {
		t.Fatalf("the create ended as %s, %+v, want needs_operator", op.State, op.Error)
	}
	if d := mustDisk(t, b, "v/data1"); d.State != "creating" {
		t.Fatalf("the disk is %s, want creating", d.State)
	}
	b.must(b.PoolStop(ctx, none, "main"))
	if err := os.Rename(dir, dir+".away"); err != nil { // nothing holds it
		t.Fatal(err)
	}
	storage.Store(false)
	b.fails(errs.Unavailable, api.Outcome{}, second(b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20}})))
	do(t, os.Rename(dir+".away", dir))
	b.must(b.PoolStart(ctx, none, "main"))
	if _, err := b.Doctor(ctx, api.Doctor{Repair: true}); err != nil {
		t.Fatal(err)
	}
	b.silent("storage that was mended")
	if left, err := filepath.Glob(filepath.Join(dir, "*data1*")); err != nil || len(left) > 0 {
		t.Errorf("the create left %v, %v", left, err)
	}
}

// TestAPoolWithWorkDoesNotStop is the other side: an operation that runs keeps
// its pool open.
func TestAPoolWithWorkDoesNotStop(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	b.pool("main")
	b.instance("v")
	making := before(faults.Rename, "rename ")
	defer faults.Install(holds{making})()
	defer making.let()
	op := b.begin(b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20}}))
	<-making.reached
	b.fails(errs.Busy, api.Outcome{}, second(b.PoolStop(ctx, none, "main")))
	making.let()
	b.ended(op)
	b.must(b.PoolStop(ctx, none, "main"))
}
