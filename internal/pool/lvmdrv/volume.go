package lvmdrv

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// tagOf is the mark of tarn on a logical volume. The generation is less than
// that of every record of the volume.
func (p *pool) tagOf(id disk.VolumeID) string {
	return fmt.Sprintf("tarn.v1.%s.%d", id, p.recs.next())
}

// Create implements driver.Driver.
func (p *pool) Create(ctx context.Context, s driver.Spec) error {
	const op = "volume.create"
	if s.Size == 0 {
		return errs.New(errs.Unsupported, op, string(s.ID), "a logical volume does not grow as it is written")
	}
	zero := p.thinPool == "" || s.Prealloc
	return p.stage(ctx, op, s, !zero, func(name string) error {
		err := p.makeLV(ctx, name, s.Size, p.tagOf(s.ID))
		if err == nil && zero {
			err = p.zero(ctx, name, 0, s.Size)
		}
		return err
	})
}

// Clone implements driver.Cloner.
func (p *pool) Clone(ctx context.Context, s driver.Spec, base driver.Ref) error {
	const op = "volume.clone"
	if err := ctx.Err(); err != nil {
		return failed(op, string(s.ID), err)
	}
	if p.caps.Clone == driver.CloneCopy {
		return errs.New(errs.Unsupported, op, string(s.ID), "thick volumes share nothing")
	}
	from, err := p.device(ctx, op, base, driver.Base)
	if err != nil {
		return err
	}
	defer from.Close()
	if s.Size < from.Size() {
		return errs.New(errs.Invalid, op, string(s.ID), "%d bytes are fewer than the base's %d", s.Size, from.Size())
	}
	return p.stage(ctx, op, s, s.Size == from.Size(), func(name string) error {
		if err := from.Sync(); err != nil {
			return err
		}
		if err := p.snapLV(ctx, name, base.Name, "rw", hostexec.OptionValue("--addtag", hostexec.Text(p.tagOf(s.ID)))); err != nil {
			return err
		}
		if s.Size == from.Size() {
			return nil
		}
		if err := p.resizeLV(ctx, lv{name: name, size: from.Size()}, s.Size); err != nil {
			return err
		}
		if dirty := min(s.Size, p.mappedEnd(name)); dirty > from.Size() { // the base was larger once
			return p.zeroGrown(ctx, name, from.Size(), dirty)
		}
		return nil
	})
}

// snapLV makes a thin snapshot of the logical volume of.
func (p *pool) snapLV(ctx context.Context, name, of, permission string, more ...hostexec.Option) error {
	options := append([]hostexec.Option{hostexec.Flag("lvcreate"), hostexec.Flag("--yes"), hostexec.Flag("--snapshot"),
		hostexec.OptionValue("--name", hostexec.Text(name)), hostexec.OptionValue("--setactivationskip", hostexec.Word("n")),
		hostexec.OptionValue("--permission", hostexec.Text(permission))}, more...)
	return p.change(ctx, 0, options, p.path(of))
}

// stage makes a staged volume. Where make does it in more than one step that
// happens under a name for what is not complete, so that a half-made one is never
// taken for one that Create returned nil for.
func (p *pool) stage(ctx context.Context, op string, s driver.Spec, atOnce bool, make func(name string) error) error {
	id := string(s.ID)
	if err := errors.Join(p.checkID(op, id), p.checkSize(op, id, s.Size), ctx.Err()); err != nil {
		return failed(op, id, err)
	}
	if v, there := p.active(stagedPrefix + id); there {
		return madeBefore(op, s, v)
	}
	if err := p.room(op, s); err != nil {
		return failed(op, id, err)
	}
	part := partPrefix + id
	if _, there := p.active(part); there {
		if err := p.removeLV(ctx, part); err != nil {
			return failed(op, id, err)
		}
	}
	err := p.makeStaged(ctx, id, atOnce, make)
	var exit *hostexec.Exit
	if !errors.As(err, &exit) {
		return failed(op, id, err)
	}
	// It may be there, and inactive.
	lvs, lerr := p.list(ctx, op)
	v, there := lvs[stagedPrefix+id]
	if lerr != nil || !there {
		return failed(op, id, err)
	}
	if err := p.activate(ctx, v); err != nil {
		return failed(op, id, err)
	}
	return madeBefore(op, s, v)
}

// madeBefore answers a Create of a volume that is staged already.
func madeBefore(op string, s driver.Spec, v lv) error {
	if v.size != s.Size {
		return errs.New(errs.Exists, op, string(s.ID), "the volume exists with %d bytes, not %d", v.size, s.Size)
	}
	return nil
}

