package engine_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// stream imports what r delivers without saying how much it is.
func (b *bench) stream(name, format string, r io.Reader) api.Operation {
	b.t.Helper()
	return b.do(b.ImageImport(context.Background(), api.Options{}, api.ImageImport{Name: name, Format: format}, ingest.Source{Stream: r, Size: -1, Name: "-"}))
}

func TestStreamsAreImportedUnderAReservation(t *testing.T) {
	b := newBench(t)
	b.pool("main")
	data := make([]byte, 12<<20)
	rand.Read(data)
	data[0] = 0xeb // what chance writes there may look like something else
	raw := filepath.Join(t.TempDir(), "i.raw")
	if err := os.WriteFile(raw, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if op := b.stream("raw", "raw", bytes.NewReader(data)); op.State != "done" {
		t.Fatalf("raw stream: %+v", op.Error)
	}
	qcow2 := raw + ".qcow2"
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2).CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("qemu-img: %v\n%s", err, out)
		}
		t.Skip("qemu-img is not installed (package qemu-utils)")
	}
	f, err := os.Open(qcow2)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if op := b.stream("qcow2", "qcow2", struct{ io.Reader }{f}); op.State != "done" {
		t.Fatalf("qcow2 stream: %+v", op.Error)
	}
	one, two := mustImage(t, b, "raw"), mustImage(t, b, "qcow2")
	if one.Content != two.Content || one.VirtualSize != int64(len(data)) {
		t.Errorf("the streams gave %+v and %+v", one, two)
	}
	b.silent("two streams")

	// What does not fit is refused, whether the source says its size or not.
	reserve := strconv.FormatInt(mustPool(t, b, "main").Capacity-mustPool(t, b, "main").Foreign-mustPool(t, b, "main").Committed-4<<20, 10)
	b.must(b.PoolSet(context.Background(), api.Options{}, "main", api.PoolSet{Reserve: &reserve}))
	rand.Read(data[1:])
	if op := b.stream("big", "raw", bytes.NewReader(data)); op.State != "failed" {
		t.Errorf("a stream larger than what may be promised ended as %s", op.State)
	}
	b.silent("a refused stream")
}

func mustImage(t *testing.T, b *bench, name string) api.Image {
	t.Helper()
	i, err := b.Image(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestDeletesKnowTheObject(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	damaged, lonely := mustDisk(t, b, "web1/data0").Path, mustDisk(t, b, "web1/data1").Path
	if err := os.WriteFile(damaged+".tarn.json", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(lonely + ".tarn.json"); err != nil {
		t.Fatal(err)
	}
	b.must(b.InstanceDelete(ctx, api.Options{}, "web1"))
	left, err := filepath.Glob(filepath.Join(dir, "[^.]*"))
	if err != nil || len(left) > 0 {
		t.Errorf("the pool still holds %v, %v", left, err)
	}
	b.silent("deletes")
}

func mustDisk(t *testing.T, b *bench, ref string) api.Disk {
	t.Helper()
	d, err := b.Disk(context.Background(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMinDiskHoldsWithoutASize(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.must(b.ImageImport(ctx, api.Options{}, api.ImageImport{Name: "m", Format: "raw", MinDisk: 8 << 20}, ingest.Source{Stream: bytes.NewReader(make([]byte, 4096)), Size: 4096, Name: "-"}))
	b.instance("web1", api.DiskSpec{Role: "root", Image: "m"})
	if d := mustDisk(t, b, "web1/root"); d.Size != 8<<20 {
		t.Errorf("the root disk has %d bytes, want the image's minimum of %d", d.Size, 8<<20)
	}
}

func TestPoolRequests(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	one := b.pool("one")
	b.pool("two")
	k := api.Options{RequestID: "k"}
	b.must(b.PoolStop(ctx, k, "one"))
	b.fails(errs.Conflict, api.Outcome{}, second(b.PoolStop(ctx, k, "two")))
	b.must(b.PoolStart(ctx, api.Options{}, "one"))
	b.fails(errs.Conflict, api.Outcome{}, second(b.PoolCreate(ctx, api.Options{}, api.PoolCreate{Name: "root", Driver: "dir", Path: "/"})))

	// A pool whose storage cannot be cleared is not called deleted.
	if err := os.Mkdir(filepath.Join(one, ".tarn-tmp", "dd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if op := b.do(b.PoolDelete(ctx, api.Options{}, "one", false)); op.State != "failed" {
		t.Errorf("the delete of a pool that cannot be cleared ended as %s", op.State)
	}
	if err := os.Remove(filepath.Join(one, ".tarn-tmp", "dd")); err != nil {
		t.Fatal(err)
	}
	b.must(b.PoolDelete(ctx, api.Options{}, "one", false))
	b.silent("pool requests")
}

func TestAPoolThatIsReadDoesNotStop(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.instance("web1", api.DiskSpec{Role: "data", Size: 16 << 20})
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- b.DiskExport(ctx, "web1/data0", api.Export{Format: "raw"}, engine.Sink{Stream: w}, nil)
		w.Close()
	}()
	if _, err := io.ReadFull(r, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	b.fails(errs.Busy, api.Outcome{}, second(b.PoolStop(ctx, api.Options{}, "main")))
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.must(b.PoolStop(ctx, api.Options{}, "main"))
}

func TestTheLastNameTakesTheBase(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	for range 10 {
		data := make([]byte, 8192)
		rand.Read(data[1:])
		for _, name := range []string{"n1", "n2"} {
			if op := b.stream(name, "raw", bytes.NewReader(data)); op.State != "done" {
				t.Fatal(op.Error)
			}
		}
		var wg sync.WaitGroup
		for _, name := range []string{"n1", "n2"} {
			wg.Go(func() {
				out, err := b.ImageDelete(ctx, api.Options{}, name)
				if err := finished(ctx, b.Engine, out, err); err != nil {
					t.Errorf("delete of %s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if left := listOf(b.Cache(ctx, api.Page{})).Items; len(left) != 0 {
			t.Fatalf("the names are gone, the pool still holds %+v", left)
		}
	}
}
