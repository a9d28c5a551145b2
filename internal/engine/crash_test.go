package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/pool/all"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/storage"
)

// world is a state directory and a pool's directory that outlive the engines
// which work on them.
type world struct {
	tech  technology
	t     *testing.T
	state string
	pool  string            // where the files of the pool are
	image string            // a file to import
	acked map[string][]byte // what disks must read as, by reference
	kept  map[string][]byte // what files must hold whatever happens, by path

	request api.PoolCreate // of the pool

	origin *origin // when not nil, the engines fetch from it
}

// with starts an engine, lets fn use it, waits until nothing runs and stops it
// again: one process's life. After a simulated crash it stops as it is.
func (w *world) with(fn func(ctx context.Context, e *engine.Engine) error) error {
	patience := time.Minute
	if w.tech.slow {
		patience *= 5
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := sqlite.Open(ctx, sqlite.Options{Dir: w.state})
	if err != nil {
		return err
	}
	defer s.Close()
	host, err := engine.ThisHost()
	if err != nil {
		return err
	}
	c := engine.Config{Store: s, Host: host, Types: all.Types()}
	if w.origin != nil {
		w.origin.reach(&c)
	}
	e, err := engine.New(ctx, c)
	if err != nil {
		return err
	}
	err = fn(ctx, e)
	return errors.Join(err, e.Settle(ctx), e.Close(ctx))
}

// finished waits for the operation of a call and returns its error.
func finished(ctx context.Context, e *engine.Engine, out api.Outcome, err error) error {
	if err != nil || out.Operation.ID == "" {
		return err
	}
	op, err := e.OperationWait(ctx, out.Operation.ID, 5*time.Minute)
	switch {
	case err != nil:
		return err
	case op.Error != nil:
		return errs.New(op.Error.Kind, op.Error.Op, op.Error.Subject, "%s", op.Error.Message)
	case op.State != "done":
		return fmt.Errorf("%s is %s", op.Kind, op.State)
	}
	return nil
}

func (w *world) createPool(ctx context.Context, e *engine.Engine) error {
	r := w.request
	r.Name = "main"
	out, err := e.PoolCreate(ctx, api.Options{}, r)
	return finished(ctx, e, out, err)
}

func (w *world) importImage(ctx context.Context, e *engine.Engine, name string) error {
	f, err := os.Open(w.image)
	if err != nil {
		return err
	}
	defer f.Close()
	out, err := e.ImageImport(ctx, api.Options{}, api.ImageImport{Name: name, Format: "raw"}, ingest.Source{File: f, Name: w.image})
	return errors.Join(finished(ctx, e, out, err), e.Settle(ctx))
}

func (w *world) createDisk(ctx context.Context, e *engine.Engine, s api.DiskSpec) error {
	out, err := e.DiskCreate(ctx, api.Options{}, api.DiskCreate{Instance: "web1", Disk: s})
	return finished(ctx, e, out, err)
}

const rootSize = 3 << 20

func (w *world) createInstance(ctx context.Context, e *engine.Engine) error {
	out, err := e.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{
		{Role: "root", Image: "debian", Size: rootSize}, {Role: "swap", Size: 1 << 20}, {Role: "data", Size: 1 << 20, Format: w.tech.qcow2()},
	}, ConfigDrive: &api.ConfigDrive{Kind: "cidata", Files: []api.ConfigFile{{Path: "user-data", Data: []byte("#cloud-config\n")}}}})
	return finished(ctx, e, out, err)
}

// newWorld makes a world and performs steps in it, each in a process of its own.
func newWorld(t *testing.T, steps ...func(context.Context, *engine.Engine) error) *world {
	t.Helper()
	return newWorldOn(t, directory, steps...)
}

