package drivertest

import (
	"slices"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// testBuild makes storage from raw material, again, and over what others made.
func testBuild(t *testing.T, h Harness) {
	if (h.Raw == nil) != (h.Type.Build == nil) {
		t.Fatal("a type that builds needs a harness with raw material, no other does")
	}
	if h.Raw == nil {
		return
	}
	ctx := t.Context()
	c := h.Raw(t)
	wantKind(t, "Open of raw material", errOf2(h.Type.Open(ctx, c)), errs.Unavailable)
	wantKind(t, "Prepare of raw material", h.Type.Prepare(ctx, c, Marker(c)), errs.Unavailable)
	wantNil(t, "Remove of raw material", h.Type.Remove(ctx, c))
	for range 2 {
		wantNil(t, "Build", h.Type.Build(ctx, c, false))
	}
	p := newPoolAt(t, h, c)
	a := p.volume("a", p.unit(), pattern(int(p.unit())), false)
	for _, overwrite := range []bool{false, true} {
		wantKind(t, "Build of an open pool", h.Type.Build(ctx, c, overwrite), errs.Busy)
	}
	want := p.bytes(a)
	p.stop()
	wantNil(t, "Build of what is built", h.Type.Build(ctx, c, false))
	p.open()
	p.wantBytes(a, want, int64(len(want)))
	p.stop()

	other := c
	other.ID = disk.PoolID(NewID())
	before := h.Residue(t, c)
	wantKind(t, "Build over another pool", h.Type.Build(ctx, other, false), errs.Conflict)
	if got := h.Residue(t, c); !slices.Equal(got, before) {
		t.Errorf("the refusal left %q, before was %q", got, before)
	}
	wantNil(t, "Build that overwrites", h.Type.Build(ctx, other, true))
	q := newPoolAt(t, h, other)
	if all := q.names(); len(all) != 0 {
		t.Errorf("what was built anew holds %v", all)
	}
	wantNil(t, "Close", q.Close())
	wantNil(t, "Remove", h.Type.Remove(ctx, other))
}

// stop closes the pool and ends what opening it set going.
func (p *pool) stop() {
	p.t.Helper()
	if s, ok := p.Driver.(driver.Stopper); ok {
		wantNil(p.t, "Stop", s.Stop(p.t.Context()))
		return
	}
	wantNil(p.t, "Close", p.Close())
}

// testStop ends what opening set going, which an open device keeps in use.
func testStop(t *testing.T, h Harness) {
	p := newPool(t, h)
	a := p.volume("a", p.unit(), pattern(int(p.unit())), false)
	want := p.bytes(a)
	p.open()
	s, ok := p.Driver.(driver.Stopper)
	if !ok {
		t.Log("opening a pool sets nothing going")
		return
	}
	dev := p.device(a, driver.Read)
	ended, calls := make(chan struct{}), sync.WaitGroup{}
	calls.Go(func() { // which are as good as before
		for {
			if _, err := p.Stat(t.Context()); err != nil {
				t.Errorf("Stat beside a Stop that fails: %v", err)
			}
			if _, err := p.Describe(t.Context(), a); err != nil {
				t.Errorf("Describe beside a Stop that fails: %v", err)
			}
			select {
			case <-ended:
				return
			default:
			}
		}
	})
	for range 2 {
		wantKind(t, "Stop while a device is open", s.Stop(t.Context()), errs.Busy)
	}
	close(ended)
	calls.Wait()
	p.wantBytes(a, want, int64(len(want)))
	b := p.volume("b", p.unit(), nil, false)
	_, _, err := h.Type.Open(t.Context(), p.c)
	wantKind(t, "Open of a pool that could not be stopped", err, errs.Busy)
	wantNil(t, "Close of the device", dev.Close())
	wantNil(t, "Stop", s.Stop(t.Context()))
	if _, err := p.Stat(t.Context()); err == nil {
		t.Error("Stat of a stopped pool succeeded")
	}
	p.open()
	p.wantBytes(a, want, int64(len(want)))
	p.wantBytes(b, nil, p.unit())
}

func errOf2[T, U any](_ T, _ U, err error) error { return err }
