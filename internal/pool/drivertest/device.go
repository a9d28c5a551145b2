package drivertest

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func testDevice(t *testing.T, h Harness) {
	p := newPool(t, h)
	a := p.volume("a", 8*mib, nil, false)
	d := p.device(a, driver.Write)
	want := make([]byte, 8*mib)
	var wg sync.WaitGroup
	for i := range 8 { // concurrent writers of neighbouring odd ranges
		part := want[i*mib+i : min((i+1)*mib+i+1, 8*mib)]
		copy(part, pattern(len(part)))
		wg.Go(func() {
			if _, err := d.WriteAt(part, int64(i*mib+i)); err != nil {
				t.Errorf("WriteAt: %v", err)
			}
		})
	}
	wg.Wait()
	wantNil(t, "Sync", d.Sync())
	for _, r := range [][2]int64{{0, 1}, {5, 4090}, {mib + 511, 3 * mib}, {8*mib - 1, 1}} {
		wantNil(t, fmt.Sprintf("Zero(%d, %d)", r[0], r[1]), d.Zero(r[0], r[1]))
		clear(want[r[0] : r[0]+r[1]])
	}
	got := make([]byte, 8*mib+10)
	if n, err := d.ReadAt(got, 0); n != 8*mib || err != io.EOF {
		t.Errorf("ReadAt past the end: %d bytes, %v; want %d and EOF", n, err, 8*mib)
	}
	if !bytes.Equal(got[:8*mib], want) {
		t.Error("the device differs from what was written and zeroed")
	}
	wantNil(t, "Sync", d.Sync())
	wantNil(t, "Close", d.Close())
	p.wantBytes(a, want, 8*mib)
	testContainer(p)
}

// testContainer has a container grow as it is written, where that is possible.
func testContainer(p *pool) {
	p.t.Helper()
	r := newRef("")
	if !p.caps.Grows {
		wantKind(p.t, "Create of a container that grows", p.Create(p.t.Context(), driver.Spec{ID: r.ID}), errs.Unsupported)
		p.create(r, p.unit())
		d := p.device(r, driver.Staged)
		wantKind(p.t, "Truncate", d.Truncate(2*p.unit()), errs.Unsupported)
		if n, err := d.WriteAt([]byte("end"), p.unit()-2); err == nil || n > 2 {
			p.t.Errorf("writing across the end: %d bytes, %v; want an error", n, err)
		}
		if d.Size() != p.unit() {
			p.t.Errorf("the container has %d bytes after that, want %d", d.Size(), p.unit())
		}
		return
	}
	p.create(r, 0)
	d := p.device(r, driver.Staged)
	wantNil(p.t, "Truncate", d.Truncate(mib))
	if _, err := d.WriteAt([]byte("end"), 3*mib); err != nil || d.Size() != 3*mib+3 {
		p.t.Errorf("writing past the end: size %d, %v; want %d", d.Size(), err, 3*mib+3)
	}
	wantNil(p.t, "Truncate", d.Truncate(2*mib))
	wantNil(p.t, "Truncate", d.Truncate(4*mib))
	d.Close()
	p.wantBytes(r, nil, 4*mib)
}

func testExtents(t *testing.T, h Harness) {
	p := newPool(t, h)
	a := p.volume("a", 64*mib, nil, false)
	d := p.device(a, driver.Write)
	for _, off := range []int64{8 * mib, 40 * mib} {
		if _, err := d.WriteAt(pattern(2*mib), off); err != nil {
			t.Fatal(err)
		}
	}
	wantNil(t, "Sync", d.Sync())
	wantNil(t, "Zero", d.Zero(9*mib, mib))
	var data int64
	for off := int64(0); off < 64*mib; {
		e, err := d.Extent(off)
		if err != nil || e.Offset != off || e.Length <= 0 || e.End() > 64*mib || e.Kind != diskfmt.Data && e.Kind != diskfmt.Zero {
			t.Fatalf("Extent(%d) = %+v, %v", off, e, err)
		}
		if e.Kind == diskfmt.Data {
			data += e.Length
		} else {
			content := make([]byte, e.Length)
			if _, err := d.ReadAt(content, off); err != nil && err != io.EOF || bytes.Count(content, []byte{0}) != len(content) {
				t.Errorf("the Zero extent %+v does not read as zeroes, %v", e, err)
			}
		}
		off = e.End()
	}
	most := 2*disk.RoundUp(2*mib, max(h.Grain, 1)) + mib
	if p.caps.HolesKnown && data >= most || data < 3*mib {
		t.Errorf("extents hold %d bytes of data, want less than %d; written and not zeroed were %d", data, most, 3*mib)
	}
	for _, off := range []int64{-1, 64 * mib} {
		if e, err := d.Extent(off); err == nil {
			t.Errorf("Extent(%d) = %+v, want an error", off, e)
		}
	}
}

