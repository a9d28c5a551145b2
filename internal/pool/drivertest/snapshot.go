package drivertest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// snapshotter returns the driver's, or nil where the pool keeps no snapshots.
func (p *pool) snapshotter() driver.Snapshotter {
	p.t.Helper()
	s, ok := p.Driver.(driver.Snapshotter)
	if !ok && p.caps.Snapshot != driver.SnapshotNone {
		p.t.Fatalf("the driver declares %s snapshots and has no Snapshotter", p.caps.Snapshot)
	}
	if !ok || p.caps.Snapshot == driver.SnapshotNone {
		return nil
	}
	return s
}

func newSnapshot() disk.SnapshotID { return disk.SnapshotID(NewID()) }

// wantSnapshot reads a snapshot whole, which must begin with want and be zero
// from there to size.
func (p *pool) wantSnapshot(r driver.Ref, id disk.SnapshotID, want []byte, size int64) {
	p.t.Helper()
	d, err := p.Driver.(driver.Snapshotter).OpenSnapshot(p.t.Context(), r, id)
	if err != nil {
		p.t.Errorf("OpenSnapshot: %v", err)
		return
	}
	defer d.Close()
	got, err := io.ReadAll(io.NewSectionReader(d, 0, size+1))
	if err != nil || int64(len(got)) != size || d.Size() != size {
		p.t.Errorf("the snapshot has %d bytes and says %d, want %d; %v", len(got), d.Size(), size, err)
		return
	}
	if !bytes.Equal(got[:len(want)], want) || !blkio.IsZero(got[len(want):]) {
		p.t.Errorf("the snapshot of %s does not hold what the volume held", r.Name)
	}
}

func (p *pool) wantSnapshots(r driver.Ref, want ...disk.SnapshotID) {
	p.t.Helper()
	var got []disk.SnapshotID
	for id, err := range p.Driver.(driver.Snapshotter).Snapshots(p.t.Context(), r) {
		wantNil(p.t, "Snapshots", err)
		got = append(got, id)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		p.t.Errorf("the snapshots of %s are %q, want %q", r.Name, got, want)
	}
}

func testSnapshots(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	s := p.snapshotter()
	if s == nil {
		testNoSnapshots(p)
		return
	}
	const size = 8 * mib
	empty := h.Residue(t, p.c)
	first, second := pattern(3*mib), pattern(5*mib)
	a, b := p.volume("a", size, first, false), p.volume("b", p.unit(), nil, false)
	s1, s2 := newSnapshot(), newSnapshot()
	for range 2 {
		wantNil(t, "Snapshot", s.Snapshot(ctx, a, s1))
	}
	p.write(a, driver.Write, second, 0)
	wantNil(t, "Snapshot of a later moment", s.Snapshot(ctx, a, s2))
	wantNil(t, "Snapshot that is there", s.Snapshot(ctx, a, s1))
	third := pattern(size)
	p.write(a, driver.Write, third, 0)
	grown := int64(size)
	if p.caps.GrowFrozen {
		grown += 2 * p.unit()
		wantNil(t, "grow of a volume with snapshots", p.Resize(ctx, a, grown))
	} else {
		wantKind(t, "grow of a volume with snapshots", p.Resize(ctx, a, grown+2*p.unit()), errs.Conflict)
	}
	check := func() {
		t.Helper()
		p.wantSnapshot(a, s1, first, size)
		p.wantSnapshot(a, s2, second, size)
		p.wantBytes(a, third, grown)
		p.wantSnapshots(a, s1, s2)
		p.wantSnapshots(b)
		if names := slices.Sorted(maps.Keys(p.names())); !slices.Equal(names, []string{"a", "b"}) || len(p.sidecars()) != 2 {
			t.Errorf("List yields %q with %d sidecars, want a and b alone", names, len(p.sidecars()))
		}
	}
	check()
	wantKind(t, "Delete of a volume with snapshots", p.Delete(ctx, a), errs.Conflict)
	check()
	p.open()
	s = p.snapshotter()
	check()
	testSnapshotRefusals(p, s, a, s1)
	check()

	for range 2 {
		wantNil(t, "DeleteSnapshot", s.DeleteSnapshot(ctx, a, s1))
	}
	wantKind(t, "OpenSnapshot of a deleted one", errOf(s.OpenSnapshot(ctx, a, s1)), errs.NotFound)
	p.wantSnapshot(a, s2, second, size)
	p.wantSnapshots(a, s2)
	wantNil(t, "Snapshot of an id that was deleted", s.Snapshot(ctx, a, s1))
	p.wantSnapshot(a, s1, third, grown)
	for _, id := range []disk.SnapshotID{s1, s2} {
		wantNil(t, "DeleteSnapshot", s.DeleteSnapshot(ctx, a, id))
	}
	p.wantBytes(a, third, grown)
	for _, r := range []driver.Ref{a, b} {
		wantNil(t, "Delete when its snapshots are gone", p.Delete(ctx, r))
	}
	if got := h.Residue(t, p.c); !slices.Equal(got, empty) {
		t.Errorf("after deleting all there is %q, in the beginning there was %q", got, empty)
	}
}

