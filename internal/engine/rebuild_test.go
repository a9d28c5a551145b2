package engine_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
)

// openIn returns what this process holds open in dir.
func openIn(t *testing.T, dir string) []string {
	t.Helper()
	fds, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(fds) == 0 {
		t.Fatalf("no open files: %v", err)
	}
	var in []string
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, dir) {
			in = append(in, to)
		}
	}
	return in
}

// TestTheHighestGenerationWins renames an image and an instance after the clock
// was set back, loses the database and takes back a pool that still says the old
// names, before or after the one that says the new ones.
func TestTheHighestGenerationWins(t *testing.T) {
	for name, oldFirst := range map[string]bool{"the new names first": false, "the old names first": true} {
		t.Run(name, func(t *testing.T) {
			ctx := context.Background()
			b := newBench(t)
			at := time.Now()
			b.configure = func(c *engine.Config) { c.Clock = func() time.Time { return at } }
			b.restart()
			pools := []string{b.pool("one"), b.pool("two")}
			b.image("i", 8192, "one")
			b.must(b.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "i", Pool: "two"}))
			b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "one"}, api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "two"})
			before := filepath.Join(t.TempDir(), "two")
			if err := os.CopyFS(before, os.DirFS(pools[1])); err != nil {
				t.Fatal(err)
			}
			b.stop()
			at = at.Add(-time.Hour)
			b.start()
			b.must(b.ImageRename(ctx, api.Options{}, "i", "j"))
			b.must(b.InstanceRename(ctx, api.Options{}, "web1", "web2"))
			b.loseDatabase()
			pools[1] = before
			if oldFirst {
				pools[0], pools[1] = pools[1], pools[0]
			}
			for _, dir := range pools {
				b.must(b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: dir}))
			}
			mustImage(t, b, "j")
			if i, err := b.Instance(ctx, "web2"); err != nil || len(i.Disks) != 2 {
				t.Errorf("the instance is %+v, %v, want web2 with two disks", i, err)
			}
		})
	}
}

// soonTrue demands that holds does before long.
func soonTrue(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for start := time.Now(); !holds(); runtime.Gosched() {
		if time.Since(start) > 10*time.Second {
			t.Fatalf("%s: not in ten seconds", what)
		}
	}
}

// TestImportBesideAnotherPool imports the pool of another host from within a pool
// of this one.
func TestImportBesideAnotherPool(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	dir := t.TempDir()
	other := newBench(t)
	other.stop()
	other.host = "11111111-2222-3333-4444-555555555555"
	other.start()
	in := filepath.Join(dir, "in")
	other.must(other.PoolCreate(ctx, none, api.PoolCreate{Name: "theirs", Driver: "dir", Path: in}))
	other.stop()
	other.stop = func() {}
	b := newBench(t)
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "ours", Driver: "dir", Path: dir, Define: true}))
	out, err := b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: in})
	b.fails(errs.Conflict, out, err)
}

// TestAnImportThatIsNotMadeStopsTheStorage rehearses the import of a pool on a
// device, and imports one whose name is taken: neither stays mounted.
func TestAnImportThatIsNotMadeStopsTheStorage(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	r := fsPool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	b.must(b.PoolDelete(ctx, none, "main", true))
	unmounted := func() bool { return must(mounted.Source(r.Path)) == "" }
	out, err := b.PoolImport(ctx, api.Options{DryRun: true}, imported(r))
	if err != nil || out.Plan == nil {
		t.Errorf("the rehearsal of an import: %+v, %v, want a plan", out, err)
	}
	if !unmounted() {
		t.Error("behind the rehearsal of an import the pool is mounted")
	}
	b.pool("main")
	out, err = b.PoolImport(ctx, none, imported(r))
	b.fails(errs.Exists, out, err)
	soonTrue(t, "a pool that was not imported is unmounted", unmounted)
}

// TestAnImportThatConflictsLeavesNothingOpen imports pools that the records have
// no room for.
func TestAnImportThatConflictsLeavesNothingOpen(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := b.pool("main")
	again := filepath.Join(t.TempDir(), "again")
	if err := os.CopyFS(again, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	b.fails(errs.Exists, api.Outcome{}, second(b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: again})))

	other := newBench(t)
	namesake := other.pool("main")
	other.stop()
	other.stop = func() {}
	out, err := b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: namesake})
	b.fails(errs.Exists, out, err)
	for _, dir := range []string{again, namesake} {
		soonTrue(t, "an import that failed holds nothing open in "+dir, func() bool { return len(openIn(t, dir)) == 0 })
	}
	if len(openIn(t, dir)) == 0 {
		t.Error("the pool on record is no longer open")
	}
	b.silent("two imports that failed")
}

// TestGrantsGoOnBehindALostDatabase: a lease granted after a pool was imported
// has a higher generation than the one the pool remembers.
func TestGrantsGoOnBehindALostDatabase(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20})
	granted := func() int64 {
		t.Helper()
		if _, err := b.InstanceAttach(ctx, "web1", api.Attach{As: "qemu"}); err != nil {
			t.Fatal(err)
		}
		side, err := filepath.Glob(filepath.Join(dir, "*_data0.*.tarn.json"))
		if err != nil || len(side) != 1 {
			t.Fatalf("sidecars %v, %v", side, err)
		}
		text, err := os.ReadFile(side[0])
		if err != nil {
			t.Fatal(err)
		}
		var s struct {
			Record struct {
				Lease struct {
					Generation int64 `json:"generation"`
				} `json:"lease"`
			} `json:"record"`
		}
		if err := json.Unmarshal(text, &s); err != nil || s.Record.Lease.Generation == 0 {
			t.Fatalf("the sidecar has no lease: %v\n%s", err, text)
		}
		return s.Record.Lease.Generation
	}
	last := granted()
	for range 3 {
		if err := b.InstanceDetach(ctx, "web1", api.Detach{}); err != nil {
			t.Fatal(err)
		}
		last = granted()
	}
	b.loseDatabase()
	b.must(b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: dir}))
	if err := b.InstanceDetach(ctx, "web1", api.Detach{Force: true}); err != nil {
		t.Fatal(err)
	}
	if now := granted(); now <= last {
		t.Errorf("the lease after the loss has the generation %d, the one before had %d", now, last)
	}
}
