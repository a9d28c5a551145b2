package engine

import (
	"context"
	"slices"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
)

// An adopted base that does not read as it did when it was adopted is taken out of
// use like any other. It is not healed, because tarn does not know where it came
// from, and not set aside: the object was there before tarn. When a person has
// restored it, a scrub finds that.

// allReady reports whether every one of vols can be read from.
func allReady(vols []disk.Volume) bool {
	return !slices.ContainsFunc(vols, func(v disk.Volume) bool { return v.State != disk.VolumeReady })
}

// cameBy says in a word how tarn came by what base b holds.
func cameBy(b disk.Volume) string {
	if b.Adopted {
		return "adopted"
	}
	return "imported"
}

// scrubRestored reads an adopted base that is quarantined, and puts into bad what it
// reads as if that is what was adopted.
func (e *Engine) scrubRestored(ctx context.Context, p *pool.Pool, b disk.Volume, bad *corruptBase, limit *throttle, progress func(done int64)) error {
	chain, err := e.chain(ctx, b)
	if err != nil || !allReady(chain[1:]) {
		return ignore(errs.Corrupt, err)
	}
	sum, err := e.sumBase(ctx, p, chain, limit, progress)
	if err == nil && sum == b.Content {
		bad.Sum = sum
		bad.Why += ", and reads as what was adopted again"
	}
	if ctx.Err() == nil {
		err = ignore(errs.Corrupt, err)
	}
	return err
}

// settleAdopted says what a person can do about an adopted base that is out of use.
// One that was restored is taken into use again if repair says so, and the second
// result is that it was.
func (e *Engine) settleAdopted(ctx context.Context, b disk.Volume, bad corruptBase, repair bool) (string, bool) {
	const release = " Or let it go, when nothing reads from it any more: tarn volume release "
	switch {
	case b.State == disk.VolumeLost:
		return "nobody can use it. Move it back under its name and run tarn doctor --repair." + release + bad.Object, false
	case bad.Sum != b.Content || b.State != disk.VolumeQuarantined:
		return "nobody can use it; tarn did not make it and leaves its bytes as they are. Bring them back from where they came, into the same " +
			"object (cp, not mv), and run tarn doctor --scrub --repair." + release + bad.Object, false
	case !repair:
		return "tarn doctor --scrub --repair takes it into use again", false
	}
	if err := e.reuse(ctx, b); err != nil {
		return "nobody can use it, and it could not be taken into use again: " + message(err), false
	}
	return "took it into use again", true
}

// reuse has a base that was restored used again, if its container is sound.
func (e *Engine) reuse(ctx context.Context, b disk.Volume) error {
	p, err := e.poolOf(ctx, b.PoolID)
	if err != nil {
		return err
	}
	obj, err := p.Describe(ctx, pool.Ref(b))
	if err == nil {
		err = p.Examine(ctx, b, obj)
	}
	if err == nil {
		err = e.mark(ctx, b, disk.VolumeReady)
	}
	return err
}
