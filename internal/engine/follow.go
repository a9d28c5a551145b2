package engine

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// turns lets one goroutine at a time work on a thing; who waits for one never
// waits for another's, whose pool may hang. Its zero value is ready.
type turns[K comparable] struct {
	mu sync.Mutex
	of map[K]*turn
}

// turn is one thing's, kept while somebody has it or waits for it.
type turn struct {
	sync.Mutex
	wanted int
}

// Lock waits for the turn of id.
func (t *turns[K]) Lock(id K) {
	t.mu.Lock()
	if t.of == nil {
		t.of = map[K]*turn{}
	}
	own := t.of[id]
	if own == nil {
		own = new(turn)
		t.of[id] = own
	}
	own.wanted++
	t.mu.Unlock()
	own.Lock()
}

// Unlock ends it.
func (t *turns[K]) Unlock(id K) {
	t.mu.Lock()
	own := t.of[id]
	if own.wanted--; own.wanted == 0 {
		delete(t.of, id)
	}
	t.mu.Unlock()
	own.Unlock()
}

// holds counts who reads volumes without an operation. Its zero value is ready.
type holds[K comparable] struct {
	mu sync.Mutex
	of map[K]int
}

// take counts one more reader of id, until the returned function is called.
func (h *holds[K]) take(id K) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.of == nil {
		h.of = map[K]int{}
	}
	h.of[id]++
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.of[id]--; h.of[id] == 0 {
			delete(h.of, id)
		}
	}
}

// count returns how many readers id has.
func (h *holds[K]) count(id K) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.of[id]
}

// described is the part of a sidecar that the records must repeat. What the
// driver tells anew when a pool is imported, what only the daemon's own records
// know and a state that takes the volume out of use are left out: after a lost
// database they are found again.
func described(s disk.Sidecar) disk.Sidecar {
	v := &s.Volume
	v.BackendID, v.Allocated, v.CreatedBy, v.Writing = "", 0, "", 0
	if (around{volume: *v}).out() {
		v.State = disk.VolumeReady
	}
	if s.Lease != nil {
		l := *s.Lease
		l.State = ""
		s.Lease = &l
	}
	s.Images = slices.Clone(s.Images)
	slices.SortFunc(s.Images, func(a, b disk.Image) int { return cmp.Compare(a.ID, b.ID) })
	return s
}

func sameSidecar(a, b disk.Sidecar) bool {
	a, b = described(a), described(b)
	return reflect.DeepEqual(a, b) || sameJSON(a, b) // equal values need not be written out
}

// renewSidecar writes what the records say of volume id beside it, under a new
// generation.
func (e *Engine) renewSidecar(ctx context.Context, id disk.VolumeID) error {
	err := e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return touchVolumes(ctx, tx, []disk.Volume{{ID: id}})
	})
	if err != nil {
		return ignore(errs.NotFound, err)
	}
	return e.writeSidecar(ctx, id)
}

// follow brings self-descriptions in active pools up to the records where they
// say something else. Those of pools that are not active follow when their pool
// is started.
func (e *Engine) follow(ctx context.Context, a sidecarArgs) error {
	var vols []disk.Volume
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		vols = nil
		for _, id := range a.Images {
			i, err := optionally(tx.Images.Get(ctx, id))
			if err != nil {
				return err
			}
			if i == nil {
				continue
			}
			bases, err := basesOf(ctx, tx, i.Content)
			if err != nil {
				return err
			}
			vols = append(vols, bases...)
		}
		return nil
	})
	if err == nil {
		err = e.followVolumes(ctx, vols)
	}
	if err != nil || !a.All {
		return err
	}
	for id := range e.pools.all() {
		if err := e.followPool(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// followPool is follow for the marker and all volumes of one open pool.
func (e *Engine) followPool(ctx context.Context, id disk.PoolID) error {
	p, ok := e.pools.get(id)
	if !ok {
		return nil
	}
	want, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Marker, error) { return markerOf(ctx, tx, id) })
	if err != nil {
		return ignore(errs.NotFound, err)
	}
	if got, err := p.Marker(ctx); err != nil {
		return err
	} else if !sameMarker(got, want) {
		want.Pool.State = disk.PoolActive
		if err := p.WriteMarker(ctx, want); err != nil {
			return err
		}
	}
	for after := ""; ; {
		vols, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (vols []disk.Volume, err error) {
			vols, after, err = tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("pool_id", id)}, After: after, Limit: doctorPage})
			return vols, err
		})
		if err == nil {
			err = e.followVolumes(ctx, vols)
		}
		if err != nil || after == "" {
			return err
		}
	}
}

func (e *Engine) followVolumes(ctx context.Context, vols []disk.Volume) error {
	for _, v := range vols {
		p, ok := e.pools.get(v.PoolID)
		if !ok || v.State != disk.VolumeReady {
			continue
		}
		differs, err := e.sidecarDiffers(ctx, p, v)
		if err == nil && differs {
			err = e.renewSidecar(ctx, v.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sidecarDiffers reports whether a sidecar says something else than the records.
// One that is missing or cannot be read is left to Doctor.
func (e *Engine) sidecarDiffers(ctx context.Context, p *pool.Pool, v disk.Volume) (bool, error) {
	want, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Sidecar, error) { return sidecarOf(ctx, tx, v.ID) })
	if err != nil {
		return false, ignore(errs.NotFound, err)
	}
	got, err := p.SidecarOf(ctx, v.Name)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.Corrupt) || errors.Is(err, errs.Version) {
		return false, nil
	}
	return err == nil && !sameSidecar(got, want), err
}
