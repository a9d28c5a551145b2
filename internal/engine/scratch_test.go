package engine_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// TestScratchHasRoom imports into a pool whose volumes do not grow, with 8 MiB
// where scratch lies: what does not fit is refused before it fills that, what
// fits is imported, also when nobody said how much it is.
func TestScratchHasRoom(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	dir := t.TempDir()
	if err := unix.Mount("tarn-test", dir, "tmpfs", 0, "size=8m"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mount a tmpfs: %v", err)
		}
		t.Skipf("mount a tmpfs: %v; run as root", err)
	}
	t.Cleanup(func() {
		b.stop()
		b.stop = func() {}
		do(t, unix.Unmount(dir, 0))
	})
	b.configure = func(c *engine.Config) { c.StateDir = dir }
	b.restart()
	r := ploop.pool(t)
	r.Name = "main"
	b.must(b.PoolCreate(ctx, none, r))
	path := filepath.Join(t.TempDir(), "big.raw")
	do(t, os.WriteFile(path, bytes.Repeat([]byte("no holes"), 2<<20), 0o600))
	f := must(os.Open(path))
	defer f.Close()
	op := b.do(b.ImageImport(ctx, none, api.ImageImport{Name: "big", Format: "raw", Pool: "main"}, ingest.Source{File: f, Name: path}))
	if op.Error == nil || op.Error.Kind != errs.NoSpace || !strings.Contains(op.Error.Message, "16 MiB are kept in "+dir) || !strings.Contains(op.Error.Message, "8 MiB are free") {
		t.Errorf("an import of 16 MiB ended as %s, %+v, want that there is no space for 16 MiB in %s, where 8 MiB are free", op.State, op.Error, dir)
	}
	for _, name := range []string{"one", "two"} { // and each gives its room back
		b.must(b.ImageImport(ctx, none, api.ImageImport{Name: name, Format: "raw", Pool: "main"},
			ingest.Source{Stream: io.LimitReader(strings.NewReader(strings.Repeat(name+"!", 1<<20)), 4<<20), Size: -1}))
	}
	b.silent("imports by way of scratch")
}
