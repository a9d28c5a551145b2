// Package lost_test loses the database: everything comes back from what stands
// beside the volumes, without a person and without looking into any disk.
package lost_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver of the newer tarn

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/storage"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// world is a daemon with the pools main and fast; web1 has its root in one and
// its data in the other.
type world struct {
	t     *testing.T
	d     *tarntest.Daemon
	pools map[string]*storage.Storage
}

func newWorld(t *testing.T) *world { return newWorldOn(t, storage.Directory) }

func newWorldOn(t *testing.T, tech storage.Technology) *world {
	w := &world{t: t, pools: map[string]*storage.Storage{}}
	w.d = tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	for _, name := range []string{"main", "fast"} {
		w.pools[name] = tech.New(t, 128<<20)
		w.d.Must(append([]string{"pool", "create", name, "--overcommit", "2", "--reserve", "1%"}, w.pools[name].Args...)...)
	}
	image := tarntest.WriteFile(t, "img", append(tarntest.Pattern(3, 500_000), make([]byte, 1<<20-500_000)...))
	w.d.Must("image", "import", "debian", image, "--format", "raw", "--pool", "main", "--min-disk", "2M")
	w.d.Must("image", "import", "twin", image, "--format", "raw", "--pool", "fast")
	w.d.Must("instance", "create", "web1", "--root", "debian:3M,pool=main,disk-format="+tech.QCOW2(), "--ephemeral", "8M,fs=ext4,pool=main",
		"--swap", "1M,pool=fast", "--data", "2M,pool=fast,bus=scsi,cache=writeback,disk-format=raw", "--data", "5M,pool=fast,disk-format="+tech.QCOW2())
	w.d.Must("instance", "create", "web2", "--root", "debian:2M,disk-format=raw,pool=fast", "--cdrom", "twin", "--pool", "main")
	w.d.Must("disk", "resize", "web1/data0", "+1M")
	w.d.Must("disk", "attach", "web1/data0", "--as", "libvirt", "--target", "sdc")
	return w
}

func (w *world) importPools(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.d.Must(append([]string{"pool", "import"}, w.pools[name].Args...)...)
	}
}

// moving are numbers that the storage's other users change, or that are measured
// anew; what is reserved is a part of the capacity.
var moving = regexp.MustCompile(`"(capacity|reserved|foreign|available|allocated|allocated_size|foreign_at|free|data_percent|metadata_percent|time_to_full_seconds)": [^,\n]+,?\n *`)

// shown is all that tarn shows, without what may differ.
func (w *world) shown() string {
	w.t.Helper()
	var all string
	for _, noun := range []string{"pool", "image", "volume", "instance", "disk"} {
		all += w.d.Must(noun, "list", "-o", "json").Stdout
	}
	all = moving.ReplaceAllString(all, "")
	return regexp.MustCompile(`"attached": (null|\{[^}]*\})`).ReplaceAllString(all, `"attached": -`)
}

// reserves asks that each pool still reserves what newWorld said.
func (w *world) reserves() {
	w.t.Helper()
	for _, p := range tarntest.Get[api.List[api.Pool]](w.d, "pool", "list").Items {
		if p.Reserved != p.Capacity/1000*10 {
			w.t.Errorf("pool %s reserves %d of %d bytes, want 1%%", p.Name, p.Reserved, p.Capacity)
		}
	}
}

func (w *world) attached(ref string) *api.Lease {
	w.t.Helper()
	return tarntest.Get[api.Disk](w.d, "disk", "show", ref).Attached
}

func TestLostDatabaseEverywhere(t *testing.T) {
	storage.Run(t, []storage.Technology{storage.Directory}, func(t *testing.T, tech storage.Technology) {
		if storage.Given() != nil {
			everythingComesBack(t, tech, 1, "fast", "main")
			return
		}
		everythingComesBack(t, tech, 2, "main", "fast")
		everythingComesBack(t, tech, 2, "fast", "main")
	})
}

// everythingComesBack loses the database that often: a rebuilt one is lost as well
// as the first.
func everythingComesBack(t *testing.T, tech storage.Technology, rounds int, order ...string) {
	w := newWorldOn(t, tech)
	before := w.shown()
	exported := w.d.Must("disk", "export", "web1/root", "-", "--format", "raw").Stdout
	for round := range rounds {
		w.d.LoseDatabase()
		if got := w.d.Must("instance", "list", "-q").Stdout; got != "" {
			t.Fatalf("instances without a database: got %s", got)
		}
		w.importPools(order...)
		if after := w.shown(); after != before {
			t.Errorf("order %v, round %d: %s", order, round, firstDifference(after, before))
		}
		w.reserves()
		if l := w.attached("web1/data0"); l == nil || l.State != "unverified" {
			t.Errorf("order %v, round %d: the lease came back as %+v, want it unverified", order, round, l)
		}
		if l := w.attached("web1/root"); l != nil {
			t.Errorf("order %v, round %d: web1/root is attached: %+v", order, round, l)
		}
		w.d.AssertHealthy()
		if got := w.d.Must("disk", "export", "web1/root", "-", "--format", "raw").Stdout; got != exported {
			t.Errorf("order %v, round %d: web1/root reads as other bytes", order, round)
		}
	}
	w.d.Must("disk", "create", "web1", "--data", "1M,pool=main")
	w.d.Must("instance", "detach", "web1")
	w.d.Must("instance", "delete", "web1", "--yes")
	w.d.AssertHealthy()
}

