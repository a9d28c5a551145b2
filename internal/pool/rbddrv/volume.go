package rbddrv

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Create implements driver.Driver.
func (p *pool) Create(ctx context.Context, s driver.Spec) error {
	const op = "volume.create"
	if err := p.spec(ctx, op, s); err != nil {
		return err
	}
	if s.Prealloc {
		return p.preallocate(ctx, op, s)
	}
	staged := stagedName + string(s.ID)
	err := p.create(ctx, op, staged, s.Size)
	if errors.Is(err, errs.Exists) {
		err = p.madeBefore(ctx, op, s)
		if errors.Is(err, errs.NotFound) { // half of one, of a call that was killed
			if err = p.removeImage(ctx, op, staged); err == nil {
				err = p.create(ctx, op, staged, s.Size)
			}
		}
	}
	return p.absentPool(op, err)
}

// spec refuses what cannot be made.
func (p *pool) spec(ctx context.Context, op string, s driver.Spec) error {
	if err := checkID(op, string(s.ID)); err != nil {
		return err
	}
	switch {
	case s.Size == 0:
		return errs.New(errs.Unsupported, op, string(s.ID), "an RBD image has a size from the beginning")
	case s.Size < 0 || s.Size%sizeUnit != 0:
		return errs.New(errs.Invalid, op, string(s.ID), "%d bytes are no size of a volume: it is a multiple of %d", s.Size, sizeUnit)
	case s.Size > maxSize:
		return errs.New(errs.Invalid, op, string(s.ID), "%d bytes are more than an RBD image can have, %d", s.Size, int64(maxSize))
	}
	return p.here(ctx, op, string(s.ID))
}

// absentPool words what a missing pool is to those who make something in it.
func (p *pool) absentPool(op string, err error) error {
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Unavailable, op, p.where(), "the Ceph pool %s is not there: %w", p.where(), err)
	}
	return err
}

// madeBefore answers a Create of a volume that is staged already.
func (p *pool) madeBefore(ctx context.Context, op string, s driver.Spec) error {
	i, err := p.info(ctx, stagedName+string(s.ID))
	if err == nil && i.Size != s.Size {
		err = errs.New(errs.Exists, op, string(s.ID), "the volume exists with %d bytes, not %d", i.Size, s.Size)
	}
	return err
}

// preallocate makes a volume that has all of its space. Ceph lets a writer wait
// when it is full: what there is no room for is not begun. It takes as long as the
// writing of all of it, so that it can be cancelled.
func (p *pool) preallocate(ctx context.Context, op string, s driver.Spec) error {
	if err := p.madeBefore(ctx, op, s); !errors.Is(err, errs.NotFound) {
		return err
	}
	u, err := p.Stat(ctx)
	if err != nil {
		return failed(op, string(s.ID), err)
	}
	if s.Size > u.Free {
		return errs.New(errs.NoSpace, op, string(s.ID), "%d bytes are wanted and %d free in %s", s.Size, u.Free, p.where())
	}
	return p.complete(ctx, op, s, func(part string) error {
		_, err := p.rbd(ctx, op, part, call{words: words("create"), image: part, partial: true,
			options: []hostexec.Option{size(s.Size), features(), hostexec.Flag("--thick-provision"), quiet()}})
		return err
	})
}

// complete has make make an image, and gives it its staged name when it is
// complete. That an earlier call did it, or left something unfinished, which goes
// first, shows when a name is taken.
func (p *pool) complete(ctx context.Context, op string, s driver.Spec, make func(part string) error) error {
	part := partName + string(s.ID)
	err := make(part)
	if errors.Is(err, errs.Exists) {
		if err := p.madeBefore(ctx, op, s); !errors.Is(err, errs.NotFound) { // also where a rename was killed halfway
			return err
		}
		if err = p.removeImage(ctx, op, part); err == nil {
			err = make(part)
		}
	}
	if err == nil {
		err = p.rename(ctx, op, part, stagedName+string(s.ID))
	}
	if errors.Is(err, errs.Exists) {
		if made := p.madeBefore(ctx, op, s); !errors.Is(made, errs.NotFound) {
			return errors.Join(made, p.removeImage(ctx, op, part))
		}
	}
	if err != nil {
		_ = p.removeImage(context.WithoutCancel(ctx), op, part)
	}
	return err
}

