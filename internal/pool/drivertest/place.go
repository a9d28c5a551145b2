package drivertest

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func testPlace(t *testing.T, h Harness) {
	ctx := t.Context()
	c := h.Place(t)
	clean := h.Residue(t, c)
	_, _, err := h.Type.Open(ctx, c)
	wantKind(t, "Open of what was not prepared", err, errs.Unavailable)
	if _, err := h.Type.Marker(ctx, c); err == nil {
		t.Error("Marker of what was not prepared succeeded")
	}
	for range 2 {
		wantNil(t, "Prepare", h.Type.Prepare(ctx, c, Marker(c)))
	}
	if got, err := h.Type.Marker(ctx, c); err != nil || !bytes.Equal(got, Marker(c)) {
		t.Errorf("Marker = %q, %v; want what Prepare wrote", got, err)
	}
	other := c
	other.ID = disk.PoolID(NewID())
	before := h.Residue(t, c)
	wantKind(t, "Prepare over another pool", h.Type.Prepare(ctx, other, Marker(other)), errs.Conflict)
	wantKind(t, "Remove of another pool", h.Type.Remove(ctx, other), errs.Conflict)
	_, _, err = h.Type.Open(ctx, other)
	wantKind(t, "Open of another pool", err, errs.Conflict)
	if got := h.Residue(t, c); !slices.Equal(got, before) {
		t.Errorf("the refusals left %q, before was %q", got, before)
	}

	p := &pool{t: t, h: h, c: c}
	p.open()
	if n := countEffects(func() { p.open() }); n != 0 {
		t.Errorf("opening again had %d effects", n)
	}
	checkCapabilities(t, h.Type.Capabilities, p.caps)
	a := p.volume("a", p.unit(), nil, false)
	p.create(newRef(""), p.unit()) // Remove takes what is staged along
	wantNil(t, "Close", p.Close())
	wantKind(t, "Remove of a pool with a volume", h.Type.Remove(ctx, c), errs.Conflict)
	p.open()
	p.wantBytes(a, nil, p.unit())
	wantNil(t, "Delete", p.Delete(ctx, a))
	wantNil(t, "Close", p.Close())
	for range 2 {
		wantNil(t, "Remove", h.Type.Remove(ctx, c))
	}
	if got := h.Residue(t, c); !slices.Equal(got, clean) {
		t.Errorf("Remove left %q, in the beginning there was %q", got, clean)
	}
	if h.Foreign != nil {
		testForeignPlace(t, h, c)
	}
}

// testServed opens pools that are open: one pool, one who serves it.
func testServed(t *testing.T, h Harness) {
	p := newPool(t, h)
	a := p.volume("a", p.unit(), nil, false)
	dev := p.device(a, driver.Read) // stays usable behind Close, and keeps nobody away
	before := p.state()
	again := func(what string) {
		t.Helper()
		if n := countEffects(func() {
			d, _, err := h.Type.Open(t.Context(), p.c)
			wantKind(t, what, err, errs.Busy)
			if err == nil {
				wantNil(t, "Close", d.Close())
			}
		}); n != 0 {
			t.Errorf("%s had %d effects", what, n)
		}
	}
	again("Open of an open pool")
	again("Open once more")
	if got := p.state(); !slices.Equal(got, before) {
		t.Errorf("being refused left %q, before was %q", got, before)
	}
	wantNil(t, "Describe after another's Open was refused", errOf(p.Describe(t.Context(), a)))
	p.open()
	if _, err := dev.ReadAt(make([]byte, 1), 0); err != nil {
		t.Errorf("ReadAt of a device behind Close: %v", err)
	}
	wantNil(t, "Close of a device", dev.Close())
	wantNil(t, "Delete", p.Delete(t.Context(), a))
	wantKind(t, "Remove of an open pool", h.Type.Remove(t.Context(), p.c), errs.Busy)
	wantNil(t, "Create in it", p.Create(t.Context(), driver.Spec{ID: newRef("").ID, Size: p.unit()}))
	wantNil(t, "Close", p.Close())
	wantNil(t, "Remove of a closed pool", h.Type.Remove(t.Context(), p.c))
}

