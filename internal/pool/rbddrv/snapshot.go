package rbddrv

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func snap(name string) hostexec.Option { return hostexec.Joined("--snap", text(name)) }

// snapshots lists the snapshots of an image by name.
func (t *tool) snapshots(ctx context.Context, op, name string) (names []string, err error) {
	var rows []struct {
		Name string `json:"name"`
	}
	err = t.query(ctx, op, name, call{words: words("snap", "ls"), image: name}, &rows)
	for _, r := range rows {
		names = append(names, r.Name)
	}
	return names, err
}

// dropBase removes the snapshot that clones of a base are made of. A base that
// has clones, and a volume with other snapshots, is errs.Conflict.
func (t *tool) dropBase(ctx context.Context, op, name string, i image) error {
	if i.Snapshots == 0 {
		return nil
	}
	all, err := t.snapshots(ctx, op, name)
	if err != nil {
		return err
	}
	base := false
	for _, s := range all {
		if s != baseSnap {
			return errs.New(errs.Conflict, op, name, "the volume has the snapshot %s", strings.TrimPrefix(s, snapPrefix))
		}
		base = true
	}
	var children []struct {
		Image string `json:"image"`
	}
	if err := t.query(ctx, op, name, call{words: words("children"), image: name, options: []hostexec.Option{hostexec.Flag("--all")}}, &children); err != nil {
		return err
	}
	if len(children) > 0 {
		return errs.New(errs.Conflict, op, name, "%d clones read from the base, %s among them", len(children), children[0].Image)
	}
	if !base {
		return nil
	}
	return ignoring(errs.NotFound, t.do(ctx, op, name, words("snap", "rm"), snap(baseSnap), quiet()))
}

// Clone implements driver.Cloner. Clones are of version 2, which need no
// protected snapshot.
func (p *pool) Clone(ctx context.Context, s driver.Spec, base driver.Ref) error {
	const op = "volume.clone"
	if err := p.spec(ctx, op, s); err != nil {
		return err
	}
	from, i, err := p.find(ctx, op, base)
	if err != nil {
		return p.absent(ctx, err)
	}
	if s.Size < i.Size {
		return errs.New(errs.Invalid, op, string(s.ID), "%d bytes are fewer than the base's %d", s.Size, i.Size)
	}
	err = p.complete(ctx, op, s, func(part string) error {
		options := append(p.dest(part), snap(baseSnap), features(), hostexec.Joined("--rbd-default-clone-format", hostexec.Word("2")))
		err := p.do(ctx, op, from, words("clone"), options...)
		if err == nil && s.Size > i.Size {
			err = p.do(ctx, op, part, words("resize"), size(s.Size), quiet())
		}
		return err
	})
	if errors.Is(err, errs.NotFound) {
		err = errs.New(errs.Unsupported, op, string(s.ID), "%s was not published as a base: %w", base.Name, err)
	}
	return err
}

// Snapshot implements driver.Snapshotter.
func (p *pool) Snapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "volume.snapshot"
	if err := checkID(op, string(id)); err != nil {
		return err
	}
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return err
	}
	k := key{p.id, i.ID}
	v := enter(k)
	defer v.leave(k)
	if err = v.free(op, subject(r), false); err == nil {
		err = p.alone(ctx, op, name, v)
	}
	if err == nil {
		err = p.serving(ctx, op, subject(r))
	}
	if err != nil {
		return err
	}
	return ignoring(errs.Exists, p.do(ctx, op, name, words("snap", "create"), snap(snapPrefix+string(id)), quiet()))
}

// DeleteSnapshot implements driver.Snapshotter.
func (p *pool) DeleteSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.delete"
	if err := checkID(op, string(id)); err != nil {
		return err
	}
	name, i, err := p.find(ctx, op, r)
	if err == nil {
		err = p.serving(ctx, op, subject(r))
	}
	if err == nil {
		k := key{p.id, i.ID}
		defer enter(k).leave(k)
		err = p.do(ctx, op, name, words("snap", "rm"), snap(snapPrefix+string(id)), quiet())
	}
	return ignoring(errs.NotFound, err)
}

// Snapshots implements driver.Snapshotter.
func (p *pool) Snapshots(ctx context.Context, r driver.Ref) iter.Seq2[disk.SnapshotID, error] {
	const op = "volume.snapshots"
	return func(yield func(disk.SnapshotID, error) bool) {
		name, _, err := p.find(ctx, op, r)
		var all []string
		if err == nil {
			all, err = p.snapshots(ctx, op, name)
		}
		if err != nil {
			yield("", missing(op, r, err))
			return
		}
		for _, s := range all {
			if id, tarns := strings.CutPrefix(s, snapPrefix); tarns && !yield(disk.SnapshotID(id), nil) {
				return
			}
		}
	}
}

// OpenSnapshot implements driver.Snapshotter.
func (p *pool) OpenSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) (driver.Device, error) {
	const op = "snapshot.open"
	if err := checkID(op, string(id)); err != nil {
		return nil, err
	}
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return nil, p.absent(ctx, err)
	}
	d, err := p.open(ctx, op, name, snapPrefix+string(id), i.ID, driver.Base)
	if err == nil {
		return d, nil
	}
	all, lerr := p.snapshots(ctx, op, name)
	if lerr == nil && !slices.Contains(all, snapPrefix+string(id)) {
		return nil, errs.New(errs.NotFound, op, subject(r), "the volume has no snapshot %s", id)
	}
	return nil, err
}
