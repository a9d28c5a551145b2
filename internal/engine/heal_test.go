package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// fetchedBase is a bench whose only pool has a base that was fetched, which the
// root of web1 reads from.
func fetchedBase(t *testing.T) (b *bench, o *origin, at string) {
	t.Helper()
	b, o = remote(t, noise(3<<20))
	b.must(b.fetched("debian", api.ImageDetails{URL: o.URL + "/disk.raw"}))
	b.instance("web1", api.DiskSpec{Role: "root", Image: "debian", Format: "qcow2"})
	return b, o, file(t, must(b.Pool(context.Background(), "main")).Path, "base_*.raw")
}

// found scrubs and asks for one problem, which was repaired or not, and whose
// text holds every word.
func (b *bench) found(r api.Scrub, repaired bool, words ...string) api.Problem {
	b.t.Helper()
	report := b.scrub(r)
	if len(report.Problems) != 1 {
		b.t.Fatalf("a scrub found %+v, want one problem", report.Problems)
	}
	p := report.Problems[0]
	for _, w := range words {
		if p.Repaired != repaired || !strings.Contains(p.Detail+"\n"+p.Repair, w) {
			b.t.Errorf("a scrub found %+v, want one that is repaired: %v, and %q", p, repaired, w)
		}
	}
	return p
}

// hinted asks that a call or its operation fails as corrupt and says what makes
// the base again.
func (b *bench) hinted(what string, out api.Outcome, err error) {
	b.t.Helper()
	if e := b.refused(out, err); e.Kind != errs.Corrupt || !strings.Contains(e.Message, "quarantined") || !strings.Contains(e.Hint, "doctor --scrub --repair") {
		b.t.Errorf("%s from a quarantined base: got %+v, want that it is corrupt and what to do", what, e)
	}
}

// TestABaseIsFetchedAgain corrupts the only copy of an image that was fetched.
// Nothing is made of it or read from it until a repair has fetched it again.
func TestABaseIsFetchedAgain(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, o, at := fetchedBase(t)
	do(t, corrupt(at))
	bad := must(os.ReadFile(at))
	p := b.found(api.Scrub{}, false, "web1/root", "tarn doctor --scrub --repair makes it again from "+o.URL+"/disk.raw")
	if !slices.Equal(p.Disks, []string{"web1/root"}) {
		t.Errorf("the disks of the problem are %v, want web1/root", p.Disks)
	}
	out, err := b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web2", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Format: "qcow2"}}})
	b.hinted("a new disk", out, err)
	_, err = b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "main"})
	b.hinted("prefetching", api.Outcome{}, err)
	_, err = b.DiskAttach(ctx, "web1/root", api.Attach{As: "qemu"})
	b.hinted("attaching what reads", api.Outcome{}, err)
	b.hinted("exporting what reads", api.Outcome{}, b.DiskExport(ctx, "web1/root", api.Export{Format: "raw"}, engine.Sink{Stream: &bytes.Buffer{}}, nil))
	b.hinted("resizing what reads", api.Outcome{}, second(b.DiskResize(ctx, none, "web1/root", api.DiskResize{By: 1 << 20})))
	if got := must(os.ReadFile(at)); !bytes.Equal(got, bad) {
		t.Error("a scrub that repairs nothing changed the base")
	}
	b.silent("a base in quarantine")

	b.restart()
	b.found(api.Scrub{Repair: true}, true, "made it again from "+o.URL+"/disk.raw")
	b.reads(o.data, "web1")
	b.instance("web2", api.DiskSpec{Role: "root", Image: "debian", Format: "qcow2"})
	b.reads(o.data, "web2")
	if _, err := b.DiskAttach(ctx, "web1/root", api.Attach{As: "qemu"}); err != nil {
		t.Errorf("attaching what reads from a healed base: %v", err)
	}
	b.silent("a base that was fetched again")
	if r := b.scrub(api.Scrub{}); len(r.Problems) != 0 {
		t.Errorf("a scrub after that found %+v", r.Problems)
	}
	if images := listOf(b.Images(ctx, api.Page{})).Items; len(images) != 1 || images[0].State != "ready" {
		t.Errorf("the images are %+v, want the one that was there", images)
	}
}