func (p *pool) makeStaged(ctx context.Context, id string, atOnce bool, make func(name string) error) error {
	if atOnce {
		return make(stagedPrefix + id)
	}
	err := make(partPrefix + id)
	if err == nil {
		err = p.rename(ctx, partPrefix+id, stagedPrefix+id)
	}
	if err != nil && !errors.Is(err, faults.ErrCrash) {
		p.dropPart(ctx, partPrefix+id)
	}
	return err
}

// dropPart removes what a failed Create has made, if anything.
func (p *pool) dropPart(ctx context.Context, part string) {
	if _, there := p.active(part); there {
		_ = p.removeLV(ctx, part)
	}
}

// zero writes zeroes into [from, to) of a logical volume that nobody else uses.
func (p *pool) zero(ctx context.Context, name string, from, to int64) error {
	d, err := p.source.open(ctx, "volume.zero", name, driver.Ref{}, driver.Staged)
	if err != nil {
		return err
	}
	err = d.zeroOut(from, to)
	if err == nil && p.thinPool != "" { // it may have had no room for them
		err = d.Sync()
	}
	return errors.Join(err, d.Close())
}

// Publish implements driver.Driver: the volume's bytes, its record, its name.
func (p *pool) Publish(ctx context.Context, id disk.VolumeID, name string, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.publish"
	err := errors.Join(p.checkID(op, string(id)), p.checkName(op, name), checkRecord(op, name, sidecar), ctx.Err())
	if err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	staged, there := p.active(stagedPrefix + string(id))
	if !there {
		return p.published(ctx, op, id, name)
	}
	if _, taken := p.active(name); taken {
		return driver.Object{}, errs.New(errs.Exists, op, name, "another logical volume has the name")
	}
	if err = p.writable(op); err == nil {
		err = p.settle(ctx, op, id, staged)
	}
	if err == nil && immutable {
		err = p.freeze(ctx, staged.name)
	}
	if err == nil {
		err = p.name(ctx, op, staged, record{Name: name, ID: id, Object: staged.uuid, Data: sidecar})
	}
	if err == nil {
		err = p.give(name)
	}
	if err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	return driver.Object{Name: name, BackendID: staged.uuid, Size: staged.size, Allocated: p.allocated(name, staged.size)}, nil
}

// published answers a Publish that finds nothing staged: it is a repeat, or
// there is nothing to publish.
func (p *pool) published(ctx context.Context, op string, id disk.VolumeID, name string) (driver.Object, error) {
	lvs, err := p.list(ctx, op)
	v, there := lvs[name]
	switch {
	case err != nil:
		return driver.Object{}, failed(op, name, err)
	case !there:
		return driver.Object{}, errs.New(errs.NotFound, op, name, "no volume %s is staged and none has the name", id)
	case !p.recs.has(name, v.uuid):
		return driver.Object{}, errs.New(errs.Exists, op, name, "a foreign logical volume has the name")
	}
	if v.active {
		err = p.give(name)
	}
	return p.object(v), failed(op, name, err)
}

// settle makes a staged volume's bytes durable. One whose sync failed is
// removed: nobody can know what is in it.
func (p *pool) settle(ctx context.Context, op string, id disk.VolumeID, staged lv) error {
	d, err := p.source.open(ctx, op, staged.name, driver.Ref{}, driver.Base)
	if err != nil {
		return err
	}
	lost := d.Sync()
	if err := d.Close(); err != nil && lost == nil {
		return err
	}
	if lost != nil && !errors.Is(lost, faults.ErrCrash) {
		_ = p.removeLV(ctx, staged.name)
	}
	if lost != nil {
		return errs.New(blkio.KindOf(lost), "volume.sync", string(id), "syncing failed and the volume is lost: %w", lost)
	}
	return nil
}

// freeze makes a logical volume read-only for everybody.
func (p *pool) freeze(ctx context.Context, name string) error {
	m, _, err := p.look(name)
	if err == nil && !readOnly(m.dev) { // else an earlier Publish did
		err = p.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.Flag("--yes"), hostexec.OptionValue("--permission", hostexec.Word("r"))}, p.path(name))
	}
	return err
}

