package metamorph

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
)

// volume is one that is there, or a base that is gone for the history but must
// stay for its clones.
type volume struct {
	number    int
	ref       driver.Ref
	base      bool
	content   content
	snapshots map[int]*shot
	from      *volume // the base that a real clone reads from
	clones    int
	gone      bool

	dev  driver.Device // of an earlier operation, open still; or nil
	mode driver.Mode
}

// shot is a snapshot: the driver's own, or where it keeps none a volume with a
// copy of what there was.
type shot struct {
	id      disk.SnapshotID
	copy    *driver.Ref
	content content
}

// player plays a history on a pool.
type player struct {
	typ  driver.Type
	c    driver.Config
	d    driver.Driver
	caps driver.Capabilities
	vols map[int]*volume
	sum  hash.Hash
}

func (p *player) open(ctx context.Context) error {
	d, caps, err := p.typ.Open(ctx, p.c)
	if err == nil {
		p.d, p.caps = d, caps
	}
	return err
}

// play prepares a pool at c, plays ops and takes it all away again. It returns
// the digest of all that was read.
func play(ctx context.Context, typ driver.Type, c driver.Config, ops []op) (string, error) {
	p := &player{typ: typ, c: c, vols: map[int]*volume{}, sum: sha256.New()}
	if err := typ.Prepare(ctx, c, drivertest.Marker(c)); err != nil {
		return "", err
	}
	if err := p.open(ctx); err != nil {
		return "", err
	}
	defer func() {
		_ = p.shut(restart, nil)
		p.d.Close()
	}()
	for i, o := range ops {
		if err := p.do(ctx, o); err != nil {
			return "", failure(ops[:i+1], err)
		}
	}
	if err := p.end(ctx); err != nil {
		return "", failure(ops, fmt.Errorf("at the end: %w", err))
	}
	return hex.EncodeToString(p.sum.Sum(nil)), nil
}

const told = 25 // of the last operations

func failure(ops []op, err error) error {
	msg := ""
	for i, o := range ops[max(0, len(ops)-told):] {
		msg += fmt.Sprintf("\n%6d %v", max(0, len(ops)-told)+i, o)
	}
	return fmt.Errorf("operation %d: %w; the last operations were:%s", len(ops)-1, err, msg)
}

func (p *player) do(ctx context.Context, o op) error {
	v := p.vols[o.Volume]
	if err := p.shut(o.Kind, v); err != nil {
		return err
	}
	switch o.Kind {
	case create:
		return p.create(ctx, o)
	case clone:
		return p.clone(ctx, o)
	case write:
		return p.write(ctx, v, o)
	case snapshot:
		return p.snapshot(ctx, v, o.Snapshot)
	case deleteSnapshot:
		return p.deleteSnapshot(ctx, v, o.Snapshot)
	case grow, shrink:
		return p.resize(ctx, v, o.Size)
	case remove:
		return p.remove(ctx, v)
	case abandon:
		r := driver.Ref{ID: newID()}
		return errors.Join(p.stage(ctx, r.ID, o.Size, o.Pieces), p.d.Delete(ctx, r))
	case restart:
		return errors.Join(p.d.Close(), p.open(ctx))
	case check:
		return p.check(ctx, v, o.Keep)
	case checkSnapshot:
		return p.checkSnapshot(ctx, v, o.Snapshot)
	case list:
		return p.list(ctx)
	}
	return fmt.Errorf("no operation %q", o.Kind)
}

func newID() disk.VolumeID { return disk.VolumeID(drivertest.NewID()) }

// stage makes a staged volume with pieces written.
func (p *player) stage(ctx context.Context, id disk.VolumeID, size int64, pieces []piece) error {
	if err := p.d.Create(ctx, driver.Spec{ID: id, Size: size}); err != nil {
		return err
	}
	return p.with(ctx, driver.Ref{ID: id}, driver.Staged, func(d driver.Device) error { return put(d, pieces) })
}

// with opens r for do.
func (p *player) with(ctx context.Context, r driver.Ref, m driver.Mode, do func(driver.Device) error) error {
	d, err := p.d.Open(ctx, r, m)
	if err != nil {
		return err
	}
	return errors.Join(do(d), d.Close())
}