// TestABaseIsNotTakenFromAnotherImage has other bytes at the image's address: the
// base stays as it is, and out of use, until somebody imports what was there.
func TestABaseIsNotTakenFromAnotherImage(t *testing.T) {
	for what, change := range map[string]func(o *origin){
		"another image":          func(o *origin) { o.data = noise(len(o.data)) },
		"an image of other size": func(o *origin) { o.data = noise(len(o.data) + 512) },
		"an image that is cut":   func(o *origin) { o.cut.Store(1000) },
		"nothing":                func(o *origin) { o.Server.CloseClientConnections(); o.Server.Close() },
	} {
		t.Run(what, func(t *testing.T) {
			b, o, at := fetchedBase(t)
			content := o.data
			do(t, corrupt(at))
			bad := must(os.ReadFile(at))
			change(o)
			sum := sha256.Sum256(content)
			p := b.found(api.Scrub{Repair: true}, false, "could not be made again: from "+o.URL+"/disk.raw", "tarn image import NAME FILE --format raw --sha256 "+hex.EncodeToString(sum[:])+" --pool main")
			if got := must(os.ReadFile(at)); !bytes.Equal(got, bad) {
				t.Errorf("the base that was not made again has changed: %+v", p)
			}
			b.silent("a base that could not be fetched")
			b.must(b.ImageImport(context.Background(), api.Options{}, api.ImageImport{Name: "twin", Format: "raw", Pool: "main"}, ingest.Source{Stream: bytes.NewReader(content), Size: -1}))
			b.reads(content, "web1")
			b.silent("importing the same bytes")
		})
	}
}

// TestAdviceOfTwoImages has two images of the content that cannot be had again: the
// command is told all the same.
func TestAdviceOfTwoImages(t *testing.T) {
	b := newBench(t)
	at := b.pool("main")
	source := filepath.Join(t.TempDir(), "image.raw")
	do(t, os.WriteFile(source, imageBytes(), 0o600))
	for _, name := range []string{"debian", "twin"} {
		b.importFile(name, source, "raw", "main")
	}
	do(t, corrupt(file(t, at, "base_*.raw")))
	b.found(api.Scrub{Repair: true}, false, "tarn image import NAME FILE --format raw --sha256 ", " --pool main")
}

// TestABaseIsNotReplacedUnderAGuest has what reads from a corrupt base attached,
// or held by a QEMU that nobody attached it for.
func TestABaseIsNotReplacedUnderAGuest(t *testing.T) {
	ctx := context.Background()
	b, o, at := fetchedBase(t)
	path := mustDisk(t, b, "web1/root").Path
	_, err := b.DiskAttach(ctx, "web1/root", api.Attach{As: "qemu"})
	do(t, err, corrupt(at))
	bad := must(os.ReadFile(at))
	refused := func(how string) {
		t.Helper()
		b.found(api.Scrub{Repair: true}, false, "in use: web1/root", "tarn disk detach")
		if got := must(os.ReadFile(at)); !bytes.Equal(got, bad) {
			t.Errorf("the base was replaced while its reader was %s", how)
		}
	}
	refused("attached")
	twin := func() (api.Outcome, error) {
		return b.ImageImport(ctx, api.Options{}, api.ImageImport{Name: "twin", Format: "raw", Pool: "main"}, ingest.Source{Stream: bytes.NewReader(o.data), Size: -1})
	}
	out, err := twin()
	b.fails(errs.Busy, out, err)
	refused("attached")
	do(t, b.DiskDetach(ctx, "web1/root", api.Detach{}))
	let := lockedByQEMU(t, path)
	refused("held")
	out, err = twin()
	b.fails(errs.Busy, out, err)
	refused("held")
	let()
	b.found(api.Scrub{Repair: true}, true, o.URL)
	b.reads(o.data, "web1")
	b.silent("healing a base behind its guests")
}

// TestABaseIsHealedByTheNextWay has the nearest copy corrupt as well, which
// nobody has looked at.
func TestABaseIsHealedByTheNextWay(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, o, at := fetchedBase(t)
	second := b.pool("second")
	b.must(b.CacheAdd(ctx, none, api.CacheAdd{Image: "debian", Pool: "second"}))
	do(t, corrupt(at), corrupt(file(t, second, "base_*.raw")))
	b.found(api.Scrub{Pool: "main", Repair: true}, true, o.URL)
	b.reads(o.data, "web1")
	b.found(api.Scrub{Repair: true}, true, "from pool main")
	b.silent("healing both copies")
}