// name stores the record of a staged volume, then gives it its name, so that at
// no moment a volume is without its record.
func (p *pool) name(ctx context.Context, op string, staged lv, rec record) error {
	unlock, err := p.lockNames(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, taken := p.active(rec.Name); taken { // else its record is of a volume that is gone
		return errs.New(errs.Exists, op, rec.Name, "another logical volume has the name")
	}
	if err := p.recs.put(rec); err != nil {
		return err
	}
	err = p.rename(ctx, staged.name, rec.Name)
	if err == nil || errors.Is(err, faults.ErrCrash) {
		return err
	}
	lvs, lerr := p.list(ctx, op)
	v, there := lvs[rec.Name]
	switch {
	case lerr != nil:
		return err // the record stays: it may be that of a volume
	case v.uuid == staged.uuid:
		return p.rehang(ctx, op, v)
	case there:
		err = errs.New(errs.Exists, op, rec.Name, "another logical volume, which is not active, has the name")
	}
	_ = p.recs.remove(rec.Name)
	return err
}

// rehang has the device of a logical volume take its name, which it lacks where
// LVM was stopped between writing the name down and telling the kernel.
func (p *pool) rehang(ctx context.Context, op string, v lv) error {
	err := p.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.Flag("--refresh")}, p.path(v.name))
	if err != nil {
		return err
	}
	if at, there := p.active(v.name); !there || at.uuid != v.uuid {
		return errs.New(errs.Unavailable, op, v.name, "the device of the logical volume %s does not have its name", p.path(v.name)).
			WithHint("lvchange --activate n %s, then lvchange --activate y %s", p.path(v.name), p.path(v.name))
	}
	return nil
}

// Open implements driver.Driver.
func (p *pool) Open(ctx context.Context, r driver.Ref, m driver.Mode) (driver.Device, error) {
	const op = "volume.open"
	if err := ctx.Err(); err != nil {
		return nil, failed(op, subject(r), err)
	}
	if (m == driver.Staged) != (r.Name == "") {
		return nil, errs.New(errs.Invalid, op, subject(r), "mode %d is not for this volume's stage", m)
	}
	d, err := p.device(ctx, op, r, m)
	if err != nil {
		return nil, err // not a nil *device in an interface
	}
	return d, nil
}

// device opens r, active or not.
func (p *pool) device(ctx context.Context, op string, r driver.Ref, m driver.Mode) (*device, error) {
	name, err := p.lvName(op, r)
	if err != nil {
		return nil, err
	}
	d, err := p.source.open(ctx, op, name, r, m)
	if !isNotExist(err) {
		return d, failed(op, subject(r), err)
	}
	v, err := p.find(ctx, op, r, name)
	if err == nil {
		err = p.activate(ctx, v)
	}
	if err == nil && p.recs.has(name, v.uuid) {
		err = p.give(name)
	}
	if err == nil {
		d, err = p.source.open(ctx, op, name, r, m)
	}
	if err != nil {
		return nil, failed(op, subject(r), err)
	}
	return d, nil
}

// find asks LVM for r's logical volume.
func (p *pool) find(ctx context.Context, op string, r driver.Ref, name string) (lv, error) {
	lvs, err := p.list(ctx, op)
	if err != nil {
		return lv{}, err
	}
	v, there := lvs[name]
	if !there {
		return v, errs.New(errs.NotFound, op, subject(r), "the volume is not in the pool: %s has no logical volume %s", p.vg, name)
	}
	return v, sameObject(op, r, v.uuid)
}

// sameObject refuses another logical volume under the volume's name.
func sameObject(op string, r driver.Ref, id string) error {
	if r.BackendID != "" && id != r.BackendID {
		return errs.New(errs.Corrupt, op, subject(r), "another logical volume has the volume's name: it is %s, the record says %s", id, r.BackendID).
			WithHint("see what it is, and rename it if it is not needed there")
	}
	return nil
}

// Describe implements driver.Driver.
func (p *pool) Describe(ctx context.Context, r driver.Ref) (driver.Object, error) {
	const op = "volume.describe"
	err := p.checkName(op, r.Name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return driver.Object{}, failed(op, subject(r), err)
	}
	if v, there := p.active(r.Name); there {
		return driver.Object{Name: r.Name, BackendID: v.uuid, Size: v.size, Allocated: p.allocated(r.Name, v.size)}, sameObject(op, r, v.uuid)
	}
	v, err := p.find(ctx, op, r, r.Name)
	if errors.Is(err, errAbsent) {
		err = errs.New(errs.NotFound, op, r.Name, "the volume is not there: %w", err)
	}
	if err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	return p.object(v), nil
}

