package engine

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// dropLease removes lease l and records what was measured of its volume. It
// reports false, and does nothing, if the volume has another lease by now: that
// one was granted after the locks were looked at. Dropping one that is gone is
// not an error.
func (e *Engine) dropLease(ctx context.Context, tx *store.Tx, l disk.Lease, allocated map[disk.VolumeID]int64) (bool, error) {
	r, err := recordsOf(ctx, tx, l.VolumeID)
	if err != nil || r.lease == nil {
		return true, err
	}
	if r.lease.Generation != l.Generation {
		return false, nil
	}
	if n, ok := allocated[l.VolumeID]; ok {
		r.volume.Allocated = n
	}
	r.volume.Generation++
	return true, errors.Join(tx.Leases.Delete(ctx, l.VolumeID), tx.Volumes.Update(ctx, r.volume), e.emit(ctx, tx, "disk.detached", diskSubject(r), ""))
}

// oldLease is a lease that this host got in an earlier boot.
type oldLease struct {
	lease  disk.Lease
	volume disk.Volume
}

// releaseOldLeases drops the leases that this host got in an earlier boot: the
// programs that used them died with it. One whose volume is locked all the same
// stays, and so does one whose pool is not active. One that an operation is at
// work on is released behind it. It looks at the pools that may hang, or at the
// others.
func (e *Engine) releaseOldLeases(ctx context.Context, hanging bool) error {
	old, err := e.oldLeases(ctx)
	if err != nil {
		return err
	}
	old = slices.DeleteFunc(old, func(l oldLease) bool {
		p, ok := e.pools.get(l.volume.PoolID)
		return !ok || p.Hangs() != hanging || e.unlocked(ctx, l.volume) != nil
	})
	busy, err := e.release(ctx, old)
	if len(busy) > 0 {
		e.background.Go(func() { e.releaseLater(e.life, busy, hanging) })
	}
	return err
}

func (e *Engine) oldLeases(ctx context.Context) ([]oldLease, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]oldLease, error) {
		leases, _, err := tx.Leases.List(ctx, store.Query{Where: []store.Where{store.Eq("host_id", e.cfg.Host.ID), store.Eq("state", disk.LeaseHeld)}})
		var old []oldLease
		for _, l := range leases {
			if l.BootID == e.cfg.Host.BootID || err != nil {
				continue
			}
			var v disk.Volume
			v, err = tx.Volumes.Get(ctx, l.VolumeID)
			old = append(old, oldLease{l, v})
		}
		return old, err
	})
}

// release drops leases, in one operation if it can, and returns those whose
// volumes an operation is at work on.
func (e *Engine) release(ctx context.Context, old []oldLease) (busy []oldLease, err error) {
	if len(old) == 0 {
		return nil, nil
	}
	d := newDraft("lease.release", journal.Subject{Type: "host", ID: string(e.cfg.Host.ID), Name: e.cfg.Host.Name})
	var vols []disk.Volume
	for _, l := range old {
		vols = append(vols, l.volume)
		d.resources = append(d.resources, volumeResource(l.volume.ID))
	}
	d.steps = []journal.Step{sidecarStep(vols)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		for _, l := range old {
			if _, err := e.dropLease(ctx, tx, l.lease, nil); err != nil {
				return err
			}
		}
		return nil
	}
	_, err = e.submit(ctx, api.Options{}, d)
	switch {
	case !errors.Is(err, errs.Busy):
		return nil, err
	case len(old) == 1:
		return old, nil
	}
	half := len(old) / 2
	for _, part := range [][]oldLease{old[:half], old[half:]} {
		left, err := e.release(ctx, part)
		if err != nil {
			return nil, err
		}
		busy = append(busy, left...)
	}
	return busy, nil
}

func volumeResource(id disk.VolumeID) string { return "volume:" + string(id) }

// releaseLater waits for the operations that kept leases from being released
// and tries again.
func (e *Engine) releaseLater(ctx context.Context, busy []oldLease, hanging bool) {
	var err error
	for _, l := range busy {
		if err == nil {
			_, err = e.awaitVolume(ctx, l.volume.ID)
		}
	}
	if err == nil {
		err = e.releaseOldLeases(ctx, hanging)
	}
	if err != nil && ctx.Err() == nil {
		e.cfg.Log.Warn("leases of an earlier boot could not be released", "error", err)
	}
}

// awaitVolume waits for the operations that are at work on volume id, and
// reports whether there were any.
func (e *Engine) awaitVolume(ctx context.Context, id disk.VolumeID) (worked bool, err error) {
	ops, err := query(ctx, e, unfinished)
	for _, op := range ops {
		for slices.Contains(op.Resources, volumeResource(id)) && !op.State.Final() && err == nil {
			worked = true
			op, err = e.runner.Wait(ctx, op.ID, time.Minute)
		}
	}
	return worked, err
}
