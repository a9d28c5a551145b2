package drivertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// call is one call of the contract whose every effect is made to fail. It
// works on fixed ids and names, so that two runs can be compared.
type call struct {
	name    string
	bare    bool // works on storage, not on an open pool
	raw     bool // works on raw material, where the type builds storage
	atomic  bool // when it fails it leaves what there was before
	sparing bool // no room is no failure to it
	foreign bool // the volume is foreign before or after
	setup   func(p *pool)
	run     func(p *pool, ctx context.Context) error
	recover func(p *pool, ctx context.Context) error // instead of a repeat, where a failed sync lost the volume
}

const (
	volID  = disk.VolumeID("00000000-0000-7000-8000-000000000001")
	baseID = disk.VolumeID("00000000-0000-7000-8000-000000000002")
	snapID = disk.SnapshotID("00000000-0000-7000-8000-000000000003")
)

func calls() []call {
	make := func(p *pool, ctx context.Context) error {
		return p.Create(ctx, driver.Spec{ID: volID, Size: p.unit()})
	}
	made := func(p *pool) { wantNil(p.t, "Create", make(p, p.t.Context())) }
	publish := func(immutable bool) func(p *pool, ctx context.Context) error {
		return func(p *pool, ctx context.Context) error {
			_, err := p.Publish(ctx, volID, "v", immutable, []byte("sidecar"))
			return err
		}
	}
	published := func(p *pool) { made(p); wantNil(p.t, "Publish", publish(false)(p, p.t.Context())) }
	again := func(immutable bool) func(p *pool, ctx context.Context) error {
		return func(p *pool, ctx context.Context) error {
			return errors.Join(make(p, ctx), publish(immutable)(p, ctx))
		}
	}
	ref := driver.Ref{ID: volID, Name: "v"}
	snapshot := func(id disk.SnapshotID) func(p *pool, ctx context.Context) error {
		return func(p *pool, ctx context.Context) error {
			if s := p.snapshotter(); s != nil {
				return s.Snapshot(ctx, ref, id)
			}
			return nil
		}
	}
	snapped := func(p *pool) { published(p); wantNil(p.t, "Snapshot", snapshot(snapID)(p, p.t.Context())) }
	return append(adoptionCalls(published), []call{
		{name: "Prepare", bare: true, run: func(p *pool, ctx context.Context) error {
			return p.h.Type.Prepare(ctx, p.c, Marker(p.c))
		}},
		{name: "Build", bare: true, raw: true, run: func(p *pool, ctx context.Context) error {
			if p.h.Type.Build == nil {
				return nil
			}
			return p.h.Type.Build(ctx, p.c, false)
		}},
		{name: "Remove", bare: true, setup: func(p *pool) {
			wantNil(p.t, "Prepare", p.h.Type.Prepare(p.t.Context(), p.c, Marker(p.c)))
			p.open()
			made(p)
			p.Close()
		}, run: func(p *pool, ctx context.Context) error { return p.h.Type.Remove(ctx, p.c) }},
		{name: "Create", atomic: true, run: make},
		{name: "Create preallocated", atomic: true, run: func(p *pool, ctx context.Context) error {
			return p.Create(ctx, driver.Spec{ID: volID, Size: p.unit(), Prealloc: true})
		}},
		{name: "Clone", atomic: true, setup: func(p *pool) {
			wantNil(p.t, "Create", p.Create(p.t.Context(), driver.Spec{ID: baseID, Size: p.unit()}))
			p.write(driver.Ref{ID: baseID}, driver.Staged, make4k(), 0)
			_, err := p.Publish(p.t.Context(), baseID, "base", true, []byte("base"))
			wantNil(p.t, "Publish", err)
		}, run: func(p *pool, ctx context.Context) error {
			c, ok := p.Driver.(driver.Cloner)
			if !ok || p.caps.Clone == driver.CloneCopy {
				return nil
			}
			return c.Clone(ctx, driver.Spec{ID: volID, Size: 2 * p.unit()}, driver.Ref{ID: baseID, Name: "base"})
		}},
		{name: "Publish", setup: made, run: publish(false), recover: again(false)},
		{name: "Publish immutable", setup: made, run: publish(true), recover: again(true)},
		{name: "Resize", setup: published, run: func(p *pool, ctx context.Context) error { return p.Resize(ctx, ref, 2*p.unit()) }},
		{name: "Delete", setup: published, run: func(p *pool, ctx context.Context) error { return p.Delete(ctx, ref) }},
		{name: "Delete staged", setup: made, run: func(p *pool, ctx context.Context) error {
			return p.Delete(ctx, driver.Ref{ID: volID})
		}},
		{name: "Snapshot", atomic: true, setup: published, run: snapshot(snapID)},
		{name: "Snapshot, the second", atomic: true, setup: snapped, run: snapshot(snapID + "-2")},
		{name: "DeleteSnapshot", setup: snapped, run: func(p *pool, ctx context.Context) error {
			if s := p.snapshotter(); s != nil {
				return s.DeleteSnapshot(ctx, ref, snapID)
			}
			return nil
		}},
		{name: "RestoreBallast", atomic: true, sparing: true, setup: func(p *pool) {
			if b, ok := p.Driver.(driver.Ballast); ok {
				wantNil(p.t, "ReleaseBallast", b.ReleaseBallast(p.t.Context()))
			}
		}, run: func(p *pool, ctx context.Context) error {
			if b, ok := p.Driver.(driver.Ballast); ok {
				return b.RestoreBallast(ctx)
			}
			return nil
		}},
		{name: "SetAside", setup: published, run: func(p *pool, ctx context.Context) error {
			if l, ok := p.Driver.(driver.Leftovers); ok {
				return l.SetAside(ctx, ref)
			}
			return nil
		}},
		{name: "PutSidecar", atomic: true, setup: published, run: func(p *pool, ctx context.Context) error {
			return p.PutSidecar(ctx, "v", []byte("another sidecar"))
		}},
		{name: "PutSidecar of the marker", atomic: true, setup: published, run: func(p *pool, ctx context.Context) error {
			return p.PutSidecar(ctx, "", append(Marker(p.c), " again"...))
		}},
	}...)
}