func testNoSnapshots(p *pool) {
	s, ok := p.Driver.(driver.Snapshotter)
	if !ok {
		return
	}
	a := p.volume("a", p.unit(), nil, false)
	before := p.state()
	wantKind(p.t, "Snapshot where there are none", s.Snapshot(p.t.Context(), a, newSnapshot()), errs.Unsupported)
	p.wantSnapshots(a)
	if after := p.state(); !slices.Equal(after, before) {
		p.t.Errorf("a Snapshot that cannot be left %q, before %q", after, before)
	}
}

// testSnapshotRefusals asks for what cannot be; a has the snapshot there.
func testSnapshotRefusals(p *pool, s driver.Snapshotter, a driver.Ref, there disk.SnapshotID) {
	t, ctx := p.t, p.t.Context()
	t.Helper()
	missing, other := newRef("missing"), driver.Ref{ID: a.ID, Name: a.Name, BackendID: "other"}
	wantKind(t, "Snapshot of a missing volume", s.Snapshot(ctx, missing, newSnapshot()), errs.NotFound)
	wantKind(t, "Snapshot of another object", s.Snapshot(ctx, other, newSnapshot()), errs.Corrupt)
	wantKind(t, "Snapshots of a missing volume", last(s.Snapshots(ctx, missing)), errs.NotFound)
	wantKind(t, "OpenSnapshot of a missing volume", errOf(s.OpenSnapshot(ctx, missing, there)), errs.NotFound)
	wantKind(t, "OpenSnapshot of a missing one", errOf(s.OpenSnapshot(ctx, a, newSnapshot())), errs.NotFound)
	wantNil(t, "DeleteSnapshot of a missing one", s.DeleteSnapshot(ctx, a, newSnapshot()))
	wantNil(t, "DeleteSnapshot of a missing volume", s.DeleteSnapshot(ctx, missing, newSnapshot()))
	for _, id := range []disk.SnapshotID{"", ".", "..", "a/b", "../a", ".hidden"} {
		wantKind(t, fmt.Sprintf("Snapshot as %q", id), s.Snapshot(ctx, a, id), errs.Invalid)
		wantKind(t, fmt.Sprintf("OpenSnapshot of %q", id), errOf(s.OpenSnapshot(ctx, a, id)), errs.Invalid)
		wantKind(t, fmt.Sprintf("DeleteSnapshot of %q", id), s.DeleteSnapshot(ctx, a, id), errs.Invalid)
	}

	d, err := s.OpenSnapshot(ctx, a, there)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt([]byte{1}, 0); err == nil {
		t.Error("a snapshot can be written")
	}
	if err := d.Zero(0, 4096); err == nil {
		t.Error("a snapshot can be zeroed")
	}

	id := newSnapshot()
	w := p.device(a, driver.Write)
	wantKind(t, "Snapshot while the volume is written", s.Snapshot(ctx, a, id), errs.Busy)
	wantNil(t, "Close", w.Close())
	if p.h.Hold != nil {
		release := p.h.Hold(t, p.c, a)
		wantKind(t, "Snapshot while another process writes", s.Snapshot(ctx, a, id), errs.Busy)
		release()
	}
	r := p.device(a, driver.Read)
	wantNil(t, "Snapshot while the volume is read", s.Snapshot(ctx, a, id))
	wantNil(t, "Close", r.Close())
	wantNil(t, "DeleteSnapshot", s.DeleteSnapshot(ctx, a, id))
}
