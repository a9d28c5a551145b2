package drivertest

import (
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func testLeftovers(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	l, ok := p.Driver.(driver.Leftovers)
	if !ok {
		t.Skip("does not apply: the driver does not list what is staged")
	}
	stagedIDs := func() []disk.VolumeID {
		t.Helper()
		ids := []disk.VolumeID{}
		for id, err := range l.Staged(ctx) {
			wantNil(t, "Staged", err)
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return ids
	}
	if got := stagedIDs(); len(got) != 0 {
		t.Errorf("a new pool has %q staged", got)
	}
	published := p.volume("published", p.unit(), pattern(mib), false)
	want := []disk.VolumeID{disk.VolumeID(NewID()), disk.VolumeID(NewID()) + ".part"}
	for _, id := range want {
		p.create(driver.Ref{ID: id}, p.unit())
	}
	if got := stagedIDs(); !slices.Equal(got, want) {
		t.Errorf("Staged yields %q, want %q", got, want)
	}
	s := p.snapshotter()
	if s != nil {
		wantNil(t, "Snapshot", s.Snapshot(ctx, published, newSnapshot()))
	}
	before := len(h.Residue(t, p.c))
	for range 2 { // what is not there is no error
		wantNil(t, "SetAside of a staged volume", l.SetAside(ctx, driver.Ref{ID: want[0]}))
		wantNil(t, "SetAside of a published volume", l.SetAside(ctx, published))
	}
	if got := stagedIDs(); !slices.Equal(got, want[1:]) {
		t.Errorf("after SetAside Staged yields %q, want %q", got, want[1:])
	}
	if len(p.names()) != 0 || len(p.sidecars()) != 0 {
		t.Errorf("after SetAside there are %v with sidecars %v", p.names(), p.sidecars())
	}
	if after := len(h.Residue(t, p.c)); after < before {
		t.Errorf("SetAside made %d objects out of %d", after, before)
	}
	again := p.volume("published", p.unit(), nil, false) // the name is free, and can be set aside again
	if s != nil {
		p.wantSnapshots(again)
	}
	wantNil(t, "SetAside of a second one", l.SetAside(ctx, again))
	if after := len(h.Residue(t, p.c)); after < before+1 { // a sidecar may be a part of its volume
		t.Errorf("setting a second volume of a name aside lost the first: %q", h.Residue(t, p.c))
	}
}

func testProtector(t *testing.T, h Harness) {
	p := newPool(t, h)
	pr, ok := p.Driver.(driver.Protector)
	if !ok {
		t.Skip("does not apply: the technology's volumes have no permissions")
	}
	for _, immutable := range []bool{false, true} {
		r := p.volume(map[bool]string{false: "disk", true: "base"}[immutable], p.unit(), nil, immutable)
		check := func(what string, as, exposed bool) {
			t.Helper()
			why, err := pr.Exposure(t.Context(), r, as)
			if err != nil || (why != "") != exposed {
				t.Errorf("%s: Exposure of %s as immutable=%v is %q, %v; want one: %v", what, r.Name, as, why, err, exposed)
			}
		}
		check("as published", immutable, false)
		check("as published", !immutable, true)
		wantNil(t, "Protect as the other", pr.Protect(t.Context(), r, !immutable))
		check("protected as the other", immutable, true)
		for range 2 {
			wantNil(t, "Protect", pr.Protect(t.Context(), r, immutable))
		}
		check("protected", immutable, false)
		p.wantBytes(r, nil, p.unit())
	}
}
