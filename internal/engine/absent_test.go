package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// TestIfAbsent asks for an instance that is there: only one of the same shape
// will do, and it takes an operation that says that nothing was done.
func TestIfAbsent(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	b.pool("one")
	b.pool("two")
	b.image("debian", 1<<20, "one")
	b.image("other", 1<<20, "one")
	create := func(change func(*api.InstanceCreate)) (api.Outcome, error) {
		r := api.InstanceCreate{Name: "web1", Pool: "one", IfAbsent: true, Disks: []api.DiskSpec{
			{Role: "root", Image: "debian", Size: 2 << 20, Bus: "scsi"}, {Role: "data", Size: 8 << 20, FS: "ext4", Label: "x"},
		}, ConfigDrive: &api.ConfigDrive{Kind: "cidata", Files: []api.ConfigFile{{Path: "user-data", Data: []byte("#cloud-config\n")}}}}
		if change != nil {
			change(&r)
		}
		return b.InstanceCreate(ctx, none, r)
	}
	b.must(create(nil))
	before := jsonOf(t, must(b.Instance(ctx, "web1")))
	id := must(b.Instance(ctx, "web1")).ID
	b.must(b.ImageRename(ctx, none, "debian", "bookworm"))

	for name, change := range map[string]func(*api.InstanceCreate){
		"the same":        func(r *api.InstanceCreate) { r.Disks[0].Image = "bookworm" },
		"its id":          func(r *api.InstanceCreate) { r.ID, r.Disks[0].Image = id, "bookworm" },
		"nothing special": func(r *api.InstanceCreate) { r.Pool, r.Disks[0].Image, r.Disks[0].Bus = "", "bookworm", "" },
	} {
		t.Log(name)
		b.unchanged(create(change))
	}
	for says, change := range map[string]func(*api.InstanceCreate){
		"its id is":    func(r *api.InstanceCreate) { r.ID = "01980000-0000-7000-8000-000000000000" },
		"3 disks":      func(r *api.InstanceCreate) { r.Disks = r.Disks[:1] },
		"the size":     func(r *api.InstanceCreate) { r.Disks[1].Size = 16 << 20 },
		"the role":     func(r *api.InstanceCreate) { r.Disks[1] = api.DiskSpec{Role: "ephemeral", Size: 8 << 20} },
		"file system":  func(r *api.InstanceCreate) { r.Disks[1].FS = "vfat" },
		"the label":    func(r *api.InstanceCreate) { r.Disks[1].Label = "y" },
		"not other":    func(r *api.InstanceCreate) { r.Disks[0].Image = "other" },
		"not nosuch":   func(r *api.InstanceCreate) { r.Disks[0].Image = "nosuch" },
		"not virtio":   func(r *api.InstanceCreate) { r.Disks[0].Bus = "virtio" },
		"not two":      func(r *api.InstanceCreate) { r.Pool = "two" },
		"config drive": func(r *api.InstanceCreate) { r.ConfigDrive.Files[0].Data = []byte("#cloud-config\n# 2\n") },
	} {
		_, err := create(func(r *api.InstanceCreate) { r.Disks[0].Image = "bookworm"; change(r) })
		if !errors.Is(err, errs.Exists) || !strings.Contains(err.Error(), says) {
			t.Errorf("another shape: got %v, want %s that says %q", err, errs.Exists, says)
		}
	}
	if after := jsonOf(t, must(b.Instance(ctx, "web1"))); after != before {
		t.Errorf("asking changed the instance:\n%s\nwas\n%s", after, before)
	}
	plan, err := b.InstanceCreate(ctx, api.Options{DryRun: true}, api.InstanceCreate{Name: "web1", IfAbsent: true})
	if !errors.Is(err, errs.Exists) {
		t.Errorf("a dry run of another shape: %+v, %v, want %s", plan, err, errs.Exists)
	}
	if _, err := b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web2", Pool: "one", IfAbsent: true, Disks: []api.DiskSpec{{Role: "root", Image: "nosuch"}}}); !errors.Is(err, errs.NotFound) {
		t.Errorf("an absent one of no image: %v, want %s", err, errs.NotFound)
	}
	b.silent("asking for what is there")
}

// TestIfAbsentAtOnce asks for one instance several times at once, also where its
// base has to be fetched first: all get it.
func TestIfAbsentAtOnce(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("one")
	b.pool("two")
	b.image("debian", 1<<20, "one")
	for _, disk := range []api.DiskSpec{{Role: "data", Size: 1 << 20}, {Role: "root", Image: "debian"}} {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				out, err := b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: disk.Role, Pool: "two", IfAbsent: true, Disks: []api.DiskSpec{disk}})
				if err != nil {
					t.Errorf("%s: %v", disk.Role, err)
					return
				}
				if op := b.do(out, nil); op.State != "done" {
					t.Errorf("%s: %s %+v", disk.Role, op.State, op.Error)
				}
			})
		}
		all.Wait()
	}
	if l := listOf(b.Instances(ctx, api.Page{})); len(l.Items) != 2 || len(l.Items[0].Disks) != 1 || len(l.Items[1].Disks) != 1 {
		t.Errorf("there are %+v, want two instances with a disk each", l.Items)
	}
	b.silent("asking at once")
}

