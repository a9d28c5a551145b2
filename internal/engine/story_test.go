package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// pool makes a directory pool and returns its directory.
func (b *bench) pool(name string) string {
	b.t.Helper()
	dir := filepath.Join(b.t.TempDir(), name)
	b.must(b.PoolCreate(context.Background(), api.Options{}, api.PoolCreate{Name: name, Driver: "dir", Path: dir}))
	return dir
}

// instance makes an instance with the given disks.
func (b *bench) instance(name string, disks ...api.DiskSpec) {
	b.t.Helper()
	b.must(b.InstanceCreate(context.Background(), api.Options{}, api.InstanceCreate{Name: name, Disks: disks}))
}

// operations returns the kinds of all operations, in order.
func (b *bench) operations(kind string) (found []api.Operation) {
	b.t.Helper()
	ops, err := b.Operations(context.Background(), "", api.Page{Limit: -1})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, op := range ops.Items {
		if op.Kind == kind {
			found = append(found, op)
		}
	}
	return found
}

func TestManyDisksShareOneCopyOfABase(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("one")
	data := b.image("debian", 3<<20, "one")
	b.pool("two")
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			out, err := b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: fmt.Sprintf("vm%d", i), Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: 4 << 20, Pool: "two"}}})
			if err == nil {
				err = finished(ctx, b.Engine, out, nil)
			}
			if err != nil {
				t.Errorf("vm%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if copies := b.operations("cache.add"); len(copies) != 1 {
		t.Errorf("the base was copied by %d operations, want 1", len(copies))
	}
	for _, i := range []int{0, n - 1} {
		if got := b.read(fmt.Sprintf("vm%d/root", i)); !bytes.Equal(got[:len(data)], data) {
			t.Errorf("vm%d/root does not begin with the image", i)
		}
	}
}

func TestTwoImportsOfOneContentShareABase(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	path := filepath.Join(t.TempDir(), "i.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte("tarn"), 1<<18), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() {
			f, err := os.Open(path)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			out, err := b.ImageImport(ctx, api.Options{}, api.ImageImport{Name: name, Format: "raw"}, ingest.Source{File: f, Name: path})
			if err := finished(ctx, b.Engine, out, err); err != nil {
				t.Errorf("import of %s: %v", name, err)
			}
		})
	}
	wg.Wait()
	cache, err := b.Cache(ctx, api.Page{})
	if err != nil || len(cache.Items) != 1 {
		t.Fatalf("the pool has %d bases (%v), want 1", len(cache.Items), err)
	}
	slices.Sort(cache.Items[0].Images)
	if got := strings.Join(cache.Items[0].Images, " "); got != "a b c" {
		t.Errorf("the base serves images %q, want a b c", got)
	}
	for _, name := range []string{"a", "b"} {
		b.must(b.ImageDelete(ctx, api.Options{}, name))
	}
	b.instance("web1", api.DiskSpec{Role: "root", Image: "c"})
	if got := b.read("web1/root"); !bytes.HasPrefix(got, []byte("tarntarn")) {
		t.Error("the disk does not hold the image")
	}
}

func TestImagesAndTheirBases(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("one")
	b.pool("two")
	b.image("debian", 2<<20, "one")
	b.fails(errs.Exists, api.Outcome{}, second(b.ImageImport(ctx, api.Options{}, api.ImageImport{Name: "debian", Format: "raw", Pool: "one"}, ingest.Source{Stream: strings.NewReader("x"), Size: -1})))

	before := jsonOf(t, listOf(b.Volumes(ctx, "", api.Page{})))
	b.fails(errs.Conflict, api.Outcome{}, second(b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "small", Pool: "one", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: 1 << 20}}})))
	if after := jsonOf(t, listOf(b.Volumes(ctx, "", api.Page{}))); after != before {
		t.Errorf("a refused create changed the volumes:\n%s\nwere\n%s", after, before)
	}

	// The last copy of an image stays; one of two goes.
	prune := func() int {
		b.must(b.CachePrune(ctx, api.Options{}, api.CachePrune{}))
		return len(listOf(b.Cache(ctx, api.Page{})).Items)
	}
	if n := prune(); n != 1 {
		t.Errorf("prune left %d bases, want the image's only one", n)
	}
	b.must(b.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "debian", Pool: "two"}))
	if n := prune(); n != 1 {
		t.Errorf("prune of two copies left %d, want 1", n)
	}

	// A base that a disk reads from outlives its image, and goes after it.
	b.must(b.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "debian", Pool: "one"}))
	b.must(b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "web1", Pool: "one", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Format: "qcow2"}}}))
	content := b.read("web1/root")
	b.must(b.ImageDelete(ctx, api.Options{}, "debian"))
	if !bytes.Equal(b.read("web1/root"), content) {
		t.Error("deleting the image changed the disk")
	}
	if n := prune(); n != 1 {
		t.Errorf("prune left %d bases, want the referenced one", n)
	}
	b.image("debian", 1<<20, "one") // the name is free
	b.must(b.InstanceDelete(ctx, api.Options{}, "web1"))
	if n := prune(); n != 1 {
		t.Errorf("prune left %d bases, want the new image's", n)
	}
}

