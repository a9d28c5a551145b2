package lvmdrv

import (
	"context"
	"errors"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// recordsSize is how large the records volume of a group is: for 20 volumes in a
// small one, for as many as the group's metadata can hold in a usual one.
func recordsSize(g group) int64 {
	size := (g.mdaSize/2/perVolume + 1) * 2 * copySize
	switch {
	case g.size < 512<<20:
		size = 1 << 20
	case g.size < 4<<30:
		size = 8 << 20
	}
	return roundUp(size, g.extent)
}

// prepare implements driver.Type.Prepare. The records volume gets its name,
// which makes the group or thin pool a pool, when it is whole.
func (t technology) prepare(ctx context.Context, c driver.Config, marker []byte) error {
	const op = "pool.prepare"
	s, lvs, err := t.find(ctx, op, c)
	if err != nil {
		return err
	}
	if !isMarkerOf(marker, c.ID) || len(marker) > driver.RecordSize {
		return errs.New(errs.Internal, op, s.String(), "the marker (%d bytes) does not name pool %q", len(marker), c.ID)
	}
	if rec, there := lvs[s.recordsName()]; there {
		return failed(op, s.String(), s.prepared(ctx, op, c, rec))
	}
	part := partPrefix + strings.TrimPrefix(s.recordsName(), ownPrefix)
	if _, there := lvs[part]; there {
		if err := s.removeLV(ctx, part); err != nil {
			return failed(op, s.String(), err)
		}
	}
	size := recordsSize(s.group)
	err = s.change(ctx, size, []hostexec.Option{hostexec.Flag("lvcreate"), hostexec.Flag("--yes"), hostexec.OptionValue("--name", hostexec.Text(part)),
		hostexec.OptionValue("--wipesignatures", hostexec.Word("n")), hostexec.OptionValue("--zero", hostexec.Word("n")), sizeOption(size)}, s.vg)
	if err != nil {
		return failed(op, s.String(), err)
	}
	err = s.writeRecords(ctx, part, marker)
	if err == nil {
		err = s.rename(ctx, part, s.recordsName())
	}
	if err != nil && !errors.Is(err, faults.ErrCrash) {
		_ = s.removeLV(ctx, part)
	}
	return failed(op, s.String(), err)
}

// prepared answers a Prepare of what is a pool already.
func (s *source) prepared(ctx context.Context, op string, c driver.Config, rec lv) error {
	if err := s.activate(ctx, rec); err != nil {
		return err
	}
	recs, err := openRecords(s.node(rec.name))
	if err != nil {
		return err
	}
	return errors.Join(s.mine(op, c, recs), recs.close())
}

// writeRecords makes the logical volume name a records volume: what was there
// before must not be taken for records.
func (s *source) writeRecords(ctx context.Context, name string, marker []byte) error {
	d, err := s.open(ctx, "pool.prepare", name, driver.Ref{}, driver.Staged)
	if err != nil {
		return err
	}
	err = errors.Join(d.zeroOut(0, d.Size()), d.Close())
	if err != nil {
		return err
	}
	recs, err := openRecords(s.node(name))
	if err != nil {
		return err
	}
	return errors.Join(recs.putMarker(marker), recs.close())
}

// marker implements driver.Type.Marker.
func (t technology) marker(ctx context.Context, c driver.Config) ([]byte, error) {
	const op = "pool.marker"
	s, lvs, err := t.find(ctx, op, c)
	if err != nil {
		return nil, err
	}
	rec, there := lvs[s.recordsName()]
	if !there {
		return nil, errs.New(errs.NotFound, op, s.String(), "%s is no pool: it has no logical volume %s", s, s.recordsName())
	}
	if err := s.activate(ctx, rec); err != nil {
		return nil, failed(op, s.String(), err)
	}
	recs, err := openRecords(s.node(rec.name))
	if err != nil {
		return nil, failed(op, s.String(), err)
	}
	defer recs.close()
	m, err := recs.marker()
	return m, failed(op, s.String(), err)
}

// remove implements driver.Type.Remove. The records go last. A group or thin
// pool that is gone has nothing of tarn's.
func (t technology) remove(ctx context.Context, c driver.Config) error {
	const op = "pool.remove"
	s, lvs, err := t.find(ctx, op, c)
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	if rec, there := lvs[s.recordsName()]; there {
		if err := s.activate(ctx, rec); err != nil {
			return failed(op, s.String(), err)
		}
		if err := s.empty(ctx, op, c, lvs); err != nil {
			return failed(op, s.String(), err)
		}
	}
	for _, name := range names(lvs) {
		if name == partPrefix+strings.TrimPrefix(s.recordsName(), ownPrefix) || name == s.recordsName() {
			if err := s.removeLV(ctx, name); err != nil {
				return failed(op, s.String(), err)
			}
		}
	}
	return nil
}

// empty takes what is staged out of a pool that has no volumes and that nobody
// serves.
func (s *source) empty(ctx context.Context, op string, c driver.Config, lvs map[string]lv) error {
	recs, err := openRecords(s.node(s.recordsName()))
	if err != nil {
		return err
	}
	defer recs.close()
	if err := s.mine(op, c, recs); err != nil {
		return err
	}
	if err := recs.claim(op, s.String()); err != nil {
		return err
	}
	for _, r := range recs.all() {
		if v, there := lvs[r.Name]; there && v.uuid == r.Object && !strings.HasPrefix(r.Name, asidePrefix) {
			return errs.New(errs.Conflict, op, s.String(), "the pool holds the volume %s", r.Name)
		}
	}
	for _, name := range names(lvs) {
		if isStaged(name) && lvs[name].pool == s.thinPool && !strings.HasPrefix(name, partPrefix+"records") {
			if err := s.removeLV(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}
