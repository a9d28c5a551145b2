package drivertest

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const mib = 1 << 20

func testCreate(t *testing.T, h Harness) {
	p := newPool(t, h)
	used := p.volume("used", 32*mib, pattern(32*mib), false)
	wantNil(t, "Delete", p.Delete(t.Context(), used))
	for _, s := range []driver.Spec{{Size: p.round(1)}, {Size: 8 * mib}, {Size: 16 * mib, Prealloc: true}, {Size: 0}} {
		if s.Size == 0 && !p.caps.Grows {
			continue
		}
		s.ID = disk.VolumeID(NewID())
		for range 2 { // a repeat is no error
			wantNil(t, fmt.Sprintf("Create of %d bytes", s.Size), p.Create(t.Context(), s))
		}
		p.wantBytes(driver.Ref{ID: s.ID}, nil, s.Size)
		p.write(driver.Ref{ID: s.ID}, driver.Staged, pattern(int(s.Size)), 0)
		wantNil(t, "Create again", p.Create(t.Context(), s))
		if s.Size > 0 && bytes.IndexByte(p.bytes(driver.Ref{ID: s.ID}), 0) >= 0 {
			t.Errorf("a repeated Create of %d bytes lost what was written", s.Size)
		}
		s.Size += p.caps.SizeUnit
		wantKind(t, "Create of another size", p.Create(t.Context(), s), errs.Exists)
		if s.Prealloc {
			o, err := p.Publish(t.Context(), s.ID, "prealloc", false, []byte("s"))
			if err != nil || o.Allocated < 16*mib {
				t.Errorf("preallocated volume: %+v, %v; want 16 MiB allocated", o, err)
			}
		}
	}
	if got := slices.Collect(maps.Keys(p.names())); !slices.Equal(got, []string{"prealloc"}) {
		t.Errorf("List yields %q, want no staged volume", got)
	}
	for _, id := range []disk.VolumeID{"", ".", "..", "a/b", "../a", ".hidden"} {
		wantKind(t, fmt.Sprintf("Create of id %q", id), p.Create(t.Context(), driver.Spec{ID: id, Size: p.round(1)}), errs.Invalid)
	}
	wantKind(t, "Create of a negative size", p.Create(t.Context(), driver.Spec{ID: "n", Size: -1}), errs.Invalid)
}

func testPublish(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	content := pattern(3 * mib)
	a := newRef("a")
	p.create(a, 4*p.unit())
	p.write(staged(a), driver.Staged, content, 0)
	o, err := p.Publish(ctx, a.ID, a.Name, false, sidecarOf(a))
	if err != nil || o.Name != "a" || o.Size != 4*p.unit() || o.BackendID == "" {
		t.Fatalf("Publish = %+v, %v", o, err)
	}
	p.open()
	p.wantBytes(a, content, 4*p.unit())
	wantNil(t, "PutSidecar", p.PutSidecar(ctx, "a", []byte("later")))
	again, err := p.Publish(ctx, a.ID, a.Name, false, sidecarOf(a))
	if err != nil || again.BackendID != o.BackendID {
		t.Errorf("repeated Publish = %+v, %v; want the object %+v", again, err, o)
	}
	if got := p.sidecars()["a"]; got != "later" {
		t.Errorf("after a repeated Publish the sidecar is %q, want the one put since", got)
	}
	if _, err := p.Open(ctx, staged(a), driver.Staged); err == nil {
		t.Error("a published volume is still staged")
	}

	b := newRef("b")
	_, err = p.Publish(ctx, b.ID, b.Name, false, sidecarOf(b))
	wantKind(t, "Publish of what was never created", err, errs.NotFound)
	p.create(b, p.unit())
	_, err = p.Publish(ctx, b.ID, "a", false, sidecarOf(b))
	wantKind(t, "Publish under another's name", err, errs.Exists)
	p.wantBytes(a, content, 4*p.unit())
	if got := p.sidecars()["a"]; got != "later" {
		t.Errorf("the sidecar is %q after another volume wanted the name", got)
	}
	if h.Foreign != nil {
		h.Foreign(t, p.c, "theirs")
		_, err = p.Publish(ctx, b.ID, "theirs", false, sidecarOf(b))
		wantKind(t, "Publish under a foreign object's name", err, errs.Exists)
		_, err = p.Publish(ctx, "gone", "theirs", false, sidecarOf(b))
		wantKind(t, "Publish of nothing under a foreign object's name", err, errs.Exists)
		if len(p.sidecars()) != 1 {
			t.Errorf("a foreign object got a sidecar: %v", p.sidecars())
		}
	}
	_, err = p.Publish(ctx, b.ID, "b", false, sidecarOf(b))
	wantNil(t, "Publish after the refusals", err)

	base := p.volume("base", 2*p.unit(), content[:mib], true)
	d := p.device(base, driver.Base)
	if _, err := d.WriteAt([]byte{1}, 0); err == nil {
		t.Error("a base opened as one can be written")
	}
	p.wantBytes(base, content[:mib], 2*p.unit())
}