// TestWhatWasMadeFromACorruptBase names disks that have its content for their
// own: nothing can tell whether they share what is wrong.
func TestWhatWasMadeFromACorruptBase(t *testing.T) {
	b, o, at := fetchedBase(t)
	b.instance("web2", api.DiskSpec{Role: "root", Image: "debian", Format: "raw"})
	do(t, corrupt(at))
	r := b.scrub(api.Scrub{Repair: true})
	if len(r.Problems) != 2 || !r.Problems[0].Repaired || r.Problems[1].Repaired || !slices.Equal(r.Problems[1].Disks, []string{"web2/root"}) {
		t.Errorf("a scrub found %+v, want the base and the disk that was made from it", r.Problems)
	}
	b.reads(o.data, "web1")
	if r := b.scrub(api.Scrub{}); len(r.Problems) != 0 {
		t.Errorf("the next scrub found %+v", r.Problems)
	}
}

// TestWhereAnImageCameFrom is what is kept of a source, also by the pools when the
// database is lost: never a secret.
func TestWhereAnImageCameFrom(t *testing.T) {
	ctx := context.Background()
	data := noise(1 << 20)
	b, o := remote(t, data)
	at := o.URL + "/disk.raw"
	want := map[string]*api.ImageSource{
		"fetched": {URL: at},
		"secret":  {Name: at},
		"named":   {Name: "disk.raw"},
		"stdin":   nil,
	}
	b.must(b.fetched("fetched", api.ImageDetails{URL: at}))
	b.must(b.fetched("secret", api.ImageDetails{URL: at + "?token=hush"}))
	for name, source := range map[string]string{"named": "disk.raw", "stdin": "-"} {
		b.must(b.ImageImport(ctx, api.Options{}, api.ImageImport{Name: name, Format: "raw", Source: source}, ingest.Source{Stream: bytes.NewReader(data), Size: -1}))
	}
	pool := must(b.Pool(ctx, "main"))
	for _, when := range []string{"at once", "with the database lost"} {
		for name, w := range want {
			if got := must(b.Image(ctx, name)).Source; (got == nil) != (w == nil) || got != nil && *got != *w {
				t.Errorf("%s, the source of %s is %+v, want %+v", when, name, got, w)
			}
		}
		b.loseDatabase()
		b.must(b.PoolImport(ctx, api.Options{}, api.PoolImport{Driver: "dir", Path: pool.Path}))
	}
	if side := must(os.ReadFile(file(t, pool.Path, "base_*.raw.tarn.json"))); bytes.Contains(side, []byte("hush")) {
		t.Errorf("the sidecar tells the secret: %s", side)
	}
}

// TestPinned keeps a base whatever its age, and lets go of it.
func TestPinned(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b, pool, content := twoCopies(t)
	b.must(b.InstanceDelete(ctx, none, "web1"))
	add := api.CacheAdd{Image: "debian", Pool: "two", Pin: true}
	for range 2 { // a repeat does nothing
		b.must(b.CacheAdd(ctx, none, add))
	}
	pinned := func() (pools []string) {
		t.Helper()
		for _, e := range listOf(b.Cache(ctx, api.Page{})).Items {
			if e.Pinned {
				pools = append(pools, e.Pool)
			}
		}
		return pools
	}
	check := func(when string) {
		t.Helper()
		b.must(b.CachePrune(ctx, none, api.CachePrune{Pool: "two"}))
		if got := pinned(); !slices.Equal(got, []string{"two"}) {
			t.Errorf("%s the pinned bases are in %v, want two", when, got)
		}
		b.silent(when)
	}
	check("pinned")
	do(t, corrupt(file(t, pool, "base_*.raw")))
	b.found(api.Scrub{Repair: true}, true, "pool one")
	check("healed")
	b.must(b.CacheUnpin(ctx, none, api.CacheUnpin{Image: "debian", Pool: "two"}))
	if got := pinned(); got != nil {
		t.Errorf("unpinned, the pinned bases are in %v", got)
	}
	b.must(b.CachePrune(ctx, none, api.CachePrune{Pool: "two"}))
	if _, err := b.CacheUnpin(ctx, none, api.CacheUnpin{Image: "debian", Pool: "two"}); !errors.Is(err, errs.NotFound) {
		t.Errorf("unpinning what is not there = %v, want not found", err)
	}
	b.must(b.CacheAdd(ctx, none, add))
	check("added pinned")
	b.overlay("web1")
	b.reads(content, "web1")
}

// TestPrefetch puts an image into pools of every technology here, with progress.
func TestPrefetch(t *testing.T) {
	for _, tech := range []technology{directory, ploop} {
		t.Run(tech.name, func(t *testing.T) { testPrefetch(t, tech) })
	}
}

func TestPrefetchOnDevice(t *testing.T) { testPrefetch(t, device) }

