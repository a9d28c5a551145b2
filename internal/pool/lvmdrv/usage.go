package lvmdrv

import (
	"context"
	"fmt"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
)

// highWater is the share of a thin pool's metadata, in percent, above which
// nothing new is made: deletes need some, and a pool without any is read-only.
const highWater = 80

// Stat implements driver.Driver.
func (p *pool) Stat(ctx context.Context) (driver.Usage, error) {
	const op = "pool.stat"
	err := ctx.Err()
	if err == nil {
		err = p.present()
	}
	if err != nil {
		return driver.Usage{}, failed(op, p.String(), err)
	}
	if p.thinPool != "" {
		u, err := p.thinUsage()
		id := "vg:" + p.group.uuid + "/thin:" + p.poolUUID
		ailing, full := p.state(u)
		return driver.Usage{Identity: id, Storage: id, Capacity: u.dataTotal, Free: u.dataTotal - u.dataUsed,
			DataPercent: percent(u.dataUsed, u.dataTotal), MetadataPercent: percent(u.metaUsed, u.metaTotal), MetadataMark: highWater,
			Ailing: ailing, Full: full}, failed(op, p.String(), err)
	}
	g, err := p.groupNow(ctx, op)
	if err == nil && g.uuid != p.group.uuid {
		err = errs.New(errs.Unavailable, op, p.vg, "another volume group has the name %s", p.vg)
	}
	id := "vg:" + p.group.uuid
	return driver.Usage{Identity: id, Storage: id + "/logical", Capacity: g.size, Free: g.free}, failed(op, p.String(), err)
}

// state says what keeps a thin pool from serving, and from taking anything new.
func (s *source) state(u thinUsage) (ailing, full string) {
	if u.needsCheck || u.readOnly {
		ailing = fmt.Sprintf("the kernel has made the thin pool %s read-only: lvconvert --repair %s, while it is not active, mends its metadata", s, s)
	}
	switch meta := percent(u.metaUsed, u.metaTotal); {
	case u.outOfData:
		full = fmt.Sprintf("the thin pool %s has no room: %.1f %% of its data are used", s, percent(u.dataUsed, u.dataTotal))
	case meta >= highWater:
		full = fmt.Sprintf("%.1f %% of the metadata of thin pool %s are used, nothing new is made above %d %%", meta, s, highWater)
	}
	return ailing, full
}

func percent(n, of int64) float64 {
	if of <= 0 {
		return 0
	}
	return 100 * float64(n) / float64(of)
}

// room returns errs.NoSpace where a new volume must not be made.
func (p *pool) room(op string, s driver.Spec) error {
	if err := p.present(); err != nil {
		return err
	}
	staged, err := p.activeNames(stagedPrefix)
	if err != nil {
		return err
	}
	if have := p.recs.volumes() - p.recs.free() + len(staged); s.ID != "" && have >= p.caps.MaxVolumes {
		return errs.New(errs.NoSpace, op, string(s.ID), "the pool has %d volumes, and room in LVM's metadata or the records for %d", have, p.caps.MaxVolumes).
			WithHint("a volume group made with vgcreate --metadatasize 8m holds more")
	}
	if p.thinPool == "" {
		return nil
	}
	if err := p.healthy(op); err != nil {
		return err
	}
	if err := p.writable(op); err != nil || !s.Prealloc {
		return err // LVM makes nothing in a full one either
	}
	u, err := p.thinUsage()
	if err == nil && u.dataTotal-u.dataUsed < s.Size {
		err = errs.New(errs.NoSpace, op, string(s.ID), "the thin pool %s has %d bytes free, %d are needed", p, u.dataTotal-u.dataUsed, s.Size)
	}
	return err
}

// healthy returns errs.NoSpace for a thin pool that has no metadata to spare, or
// that the kernel has made read-only.
func (p *pool) healthy(op string) error {
	u, err := p.thinUsage()
	if err != nil {
		return err
	}
	full := percent(u.metaUsed, u.metaTotal)
	if u.readOnly || full >= highWater {
		return errs.New(errs.NoSpace, op, p.String(), "%.0f %% of the metadata of thin pool %s are used, nothing new is made above %d %%", full, p, highWater).
			WithHint("lvextend --poolmetadatasize +SIZE %s", p)
	}
	return nil
}

// writable returns errs.NoSpace for a thin pool that the kernel knows to be full:
// there a flush of a volume fails whether or not anything of it is lost (Linux,
// drivers/md/dm-thin.c: process_bio_read_only).
func (s *source) writable(op string) error {
	if s.thinPool == "" {
		return nil
	}
	u, err := s.thinUsage()
	if err == nil && (u.outOfData || u.readOnly) {
		err = errs.New(errs.NoSpace, op, s.String(), "the thin pool %s is full, %d of its %d bytes are used: it takes no writes until there is room", s, u.dataUsed, u.dataTotal).
			WithHint("delete volumes, or lvextend -L +SIZE %s", s)
	}
	return err
}

// Physical implements driver.Physical. Of a thin pool it is all that the thin
// volumes of others have not mapped: what several share cannot be told apart.
func (p *pool) Physical(ctx context.Context) (int64, error) {
	const op = "pool.physical"
	err := ctx.Err()
	var lvs map[string]lv
	if err == nil {
		lvs, err = p.list(ctx, op)
	}
	if err != nil {
		return 0, failed(op, p.String(), err)
	}
	var own, foreign int64
	for name, v := range lvs {
		ours := strings.HasPrefix(name, ownPrefix) || p.recs.has(name, v.uuid)
		switch {
		case p.thinPool != "" && v.pool == p.thinPool && !ours:
			foreign += p.allocated(name, v.size)
		case p.thinPool == "" && ours && v.pool == "":
			own += v.size
		}
	}
	if p.thinPool == "" {
		return own, nil
	}
	u, err := p.thinUsage()
	return max(0, u.dataUsed-foreign), failed(op, p.String(), err)
}

// Probe implements driver.Prober.
func (p *pool) Probe(ctx context.Context, r driver.Ref) error {
	const op = "volume.probe"
	if err := ctx.Err(); err != nil {
		return failed(op, subject(r), err)
	}
	d, err := p.device(ctx, op, r, map[bool]driver.Mode{false: driver.Base, true: driver.Staged}[r.Name == ""])
	if err != nil {
		return err
	}
	defer d.Close()
	name, err := p.lvName(op, r)
	if err == nil {
		err = imagelock.Probe(d.Descriptor())
	}
	if err == nil {
		err = p.alone(ctx, op, name, d.from)
	}
	return failed(op, subject(r), err)
}