func testOpen(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	a := p.volume("a", p.unit(), nil, false)
	for _, m := range []driver.Mode{driver.Base, driver.Read, driver.Write} {
		_, err := p.Open(ctx, newRef("missing"), m)
		wantKind(t, fmt.Sprintf("Open of a missing volume in mode %d", m), err, errs.NotFound)
		_, err = p.Open(ctx, driver.Ref{ID: a.ID, Name: "a", BackendID: a.BackendID + "x"}, m)
		wantKind(t, "Open of another object", err, errs.Corrupt)
		d, err := p.Open(ctx, a, m)
		if err != nil {
			t.Errorf("Open in mode %d: %v", m, err)
			continue
		}
		d.Close()
	}
	_, err := p.Open(ctx, staged(newRef("")), driver.Staged)
	wantKind(t, "Open of a missing staged volume", err, errs.NotFound)
	_, err = p.Open(ctx, a, driver.Staged)
	wantKind(t, "Open of a published volume as staged", err, errs.Invalid)
	_, err = p.Describe(ctx, newRef("missing"))
	wantKind(t, "Describe of a missing volume", err, errs.NotFound)
	_, err = p.Describe(ctx, driver.Ref{ID: a.ID, Name: "a", BackendID: "other"})
	wantKind(t, "Describe of another object", err, errs.Corrupt)
	if o, err := p.Describe(ctx, a); err != nil || o.BackendID != a.BackendID || o.Size != p.unit() {
		t.Errorf("Describe = %+v, %v; want %v", o, err, a)
	}
	open := p.device(a, driver.Read)
	wantNil(t, "Close", p.Close())
	if _, err := open.ReadAt(make([]byte, 10), 0); err != nil {
		t.Errorf("a device does not outlive its pool's Close: %v", err)
	}
	open.Close()
	p.open()
	if o, err := p.Describe(ctx, a); err != nil || o.BackendID != a.BackendID {
		t.Errorf("after a restart Describe = %+v, %v; want the same object %v", o, err, a)
	}
}

func testResize(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	unit := p.unit()
	content := pattern(int(4 * unit))
	a := p.volume("a", 4*unit, content, false)
	for range 2 {
		wantNil(t, "grow", p.Resize(ctx, a, 6*unit))
	}
	p.wantBytes(a, content, 6*unit)
	if o, err := p.Describe(ctx, a); err != nil || o.BackendID != a.BackendID || o.Size != 6*unit {
		t.Errorf("after growing Describe = %+v, %v; want the same object with %d bytes", o, err, 6*unit)
	}
	if p.caps.Shrink {
		cut := p.round(unit + 1)
		for range 2 {
			wantNil(t, "shrink", p.Resize(ctx, a, cut))
		}
		p.wantBytes(a, content[:cut], cut)
		wantNil(t, "grow again", p.Resize(ctx, a, 4*unit))
		p.wantBytes(a, content[:cut], 4*unit)
	} else {
		wantKind(t, "shrink", p.Resize(ctx, a, unit), errs.Unsupported)
		p.wantBytes(a, content, 6*unit)
	}
	s := newRef("")
	p.create(s, 2*unit)
	p.write(s, driver.Staged, content[:unit], 0)
	wantNil(t, "Resize of a staged volume", p.Resize(ctx, s, 3*unit))
	p.wantBytes(s, content[:unit], 3*unit)
	wantKind(t, "Resize of a missing volume", p.Resize(ctx, newRef("missing"), unit), errs.NotFound)
	wantKind(t, "Resize of another object", p.Resize(ctx, driver.Ref{ID: a.ID, Name: "a", BackendID: "other"}, unit), errs.Corrupt)
	wantKind(t, "Resize to a negative size", p.Resize(ctx, a, -1), errs.Invalid)
}

