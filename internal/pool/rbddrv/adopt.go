package rbddrv

import (
	"context"
	"errors"
	"slices"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

var _ driver.Adopter = (*pool)(nil)

// known are the features of images whose bytes and space are all in the pool and
// change by nobody else.
var known = []string{"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"}

// Candidate implements driver.Adopter.
func (p *pool) Candidate(ctx context.Context, name string) (*driver.Candidate, error) {
	const op = "volume.candidate"
	if err := checkName(op, name); err != nil {
		return nil, err
	}
	_, i, err := p.find(ctx, op, driver.Ref{Name: name})
	if err != nil {
		return nil, p.absent(ctx, err)
	}
	marked, err := p.marks(ctx, op, name, i)
	if err == nil && marked {
		err = errs.New(errs.Exists, op, name, "%s has a sidecar: it is a volume, or was one", name).WithHint("tarn doctor says what it is")
	}
	if err == nil {
		err = p.adoptable(ctx, op, name, i)
	}
	if err != nil {
		return nil, err
	}
	d, err := p.open(ctx, op, name, "", i.ID, driver.Read)
	if err != nil {
		return nil, failed(op, name, err)
	}
	return &driver.Candidate{Device: d, Object: p.object(ctx, op, name, i)}, nil
}

// marks reports whether the image carries a sidecar of its own.
func (p *pool) marks(ctx context.Context, op, name string, i image) (bool, error) {
	_, err := p.record(ctx, op, name, i.ID, sidecarKey)
	if errors.Is(err, errs.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// adoptable refuses an image that lies over another or has snapshots, and one that
// is not as the driver's own are.
func (p *pool) adoptable(ctx context.Context, op, name string, i image) error {
	var more struct {
		Parent *struct {
			Image string `json:"image"`
		} `json:"parent"`
	}
	if err := p.query(ctx, op, name, call{words: words("info"), image: name}, &more); err != nil {
		return err
	}
	switch {
	case more.Parent != nil:
		return errs.New(errs.Conflict, op, name, "the image is a clone of %s", more.Parent.Image).WithHint("make it whole with \"rbd flatten\"")
	case i.Snapshots > 0:
		return errs.New(errs.Conflict, op, name, "the image has %d snapshots", i.Snapshots).WithHint("delete them with \"rbd snap purge\"")
	case !slices.Contains(i.Features, "exclusive-lock"):
		return errs.New(errs.Unsafe, op, name, "the image has no exclusive lock, by which writers are kept apart").
			WithHint("rbd feature enable %s/%s exclusive-lock object-map fast-diff", p.where(), name)
	}
	for _, f := range i.Features {
		if !slices.Contains(known, f) {
			return errs.New(errs.Unsafe, op, name, "the image has the feature %s, which volumes do not have", f).WithHint("see \"rbd feature disable\", or import a copy")
		}
	}
	return nil
}

// Adopt implements driver.Adopter: the sidecar first, so that the snapshot of a
// base is never one of a foreign image.
func (p *pool) Adopt(ctx context.Context, r driver.Ref, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.adopt"
	if err := errors.Join(checkName(op, r.Name), checkRecord(op, r.Name, sidecar)); err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return driver.Object{}, p.absent(ctx, err)
	}
	k := key{p.id, i.ID}
	v := enter(k)
	defer v.leave(k)
	marked, err := p.marks(ctx, op, name, i)
	if err == nil && !marked {
		err = p.adoptable(ctx, op, name, i)
	}
	if err == nil {
		err = v.free(op, name, true)
	}
	if err == nil {
		err = p.alone(ctx, op, name, v)
	}
	if err == nil {
		err = p.serving(ctx, op, name)
	}
	if err == nil {
		err = p.setRecord(ctx, op, name, i.ID, sidecarKey, sidecar)
	}
	if err == nil && immutable {
		err = ignoring(errs.Exists, p.do(ctx, op, name, words("snap", "create"), snap(baseSnap), quiet()))
	}
	if err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	return p.object(ctx, op, name, i), nil
}

// Disown implements driver.Adopter.
func (p *pool) Disown(ctx context.Context, r driver.Ref) error {
	const op = "volume.disown"
	if err := checkName(op, r.Name); err != nil {
		return err
	}
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return ignoring(errs.NotFound, err)
	}
	k := key{p.id, i.ID}
	defer enter(k).leave(k)
	marked, err := p.marks(ctx, op, name, i)
	if err != nil || !marked {
		return err
	}
	if err = p.serving(ctx, op, name); err == nil {
		err = p.dropBase(ctx, op, name, i)
	}
	if err == nil {
		err = p.do(ctx, op, name, words("image-meta", "remove", sidecarKey))
	}
	return failed(op, name, err)
}
