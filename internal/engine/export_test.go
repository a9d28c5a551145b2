package engine_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
)

func TestImageExport(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	data := b.image("debian", 3<<20+1000, "") // its base is longer
	var out bytes.Buffer
	if err := b.ImageExport(ctx, "debian", api.Export{Format: "raw"}, engine.Sink{Stream: &out}, nil); err != nil || !bytes.Equal(out.Bytes(), data) {
		t.Errorf("raw: %v, %d bytes, want the image's %d", err, out.Len(), len(data))
	}
	for _, f := range diskfmt.ExportFormats() {
		path := filepath.Join(t.TempDir(), "out")
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		err = b.ImageExport(ctx, "debian", api.Export{Format: string(f)}, engine.Sink{File: file}, nil)
		if f == diskfmt.VHD || f == diskfmt.VHDX { // not whole sectors
			b.fails(errs.Invalid, api.Outcome{}, err)
			continue
		}
		if got, rerr := os.ReadFile(path); err != nil || rerr != nil || !bytes.Contains(got, data[1<<20:1<<20+4096]) && f != diskfmt.VMDK {
			t.Errorf("%s: %v, %v, or the image's bytes are not in it", f, err, rerr)
		}
	}
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(kept, []byte("something else"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(kept, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, row := range []struct {
		image string
		x     api.Export
		want  errs.Kind
	}{
		{"nothing", api.Export{Format: "raw"}, errs.NotFound},
		{"debian", api.Export{}, errs.Invalid},
		{"debian", api.Export{Format: "qed"}, errs.Invalid},
		{"debian", api.Export{Format: "vdi", Compression: "zlib"}, errs.Invalid},
		{"debian", api.Export{Format: "qcow2", Type: "fixed"}, errs.Invalid},
		{"debian", api.Export{Format: "vhd"}, errs.Invalid},
	} {
		b.fails(row.want, api.Outcome{}, b.ImageExport(ctx, row.image, row.x, engine.Sink{File: file}, nil))
		if got, err := os.ReadFile(kept); err != nil || string(got) != "something else" {
			t.Errorf("%s as %+v: the refusal left %q, %v", row.image, row.x, got, err)
		}
	}
	b.must(b.PoolStop(ctx, api.Options{}, "main"))
	b.fails(errs.Unavailable, api.Outcome{}, b.ImageExport(ctx, "debian", api.Export{Format: "raw"}, engine.Sink{Stream: io.Discard}, nil))
}

// TestABaseThatIsReadStays exports an image while it is deleted, the cache
// pruned and the pool stopped.
func TestABaseThatIsReadStays(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	data := b.image("debian", 12<<20, "")
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- b.ImageExport(ctx, "debian", api.Export{Format: "raw"}, engine.Sink{Stream: w}, nil)
		w.Close()
	}()
	got := make([]byte, 4096)
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatal(err)
	}
	b.must(b.ImageDelete(ctx, api.Options{}, "debian"))
	b.must(b.CachePrune(ctx, api.Options{}, api.CachePrune{}))
	b.fails(errs.Busy, api.Outcome{}, second(b.PoolStop(ctx, api.Options{}, "main")))
	cached := func() int {
		t.Helper()
		l, err := b.Cache(ctx, api.Page{})
		if err != nil {
			t.Fatal(err)
		}
		return len(l.Items)
	}
	if n := cached(); n != 1 {
		t.Errorf("while it is read %d bases are left, want 1", n)
	}
	rest, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(append(got, rest...), data) {
		t.Errorf("the export has %d bytes, %v, want the image's", len(got)+len(rest), err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.must(b.CachePrune(ctx, api.Options{}, api.CachePrune{}))
	if n := cached(); n != 0 {
		t.Errorf("after the export %d bases are left, want none", n)
	}
	b.silent("an export")
}