// testVanished takes the storage away under an open pool.
func testVanished(t *testing.T, h Harness) {
	if h.Vanish == nil {
		t.Skip("does not apply: what is mounted serves for as long as it is open")
	}
	p := newPool(t, h)
	ctx := t.Context()
	a := p.volume("a", p.unit(), pattern(mib), false)
	back := h.Vanish(t, p.c)
	wantKind(t, "Stat", errOf(p.Stat(ctx)), errs.Unavailable)
	wantKind(t, "Create", p.Create(ctx, driver.Spec{ID: newRef("").ID, Size: p.unit()}), errs.Unavailable)
	wantKind(t, "Open", errOf(p.Open(ctx, a, driver.Read)), errs.Unavailable)
	wantKind(t, "List", last(p.List(ctx)), errs.Unavailable)
	wantKind(t, "Sidecars", last(p.Sidecars(ctx)), errs.Unavailable)
	wantKind(t, "Sidecar of the pool", errOf(p.Sidecar(ctx, "")), errs.Unavailable)
	wantKind(t, "Describe", errOf(p.Describe(ctx, a)), errs.NotFound)
	wantNil(t, "Delete of what was never made", p.Delete(ctx, newRef("b")))
	back()
	p.open()
	if _, err := p.Stat(ctx); err != nil || p.names()["a"].Name == "" {
		t.Errorf("when the storage is back: Stat %v, List %v", err, p.names())
	}
}

func errOf[T any](_ T, err error) error { return err }

// testForeignPlace has objects in the storage that are not tarn's.
func testForeignPlace(t *testing.T, h Harness, c driver.Config) {
	ctx := t.Context()
	wantNil(t, "Prepare", h.Type.Prepare(ctx, c, Marker(c)))
	h.Foreign(t, c, "theirs")
	wantNil(t, "Prepare beside a foreign object", h.Type.Prepare(ctx, c, Marker(c)))
	p := &pool{t: t, h: h, c: c}
	p.open()
	if _, there := p.names()["theirs"]; !there || len(p.sidecars()) != 0 {
		t.Errorf("List yields %v, want the foreign object; sidecars %v", p.names(), p.sidecars())
	}
	wantNil(t, "Close", p.Close())
	wantNil(t, "Remove", h.Type.Remove(ctx, c))
	if got := h.Residue(t, c); len(got) == 0 {
		t.Error("Remove took a foreign object away")
	}
}

// checkCapabilities compares what is declared with what a pool says.
func checkCapabilities(t *testing.T, declared, here driver.Capabilities) {
	t.Helper()
	if here.Clone != declared.Clone && here.Clone != driver.CloneCopy {
		t.Errorf("the pool clones by %s, declared is %s", here.Clone, declared.Clone)
	}
	if here.Snapshot != declared.Snapshot && here.Snapshot != driver.SnapshotNone {
		t.Errorf("the pool's snapshots are %s, declared is %s", here.Snapshot, declared.Snapshot)
	}
	if here.SizeUnit <= 0 || here.SizeUnit != declared.SizeUnit || here.MaxName < 100 || len(here.Formats) == 0 || here.Snapshot == "" || here.Description == "" {
		t.Errorf("capabilities lack something: %+v", here)
	}
}

func countEffects(f func()) int {
	var count faultstest.Counter
	defer faults.Install(&count)()
	f()
	return len(count.Effects())
}

func testStat(t *testing.T, h Harness) {
	p := newPool(t, h)
	before, err := p.Stat(t.Context())
	if err != nil || before.Identity == "" || before.Storage == "" || before.Capacity <= 0 || before.Free <= 0 || before.Free > before.Capacity {
		t.Fatalf("Stat = %+v, %v", before, err)
	}
	p.open()
	if again, err := p.Stat(t.Context()); err != nil || again.Identity != before.Identity || again.Storage != before.Storage {
		t.Errorf("after a restart the identity is %q in %q, before %q in %q; %v", again.Storage, again.Identity, before.Storage, before.Identity, err)
	}
	if h.Small != nil { // elsewhere others may take and free space meanwhile
		testFree(newPoolAt(t, h, h.Small(t)))
	}
}

// testFree takes 16 MiB of storage that nobody else uses.
func testFree(p *pool) {
	before, err := p.Stat(p.t.Context())
	wantNil(p.t, "Stat", err)
	wantNil(p.t, "Create", p.Create(p.t.Context(), driver.Spec{ID: "big", Size: 16 * mib, Prealloc: true}))
	if p.h.Settle != nil {
		p.h.Settle(p.t, p.c)
	}
	after, err := p.Stat(p.t.Context())
	took := before.Free - after.Free // and something for or from metadata
	if err != nil || took < 15*mib || took > 18*mib || after.Capacity != before.Capacity {
		p.t.Errorf("16 MiB were taken: Stat = %+v, %v; before %+v", after, err, before)
	}
}

