package engine_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/test/oracle"
)

// foreignBytes is what a file that tarn did not make holds: whole blocks.
func foreignBytes() []byte { return append(imageBytes(), make([]byte, 1<<20)...) }

// adopt takes what lies in pool main.
func (b *bench) adopt(name, format, instance, role string) api.Operation {
	b.t.Helper()
	return b.must(b.VolumeAdopt(context.Background(), api.Options{}, api.VolumeAdopt{Pool: "main", Name: name, Format: format, Instance: instance, Role: role}))
}

// foreign returns the names of what tarn did not make.
func (b *bench) foreign() (names []string) {
	b.t.Helper()
	for _, o := range listOf(b.Foreign(context.Background(), "")).Items {
		names = append(names, o.Name)
	}
	return names
}

// lies tells how a file lies in its directory.
type lies struct {
	inode    uint64
	mode     os.FileMode
	size     int64
	uid, gid uint32
}

func how(t *testing.T, path string) lies {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return lies{st.Ino, info.Mode(), info.Size(), st.Uid, st.Gid}
}

// TestAdopt takes a file for a disk, loses the database, and lets the file go.
func TestAdopt(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool, content := b.pool("main"), foreignBytes()
	path := filepath.Join(pool, "old disk.raw")
	do(t, os.WriteFile(path, content, 0o644))
	was := how(t, path)
	b.instance("web1")
	if got := b.foreign(); len(got) != 1 || got[0] != "old disk.raw" {
		t.Errorf("foreign are %q, want the file", got)
	}
	committed := must(b.Pool(ctx, "main")).Committed

	r := api.VolumeAdopt{Pool: "main", Name: "old disk.raw", Format: "raw", Instance: "web1", Role: "root"}
	plan := must(b.VolumeAdopt(ctx, api.Options{DryRun: true}, r)).Plan
	if plan == nil || len(plan.Notes) == 0 || how(t, path) != was || len(b.foreign()) != 1 {
		t.Errorf("a dry run gave the plan %+v and left %+v, want %+v", plan, how(t, path), was)
	}
	b.must(b.VolumeAdopt(ctx, none, r))
	if now := how(t, path); now.inode != was.inode || now.size != was.size || now.mode != 0o600 {
		t.Errorf("the adopted file is %+v, was %+v; want the same file, mode 0600", now, was)
	}
	if !bytes.Equal(b.read("web1/root"), content) || len(b.foreign()) != 0 {
		t.Errorf("the adopted disk does not read as the file, or is foreign still: %q", b.foreign())
	}
	if got := must(b.Pool(ctx, "main")).Committed; got != committed+int64(len(content)) {
		t.Errorf("committed are %d bytes, want those of the adopted disk beside %d", got, committed)
	}
	b.silent("adopting a file")
	disk := must(b.Disk(ctx, "web1/root"))

	b.loseDatabase()
	b.must(b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: pool}))
	if got := must(b.Disk(ctx, "web1/root")); got.Serial != disk.Serial || got.Volume != disk.Volume {
		t.Errorf("after a lost database the adopted disk is %+v, was %+v", got, disk)
	}
	b.silent("a lost database")
	b.must(b.DiskResize(ctx, none, "web1/root", api.DiskResize{By: 1 << 20}))
	b.must(b.VolumeRelease(ctx, none, "main/old disk.raw"))
	if got := must(os.ReadFile(path)); !bytes.Equal(got, append(content, make([]byte, 1<<20)...)) {
		t.Errorf("the released file has %d bytes, or others than the disk had", len(got))
	}
	if _, err := os.Stat(path + ".tarn.json"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the sidecar of a released volume: %v", err)
	}
	b.silent("a release")
	b.adopt("old disk.raw", "raw", "web1", "")
	b.must(b.DiskDelete(ctx, none, "web1/data0"))
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an adopted disk that was deleted: %v, want that its file is gone", err)
	}
	b.silent("the deletion of an adopted disk")
}

