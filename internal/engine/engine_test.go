package engine_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/pool/all"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		ingest.WorkerMain()
		return
	}
	os.Exit(m.Run())
}

// bench is an engine on a state directory and a way to restart it.
type bench struct {
	*engine.Engine
	t     testing.TB
	state string
	boot  string // instead of this machine's boot id
	host  string // instead of this machine's id
	stop  func()

	configure func(*engine.Config)
}

func newBench(t testing.TB) *bench {
	t.Helper()
	b := &bench{t: t, state: t.TempDir()}
	b.start()
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *bench) start() {
	b.t.Helper()
	ctx := context.Background()
	s, err := sqlite.Open(ctx, sqlite.Options{Dir: b.state})
	if err != nil {
		b.t.Fatal(err)
	}
	host, err := engine.ThisHost()
	if err != nil {
		b.t.Fatal(err)
	}
	if b.boot != "" {
		host.BootID = b.boot
	}
	if b.host != "" {
		host.ID, host.Name = disk.HostID(b.host), "other"
	}
	c := engine.Config{Store: s, Host: host, Types: all.Types()}
	if b.configure != nil {
		b.configure(&c)
	}
	e, err := engine.New(ctx, c)
	if err != nil {
		s.Close()
		b.t.Fatal(err)
	}
	b.Engine = e
	b.stop = func() {
		if err := errors.Join(e.Close(ctx), s.Close()); err != nil {
			b.t.Error(err)
		}
	}
}

// restart stops the engine in an orderly way and starts it again.
func (b *bench) restart() {
	b.t.Helper()
	b.stop()
	b.start()
}

// loseDatabase deletes every record while the engine is stopped.
func (b *bench) loseDatabase() {
	b.t.Helper()
	b.stop()
	left, err := filepath.Glob(filepath.Join(b.state, "tarn.db*"))
	if err != nil || len(left) == 0 {
		b.t.Fatalf("no database in %s: %v", b.state, err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			b.t.Fatal(err)
		}
	}
	b.start()
}

// do waits for the operation of a call and returns it.
func (b *bench) do(out api.Outcome, err error) api.Operation {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	if out.Operation.ID == "" {
		return *out.Operation
	}
	op, err := b.OperationWait(context.Background(), out.Operation.ID, time.Minute)
	if err != nil {
		b.t.Fatal(err)
	}
	return op
}

// must is do for an operation that has to succeed.
func (b *bench) must(out api.Outcome, err error) api.Operation {
	b.t.Helper()
	op := b.do(out, err)
	if op.State != "done" {
		b.t.Fatalf("%s ended as %s: %+v", op.Kind, op.State, op.Error)
	}
	return op
}

// fails is do for an operation, or a call, that has to fail with kind.
func (b *bench) fails(kind errs.Kind, out api.Outcome, err error) {
	b.t.Helper()
	if err != nil {
		if !errors.Is(err, kind) {
			b.t.Errorf("got %v (kind %s), want kind %s", err, errs.KindOf(err), kind)
		}
		return
	}
	if op := b.do(out, nil); op.Error == nil || op.Error.Kind != kind {
		b.t.Errorf("%s ended as %s %+v, want kind %s", op.Kind, op.State, op.Error, kind)
	}
}

// image writes a raw image with data and holes and imports it.
func (b *bench) image(name string, size int64, pool string) []byte {
	b.t.Helper()
	data := make([]byte, size)
	for off := int64(0); off < size; off += 1 << 20 {
		rand.Read(data[off:min(off+100_000, size)])
	}
	copy(data, "\xeb\x3c\x90tarn") // what chance writes there may look like something else
	path := filepath.Join(b.t.TempDir(), name+".raw")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.importFile(name, path, "raw", pool)
	return data
}

func (b *bench) importFile(name, path, format, pool string) {
	b.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	b.must(b.ImageImport(context.Background(), api.Options{}, api.ImageImport{Name: name, Format: format, Pool: pool}, ingest.Source{File: f, Name: path}))
}

// read exports a disk as raw.
func (b *bench) read(ref string) []byte {
	b.t.Helper()
	var out bytes.Buffer
	if err := b.DiskExport(context.Background(), ref, api.Export{Format: "raw"}, engine.Sink{Stream: &out}, nil); err != nil {
		b.t.Fatal(err)
	}
	return out.Bytes()
}

func TestMainJobEverywhere(t *testing.T) { onEach(t, []technology{directory, ploop}, testMainJob) }

func TestMainJobOnDevice(t *testing.T) { testMainJob(t, device) }

func testMainJob(t *testing.T, tech technology) {
	ctx := context.Background()
	b := newBench(t)
	r := tech.pool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, api.Options{}, r))
	data := b.image("debian", 5<<20+512, "")
	b.must(b.InstanceCreate(ctx, api.Options{}, api.InstanceCreate{Name: "web1", Disks: []api.DiskSpec{{Role: "root", Image: "debian", Size: 8 << 20}},
		ConfigDrive: &api.ConfigDrive{Kind: "cidata", Files: []api.ConfigFile{{Path: "user-data", Data: []byte("#cloud-config\n")}}}}))
	b.must(b.DiskCreate(ctx, api.Options{}, api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "ephemeral", Size: 16 << 20, FS: "ext4"}}))
	b.must(b.DiskCreate(ctx, api.Options{}, api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "swap", Size: 1 << 20, Format: tech.qcow2()}}))
	got := b.read("web1/root")
	if want := append(bytes.Clone(data), make([]byte, 8<<20-len(data))...); !bytes.Equal(got, want) {
		t.Errorf("root reads %d bytes that differ from the image", len(got))
	}
	b.must(b.DiskResize(ctx, api.Options{}, "web1/root", api.DiskResize{By: 4 << 20}))
	if got := b.read("web1/root"); len(got) != 12<<20 || !bytes.Equal(got[:len(data)], data) {
		t.Errorf("the grown root has %d bytes or lost its content", len(got))
	}
	b.must(b.DiskResize(ctx, api.Options{}, "web1/swap", api.DiskResize{Size: 5 << 20}))
	a, err := b.InstanceAttach(ctx, "web1", api.Attach{As: "libvirt"})
	if err != nil || len(a.Libvirt) != 4 {
		t.Fatalf("attach printed %d disks, %v", len(a.Libvirt), err)
	}
	b.fails(errs.Busy, api.Outcome{}, b.DiskExport(ctx, "web1/root", api.Export{Format: "raw"}, engine.Sink{Stream: &bytes.Buffer{}}, nil))
	b.restart()
	if err := b.InstanceDetach(ctx, "web1", api.Detach{}); err != nil {
		t.Fatal(err)
	}
	before, err := b.Instance(ctx, "web1")
	if err != nil {
		t.Fatal(err)
	}
	b.loseDatabase()
	b.must(b.PoolImport(ctx, api.Options{}, imported(r)))
	after, err := b.Instance(ctx, "web1")
	if err != nil {
		t.Fatal(err)
	}
	if x, y := jsonOf(t, before), jsonOf(t, after); x != y {
		t.Errorf("after a lost database:\n got %s\nwant %s", y, x)
	}
	b.must(b.InstanceDelete(ctx, api.Options{}, "web1"))
	b.must(b.ImageDelete(ctx, api.Options{}, "debian"))
	b.must(b.PoolDelete(ctx, api.Options{}, "main", false))
	if tech.left != nil {
		if left := tech.left(t); len(left) != 0 {
			t.Errorf("the pool left %v", left)
		}
	} else if left, _ := os.ReadDir(r.Path); len(left) != 0 {
		t.Errorf("the pool's directory still holds %v", left)
	}
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