// newWorldOn is newWorld with a pool of tech.
func newWorldOn(t *testing.T, tech technology, steps ...func(context.Context, *engine.Engine) error) *world {
	t.Helper()
	dir := t.TempDir()
	r := tech.pool(t)
	w := &world{t: t, tech: tech, state: filepath.Join(dir, "state"), request: r, pool: r.Path, image: filepath.Join(dir, "image.raw"), acked: map[string][]byte{}}
	if err := os.Mkdir(w.state, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.image, imageBytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	w.more(steps...)
	return w
}

func (w *world) more(steps ...func(context.Context, *engine.Engine) error) {
	w.t.Helper()
	err := w.with(func(ctx context.Context, e *engine.Engine) error {
		for _, s := range steps {
			if err := s(ctx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func imageBytes() []byte {
	b := make([]byte, 1<<20)
	for i := range 200_000 {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// check asks that doctor is silent, that nothing is left staged, and that every
// acknowledged disk reads as it must.
func (w *world) check(t *testing.T) {
	t.Helper()
	err := w.with(func(ctx context.Context, e *engine.Engine) error {
		report, err := e.Doctor(ctx, api.Doctor{})
		if err != nil {
			return err
		}
		for _, p := range report.Problems {
			t.Errorf("doctor: %s %s: %s", p.Invariant, p.Object, p.Detail)
		}
		for ref, want := range w.acked {
			var got bytes.Buffer
			if err := e.DiskExport(ctx, ref, api.Export{Format: "raw"}, engine.Sink{Stream: &got}, nil); err != nil {
				return err
			}
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s reads as other bytes than were acknowledged", ref)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for path, want := range w.kept {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s does not hold what it did: %v", path, err)
		}
	}
	staged, _ := filepath.Glob(filepath.Join(w.pool, ".tarn-tmp", "*"))
	staged = slices.DeleteFunc(staged, func(p string) bool { return strings.HasPrefix(filepath.Base(p), "ballast") })
	if len(staged) > 0 {
		t.Errorf("left staged: %v", staged)
	}
}

// part says what an operation works on that technologies do each in their way.
type part int

const (
	others part = iota
	ofPools
	ofVolumes
	sampled // at some effects, but for the slow suite
)

// crash is an operation that must survive a crash at any point.
type crash struct {
	name    string
	effects int
	part    part
	setup   func(w *world) []func(context.Context, *engine.Engine) error
	run     func(w *world, ctx context.Context, e *engine.Engine) error
}

// crashes is every one.
var crashes = []crash{
	{"pool create", 6, ofPools, func(w *world) []func(context.Context, *engine.Engine) error { return nil },
		func(w *world, ctx context.Context, e *engine.Engine) error { return w.createPool(ctx, e) }},
	{"image import", 10, ofVolumes, func(w *world) []func(context.Context, *engine.Engine) error {
		return []func(context.Context, *engine.Engine) error{w.createPool}
	}, func(w *world, ctx context.Context, e *engine.Engine) error { return w.importImage(ctx, e, "debian") }},
	{"image import again", 10, others, (*world).withImage,
		func(w *world, ctx context.Context, e *engine.Engine) error { return w.importImage(ctx, e, "twin") }},
	{"image import lost", 10, others, (*world).withLostBase,
		func(w *world, ctx context.Context, e *engine.Engine) error { return w.importImage(ctx, e, "twin") }},
	{"cache add lost", 8, others, (*world).withLostCopy, (*world).cacheAdd},
	{"cache scrub", 20, others, (*world).withCorruptBase, (*world).scrub},
	{"cache scrub fetched", 20, sampled, (*world).withCorruptFetched, (*world).scrub},
	{"image import corrupt", 10, sampled, func(w *world) steps { return append((*world).withCorruptFetched(w), w.quarantine) },
		func(w *world, ctx context.Context, e *engine.Engine) error { return w.importImage(ctx, e, "twin") }},
	{"image fetch", 10, others, func(w *world) []func(context.Context, *engine.Engine) error {
		w.origin = newOrigin(w.t, imageBytes())
		return w.withPool()
	}, (*world).fetchImage},
	{"instance create", 20, ofVolumes, (*world).withImage, (*world).createInstance},
	{"disk create", 8, others, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		return w.createDisk(ctx, e, api.DiskSpec{Role: "ephemeral", Size: 8 << 20, FS: "ext4"})
	}},
	{"disk resize", 5, ofVolumes, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.DiskResize(ctx, api.Options{}, "web1/swap", api.DiskResize{By: 1 << 20})
		return finished(ctx, e, out, err)
	}},
	{"disk resize qcow2", 5, others, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.DiskResize(ctx, api.Options{}, "web1/data0", api.DiskResize{Size: 5 << 20})
		return finished(ctx, e, out, err)
	}},
	{"disk delete", 4, ofVolumes, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.DiskDelete(ctx, api.Options{}, "web1/data0")
		return finished(ctx, e, out, err)
	}},
	{"instance attach", 4, others, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		_, err := e.InstanceAttach(ctx, "web1", api.Attach{As: "qemu"})
		return err
	}},
	{"instance rename", 4, others, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.InstanceRename(ctx, api.Options{}, "web1", "web2")
		return finished(ctx, e, out, err)
	}},
	{"instance delete", 10, others, (*world).withInstance, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.InstanceDelete(ctx, api.Options{}, "web1")
		return finished(ctx, e, out, err)
	}},
	{"image delete", 4, others, (*world).withImage, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.ImageDelete(ctx, api.Options{}, "debian")
		return finished(ctx, e, out, err)
	}},
	{"cache prune", 4, others, (*world).withOrphanBase, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.CachePrune(ctx, api.Options{}, api.CachePrune{})
		return finished(ctx, e, out, err)
	}},
	{"volume adopt", 10, others, (*world).withFile, (*world).adopt(nil, "web1")},
	{"volume adopt base", 15, others, (*world).withFile, (*world).adopt(nil, "")},
	{"volume release", 4, others, (*world).withAdopted, (*world).releaseFile},
	{"pool import", 1, ofVolumes, (*world).withLostDatabase, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.PoolImport(ctx, api.Options{}, imported(w.request))
		return finished(ctx, e, out, err)
	}},
	{"pool define, build and start", 12, ofPools, func(w *world) []func(context.Context, *engine.Engine) error { return nil }, (*world).definedPool},
	{"pool stop, start and refresh", 6, ofPools, (*world).withInstance, (*world).stopPool},
	{"pool delete", 4, ofPools, (*world).withPool, func(w *world, ctx context.Context, e *engine.Engine) error {
		out, err := e.PoolDelete(ctx, api.Options{}, "main", false)
		return finished(ctx, e, out, err)
	}},
}

