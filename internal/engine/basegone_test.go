package engine_test

import (
	"context"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/faults"
)

// TestACreateWaitsForAPrune asks for a disk while the base that it needs is
// being pruned: the base is made again, and the disk over it.
func TestACreateWaitsForAPrune(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	b.pool("one")
	b.pool("two")
	want := b.image("i", 1<<20, "one")
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "i", Pool: "two"}))
	pruning := before(faults.Unlink, "unlink base_")
	defer faults.Install(holds{pruning})()
	defer pruning.let()
	prune := b.begin(b.CachePrune(ctx, none, api.CachePrune{}))
	<-pruning.reached
	l, err := b.Cache(ctx, api.Page{})
	do(t, err)
	pool := ""
	for _, base := range l.Items {
		if base.State == "deleting" {
			pool = base.Pool
		}
	}
	create := b.begin(b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "v", Disks: []api.DiskSpec{{Role: "root", Image: "i", Size: 1 << 20, Pool: pool}}}))
	pruning.let()
	b.ended(prune)
	b.ended(create)
	if got := b.read("v/root"); string(got) != string(want) {
		t.Errorf("the disk reads as %d bytes that are not the image's", len(got))
	}
	b.silent("a create during a prune")
}