func make4k() []byte { return []byte(strings.Repeat("base", 1024)) }

// fixture returns a pool, or bare storage, that c can run on.
func (c call) fixture(t *testing.T, h Harness) *pool {
	t.Helper()
	var p *pool
	switch {
	case c.raw && h.Raw != nil:
		p = &pool{t: t, h: h, c: h.Raw(t)}
	case c.bare:
		p = &pool{t: t, h: h, c: h.Place(t)}
	default:
		p = newPool(t, h)
	}
	if c.setup != nil {
		c.setup(p)
	}
	return p
}

// state is what lies in the storage, comparable between pools.
func (p *pool) state() []string {
	p.t.Helper()
	s := p.h.Residue(p.t, p.c)
	for i := range s {
		s[i] = strings.ReplaceAll(s[i], string(p.c.ID), "POOL")
	}
	return s
}

// reference runs c without faults and returns the state before and after.
func (c call) reference(t *testing.T, h Harness) (before, after []string) {
	t.Helper()
	p := c.fixture(t, h)
	before = p.state()
	var count faultstest.Counter
	remove := faults.Install(&count)
	err := c.run(p, t.Context())
	remove()
	wantNil(t, c.name, err)
	effects := count.Effects()
	t.Logf("%s has %d effects: %v", c.name, len(effects), effects)
	if want := h.Effects[c.name]; len(effects) < want {
		t.Errorf("%s has %d effects, want at least %d", c.name, len(effects), want)
	}
	after = p.state()
	wantNil(t, c.name+", repeated", c.run(p, t.Context()))
	if got := p.state(); !slices.Equal(got, after) {
		t.Errorf("%s, repeated, left\n     %q\nwant %q", c.name, got, after)
	}
	return before, after
}

