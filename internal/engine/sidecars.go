package engine

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// sidecarArgs names the volumes and pools whose self-descriptions follow a
// change of the records, and those that may have to follow: every base of
// Images, and with All everything in active pools.
type sidecarArgs struct {
	Volumes []disk.VolumeID `json:"volumes,omitempty"`
	Pools   []disk.PoolID   `json:"pools,omitempty"`
	Images  []disk.ImageID  `json:"images,omitempty"`
	All     bool            `json:"all,omitempty"`
}

func sidecarStep(vols []disk.Volume) journal.Step {
	var a sidecarArgs
	for _, v := range vols {
		a.Volumes = append(a.Volumes, v.ID)
	}
	return journal.NewStep(stepSidecars, a)
}

// sidecarOf collects what volume id's sidecar says now.
func sidecarOf(ctx context.Context, tx *store.Tx, id disk.VolumeID) (disk.Sidecar, error) {
	v, err := tx.Volumes.Get(ctx, id)
	if err != nil {
		return disk.Sidecar{}, err
	}
	if v.Kind == disk.KindBase && v.Adopted {
		return disk.Sidecar{Volume: v}, nil
	}
	if v.Kind == disk.KindBase {
		images, _, err := tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", v.Content), store.Eq("state", disk.ImageReady)}})
		return disk.Sidecar{Volume: v, Images: images}, err
	}
	r, err := recordsOf(ctx, tx, id)
	return r.sidecar(), err
}

// touchVolumes raises the generation of vols: their sidecars are about to say
// something newer.
func touchVolumes(ctx context.Context, tx *store.Tx, vols []disk.Volume) error {
	for _, v := range vols {
		now, err := tx.Volumes.Get(ctx, v.ID)
		if err != nil {
			return err
		}
		now.Generation++
		if err := tx.Volumes.Update(ctx, now); err != nil {
			return err
		}
	}
	return nil
}

// sidecarsWrite brings self-descriptions up to the records: step
// sidecars.write/v1. The records were changed by the operation's intent; they
// win, so that the step only goes forward. What one volume's storage refuses
// does not keep the others from being described.
func (e *Engine) sidecarsWrite() journal.Handler[*store.Tx] {
	return simple{final: true, act: func(ctx context.Context, c *journal.Call) error {
		var a sidecarArgs
		if err := c.Args(&a); err != nil {
			return err
		}
		for _, id := range a.Pools {
			if err := e.writeMarker(ctx, id); err != nil {
				return err
			}
		}
		var failed error
		for i, id := range a.Volumes {
			failed = errors.Join(failed, e.writeSidecar(ctx, id))
			if err := ctx.Err(); err != nil {
				return err
			}
			c.Progress(int64(i+1), int64(len(a.Volumes)), "steps")
		}
		return errors.Join(failed, e.follow(ctx, a))
	}}
}

// writeSidecar writes what the records say of volume id beside it. Two writers
// take turns, so that the one that read the older records does not come last. A
// volume that is being deleted gets none: its bytes may be gone by now, and what
// is written behind its deletion stays. Nor does one that is recorded as lost,
// which has no bytes to lie beside, or as quarantined, whose name another file
// may have.
func (e *Engine) writeSidecar(ctx context.Context, id disk.VolumeID) error {
	e.describing.Lock(id)
	defer e.describing.Unlock(id)
	s, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Sidecar, error) { return sidecarOf(ctx, tx, id) })
	if errs.KindOf(err) == errs.NotFound && err != nil {
		return nil // deleted meanwhile
	}
	if err != nil {
		return err
	}
	switch s.Volume.State {
	case disk.VolumeDeleting, disk.VolumeLost, disk.VolumeQuarantined:
		return nil
	}
	p, err := e.poolOf(ctx, s.Volume.PoolID)
	if err != nil {
		return err
	}
	return e.makingRoom(ctx, p, func() error { return p.WriteSidecar(ctx, s) })
}

// awaitDescribed waits for a writer that found volume id before its state became
// deleting. Later ones write nothing.
func (e *Engine) awaitDescribed(id disk.VolumeID) {
	e.describing.Lock(id)
	defer e.describing.Unlock(id)
}

// makingRoom runs fn again with the pool's ballast given up if it found no
// space: what frees a full pool must not need space of it.
func (e *Engine) makingRoom(ctx context.Context, p *pool.Pool, fn func() error) error {
	err := fn()
	b, ok := p.Driver.(driver.Ballast)
	if !ok || !errors.Is(err, errs.NoSpace) {
		return err
	}
	if err := b.ReleaseBallast(ctx); err != nil {
		return err
	}
	return fn()
}

func (e *Engine) writeMarker(ctx context.Context, id disk.PoolID) error {
	m, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Marker, error) { return markerOf(ctx, tx, id) })
	if err != nil {
		return err
	}
	p, err := e.pool(m.Pool)
	if err != nil {
		return err
	}
	return p.WriteMarker(ctx, m)
}

// markerOf collects what pool id's marker says now.
func markerOf(ctx context.Context, tx *store.Tx, id disk.PoolID) (m disk.Marker, err error) {
	if m.Pool, err = tx.Pools.Get(ctx, id); err != nil {
		return m, err
	}
	m.Domain, err = tx.Domains.Get(ctx, m.Pool.DomainID)
	return m, err
}