func testClone(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	c, ok := p.Driver.(driver.Cloner)
	if !ok {
		if p.caps.Clone != driver.CloneCopy {
			t.Errorf("the driver declares %s clones and has no Cloner", p.caps.Clone)
		}
		return
	}
	content := pattern(5*mib + 123)
	base := p.volume("base", p.round(int64(len(content))), content, true)
	before := h.Residue(t, p.c)
	spec := driver.Spec{ID: disk.VolumeID(NewID()), Size: 8 * mib}
	err := c.Clone(ctx, spec, base)
	if p.caps.Clone == driver.CloneCopy {
		wantKind(t, "Clone where it cannot", err, errs.Unsupported)
		if after := h.Residue(t, p.c); !slices.Equal(before, after) {
			t.Errorf("a Clone that cannot left %q, before %q", after, before)
		}
		return
	}
	wantNil(t, "Clone", err)
	wantNil(t, "Clone again", c.Clone(ctx, spec, base))
	p.wantBytes(driver.Ref{ID: spec.ID}, content, 8*mib)
	p.write(driver.Ref{ID: spec.ID}, driver.Staged, pattern(3*mib), mib)
	p.wantBytes(base, content, p.round(int64(len(content))))
	wantKind(t, "Clone of another size", c.Clone(ctx, driver.Spec{ID: spec.ID, Size: 8*mib + p.unit()}, base), errs.Exists)
	small := driver.Spec{ID: disk.VolumeID(NewID()), Size: p.unit()}
	wantKind(t, "Clone smaller than its base", c.Clone(ctx, small, base), errs.Invalid)
	wantKind(t, "Clone of a missing base", c.Clone(ctx, small, newRef("missing")), errs.NotFound)
	equal := driver.Spec{ID: disk.VolumeID(NewID()), Size: p.round(int64(len(content)))}
	wantNil(t, "Clone of the base's size", c.Clone(ctx, equal, base))
	clone := driver.Ref{ID: equal.ID, Name: "clone"}
	_, err = p.Publish(ctx, equal.ID, "clone", false, []byte("s"))
	wantNil(t, "Publish of a clone", err)
	p.write(clone, driver.Write, pattern(4096), 0)
	p.wantBytes(base, content, equal.Size)
	if p.caps.HeldBases {
		wantKind(t, "Delete of a base that has clones", p.Delete(ctx, base), errs.Conflict)
		p.wantBytes(base, content, equal.Size)
	} else {
		wantNil(t, "Delete of a base that has clones", p.Delete(ctx, base))
	}
	if got := p.bytes(clone); !bytes.Equal(got[4096:len(content)], content[4096:]) {
		t.Error("a clone lost its content with its base")
	}
}

func testDelete(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	empty := h.Residue(t, p.c)
	for range 2 {
		wantNil(t, "Delete of a missing volume", p.Delete(ctx, newRef("missing")))
		wantNil(t, "Delete of a missing staged volume", p.Delete(ctx, staged(newRef(""))))
	}
	a := p.volume("a", p.unit(), pattern(mib), false)
	b := newRef("b")
	p.create(b, p.unit())
	wantKind(t, "Delete of another object", p.Delete(ctx, driver.Ref{ID: a.ID, Name: "a", BackendID: "other"}), errs.Corrupt)
	wantNil(t, "Delete of a staged volume that was to get the name", p.Delete(ctx, driver.Ref{ID: b.ID, Name: "a"}))
	if p.names()["a"].Name == "" || p.sidecars()["a"] != string(sidecarOf(a)) {
		t.Error("deleting a staged volume removed the volume that has its name")
	}
	for range 2 {
		wantNil(t, "Delete", p.Delete(ctx, driver.Ref{ID: a.ID, Name: "a"}))
	}
	_, err := p.Describe(ctx, a)
	wantKind(t, "Describe of a deleted volume", err, errs.NotFound)
	base := p.volume("base", p.unit(), nil, true)
	wantNil(t, "Delete of a base", p.Delete(ctx, base))
	c := newRef("")
	p.create(c, p.unit())
	wantNil(t, "Delete of a staged volume", p.Delete(ctx, c))
	if got := h.Residue(t, p.c); !slices.Equal(got, empty) {
		t.Errorf("after deleting all there is %q, in the beginning there was %q", got, empty)
	}
	if h.Foreign != nil {
		h.Foreign(t, p.c, "theirs")
		wantNil(t, "Delete of a name that a foreign object has", p.Delete(ctx, newRef("theirs")))
		if _, there := p.names()["theirs"]; !there {
			t.Error("Delete removed a foreign object")
		}
	}
}

