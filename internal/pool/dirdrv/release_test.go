package dirdrv_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
)

// beforeSync calls do once, before a directory is synced.
type beforeSync struct {
	do func()
}

func (b *beforeSync) Before(e faults.Effect) error {
	if do := b.do; do != nil && e.Kind == faults.Sync && e.Name == "sync directory" {
		b.do = nil
		do()
	}
	return nil
}
func (*beforeSync) After(_ faults.Effect, err error) error { return err }

// TestReleaseBesideSync lets the directory go when a call is about to sync it,
// and takes it again: the call waits meanwhile.
func TestReleaseBesideSync(t *testing.T) {
	d, _ := newPool(t, t.TempDir())
	newVolume(t, d, "v.raw", 4096, false)
	put, released := make(chan struct{}), make(chan error, 1)
	busy := errs.New(errs.Busy, "", "", "in use")
	defer faults.Install(&beforeSync{func() {
		gone := make(chan struct{})
		go func() {
			released <- d.(*dirdrv.Pool).Release(context.Background(), func() error {
				close(gone)
				select { // the call below comes back only if it does not wait
				case <-put:
				case <-time.After(50 * time.Millisecond):
				}
				return busy
			})
		}()
		<-gone
	}})()
	err := d.PutSidecar(t.Context(), "v.raw", []byte("new"))
	close(put)
	if err != nil {
		t.Errorf("PutSidecar while the directory is released: %v", err)
	}
	if err := <-released; errs.KindOf(err) != errs.Busy {
		t.Errorf("Release: got %v, want busy", err)
	}
	if data, err := d.Sidecar(t.Context(), "v.raw"); err != nil || string(data) != "new" {
		t.Errorf("the sidecar is %q, %v", data, err)
	}
}

// TestReleaseGivenUp releases a pool for nobody, for somebody and once more, as
// the repeat of one that went on without its caller.
func TestReleaseGivenUp(t *testing.T) {
	d, _ := newPool(t, t.TempDir())
	p := d.(*dirdrv.Pool)
	acts := 0
	act := func() error { acts++; return nil }
	gone, leave := context.WithCancel(t.Context())
	leave()
	if err := p.Release(gone, act); !errors.Is(err, errs.Cancelled) || acts != 0 {
		t.Errorf("Release when its caller has gone: %v after %d acts, want cancelled before any", err, acts)
	}
	newVolume(t, d, "v.raw", 4096, false)
	for i := range 2 {
		if err := p.Release(t.Context(), act); err != nil || acts != i+1 {
			t.Errorf("Release %d: %v, %d acts", i, err, acts)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close of a released pool: %v", err)
	}
}

// TestReleaseLost releases a pool whose directory cannot be taken again: it is
// closed, and no call takes another directory for it.
func TestReleaseLost(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	busy := errs.New(errs.Busy, "", "", "in use")
	err := d.(*dirdrv.Pool).Release(t.Context(), func() error { return errors.Join(busy, os.Rename(c.Path, c.Path+".away")) })
	if !errors.Is(err, errs.Busy) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Release: %v, want busy, and that the directory is missing", err)
	}
	if err := d.PutSidecar(t.Context(), "v.raw", []byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("PutSidecar in a pool that was lost: %v, want it closed", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("Close of a pool that was lost: %v", err)
	}
}
