package engine_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
)

// onPool are the effects that a pool's file system can refuse.
var onPool = []faults.Kind{faults.Write, faults.Create, faults.Sync, faults.Rename, faults.Ioctl, faults.Tool}

// TestErrors makes each effect on the pool fail, once or from then on, and asks
// for a typed error, nothing left, an exact ledger, and no second try of a sync.
func TestErrors(t *testing.T) {
	for _, c := range crashes {
		if !slices.Contains([]string{"image import", "image import lost", "image import corrupt", "cache add lost", "instance create", "disk create", "disk resize", "disk resize qcow2", "volume adopt", "volume adopt base"}, c.name) {
			continue
		}
		for _, f := range []struct {
			name       string
			err        error
			kinds      []faults.Kind
			persistent bool
			want       errs.Kind
		}{
			{"ENOSPC", syscall.ENOSPC, []faults.Kind{faults.Write, faults.Create}, false, errs.NoSpace},
			{"EIO", syscall.EIO, onPool, false, ""},
			{"sync", syscall.EIO, []faults.Kind{faults.Sync}, false, ""},
		} {
			t.Run(strings.ReplaceAll(c.name, " ", "-")+"/"+f.name, func(t *testing.T) {
				faultstest.Errors(t, faultstest.Options{MinEffects: 1, Kinds: f.kinds}, f.err, f.persistent,
					func(t *testing.T) *world {
						w := newWorld(t)
						w.more(c.setup(w)...)
						return w
					},
					func(w *world) error {
						return w.with(func(ctx context.Context, e *engine.Engine) error { return c.run(w, ctx, e) })
					},
					func(t *testing.T, w *world, got error, failed *faultstest.Fail) {
						checkFailed(t, w, got, failed, f.want)
					})
			})
		}
	}
}

// checkFailed asks that a failed operation said why, and left nothing.
func checkFailed(t *testing.T, w *world, got error, failed *faultstest.Fail, want errs.Kind) {
	t.Helper()
	if len(failed.Failed()) == 0 {
		w.check(t)
		return
	}
	var typed *errs.Error
	switch {
	case got == nil:
		t.Error("the operation succeeded although an effect failed")
	case !errors.As(got, &typed):
		t.Errorf("got %v, want an error of the vocabulary", got)
	case want != "" && typed.Kind != want:
		t.Errorf("got %v of kind %s, want %s", got, typed.Kind, want)
	}
	if e := failed.Failed()[0]; e.Kind == faults.Sync && failed.Retried() && !isDirectory(w, e.Name) {
		t.Errorf("%s was synced again after it had failed", e.Name)
	}
	w.check(t)
}

// isDirectory reports whether a sync was that of a directory: what follows a
// failed one is another change of the directory, with a sync of its own.
func isDirectory(w *world, name string) bool {
	fi, err := os.Stat(filepath.Join(w.pool, name))
	return err != nil || fi.IsDir()
}