// second returns the error of a call whose outcome does not matter.
func second(_ api.Outcome, err error) error { return err }

// listOf returns a list and panics on an error, which the caller's test shows.
func listOf[T any](l api.List[T], err error) api.List[T] {
	if err != nil {
		panic(err)
	}
	return l
}

func TestPoolsOfOneFileSystemShareItsSpace(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("one")
	b.pool("two")
	one, two := mustPool(t, b, "one"), mustPool(t, b, "two")
	if one.Domain != two.Domain || !slices.Equal(one.SharesWith, []string{"two"}) {
		t.Fatalf("pools of one file system are in domains %s and %s", one.Domain, two.Domain)
	}
	size := one.Available/2 + 1<<30
	b.must(b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "a", Pool: "one", Disks: []api.DiskSpec{{Role: "data", Size: size}}}))
	b.fails(errs.NoSpace, api.Outcome{}, second(b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "b", Pool: "two", Disks: []api.DiskSpec{{Role: "data", Size: size}}})))
	over := 3.0
	b.must(b.PoolSet(ctx, api.Options{}, "one", api.PoolSet{Overcommit: &over}))
	if got := mustPool(t, b, "two").Overcommit; got != over {
		t.Errorf("overcommit of the other pool is %v, want the domain's %v", got, over)
	}
	b.must(b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "b", Pool: "two", Disks: []api.DiskSpec{{Role: "data", Size: size}}}))
	b.fails(errs.Exists, api.Outcome{}, second(b.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "three", Driver: "dir", Path: one.Path})))
	b.fails(errs.Conflict, api.Outcome{}, second(b.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "three", Driver: "dir", Path: one.Path + "/inside"})))
}

func mustPool(t *testing.T, b *bench, name string) api.Pool {
	t.Helper()
	p, err := b.Pool(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestRequestIDsAnswerAgain(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	o := api.Options{RequestID: "r1"}
	req := api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "data", Size: 1 << 20}}, ConfigDrive: &api.ConfigDrive{Kind: "cidata", Files: []api.ConfigFile{{Path: "user-data", Data: []byte("SECRET-1")}}}}
	first := b.must(b.InstanceCreate(ctx, o, req))
	again := b.must(b.InstanceCreate(ctx, o, req))
	if first.ID != again.ID {
		t.Errorf("the repeated request got operation %s, want %s", again.ID, first.ID)
	}
	req.Name = "web2"
	b.fails(errs.Conflict, api.Outcome{}, second(b.InstanceCreate(ctx, o, req)))
	del := b.must(b.InstanceDelete(ctx, api.Options{RequestID: "r2"}, "web1"))
	if got := b.must(b.InstanceDelete(ctx, api.Options{RequestID: "r2"}, "web1")); got.ID != del.ID {
		t.Errorf("the repeated delete got operation %s, want %s", got.ID, del.ID)
	}
	b.stop()
	defer b.start()
	for _, name := range []string{"tarn.db", "tarn.db-wal"} {
		if data, err := os.ReadFile(filepath.Join(b.state, name)); err == nil && bytes.Contains(data, []byte("SECRET-1")) {
			t.Errorf("%s holds the config drive's user data", name)
		}
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := b.pool("main")
	b.image("debian", 1<<20, "")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20})
	state := func() string {
		entries, _ := filepath.Glob(filepath.Join(dir, "*"))
		return jsonOf(t, []any{listOf(b.Instances(ctx, api.Page{})), listOf(b.Volumes(ctx, "", api.Page{})), listOf(b.Images(ctx, api.Page{})), entries, len(b.operations("instance.create"))})
	}
	before := state()
	dry := api.Options{DryRun: true}
	for name, call := range map[string]func() (api.Outcome, error){
		"pool create": func() (api.Outcome, error) {
			return b.PoolCreate(ctx, dry, api.PoolCreate{Name: "x", Driver: "dir", Path: t.TempDir() + "/x"})
		},
		"instance create": func() (api.Outcome, error) {
			return b.InstanceCreate(ctx, dry, api.InstanceCreate{Name: "x", Disks: []api.DiskSpec{{Role: "root", Image: "debian"}}})
		},
		"disk resize":     func() (api.Outcome, error) { return b.DiskResize(ctx, dry, "web1/data0", api.DiskResize{By: 1 << 20}) },
		"disk delete":     func() (api.Outcome, error) { return b.DiskDelete(ctx, dry, "web1/data0") },
		"instance delete": func() (api.Outcome, error) { return b.InstanceDelete(ctx, dry, "web1") },
		"image delete":    func() (api.Outcome, error) { return b.ImageDelete(ctx, dry, "debian") },
		"cache prune":     func() (api.Outcome, error) { return b.CachePrune(ctx, dry, api.CachePrune{}) },
	} {
		out, err := call()
		if err != nil || out.Plan == nil || out.Operation != nil {
			t.Errorf("%s: got %+v, %v, want a plan", name, out, err)
		}
	}
	if after := state(); after != before {
		t.Errorf("dry runs changed something:\n%s\nwas\n%s", after, before)
	}
}