type steps = []func(context.Context, *engine.Engine) error

func (w *world) withPool() steps { return steps{w.createPool} }

func (w *world) withImage() steps {
	return append(w.withPool(), func(ctx context.Context, e *engine.Engine) error { return w.importImage(ctx, e, "debian") })
}

func (w *world) withInstance() steps {
	return append(w.withImage(), w.createInstance, func(context.Context, *engine.Engine) error {
		return nil
	})
}

// withOrphanBase leaves a base that nothing refers to: its image went while a
// disk still read from it, and then the disk went.
func (w *world) withOrphanBase() steps {
	return append(w.withInstance(), func(ctx context.Context, e *engine.Engine) error {
		out, err := e.DiskCreate(ctx, api.Options{}, api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "cdrom", Image: "debian", Format: "qcow2"}})
		if err := finished(ctx, e, out, err); err != nil {
			return err
		}
		out, err = e.ImageDelete(ctx, api.Options{}, "debian")
		if err := finished(ctx, e, out, err); err != nil {
			return err
		}
		out, err = e.InstanceDelete(ctx, api.Options{}, "web1")
		return finished(ctx, e, out, err)
	})
}

// loseBase takes the bytes of main's base away and has them recorded as lost.
func (w *world) loseBase(ctx context.Context, e *engine.Engine) error {
	bases, err := filepath.Glob(filepath.Join(w.pool, "base_*.raw"))
	if err != nil || len(bases) != 1 {
		return fmt.Errorf("the pool has %d bases: %v", len(bases), err)
	}
	if err := os.Remove(bases[0]); err != nil {
		return err
	}
	r, err := e.Doctor(ctx, api.Doctor{Repair: true})
	if err == nil && (len(r.Problems) != 1 || !r.Problems[0].Repaired) {
		err = fmt.Errorf("doctor said %+v, want one problem that it repaired", r)
	}
	return err
}

// withLostBase leaves a disk whose base is lost, and no other copy of that.
func (w *world) withLostBase() steps {
	return append(w.withImage(), func(ctx context.Context, e *engine.Engine) error {
		out, err := e.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: rootSize, Format: "qcow2"}}})
		return finished(ctx, e, out, err)
	}, w.loseBase)
}

// withLostCopy is withLostBase with another copy in a second pool.
func (w *world) withLostCopy() steps {
	s := w.withLostBase()
	return slices.Insert(s, len(s)-1, func(ctx context.Context, e *engine.Engine) error {
		out, err := e.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "second", Driver: "dir", Path: w.pool + "2"})
		if err := finished(ctx, e, out, err); err != nil {
			return err
		}
		out, err = e.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "debian", Pool: "second"})
		return finished(ctx, e, out, err)
	})
}

