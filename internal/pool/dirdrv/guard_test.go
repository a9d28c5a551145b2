package dirdrv_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// newPool opens a pool in a new directory.
func newPool(t testing.TB, dir string) (driver.Driver, driver.Config) {
	t.Helper()
	c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(dir, "pool"), Owner: drivertest.Owner()}
	if err := dirdrv.Type.Prepare(t.Context(), c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	d, _, err := dirdrv.Type.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, c
}

// newVolume publishes a volume of zeroes.
func newVolume(t testing.TB, d driver.Driver, name string, size int64, immutable bool) driver.Ref {
	t.Helper()
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: name}
	if err := d.Create(t.Context(), driver.Spec{ID: r.ID, Size: size}); err != nil {
		t.Fatal(err)
	}
	o, err := d.Publish(t.Context(), r.ID, name, immutable, []byte("sidecar"))
	if err != nil {
		t.Fatal(err)
	}
	r.BackendID = o.BackendID
	return r
}

func TestPrepareRefuses(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(path("file"), nil, 0o600))
	must(os.Mkdir(path("dir"), 0o700))
	must(os.Symlink("dir", path("link")))
	must(os.Symlink("nowhere", path("dangling")))
	must(os.Mkdir(path("open"), 0o700))
	must(os.Chmod(path("open"), 0o777))
	must(os.Mkdir(path("marked"), 0o700))
	must(os.Symlink("../file", path("marked/.tarn-pool")))
	must(os.Mkdir(path("tmp"), 0o700))
	must(os.Symlink("../dir", path("tmp/.tarn-tmp")))
	must(os.Mkdir(path("sticky"), 0o700))
	must(os.Chmod(path("sticky"), 0o777|os.ModeSticky))
	must(os.Mkdir(path("sticky/.tarn-tmp"), 0o700))
	must(os.Chmod(path("sticky/.tarn-tmp"), 0o777))
	must(os.Mkdir(path("group"), 0o700))
	must(os.Mkdir(path("group/.tarn-tmp"), 0o700))
	must(os.Chmod(path("group/.tarn-tmp"), 0o770))
	tests := []struct {
		path string
		want errs.Kind
	}{
		{"relative/pool", errs.Invalid}, {"", errs.Invalid}, {path("file"), errs.Invalid},
		{path("file/below"), errs.Invalid}, {path("missing/pool"), errs.NotFound},
		{path("link"), errs.Unsafe}, {path("dangling"), errs.Unsafe}, {path("open"), errs.Unsafe},
		{path("marked"), errs.Unsafe}, {path("sticky"), errs.Unsafe}, {path("group"), errs.Unsafe}, {path("tmp"), errs.Unsafe},
	}
	if os.Geteuid() == 0 {
		must(os.Mkdir(path("theirs"), 0o700))
		must(os.Chown(path("theirs"), 65534, 65534))
		must(os.Mkdir(path("theirtmp"), 0o700))
		must(os.Mkdir(path("theirtmp/.tarn-tmp"), 0o700))
		must(os.Chown(path("theirtmp/.tarn-tmp"), 65534, 65534))
		must(os.Mkdir(path("shared"), 0o700))
		must(os.Chown(path("shared"), 0, 65534))
		must(os.Chmod(path("shared"), 0o770))
		for _, name := range []string{"theirs", "theirtmp", "shared"} {
			tests = append(tests, struct {
				path string
				want errs.Kind
			}{path(name), errs.Unsafe})
		}
	}
	for _, tt := range tests {
		c := driver.Config{ID: "0198aaaa-0000-7000-8000-000000000001", Path: tt.path, Owner: drivertest.Owner()}
		before := drivertest.Files(t, driver.Config{Path: path("x")})
		err := dirdrv.Type.Prepare(t.Context(), c, drivertest.Marker(c))
		if errs.KindOf(err) != tt.want {
			t.Errorf("Prepare at %q = %v of kind %s, want %s", tt.path, err, errs.KindOf(err), tt.want)
		}
		var e *errs.Error
		if tt.want == errs.Unsafe && tt.path != path("marked") && (!errors.As(err, &e) || e.Hint == "") {
			t.Errorf("Prepare at %q = %v without a hint", tt.path, err)
		}
		if after := drivertest.Files(t, driver.Config{Path: path("x")}); !slices.Equal(after, before) {
			t.Errorf("Prepare at %q changed something: %q, before %q", tt.path, after, before)
		}
	}
	c := driver.Config{ID: "id", Path: path("dir")}
	if err := dirdrv.Type.Prepare(t.Context(), c, []byte("no such word")); !errors.Is(err, errs.Internal) {
		t.Errorf("a marker that does not name its pool: got %v", err)
	}
}

