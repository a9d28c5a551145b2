package drivertest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func testFull(t *testing.T, h Harness) {
	if h.Small == nil {
		t.Skip("does not apply: this technology or user has no small storage to fill up")
	}
	p := newPoolAt(t, h, h.Small(t))
	ctx := t.Context()
	content := pattern(mib)
	a := p.volume("a", p.unit(), content, false)
	wait := newRef("wait")
	p.create(wait, p.unit())
	u, err := p.Stat(ctx)
	wantNil(t, "Stat", err)
	before := h.Residue(t, p.c)
	wantKind(t, "Create of more than there is", p.Create(ctx, driver.Spec{ID: "big", Size: p.round(2 * u.Capacity), Prealloc: true}), errs.NoSpace)
	if got := h.Residue(t, p.c); !slices.Equal(got, before) {
		t.Errorf("a Create without room left %q, before %q", got, before)
	}
	fill := p.fill(u)

	p.open() // a full pool starts
	snap := newSnapshot()
	s := p.snapshotter()
	if s != nil {
		if err := s.Snapshot(ctx, a, snap); err != nil {
			wantKind(t, "Snapshot on a full pool", err, errs.NoSpace)
		} else {
			p.wantSnapshot(a, snap, content, p.unit())
		}
	}
	before = h.Residue(t, p.c)
	wantKind(t, "Create on a full pool", p.Create(ctx, driver.Spec{ID: "x", Size: 8 * mib, Prealloc: true}), errs.NoSpace)
	if got := h.Residue(t, p.c); !slices.Equal(got, before) {
		t.Errorf("a Create on a full pool left %q, before %q", got, before)
	}
	if err := p.PutSidecar(ctx, "a", bytes.Repeat([]byte("x"), driver.RecordSize)); err != nil {
		wantKind(t, "PutSidecar on a full pool", err, errs.NoSpace)
		if got, err := p.Sidecar(ctx, "a"); err != nil || !bytes.Equal(got, sidecarOf(a)) {
			t.Errorf("a PutSidecar that failed left %q, %v", got, err)
		}
	}
	if _, err := p.Publish(ctx, wait.ID, "wait", false, sidecarOf(wait)); err != nil {
		wantKind(t, "Publish on a full pool", err, errs.NoSpace)
		if _, there := p.names()["wait"]; there {
			t.Error("a Publish that failed gave the name")
		}
	}
	p.wantBytes(a, content, p.unit())
	if s != nil {
		p.onFull("DeleteSnapshot", func() error { return s.DeleteSnapshot(ctx, a, snap) })
	}
	for _, r := range append([]driver.Ref{a}, fill...) {
		p.onFull("Delete", func() error { return p.Delete(ctx, r) })
	}
	if b, ok := p.Driver.(driver.Ballast); ok {
		wantNil(t, "RestoreBallast", b.RestoreBallast(ctx))
	}
	_, err = p.Publish(ctx, wait.ID, "wait", false, sidecarOf(wait))
	wantNil(t, "Publish when there is room again", err)
	testUsedSpace(p)
}

// testUsedSpace makes and grows volumes in space that held a pattern before.
func testUsedSpace(p *pool) {
	p.t.Helper()
	if p.h.Settle != nil {
		p.h.Settle(p.t, p.c)
	}
	r := driver.Ref{ID: disk.VolumeID(NewID())}
	wantNil(p.t, "Create in space that was used", p.Create(p.t.Context(), driver.Spec{ID: r.ID, Size: 16 * mib, Prealloc: true}))
	p.wantBytes(r, nil, 16*mib)
	a := p.volume("grows", p.unit(), nil, false)
	p.write(a, driver.Write, []byte("end"), p.unit()-3)
	wantNil(p.t, "grow into space that was used", p.Resize(p.t.Context(), a, 8*mib))
	p.write(a, driver.Write, []byte{1}, 6*mib) // in the middle of what the technology allocates at once
	want := make([]byte, 8*mib)
	copy(want[p.unit()-3:], "end")
	want[6*mib] = 1
	p.wantBytes(a, want, 8*mib)
}

// fill takes all of the room there is, to the last block, with staged volumes.
func (p *pool) fill(u driver.Usage) (taken []driver.Ref) {
	p.t.Helper()
	if !p.caps.Thick {
		r := newRef("")
		p.create(r, p.round(2*u.Capacity))
		p.fillOne(r)
		return []driver.Ref{r}
	}
	for size := p.round(u.Capacity); size >= p.caps.SizeUnit; {
		r := newRef("")
		if err := p.Create(p.t.Context(), driver.Spec{ID: r.ID, Size: size}); err != nil {
			wantKind(p.t, "Create without room", err, errs.NoSpace)
			size = size / 2 / p.caps.SizeUnit * p.caps.SizeUnit
			continue
		}
		taken = append(taken, r)
	}
	return taken
}