// TestAdoptEncrypted takes a disk that its guest has encrypted: for tarn it is raw,
// but what is said to be raw is not encrypted.
func TestAdoptEncrypted(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	path := filepath.Join(b.pool("main"), "secret")
	for _, version := range []string{"luks1", "luks2"} {
		key := filepath.Join(t.TempDir(), "key")
		do(t, os.WriteFile(key, []byte("0123456789abcdef"), 0o600), os.WriteFile(path, make([]byte, 20<<20), 0o600))
		oracle.Run(t, "cryptsetup-bin", "cryptsetup", "luksFormat", "--batch-mode", "--type", version, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, path)
		content := must(os.ReadFile(path))
		b.instance(version)
		out, err := b.VolumeAdopt(ctx, none, api.VolumeAdopt{Pool: "main", Name: "secret", Format: "raw", Instance: version})
		b.fails(errs.Unsafe, out, err)
		b.adopt("secret", "luks", version, "root")
		if got := must(b.Disk(ctx, version+"/root")); got.Format != "raw" || !bytes.Equal(b.read(version+"/root"), content) {
			t.Errorf("adopted as %s, or it reads otherwise; want raw with the bytes of the file", got.Format)
		}
		b.must(b.DiskResize(ctx, none, version+"/root", api.DiskResize{By: 1 << 20}))
		b.silent("adopting an encrypted disk")
		b.must(b.DiskDelete(ctx, none, version+"/root"))
	}
}

// chainOfThree makes base.raw, middle.qcow2 over it and top.qcow2 over that in dir
// and returns what the top reads as.
func chainOfThree(t *testing.T, dir string) []byte {
	t.Helper()
	qemu := func(args ...string) { t.Helper(); oracle.Run(t, "qemu-utils", "qemu-img", args...) }
	do(t, os.WriteFile(filepath.Join(dir, "base.raw"), foreignBytes(), 0o644))
	t.Chdir(dir)
	qemu("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "middle.qcow2", "3M")
	qemu("create", "-q", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", "top.qcow2", "4M")
	oracle.Run(t, "qemu-utils", "qemu-io", "-f", "qcow2", "-c", "write -P 7 64k 64k", "middle.qcow2")
	oracle.Run(t, "qemu-utils", "qemu-io", "-f", "qcow2", "-c", "write -P 9 2M 64k", "top.qcow2")
	flat := filepath.Join(t.TempDir(), "flat.raw")
	qemu("convert", "-f", "qcow2", "-O", "raw", "top.qcow2", flat)
	return must(os.ReadFile(flat))
}

// TestAdoptChain takes a chain of layers, the lowest first, and lets it go.
func TestAdoptChain(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	content := chainOfThree(t, pool)
	b.instance("web1")
	top := api.VolumeAdopt{Pool: "main", Name: "top.qcow2", Format: "qcow2", Instance: "web1", Role: "root"}
	for _, lower := range []string{"base.raw", "middle.qcow2"} {
		out, err := b.VolumeAdopt(ctx, none, top)
		b.fails(errs.Unsafe, out, err)
		b.adopt(lower, map[string]string{"base.raw": "raw", "middle.qcow2": "qcow2"}[lower], "", "")
	}
	bad := top
	bad.Role = "ephemeral"
	out, err := b.VolumeAdopt(ctx, none, bad)
	b.fails(errs.Unsafe, out, err)
	b.must(b.VolumeAdopt(ctx, none, top))
	check := func(after string) {
		t.Helper()
		if !bytes.Equal(b.read("web1/root"), content) {
			t.Errorf("after %s the adopted chain does not read as QEMU reads it", after)
		}
		b.silent(after)
	}
	check("adopting a chain")
	b.must(b.CachePrune(ctx, none, api.CachePrune{}))
	b.must(b.Scrub(ctx, none, api.Scrub{}))
	check("prune and scrub")
	out, err = b.PoolDelete(ctx, none, "main", false)
	b.fails(errs.Busy, out, err)
	b.loseDatabase()
	b.must(b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: pool}))
	check("a lost database")
	b.must(b.PoolDelete(ctx, none, "main", true))
	b.must(b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: pool}))
	check("giving the pool up")
	for _, lower := range []string{"base.raw", "middle.qcow2"} {
		out, err := b.VolumeRelease(ctx, none, "main/"+lower)
		b.fails(errs.Busy, out, err)
	}
	for _, name := range []string{"top.qcow2", "middle.qcow2", "base.raw"} {
		b.must(b.VolumeRelease(ctx, none, "main/"+name))
	}
	if got := b.foreign(); len(got) != 3 {
		t.Errorf("released are %q, want all three", got)
	}
	b.silent("releasing a chain")
	oracle.Run(t, "qemu-utils", "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", filepath.Join(pool, "top.qcow2"), filepath.Join(pool, "top.qcow2"))
}