// Publish implements driver.Driver. Every write was durable when it returned; so
// is the sidecar, and then the name.
func (p *pool) Publish(ctx context.Context, id disk.VolumeID, name string, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.publish"
	if err := errors.Join(checkID(op, string(id)), checkName(op, name), checkRecord(op, name, sidecar)); err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	staged, i, err := p.find(ctx, op, driver.Ref{ID: id})
	if errors.Is(err, errs.NotFound) {
		return p.published(ctx, op, id, name)
	}
	if err == nil {
		err = p.serving(ctx, op, name)
	}
	if err == nil && immutable {
		err = ignoring(errs.Exists, p.do(ctx, op, staged, words("snap", "create"), snap(baseSnap), quiet()))
	}
	if err == nil {
		err = p.setRecord(ctx, op, staged, i.ID, sidecarKey, sidecar)
	}
	if err == nil {
		err = p.name(ctx, op, staged, name)
	}
	if errors.Is(err, errs.Exists) {
		return driver.Object{}, errs.New(errs.Exists, op, name, "another image has the name: %w", err)
	}
	if err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	return p.object(ctx, op, name, i), nil
}

// name gives a staged image its name. Of two renames to one name at a time, Ceph
// lets both succeed, and one image is lost to sight; who serves the pool gives
// one name after the other.
func (p *pool) name(ctx context.Context, op, staged, name string) error {
	p.naming.Lock()
	defer p.naming.Unlock()
	return p.rename(ctx, op, staged, name)
}

// published answers a Publish that finds nothing staged: it is a repeat, or
// there is nothing to publish.
func (p *pool) published(ctx context.Context, op string, id disk.VolumeID, name string) (driver.Object, error) {
	o, err := p.describe(ctx, op, driver.Ref{ID: id, Name: name})
	if errors.Is(err, errs.NotFound) {
		return o, errs.New(errs.NotFound, op, name, "no volume %s is staged and none has the name", id)
	}
	if err != nil {
		return o, err
	}
	_, err = p.record(ctx, op, name, o.BackendID, sidecarKey)
	if errors.Is(err, errs.NotFound) {
		err = errs.New(errs.Exists, op, name, "a foreign image has the name")
	}
	return o, err
}

// Open implements driver.Driver.
func (p *pool) Open(ctx context.Context, r driver.Ref, m driver.Mode) (driver.Device, error) {
	const op = "volume.open"
	if (m == driver.Staged) != (r.Name == "") {
		return nil, errs.New(errs.Invalid, op, subject(r), "mode %d is not for this volume's stage", m)
	}
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return nil, p.absent(ctx, err)
	}
	d, err := p.open(ctx, op, name, "", i.ID, m)
	if err != nil {
		return nil, failed(op, subject(r), err) // not a nil *device in an interface
	}
	return d, nil
}

// open takes the locks of m and opens the image, or its snapshot. Whoever else has it open is
// looked for afterwards: one who came meanwhile is seen, too.
func (p *pool) open(ctx context.Context, op, name, snapshot, id string, m driver.Mode) (*device, error) {
	k := key{p.id, id}
	v := enter(k)
	defer v.leave(k)
	locked, writes := m == driver.Read || m == driver.Write, m == driver.Write || m == driver.Staged
	if locked {
		if err := v.free(op, name, writes); err != nil {
			return nil, err
		}
	}
	d, err := p.attach(ctx, op, name, snapshot, writes, patience)
	if err != nil {
		return nil, err
	}
	v.devices[d] = true
	if m != driver.Staged { // without locks, too: so its watcher is known
		err = p.alone(ctx, op, name, v)
	}
	if locked && err != nil {
		_ = d.end()
		delete(v.devices, d)
		return nil, err
	}
	if locked {
		v.readers++
	}
	if locked && writes {
		v.readers = -1
	}
	d.close = func() error {
		v := enter(k)
		defer v.leave(k)
		err := d.end()
		delete(v.devices, d)
		switch {
		case locked && writes:
			v.readers = 0
		case locked:
			v.readers--
		}
		return err
	}
	return d, nil
}

