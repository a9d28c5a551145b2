package engine_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// lose takes away the one file of a pool that matches, and has doctor record it.
func (b *bench) lose(t *testing.T, pool, pattern string) (at, aside string) {
	t.Helper()
	at, aside = file(t, pool, pattern), filepath.Join(t.TempDir(), "aside")
	do(t, os.Rename(at, aside))
	if r := b.doctor(true); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Fatalf("with %s gone doctor said %+v, want one problem that it repaired", at, r.Problems)
	}
	b.silent("recording it as lost")
	return at, aside
}

// TestRenameWithALostDisk renames an instance that has lost one of its disks:
// the sidecar of the other follows, and the lost one's does when it is back.
func TestRenameWithALostDisk(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	b.instance("old", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	at, aside := b.lose(t, pool, "*data0.raw")
	b.must(b.InstanceRename(ctx, none, "old", "new"))
	b.silent("a rename with a lost disk")
	if side := must(os.ReadFile(file(t, pool, "*data1.raw.tarn.json"))); !strings.Contains(string(side), `"name":"new"`) {
		t.Errorf("the sidecar of the other disk does not say the new name: %s", side)
	}
	do(t, os.Rename(aside, at))
	if r := b.doctor(true); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Errorf("with the disk back doctor said %+v, want one problem that it repaired", r.Problems)
	}
	b.silent("taking the disk into use again")
	if side := must(os.ReadFile(at + ".tarn.json")); !strings.Contains(string(side), `"name":"new"`) {
		t.Errorf("the sidecar of the disk that came back does not say the new name: %s", side)
	}
}

// TestRenameWritesWhatItCan renames an instance one of whose disks is gone
// without anybody knowing yet.
func TestRenameWritesWhatItCan(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	b.instance("old", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	do(t, os.Remove(file(t, pool, "*data0.raw")))
	b.do(b.InstanceRename(ctx, none, "old", "new"))
	if side := must(os.ReadFile(file(t, pool, "*data1.raw.tarn.json"))); !strings.Contains(string(side), `"name":"new"`) {
		t.Errorf("the sidecar of the other disk does not say the new name: %s", side)
	}
}

// twoCopies has an image in two pools, and an instance whose root reads from the
// copy in the second.
func twoCopies(t *testing.T) (b *bench, pool string, content []byte) {
	t.Helper()
	ctx, none := context.Background(), api.Options{}
	b = newBench(t)
	b.pool("one")
	pool = b.pool("two")
	content = b.image("debian", 1<<20, "one")
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "two"}))
	b.overlay("web1")
	return b, pool, content
}

// overlay makes an instance in pool two whose root reads from the base there.
func (b *bench) overlay(name string) {
	b.t.Helper()
	b.must(b.InstanceCreate(context.Background(), api.Options{}, api.InstanceCreate{Name: name, Pool: "two", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Format: "qcow2"}}}))
}

// reads demands that instances' roots have content.
func (b *bench) reads(content []byte, instances ...string) {
	b.t.Helper()
	for _, i := range instances {
		if !bytes.Equal(b.read(i+"/root"), content) {
			b.t.Errorf("%s/root does not read as the image", i)
		}
	}
}

// TestALostBaseIsMadeAgain loses a base that disks read from. Who needs it next,
// or asks for it, gets it from the copy in another pool, and under the same
// record, so that the disks are whole again.
func TestALostBaseIsMadeAgain(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, pool, content := twoCopies(t)
	b.lose(t, pool, "base_*.raw")
	b.must(b.CachePrune(ctx, none, api.CachePrune{}))
	b.overlay("web2")
	b.reads(content, "web1", "web2")
	b.silent("making a disk from a lost base")

	b.lose(t, pool, "base_*.raw")
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "two"}))
	b.reads(content, "web1", "web2")
	b.silent("adding a lost base")
	b.must(b.ImageRename(ctx, none, "debian", "bookworm"))
	b.silent("a rename of its image")
}

