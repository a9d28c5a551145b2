package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/all"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/test/system/silence"
)

// TestAPoolThatHangsStallsNobodyElse stops the server of one pool's file system:
// what looks at pools, works on another one, or starts and stops the daemon does
// not wait for it, and when the server goes on so does the pool.
func TestAPoolThatHangsStallsNobodyElse(t *testing.T) {
	f := silence.New(t)
	ctx := context.Background()
	none := api.Options{}
	hanging := dirdrv.Type
	hanging.Name, hanging.Hangs = "hanging", true
	b := &bench{t: t, state: t.TempDir(), configure: func(c *engine.Config) { c.Types = append(all.Types(), hanging) }}
	b.start()
	t.Cleanup(func() { b.stop() })
	b.pool("main")
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "far", Driver: "hanging", Path: mkdir(t, f.Dir, "far")}))
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "away", Driver: "hanging", Path: mkdir(t, f.Dir, "away")}))
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "far"})
	well := mustPool(t, b, "far")
	if well.State != "active" || well.Capacity == 0 {
		t.Fatalf("the pool is %+v", well)
	}

	stopping := &atFirstEffect{do: f.Stop}
	remove := faults.Install(stopping)
	caught, err := b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "far"}})
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); !stopping.done.Load(); runtime.Gosched() {
		if time.Since(start) > time.Minute {
			t.Fatalf("nothing is done to the pool: %+v", b.inState(""))
		}
	}
	remove()
	soon := func(what string, do func()) {
		t.Helper()
		start := time.Now()
		do()
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s took %v while a pool hangs", what, took)
		}
	}
	degraded := func(known bool) {
		t.Helper()
		soon("pool list", func() {
			pools, err := b.Pools(ctx, api.Page{})
			if err != nil || len(pools.Items) != 3 {
				t.Fatalf("pools %+v, %v", pools.Items, err)
			}
			for _, p := range pools.Items {
				if want := map[bool]string{true: "active", false: "degraded"}[p.Name == "main"]; p.State != want {
					t.Errorf("pool %s is %s, want %s", p.Name, p.State, want)
				}
			}
		})
		soon("pool show", func() {
			if p := mustPool(t, b, "far"); p.State != "degraded" || known && p.Capacity != well.Capacity {
				t.Errorf("the pool is %s with a capacity of %d, want degraded with %d", p.State, p.Capacity, well.Capacity)
			}
		})
		soon("disk show", func() { mustDisk(t, b, "v/data0") })
		soon("doctor of another pool", func() {
			if r, err := b.Doctor(ctx, api.Doctor{Pool: "main"}); err != nil || len(r.Problems) > 0 {
				t.Errorf("doctor of another pool: %+v, %v", r, err)
			}
		})
	}
	degraded(true)
	begun := make(chan api.Operation)
	go func() {
		out, err := b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "far"}})
		if errs.KindOf(err) != errs.Unavailable {
			t.Errorf("a disk in the pool that hangs: %+v, %v, want unavailable", out, err)
		}
		close(begun)
	}()
	soon("an instance in another pool", func() { b.instance("w", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "main"}) })
	degraded(true)
	<-begun
	for start := time.Now(); len(b.inState("undoing")) == 0; runtime.Gosched() {
		if time.Since(start) > time.Minute {
			t.Fatalf("what hangs is not being undone: %+v", b.inState(""))
		}
	}
	b.told("far", "active degraded")
	if os.Getenv("TARN_SLOW") != "" {
		time.Sleep(90 * time.Second) // in which its undo would be tried more often than is counted
	}
	if asking := b.inState("needs_operator"); len(asking) > 0 {
		t.Errorf("an operator is asked for %+v", asking)
	}
	soon("the daemon's stop", func() { b.stop() })
	soon("the daemon's start", func() { b.start() })
	degraded(false)

	f.Continue()
	for start := time.Now(); mustPool(t, b, "far").State != "active"; runtime.Gosched() {
		if time.Since(start) > time.Minute {
			t.Fatalf("a minute after its server went on the pool is %s", mustPool(t, b, "far").State)
		}
	}
	b.told("far", "active degraded active")
	if err := b.Settle(ctx); err != nil {
		t.Errorf("what was left: %v", err)
	}
	if o, err := b.Operation(ctx, caught.Operation.ID); err != nil || o.State != "failed" || o.Error.Kind != errs.Unavailable {
		t.Errorf("the operation that met the silence: %+v, %v; want it failed as unavailable", o, err)
	}
	b.must(b.DiskCreate(ctx, none, api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "far"}}))
	b.silent("a pool that goes on")
}

// atFirstEffect does something right before the first effect on the world, but for
// those on records.
type atFirstEffect struct {
	do   func()
	once sync.Once
	done atomic.Bool
}

func (a *atFirstEffect) Before(e faults.Effect) error {
	if e.Kind != faults.Tx {
		a.once.Do(func() { a.do(); a.done.Store(true) })
	}
	return nil
}

func (a *atFirstEffect) After(_ faults.Effect, err error) error { return err }

func (b *bench) inState(state string) []api.Operation {
	b.t.Helper()
	l, err := b.Operations(context.Background(), state, api.Page{})
	if err != nil {
		b.t.Fatal(err)
	}
	return l.Items
}

func mkdir(t *testing.T, dir, name string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.Mkdir(path, 0o711); err != nil {
		t.Fatal(err)
	}
	return path
}
