package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
	"github.com/tarn-storage/tarn/test/oracle"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/storage"
)

// technology makes pools of one driver, for tests that hold for each. pool
// returns what asks for one, on storage of its own, built if that is needed.
type technology struct {
	name  string
	pool  func(t testing.TB) api.PoolCreate
	plain bool // its pools hold raw disks alone
	slow  bool // each call takes most of a second

	left func(t testing.TB) []string // what a pool that was given up leaves; nil: what lies at its path
}

// onEach runs test on each of the usual technologies, or where the environment
// gives others on these.
func onEach(t *testing.T, usual []technology, test func(t *testing.T, tech technology)) {
	given := storage.Given()
	if given != nil {
		usual = nil
	}
	for _, g := range given {
		var s *storage.Storage
		usual = append(usual, technology{name: g.Name, plain: g.Raw, slow: g.Slow, left: func(t testing.TB) []string { return s.Left(t) },
			pool: func(t testing.TB) api.PoolCreate {
				s = g.New(t, 640<<20)
				return s.Request
			}})
	}
	for _, tech := range usual {
		t.Run(tech.name, func(t *testing.T) { test(t, tech) })
	}
}

// qcow2 is the format of a disk that is not to be raw, where that can be.
func (tech technology) qcow2() string {
	if tech.plain {
		return "raw"
	}
	return "qcow2"
}

var directory = technology{name: "dir", pool: func(t testing.TB) api.PoolCreate {
	return api.PoolCreate{Driver: "dir", Path: filepath.Join(t.TempDir(), "pool")}
}}

var ploop = technology{name: "ploop", plain: true, pool: func(t testing.TB) api.PoolCreate {
	return api.PoolCreate{Driver: "ploop", Path: filepath.Join(t.TempDir(), "pool")}
}}

var device = technology{name: "fs", pool: fsPool}

// fsPool asks for a pool on a blank device.
func fsPool(t testing.TB) api.PoolCreate {
	r := api.PoolCreate{Driver: "fs", Path: filepath.Join(t.TempDir(), "pool"), Build: true,
		Source: api.PoolSource{Device: fsloop.Device(t, "", 640<<20), FileSystem: "xfs"}}
	t.Cleanup(func() {
		if err := unix.Unmount(r.Path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("unmount %s: %v", r.Path, err)
		}
	})
	return r
}

// imported asks for the pool of r again.
func imported(r api.PoolCreate) api.PoolImport {
	return api.PoolImport{Driver: r.Driver, Path: r.Path, Source: r.Source}
}

// definedPool makes the pool of r by single steps.
func (w *world) definedPool(ctx context.Context, e *engine.Engine) error {
	r := w.request
	build := r.Build
	r.Name, r.Build, r.Define = "main", false, true
	out, err := e.PoolCreate(ctx, api.Options{}, r)
	if err := finished(ctx, e, out, err); err != nil {
		return err
	}
	if build {
		out, err := e.PoolBuild(ctx, api.Options{}, "main", api.PoolBuild{})
		if err := finished(ctx, e, out, err); err != nil {
			return err
		}
	}
	out, err = e.PoolStart(ctx, api.Options{}, "main")
	return finished(ctx, e, out, err)
}

// stopPool stops, starts and measures the pool.
func (w *world) stopPool(ctx context.Context, e *engine.Engine) error {
	for _, change := range []func(context.Context, api.Options, string) (api.Outcome, error){e.PoolStop, e.PoolStart, e.PoolRefresh} {
		out, err := change(ctx, api.Options{}, "main")
		if err := finished(ctx, e, out, err); err != nil {
			return err
		}
	}
	return nil
}

