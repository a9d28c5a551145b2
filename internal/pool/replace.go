package pool

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Replace makes s.Volume anew in the place of old, its record before, whose
// object holds what it must not, or is gone. The new bytes are complete before
// the old object is set aside; when they cannot be made it stays as it was. Who
// opens the name finds the old object, none, or the new one whole: the caller
// sees to it that nobody does. A repeat finds what the first call published.
func (p *Pool) Replace(ctx context.Context, s disk.Sidecar, old disk.Volume, m Making) (disk.Volume, error) {
	return p.replace(ctx, s.Volume.ID, s, old, func() error {
		if err := p.Discard(ctx, s.Volume.ID); err != nil {
			return err
		}
		return p.stage(ctx, s.Volume, m)
	})
}

// PublishInstead publishes what is staged under id as base s.Volume, in the place
// of old, as Replace does. Staged bytes that do not have the recorded content are
// errs.Corrupt: whoever wrote them may have said so alone.
func (p *Pool) PublishInstead(ctx context.Context, id disk.VolumeID, s disk.Sidecar, old disk.Volume, progress func(done int64)) (disk.Volume, error) {
	return p.replace(ctx, id, s, old, func() error {
		dev, err := p.Driver.Open(ctx, driver.Ref{ID: id}, driver.Staged)
		if err != nil {
			return err
		}
		defer dev.Close()
		sum, err := blkio.SumSource(ctx, dev, s.Volume.ContentSize, progress)
		if err == nil && sum != s.Volume.Content {
			err = errs.New(errs.Corrupt, "volume.replace", old.Name, "what was written reads as %s, not as %s", sum, s.Volume.Content)
		}
		return err
	})
}

// replace publishes what is staged under id once ready says that it is complete.
func (p *Pool) replace(ctx context.Context, id disk.VolumeID, s disk.Sidecar, old disk.Volume, ready func() error) (disk.Volume, error) {
	done, err := p.replaced(ctx, old)
	switch {
	case err != nil:
		return s.Volume, err
	case done:
		return p.finishAgain(ctx, id, s)
	}
	l, ok := p.Driver.(driver.Leftovers)
	if !ok {
		return s.Volume, errs.New(errs.Unsupported, "volume.replace", old.Name, "the pool's technology sets nothing aside")
	}
	if err := ready(); err != nil {
		return s.Volume, err
	}
	if err := l.SetAside(ctx, Ref(old)); err != nil { // or the sidecar that is left of it
		return s.Volume, err
	}
	return p.finish(ctx, id, s)
}

// TakeBack undoes Replace, or PublishInstead of what is staged under id: it
// removes what was staged or published. It reports whether the old object is
// where it was.
func (p *Pool) TakeBack(ctx context.Context, id disk.VolumeID, old disk.Volume) (bool, error) {
	if err := p.Discard(ctx, id); err != nil {
		return false, err
	}
	done, err := p.replaced(ctx, old)
	if errors.Is(err, errs.Exists) {
		return false, nil // another's
	}
	if err == nil && done {
		err = p.Driver.Delete(ctx, driver.Ref{ID: id, Name: old.Name})
	}
	if err != nil {
		return false, err
	}
	_, err = p.Describe(ctx, Ref(old))
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// replaced reports whether what has old's name was published in its place. What
// is neither is errs.Exists.
func (p *Pool) replaced(ctx context.Context, old disk.Volume) (bool, error) {
	_, err := p.Describe(ctx, Ref(old))
	switch {
	case err == nil, errors.Is(err, errs.NotFound):
		return false, nil
	case !errors.Is(err, errs.Corrupt):
		return false, err
	}
	data, err := p.Sidecar(ctx, old.Name)
	if err == nil {
		var s disk.Sidecar
		if s, err = OpenSidecar(old.Name, data); err == nil && s.Volume.ID == old.ID && s.Volume.Generation > old.Generation {
			return true, nil
		}
	}
	if err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Corrupt) {
		return false, err
	}
	return false, errs.New(errs.Exists, "volume.replace", old.Name, "another object has the name %s in pool %s", old.Name, p.name).
		WithHint("see what it is, and move it out of the pool")
}
