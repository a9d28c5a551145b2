package engine_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// told waits until as many states of a pool were told as want names, which they
// have to be.
func (b *bench) told(pool, want string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var states []string
	for ev, err := range b.Events(ctx, 0) {
		if err != nil {
			break
		}
		state := strings.TrimPrefix(ev.Type, "pool.")
		if ev.Subject.Name == pool && slices.Contains([]string{"active", "full", "degraded", "inactive"}, state) {
			states = append(states, state)
		}
		if len(states) == len(strings.Fields(want)) {
			break
		}
	}
	if got := strings.Join(states, " "); got != want {
		b.t.Errorf("pool %s was told to be %q, want %q", pool, got, want)
	}
}

// TestFullPool: a pool that is full says so with the numbers, refuses what is new
// with them, lets go of what it has, and tells each change once, restarts between.
func TestFullPool(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	b.pool("p")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "p"}, api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "p"})
	b.image("img", 1<<20, "p")
	b.instance("w", api.DiskSpec{Role: "root", Image: "img", Pool: "p"})
	p := mustPool(t, b, "p")
	if p.State != "active" || p.Reason != "" || p.Free == 0 {
		t.Fatalf("the pool is %+v, want active", p)
	}
	set := func(reserve string) { b.must(b.PoolSet(ctx, none, "p", api.PoolSet{Reserve: &reserve})) }
	set("1000T")
	if p = mustPool(t, b, "p"); p.State != "full" || !strings.Contains(p.Reason, "the reserve is 1000 TiB") {
		t.Errorf("the pool is %s, %q; want full with the numbers", p.State, p.Reason)
	}
	b.told("p", "active full")
	b.stop()
	b.start()
	out, err := b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "p"}})
	b.fails(errs.NoSpace, out, err)
	if err != nil && !strings.Contains(err.Error(), "0 B of") {
		t.Errorf("the refusal says %q, want the numbers", err)
	}
	b.must(b.DiskDelete(ctx, none, "v/data0"))
	b.must(b.InstanceDelete(ctx, none, "w"))
	b.must(b.ImageDelete(ctx, none, "img"))
	b.must(b.CachePrune(ctx, none, api.CachePrune{}))
	set("0%")
	if p = mustPool(t, b, "p"); p.State != "active" {
		t.Errorf("the pool is %s, %q; want active", p.State, p.Reason)
	}
	b.told("p", "active full active")
	b.must(b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "p"}}))
	b.must(b.PoolStop(ctx, none, "p"))
	b.told("p", "active full active inactive")
}
