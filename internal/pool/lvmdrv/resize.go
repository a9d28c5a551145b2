package lvmdrv

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// growTag begins the mark of a volume whose end is not zeroed yet, which
// its former size ends.
const growTag = "tarn.grow."

// Resize implements driver.Driver.
func (p *pool) Resize(ctx context.Context, r driver.Ref, size int64) error {
	const op = "volume.resize"
	name, err := p.lvName(op, r)
	if err == nil {
		err = p.checkSize(op, subject(r), size)
	}
	if err == nil && size == 0 {
		err = errs.New(errs.Invalid, op, subject(r), "a logical volume has at least one extent")
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return failed(op, subject(r), err)
	}
	mode := driver.Write
	if r.Name == "" {
		mode = driver.Staged
	}
	d, err := p.device(ctx, op, r, mode)
	if err != nil {
		return err
	}
	defer d.Close()
	lvs, err := p.list(ctx, op) // with the tags
	if err == nil {
		err = p.resizable(op, lvs[name], size)
	}
	if err == nil {
		err = p.resize(ctx, d, lvs[name], size)
	}
	return failed(op, subject(r), err)
}

// resizable refuses what the technology cannot do, or not now.
func (p *pool) resizable(op string, v lv, size int64) error {
	if p.thinPool != "" {
		if size > v.size {
			return p.healthy(op)
		}
		return nil
	}
	ids, err := p.snapshotsOf(v)
	if err == nil && len(ids) > 0 && v.size != size {
		err = errs.New(errs.Conflict, op, v.name, "the volume has %d snapshots: LVM grows no thick volume that has some", len(ids)).
			WithHint("delete its snapshots first")
	}
	return err
}

// resize zeroes what a grow adds: a thick volume's held another volume's bytes, a
// thin one's what a shrink cut off, which stays mapped so that a shrink is one act
// of LVM's. A tag says so until it is done: a repeat sees the new size, but not
// whether.
func (p *pool) resize(ctx context.Context, d *device, v lv, size int64) error {
	clean, tag, err := cleanEnd(v)
	if err != nil {
		return err
	}
	dirty := size
	if p.thinPool != "" {
		dirty = min(size, p.mappedEnd(v.name))
	}
	if dirty > clean && tag == "" {
		tag = growTag + strconv.FormatInt(clean, 10)
		if err := p.tag(ctx, v.name, tag); err != nil {
			return err
		}
	}
	if err := d.Sync(); err != nil {
		return err
	}
	if size != v.size {
		if err := p.resizeLV(ctx, v, size); err != nil {
			if size > v.size && v.size == clean && tag != "" && !errors.Is(err, faults.ErrCrash) {
				_ = p.untag(ctx, v.name, tag) // nothing was added
			}
			return err
		}
	}
	if dirty > clean {
		if err := p.zeroGrown(ctx, v.name, clean, dirty); err != nil {
			return err
		}
	}
	if tag == "" {
		return nil
	}
	return p.untag(ctx, v.name, tag)
}

// cleanEnd returns up to where v holds nothing but its own bytes, and the tag
// that says so. One that an interrupted resize left beyond the volume's end says
// nothing of what is there.
func cleanEnd(v lv) (clean int64, tag string, err error) {
	clean = v.size
	for _, t := range v.tags {
		if from, ok := strings.CutPrefix(t, growTag); ok {
			n, err := strconv.ParseInt(from, 10, 64)
			if err != nil {
				return 0, "", errs.New(errs.Corrupt, "volume.resize", v.name, "the logical volume has the tag %q", t)
			}
			clean, tag = min(n, v.size), t
		}
	}
	return clean, tag, nil
}

// zeroGrown zeroes durably what was added to a logical volume.
func (p *pool) zeroGrown(ctx context.Context, name string, from, to int64) error {
	d, err := p.source.open(ctx, "volume.resize", name, driver.Ref{}, driver.Staged)
	if err != nil {
		return err
	}
	if err = d.Zero(from, to-from); err == nil {
		err = d.Sync()
	}
	return errors.Join(err, d.Close())
}
