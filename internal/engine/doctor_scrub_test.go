package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// corrupt changes a byte in the middle of a base, as a bad medium does.
func corrupt(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrPermission) { // who is not root
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		defer os.Chmod(path, 0o440)
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return err
	}
	at := int64(300_000)
	if fi, err := f.Stat(); err == nil && fi.Size() > 2<<20 {
		at = 1<<20 + 1000 // behind the tables of a container
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 0x10
		_, err = f.WriteAt(b[:], at)
	}
	return errors.Join(err, f.Close())
}

// scrub reads all bases and returns what was found.
func (b *bench) scrub(r api.Scrub) api.Report {
	b.t.Helper()
	op := b.must(b.Scrub(context.Background(), api.Options{}, r))
	var report api.Report
	if err := json.Unmarshal(op.Result, &report); err != nil {
		b.t.Fatalf("the result %s of a scrub: %v", op.Result, err)
	}
	if op.Progress.Done != op.Progress.Total || op.Progress.Unit != "bytes" || op.Progress.Total == 0 {
		b.t.Errorf("a scrub ends with progress %+v, want all of its bytes", op.Progress)
	}
	return report
}

// TestScrub corrupts a base that disks read from: it is set aside and made again
// from the copy in another pool.
func TestScrub(t *testing.T) {
	b, pool, content := twoCopies(t)
	if r := b.scrub(api.Scrub{}); len(r.Problems) != 0 || len(r.Notes) != 0 {
		t.Errorf("a scrub of sound bases found %+v", r)
	}
	at := file(t, pool, "base_*.raw")
	do(t, corrupt(at))
	bad := must(os.ReadFile(at))
	b.silent("a corruption that nobody has looked for")
	if r := b.scrub(api.Scrub{Pool: "one"}); len(r.Problems) != 0 {
		t.Errorf("a scrub of another pool found %+v", r)
	}
	r := b.scrub(api.Scrub{Repair: true})
	if len(r.Problems) != 1 {
		t.Fatalf("a scrub of a corrupt base found %+v, want one problem", r)
	}
	p := r.Problems[0]
	if p.Invariant != "I5" || p.Object != "two/"+filepath.Base(at) || !p.Repaired || !slices.Equal(p.Disks, []string{"web1/root"}) || !strings.Contains(p.Repair, "pool one") {
		t.Errorf("a scrub of a corrupt base found %+v", p)
	}
	b.reads(content, "web1")
	if got := must(os.ReadFile(filepath.Join(pool, ".tarn-quarantine", filepath.Base(at)))); !bytes.Equal(got, bad) {
		t.Error("the corrupt base was not kept as it was")
	}
	b.overlay("web2")
	b.reads(content, "web2")
	b.silent("a base that was made again")
	if r := b.scrub(api.Scrub{}); len(r.Problems) != 0 {
		t.Errorf("a scrub after that found %+v", r)
	}
	b.restart()
	b.silent("a restart")
}

// TestScrubOfWhatCannotBeOpened cuts a base short, or takes its file away: it is
// made again.
func TestScrubOfWhatCannotBeOpened(t *testing.T) {
	for what, damage := range map[string]func(t *testing.T, at string){
		"cut short": func(t *testing.T, at string) { unfrozen(t, at, func() { do(t, os.Truncate(at, 4096)) }) },
		"gone":      func(t *testing.T, at string) { do(t, os.Remove(at)) },
	} {
		t.Run(what, func(t *testing.T) {
			b, pool, content := twoCopies(t)
			damage(t, file(t, pool, "base_*.raw"))
			if r := b.scrub(api.Scrub{Repair: true}); len(r.Problems) != 1 || !r.Problems[0].Repaired || !strings.Contains(r.Problems[0].Repair, "pool one") {
				t.Errorf("a scrub of a base that is %s found %+v, want one problem that it repaired", what, r.Problems)
			}
			b.reads(content, "web1")
			b.silent("a base that was made again")
		})
	}
}

