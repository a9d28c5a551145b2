package ploopdrv

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

var _ driver.Adopter = (*pool)(nil)

// Candidate implements driver.Adopter. The container is the disk's image.
func (p *pool) Candidate(ctx context.Context, name string) (*driver.Candidate, error) {
	const op = "volume.candidate"
	if _, err := p.Foreign(ctx, op, name); err != nil {
		return nil, err
	}
	f, err := p.Folder(ctx, op, driver.Ref{Name: name})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := candidate(f, name)
	if err != nil {
		return nil, failed(op, name, err)
	}
	return c, nil
}

func candidate(f *dirdrv.Folder, name string) (*driver.Candidate, error) {
	chain, text, err := foreignChain(f)
	if err != nil {
		return nil, err
	}
	o, err := f.Object(name)
	if err != nil {
		return nil, err
	}
	o.Size = chain.Size
	image, err := openImage(f, rootFile, unix.O_RDONLY, driver.Read)
	if err != nil {
		return nil, err
	}
	return &driver.Candidate{Device: image, Object: o, Format: diskfmt.Ploop, Description: text}, nil
}

// foreignChain reads the description of a bundle that could be a volume, in
// whatever words it is written: one image called root.hds with clusters as tarn
// makes them, and nothing beside.
func foreignChain(f *dirdrv.Folder) (c bundle.Chain, text []byte, err error) {
	text, err = f.Read(bundle.Name)
	if errors.Is(err, unix.ENOENT) {
		return c, nil, errs.New(errs.Unsafe, "", "", "the folder has no %s: it is no ploop bundle", bundle.Name)
	}
	if err != nil {
		return c, nil, err
	}
	if c, err = bundle.ParseChain(text); err == nil && (len(c.Layers) > 1 || c.Resizing != 0) {
		return c, nil, errs.New(errs.Conflict, "", "", "the bundle has snapshots, or is being resized")
	}
	d, err := bundle.Parse(text)
	switch {
	case err != nil:
		return c, nil, err
	case d.File != rootFile || d.Plain || d.BlockSize != parallels.DefaultClusterSize:
		return c, nil, errs.New(errs.Unsafe, "", "", "the bundle's image is %s with clusters of %d bytes; volumes here have an expandable image called %s with clusters of %d",
			d.File, d.BlockSize, rootFile, parallels.DefaultClusterSize)
	case d.Size()%sizeUnit != 0 || d.Size() > parallels.MaxVirtualSize:
		return c, nil, errs.New(errs.Unsafe, "", "", "the disk has %d bytes, which is no multiple of %d up to %d", d.Size(), sizeUnit, int64(parallels.MaxVirtualSize))
	}
	names, err := f.Names()
	for _, name := range names {
		if err == nil && name != rootFile && name != bundle.Name && name != bundle.Name+newSuffix {
			err = errs.New(errs.Unsafe, "", "", "the folder holds %s beside the disk's image and description", name).WithHint("move it away")
		}
	}
	return newChain(d.Size()), text, err
}

// Adopt implements driver.Adopter. The description is rewritten in tarn's words
// first: it says the same as before.
func (p *pool) Adopt(ctx context.Context, r driver.Ref, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.adopt"
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return driver.Object{}, err
	}
	defer f.Close()
	if _, err := describe(f); errors.Is(err, errs.Corrupt) {
		if err := p.reword(ctx, op, r.Name, f); err != nil {
			return driver.Object{}, failed(op, r.Name, err)
		}
	}
	return p.Pool.Adopt(ctx, r, immutable, sidecar)
}

func (p *pool) reword(ctx context.Context, op, name string, f *dirdrv.Folder) error {
	if _, err := p.Foreign(ctx, op, name); err != nil {
		return err
	}
	chain, _, err := foreignChain(f)
	if err != nil {
		return err
	}
	return replace(f, chain)
}

// Disown implements driver.Adopter.
func (p *pool) Disown(ctx context.Context, r driver.Ref) error {
	const op = "volume.disown"
	f, err := p.Folder(ctx, op, r)
	if errors.Is(err, errs.NotFound) {
		return p.Pool.Disown(ctx, r)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := describe(f) // one that is damaged keeps no volume from being given up
	if n := len(snapshots(c)); err == nil && n > 0 {
		return errs.New(errs.Conflict, op, r.Name, "the volume has %d snapshots", n).WithHint("delete them first")
	}
	return p.Pool.Disown(ctx, r)
}
