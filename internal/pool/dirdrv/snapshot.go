package dirdrv

import (
	"context"
	"errors"
	"iter"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// snapsName is the directory at the pool's root that holds the snapshots, each a
// file that shares extents with its volume. They are named by ids, not by the
// volume's name: a name that is given again must not find another's snapshots.
const snapsName = ".tarn-snapshots"

var _ driver.Snapshotter = (*pool)(nil)

// snapFile returns the name of a snapshot's file. Ids have no underscore.
func snapFile(id disk.VolumeID, snap disk.SnapshotID) string { return string(id) + "_" + string(snap) }

// openSnaps opens .tarn-snapshots, and makes it where snapshots are possible. A
// pool without room for it starts all the same.
func (p *pool) openSnaps() (err error) {
	there, err := p.root.exists(snapsName)
	if err != nil || !there && p.caps.Snapshot == driver.SnapshotNone {
		return err
	}
	p.snaps, err = privateDir(p.root, snapsName)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		p.caps.Snapshot, err = driver.SnapshotNone, nil
	}
	return err
}

// snapshot returns where a snapshot of r lies, or will: "" without a directory.
func (p *pool) snapshot(ctx context.Context, op string, r driver.Ref, id disk.SnapshotID) (string, error) {
	err := errors.Join(checkID(op, r.ID), checkID(op, disk.VolumeID(id)), checkName(op, r.Name))
	if err == nil {
		err = ctx.Err()
	}
	if err != nil || p.snaps == nil {
		return "", failed(op, subject(r), err)
	}
	return snapFile(r.ID, id), nil
}

// Snapshot implements driver.Snapshotter: a reflink, its sync, a rename, the
// directory's sync.
func (p *pool) Snapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.create"
	name, err := p.snapshot(ctx, op, r, id)
	if err != nil {
		return err
	}
	if name == "" || p.caps.Snapshot == driver.SnapshotNone {
		return errs.New(errs.Unsupported, op, subject(r), "the file system does not share extents between files")
	}
	from, err := p.device(op, r, driver.Read)
	if err != nil {
		return err
	}
	defer from.Close()
	there, err := p.snaps.exists(name)
	if err == nil && !there {
		err = p.keep(from, name)
	}
	if err == nil {
		err = p.snaps.sync() // also of one that was there: an earlier call may have died before it
	}
	return failed(op, subject(r), err)
}

// keep makes the snapshot name of what from holds.
func (p *pool) keep(from *blkio.File, name string) error {
	part := name + partSuffix
	f, err := p.snaps.createAnew(part)
	if err != nil {
		return err
	}
	defer f.Close()
	err = reflink(f, from.Descriptor(), from.Size())
	if err == nil {
		err = faults.Do(faults.Ioctl, "chmod "+name, func() error { return f.Chmod(0o400) })
	}
	if err == nil {
		err = faults.Do(faults.Sync, "sync "+name, f.Sync)
	}
	if err == nil {
		err = p.snaps.publish(part, p.snaps, name)
	}
	if err != nil {
		_ = p.snaps.remove(part)
	}
	return err
}

// DeleteSnapshot implements driver.Snapshotter.
func (p *pool) DeleteSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.delete"
	name, err := p.snapshot(ctx, op, r, id)
	if err != nil || name == "" {
		return err
	}
	for _, file := range []string{name + partSuffix, name} {
		if err == nil {
			err = p.snaps.remove(file)
		}
	}
	if err == nil {
		err = p.snaps.sync()
	}
	return failed(op, subject(r), err)
}

// Snapshots implements driver.Snapshotter.
func (p *pool) Snapshots(ctx context.Context, r driver.Ref) iter.Seq2[disk.SnapshotID, error] {
	const op = "snapshot.list"
	return func(yield func(disk.SnapshotID, error) bool) {
		_, err := p.Describe(ctx, r)
		if err == nil {
			err = p.eachSnapshot(ctx, r.ID, func(id disk.SnapshotID) bool { return yield(id, nil) })
		}
		if err != nil {
			yield("", failed(op, subject(r), err))
		}
	}
}

// eachSnapshot calls visit with the snapshots of volume id until it returns
// false.
func (p *pool) eachSnapshot(ctx context.Context, id disk.VolumeID, visit func(disk.SnapshotID) bool) error {
	if p.snaps == nil {
		return nil
	}
	return p.snaps.each(ctx, func(name string) bool {
		snap, ok := strings.CutPrefix(name, snapFile(id, ""))
		if !ok || checkID("", disk.VolumeID(snap)) != nil { // another's, or half made
			return true
		}
		return visit(disk.SnapshotID(snap))
	})
}

// unfrozen returns errs.Conflict if the volume has snapshots, and removes what
// crashes left of making some.
func (p *pool) unfrozen(ctx context.Context, op string, r driver.Ref) error {
	if p.snaps == nil {
		return nil
	}
	var parts []string
	has := 0
	err := ignoring(os.ErrNotExist, p.snaps.each(ctx, func(name string) bool {
		switch snap, ok := strings.CutPrefix(name, snapFile(r.ID, "")); {
		case !ok:
		case strings.HasSuffix(snap, partSuffix):
			parts = append(parts, name)
		default:
			has++
		}
		return true
	})) // where the storage is gone there are none
	if err == nil && has > 0 {
		return errs.New(errs.Conflict, op, subject(r), "the volume has %d snapshots", has).WithHint("delete them first")
	}
	for _, part := range parts {
		if err == nil {
			err = p.snaps.remove(part)
		}
	}
	return err
}

// OpenSnapshot implements driver.Snapshotter.
func (p *pool) OpenSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) (driver.Device, error) {
	const op = "snapshot.open"
	name, err := p.snapshot(ctx, op, r, id)
	if err == nil {
		_, err = p.Describe(ctx, r)
	}
	if err != nil {
		return nil, err
	}
	f, err := (*os.File)(nil), error(unix.ENOENT)
	if name != "" {
		f, err = p.snaps.open(name, unix.O_RDONLY)
	}
	if isNotExist(err) {
		return nil, errs.New(errs.NotFound, op, subject(r), "the volume has no snapshot %s", id)
	}
	if err != nil {
		return nil, failed(op, subject(r), err)
	}
	d, err := blkio.NewFile(f)
	if err != nil {
		f.Close()
		return nil, failed(op, subject(r), err)
	}
	return d, nil
}