// TestAdoptTwins takes two bases of one content, beside the image that has it too.
func TestAdoptTwins(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	content := b.image("debian", 1<<20, "")
	for _, name := range []string{"one.raw", "two.raw"} {
		do(t, os.WriteFile(filepath.Join(pool, name), content, 0o644))
		b.adopt(name, "raw", "", "")
	}
	b.silent("adopting twins")
	if n := len(listOf(b.Cache(ctx, api.Page{})).Items); n != 1 {
		t.Errorf("the cache has %d bases, want the image's own", n)
	}
	b.must(b.ImageDelete(ctx, none, "debian"))
	for _, name := range []string{"one.raw", "two.raw"} {
		if !bytes.Equal(must(os.ReadFile(filepath.Join(pool, name))), content) {
			t.Errorf("%s does not hold what it did", name)
		}
		b.must(b.VolumeRelease(ctx, none, name))
	}
	b.silent("releasing twins")
}

// TestAdoptRefuses tries what cannot be adopted; nothing of it changes.
func TestAdoptRefuses(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "root", Size: 1 << 20})
	at := func(name string) string { return filepath.Join(pool, name) }
	qemu := func(args ...string) { t.Helper(); oracle.Run(t, "qemu-utils", "qemu-img", args...) }
	make := func(name string, options string) {
		t.Helper()
		args := []string{"create", "-q", "-f", "qcow2"}
		if options != "" {
			args = append(args, "-o", options)
		}
		qemu(append(args, at(name), "2M")...)
	}
	do(t, os.WriteFile(at("a.raw"), foreignBytes(), 0o644), os.WriteFile(at("odd.raw"), foreignBytes()[:1<<20+512], 0o644),
		os.WriteFile(at("empty.raw"), nil, 0o644), os.WriteFile(at("linked.raw"), foreignBytes(), 0o644),
		os.Link(at("linked.raw"), at("other.raw")), os.Symlink("a.raw", at("sym.raw")), os.Mkdir(at("dir"), 0o755),
		os.WriteFile(at("side.raw"), foreignBytes(), 0o644), os.WriteFile(at("side.raw.tarn.json"), []byte("{}"), 0o644),
		os.WriteFile(at("held.raw"), foreignBytes(), 0o644), os.WriteFile(at("20G"), foreignBytes(), 0o644))
	make("plain.qcow2", "")
	make("lazy.qcow2", "lazy_refcounts=on")
	make("subclusters.qcow2", "extended_l2=on")
	make("snapshots.qcow2", "")
	qemu("snapshot", "-c", "s", at("snapshots.qcow2"))
	qemu("create", "-q", "-f", "qcow2", "-b", at("a.raw"), "-F", "raw", at("far.qcow2"))
	qemu("create", "-q", "-f", "qcow2", "-b", "/dev/null", "-F", "raw", at("outside.qcow2"), "2M")
	held, err := os.OpenFile(at("held.raw"), os.O_RDWR, 0)
	do(t, err)
	defer held.Close()
	if os.Geteuid() == 0 {
		do(t, os.WriteFile(at("theirs.raw"), foreignBytes(), 0o644), os.Chown(at("theirs.raw"), 12345, 0))
	}
	b.adopt("a.raw", "raw", "", "")
	b.must(b.VolumeRelease(ctx, none, "a.raw"))
	before := map[string]lies{}
	for _, name := range b.foreign() {
		before[name] = how(t, at(name))
	}
	for _, row := range []struct {
		name, format, instance, role string
		want                         errs.Kind
	}{
		{"a.raw", "", "web1", "", errs.Invalid},
		{"a.raw", "vmdk", "web1", "", errs.Invalid},
		{"a.raw", "ploop", "web1", "", errs.Unsupported},
		{"a.raw", "qcow2", "web1", "", errs.Unsafe},
		{"plain.qcow2", "raw", "web1", "", errs.Unsafe},
		{"odd.raw", "raw", "web1", "", errs.Unsafe},
		{"empty.raw", "raw", "web1", "", errs.Unsafe},
		{"linked.raw", "raw", "web1", "", errs.Unsafe},
		{"sym.raw", "raw", "web1", "", errs.Unsafe},
		{"dir", "raw", "web1", "", errs.Unsafe},
		{"side.raw", "raw", "web1", "", errs.Exists},
		{"held.raw", "raw", "web1", "", errs.Busy},
		{"20G", "raw", "web1", "", errs.Invalid},
		{"lazy.qcow2", "qcow2", "web1", "", errs.Unsafe},
		{"subclusters.qcow2", "qcow2", "web1", "", errs.Unsafe},
		{"snapshots.qcow2", "qcow2", "web1", "", errs.Unsafe},
		{"far.qcow2", "qcow2", "web1", "", errs.Unsafe},
		{"outside.qcow2", "qcow2", "web1", "", errs.Unsafe},
		{"nosuch", "raw", "web1", "", errs.NotFound},
		{"../pool/a.raw", "raw", "web1", "", errs.Invalid},
		{"a.raw", "raw", "nosuch", "", errs.NotFound},
		{"a.raw", "raw", "web1", "root", errs.Exists},
		{"a.raw", "raw", "web1", "config", errs.Invalid},
		{"a.raw", "raw", "", "root", errs.Invalid},
		{"theirs.raw", "raw", "web1", "", errs.Unsafe},
	} {
		if row.name == "theirs.raw" && os.Geteuid() != 0 {
			continue
		}
		t.Run(row.name+" as "+row.format+" "+row.role, func(t *testing.T) {
			on := *b
			on.t = t
			out, err := b.VolumeAdopt(ctx, none, api.VolumeAdopt{Pool: "main", Name: row.name, Format: row.format, Instance: row.instance, Role: row.role})
			on.fails(row.want, out, err)
		})
	}
	for name, was := range before {
		if now := how(t, at(name)); now != was {
			t.Errorf("%s is %+v, was %+v", name, now, was)
		}
	}
	out, err := b.VolumeRelease(ctx, none, must(b.Disk(ctx, "web1/root")).Volume)
	b.fails(errs.Conflict, out, err)
	b.adopt("plain.qcow2", "qcow2", "web1", "data")
	must(b.DiskAttach(ctx, "web1/data0", api.Attach{As: "qemu"}))
	out, err = b.VolumeRelease(ctx, none, "plain.qcow2")
	b.fails(errs.Busy, out, err)
}

