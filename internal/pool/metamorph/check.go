package metamorph

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// check reads v whole.
func (p *player) check(ctx context.Context, v *volume, keep bool) error {
	m := driver.Read
	if v.base {
		m = driver.Base
	}
	o, err := p.d.Describe(ctx, v.ref)
	if err == nil && (o.Size != v.content.size || o.BackendID != v.ref.BackendID) {
		err = fmt.Errorf("the volume is described as %+v, which is one of %d bytes, %v", o, v.content.size, v.ref)
	}
	if err == nil {
		err = p.on(ctx, v, m, keep, func(d driver.Device) error { return p.compare(d, v.content) })
	}
	if err != nil {
		return fmt.Errorf("volume %d: %w", v.number, err)
	}
	return nil
}

// compare reads d, which must hold want, into the digest.
func (p *player) compare(d driver.Device, want content) error {
	got, err := read(d)
	if err == nil {
		err = want.compare(got)
	}
	if err == nil {
		err = want.holes(d)
	}
	got.sum(p.sum)
	return err
}

func (p *player) checkSnapshot(ctx context.Context, v *volume, n int) (err error) {
	s := v.snapshots[n]
	check := func(d driver.Device) error { return p.compare(d, s.content) }
	if s.copy != nil {
		err = p.with(ctx, *s.copy, driver.Base, check)
	} else {
		var d driver.Device
		if d, err = p.snapshotter().OpenSnapshot(ctx, v.ref, s.id); err == nil {
			defer d.Close()
			err = check(d)
		}
	}
	if err != nil {
		return fmt.Errorf("snapshot %d of volume %d: %w", n, v.number, err)
	}
	return nil
}

// list compares what the driver lists with what was made.
func (p *player) list(ctx context.Context) error {
	want := map[string]string{}
	know := func(r driver.Ref) { want[r.Name] = "sidecar of " + string(r.ID) }
	for _, v := range p.vols {
		know(v.ref)
		own := map[disk.SnapshotID]bool{}
		for _, s := range v.snapshots {
			if s.copy != nil {
				know(*s.copy)
			} else {
				own[s.id] = true
			}
		}
		if err := p.listSnapshots(ctx, v, own); err != nil {
			return err
		}
	}
	have := map[string]bool{}
	for o, err := range p.d.List(ctx) {
		if err != nil {
			return err
		}
		have[o.Name] = true
	}
	side := map[string]string{}
	for r, err := range p.d.Sidecars(ctx) {
		if err != nil {
			return err
		}
		side[r.Name] = string(r.Data)
	}
	if !maps.Equal(want, side) || len(have) != len(want) {
		return fmt.Errorf("listed are %q with the sidecars %q, want %q", slices.Sorted(maps.Keys(have)), side, want)
	}
	if l, ok := p.d.(driver.Leftovers); ok {
		for id, err := range l.Staged(ctx) {
			return fmt.Errorf("%s is staged, %v", id, err)
		}
	}
	return nil
}

func (p *player) listSnapshots(ctx context.Context, v *volume, want map[disk.SnapshotID]bool) error {
	s := p.snapshotter()
	if s == nil {
		return nil
	}
	have := map[disk.SnapshotID]bool{}
	for id, err := range s.Snapshots(ctx, v.ref) {
		if err != nil {
			return err
		}
		have[id] = true
	}
	if !maps.Equal(have, want) {
		return fmt.Errorf("the snapshots of volume %d are %v, want %v", v.number, have, want)
	}
	return nil
}

// end reads all that is left, takes it away and finds the pool empty.
func (p *player) end(ctx context.Context) error {
	if err := errors.Join(p.shut(restart, nil), p.list(ctx)); err != nil {
		return err
	}
	left := slices.SortedFunc(maps.Values(p.vols), func(a, b *volume) int { return a.number - b.number })
	for _, v := range left {
		if v.gone {
			continue // kept for its clones; the history does not know it
		}
		if err := p.check(ctx, v, false); err != nil {
			return err
		}
		for _, n := range slices.Sorted(maps.Keys(v.snapshots)) {
			if err := p.checkSnapshot(ctx, v, n); err != nil {
				return err
			}
		}
	}
	for _, v := range left {
		if v.gone {
			continue
		}
		if err := p.remove(ctx, v); err != nil {
			return fmt.Errorf("volume %d: %w", v.number, err)
		}
	}
	if err := p.list(ctx); err != nil || len(p.vols) > 0 {
		return fmt.Errorf("after deleting all %d volumes are left, %v", len(p.vols), err)
	}
	return nil
}