// TestALostBaseGivesWay loses a base that nothing reads from: prune takes its
// record away, and so does the deletion of the image.
func TestALostBaseGivesWay(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, pool, _ := twoCopies(t)
	b.must(b.InstanceDelete(ctx, none, "web1"))
	b.lose(t, pool, "base_*.raw")
	b.must(b.ImageRename(ctx, none, "debian", "bookworm"))
	b.silent("renaming an image with a lost base")
	b.must(b.CachePrune(ctx, none, api.CachePrune{}))
	if left := listOf(b.Cache(ctx, api.Page{})).Items; len(left) != 1 || left[0].Pool != "one" {
		t.Errorf("prune left %+v, want the copy that is there", left)
	}
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "bookworm", Pool: "two"}))
	b.lose(t, pool, "base_*.raw")
	b.must(b.ImageDelete(ctx, none, "bookworm"))
	if left := listOf(b.Cache(ctx, api.Page{})).Items; len(left) != 0 {
		t.Errorf("deleting the image left %+v", left)
	}
	if left := inPool(t, pool); len(left) != 0 {
		t.Errorf("the pool still holds %v", left)
	}
	b.silent("deleting an image with a lost base")
}

// TestEveryCopyIsLost loses all there is of an image: nothing can be made of it
// until the same bytes are imported, which serve both names and the disks of
// before.
func TestEveryCopyIsLost(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("two")
	content := b.image("debian", 1<<20, "two")
	b.overlay("web1")
	b.lose(t, pool, "base_*.raw")
	b.must(b.CachePrune(ctx, none, api.CachePrune{}))
	b.fails(errs.Corrupt, api.Outcome{}, second(b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "two"})))
	b.must(b.ImageImport(ctx, none, api.ImageImport{Name: "again", Format: "raw", Pool: "two"}, ingest.Source{Stream: bytes.NewReader(content), Size: -1}))
	b.silent("importing a lost base's bytes")
	b.overlay("web2")
	b.reads(content, "web1", "web2")
	if bases := listOf(b.Cache(ctx, api.Page{})).Items; len(bases) != 1 || len(bases[0].Images) != 2 {
		t.Errorf("bases are %+v, want one that serves both images", bases)
	}
}

// TestALostBaseStaysLost has nothing to make a lost base again from: the only
// other copy is damaged, or a file has taken the name.
func TestALostBaseStaysLost(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, pool, _ := twoCopies(t)
	at, _ := b.lose(t, pool, "base_*.raw")
	before := jsonOf(t, listOf(b.Volumes(ctx, "two", api.Page{})))
	add := func() (api.Outcome, error) {
		return b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "two"})
	}
	do(t, os.WriteFile(at, []byte("theirs"), 0o600))
	out, err := add()
	b.fails(errs.Corrupt, out, err)
	if got := must(os.ReadFile(at)); string(got) != "theirs" {
		t.Errorf("the file that has the name says %q", got)
	}
	do(t, os.Remove(at))
	one := must(b.Pool(ctx, "one")).Path
	base := file(t, one, "base_*.raw")
	unfrozen(t, base, func() { overwrite(t, base, 4096, "damaged") })
	out, err = add()
	b.fails(errs.Corrupt, out, err)
	if after := jsonOf(t, listOf(b.Volumes(ctx, "two", api.Page{}))); after != before {
		t.Errorf("a base that could not be made again left\n%s\nwant\n%s", after, before)
	}
	b.silent("a base that could not be made again")
}

// unfrozen runs change while the base at path, which nobody may write, can be
// written by its owner.
func unfrozen(t *testing.T, path string, change func()) {
	t.Helper()
	do(t, os.Chmod(path, 0o640))
	change()
	do(t, os.Chmod(path, 0o440))
}

// TestADamagedBaseIsLeftToAPerson has a base of another size on record as
// corrupt: nothing of tarn touches its file. With the file moved away it is lost,
// and made again.
func TestADamagedBaseIsLeftToAPerson(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, pool, content := twoCopies(t)
	at := file(t, pool, "base_*.raw")
	unfrozen(t, at, func() { do(t, os.Truncate(at, 4096)) })
	if r := b.doctor(true); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Fatalf("with a truncated base doctor said %+v, want one problem that it repaired", r.Problems)
	}
	_, err := b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "two"})
	b.fails(errs.Corrupt, api.Outcome{}, err)
	if fi := must(os.Stat(at)); fi.Size() != 4096 {
		t.Errorf("the damaged base has %d bytes now", fi.Size())
	}
	b.lose(t, pool, "base_*.raw")
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "two"}))
	b.reads(content, "web1")
	b.silent("replacing a damaged base")
}