// TestAdoptVersion2 says before it adopts an old qcow2 file that it cannot grow.
func TestAdoptVersion2(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	path := filepath.Join(b.pool("main"), "old.qcow2")
	b.instance("web1")
	for compat, warned := range map[string]bool{"0.10": true, "v3": false} {
		oracle.Run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat="+compat, path, "2M")
		plan := must(b.VolumeAdopt(ctx, api.Options{DryRun: true}, api.VolumeAdopt{Pool: "main", Name: "old.qcow2", Format: "qcow2", Instance: "web1"})).Plan
		if got := strings.Contains(strings.Join(plan.Notes, "\n"), "cannot be resized"); got != warned {
			t.Errorf("of compat=%s the plan warns: %v, want %v: %q", compat, got, warned, plan.Notes)
		}
	}
}

// TestAdoptionsOfALostJournal finds adopted volumes in states that no operation
// explains: whatever they were to become, their files stay.
func TestAdoptionsOfALostJournal(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.pool("main"), "old.raw")
	do(t, os.WriteFile(path, foreignBytes(), 0o644))
	b.instance("web1", api.DiskSpec{Role: "root", Size: 1 << 20})
	for _, state := range []string{"creating", "deleting"} {
		b.adopt("old.raw", "raw", "web1", "")
		b.sql("UPDATE volumes SET state = '" + state + "' WHERE name = 'old.raw'")
		r := b.doctor(true)
		if len(r.Problems) != 1 || r.Problems[0].Invariant != "I1" || !r.Problems[0].Repaired {
			t.Errorf("%s: doctor said %+v, want one problem of I1 that it repaired", state, r.Problems)
		}
		if !bytes.Equal(must(os.ReadFile(path)), foreignBytes()) || len(b.foreign()) != 1 {
			t.Errorf("%s: the file is not foreign as it was: %q", state, b.foreign())
		}
		b.silent("repairing " + state)
	}
}

// withFile is a world with an instance and a file that tarn did not make.
func (w *world) withFile() steps {
	return append(w.withPool(), func(ctx context.Context, e *engine.Engine) error {
		out, err := e.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Size: 1 << 20}}})
		path := filepath.Join(w.pool, "old.raw")
		w.kept = map[string][]byte{path: foreignBytes()}
		return errors.Join(finished(ctx, e, out, err), os.WriteFile(path, foreignBytes(), 0o644))
	})
}

func (w *world) withAdopted() steps {
	return append(w.withFile(), func(ctx context.Context, e *engine.Engine) error { return w.adopt("web1")(w, ctx, e) })
}

// adopt takes the file for a disk of an instance, or for a base.
func (*world) adopt(instance string) func(*world, context.Context, *engine.Engine) error {
	return func(_ *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.VolumeAdopt(ctx, api.Options{}, api.VolumeAdopt{Pool: "main", Name: "old.raw", Format: "raw", Instance: instance})
		return finished(ctx, e, out, err)
	}
}

func (w *world) releaseFile(ctx context.Context, e *engine.Engine) error {
	out, err := e.VolumeRelease(ctx, api.Options{}, "main/old.raw")
	return finished(ctx, e, out, err)
}