func testList(t *testing.T, h Harness) {
	p := newPool(t, h)
	if n := p.names(); len(n) != 0 {
		t.Errorf("a new pool lists %v", n)
	}
	want := []string{}
	for i := range 30 {
		want = append(want, p.volume(fmt.Sprintf("v%02d", i), p.round(1), nil, i%2 == 0).Name)
	}
	if h.Foreign != nil {
		h.Foreign(t, p.c, "theirs")
		want = append(want, "theirs")
		slices.Sort(want)
	}
	got := p.names()
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, want) {
		t.Errorf("List yields %q, want %q", names, want)
	}
	for name, o := range got {
		d, err := p.Describe(t.Context(), driver.Ref{ID: "x", Name: name})
		if o.Allocated == o.Size { // not measured
			d.Allocated = o.Allocated
		}
		if err == nil && d != o {
			t.Errorf("List says %+v, Describe %+v", o, d)
		}
	}
	for range p.List(t.Context()) {
		break // must not panic
	}
	if len(p.sidecars()) != 30 {
		t.Errorf("%d sidecars beside 30 volumes", len(p.sidecars()))
	}
	for range p.Sidecars(t.Context()) {
		break
	}
}

func testSidecars(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	a := p.volume("a", p.unit(), nil, false)
	base := p.volume("base", p.unit(), nil, true)
	big := bytes.Repeat([]byte("0123456789abcdef"), driver.RecordSize/16)
	for _, want := range [][]byte{sidecarOf(a), []byte("x"), big, []byte("")} {
		for _, name := range []string{"a", "base"} {
			wantNil(t, "PutSidecar", p.PutSidecar(ctx, name, want))
			got, err := p.Sidecar(ctx, name)
			if err != nil || !bytes.Equal(got, want) || p.sidecars()[name] != string(want) {
				t.Errorf("the sidecar of %s has %d bytes, %v; want the %d put", name, len(got), err, len(want))
			}
		}
	}
	_, err := p.Sidecar(ctx, "missing")
	wantKind(t, "Sidecar of a missing volume", err, errs.NotFound)
	wantKind(t, "PutSidecar of a missing volume", p.PutSidecar(ctx, "missing", big), errs.NotFound)
	marker := append(Marker(p.c), " changed"...)
	wantNil(t, "PutSidecar of the marker", p.PutSidecar(ctx, "", marker))
	if got, err := p.Sidecar(ctx, ""); err != nil || !bytes.Equal(got, marker) {
		t.Errorf("Sidecar of the pool = %q, %v", got, err)
	}
	if got, err := h.Type.Marker(ctx, p.c); err != nil || !bytes.Equal(got, marker) {
		t.Errorf("Marker = %q, %v; want what was put", got, err)
	}
	wantNil(t, "Delete", p.Delete(ctx, base))
	if got := p.sidecars(); len(got) != 1 {
		t.Errorf("after a Delete the sidecars are %v, want one", got)
	}
}

func testNames(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	longest := strings.Repeat("n", p.caps.MaxName)
	a := p.volume(longest, p.unit(), []byte("content"), false)
	wantNil(t, "PutSidecar beside the longest name", p.PutSidecar(ctx, longest, []byte("s")))
	p.wantBytes(a, []byte("content"), p.unit())
	wantNil(t, "Delete of the longest name", p.Delete(ctx, a))
	for _, name := range []string{longest + "n", "", ".", "..", "a/b", "../a", "/etc/passwd", "a\x00b", ".hidden"} {
		r := newRef(name)
		p.create(r, p.round(1))
		_, err := p.Publish(ctx, r.ID, name, false, []byte("s"))
		wantKind(t, fmt.Sprintf("Publish as %.20q", name), err, errs.Invalid)
		if name == "" {
			continue
		}
		_, err = p.Open(ctx, r, driver.Write)
		wantKind(t, fmt.Sprintf("Open of %.20q", name), err, errs.Invalid)
		wantKind(t, fmt.Sprintf("Delete of %.20q", name), p.Delete(ctx, r), errs.Invalid)
	}
	for _, name := range []string{"with space", "-dash", "naïve.raw", "a:b", "x\ny"} {
		if p.caps.PlainNames {
			r := newRef("")
			p.create(r, p.round(1))
			wantKind(t, fmt.Sprintf("Publish as %q", name), errOf(p.Publish(ctx, r.ID, name, false, []byte("s"))), errs.Invalid)
			continue
		}
		r := p.volume(name, p.round(1), []byte("c"), false)
		p.wantBytes(r, []byte("c"), p.round(1))
	}
}

