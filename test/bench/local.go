package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// nova measures root disks in a directory from bases on the host, against Nova's
// two backends for files.
func (b *bench) nova(ctx context.Context) (err error) {
	p, err := b.peers(ctx)
	if p == nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	dir, err := b.fresh("nova")
	if err != nil {
		return err
	}
	n, err := p.nova(ctx, dir, options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()
	d, err := b.withBases(ctx, dir, filepath.Join(dir, "_base"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	ours := func(x cachedBase) work { return b.root(d, x, "auto") }
	theirs := func(kind string, count int) func(cachedBase) work {
		return func(x cachedBase) work {
			return n.work("Nova's "+kind+", cached base of "+x.label, count, order{Type: kind, Base: x.name, Size: largeDisk}, func(_ context.Context, id string) error {
				return os.RemoveAll(filepath.Join(dir, id))
			})
		}
	}
	overlay, raw := theirs("qcow2", handful), theirs("raw", 1)
	x := cachedBases[usual]
	return errors.Join(
		b.compare(ctx, "root disk, directory, Nova", ours(x), overlay(x), raw(x)),
		b.bySize(ctx, "the same by the base's size", ours),
		b.bySize(ctx, "the same of Nova's qcow2", overlay),
		b.bySize(ctx, "the same of Nova's raw", raw),
	)
}

// withBases starts a daemon with its pool below dir, and all bases in it, whose
// files it makes in from.
func (b *bench) withBases(ctx context.Context, dir, from string) (*daemon, error) {
	d, err := b.start(ctx, dir)
	if err != nil {
		return nil, err
	}
	if err = d.pool(ctx); err == nil {
		err = b.bases(from)
	}
	for _, x := range cachedBases {
		if err == nil {
			err = d.add(ctx, x.name, filepath.Join(from, x.name), "raw")
		}
	}
	if err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// clone measures raw root disks that share their base's extents, on an XFS of its
// own, against libvirt's clones of a volume: as it makes them, and sharing too.
func (b *bench) clone(ctx context.Context) (err error) {
	dir, umount, err := b.xfs(ctx)
	if dir == "" {
		return err
	}
	defer func() { err = errors.Join(err, umount()) }()
	l, err := b.libvirt(ctx)
	if l == nil {
		return err
	}
	defer l.stop()
	work, pool := filepath.Join(dir, "d"), filepath.Join(dir, "pool")
	if err := errors.Join(os.Mkdir(work, 0o711), os.Mkdir(pool, 0o711)); err != nil {
		return err
	}
	d, err := b.withBases(ctx, work, pool)
	if err == nil {
		defer func() { err = errors.Join(err, d.stop()) }()
		err = l.virsh(ctx, "pool-create-as", "v", "dir", "--target", pool)
	}
	if err != nil {
		return err
	}
	x := cachedBases[usual]
	sharing := l.clone(b, "v", x, handful, "--reflink")
	sharing.name += ", --reflink"
	return b.compare(ctx, "raw root disk, XFS", b.root(d, x, "raw"), l.clone(b, "v", x, 1), sharing)
}