// TestScrubOfABaseThatIsGone says nothing of a corrupt file that is kept, nor of
// the disks that were made from it: there is none.
func TestScrubOfABaseThatIsGone(t *testing.T) {
	b, pool, content := twoCopies(t)
	b.must(b.InstanceCreate(context.Background(), api.Options{}, api.InstanceCreate{Name: "web2", Pool: "two", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Format: "raw"}}}))
	do(t, os.Remove(file(t, pool, "base_*.raw")))
	p := b.found(api.Scrub{}, false, "not in the pool", "makes it again from pool one")
	if vols := listOf(b.Cache(context.Background(), api.Page{})).Items; !slices.ContainsFunc(vols, func(e api.CacheEntry) bool { return e.Pool == "two" && e.State == "lost" }) {
		t.Errorf("behind %+v the bases are %+v, want that of pool two as lost", p, vols)
	}
	b.found(api.Scrub{Repair: true}, true, "pool one")
	b.reads(content, "web1", "web2")
	do(t, os.Remove(file(t, pool, "base_*.raw")))
	if p := b.found(api.Scrub{Repair: true}, true, "pool one"); strings.Contains(p.Repair, "quarantine") {
		t.Errorf("a scrub of a base that is gone says %q", p.Repair)
	}
	b.silent("a base that was made again")
}

// TestScrubGoesOn has another file under a base's name: the base is taken out of
// use, the file stays, and when it is gone the next scrub ends what the first
// could not.
func TestScrubGoesOn(t *testing.T) {
	b, pool, content := twoCopies(t)
	at := file(t, pool, "base_*.raw")
	do(t, os.WriteFile(at+".new", []byte("theirs"), 0o600), os.Rename(at+".new", at))
	for _, when := range []string{"first", "second"} {
		if r := b.scrub(api.Scrub{Repair: true}); len(r.Problems) != 1 || r.Problems[0].Repaired || !strings.Contains(r.Problems[0].Repair, "another file has the volume's name") {
			t.Errorf("the %s scrub with another file under the name of a base found %+v, want one problem that is not repaired", when, r.Problems)
		}
		if got := must(os.ReadFile(at)); string(got) != "theirs" {
			t.Errorf("behind the %s scrub the other file says %q", when, got)
		}
	}
	do(t, os.Remove(at))
	if r := b.scrub(api.Scrub{Repair: true}); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Errorf("with the other file gone a scrub found %+v, want one problem that it repaired", r.Problems)
	}
	b.reads(content, "web1")
	b.silent("a base that was made again")
}

// TestScrubOfTheOnlyCopy corrupts the only copy of an image: nothing uses it any
// more, until the same bytes are imported again.
func TestScrubOfTheOnlyCopy(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	content := b.image("debian", 1<<20, "main")
	root := api.DiskSpec{Role: "root", Image: "debian", Format: "qcow2"}
	b.instance("web1", root)
	at := file(t, pool, "base_*.raw")
	do(t, corrupt(at))
	r := b.scrub(api.Scrub{Repair: true})
	if len(r.Problems) != 1 || r.Problems[0].Repaired || !strings.Contains(r.Problems[0].Repair, "no other active pool") || !strings.Contains(r.Problems[0].Repair, "tarn image import NAME") {
		t.Errorf("a scrub of the only copy, corrupt, found %+v; want one problem that is not repaired", r)
	}
	out, err := b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web2", Disks: []api.DiskSpec{root}})
	b.fails(errs.Corrupt, out, err)
	b.silent("a base without another copy")
	source := filepath.Join(t.TempDir(), "again.raw")
	do(t, os.WriteFile(source, content, 0o600))
	b.importFile("twin", source, "raw", "main")
	b.reads(content, "web1")
	b.silent("importing the same bytes")
}

// TestScrubKeepsToItsRate reads 16 MiB at 32 MiB a second.
func TestScrubKeepsToItsRate(t *testing.T) {
	b := newBench(t)
	b.pool("main")
	source := filepath.Join(t.TempDir(), "image.raw")
	do(t, os.WriteFile(source, bytes.Repeat([]byte("no holes"), 2<<20), 0o600))
	b.importFile("debian", source, "raw", "main")
	begin := time.Now()
	b.scrub(api.Scrub{Rate: 32 << 20})
	if took := time.Since(begin); took < 300*time.Millisecond {
		t.Errorf("16 MiB at 32 MiB a second took %v, want most of half a second", took)
	}
	_, err := b.Scrub(context.Background(), api.Options{}, api.Scrub{Rate: -1})
	if !errors.Is(err, errs.Invalid) {
		t.Errorf("a scrub at a negative rate = %v, want invalid", err)
	}
	if _, err = b.Scrub(context.Background(), api.Options{}, api.Scrub{Pool: "none"}); !errors.Is(err, errs.NotFound) {
		t.Errorf("a scrub of a pool that is not there = %v, want not found", err)
	}
}
