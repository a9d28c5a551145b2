package drivertest

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// testAdopt lets volumes go and takes them back: what Disown leaves is as
// foreign as anything.
func testAdopt(t *testing.T, h Harness) {
	p := newPool(t, h)
	if _, ok := p.Driver.(driver.Adopter); !ok {
		t.Skip("does not apply: the driver adopts nothing")
	}
	for _, immutable := range []bool{false, true} {
		if h.sampled() && !immutable {
			continue // TARN_SLOW=1 runs this
		}
		p.adoptAndRelease(map[bool]string{false: "disk", true: "base"}[immutable], immutable)
	}
	p.refusedAdoptions()
}

// adoptAndRelease makes a volume foreign and another one of it.
func (p *pool) adoptAndRelease(name string, immutable bool) {
	a := p.Driver.(driver.Adopter)
	t, ctx, content := p.t, p.t.Context(), pattern(mib)
	was := p.volume(name, 2*p.unit(), content, immutable)
	for range 2 { // what is foreign already is no error
		wantNil(t, "Disown", a.Disown(ctx, was))
	}
	o, there := p.names()[name]
	if _, err := p.Sidecar(ctx, name); !there || o.BackendID != was.BackendID || o.Size != 2*p.unit() {
		t.Errorf("a released volume is listed as %+v, want the object %s", o, was.BackendID)
	} else {
		wantKind(t, "the sidecar of a released volume", err, errs.NotFound)
	}
	wantNil(t, "Delete of the former volume", p.Delete(ctx, driver.Ref{ID: was.ID, Name: name}))
	p.wantCandidate(a, o, content, immutable)

	r := newRef(name)
	r.BackendID = o.BackendID
	for range 2 {
		got, err := a.Adopt(ctx, r, immutable, sidecarOf(r))
		if err != nil || got.Name != name || got.BackendID != o.BackendID || got.Size != o.Size {
			t.Fatalf("Adopt: %+v, %v; want the object %+v", got, err, o)
		}
	}
	p.open() // as a restart finds it
	a = p.Driver.(driver.Adopter)
	if got := p.sidecars()[name]; got != string(sidecarOf(r)) {
		t.Errorf("the sidecar of an adopted volume is %q, want %q", got, sidecarOf(r))
	}
	if pr, ok := p.Driver.(driver.Protector); ok {
		why, err := pr.Exposure(ctx, r, immutable)
		if why != "" || err != nil {
			t.Errorf("Exposure of an adopted volume: %q, %v", why, err)
		}
	}
	p.wantBytes(r, content, 2*p.unit())
	_, err := a.Candidate(ctx, name)
	wantKind(t, "Candidate of a volume", err, errs.Exists)
	p.clonesOf(a, r, immutable)
	if s := p.snapshotter(); s != nil && !immutable {
		snap := newSnapshot()
		wantNil(t, "Snapshot of an adopted volume", s.Snapshot(ctx, r, snap))
		wantKind(t, "Disown of a volume with snapshots", a.Disown(ctx, r), errs.Conflict)
		wantNil(t, "DeleteSnapshot", s.DeleteSnapshot(ctx, r, snap))
	}
	wrong := r
	wrong.BackendID += "x"
	wantKind(t, "Disown of another object", a.Disown(ctx, wrong), errs.Corrupt)
	wantNil(t, "Delete of an adopted volume", p.Delete(ctx, r))
	wantNil(t, "Disown of what is gone", a.Disown(ctx, r))
	if _, there := p.names()[name]; there {
		t.Errorf("an adopted volume is there after its deletion")
	}
}

// clonesOf clones an adopted base.
func (p *pool) clonesOf(a driver.Adopter, base driver.Ref, immutable bool) {
	c, ok := p.Driver.(driver.Cloner)
	if !ok || !immutable || p.caps.Clone == driver.CloneCopy {
		return
	}
	clone := newRef("")
	wantNil(p.t, "Clone of an adopted base", c.Clone(p.t.Context(), driver.Spec{ID: clone.ID, Size: 2 * p.unit()}, base))
	if p.caps.HeldBases {
		wantKind(p.t, "Disown of a base with a clone", a.Disown(p.t.Context(), base), errs.Conflict)
	}
	wantNil(p.t, "Delete of the clone", p.Delete(p.t.Context(), clone))
}

