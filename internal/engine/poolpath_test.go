package engine_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// TestPathsThatCannotBe asks for pools where no directory can be: each is
// refused, and nothing of it is left.
func TestPathsThatCannotBe(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	dir := t.TempDir()
	plain, loop := filepath.Join(dir, "file"), filepath.Join(dir, "loop")
	do(t, os.WriteFile(plain, nil, 0o600), os.Symlink(loop, loop))
	for name, path := range map[string]string{
		"a NUL":               filepath.Join(dir, "x\x00y"),
		"a line break":        filepath.Join(dir, "x\ny"),
		"no UTF-8":            filepath.Join(dir, "x\xff"),
		"a long component":    filepath.Join(dir, strings.Repeat("x", 300)),
		"no room for a mark":  filepath.Join(dir, strings.Repeat("x", 250)),
		"a long path":         filepath.Join(dir, strings.Repeat("x/", 2500)),
		"in a file":           filepath.Join(plain, "pool"),
		"in a loop of links":  filepath.Join(loop, "pool"),
		"deep in a long name": filepath.Join(dir, strings.Repeat("x", 300), "pool"),
	} {
		out, err := b.PoolCreate(ctx, none, api.PoolCreate{Name: "p", Driver: "dir", Path: path})
		if err == nil {
			if op := b.do(out, nil); op.State != "failed" || op.Error.Kind != errs.Invalid && op.Error.Kind != errs.NotFound {
				t.Errorf("%s: the operation is %s with %+v, want it to be refused", name, op.State, op.Error)
			}
		} else if errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: %v, want %s", name, err, errs.Invalid)
		}
		err = second(b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: path}))
		if kind := errs.KindOf(err); kind != errs.Invalid && kind != errs.Unavailable {
			t.Errorf("%s: importing it: %v, want %s or %s", name, err, errs.Invalid, errs.Unavailable)
		}
		if left := listOf(b.Pools(ctx, api.Page{})).Items; len(left) > 0 {
			t.Fatalf("%s: there is a pool now: %+v", name, left)
		}
	}
	b.silent("asking for impossible pools")
}