// TestAdoptEverywhere makes a disk foreign and takes it back.
func TestAdoptEverywhere(t *testing.T) {
	onEach(t, []technology{directory, ploop}, func(t *testing.T, tech technology) {
		ctx, none := context.Background(), api.Options{}
		b := newBench(t)
		r := tech.pool(t)
		r.Name = "main"
		b.must(b.PoolCreate(ctx, none, r))
		b.instance("web1", api.DiskSpec{Role: "swap", Size: 8 << 20, Format: "raw"})
		b.instance("web2")
		content, name := b.read("web1/swap"), must(b.Volume(ctx, must(b.Disk(ctx, "web1/swap")).Volume)).Name
		b.sql("UPDATE volumes SET adopted = 1")
		for start := time.Now(); must(b.Pool(ctx, "main")).State != "active" && time.Since(start) < time.Minute; runtime.Gosched() {
		}
		b.must(b.VolumeRelease(ctx, none, "main/"+name))
		if got := b.foreign(); len(got) != 1 || got[0] != name {
			t.Fatalf("foreign are %q, want the disk's object %s", got, name)
		}
		adopt := api.VolumeAdopt{Pool: "main", Name: name, Format: "raw", Instance: "web2", Role: "root"}
		if tech.name == "ploop" {
			adopt.Format = "ploop"
		}
		b.must(b.VolumeAdopt(ctx, none, adopt))
		if !bytes.Equal(b.read("web2/root"), content) {
			t.Errorf("the adopted disk reads otherwise than before")
		}
		b.silent("adopting a disk")
		if !tech.slow || os.Getenv("TARN_SLOW") != "" {
			b.must(b.DiskResize(ctx, none, "web2/root", api.DiskResize{By: 4 << 20}))
			b.loseDatabase()
			b.must(b.PoolImport(ctx, none, imported(r)))
			b.silent("a lost database")
		}
		b.must(b.InstanceDelete(ctx, none, "web2"))
		if got := b.foreign(); len(got) != 0 {
			t.Errorf("after the deletion of an adopted disk %q lie there", got)
		}
	})
}

// description is how another program than tarn describes a disk.
const description = `<?xml version='1.0' encoding='UTF-8'?>
<Parallels_disk_image Version="1.0">
    <Disk_Parameters><Disk_size>8192</Disk_size><Cylinders>16</Cylinders><Heads>16</Heads><Sectors>32</Sectors><Padding>0</Padding></Disk_Parameters>
    <StorageData><Storage><Start>0</Start><End>8192</End><Blocksize>2048</Blocksize>
        <Image><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><Type>Compressed</Type><File>root.hds</File></Image></Storage></StorageData>
    <Snapshots><Shot><GUID>{5fbaabe3-6958-40ff-92a7-860e329aab41}</GUID><ParentGUID>{00000000-0000-0000-0000-000000000000}</ParentGUID></Shot></Snapshots>
</Parallels_disk_image>
`

// TestAdoptBundle takes a bundle whose image QEMU has made.
func TestAdoptBundle(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	r := ploop.pool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	b.instance("web1")
	dir := filepath.Join(r.Path, "old")
	image, flat := filepath.Join(dir, "root.hds"), filepath.Join(t.TempDir(), "flat.raw")
	do(t, os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "DiskDescriptor.xml"), []byte(description), 0o644))
	oracle.Run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "parallels", image, "4M")
	oracle.Run(t, "qemu-utils", "qemu-io", "-f", "parallels", "-c", "write -P 7 1M 64k", image)
	oracle.Run(t, "qemu-utils", "qemu-img", "convert", "-f", "parallels", "-O", "raw", image, flat)
	adopt := api.VolumeAdopt{Pool: "main", Name: "old", Format: "raw", Instance: "web1", Role: "root"}
	out, err := b.VolumeAdopt(ctx, none, adopt)
	b.fails(errs.Unsupported, out, err)
	stray := filepath.Join(dir, "stray")
	do(t, os.WriteFile(stray, nil, 0o644))
	adopt.Format = "ploop"
	out, err = b.VolumeAdopt(ctx, none, adopt)
	b.fails(errs.Unsafe, out, err)
	do(t, os.Remove(stray))
	b.must(b.VolumeAdopt(ctx, none, adopt))
	if !bytes.Equal(b.read("web1/root"), must(os.ReadFile(flat))) {
		t.Error("the adopted bundle reads otherwise than in QEMU")
	}
	b.silent("adopting a bundle")
	b.must(b.VolumeRelease(ctx, none, "main/old"))
	oracle.Run(t, "qemu-utils", "qemu-img", "compare", "-f", "parallels", "-F", "raw", image, flat)
	b.adopt("old", "ploop", "web1", "data")
	b.silent("adopting it again")
}