// Describe implements driver.Driver.
func (p *pool) Describe(ctx context.Context, r driver.Ref) (driver.Object, error) {
	return p.describe(ctx, "volume.describe", r)
}

func (p *pool) describe(ctx context.Context, op string, r driver.Ref) (driver.Object, error) {
	if err := checkName(op, r.Name); err != nil {
		return driver.Object{}, err
	}
	if err := p.here(ctx, op, r.Name); err != nil {
		return driver.Object{}, err
	}
	i, err := p.info(ctx, r.Name)
	if err != nil {
		return driver.Object{}, missing(op, r, err)
	}
	if err := sameImage(op, r, i.ID); err != nil {
		return driver.Object{}, err
	}
	return p.object(ctx, op, r.Name, i), nil
}

// Resize implements driver.Driver.
func (p *pool) Resize(ctx context.Context, r driver.Ref, n int64) error {
	const op = "volume.resize"
	if n <= 0 || n%sizeUnit != 0 || n > maxSize {
		return errs.New(errs.Invalid, op, subject(r), "%d bytes are no size of a volume", n)
	}
	name, i, err := p.find(ctx, op, r)
	if err != nil {
		return err
	}
	k := key{p.id, i.ID}
	v := enter(k)
	defer v.leave(k)
	if r.Name != "" {
		err := v.free(op, subject(r), true)
		if err == nil {
			err = p.alone(ctx, op, name, v)
		}
		if err != nil {
			return err
		}
	}
	if i.Size == n {
		return nil
	}
	if err := p.serving(ctx, op, subject(r)); err != nil {
		return err
	}
	return p.do(ctx, op, name, words("resize"), size(n), hostexec.Flag("--allow-shrink"), quiet())
}

// Delete implements driver.Driver.
func (p *pool) Delete(ctx context.Context, r driver.Ref) error {
	const op = "volume.delete"
	err := checkID(op, string(r.ID))
	if r.Name != "" && err == nil {
		err = checkName(op, r.Name)
	}
	if err == nil {
		err = p.here(ctx, op, subject(r))
	}
	if err != nil {
		return err
	}
	all, err := p.names(ctx, op)
	if err != nil {
		return ignoring(errs.NotFound, err) // the pool is gone, and all in it
	}
	err = p.serving(ctx, op, subject(r))
	staged := false
	for _, n := range []string{stagedName + string(r.ID), partName + string(r.ID)} {
		if all[n] && err == nil {
			staged, err = true, p.discard(ctx, op, n)
		}
	}
	if err == nil && !staged && all[r.Name] {
		err = p.unpublish(ctx, op, r)
	}
	return failed(op, subject(r), err)
}

// unpublish removes a published volume that the list has, unless it is foreign. A
// removal that was killed may have left nothing of it but its entry there.
func (p *pool) unpublish(ctx context.Context, op string, r driver.Ref) error {
	_, i, err := p.find(ctx, op, r)
	if errors.Is(err, errs.NotFound) {
		return p.removeImage(ctx, op, r.Name)
	}
	if err != nil {
		return err
	}
	if r.BackendID == "" {
		if _, err := p.record(ctx, op, r.Name, i.ID, sidecarKey); err != nil {
			return ignoring(errs.NotFound, err)
		}
	}
	if err := p.dropBase(ctx, op, r.Name, i); err != nil {
		return err
	}
	return p.removeImage(ctx, op, r.Name)
}

// discard removes an image of the driver's own.
func (p *pool) discard(ctx context.Context, op, name string) error {
	i, err := p.info(ctx, name)
	if err == nil {
		err = p.dropBase(ctx, op, name, i)
	}
	if err := ignoring(errs.NotFound, err); err != nil {
		return err
	}
	return p.removeImage(ctx, op, name)
}