// fillOne writes into r until there is no room for a block.
func (p *pool) fillOne(r driver.Ref) {
	p.t.Helper()
	d := p.device(r, driver.Staged)
	defer d.Close()
	off := int64(0)
	for chunk := mib; chunk >= 4096; chunk /= 16 {
		for {
			n, err := d.WriteAt(pattern(chunk), off)
			off += int64(n)
			if err != nil {
				wantKind(p.t, "WriteAt on a full pool", err, errs.NoSpace)
				break
			}
			if off > 1<<32 {
				p.t.Fatal("4 GiB fitted into the small storage")
			}
		}
	}
	if err := d.Sync(); err != nil {
		wantKind(p.t, "Sync on a full pool", err, errs.NoSpace)
	}
}

// onFull does what frees space on a full pool, which must work, with the
// ballast's help if need be.
func (p *pool) onFull(what string, do func() error) {
	p.t.Helper()
	err := do()
	if b, ok := p.Driver.(driver.Ballast); ok && errors.Is(err, errs.NoSpace) {
		wantNil(p.t, "ReleaseBallast", b.ReleaseBallast(p.t.Context()))
		err = do()
	}
	wantNil(p.t, what+" on a full pool", err)
}

// testPowerLoss cuts the power right after each kind of call returned nil.
func testPowerLoss(t *testing.T, h Harness) {
	if h.Power == nil {
		t.Skip("does not apply: the power of this technology cannot be cut here")
	}
	c, cut := h.Power(t)
	p := newPoolAt(t, h, c)
	ctx := t.Context()
	content := pattern(3 * mib)
	lose := func() {
		t.Helper()
		wantNil(t, "Close", p.Close())
		p.Driver = nil
		cut()
		p.open()
	}
	base := p.volume("base", 4*mib, content, true)
	lose()
	p.wantBytes(base, content, 4*mib)
	disk := p.volume("disk", 4*mib, content[:mib], false)
	lose()
	p.wantBytes(disk, content[:mib], 4*mib)
	if o, err := p.Describe(ctx, disk); err != nil || o.BackendID != disk.BackendID {
		t.Errorf("after power loss Describe = %+v, %v; want the same object %v", o, err, disk)
	}
	wantNil(t, "Resize", p.Resize(ctx, disk, 8*mib))
	lose()
	p.wantBytes(disk, content[:mib], 8*mib)
	d := p.device(disk, driver.Write)
	if _, err := d.WriteAt(content, 5*mib); err != nil {
		t.Fatal(err)
	}
	wantNil(t, "Sync", d.Sync())
	d.Close()
	lose()
	if got := p.bytes(disk); !bytes.Equal(got[5*mib:], content) {
		t.Error("synced bytes are lost")
	}
	wantNil(t, "PutSidecar", p.PutSidecar(ctx, "disk", []byte("put")))
	lose()
	if s := p.snapshotter(); s != nil {
		snap, held := newSnapshot(), p.bytes(disk)
		wantNil(t, "Snapshot", s.Snapshot(ctx, disk, snap))
		lose()
		p.wantSnapshot(disk, snap, held, int64(len(held)))
		wantNil(t, "DeleteSnapshot", p.snapshotter().DeleteSnapshot(ctx, disk, snap))
		lose()
		p.wantSnapshots(disk)
	}
	wantNil(t, "PutSidecar of the marker", p.PutSidecar(ctx, "", append(Marker(c), " put"...)))
	lose()
	if got, err := p.Sidecar(ctx, ""); err != nil || !bytes.HasSuffix(got, []byte(" put")) {
		t.Errorf("the marker is %q, %v", got, err)
	}
	if got := p.sidecars(); len(got) != 2 || got["base"] != string(sidecarOf(base)) || got["disk"] != "put" {
		t.Errorf("the sidecars are %q", got)
	}
	wantNil(t, "Delete", p.Delete(ctx, disk))
	lose()
	if got := p.names(); len(got) != 1 || len(p.sidecars()) != 1 {
		t.Errorf("after deleting one of two volumes there are %v", got)
	}
	if cl, ok := p.Driver.(driver.Cloner); ok && p.caps.Clone != driver.CloneCopy {
		clone := newRef("clone")
		wantNil(t, "Clone", cl.Clone(ctx, driver.Spec{ID: clone.ID, Size: 8 * mib}, base))
		_, err := p.Publish(ctx, clone.ID, clone.Name, false, sidecarOf(clone))
		wantNil(t, "Publish of a clone", err)
		lose()
		p.wantBytes(clone, content, 8*mib)
	}
}