// unchanged demands an operation that says that nothing was done.
func (b *bench) unchanged(out api.Outcome, err error) {
	b.t.Helper()
	if op := b.must(out, err); op.ID == "" || string(op.Result) != `{"unchanged":true}` {
		b.t.Errorf("operation %q has the result %s, want one that says that nothing was done", op.ID, op.Result)
	}
}

// TestPoolIfAbsent asks for a pool that is there.
func TestPoolIfAbsent(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	r := api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p"), IfAbsent: true,
		DiskFormat: "qcow2", ImageFormats: []string{"raw", "qcow2"}, Overcommit: new(1.5), Reserve: "7%"}
	b.must(b.PoolCreate(ctx, none, r))
	before := jsonOf(t, must(b.Pool(ctx, "p")).Overcommit)
	b.unchanged(b.PoolCreate(ctx, none, r))
	b.unchanged(b.PoolCreate(ctx, none, api.PoolCreate{Name: "p", Driver: "dir", Path: r.Path, IfAbsent: true}))
	others := map[string]func(*api.PoolCreate){
		"the path":        func(r *api.PoolCreate) { r.Path += "2" },
		"the disk format": func(r *api.PoolCreate) { r.DiskFormat = "raw" },
		"image formats":   func(r *api.PoolCreate) { r.ImageFormats = []string{"raw"} },
		"the overcommit":  func(r *api.PoolCreate) { r.Overcommit = new(2.0) },
		"the reserve":     func(r *api.PoolCreate) { r.Reserve = "1G" },
	}
	if os.Geteuid() == 0 { // nobody else can give a pool to another user
		others["the owner"] = func(r *api.PoolCreate) { r.Owner = "1:1" }
	}
	for says, change := range others {
		other := r
		change(&other)
		if _, err := b.PoolCreate(ctx, none, other); !errors.Is(err, errs.Exists) || !strings.Contains(err.Error(), says) {
			t.Errorf("another pool: got %v, want %s that says %q", err, errs.Exists, says)
		}
	}
	if after := jsonOf(t, must(b.Pool(ctx, "p")).Overcommit); after != before {
		t.Errorf("asking changed the overcommit from %s to %s", before, after)
	}
}

// TestImageIfAbsent asks for an image that is there: its bytes are not read.
func TestImageIfAbsent(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	b.pool("one")
	b.pool("two")
	data := []byte(strings.Repeat("tarn", 1024))
	sum := fmt.Sprintf("%x", sha256.Sum256(data))
	long := fmt.Sprintf("%x", sha512.Sum512(data))
	first := func(r *api.ImageImport) {}
	imports := func(src io.Reader, change func(*api.ImageImport)) (api.Outcome, error) {
		r := api.ImageImport{Name: "i", Format: "raw", Pool: "one", IfAbsent: true, SHA256: sum}
		change(&r)
		return b.ImageImport(ctx, none, r, ingest.Source{Stream: src, Size: -1})
	}
	b.must(imports(bytes.NewReader(data), first))
	never := iotest.ErrReader(errors.New("it was read"))
	b.unchanged(imports(never, first))
	b.unchanged(imports(never, func(r *api.ImageImport) { r.SHA256 = "" }))
	for says, change := range map[string]func(*api.ImageImport){
		"the SHA-256 is": func(r *api.ImageImport) { r.SHA256 = strings.Repeat("0", 64) },
		"the SHA-512":    func(r *api.ImageImport) { r.SHA512 = long },
		"the format":     func(r *api.ImageImport) { r.Format = "qcow2" },
		"smallest root":  func(r *api.ImageImport) { r.MinDisk = 1 << 30 },
		"pool two":       func(r *api.ImageImport) { r.Pool = "two" },
	} {
		if _, err := imports(never, change); !errors.Is(err, errs.Exists) || !strings.Contains(err.Error(), says) {
			t.Errorf("another image: got %v, want %s that says %q", err, errs.Exists, says)
		}
	}
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			out, err := imports(bytes.NewReader(data), func(r *api.ImageImport) { r.Name = "j" })
			if err != nil {
				t.Error(err)
				return
			}
			if op := b.do(out, nil); op.State != "done" {
				t.Errorf("%s %+v", op.State, op.Error)
			}
		})
	}
	all.Wait()
	b.silent("asking for images")
}

// TestDefinedPoolKeepsItsSettings starts a pool that was only recorded: its
// domain has the overcommit and the reserve that were asked for.
func TestDefinedPoolKeepsItsSettings(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p"), Define: true, Overcommit: new(2.0), Reserve: "1G"}))
	b.must(b.PoolStart(ctx, none, "p"))
	if p := must(b.Pool(ctx, "p")); p.Overcommit != 2 || p.Reserved != 1<<30 {
		t.Errorf("a pool that was defined has overcommit %v and reserve %d, want 2 and 1 GiB", p.Overcommit, p.Reserved)
	}
	b.must(b.PoolCreate(ctx, none, api.PoolCreate{Name: "q", Driver: "dir", Path: filepath.Join(t.TempDir(), "q"), Define: true}))
	b.must(b.PoolStart(ctx, none, "q"))
	if q := must(b.Pool(ctx, "q")); q.Overcommit != 2 || q.Reserved != 1<<30 {
		t.Errorf("a pool in the same domain that was defined without settings has overcommit %v and reserve %d, want 2 and 1 GiB", q.Overcommit, q.Reserved)
	}
	b.silent("starting defined pools")
}