func testLocks(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	a := p.volume("a", p.unit(), nil, false)
	// Whether one may be opened while the other is.
	for _, pair := range []struct {
		held, asked driver.Mode
		ok          bool
	}{
		{driver.Write, driver.Write, false}, {driver.Write, driver.Read, false}, {driver.Read, driver.Write, false},
		{driver.Read, driver.Read, true}, {driver.Base, driver.Write, true}, {driver.Write, driver.Base, true},
	} {
		held := p.device(a, pair.held)
		d, err := p.Open(ctx, a, pair.asked)
		what := fmt.Sprintf("mode %d while mode %d is open", pair.asked, pair.held)
		if pair.ok {
			wantNil(t, what, err)
		} else {
			wantKind(t, what, err, errs.Busy)
		}
		if d != nil {
			d.Close()
		}
		held.Close()
	}
	d := p.device(a, driver.Read)
	wantKind(t, "Resize while it is read", p.Resize(ctx, a, 2*p.unit()), errs.Busy)
	if pr, ok := p.Driver.(driver.Prober); ok {
		wantKind(t, "Probe while it is read", pr.Probe(ctx, a), errs.Busy)
		d.Close()
		wantNil(t, "Probe of what nobody uses", pr.Probe(ctx, a))
		wantKind(t, "Probe of a missing volume", pr.Probe(ctx, newRef("missing")), errs.NotFound)
	}
	d.Close()
	wantNil(t, "Resize afterwards", p.Resize(ctx, a, 2*p.unit()))
	if h.Hold != nil {
		testHeld(p, a)
	}
}

// testHeld has another process write the volume.
func testHeld(p *pool, a driver.Ref) {
	p.t.Helper()
	ctx := p.t.Context()
	release := p.h.Hold(p.t, p.c, a)
	wantKind(p.t, "Open for writing while another process writes", errOf(p.Open(ctx, a, driver.Write)), errs.Busy)
	wantKind(p.t, "Open for reading while another process writes", errOf(p.Open(ctx, a, driver.Read)), errs.Busy)
	wantKind(p.t, "Resize while another process writes", p.Resize(ctx, a, 3*p.unit()), errs.Busy)
	pr, ok := p.Driver.(driver.Prober)
	if ok {
		wantKind(p.t, "Probe while another process writes", pr.Probe(ctx, a), errs.Busy)
	}
	p.wantBytes(a, nil, 2*p.unit())
	release()
	if ok {
		wantNil(p.t, "Probe when the other process is gone", pr.Probe(ctx, a))
	}
	d := p.device(a, driver.Write)
	wantNil(p.t, "Close", d.Close())
}

// testOpens opens volumes many times at once.
func testOpens(t *testing.T, h Harness) {
	p := newPool(t, h)
	content := pattern(mib)
	base := p.volume("base", p.unit(), content, true)
	a := p.volume("a", p.unit(), content, false)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			r, m := base, driver.Base
			if i%2 == 0 {
				r, m = a, driver.Read
			}
			d, err := p.Open(t.Context(), r, m)
			if err != nil {
				t.Errorf("Open of %s by one of many: %v", r.Name, err)
				return
			}
			defer d.Close()
			got := make([]byte, mib)
			if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got, content) {
				t.Errorf("one of many readers of %s does not read what was written: %v", r.Name, err)
			}
		})
	}
	wg.Wait()
	won := make(chan driver.Device, 8)
	for range cap(won) {
		wg.Go(func() {
			d, err := p.Open(t.Context(), a, driver.Write)
			if err == nil {
				won <- d
				return
			}
			wantKind(t, "Open for writing by one of many", err, errs.Busy)
		})
	}
	wg.Wait()
	close(won)
	if len(won) > 1 {
		t.Errorf("%d have one volume open for writing", len(won))
	}
	for d := range won {
		wantNil(t, "Close", d.Close())
	}
	wantNil(t, "Close", p.device(a, driver.Write).Close())
}

func testConcurrent(t *testing.T, h Harness) {
	p := newPool(t, h)
	empty := h.Residue(t, p.c)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 4 {
				r := driver.Ref{ID: disk.VolumeID(NewID()), Name: fmt.Sprintf("c%d-%d", i, j)}
				if err := p.Create(t.Context(), driver.Spec{ID: r.ID, Size: p.unit()}); err != nil {
					t.Errorf("Create: %v", err)
					return
				}
				o, err := p.Publish(t.Context(), r.ID, r.Name, false, sidecarOf(r))
				if err != nil {
					t.Errorf("Publish: %v", err)
					return
				}
				r.BackendID = o.BackendID
				if j == 0 {
					continue
				}
				wantNil(t, "Delete", p.Delete(t.Context(), r))
			}
		})
	}
	wg.Wait()
	if n, s := len(p.names()), len(p.sidecars()); n != 16 || s != 16 {
		t.Errorf("%d volumes and %d sidecars are left, want 16", n, s)
	}
	for name := range p.names() {
		wantNil(t, "Delete", p.Delete(t.Context(), newRef(name)))
	}
	if got := h.Residue(t, p.c); len(got) != len(empty) {
		t.Errorf("after deleting all there is %q, in the beginning there was %q", got, empty)
	}

	// Of several that want one name, one gets it.
	var won sync.Map
	for range 8 {
		wg.Go(func() {
			r := newRef("one")
			wantNil(t, "Create", p.Create(t.Context(), driver.Spec{ID: r.ID, Size: p.unit()}))
			if _, err := p.Publish(t.Context(), r.ID, "one", false, sidecarOf(r)); err == nil {
				won.Store(string(sidecarOf(r)), true)
			} else {
				wantKind(t, "Publish of a name that is taken", err, errs.Exists)
			}
		})
	}
	wg.Wait()
	n := 0
	won.Range(func(side, _ any) bool {
		n++
		if got := p.sidecars()["one"]; got != side {
			t.Errorf("the sidecar is %q, the winner's %q", got, side)
		}
		return true
	})
	if n != 1 {
		t.Errorf("%d volumes got one name", n)
	}
}