// TestTrustIsCheckedAgain changes a pool after it was made.
func TestTrustIsCheckedAgain(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	newVolume(t, d, "disk", 4096, false)
	tmp := filepath.Join(c.Path, ".tarn-tmp")
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	before := drivertest.Files(t, c)
	if _, _, err := dirdrv.Type.Open(t.Context(), c); !errors.Is(err, errs.Unsafe) {
		t.Errorf("Open with a .tarn-tmp that everybody can write = %v, want unsafe", err)
	}
	if after := drivertest.Files(t, c); !slices.Equal(after, before) {
		t.Errorf("Open left %q, before there was %q", after, before)
	}
	if err := os.Chmod(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	aside := filepath.Join(c.Path, ".tarn-quarantine")
	if err := errors.Join(os.Mkdir(aside, 0o700), os.Chmod(aside, 0o777)); err != nil {
		t.Fatal(err)
	}
	if err := d.(driver.Leftovers).SetAside(t.Context(), driver.Ref{ID: "x", Name: "disk"}); !errors.Is(err, errs.Unsafe) {
		t.Errorf("SetAside into a quarantine that everybody can write = %v, want unsafe", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	for gid, want := range map[int]errs.Kind{0: "", 65534: errs.Unsafe} { // root's group is as good as root
		if err := errors.Join(os.Chown(c.Path, 0, gid), os.Chmod(c.Path, 0o770)); err != nil {
			t.Fatal(err)
		}
		d, _, err := dirdrv.Type.Open(t.Context(), c)
		if err == nil {
			d.Close()
		}
		if err != nil != (want != "") || err != nil && errs.KindOf(err) != want {
			t.Errorf("Open where group %d can write = %v, want kind %q", gid, err, want)
		}
	}
}

// TestForeignEntries puts into a pool what is not a file of tarn's.
func TestForeignEntries(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	canary := filepath.Join(t.TempDir(), "canary")
	err := errors.Join(
		os.WriteFile(canary, []byte("canary"), 0o600),
		os.Symlink(canary, filepath.Join(c.Path, "link")),
		os.Symlink(canary, filepath.Join(c.Path, "link.tarn.json")),
		os.Mkdir(filepath.Join(c.Path, "dir"), 0o700),
		unix.Mkfifo(filepath.Join(c.Path, "fifo"), 0o600),
		os.WriteFile(filepath.Join(c.Path, ".hidden"), nil, 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for o, err := range d.List(t.Context()) {
		if err != nil || o.BackendID != "" || o.Size != 0 {
			t.Errorf("List yields %+v, %v; want the name alone", o, err)
		}
		listed[o.Name] = true
	}
	if len(listed) != 3 || !listed["link"] || !listed["dir"] || !listed["fifo"] {
		t.Errorf("List yields %v, want link, dir and fifo", listed)
	}
	for name := range listed {
		r := driver.Ref{ID: "x", Name: name}
		for _, m := range []driver.Mode{driver.Base, driver.Read, driver.Write} {
			if dev, err := d.Open(t.Context(), r, m); !errors.Is(err, errs.Unsafe) {
				t.Errorf("Open of %s = %v, %v; want a refusal", name, dev, err)
			}
		}
		if _, err := d.Describe(t.Context(), r); !errors.Is(err, errs.Unsafe) {
			t.Errorf("Describe of %s = %v, want unsafe", name, err)
		}
		if err := d.Delete(t.Context(), r); err != nil {
			t.Errorf("Delete of %s = %v, want it left alone", name, err)
		}
	}
	if _, err := d.Sidecar(t.Context(), "link"); !errors.Is(err, errs.Unsafe) {
		t.Errorf("Sidecar through a symlink = %v, want unsafe", err)
	}
	if got, err := os.ReadFile(canary); err != nil || string(got) != "canary" {
		t.Errorf("the canary holds %q, %v", got, err)
	}
}

// TestRemoveKeepsForeignStaging puts into .tarn-tmp what tarn never makes there.
func TestRemoveKeepsForeignStaging(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"dd":      func(path string) error { return os.Mkdir(path, 0o700) },
		"link":    func(path string) error { return os.Symlink("ballast", path) },
		".hid":    func(path string) error { return os.WriteFile(path, []byte("kept"), 0o600) },
		"a photo": func(path string) error { return os.WriteFile(path, []byte("kept"), 0o600) },
	} {
		d, c := newPool(t, t.TempDir())
		if err := d.Create(t.Context(), driver.Spec{ID: disk.VolumeID(drivertest.NewID()), Size: 4096}); err != nil {
			t.Fatal(err)
		}
		foreign := filepath.Join(c.Path, ".tarn-tmp", name)
		if err := errors.Join(d.Close(), put(foreign)); err != nil {
			t.Fatal(err)
		}
		before := drivertest.Files(t, c)
		err := dirdrv.Type.Remove(t.Context(), c)
		if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), foreign) {
			t.Errorf("Remove with %q in .tarn-tmp = %v, want a conflict that names it", name, err)
		}
		if after := drivertest.Files(t, c); !slices.Equal(after, before) {
			t.Errorf("Remove with %q in .tarn-tmp left %q, before there was %q", name, after, before)
		}
		if err := os.Remove(foreign); err != nil {
			t.Fatal(err)
		}
		if err := dirdrv.Type.Remove(t.Context(), c); err != nil {
			t.Errorf("Remove when %q is gone: %v", name, err)
		}
	}
}

// TestTooLargeForTheFileSystem asks ext4 for more than 16 TiB in each way.
func TestTooLargeForTheFileSystem(t *testing.T) {
	const size = 17 << 40
	d, c := newPool(t, fsloop.Ext4(t, 64<<20).Dir)
	r := newVolume(t, d, "disk", 4096, false)
	staged := driver.Ref{ID: disk.VolumeID(drivertest.NewID())}
	if err := d.Create(t.Context(), driver.Spec{ID: staged.ID, Size: 4096}); err != nil {
		t.Fatal(err)
	}
	before := drivertest.Files(t, c)
	fresh := disk.VolumeID(drivertest.NewID())
	dev, err := d.Open(t.Context(), staged, driver.Staged)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	for name, try := range map[string]struct {
		subject string
		err     error
	}{
		"Create":              {string(fresh), d.Create(t.Context(), driver.Spec{ID: fresh, Size: size})},
		"Create preallocated": {string(fresh), d.Create(t.Context(), driver.Spec{ID: fresh, Size: size, Prealloc: true})},
		"Resize":              {"disk", d.Resize(t.Context(), r, size)},
		"Truncate":            {string(staged.ID), dev.Truncate(size)},
	} {
		var e *errs.Error
		if !errors.As(try.err, &e) || e.Kind != errs.NoSpace || e.Subject != try.subject || e.Message != "the file system cannot hold so large a file" {
			t.Errorf("%s: got %#v, want no space for %s", name, try.err, try.subject)
		}
	}
	if after := drivertest.Files(t, c); !slices.Equal(after, before) {
		t.Errorf("left are %q, before there was %q", after, before)
	}
}

// TestModes checks who can read and write the files.
func TestModes(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	newVolume(t, d, "disk", 4096, false)
	newVolume(t, d, "base", 4096, true)
	for name, want := range map[string]struct {
		mode uint32
		uid  int
	}{"disk": {0o600, c.Owner.UID}, "base": {0o440, 0}, "disk.tarn.json": {0o600, 0}, ".tarn-pool": {0o600, 0}, ".tarn-tmp": {0o700, 0}, ".": {0o711, 0}} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(c.Path, name), &st); err != nil {
			t.Fatal(err)
		}
		if st.Mode&0o7777 != want.mode {
			t.Errorf("%s has mode %#o, want %#o", name, st.Mode&0o7777, want.mode)
		}
		if os.Geteuid() == 0 && int(st.Uid) != want.uid {
			t.Errorf("%s belongs to %d, want %d", name, st.Uid, want.uid)
		}
		if os.Geteuid() == 0 && (name == "disk" || name == "base") && int(st.Gid) != c.Owner.GID {
			t.Errorf("%s has group %d, want %d", name, st.Gid, c.Owner.GID)
		}
	}
}