func testPhysical(t *testing.T, h Harness) {
	p := newPool(t, h)
	ctx := t.Context()
	ph, ok := p.Driver.(driver.Physical)
	if !ok {
		t.Log("the driver does not measure physical bytes")
		return
	}
	measure := func() int64 {
		t.Helper()
		n, err := ph.Physical(ctx)
		wantNil(t, "Physical", err)
		return n
	}
	near := func(what string, got, want int64) {
		t.Helper()
		if got < want-mib || got > want+mib {
			t.Errorf("%s: %d physical bytes, want about %d", what, got, want)
		}
	}
	empty := measure()
	base := p.volume("base", 32*mib, pattern(32*mib), true)
	near("a base of 32 MiB", measure()-empty, 32*mib)
	if p.caps.Clone == driver.CloneReflink {
		for range 3 {
			r := newRef("")
			wantNil(t, "Clone", p.Driver.(driver.Cloner).Clone(ctx, driver.Spec{ID: r.ID, Size: 64 * mib}, base))
		}
		near("a base and three clones", measure()-empty, 32*mib)
	}
	if s := p.snapshotter(); s != nil && p.caps.Snapshot == driver.SnapshotReflink {
		wantNil(t, "Snapshot", s.Snapshot(ctx, base, newSnapshot()))
		near("a base and its snapshot", measure()-empty, 32*mib)
	}
	if h.Foreign != nil {
		was := measure()
		h.Foreign(t, p.c, "theirs")
		if now := measure(); now != was {
			t.Errorf("with a foreign object %d physical bytes, before %d", now, was)
		}
	}
	if b, ok := p.Driver.(driver.Ballast); ok {
		for range 2 {
			wantNil(t, "ReleaseBallast", b.ReleaseBallast(ctx))
		}
		without := measure()
		for range 2 {
			wantNil(t, "RestoreBallast", b.RestoreBallast(ctx))
		}
		if with := measure(); with <= without {
			t.Errorf("the ballast takes no space: %d bytes with it, %d without", with, without)
		}
	}
}

func testCancelled(t *testing.T, h Harness) {
	p := newPool(t, h)
	a := p.volume("a", p.unit(), nil, false)
	s := newRef("s")
	p.create(s, p.unit())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := map[string]func() error{
		"Create":     func() error { return p.Create(ctx, driver.Spec{ID: "new", Size: p.unit()}) },
		"Publish":    func() error { _, err := p.Publish(ctx, s.ID, "s", false, nil); return err },
		"Open":       func() error { _, err := p.Open(ctx, a, driver.Write); return err },
		"Describe":   func() error { _, err := p.Describe(ctx, a); return err },
		"Resize":     func() error { return p.Resize(ctx, a, 2*p.unit()) },
		"Delete":     func() error { return p.Delete(ctx, a) },
		"PutSidecar": func() error { return p.PutSidecar(ctx, "a", nil) },
		"Sidecar":    func() error { _, err := p.Sidecar(ctx, "a"); return err },
		"Stat":       func() error { _, err := p.Stat(ctx); return err },
		"List":       func() error { return last(p.List(ctx)) },
		"Sidecars":   func() error { return last(p.Sidecars(ctx)) },
		"Prepare":    func() error { return h.Type.Prepare(ctx, h.Place(t), Marker(p.c)) },
		"Remove":     func() error { return h.Type.Remove(ctx, p.c) },
		"Reopen":     func() error { _, _, err := h.Type.Open(ctx, p.c); return err },
	}
	if c, ok := p.Driver.(driver.Cloner); ok {
		calls["Clone"] = func() error { return c.Clone(ctx, driver.Spec{ID: "new", Size: p.unit()}, a) }
	}
	if s := p.snapshotter(); s != nil {
		calls["Snapshot"] = func() error { return s.Snapshot(ctx, a, newSnapshot()) }
		calls["DeleteSnapshot"] = func() error { return s.DeleteSnapshot(ctx, a, newSnapshot()) }
		calls["OpenSnapshot"] = func() error { return errOf(s.OpenSnapshot(ctx, a, newSnapshot())) }
		calls["Snapshots"] = func() error { return last(s.Snapshots(ctx, a)) }
	}
	if c, ok := p.Driver.(driver.Physical); ok {
		calls["Physical"] = func() error { _, err := c.Physical(ctx); return err }
	}
	for name, call := range calls {
		if n := countEffects(func() { wantKind(t, name+" when cancelled", call(), errs.Cancelled) }); n != 0 {
			t.Errorf("%s had %d effects though it was cancelled before", name, n)
		}
	}
}

// last returns the error that a sequence ended with.
func last[V any](seq func(func(V, error) bool)) (err error) {
	seq(func(_ V, e error) bool { err = e; return true })
	return err
}