// wantCandidate opens the foreign object o, whose guest sees content first.
func (p *pool) wantCandidate(a driver.Adopter, o driver.Object, content []byte, immutable bool) {
	t, ctx := p.t, p.t.Context()
	t.Helper()
	c, err := a.Candidate(ctx, o.Name)
	if err != nil {
		t.Fatalf("Candidate: %v", err)
	}
	defer c.Close()
	if c.Object.Name != o.Name || c.Object.BackendID != o.BackendID || c.Object.Size != o.Size {
		t.Errorf("Candidate is %+v, want %+v", c.Object, o)
	}
	if !immutable { // which not everybody may open for writing
		_, err = p.Open(ctx, driver.Ref{Name: o.Name}, driver.Write)
		wantKind(t, "Open of a candidate for writing", err, errs.Busy)
	}
	if c.Format != "" {
		if c.Format == diskfmt.Raw || c.Description == nil {
			t.Errorf("a candidate in a container of its technology has the format %s and %d bytes of description", c.Format, len(c.Description))
		}
		return
	}
	got := make([]byte, len(content))
	if _, err := c.ReadAt(got, 0); err != nil && err != io.EOF || !bytes.Equal(got, content) {
		t.Errorf("a candidate does not read as what was written: %v", err)
	}
}

// refusedAdoptions tries what cannot be adopted.
func (p *pool) refusedAdoptions() {
	a := p.Driver.(driver.Adopter)
	t, ctx := p.t, p.t.Context()
	_, err := a.Candidate(ctx, "absent")
	wantKind(t, "Candidate of nothing", err, errs.NotFound)
	_, err = a.Adopt(ctx, newRef("absent"), false, []byte("s"))
	wantKind(t, "Adopt of nothing", err, errs.NotFound)
	for _, name := range []string{"", ".tarn-pool", "a/b"} {
		_, err := a.Candidate(ctx, name)
		wantKind(t, "Candidate of "+name, err, errs.Invalid)
	}
	r := p.volume("held", p.unit(), nil, false)
	wantNil(t, "Disown", a.Disown(ctx, r))
	other := newRef("held")
	other.BackendID = r.BackendID + "x"
	_, err = a.Adopt(ctx, other, false, []byte("s"))
	wantKind(t, "Adopt of another object", err, errs.Corrupt)
	d := p.device(driver.Ref{Name: "held"}, driver.Write)
	_, err = a.Candidate(ctx, "held")
	wantKind(t, "Candidate of an object that is being written", err, errs.Busy)
	wantNil(t, "Close", d.Close())
	defer func() { // a foreign object goes where its own id is named
		wantNil(t, "Delete by the object's id", p.Delete(ctx, r))
		if _, there := p.names()["held"]; there {
			t.Error("a foreign object is there after its deletion by its id")
		}
	}()
	if p.h.Hold == nil {
		t.Log("no program here holds a volume as a guest does")
		return
	}
	release := p.h.Hold(t, p.c, driver.Ref{Name: "held"})
	_, err = a.Candidate(ctx, "held")
	wantKind(t, "Candidate of an object that a program holds", err, errs.Busy)
	_, err = a.Adopt(ctx, driver.Ref{ID: r.ID, Name: "held"}, false, []byte("s"))
	wantKind(t, "Adopt of an object that a program holds", err, errs.Busy)
	release()
}

// adoptionCalls are the calls of what adopts, on the volume v that published makes.
func adoptionCalls(published func(p *pool)) []call {
	disown := func(p *pool, ctx context.Context) error {
		if a, ok := p.Driver.(driver.Adopter); ok {
			return a.Disown(ctx, driver.Ref{ID: volID, Name: "v"})
		}
		return nil
	}
	released := func(p *pool) { published(p); wantNil(p.t, "Disown", disown(p, p.t.Context())) }
	adopt := func(immutable bool) func(p *pool, ctx context.Context) error {
		return func(p *pool, ctx context.Context) error {
			a, ok := p.Driver.(driver.Adopter)
			if !ok {
				return nil
			}
			_, err := a.Adopt(ctx, driver.Ref{ID: baseID, Name: "v"}, immutable, []byte("adopted"))
			return err
		}
	}
	return []call{
		{name: "Disown", foreign: true, setup: published, run: disown},
		{name: "Adopt", foreign: true, setup: released, run: adopt(false)},
		{name: "Adopt immutable", foreign: true, setup: released, run: adopt(true)},
	}
}