// TestStops stops a pool while something in it is in use, and builds it anew.
func TestStops(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	r := fsPool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20})
	disk, err := b.Disk(ctx, "web1/data0")
	if err != nil {
		t.Fatal(err)
	}
	user, err := os.Open(disk.Path) // as a guest's QEMU
	if err != nil {
		t.Fatal(err)
	}
	out, err := b.PoolStop(ctx, none, "main")
	b.fails(errs.Busy, out, err)
	if p, err := b.Pool(ctx, "main"); err != nil || p.State != "active" || p.Capacity == 0 {
		t.Errorf("a pool that could not be stopped is %+v, %v", p, err)
	}
	b.instance("web2", api.DiskSpec{Role: "data", Size: 1 << 20})
	user.Close()
	b.must(b.PoolStop(ctx, none, "main"))
	if _, err := os.Stat(disk.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the disk of a stopped pool: %v, want that it is not there", err)
	}
	out, err = b.PoolBuild(ctx, none, "main", api.PoolBuild{Overwrite: true})
	b.fails(errs.Conflict, out, err) // its volumes are on record
	b.restart()
	if p, err := b.Pool(ctx, "main"); err != nil || p.State != "inactive" {
		t.Errorf("after a restart a stopped pool is %+v, %v", p, err)
	}
	b.must(b.PoolStart(ctx, none, "main"))
	out, err = b.PoolBuild(ctx, none, "main", api.PoolBuild{Overwrite: true})
	b.fails(errs.Busy, out, err)
	for _, i := range []string{"web1", "web2"} {
		b.must(b.InstanceDelete(ctx, none, i))
	}
	b.must(b.PoolStop(ctx, none, "main"))
	b.must(b.PoolBuild(ctx, none, "main", api.PoolBuild{Overwrite: true}))
	b.must(b.PoolStart(ctx, none, "main"))
	b.silent("building a pool anew")
	b.must(b.PoolDelete(ctx, none, "main", true))
	if _, err := os.Stat(r.Path + "/.tarn-pool"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a pool that was given up with its data is mounted still: %v", err)
	}
	b.must(b.PoolImport(ctx, none, imported(r)))
	b.must(b.PoolDelete(ctx, none, "main", false))
}

// TestBuildThatBuildsNothing builds a pool that is built already, or whose device
// somebody else has taken: what is known of its storage stays known.
func TestBuildThatBuildsNothing(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	r := fsPool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	b.must(b.PoolStop(ctx, none, "main"))
	for range 2 {
		b.must(b.PoolBuild(ctx, none, "main", api.PoolBuild{}))
	}
	if source, err := mounted.Source(r.Path); source != "" || err != nil {
		t.Errorf("after building a pool that is stopped %q is mounted at its path, %v", source, err)
	}
	out, err := b.PoolDelete(ctx, none, "main", false)
	b.fails(errs.Unavailable, out, err) // its marker would stay
	op := b.must(b.PoolStart(ctx, none, "main"))
	if len(op.Steps) != 1 || op.Steps[0].Kind != "pool.open/v1" {
		t.Errorf("a start behind a build that built nothing has the steps %+v, want that it opens the pool", op.Steps)
	}
	b.must(b.PoolStop(ctx, none, "main"))
	oracle.Run(t, "xfsprogs", "mkfs.xfs", "-q", "-f", r.Source.Device)
	out, err = b.PoolBuild(ctx, none, "main", api.PoolBuild{})
	b.fails(errs.Conflict, out, err)
	out, err = b.PoolStart(ctx, none, "main")
	b.fails(errs.Unavailable, out, err)
	b.must(b.PoolBuild(ctx, none, "main", api.PoolBuild{Overwrite: true}))
	b.must(b.PoolStart(ctx, none, "main"))
	b.must(b.PoolDelete(ctx, none, "main", false))
}

// TestStartOfAnotherPoolsDevice starts a pool whose device was exchanged for
// another pool's: that one is not mounted afterwards.
func TestStartOfAnotherPoolsDevice(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	link := filepath.Join(t.TempDir(), "disk")
	r, other := fsPool(t), fsPool(t)
	do(t, os.Symlink(r.Source.Device, link))
	r.Name, r.Source.Device, other.Name = "main", link, "other"
	b.must(b.PoolCreate(ctx, none, r))
	b.must(b.PoolStop(ctx, none, "main"))
	b.must(b.PoolCreate(ctx, none, other))
	b.must(b.PoolDelete(ctx, none, "other", true))
	do(t, os.Remove(link), os.Symlink(other.Source.Device, link))
	out, err := b.PoolStart(ctx, none, "main")
	b.fails(errs.Conflict, out, err)
	if source, err := mounted.Source(r.Path); source != "" || err != nil {
		t.Errorf("behind a start that was refused %q is mounted, %v", source, err)
	}
}

