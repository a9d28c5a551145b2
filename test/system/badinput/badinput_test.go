// Package badinput_test gives the shipped binaries what they must refuse: each
// gets one clear line, the right exit status, and changes nothing.
package badinput_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// world is a daemon with a pool, an image, an instance, and a directory of
// things that are no pool and no image.
type world struct {
	t   *testing.T
	d   *tarntest.Daemon
	dir string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir()}
	w.d = tarntest.Start(t, filepath.Join(w.dir, "state"))
	w.d.Must("pool", "create", "main", "--driver", "dir", "--path", w.path("pool"))
	if err := os.WriteFile(w.path("img"), tarntest.Pattern(1, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	w.d.Must("image", "import", "img", w.path("img"), "--format", "raw")
	w.d.Must("instance", "create", "web1", "--root", "img:2M", "--data", "1M")
	for _, err := range []error{
		os.Symlink(w.path("pool"), w.path("symlink")),
		os.Symlink("/dev/null", w.path("symlink-to-device")),
		unix.Mkfifo(w.path("fifo"), 0o600),
		os.Mkdir(w.path("folder"), 0o755),
		os.Mkdir(w.path("world"), 0o755),
		os.Chmod(w.path("world"), 0o777),
		os.WriteFile(w.path("folder/user-data"), []byte("#cloud-config\n"), 0o600),
		os.WriteFile(w.path("empty"), nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// snapshot is all records and all files but the state directory's.
func (w *world) snapshot() string {
	w.t.Helper()
	var all strings.Builder
	for _, noun := range []string{"pool", "image", "cache", "volume", "instance", "disk"} {
		var l api.List[map[string]any]
		r := w.d.Must(noun, "list", "-o", "json")
		if err := json.Unmarshal([]byte(r.Stdout), &l); err != nil {
			w.t.Fatalf("%v: %v", r, err)
		}
		for _, item := range l.Items {
			for _, moving := range []string{"foreign", "foreign_at", "free", "time_to_full_seconds", "available", "allocated", "capacity"} {
				delete(item, moving)
			}
			fmt.Fprintf(&all, "%s %v\n", noun, item)
		}
	}
	err := filepath.WalkDir(w.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path == w.path("state") {
			return filepath.SkipDir // the failures are recorded there
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		size := fi.Size()
		if e.IsDir() {
			size = 0 // of no meaning
		}
		fmt.Fprintf(&all, "%s %v %d\n", path, fi.Mode(), size)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all.String()
}

// refusals are what is asked; W stands for the directory of the test.
var refusals = []struct {
	status int
	says   string // part of the line
	args   string
}{
	{3, "nope", "pool show nope"},
	{3, "nope", "pool delete nope --yes"},
	{3, "nope", "pool start nope"},
	{3, "nope", "image show nope"},
	{3, "nope", "image delete nope --yes"},
	{3, "nope", "instance show nope"},
	{3, "nope", "instance delete nope --yes"},
	{3, "nope", "instance attach nope --as qemu"},
	{3, "nope", "instance create web2 --root nope:1G"},
	{3, "nope", "instance create web2 --pool nope --root img"},
	{2, "does not name a disk", "disk show nope"},
	{3, "nope", "disk show nope/root"},
	{3, "data9", "disk resize web1/data9 2G"},
	{3, "nope", "disk create nope --data 1G"},
	{3, "nope", "disk create web1 --data 1G,pool=nope"},
	{3, "nope", "disk export nope/root W/out --format raw"},
	{3, "nope", "image export nope W/out --format raw"},
	{2, "raw, qcow2, vmdk, vhd, vhdx, vdi", "image export img W/out --format qed"},
	{2, "format", "image export img W/out"},
	{2, "only the format qcow2", "image export img W/out --format vmdk --compression zlib"},
	{2, "only the format vhd", "disk export web1/root W/out --format vdi --type fixed"},
	{2, "cannot be streamed", "disk export web1/root - --format qcow2 --compression zstd"},
	{3, "nope", "volume show nope"},
	{3, "nope", "volume list --pool nope"},
	{3, "nope", "operation show nope"},
	{3, "nope", "cache add nope --pool main"},
	{3, "nope", "cache add img --pool nope"},
	{3, "nope", "doctor --pool nope"},
	{3, "missing", "image import new W/missing --format raw"},
	{4, "web1", "instance create web1 --root img"},
	{4, "img", "image import img W/img --format raw"},
	{4, "main", "pool create main --driver dir --path W/new"},

	{2, "--root", "instance create web2 --root 0"},
	{2, "--root", "instance create web2 --root=-5G"},
	{2, "64 TiB", "instance create web2 --root 65T"},
	{2, "--root", "instance create web2 --root 99999999999999999999"},
	{2, "20GB", "instance create web2 --root 20GB"},
	{2, "--data", "disk create web1 --data 0"},
	{2, "--data", "disk create web1 --data=-1"},
	{2, "64 TiB", "disk create web1 --data 70368744177665"},
	{2, "0", "disk resize web1/data0 0"},
	{2, "negative", "disk resize web1/data0 -1G"},
	{2, "64 TiB", "disk resize web1/data0 65T"},
	{2, "64 TiB", "disk resize web1/data0 +64T"},
	{2, "--min-disk", "image import new W/img --format raw --min-disk=-1"},
	{6, "may still be promised", "disk create web1 --data 64T"},
	{6, "may still be promised", "disk resize web1/data0 64T"},
	{5, "shrink", "disk resize web1/root 1M"},

	{2, "not a directory", "pool create new --driver dir --path W/img"},
	{5, "symlink", "pool create new --driver dir --path W/symlink"},
	{4, "pool", "pool create new --driver dir --path W/pool"},
	{4, "pool", "pool create new --driver dir --path W/pool/inside"},
	{4, "pool", "pool create new --driver dir --path W/pool/.tarn-tmp"},
	{4, "pool", "pool create new --driver dir --path W"},
	{2, "not a directory", "pool create new --driver dir --path W/fifo"},
	{2, "not a directory", "pool create new --driver dir --path /dev/null"},
	{5, "everybody can write", "pool create new --driver dir --path W/world"},
	{3, "no directory", "pool create new --driver dir --path W/not/there"},
	{2, "driver", "pool create new --driver floppy --path W/new"},
	{2, "no user", "pool create new --driver dir --path W/new --owner nobody-of-this-name:x"},
	{2, "reserve", "pool create new --driver dir --path W/new --reserve 101%"},
	{2, "overcommit", "pool create new --driver dir --path W/new --overcommit=-1"},
	{3, "no pool", "pool import --driver dir --path W/folder"},
	{4, "main", "pool import --driver dir --path W/pool"},

	{5, "a device", "image import new /dev/null --format raw"},
	{5, "a device", "image import new W/symlink-to-device --format raw"},
	{5, "a FIFO", "image import new W/fifo --format raw"},
	{5, "a directory", "image import new W/folder --format raw"},
	{5, "", "image import new W/empty --format raw"},
	{5, "qcow2", "image import new W/img --format qcow2"},
	{5, "", "image import new W/img --format raw --sha256 " + strings.Repeat("0", 64)},
	{2, "", "image import new W/img --format raw --sha256 xyz"},
	{2, "", "image import new W/img --format dmg"},
	{2, "", "image import ../new W/img --format raw"},
	{2, "", "instance create a/b --root img"},
	{2, "", "instance create web2 --uuid nonsense --root img"},
	{2, "", "instance attach web1 --as xen"},
	{2, "", "disk create web1 --data 1G,colour=red"},
}

func TestRefusals(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	for _, tt := range refusals {
		args := strings.Fields(tt.args)
		for i, a := range args {
			if a == "W" || strings.HasPrefix(a, "W/") {
				args[i] = w.dir + a[1:]
			}
		}
		r := w.d.Run(args...)
		if r.Status != tt.status || !strings.Contains(r.Stderr, tt.says) {
			t.Errorf("want exit status %d and %q of %v", tt.status, tt.says, r)
		}
		checkLine(t, r)
		r = w.d.Run(append(slices.Clone(args), "-o", "json")...)
		var body api.ErrorBody
		if err := json.Unmarshal([]byte(r.Stderr), &body); err != nil || r.Status != tt.status || body.Error.Kind == "" || body.Error.Message == "" {
			t.Errorf("as JSON: want exit status %d and an error, got %v of %v", tt.status, err, r)
		}
		if after := w.snapshot(); after != before {
			t.Fatalf("tarn %s changed something:\n%s\nbefore:\n%s", tt.args, after, before)
		}
	}
	w.d.AssertHealthy()
	w.d.AssertSettled()
}

// checkLine asks for one line and at most a hint behind it, and nothing else.
func checkLine(t *testing.T, r tarntest.Result) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	if r.Stdout != "" || len(lines) > 2 || !strings.HasPrefix(lines[0], "tarn: ") || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
		t.Errorf("want one line and a hint at most on standard error, got %v", r)
	}
}

func TestForeignFilesStay(t *testing.T) {
	w := newWorld(t)
	dir := w.path("folder")
	for _, name := range []string{"0199_root0.raw", "base_00.raw", "x.json", ".tarn-other"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("somebody's "+name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	w.d.Must("pool", "create", "new", "--driver", "dir", "--path", dir)
	w.d.Must("instance", "create", "web2", "--pool", "new", "--data", "1M")
	w.d.Must("cache", "add", "img", "--pool", "new")
	w.d.Restart()
	w.d.Must("doctor", "--repair")
	w.d.Must("instance", "delete", "web2", "--yes")
	w.d.Must("cache", "prune", "--yes")
	w.d.Must("pool", "delete", "new", "--yes")
	for _, name := range []string{"0199_root0.raw", "base_00.raw", "x.json", ".tarn-other"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "somebody's "+name {
			t.Errorf("%s: got %q, %v, want it as it was", name, got, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 5 {
		t.Errorf("the directory holds %v, want what was there before", left)
	}
}

func TestNoDaemon(t *testing.T) {
	d := tarntest.New(t, t.TempDir())
	for _, args := range [][]string{{"pool", "list"}, {"instance", "create", "web1", "--root", "20G"}, {"doctor"}} {
		r := d.Want(8, args...)
		checkLine(t, r)
		if !strings.Contains(r.Stderr, d.Socket) {
			t.Errorf("it does not say where it looked: %v", r)
		}
	}
}

func TestSecondDaemon(t *testing.T) {
	w := newWorld(t)
	before := w.snapshot()
	err := tarntest.New(t, w.d.StateDir).TryStart()
	if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "tarnd: ") {
		t.Errorf("a second daemon: got %v, want one line and exit status 7", err)
	}
	if after := w.snapshot(); after != before {
		t.Errorf("the second daemon changed something:\n%s", after)
	}
	w.d.AssertHealthy()
}

// TestPoolOfAnotherDaemon has a second daemon take over a pool that the first
// one serves: it is refused, naming the first, until that one has ended, however
// it ended, or has stopped the pool.
func TestPoolOfAnotherDaemon(t *testing.T) {
	a := tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	path := filepath.Join(t.TempDir(), "pool")
	a.Must("pool", "create", "x", "--driver", "dir", "--path", path)
	a.Must("instance", "create", "two", "--pool", "x", "--data", "1M")
	a.Must("disk", "attach", "two/data0", "--as", "qemu")

	b := tarntest.Start(t, filepath.Join(t.TempDir(), "other"))
	take := []string{"pool", "import", "--driver", "dir", "--path", path}
	if r := b.Run(take...); r.Status != 7 || !strings.Contains(r.Stderr, "tarnd (process ") {
		t.Errorf("want exit status 7 and the daemon that serves the pool, got %v", r)
	}
	if r := b.Run("pool", "list", "-q"); r.Stdout != "" {
		t.Errorf("the refused pool is on record: %v", r)
	}
	a.AssertHealthy()

	a.Kill()
	b.Must(take...)
	b.AssertHealthy()
	a.Start()
	if r := a.Run("disk", "create", "two", "--data", "1M"); r.Status != 8 {
		t.Errorf("the first daemon, started while the second serves the pool: want exit status 8, got %v", r)
	}
	if r := a.Run("doctor"); r.Status != 10 || !strings.Contains(r.Stdout, "tarnd (process ") {
		t.Errorf("want exit status 10 and who serves the pool, got %v", r)
	}
	if r := a.Run("pool", "start", "x"); r.Status != 7 {
		t.Errorf("pool start: want exit status 7, got %v", r)
	}
	b.Must("pool", "stop", "x")
	a.Must("pool", "start", "x")
	a.AssertHealthy()
}

func TestFullDisk(t *testing.T) {
	fs := fsloop.Ext4(t, 64<<20)
	w := newWorld(t)
	w.d.Must("pool", "create", "small", "--driver", "dir", "--path", filepath.Join(fs.Dir, "pool"))
	if err := os.WriteFile(filepath.Join(fs.Dir, "filler"), make([]byte, 64<<20), 0o600); err == nil {
		t.Fatal("the file system did not fill up")
	}
	before := w.snapshot()
	for _, args := range [][]string{
		{"image", "import", "new", w.path("img"), "--format", "raw", "--pool", "small"},
		{"disk", "create", "web1", "--data", "1M,pool=small"},
		{"cache", "add", "img", "--pool", "small"},
		{"instance", "create", "web2", "--root", "img:2M,pool=small"},
	} {
		checkLine(t, w.d.Want(6, args...))
	}
	if after := w.snapshot(); after != before {
		t.Errorf("a full disk's refusals changed something:\n%s\nbefore:\n%s", after, before)
	}
}