func testSizes(t *testing.T, h Harness) {
	p := newPool(t, h)
	sizes := []int64{p.caps.SizeUnit, 3 * p.caps.SizeUnit}
	if p.caps.Grows {
		sizes = append(sizes, 0)
	}
	if !p.caps.Thick {
		sizes = append(sizes, 1<<32, 1<<40)
	}
	for i, size := range sizes {
		r := p.volume(fmt.Sprintf("s%d", i), size, nil, false)
		o, err := p.Describe(t.Context(), r)
		if err != nil || o.Size != size {
			t.Errorf("a volume of %d bytes: %+v, %v", size, o, err)
		}
		if size > 0 {
			p.write(r, driver.Write, []byte{7}, size-1)
			d := p.device(r, driver.Read)
			var b [2]byte
			if n, _ := d.ReadAt(b[:], size-1); n != 1 || b[0] != 7 {
				t.Errorf("the last of %d bytes reads %d of %d bytes", size, b[0], n)
			}
			d.Close()
		}
		wantNil(t, "Delete", p.Delete(t.Context(), r))
	}
	odd := newRef("") // callers round
	if err := p.Create(t.Context(), driver.Spec{ID: odd.ID, Size: p.caps.SizeUnit + 1}); err == nil {
		p.wantBytes(odd, nil, p.caps.SizeUnit+1)
	} else {
		wantKind(t, "Create of a size that is no multiple of the unit", err, errs.Invalid)
	}
	before := h.Residue(t, p.c)
	if err := p.Create(t.Context(), driver.Spec{ID: "huge", Size: math.MaxInt64 / p.caps.SizeUnit * p.caps.SizeUnit}); err != nil {
		if got := h.Residue(t, p.c); !slices.Equal(got, before) {
			t.Errorf("a size that cannot be left %q, before %q", got, before)
		}
		if k := errs.KindOf(err); k != errs.Invalid && k != errs.NoSpace {
			t.Errorf("a size that cannot be: %v is %s", err, k)
		}
	}
}

// testCrowded makes as many volumes as the technology can have in one pool.
func testCrowded(t *testing.T, h Harness) {
	if h.Type.Capabilities.MaxVolumes == 0 {
		return // nothing but space bounds them
	}
	if h.Few == nil {
		t.Fatalf("the driver declares %d volumes and the harness has no place where they are few", h.Type.Capabilities.MaxVolumes)
	}
	p := newPoolAt(t, h, h.Few(t))
	if p.caps.MaxVolumes <= 0 || p.caps.MaxVolumes > 32 {
		t.Fatalf("in a place for few volumes MaxVolumes is %d", p.caps.MaxVolumes)
	}
	var have []driver.Ref
	for i := range p.caps.MaxVolumes {
		have = append(have, p.volume(fmt.Sprintf("v%02d", i), p.round(1), nil, false))
	}
	more := newRef("more")
	err := p.Create(t.Context(), driver.Spec{ID: more.ID, Size: p.round(1)})
	if err == nil {
		err = errOf(p.Publish(t.Context(), more.ID, more.Name, false, sidecarOf(more)))
	}
	wantKind(t, "one volume more than MaxVolumes", err, errs.NoSpace)
	wantNil(t, "Delete of it", p.Delete(t.Context(), more))
	if n := len(p.names()); n != len(have) {
		t.Errorf("%d volumes are listed, want %d", n, len(have))
	}
	wantNil(t, "Delete", p.Delete(t.Context(), have[0]))
	p.volume("again", p.round(1), nil, false)
}