// TestDoctorAtAnotherPoolsDevice looks at a pool that could not be started, for
// its device was exchanged for another pool's: that one is not mounted afterwards.
func TestDoctorAtAnotherPoolsDevice(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	link := filepath.Join(t.TempDir(), "disk")
	r, other := fsPool(t), fsPool(t)
	do(t, os.Symlink(r.Source.Device, link))
	r.Name, r.Source.Device, other.Name = "main", link, "other"
	b.must(b.PoolCreate(ctx, none, r))
	b.must(b.PoolCreate(ctx, none, other))
	b.must(b.PoolDelete(ctx, none, "other", true))
	b.stop()
	do(t, unix.Unmount(r.Path, 0), os.Remove(link), os.Symlink(other.Source.Device, link))
	b.start()
	if found := b.doctor(false).Problems; len(found) != 1 || found[0].Invariant != "I14" || found[0].Object != "main" {
		t.Errorf("doctor reports %+v, want that main is not started", found)
	}
	if source, err := mounted.Source(r.Path); source != "" || err != nil {
		t.Errorf("behind a look at what is wrong %q is mounted, %v", source, err)
	}
}

// TestOneDeviceByManyNames records pools by names of one device, all at once, and
// as many on devices of their own: of the first only one comes to be.
func TestOneDeviceByManyNames(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := t.TempDir()
	do(t, os.WriteFile(filepath.Join(dir, "disk"), nil, 0o600))
	const n = 6
	shared, own := make(chan error, n), make(chan error, n)
	for i := range n {
		name := fmt.Sprint("p", i)
		link := filepath.Join(dir, name)
		do(t, os.Symlink("disk", link))
		record := func(name, device string, done chan error) {
			out, err := b.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: name, Driver: "fs", Path: filepath.Join(dir, "at", name),
				Source: api.PoolSource{Device: device}, Define: true})
			done <- finished(ctx, b.Engine, out, err)
		}
		go record(name, link, shared)
		go record(name+"-own", link+"-own", own)
	}
	made := 0
	for range n {
		if err := <-own; err != nil {
			t.Errorf("a pool on a device of its own: %v", err)
		}
		switch err := <-shared; {
		case err == nil:
			made++
		case !errors.Is(err, errs.Exists) && !errors.Is(err, errs.Busy):
			t.Errorf("a pool on another's device: %v, want %s or, while that is made, %s", err, errs.Exists, errs.Busy)
		}
	}
	if made != 1 {
		t.Errorf("%d pools have one device, want 1", made)
	}
}

// TestSources refuses storage that cannot be a pool's, and leaves no trace.
func TestSources(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	r := fsPool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	link := filepath.Join(t.TempDir(), "disk")
	if err := os.Symlink(r.Source.Device, link); err != nil {
		t.Fatal(err)
	}
	foreign := fsloop.Device(t, "ext4", 64<<20)
	blank := fsloop.Device(t, "", 64<<20)
	for _, row := range []struct {
		what   string
		device string
		build  bool
		want   errs.Kind
	}{
		{"another pool's device", r.Source.Device, true, errs.Exists},
		{"another pool's device by a link", link, true, errs.Exists},
		{"a device with somebody's file system", foreign, true, errs.Conflict},
		{"a device without a file system", blank, false, errs.Unavailable},
		{"what is no device", "/dev/null", true, errs.Invalid},
		{"what is not there", "/dev/disk/by-id/none", false, errs.Unavailable},
		{"a name that is no path", "sdb", true, errs.Invalid},
		{"no device", "", true, errs.Invalid},
	} {
		x := fsPool(t)
		x.Name, x.Source.Device, x.Build = "other", row.device, row.build
		out, err := b.PoolCreate(ctx, none, x)
		b.fails(row.want, out, err)
		if _, err := b.Pool(ctx, "other"); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: a pool is on record: %v", row.what, err)
		}
		if _, err := os.Stat(x.Path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %s: %v, want nothing there", row.what, x.Path, err)
		}
	}
	x := fsPool(t)
	x.Name, x.Source.Device, x.Overwrite = "other", foreign, true
	x.Source.FileSystem = "ext4"
	b.must(b.PoolCreate(ctx, none, x))
	b.silent("what was refused")
}
