// Package lost_test loses the database: everything comes back from what stands
// beside the volumes, without a person and without looking into any disk.
package lost_test

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // the driver of the newer tarn

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// world is a daemon with the pools main and fast; web1 has its root in one and
// its data in the other.
type world struct {
	t   *testing.T
	d   *tarntest.Daemon
	dir string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	w.d = tarntest.Start(t, filepath.Join(w.dir, "state"))
	for _, name := range []string{"main", "fast"} {
		w.d.Must("pool", "create", name, "--driver", "dir", "--path", w.pool(name), "--overcommit", "2", "--reserve", "1%")
	}
	image := tarntest.WriteFile(t, "img", append(tarntest.Pattern(3, 500_000), make([]byte, 1<<20-500_000)...))
	w.d.Must("image", "import", "debian", image, "--format", "raw", "--pool", "main", "--min-disk", "2M")
	w.d.Must("image", "import", "twin", image, "--format", "raw", "--pool", "fast")
	w.d.Must("instance", "create", "web1", "--root", "debian:3M,disk-format=qcow2,pool=main", "--ephemeral", "8M,fs=ext4,pool=main",
		"--swap", "1M,pool=fast", "--data", "2M,pool=fast,bus=scsi,cache=writeback,disk-format=raw", "--data", "5M,pool=fast,disk-format=qcow2")
	w.d.Must("instance", "create", "web2", "--root", "debian:2M,disk-format=raw,pool=fast", "--cdrom", "twin", "--pool", "main")
	w.d.Must("disk", "resize", "web1/data0", "+1M")
	w.d.Must("disk", "attach", "web1/data0", "--as", "libvirt", "--target", "sdc")
	return w
}

func (w *world) pool(name string) string { return filepath.Join(w.dir, "pool-"+name) }

func (w *world) importPools(names ...string) {
	w.t.Helper()
	for _, name := range names {
		w.d.Must("pool", "import", "--driver", "dir", "--path", w.pool(name))
	}
}

// moving are numbers that the file system's other users change, or that are
// measured anew.
var moving = regexp.MustCompile(`"(capacity|foreign|available|allocated|allocated_size|foreign_at)": [^,\n]+,?\n *`)

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

func (w *world) attached(ref string) *api.Lease {
	w.t.Helper()
	return tarntest.Get[api.Disk](w.d, "disk", "show", ref).Attached
}

func TestEverythingComesBack(t *testing.T) {
	for _, order := range [][]string{{"main", "fast"}, {"fast", "main"}} {
		t.Run(strings.Join(order, " then "), func(t *testing.T) {
			w := newWorld(t)
			before := w.shown()
			exported := w.d.Must("disk", "export", "web1/root", "-", "--format", "raw").Stdout
			for round := range 2 { // a rebuilt database is lost as well as the first
				w.d.LoseDatabase()
				if got := w.d.Must("instance", "list", "-q").Stdout; got != "" {
					t.Fatalf("instances without a database: got %s", got)
				}
				w.importPools(order...)
				if after := w.shown(); after != before {
					t.Errorf("round %d: %s", round, firstDifference(after, before))
				}
				if l := w.attached("web1/data0"); l == nil || l.State != "unverified" {
					t.Errorf("round %d: the lease came back as %+v, want it unverified", round, l)
				}
				if l := w.attached("web1/root"); l != nil {
					t.Errorf("round %d: web1/root is attached: %+v", round, l)
				}
				w.d.AssertHealthy()
				if got := w.d.Must("disk", "export", "web1/root", "-", "--format", "raw").Stdout; got != exported {
					t.Errorf("round %d: web1/root reads as other bytes", round)
				}
			}
			w.d.Must("disk", "create", "web1", "--data", "1M,pool=main")
			w.d.Must("instance", "detach", "web1")
			w.d.Must("instance", "delete", "web1", "--yes")
			w.d.AssertHealthy()
		})
	}
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

// hold opens a disk as a guest's QEMU does, until the returned function is
// called.
func hold(t *testing.T, path string) (release func()) {
	t.Helper()
	qemuIO := tarntest.NeedTool(t, "qemu-io")
	cmd := exec.Command(qemuIO, "-f", "raw", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer // it answers when the image is open and locked
	for !strings.Contains(said.String(), "MiB") {
		if _, err := io.CopyN(&said, out, 1); err != nil {
			t.Fatalf("qemu-io: %v: %s", err, said.String())
		}
	}
	done := false
	release = func() {
		if !done {
			done = true
			in.Close()
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(release)
	return release
}

func TestUnverifiedLease(t *testing.T) {
	w := newWorld(t)
	const ref = "web1/data0"
	path := tarntest.Get[api.Disk](w.d, "disk", "show", ref).Path
	w.d.LoseDatabase()
	w.importPools("main", "fast")
	release := hold(t, path)
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
	release = hold(t, path)
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
		path := filepath.Join(w.pool("main"), ".tarn-pool")
		want := newer(t, path)
		w.d.LoseDatabase()
		w.d.Want(5, "pool", "import", "--driver", "dir", "--path", w.pool("main"))
		same(t, path, want)
	})
	t.Run("sidecar", func(t *testing.T) {
		w := newWorld(t)
		path := tarntest.Get[api.Disk](w.d, "disk", "show", "web1/data0").Path + ".tarn.json"
		want := newer(t, path)
		w.d.LoseDatabase()
		w.importPools("main")
		w.d.Want(5, "pool", "import", "--driver", "dir", "--path", w.pool("fast"))
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