func (p *pool) object(v lv) driver.Object {
	if v.pool != p.thinPool || v.segment == "thin-pool" {
		return driver.Object{Name: v.name} // cannot be a volume here
	}
	return driver.Object{Name: v.name, BackendID: v.uuid, Size: v.size, Allocated: p.allocated(v.name, v.size)}
}

// Delete implements driver.Driver. The volume goes before its record, because a
// volume without one would be foreign and stay for ever.
func (p *pool) Delete(ctx context.Context, r driver.Ref) error {
	const op = "volume.delete"
	err := p.checkID(op, string(r.ID))
	if r.Name != "" && err == nil {
		err = p.checkName(op, r.Name)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return failed(op, subject(r), err)
	}
	unlock, err := p.lockNames(ctx)
	if err != nil {
		return failed(op, subject(r), err)
	}
	defer unlock()
	if r.Name != "" {
		err = p.unname(ctx, op, r)
	}
	for _, prefix := range []string{partPrefix, stagedPrefix} { // the complete one last: see unname
		if _, there := p.active(prefix + string(r.ID)); there && err == nil {
			err = p.removeLV(ctx, prefix+string(r.ID))
		}
	}
	return failed(op, subject(r), err)
}

// unname removes the published volume and its record. A volume that is still
// staged is not published: then only the record of an interrupted Publish can be
// its own. p.naming is held.
func (p *pool) unname(ctx context.Context, op string, r driver.Ref) error {
	own, staged := p.active(stagedPrefix + string(r.ID))
	rec, recorded := p.recs.get(r.Name)
	v, there := p.active(r.Name)
	if !there && (recorded || r.BackendID != "") { // or inactive
		lvs, err := p.list(ctx, op)
		if errors.Is(err, errAbsent) {
			return nil // nothing is left of it
		}
		if err != nil {
			return err
		}
		v, there = lvs[r.Name]
	}
	if there && staged && own.uuid == v.uuid { // LVM was stopped while it published it
		if err := p.rehang(ctx, op, v); err != nil {
			return err
		}
		staged = false
	}
	if there {
		if staged || r.BackendID == "" && !(recorded && rec.Object == v.uuid) {
			return nil // another's, or foreign
		}
		if err := sameObject(op, r, v.uuid); err != nil {
			return err
		}
		ids, err := p.snapshotsOf(v)
		if err == nil && len(ids) > 0 {
			err = errs.New(errs.Conflict, op, r.Name, "the volume has %d snapshots", len(ids)).WithHint("delete its snapshots first")
		}
		if err == nil {
			err = p.unfollowed(ctx, op, r.Name)
		}
		if err == nil {
			err = p.removeLV(ctx, r.Name)
		}
		if err != nil {
			return err
		}
	}
	return p.recs.remove(r.Name)
}

// unfollowed refuses to remove a volume that LVM would remove others with: the
// snapshots of a thick one, whosever they are, and thin ones that lie over it.
// LVM lets them lie over nothing that is writable, and the kernel knows the
// snapshots of what is active.
func (p *pool) unfollowed(ctx context.Context, op, name string) error {
	if m, _, err := p.look(name); err == nil && !readOnly(m.dev) {
		if kind, _, err := target(dmName(p.vg, name), true); err == nil && slices.Contains([]string{"linear", "striped", "thin"}, kind) {
			return nil
		}
	}
	lvs, err := p.list(ctx, op)
	if err != nil {
		return err
	}
	for _, n := range names(lvs) {
		if v := lvs[n]; v.origin == name && (v.pool == "" || v.pool != lvs[name].pool) {
			return errs.New(errs.Conflict, op, name, "the logical volume %s depends on the volume and would go with it", p.path(n)).
				WithHint("lvremove %s, if nobody needs it", p.path(n))
		}
	}
	return nil
}

// List implements driver.Driver: the thin volumes of the thin pool, or
// everything in the group. Of what cannot be a volume, only the name is told.
func (p *pool) List(ctx context.Context) iter.Seq2[driver.Object, error] {
	return func(yield func(driver.Object, error) bool) {
		err := ctx.Err()
		var lvs map[string]lv
		if err == nil {
			lvs, err = p.list(ctx, "pool.list")
		}
		if err != nil {
			yield(driver.Object{}, failed("pool.list", p.String(), err))
			return
		}
		for _, name := range names(lvs) {
			if name[0] == '.' || p.thinPool != "" && lvs[name].pool != p.thinPool {
				continue
			}
			if !yield(p.object(lvs[name]), nil) {
				return
			}
		}
	}
}
