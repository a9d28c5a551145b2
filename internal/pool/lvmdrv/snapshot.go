package lvmdrv

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

// ownerLen is how much of its volume's own id a snapshot's name carries: names
// are unique in a group, a snapshot's id only among those of its volume.
const ownerLen = 14

func snapName(id disk.SnapshotID, object string) string {
	return snapPrefix + string(id) + snapSuffix(object)
}

func snapSuffix(object string) string {
	o := strings.ReplaceAll(object, "-", "")
	return "-" + o[:min(len(o), ownerLen)]
}

// snapshotsOf returns the ids of v's snapshots, which are active since the pool
// was opened.
func (p *pool) snapshotsOf(v lv) (ids []disk.SnapshotID, err error) {
	found, err := p.activeNames(snapPrefix)
	for _, name := range found {
		if id, its := strings.CutSuffix(strings.TrimPrefix(name, snapPrefix), snapSuffix(v.uuid)); its {
			ids = append(ids, disk.SnapshotID(id))
		}
	}
	slices.Sort(ids)
	return ids, err
}

// frozen returns the published volume r, of which id is to be a snapshot.
func (p *pool) frozen(ctx context.Context, op string, r driver.Ref, id disk.SnapshotID) (lv, error) {
	err := errors.Join(p.checkID(op, string(id)), p.checkName(op, r.Name))
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return lv{}, failed(op, subject(r), err)
	}
	if v, there := p.active(r.Name); there {
		return v, sameObject(op, r, v.uuid)
	}
	return p.find(ctx, op, r, r.Name)
}

// Snapshot implements driver.Snapshotter. A thick volume's snapshot gets an area
// that holds every change there can be, so that it does not overflow.
func (p *pool) Snapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.create"
	v, err := p.frozen(ctx, op, r, id)
	if err != nil {
		return err
	}
	name := snapName(id, v.uuid)
	if _, there := p.active(name); there {
		return nil
	}
	if err := p.room(op, driver.Spec{}); err != nil {
		return failed(op, r.Name, err)
	}
	d, err := p.device(ctx, op, r, driver.Read)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return failed(op, r.Name, err)
	}
	if p.thinPool != "" {
		return failed(op, r.Name, p.snapLV(ctx, name, r.Name, "r"))
	}
	area := cowSize(v.size, p.group.extent)
	return failed(op, r.Name, p.change(ctx, area, []hostexec.Option{hostexec.Flag("lvcreate"), hostexec.Flag("--yes"), hostexec.Flag("--snapshot"),
		hostexec.OptionValue("--name", hostexec.Text(name)), hostexec.OptionValue("--permission", hostexec.Word("r")),
		hostexec.OptionValue("--chunksize", hostexec.Word("4k")), sizeOption(area)}, p.path(r.Name)))
}

// cowSize is the area that a snapshot of size bytes fills when everything
// changes: a header, the chunks, and 16 bytes of each in chunks of their own
// (Linux, drivers/md/dm-snap-persistent.c). LVM takes no more than that.
func cowSize(size, extent int64) int64 {
	const chunk = 4 << 10
	chunks := roundUp(size, chunk) / chunk
	tables := chunks/(chunk/16) + 2
	return roundUp((1+chunks+tables)*chunk, extent)
}

// DeleteSnapshot implements driver.Snapshotter.
func (p *pool) DeleteSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.delete"
	v, err := p.frozen(ctx, op, r, id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	name := snapName(id, v.uuid)
	if _, there := p.active(name); !there {
		return nil
	}
	return failed(op, r.Name, p.removeLV(ctx, name))
}

// Snapshots implements driver.Snapshotter.
func (p *pool) Snapshots(ctx context.Context, r driver.Ref) iter.Seq2[disk.SnapshotID, error] {
	return func(yield func(disk.SnapshotID, error) bool) {
		v, err := p.frozen(ctx, "snapshot.list", r, "any")
		var ids []disk.SnapshotID
		if err == nil {
			ids, err = p.snapshotsOf(v)
		}
		if err != nil {
			yield("", failed("snapshot.list", r.Name, err))
			return
		}
		for _, id := range ids {
			if !yield(id, nil) {
				return
			}
		}
	}
}

// OpenSnapshot implements driver.Snapshotter.
func (p *pool) OpenSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) (driver.Device, error) {
	const op = "snapshot.open"
	v, err := p.frozen(ctx, op, r, id)
	if err != nil {
		return nil, err
	}
	name := snapName(id, v.uuid)
	if _, there := p.active(name); !there {
		return nil, errs.New(errs.NotFound, op, r.Name, "the volume has no snapshot %s", id)
	}
	if kind, status, err := target(dmName(p.vg, name), false); err == nil && kind == "snapshot" && (len(status) == 0 || !strings.Contains(status[0], "/")) {
		return nil, errs.New(errs.Corrupt, op, r.Name, "the snapshot %s is lost: its area is full or unreadable (%q)", id, strings.Join(status, " ")).
			WithHint("delete it; take the next one with more room in the volume group")
	}
	d, err := p.source.open(ctx, op, name, driver.Ref{}, driver.Base)
	if err != nil {
		return nil, failed(op, r.Name, err)
	}
	return d, nil
}
