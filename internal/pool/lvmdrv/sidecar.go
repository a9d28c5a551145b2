package lvmdrv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func checkRecord(op, subject string, data []byte) error {
	if len(data) > driver.RecordSize {
		return errs.New(errs.Invalid, op, subject, "%d bytes, at most %d are a record", len(data), driver.RecordSize)
	}
	return nil
}

// present returns errs.Unavailable if the records volume that was opened is not
// where it was: the group was renamed, deactivated or replaced.
func (p *pool) present() error {
	m, _, err := p.look(p.recordsName())
	var st unix.Stat_t
	if err == nil {
		err = unix.Fstat(int(p.recs.f.Fd()), &st)
	}
	if err == nil && m.dev == st.Rdev {
		return nil
	}
	return errs.New(errs.Unavailable, "pool", p.String(), "the pool's storage %s is not where it was", p).
		WithHint("bring the volume group back, then tarn pool stop and tarn pool start")
}

// PutSidecar implements driver.Driver.
func (p *pool) PutSidecar(ctx context.Context, name string, data []byte) error {
	const op = "sidecar.put"
	err := errors.Join(checkRecord(op, name, data), ctx.Err())
	if err == nil && name == "" {
		if err = p.present(); err == nil {
			err = p.recs.putMarker(data)
		}
		return failed(op, p.String(), err)
	}
	if err != nil {
		return failed(op, name, err)
	}
	o, err := p.Describe(ctx, driver.Ref{Name: name})
	if err != nil {
		return failed(op, name, err)
	}
	unlock, err := p.lockNames(ctx)
	if err != nil {
		return failed(op, name, err)
	}
	defer unlock()
	rec, there := p.recs.get(name)
	if !there || rec.Object != o.BackendID { // an adopted volume, or a new one under an old name
		rec = record{Name: name, Object: o.BackendID}
	}
	rec.Data = bytes.Clone(data)
	return failed(op, name, p.recs.put(rec))
}

// Sidecar implements driver.Driver.
func (p *pool) Sidecar(ctx context.Context, name string) ([]byte, error) {
	const op = "sidecar.get"
	if name != "" {
		if err := p.checkName(op, name); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, failed(op, name, err)
	}
	if name == "" {
		err := p.present()
		var m []byte
		if err == nil {
			m, err = p.recs.marker()
		}
		return m, failed(op, p.String(), err)
	}
	rec, there := p.recs.get(name)
	if !there {
		return nil, errs.New(errs.NotFound, op, name, "there is no record of %s", name)
	}
	return bytes.Clone(rec.Data), nil
}

// Sidecars implements driver.Driver.
func (p *pool) Sidecars(ctx context.Context) iter.Seq2[driver.Record, error] {
	return func(yield func(driver.Record, error) bool) {
		err := ctx.Err()
		if err == nil {
			err = p.present()
		}
		if err != nil {
			yield(driver.Record{}, failed("pool.sidecars", p.String(), err))
			return
		}
		for _, r := range p.recs.all() {
			if r.Name[0] != '.' && !yield(driver.Record{Name: r.Name, Data: bytes.Clone(r.Data)}, nil) {
				return
			}
		}
	}
}

// Staged implements driver.Leftovers.
func (p *pool) Staged(ctx context.Context) iter.Seq2[disk.VolumeID, error] {
	return func(yield func(disk.VolumeID, error) bool) {
		lvs, err := p.list(ctx, "pool.staged")
		if err != nil {
			yield("", err)
			return
		}
		for _, name := range names(lvs) {
			if !isStaged(name) || lvs[name].pool != p.thinPool || strings.HasPrefix(name, partPrefix+"records") {
				continue
			}
			id, complete := strings.CutPrefix(name, stagedPrefix)
			if !complete {
				id = strings.TrimPrefix(name, partPrefix)
				if _, twice := lvs[stagedPrefix+id]; twice {
					continue
				}
			}
			if !yield(disk.VolumeID(id), nil) {
				return
			}
		}
	}
}

// SetAside implements driver.Leftovers: it renames the logical volume, and its
// record, to a name that List does not show. The record goes last: Publish and
// Delete know by the id in it whose it is.
func (p *pool) SetAside(ctx context.Context, r driver.Ref) error {
	const op = "volume.set_aside"
	name, err := p.lvName(op, r)
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
	lvs, err := p.list(ctx, op)
	if err != nil {
		return failed(op, subject(r), err)
	}
	if r.Name == "" {
		for _, from := range []string{partPrefix + string(r.ID), name} {
			if _, there := lvs[from]; there && err == nil {
				err = p.rename(ctx, from, p.asideName(lvs, string(r.ID)))
			}
		}
		return failed(op, subject(r), err)
	}
	return failed(op, subject(r), p.setAside(ctx, name, lvs))
}

// setAside sets a published volume aside, or the record that an earlier call or
// nobody left beside nothing.
func (p *pool) setAside(ctx context.Context, name string, lvs map[string]lv) error {
	to := p.asideName(lvs, name)
	if _, there := lvs[name]; there {
		if err := p.rename(ctx, name, to); err != nil {
			return err
		}
	} else if rec, there := p.recs.get(name); there {
		for _, v := range lvs {
			if v.uuid == rec.Object {
				to = v.name
			}
		}
	}
	return p.recs.rename(name, to)
}

// asideName returns a free name for what was name.
func (p *pool) asideName(lvs map[string]lv, name string) string {
	for n := 0; ; n++ {
		aside := fmt.Sprintf("%s%d-%.40s", asidePrefix, n, name)
		_, there := lvs[aside]
		if _, recorded := p.recs.get(aside); !there && !recorded {
			return aside
		}
	}
}