func TestLeases(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20})
	if _, err := b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu", Target: "vdq"}); err != nil {
		t.Fatal(err)
	}
	one, err := b.DiskShow(ctx, "web1/data0", "libvirt")
	if err != nil || !strings.Contains(one.Libvirt[0], `dev="vdq"`) {
		t.Errorf("the target was not kept: %v, %v", one, err)
	}
	if _, err := b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu", Target: "vdr"}); !errors.Is(err, errs.Conflict) {
		t.Errorf("another target: got %v, want kind conflict", err)
	}
	b.fails(errs.Busy, api.Outcome{}, second(b.DiskDelete(ctx, api.Options{}, "web1/data0")))
	b.fails(errs.Busy, api.Outcome{}, second(b.DiskResize(ctx, api.Options{}, "web1/data0", api.DiskResize{By: 4096})))

	// The same boot keeps the lease over a restart, another boot drops it.
	b.restart()
	if d, _ := b.Disk(ctx, "web1/data0"); d.Attached == nil {
		t.Error("a restart of the daemon dropped the lease")
	}
	b.boot = "another-boot"
	b.restart()
	b.settled()
	if d, _ := b.Disk(ctx, "web1/data0"); d.Attached != nil {
		t.Errorf("the lease of an earlier boot is still there: %+v", d.Attached)
	}
	if _, err := b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu"}); err != nil {
		t.Errorf("attach in the new boot: %v", err)
	}

	// Another host must not take it, nor give it back, but for --force.
	b.host = "01a20000-0000-7000-8000-000000000001"
	b.restart()
	if _, err := b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu"}); !errors.Is(err, errs.Busy) {
		t.Errorf("attach on another host: got %v, want kind busy", err)
	}
	if err := b.DiskDetach(ctx, "web1/data0", api.Detach{}); !errors.Is(err, errs.Busy) {
		t.Errorf("detach on another host: got %v, want kind busy", err)
	}
	if err := b.DiskDetach(ctx, "web1/data0", api.Detach{Force: true}); err != nil {
		t.Errorf("forced detach: %v", err)
	}
}

// settled waits until no operation runs.
func (b *bench) settled() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := b.Settle(ctx); err != nil {
		b.t.Fatal(err)
	}
}

func TestResizeRules(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.image("debian", 1<<20, "")
	b.instance("web1", api.DiskSpec{Role: "root", Image: "debian", Size: 2 << 20}, api.DiskSpec{Role: "swap", Size: 2 << 20},
		api.DiskSpec{Role: "data", Size: 2 << 20}, api.DiskSpec{Role: "data", Size: 2 << 20, Format: "qcow2"}, api.DiskSpec{Role: "ephemeral", Size: 16 << 20, FS: "ext4"})
	for _, row := range []struct {
		disk   string
		to     int64
		shrink bool
		want   errs.Kind // empty: works
	}{
		{"web1/root", 1 << 20, false, errs.Unsafe},
		{"web1/root", 1 << 20, true, errs.Unsafe},
		{"web1/ephemeral0", 8 << 20, true, errs.Unsafe},
		{"web1/data1", 1 << 20, true, errs.Unsafe}, // qcow2
		{"web1/swap", 1 << 20, false, errs.Unsafe},
		{"web1/swap", 1 << 20, true, ""},
		{"web1/data0", 1 << 20, true, ""},
		{"web1/data0", 3<<20 + 1, false, ""},
		{"web1/data1", 65 << 40, false, errs.Invalid},
	} {
		out, err := b.DiskResize(ctx, api.Options{}, row.disk, api.DiskResize{Size: row.to, Shrink: row.shrink})
		if row.want != "" {
			b.fails(row.want, out, err)
			continue
		}
		b.must(out, err)
		if d, _ := b.Disk(ctx, row.disk); d.Size < row.to || d.Size >= row.to+4096 {
			t.Errorf("%s has %d bytes after a resize to %d", row.disk, d.Size, row.to)
		}
	}
}

func TestEventsAreResumable(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	b := newBench(t)
	b.pool("main")
	var seen []api.Event
	for ev, err := range b.Events(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, ev)
		if ev.Type == "operation.done" {
			break
		}
	}
	if len(seen) < 2 || seen[0].Type != "operation.queued" {
		t.Fatalf("got events %+v", seen)
	}
	for ev, err := range b.Events(ctx, seen[0].ID) {
		if err != nil || ev.ID != seen[1].ID {
			t.Errorf("resuming after %d gave %d, %v, want %d", seen[0].ID, ev.ID, err, seen[1].ID)
		}
		break
	}
	next := make(chan api.Event, 1)
	go func() {
		for ev := range b.Events(ctx, seen[len(seen)-1].ID) {
			next <- ev
			return
		}
	}()
	b.instance("web1")
	if ev := <-next; ev.Subject.Name != "web1" {
		t.Errorf("a follower got %+v, want the instance's operation", ev)
	}
}