// on gives do a device of v that serves for m: the one that is open, or a new one,
// which stays open if keep says so.
func (p *player) on(ctx context.Context, v *volume, m driver.Mode, keep bool, do func(driver.Device) error) error {
	if v.dev == nil || v.mode != m && v.mode != driver.Write {
		err := v.close()
		if err == nil {
			v.dev, err = p.d.Open(ctx, v.ref, m)
		}
		if err != nil {
			v.dev = nil
			return err
		}
		v.mode = m
	}
	if err := do(v.dev); err != nil || keep {
		return err
	}
	return v.close()
}

func (v *volume) close() error {
	d := v.dev
	if v.dev = nil; d == nil {
		return nil
	}
	return d.Close()
}

// shut closes what must not be open while an operation of kind k is at work on v;
// v may be nil.
func (p *player) shut(k kind, v *volume) (err error) {
	switch k {
	case write, check, list, create, clone, abandon:
		return nil
	case restart:
		for _, other := range p.vols {
			err = errors.Join(err, other.close())
		}
		return err
	}
	return v.close()
}

func put(d driver.Device, pieces []piece) error {
	for _, x := range pieces {
		err := error(nil)
		if x.Seed == 0 {
			err = d.Zero(x.Offset, x.Length)
		} else {
			_, err = d.WriteAt(x.bytes(), x.Offset)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c content) put(pieces []piece) {
	for _, x := range pieces {
		c.write(x.bytes(), x.Offset)
	}
}

// publish names what is staged under id.
func (p *player) publish(ctx context.Context, id disk.VolumeID, name string, base bool) (driver.Ref, error) {
	o, err := p.d.Publish(ctx, id, name, base, []byte("sidecar of "+id))
	return driver.Ref{ID: id, Name: name, BackendID: o.BackendID}, err
}

func (p *player) create(ctx context.Context, o op) error {
	id := newID()
	err := p.stage(ctx, id, o.Size, o.Pieces)
	if err != nil {
		return err
	}
	v := &volume{number: o.Volume, base: o.Base, content: newContent(o.Size), snapshots: map[int]*shot{}}
	v.content.put(o.Pieces)
	p.vols[v.number] = v
	v.ref, err = p.publish(ctx, id, fmt.Sprintf("v%d.raw", v.number), v.base)
	return err
}

// clone makes a volume of a base: the driver's way, or by copying.
func (p *player) clone(ctx context.Context, o op) (err error) {
	base := p.vols[o.From]
	v := &volume{number: o.Volume, content: base.content.copy(), snapshots: map[int]*shot{}}
	id := newID()
	if c, ok := p.d.(driver.Cloner); ok && p.caps.Clone != driver.CloneCopy {
		err = c.Clone(ctx, driver.Spec{ID: id, Size: o.Size}, base.ref)
		v.from = base
		base.clones++
	} else {
		err = p.copyOf(ctx, id, o.Size, func() (driver.Device, error) { return p.d.Open(ctx, base.ref, driver.Base) })
	}
	if err == nil {
		err = p.with(ctx, driver.Ref{ID: id}, driver.Staged, func(d driver.Device) error { return put(d, o.Pieces) })
	}
	if err != nil {
		return err
	}
	v.content.resize(o.Size)
	v.content.put(o.Pieces)
	p.vols[v.number] = v
	v.ref, err = p.publish(ctx, id, fmt.Sprintf("v%d.raw", v.number), false)
	return err
}

// copyOf stages a volume of size bytes with what open gives, as far as it fits.
func (p *player) copyOf(ctx context.Context, id disk.VolumeID, size int64, open func() (driver.Device, error)) error {
	from, err := open()
	if err != nil {
		return err
	}
	defer from.Close()
	got, err := read(from)
	if err != nil {
		return err
	}
	if err := p.d.Create(ctx, driver.Spec{ID: id, Size: size}); err != nil {
		return err
	}
	return p.with(ctx, driver.Ref{ID: id}, driver.Staged, func(d driver.Device) error {
		for _, n := range slices.Sorted(maps.Keys(got.pages)) {
			if n*pageSize >= size {
				break
			}
			if _, err := d.WriteAt(got.page(n), n*pageSize); err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *player) write(ctx context.Context, v *volume, o op) error {
	v.content.put(o.Pieces)
	return p.on(ctx, v, driver.Write, o.Keep, func(d driver.Device) error {
		if err := put(d, o.Pieces); err != nil || !o.Sync {
			return err
		}
		return d.Sync()
	})
}

// resize sets v's size. What a driver cannot do is done another way: snapshots
// that keep a volume from growing become copies, and a volume that cannot
// shrink is replaced by a smaller one.
func (p *player) resize(ctx context.Context, v *volume, size int64) error {
	smaller := size < v.content.size
	replaced := smaller && !p.caps.Shrink
	if replaced || !p.caps.GrowFrozen {
		if err := p.thaw(ctx, v); err != nil {
			return err
		}
	}
	v.content.resize(size)
	if !replaced {
		return p.d.Resize(ctx, v.ref, size)
	}
	id, old := newID(), v.ref
	err := p.copyOf(ctx, id, size, func() (driver.Device, error) { return p.d.Open(ctx, old, driver.Read) })
	if err == nil {
		v.ref, err = p.publish(ctx, id, fmt.Sprintf("v%d-%s.raw", v.number, id), false)
	}
	if err == nil {
		err = p.d.Delete(ctx, old)
	}
	if err == nil {
		err = p.release(ctx, v)
	}
	return err
}

// release says that v reads from its base no longer, and deletes the base if it
// was kept for v alone.
func (p *player) release(ctx context.Context, v *volume) error {
	base := v.from
	if v.from = nil; base == nil {
		return nil
	}
	base.clones--
	if !base.gone || base.clones > 0 {
		return nil
	}
	delete(p.vols, base.number)
	return p.d.Delete(ctx, base.ref)
}

func (p *player) remove(ctx context.Context, v *volume) error {
	for _, n := range slices.Sorted(maps.Keys(v.snapshots)) {
		if err := p.deleteSnapshot(ctx, v, n); err != nil {
			return err
		}
	}
	if v.clones > 0 && p.caps.HeldBases {
		v.gone = true
		return nil
	}
	delete(p.vols, v.number)
	return errors.Join(p.d.Delete(ctx, v.ref), p.release(ctx, v))
}

// snapshotter returns the driver's, or nil where the pool keeps no snapshots.
func (p *player) snapshotter() driver.Snapshotter {
	if s, ok := p.d.(driver.Snapshotter); ok && p.caps.Snapshot != driver.SnapshotNone {
		return s
	}
	return nil
}

func (p *player) snapshot(ctx context.Context, v *volume, n int) error {
	s := &shot{content: v.content.copy()}
	v.snapshots[n] = s
	if own := p.snapshotter(); own != nil {
		s.id = disk.SnapshotID(drivertest.NewID())
		return own.Snapshot(ctx, v.ref, s.id)
	}
	return p.copySnapshot(ctx, n, s, func() (driver.Device, error) { return p.d.Open(ctx, v.ref, driver.Read) })
}

// copySnapshot makes s a volume with a copy of what open gives.
func (p *player) copySnapshot(ctx context.Context, n int, s *shot, open func() (driver.Device, error)) error {
	id := newID()
	err := p.copyOf(ctx, id, s.content.size, open)
	if err != nil {
		return err
	}
	r, err := p.publish(ctx, id, fmt.Sprintf("s%d.raw", n), true)
	s.copy = &r
	return err
}

// thaw makes copies of v's own snapshots.
func (p *player) thaw(ctx context.Context, v *volume) error {
	own := p.snapshotter()
	for _, n := range slices.Sorted(maps.Keys(v.snapshots)) {
		s := v.snapshots[n]
		if s.copy != nil {
			continue
		}
		err := p.copySnapshot(ctx, n, s, func() (driver.Device, error) { return own.OpenSnapshot(ctx, v.ref, s.id) })
		if err == nil {
			err = own.DeleteSnapshot(ctx, v.ref, s.id)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *player) deleteSnapshot(ctx context.Context, v *volume, n int) error {
	s := v.snapshots[n]
	delete(v.snapshots, n)
	if s.copy != nil {
		return p.d.Delete(ctx, *s.copy)
	}
	return p.snapshotter().DeleteSnapshot(ctx, v.ref, s.id)
}