func firstDifference(got, want string) string {
	g, n := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(n)) {
		if g[i] != n[i] {
			from, to := max(0, i-12), i+1
			return "got\n" + strings.Join(g[from:to], "\n") + "\nwant\n" + strings.Join(n[from:to], "\n")
		}
	}
	return "one is longer:\n" + got + "\nwant\n" + want
}

func TestUnverifiedLeaseEverywhere(t *testing.T) {
	storage.Run(t, []storage.Technology{storage.Directory}, testUnverifiedLease)
}

func testUnverifiedLease(t *testing.T, tech storage.Technology) {
	w := newWorldOn(t, tech)
	const ref = "web1/data0"
	volume := storage.Volume(w.d, ref)
	w.d.LoseDatabase()
	w.importPools("main", "fast")
	hold := func() (release func()) { return w.pools["fast"].Hold(t, volume) }
	release := hold()
	for _, args := range [][]string{
		{"disk", "attach", ref, "--as", "qemu"},
		{"instance", "attach", "web1", "--as", "libvirt"},
		{"disk", "resize", ref, "+1M"},
		{"disk", "export", ref, "-", "--format", "raw"},
		{"disk", "delete", ref, "--yes"},
		{"disk", "detach", ref},
	} {
		if r := w.d.Want(7, args...); !strings.Contains(r.Stderr, "tarn: ") {
			t.Errorf("it does not say why: %v", r)
		}
	}
	release()
	w.d.Must("disk", "attach", ref, "--as", "qemu")
	if l := w.attached(ref); l == nil || l.State != "held" {
		t.Errorf("after the guest ended: got %+v, want the lease held", l)
	}

	w.d.LoseDatabase()
	w.importPools("fast", "main")
	release = hold()
	w.d.Must("disk", "detach", ref, "--force", "--yes")
	if l := w.attached(ref); l != nil {
		t.Errorf("after detach --force: got %+v, want no lease", l)
	}
	w.d.Want(7, "disk", "export", ref, "-", "--format", "raw") // its locks are still held
	release()
	w.d.Must("disk", "attach", ref, "--as", "qemu")
}

// TestNewerVersionsAreRefused has a newer tarn write one of the files: this one
// says so and touches nothing.
func TestNewerVersionsAreRefused(t *testing.T) {
	version := regexp.MustCompile(`"version": ?1\b`)
	newer := func(t *testing.T, path string) []byte {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		changed := version.ReplaceAll(b, []byte(`"version":99`))
		if bytes.Equal(b, changed) {
			t.Fatalf("%s names no version 1: %s", path, b)
		}
		if err := os.WriteFile(path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		return changed
	}
	same := func(t *testing.T, path string, want []byte) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s was touched: %v\n%s", path, err, got)
		}
	}
	t.Run("marker", func(t *testing.T) {
		w := newWorld(t)
		path := filepath.Join(w.pools["main"].Dir, ".tarn-pool")
		want := newer(t, path)
		w.d.LoseDatabase()
		w.d.Want(5, append([]string{"pool", "import"}, w.pools["main"].Args...)...)
		same(t, path, want)
	})
	t.Run("sidecar", func(t *testing.T) {
		w := newWorld(t)
		path := tarntest.Get[api.Disk](w.d, "disk", "show", "web1/data0").Path + ".tarn.json"
		want := newer(t, path)
		w.d.LoseDatabase()
		w.importPools("main")
		w.d.Want(5, append([]string{"pool", "import"}, w.pools["fast"].Args...)...)
		same(t, path, want)
		if l := tarntest.Get[api.List[api.Pool]](w.d, "pool", "list"); len(l.Items) != 1 {
			t.Errorf("pools after the refusal: got %+v, want main alone", l.Items)
		}
	})
	t.Run("schema", func(t *testing.T) {
		w := newWorld(t)
		w.d.Stop()
		path := filepath.Join(w.d.StateDir, "tarn.db")
		db, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		_, err = db.Exec("INSERT INTO schema_version (version) VALUES (99)")
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.d.TryStart(); err == nil || !strings.Contains(err.Error(), "exit status 5") {
			t.Errorf("a newer schema: got %v, want exit status 5", err)
		}
		same(t, path, want)
	})
}

// TestListsAreComplete guards shown: it must not compare nothing.
func TestListsAreComplete(t *testing.T) {
	w := newWorld(t)
	var disks api.List[api.Disk]
	if err := json.Unmarshal([]byte(w.d.Must("disk", "list", "-o", "json").Stdout), &disks); err != nil || len(disks.Items) != 7 {
		t.Errorf("got %d disks, %v, want 7", len(disks.Items), err)
	}
	if s := w.shown(); strings.Count(s, `"virtual_size"`) < 9 || strings.Count(s, `"attached": -`) != 14 {
		t.Errorf("shown lacks volumes or leases:\n%s", s)
	}
}