func testPrefetch(t *testing.T, tech technology) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	b.pool("first")
	content := b.image("debian", 6<<20+512, "first")
	r := tech.pool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	add := api.CacheAdd{Image: "debian", Pool: "main"}
	op := b.must(b.CacheAdd(ctx, none, add))
	if op.Progress.Unit != "bytes" || op.Progress.Total < 2*int64(len(content)) || op.Progress.Done != op.Progress.Total {
		t.Errorf("the progress of prefetching %d bytes ends as %+v, want that they were written and read", len(content), op.Progress)
	}
	if op = b.must(b.CacheAdd(ctx, none, add)); !strings.Contains(string(op.Result), "unchanged") {
		t.Errorf("prefetching again ends with %s, want that nothing was done", op.Result)
	}
	b.must(b.InstanceCreate(ctx, none, api.InstanceCreate{Name: "web1", Pool: "main", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Format: tech.qcow2()}}}))
	if got := b.read("web1/root"); !bytes.Equal(got[:len(content)], content) {
		t.Error("a disk of the prefetched base reads as other bytes")
	}
	bases := 0
	for _, e := range listOf(b.Cache(ctx, api.Page{})).Items {
		if e.Pool == "main" && e.State == "ready" {
			bases++
		}
	}
	if bases != 1 {
		t.Errorf("pool main has %d bases of the image, want one", bases)
	}
	b.must(b.InstanceDelete(ctx, none, "web1"))
	do(t, corrupt(bytesOf(t, r.Path, "base_*.raw")))
	b.found(api.Scrub{Repair: true}, true, "from pool first")
	b.silent("healing a base of " + tech.name)
}

// bytesOf returns the file that has the bytes of the one volume that matches.
func bytesOf(t *testing.T, pool, pattern string) string {
	t.Helper()
	at := file(t, pool, pattern)
	if fi := must(os.Stat(at)); fi.IsDir() {
		return filepath.Join(at, "root.hds")
	}
	return at
}

// TestCrashOfHealing is TestCrash where a base is healed by other ways than a
// copy, at every fifth effect outside the slow suite.
func TestCrashOfHealing(t *testing.T) {
	sampleCrash(t, directory, "cache scrub fetched", 5)
	sampleCrash(t, directory, "image import corrupt", 5)
}

// corruptBase changes main's base.
func (w *world) corruptBase(context.Context, *engine.Engine) error {
	bases, err := filepath.Glob(filepath.Join(w.pool, "base_*.raw"))
	if err != nil || len(bases) != 1 {
		return fmt.Errorf("the pool has %d bases: %v", len(bases), err)
	}
	return corrupt(bases[0])
}

// withCorruptFetched leaves a disk whose base is corrupt, the only copy of an
// image that was fetched.
func (w *world) withCorruptFetched() steps {
	w.origin = newOrigin(w.t, imageBytes())
	return append(w.withPool(), w.fetchImage, func(ctx context.Context, e *engine.Engine) error {
		out, err := e.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: rootSize, Format: "qcow2"}}})
		return finished(ctx, e, out, err)
	}, w.corruptBase)
}

// quarantine takes the corrupt base out of use.
func (w *world) quarantine(ctx context.Context, e *engine.Engine) error {
	out, err := e.Scrub(ctx, api.Options{}, api.Scrub{})
	return finished(ctx, e, out, err)
}

func (w *world) scrub(ctx context.Context, e *engine.Engine) error {
	out, err := e.Scrub(ctx, api.Options{}, api.Scrub{Repair: true})
	return finished(ctx, e, out, err)
}

// checkHealed scrubs once more, which leaves no base that is not what was
// imported, and reads what reads from main's.
func (w *world) checkHealed(t *testing.T) {
	t.Helper()
	err := w.with(func(ctx context.Context, e *engine.Engine) error {
		if err := w.scrub(ctx, e); err != nil {
			return err
		}
		bases, err := e.Cache(ctx, api.Page{})
		for _, b := range bases.Items {
			if b.State != "ready" {
				t.Errorf("the base in pool %s is %s", b.Pool, b.State)
			}
		}
		var got bytes.Buffer
		if err == nil {
			err = e.DiskExport(ctx, "web1/root", api.Export{Format: "raw"}, engine.Sink{Stream: &got}, nil)
		}
		if want := append(imageBytes(), make([]byte, rootSize-1<<20)...); err == nil && !bytes.Equal(got.Bytes(), want) {
			t.Error("web1/root does not read as its image")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
