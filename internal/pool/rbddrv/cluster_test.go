package rbddrv_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/rbddrv"
	"github.com/tarn-storage/tarn/test/system/ceph"
)

// started opens a new pool at c.
func started(t *testing.T, c driver.Config) driver.Driver {
	t.Helper()
	if err := rbddrv.Type.Prepare(t.Context(), c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	return reopened(t, c)
}

func reopened(t *testing.T, c driver.Config) driver.Driver {
	t.Helper()
	p, _, err := rbddrv.Type.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// published makes a volume of 8 MiB that begins with content.
func published(t *testing.T, p driver.Driver, name string, content []byte, immutable bool) driver.Ref {
	t.Helper()
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: name}
	if err := p.Create(t.Context(), driver.Spec{ID: r.ID, Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	d, err := p.Open(t.Context(), driver.Ref{ID: r.ID}, driver.Staged)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.WriteAt(content, 0)
	o, perr := p.Publish(t.Context(), r.ID, name, immutable, []byte("sidecar of "+name))
	if err := errors.Join(err, d.Close(), perr); err != nil {
		t.Fatal(err)
	}
	r.BackendID = o.BackendID
	return r
}

func wantKind(t *testing.T, what string, err error, want errs.Kind) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// What is wrong with the storage is told by its kind and with what to do.
func TestBadSources(t *testing.T) {
	cluster := ceph.Start(t)
	good := place(t)
	another := ceph.WriteKey(t, cluster.Run(t, "ceph-authtool", "--gen-print-key"))
	open := ceph.WriteKey(t, cluster.Run(t, "ceph-authtool", "--gen-print-key"))
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		change func(*disk.PoolSource)
		want   errs.Kind
		hint   string
	}{
		{"no pool", func(s *disk.PoolSource) { s.CephPool = "" }, errs.Invalid, ""},
		{"a snapshot for a pool", func(s *disk.PoolSource) { s.CephPool = "rbd@x" }, errs.Invalid, ""},
		{"a pool that is not there", func(s *disk.PoolSource) { s.CephPool = "missing" }, errs.Unavailable, "ceph osd pool create"},
		{"a namespace that is not there", func(s *disk.PoolSource) { s.CephPool = "rbd/missing" }, errs.Unavailable, "rbd namespace create"},
		{"a configuration that is not there", func(s *disk.PoolSource) { s.CephConf = "/missing/ceph.conf" }, errs.Unavailable, "--ceph-conf"},
		{"a key that is not there", func(s *disk.PoolSource) { s.SecretFile = "/missing/key" }, errs.Unavailable, ""},
		{"another's key", func(s *disk.PoolSource) { s.SecretFile = another }, errs.Unavailable, "client.admin"},
		{"another's key, another user", func(s *disk.PoolSource) { s.SecretFile, s.CephUser = another, "nobody" }, errs.Unavailable, "client.nobody"},
		{"a key that everybody can read", func(s *disk.PoolSource) { s.SecretFile = open }, errs.Unsafe, "chmod"},
	} {
		c := good
		row.change(&c.Source)
		err := rbddrv.Type.Prepare(t.Context(), c, drivertest.Marker(c))
		wantKind(t, row.name, err, row.want)
		var e *errs.Error
		if errors.As(err, &e) && !regexp.MustCompile(row.hint).MatchString(e.Hint) {
			t.Errorf("%s: the hint is %q, want one with %q", row.name, e.Hint, row.hint)
		}
	}
}

// A user of its own, whose key is in a file, does all of a pool's work.
func TestUserWithKey(t *testing.T) {
	cluster := ceph.Start(t)
	c := place(t)
	conf, err := os.ReadFile(cluster.Conf)
	if err != nil {
		t.Fatal(err)
	}
	c.Source.CephConf = filepath.Join(t.TempDir(), "ceph.conf") // without the administrator's key
	if err := os.WriteFile(c.Source.CephConf, regexp.MustCompile(`(?m)^keyring =.*$`).ReplaceAll(conf, []byte("keyring = /missing")), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Source.CephUser, c.Source.SecretFile = "tarn", cluster.Key(t, "tarn")
	p := started(t, c)
	content := bytes.Repeat([]byte("content."), 1<<17)
	base := published(t, p, "base", content, true)
	id := disk.VolumeID(drivertest.NewID())
	if err := p.(driver.Cloner).Clone(t.Context(), driver.Spec{ID: id, Size: 16 << 20}, base); err != nil {
		t.Fatal(err)
	}
	d, err := p.Open(t.Context(), driver.Ref{ID: id}, driver.Staged)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	got := make([]byte, len(content))
	if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the clone does not read what the base holds: %v", err)
	}
	if u, err := p.Stat(t.Context()); err != nil || u.Identity != "ceph:"+cluster.FSID+"/"+cluster.Pool {
		t.Errorf("Stat = %+v, %v", u, err)
	}
	n := p.(driver.Attacher).Attachment(base).Network
	if n == nil || n.Image != "base" || n.Pool != c.Source.CephPool || n.User != "tarn" || n.KeyFile != c.Source.SecretFile {
		t.Errorf("Attachment = %+v", n)
	}
}

// A clone carries its parent's metadata. Between its making and its own sidecar
// that must not make it a volume.
func TestSidecarOfTheParent(t *testing.T) {
	cluster := ceph.Start(t)
	c := place(t)
	p := started(t, c)
	published(t, p, "base", []byte("base"), true)
	at := c.Source.CephPool
	cluster.Run(t, "rbd", "clone", "--rbd-default-clone-format", "2", at+"/base@tarn.base", at+"/clone")
	if got := cluster.Run(t, "rbd", "image-meta", "get", at+"/clone", "tarn.sidecar"); got == "" {
		t.Fatal("the clone has no metadata: there is nothing to see here")
	}
	for r, err := range p.Sidecars(t.Context()) {
		if err != nil || r.Name != "base" || string(r.Data) != "sidecar of base" {
			t.Errorf("Sidecars yields %q with %q, %v, want the base's alone", r.Name, r.Data, err)
		}
	}
	_, err := p.Sidecar(t.Context(), "clone")
	wantKind(t, "Sidecar of the clone", err, errs.NotFound)
	clone := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "clone"}
	_, err = p.Publish(t.Context(), clone.ID, "clone", false, []byte("x"))
	wantKind(t, "Publish under the clone's name", err, errs.Exists)
	if err := p.Delete(t.Context(), clone); err != nil {
		t.Errorf("Delete of a name that a foreign clone has: %v", err)
	}
	if _, err := p.Describe(t.Context(), clone); err != nil {
		t.Errorf("the foreign clone is gone: %v", err)
	}
}

// rados works on the objects behind the images of c.
func rados(t *testing.T, c driver.Config, words ...string) {
	t.Helper()
	space, namespace, _ := strings.Cut(c.Source.CephPool, "/")
	ceph.Start(t).Run(t, append([]string{"rados", "-p", space, "-N", namespace}, words...)...)
}

// lead makes the name to lead to the image from, as an rbd leaves it that dies
// while it renames. (The copy of "rados cp" is in no namespace.)
func lead(t *testing.T, c driver.Config, from, to string) {
	t.Helper()
	id := filepath.Join(t.TempDir(), "id")
	rados(t, c, "get", "rbd_id."+from, id)
	rados(t, c, "put", "rbd_id."+to, id)
}

// A publish that is killed while rbd renames is completed by its repeat.
func TestHalfRenamed(t *testing.T) {
	cluster := ceph.Start(t)
	c := place(t)
	p := started(t, c)
	space, name, _ := strings.Cut(c.Source.CephPool, "/")
	lead := func(from, to string) { lead(t, c, from, to) }
	id := disk.VolumeID(drivertest.NewID())
	staged := ".tarn.s." + string(id)
	if err := p.Create(t.Context(), driver.Spec{ID: id, Size: 4096}); err != nil {
		t.Fatal(err)
	}
	lead(staged, "a")
	o, err := p.Publish(t.Context(), id, "a", false, []byte("a"))
	if err != nil || o.Name != "a" {
		t.Fatalf("before the list was changed: %+v, %v", o, err)
	}
	lead("a", staged)
	again, err := p.Publish(t.Context(), id, "a", false, []byte("a"))
	if err != nil || again.BackendID != o.BackendID {
		t.Errorf("after the list was changed: %+v, %v, want %+v", again, err, o)
	}
	if got := cluster.Run(t, "rados", "-p", space, "-N", name, "ls"); strings.Contains(got, "rbd_id."+staged) {
		t.Errorf("the staged name is left:\n%s", got)
	}
	if err := p.Create(t.Context(), driver.Spec{ID: id, Size: 4096}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(t.Context(), id, "a", false, []byte("b")); !errors.Is(err, errs.Exists) {
		t.Errorf("the name of another image: %v, want errs.Exists", err)
	}
}

// canceller cancels a context when the first effect begins.
type canceller struct{ cancel func() }

func (c canceller) Before(faults.Effect) error           { c.cancel(); return nil }
func (c canceller) After(_ faults.Effect, e error) error { return e }

// A shrink that has begun is completed: one that is killed leaves an image of the
// old size without its end.
func TestCancelledShrink(t *testing.T) {
	c := place(t)
	p := started(t, c)
	a := published(t, p, "a", bytes.Repeat([]byte("a"), 8<<20), false)
	ctx, cancel := context.WithCancel(t.Context())
	defer faults.Install(canceller{cancel})()
	if err := p.Resize(ctx, a, 4<<20); err != nil || ctx.Err() == nil {
		t.Errorf("Resize that is cancelled when it has begun: %v (the context: %v)", err, ctx.Err())
	}
	if o, err := p.Describe(t.Context(), a); err != nil || o.Size != 4<<20 {
		t.Errorf("after that the volume has %d bytes, %v, want %d", o.Size, err, 4<<20)
	}
}

// A device whose daemon has died takes no watcher's place: there may be a guest's.
func TestDeadDevice(t *testing.T) {
	c := place(t)
	p := started(t, c)
	a := published(t, p, "a", []byte("a"), false)
	for _, m := range []driver.Mode{driver.Base, driver.Base, driver.Read} {
		d, err := p.Open(t.Context(), a, m)
		if err != nil {
			t.Fatalf("Open in mode %d beside a dead device: %v", m, err)
		}
		defer d.Close()
		rbddrv.EndDaemon(d)
	}
	release := hold(t, c, a)
	wantKind(t, "Resize while a guest has the volume", p.Resize(t.Context(), a, 16<<20), errs.Busy)
	wantKind(t, "Probe while a guest has the volume", p.(driver.Prober).Probe(t.Context(), a), errs.Busy)
	_, err := p.Open(t.Context(), a, driver.Read)
	wantKind(t, "Open while a guest has the volume", err, errs.Busy)
	release()
	d, err := p.Open(t.Context(), a, driver.Read)
	if err != nil {
		t.Fatalf("Open when the guest has gone: %v", err)
	}
	d.Close()
}

// Removing a pool leaves what was set aside in it to whoever looks at it.
func TestRemoveLeavesAside(t *testing.T) {
	cluster := ceph.Start(t)
	c := place(t)
	p := started(t, c)
	a := published(t, p, "a", []byte("a"), false)
	staged := disk.VolumeID(drivertest.NewID())
	if err := p.Create(t.Context(), driver.Spec{ID: staged, Size: 4096}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.(driver.Leftovers).SetAside(t.Context(), a), p.Close()); err != nil {
		t.Fatal(err)
	}
	if err := rbddrv.Type.Remove(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	want := ".tarn.a." + a.BackendID
	if got := strings.TrimSpace(cluster.Run(t, "rbd", "ls", c.Source.CephPool)); got != want {
		t.Errorf("after Remove there are the images %q, want %q", got, want)
	}
}

// What a rename or a removal leaves that was killed blocks no name.
func TestHalfGone(t *testing.T) {
	cluster := ceph.Start(t)
	c := place(t)
	p := started(t, c)
	id := disk.VolumeID(drivertest.NewID())
	if err := p.Create(t.Context(), driver.Spec{ID: id, Size: 4096}); err != nil {
		t.Fatal(err)
	}
	lead(t, c, ".tarn.s."+string(id), "a")
	lead(t, c, ".tarn.s."+string(id), ".tarn.s.again")
	if err := p.Delete(t.Context(), driver.Ref{ID: id, Name: "a"}); err != nil {
		t.Fatalf("Delete of a half renamed volume: %v", err)
	}
	if err := p.Create(t.Context(), driver.Spec{ID: "again", Size: 4096}); err != nil {
		t.Errorf("Create of an id that leads nowhere: %v", err)
	}
	a := published(t, p, "a", []byte("a"), false)
	rados(t, c, "rm", "rbd_header."+a.BackendID) // a removal that died
	if err := p.Delete(t.Context(), a); err != nil {
		t.Errorf("Delete of a half removed volume: %v", err)
	}
	published(t, p, "a", []byte("a"), false)
	if got := strings.Fields(cluster.Run(t, "rbd", "ls", c.Source.CephPool)); len(got) != 3 {
		t.Errorf("there are the images %q, want the pool's, the staged one and a", got)
	}
}

// A tarnd that the cluster has shut out changes nothing any more and says so, for
// good; it can serve again when it has opened the pool anew.
func TestFenced(t *testing.T) {
	cluster := ceph.Start(t)
	for name, notice := range map[string]func(driver.Driver, driver.Ref) error{
		"Resize": func(p driver.Driver, a driver.Ref) error { return p.Resize(t.Context(), a, 16<<20) },
		"Publish": func(p driver.Driver, _ driver.Ref) error {
			_, err := p.Publish(t.Context(), "staged", "b", false, []byte("b"))
			return err
		},
		"Delete": func(p driver.Driver, a driver.Ref) error { return p.Delete(t.Context(), a) },
		"Stat":   func(p driver.Driver, _ driver.Ref) error { _, err := p.Stat(t.Context()); return err },
	} {
		c := place(t)
		p := started(t, c)
		a := published(t, p, "a", []byte("a"), false)
		if err := p.Create(t.Context(), driver.Spec{ID: "staged", Size: 4096}); err != nil {
			t.Fatal(err)
		}
		status := cluster.Run(t, "rbd", "status", c.Source.CephPool+"/.tarn.pool")
		holder := regexp.MustCompile(`watcher=(\S+)`).FindStringSubmatch(status)
		if holder == nil {
			t.Fatalf("nobody holds the pool:\n%s", status)
		}
		cluster.Run(t, "ceph", "osd", "blocklist", "add", holder[1])
		before := residue(t, c)
		err := notice(p, a)
		wantKind(t, name+" by one who is shut out", err, errs.Unavailable)
		var e *errs.Error
		if errors.As(err, &e) && !strings.Contains(e.Hint, "tarn pool stop") {
			t.Errorf("%s: the hint is %q", name, e.Hint)
		}
		cluster.Run(t, "ceph", "osd", "blocklist", "rm", holder[1])
		_, err = p.Describe(t.Context(), a)
		wantKind(t, "after "+name+" Describe", err, errs.Unavailable)
		if got := residue(t, c); !slices.Equal(got, before) {
			t.Errorf("%s by one who is shut out made %q of %q", name, got, before)
		}
		_ = p.Close()
		if _, err := reopened(t, c).Describe(t.Context(), a); err != nil {
			t.Errorf("%s: when the pool is opened again Describe: %v", name, err)
		}
	}
}

// Images of which the cluster cannot tell quickly what they take keep nobody
// waiting, and hide nothing else.
func TestSlowToMeasure(t *testing.T) {
	cluster := ceph.Start(t)
	c := place(t)
	p := started(t, c)
	a := published(t, p, "a", bytes.Repeat([]byte("a"), 4<<20), false)
	b := published(t, p, "b", bytes.Repeat([]byte("b"), 4<<20), false)
	const own = 4096 // of the image that holds the pool
	physical := p.(driver.Physical).Physical
	if n, err := physical(t.Context()); err != nil || n != own+(8<<20) {
		t.Errorf("Physical = %d, %v, want %d", n, err, own+(8<<20))
	}
	const huge = 100 << 40
	cluster.Run(t, "rbd", "create", "--size", "100T", "--image-feature", "layering", c.Source.CephPool+"/foreign")
	cluster.Run(t, "rbd", "feature", "disable", c.Source.CephPool+"/b", "fast-diff")
	began := time.Now()
	for _, row := range []struct {
		r    driver.Ref
		want driver.Object
	}{
		{a, driver.Object{Name: "a", Size: 8 << 20, Allocated: 4 << 20}},
		{b, driver.Object{Name: "b", Size: 8 << 20, Allocated: 8 << 20}},
		{driver.Ref{Name: "foreign"}, driver.Object{Name: "foreign", Size: huge, Allocated: huge}},
	} {
		got, err := p.Describe(t.Context(), row.r)
		if got.BackendID = ""; err != nil || got != row.want {
			t.Errorf("Describe = %+v, %v, want %+v", got, err, row.want)
		}
	}
	var sizes []int64
	for o, err := range p.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, o.Size)
	}
	if want := []int64{8 << 20, 8 << 20, huge}; !slices.Equal(sizes, want) {
		t.Errorf("List yields sizes %d, want %d", sizes, want)
	}
	if n, err := physical(t.Context()); err != nil || n != own+(4<<20) {
		t.Errorf("Physical beside a slow image = %d, %v, want %d", n, err, own+(4<<20))
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("all that took %v", took)
	}
}

// A cluster that does not answer is given up after a bounded time, by calls and
// by open devices.
func TestClusterDown(t *testing.T) {
	cluster := ceph.Own(t)
	c := placeIn(t, cluster)
	p := started(t, c)
	a := published(t, p, "a", []byte("a"), false)
	d, err := p.Open(t.Context(), a, driver.Write)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(rbddrv.SetPatience(3 * time.Second))
	quick, err := p.Open(t.Context(), a, driver.Base)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	thaw := cluster.Freeze(t)
	_, err = p.Describe(t.Context(), a)
	wantKind(t, "Describe", err, errs.Unavailable)
	_, err = quick.ReadAt(make([]byte, 10), 4<<20)
	wantKind(t, "ReadAt", err, errs.Unavailable)
	wantKind(t, "Create", p.Create(t.Context(), driver.Spec{ID: "new", Size: 4096}), errs.Unavailable)
	if took := time.Since(began); took > time.Minute {
		t.Errorf("being told took %v", took)
	}
	thaw()
	rbddrv.SetPatience(30 * time.Second)
	_ = quick.Close()
	if _, err := d.WriteAt([]byte("again"), 0); err != nil {
		t.Errorf("when the cluster is back WriteAt: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if _, err := p.Describe(t.Context(), a); err != nil {
		t.Errorf("when the cluster is back Describe: %v", err)
	}
	down := c
	conf, err := os.ReadFile(cluster.Conf)
	down.Source.CephConf = filepath.Join(t.TempDir(), "ceph.conf")
	if err != nil || os.WriteFile(down.Source.CephConf, regexp.MustCompile(`(?m)^mon host =.*$`).ReplaceAll(conf, []byte("mon host = [v1:127.0.0.1:1/0]")), 0o600) != nil {
		t.Fatal(err)
	}
	rbddrv.SetPatience(3 * time.Second)
	_, err = rbddrv.Type.Marker(t.Context(), down)
	wantKind(t, "Marker without a monitor", err, errs.Unavailable)
}

// TestKilled kills a process that serves a pool and writes a volume of it. Both
// can be had at once, not after Ceph's half a minute.
func TestKilled(t *testing.T) {
	if at := os.Getenv("TARN_TEST_KILLED"); at != "" {
		c := driver.Config{ID: disk.PoolID(os.Getenv("TARN_TEST_KILLED_ID")), Source: disk.PoolSource{CephPool: at, CephConf: os.Getenv("TARN_TEST_KILLED_CONF")}}
		p, _, err := rbddrv.Type.Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Open(t.Context(), driver.Ref{ID: "x", Name: "a"}, driver.Write)
		if err == nil {
			_, err = d.WriteAt([]byte("written"), 0)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, _ = os.NewFile(3, "ready").WriteString("x")
		select {}
	}
	c := place(t)
	p := started(t, c)
	a := published(t, p, "a", []byte("a"), false)
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "TARN_TEST_KILLED="+c.Source.CephPool, "TARN_TEST_KILLED_ID="+string(c.ID), "TARN_TEST_KILLED_CONF="+c.Source.CephConf)
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{w}, os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_, _, err = rbddrv.Type.Open(t.Context(), c)
	wantKind(t, "Open of a pool that another process serves", err, errs.Busy)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	killed := time.Now()
	p = nil
	for p == nil {
		if p, _, err = rbddrv.Type.Open(t.Context(), c); err != nil {
			wantKind(t, "Open after the kill", err, errs.Busy)
		}
		if t.Failed() || time.Since(killed) > time.Minute {
			t.Fatalf("the pool cannot be had: %v", err)
		}
	}
	defer p.Close()
	d, err := p.Open(t.Context(), a, driver.Write)
	if err != nil {
		t.Fatalf("%v after the kill: %v", time.Since(killed), err)
	}
	defer d.Close()
	if took := time.Since(killed); took > 20*time.Second {
		t.Errorf("the volume could be had %v after the kill", took)
	}
	got := make([]byte, 7)
	if _, err := d.ReadAt(got, 0); err != nil || string(got) != "written" {
		t.Errorf("what was written before the kill reads %q, %v", got, err)
	}
}
