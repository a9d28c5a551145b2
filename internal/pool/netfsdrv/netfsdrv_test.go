package netfsdrv_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
	"github.com/tarn-storage/tarn/internal/pool/netfsdrv"
)

// effects are what each call has.
var effects = map[string]int{
	"Prepare": 9, "Remove": 6, "Create": 3, "Create preallocated": 4, "Publish": 7, "Publish immutable": 9,
	"Resize": 2, "Delete": 3, "Delete staged": 2, "PutSidecar": 5, "PutSidecar of the marker": 5,
}

func harness(s *server) drivertest.Harness {
	return drivertest.Harness{
		Type:  pool.Bound(netfsdrv.Type),
		Place: s.export,
		Small: func(t *testing.T) driver.Config {
			c := s.export(t)
			s.cover(t, c, "no_root_squash")
			return c
		},
		Foreign: drivertest.PutFile,
		// On the server, where other hosts' locks are seen: as QEMU on one of them.
		Hold: func(t *testing.T, c driver.Config, r driver.Ref) func() {
			f, err := os.OpenFile(filepath.Join(s.dir, c.Source.Export, r.Name), os.O_RDWR, 0)
			if err == nil {
				err = imagelock.Take(f, driver.Write)
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return func() { f.Close() }
		},
		Residue: s.residue,
		Slow:    true,
		Effects: effects,
	}
}

// TestContract runs parts of the suite against the kernel's NFS server: an emulated
// processor takes minutes for the whole.
func TestContract(t *testing.T) {
	drivertest.Run(t, harness(serve(t)))
}

// begin prepares and opens a pool on a new export.
func begin(t *testing.T, s *server) (*pool.Pool, disk.Pool) {
	t.Helper()
	c := s.export(t)
	r := disk.Pool{ID: c.ID, Name: "p", Path: c.Path, Source: c.Source, Owner: c.Owner}
	marker, err := pool.SealMarker(disk.Marker{Pool: r})
	if err == nil {
		err = netfsdrv.Type.Prepare(t.Context(), c, marker)
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(t.Context(), pool.Bound(netfsdrv.Type), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p, r
}

// TestSilentServer takes the network between client and server away and brings it
// back: views go on, calls come back, and what they began is done once.
func TestSilentServer(t *testing.T) {
	p, _ := begin(t, serve(t))
	ctx := t.Context()
	if _, err := p.Glance(ctx); err != nil {
		t.Fatalf("a glance at a pool that is well: %v", err)
	}
	run(t, "ip", "link", "set", "lo", "down")
	up := func() { run(t, "ip", "link", "set", "lo", "up") }
	defer up()
	start := time.Now()
	for range 10 {
		if _, err := p.Glance(ctx); !pool.Silent(err) || !errors.Is(err, errs.Unavailable) {
			t.Errorf("a glance without the server: %v, want unavailable", err)
		}
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("ten glances took %v", took)
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	failed := make(chan error)
	for i := range 40 {
		go func() {
			failed <- p.Driver.Create(short, driver.Spec{ID: disk.VolumeID(fmt.Sprintf("hung-%d", i)), Size: 1 << 20})
		}()
	}
	for range 40 {
		if err := <-failed; !errors.Is(err, errs.Unavailable) && !errors.Is(err, errs.Cancelled) {
			t.Errorf("a call without the server: %v", err)
		}
	}
	up()
	for start := time.Now(); ; {
		err := p.Driver.Create(ctx, driver.Spec{ID: "hung-0", Size: 1 << 20})
		if err == nil {
			break
		}
		if !pool.Silent(err) || time.Since(start) > 2*time.Minute {
			t.Fatalf("repeating a call when the server is back: %v", err)
		}
	}
	if _, err := p.Stat(ctx); err != nil {
		t.Errorf("Stat when the server is back: %v", err)
	}
}

// TestAnotherHost has a second host mount the export: it is refused as long as
// the first serves the pool, and knows it as the same storage afterwards.
func TestAnotherHost(t *testing.T) {
	s := serve(t)
	p, r := begin(t, s)
	before, err := p.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// An OFD lock is its opening's: another one of the file stands for a host.
	f, err := os.OpenFile(filepath.Join(s.dir, r.Source.Export, ".tarn-tmp", "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := func() error {
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	if err := lock(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("the server's own lock while the pool is open: %v, want it taken", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := lock(); err != nil {
		t.Fatalf("the server's own lock when the pool is closed: %v", err)
	}
	if _, err := pool.Open(t.Context(), pool.Bound(netfsdrv.Type), r); !errors.Is(err, errs.Busy) {
		t.Errorf("opening a pool that another host serves: %v, want busy", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := pool.Open(t.Context(), pool.Bound(netfsdrv.Type), r)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	after, err := again.Stat(t.Context())
	if err != nil || after.Identity != before.Identity || after.Storage != before.Storage || !strings.HasPrefix(after.Identity, "nfs:127.0.0.1/") {
		t.Errorf("the storage is %+v, %v; before it was %+v", after, err, before)
	}
}

// TestStaleHandle has the server's administrator put a copy in place of what is
// exported: calls say what is wrong, and a start behind a stop finds the copy.
func TestStaleHandle(t *testing.T) {
	s := serve(t)
	p, r := begin(t, s)
	ctx := t.Context()
	spec := driver.Spec{ID: disk.VolumeID(drivertest.NewID()), Size: 4096}
	err := p.Driver.Create(ctx, spec)
	if err == nil {
		_, err = p.Publish(ctx, spec.ID, "v", false, []byte("sidecar"))
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.dir, r.Source.Export)
	run(t, "cp", "-a", dir, dir+".copy")
	if err := errors.Join(os.RemoveAll(dir), os.Rename(dir+".copy", dir)); err != nil {
		t.Fatal(err)
	}
	_, err = p.Stat(ctx)
	for what, err := range map[string]error{"Stat": err, "Create": p.Driver.Create(ctx, driver.Spec{ID: "x", Size: 4096})} {
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Unavailable || e.Hint == "" || !errors.Is(err, unix.ESTALE) {
			t.Errorf("%s of an export that was replaced: %v, want %s with a hint, for %v", what, err, errs.Unavailable, unix.ESTALE)
		}
	}
	if err := p.Driver.(driver.Stopper).Stop(ctx); err != nil {
		t.Fatalf("Stop of an export that was replaced: %v", err)
	}
	again, err := pool.Open(ctx, pool.Bound(netfsdrv.Type), r)
	if err != nil {
		t.Fatalf("Open of what replaced the export: %v", err)
	}
	defer again.Close()
	if o, err := again.Describe(ctx, driver.Ref{Name: "v"}); err != nil || o.Size != 4096 {
		t.Errorf("the volume in what replaced the export is %+v, %v; want one of 4096 bytes", o, err)
	}
}

// TestOtherName uses an export that is mounted elsewhere already, by another name
// of its server: the pool's own mount is known and unmounted nevertheless.
func TestOtherName(t *testing.T) {
	s := serve(t)
	c := s.export(t)
	ctx, there := t.Context(), t.TempDir()
	if err := unix.Mount("another.name:"+c.Source.Export, there, "nfs4", 0, "vers=4.2,hard,proto=tcp,addr=127.0.0.1"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(there, unix.MNT_DETACH) })
	if err := netfsdrv.Type.Prepare(ctx, c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	d, _, err := netfsdrv.Type.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.(driver.Stopper).Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if source, err := mounted.Source(c.Path); source != "" || err != nil {
		t.Errorf("after Stop %q is mounted at the pool's path, %v", source, err)
	}
	if err := netfsdrv.Type.Remove(ctx, c); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(c.Path); !os.IsNotExist(err) {
		t.Errorf("Remove leaves %s: %v", c.Path, err)
	}
}

// TestRefusals names exports that cannot be pools.
func TestRefusals(t *testing.T) {
	s := serve(t)
	for _, tt := range []struct {
		name   string
		change func(c *driver.Config)
		want   errs.Kind
	}{
		{"no such export", func(c *driver.Config) { c.Source.Export = "/nowhere" }, errs.Unavailable},
		{"no server", func(c *driver.Config) { c.Source.Host = "192.0.2.1" }, errs.Unavailable},
		{"options in the host", func(c *driver.Config) { c.Source.Host = "127.0.0.1,soft" }, errs.Invalid},
		{"a path in the host", func(c *driver.Config) { c.Source.Host = "127.0.0.1:/e" }, errs.Invalid},
		{"a relative export", func(c *driver.Config) { c.Source.Export = "e" }, errs.Invalid},
		{"root is nobody", func(c *driver.Config) { s.cover(t, *c, "root_squash") }, errs.Unavailable},
		{"another mount", func(c *driver.Config) {
			if err := errors.Join(os.Mkdir(c.Path, 0o711), unix.Mount("tmpfs", c.Path, "tmpfs", 0, "")); err != nil {
				t.Fatal(err)
			}
		}, errs.Conflict},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := s.export(t)
			tt.change(&c)
			err := netfsdrv.Type.Prepare(t.Context(), c, drivertest.Marker(c))
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != tt.want || tt.want == errs.Unavailable && e.Hint == "" {
				t.Errorf("Prepare: %v, want %s", err, tt.want)
			}
		})
	}
}

// residue lists what is exported, and the pool's path, with mode and size.
func (s *server) residue(t *testing.T, c driver.Config) (all []string) {
	beside, err := os.ReadDir(filepath.Dir(c.Path))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range beside {
		all = append(all, e.Name())
	}
	return append(all, drivertest.Tree(t, filepath.Join(s.dir, c.Source.Export))...)
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