// testCrashes crashes before and after each effect of each call; after a
// restart the repeated call must end where an undisturbed one does.
func testCrashes(t *testing.T, h Harness) {
	for _, c := range calls() {
		t.Run(c.name, func(t *testing.T) {
			if h.sampled() && c.name != "Publish" {
				t.Skip("TARN_SLOW=1 runs this")
			}
			_, want := c.reference(t, h)
			for n := 0; ; n++ {
				done := true
				sides := []faultstest.Side{faultstest.Before, faultstest.After}
				if h.sampled() {
					sides = sides[1:]
				}
				for _, side := range sides {
					done = !c.crash(t, h, faultstest.CrashAt(n, side), want) && done
				}
				if done || t.Failed() {
					return
				}
			}
		})
	}
}

func (c call) crash(t *testing.T, h Harness, at *faultstest.Crash, want []string) (crashed bool) {
	t.Helper()
	p := c.fixture(t, h)
	remove := faults.Install(at)
	err := c.run(p, t.Context())
	remove()
	if !at.Crashed() {
		wantNil(t, c.name, err)
		return false
	}
	if !errors.Is(err, faults.ErrCrash) {
		t.Errorf("%s with a crash %v: got %v", c.name, at, err)
	}
	if !c.bare {
		p.open()
		c.checkWhole(p, fmt.Sprintf("%s, crash %v", c.name, at))
	}
	if err := c.run(p, t.Context()); err != nil {
		t.Errorf("%s repeated after a crash %v: %v", c.name, at, err)
	}
	if got := p.state(); !slices.Equal(got, want) {
		t.Errorf("%s repeated after a crash %v:\n got %q\nwant %q", c.name, at, got, want)
	}
	return true
}

// checkWhole checks that nobody can see a volume without its sidecar.
func (c call) checkWhole(p *pool, when string) {
	p.t.Helper()
	if c.foreign {
		return
	}
	side := p.sidecars()
	for name := range p.names() {
		if _, ok := side[name]; !ok {
			p.t.Errorf("%s: the volume %s has no sidecar", when, name)
		}
	}
}

// testFailures makes each effect of each call fail; the call must say so with
// the right kind, retry no sync, and a repeat must end where it should.
func testFailures(t *testing.T, h Harness) {
	for _, c := range calls() {
		t.Run(c.name, func(t *testing.T) {
			if h.sampled() && c.name != "Create" {
				t.Skip("TARN_SLOW=1 runs this")
			}
			before, after := c.reference(t, h)
			for n := 0; c.fail(t, h, faultstest.FailAt(n, syscall.EIO, false), errs.Unavailable, before, after) && !t.Failed(); n++ {
			}
			for n := 0; c.fail(t, h, faultstest.FailAt(n, syscall.ENOSPC, true), errs.NoSpace, nil, after) && !t.Failed() && !h.sampled(); n++ {
			}
		})
	}
}

func (c call) fail(t *testing.T, h Harness, f *faultstest.Fail, kind errs.Kind, before, after []string) (failed bool) {
	t.Helper()
	p := c.fixture(t, h)
	remove := faults.Install(f)
	err := c.run(p, t.Context())
	remove()
	if len(f.Failed()) == 0 {
		wantNil(t, c.name, err)
		return false
	}
	what := fmt.Sprintf("%s with %v", c.name, f)
	if c.sparing && kind == errs.NoSpace {
		wantNil(t, what, err)
	} else {
		wantKind(t, what, err, kind)
	}
	sync := f.Failed()[0].Kind == faults.Sync
	if sync && f.Retried() {
		t.Errorf("%s: the sync was retried", what)
	}
	if !c.bare {
		c.checkWhole(p, what)
	}
	if got := p.state(); c.atomic && !sync && before != nil && !slices.Equal(got, before) {
		t.Errorf("%s left\n     %q\nwant %q", what, got, before)
	}
	err = c.run(p, t.Context())
	if sync && c.recover != nil && errors.Is(err, errs.NotFound) {
		err = c.recover(p, t.Context())
	}
	wantNil(t, what+", repeated", err)
	if got := p.state(); !slices.Equal(got, after) {
		t.Errorf("%s, repeated, left\n     %q\nwant %q", what, got, after)
	}
	return true
}