// withCorruptBase is withLostCopy with a base that is corrupt instead.
func (w *world) withCorruptBase() steps {
	s := w.withLostCopy()
	return append(s[:len(s)-1], w.corruptBase)
}

func (w *world) cacheAdd(ctx context.Context, e *engine.Engine) error {
	out, err := e.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "debian", Pool: "main"})
	return finished(ctx, e, out, err)
}

// withLostDatabase keeps the pool and loses every record.
func (w *world) withLostDatabase() steps {
	return append(w.withInstance(), func(ctx context.Context, e *engine.Engine) error {
		out, err := e.PoolDelete(ctx, api.Options{}, "main", true)
		return finished(ctx, e, out, err)
	})
}

// TestCrash crashes each operation before and after every effect, and its
// recovery as well, and asks each time that the world is whole afterwards.
func TestCrash(t *testing.T) {
	t.Run("dir", func(t *testing.T) { testCrash(t, 1, directory, ofPools, ofVolumes, others) })
	t.Run("ploop", func(t *testing.T) { testCrash(t, 1, ploop, ofVolumes) })
}

// TestCrashOnDevice is TestCrash with a pool on a device, whose volumes are a
// directory's: they are crashed again with TARN_SLOW=1 only.
func TestCrashOnDevice(t *testing.T) {
	fsloop.NeedRoot(t)
	if os.Getenv("TARN_SLOW") != "" {
		testCrash(t, 1, device, ofPools, ofVolumes, others)
		return
	}
	testCrash(t, 1, device, ofPools)
}

// TestCrashEverywhere is a sample of TestCrash where each history takes its time.
func TestCrashEverywhere(t *testing.T) {
	if storage.Given() == nil {
		t.Skip("TestCrash does more: scripts/test runs this for Ceph and LVM")
	}
	onEach(t, nil, func(t *testing.T, tech technology) {
		sampleCrash(t, tech, "instance create", 19)
		if !tech.slow || os.Getenv("TARN_SLOW") != "" { // its driver's own test does it
			sampleCrash(t, tech, "disk resize", 5)
		}
	})
}

// sampleCrash is testCrash of one operation, at each of its every-th effects, or
// at one of them where each call takes most of a second.
func sampleCrash(t *testing.T, tech technology, name string, every int) {
	slow := os.Getenv("TARN_SLOW") != ""
	if slow {
		every = 1
	}
	for _, c := range crashes {
		if c.name == name {
			first := 0
			if tech.slow && !slow {
				first, every = c.effects/2, 1001
			}
			c.test(t, faultstest.Options{MinEffects: c.effects, RecoveryPoints: 1, First: first, Every: every}, tech)
		}
	}
}

// testCrash crashes what belongs to parts on tech, and each recovery at points.
func testCrash(t *testing.T, points int, tech technology, parts ...part) {
	for _, c := range crashes {
		if !slices.Contains(parts, c.part) {
			continue
		}
		c.test(t, faultstest.Options{MinEffects: c.effects, RecoveryPoints: points}, tech)
	}
}

func (c crash) test(t *testing.T, o faultstest.Options, tech technology) {
	t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
		faultstest.Exhaust(t, o,
			func(t *testing.T) *world {
				w := newWorldOn(t, tech)
				w.more(c.setup(w)...)
				if strings.Contains(c.name, "disk") || c.name == "instance attach" {
					w.acked["web1/root"] = append(imageBytes(), make([]byte, rootSize-1<<20)...)
				}
				return w
			},
			func(w *world) error {
				return w.with(func(ctx context.Context, e *engine.Engine) error { return c.run(w, ctx, e) })
			},
			func(w *world) error {
				return w.with(func(context.Context, *engine.Engine) error { return nil })
			},
			func(t *testing.T, w *world) {
				if c.name == "instance attach" {
					w.release()
				}
				switch {
				case c.name == "image fetch":
					w.checkFetched(t)
				case strings.Contains(c.name, "scrub"), strings.Contains(c.name, "corrupt"):
					w.checkHealed(t)
				}
				w.check(t)
			})
	})
}

// release detaches what a crashed attach may have attached, so that its bytes
// can be read.
func (w *world) release() {
	w.more(func(ctx context.Context, e *engine.Engine) error { return e.InstanceDetach(ctx, "web1", api.Detach{}) })
}
