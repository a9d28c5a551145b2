package lvmdrv

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

var _ driver.Adopter = (*pool)(nil)

const tagPrefix = "tarn.v1."

// Candidate implements driver.Adopter. It activates the logical volume, as opening
// it does.
func (p *pool) Candidate(ctx context.Context, name string) (*driver.Candidate, error) {
	const op = "volume.candidate"
	if err := p.checkName(op, name); err != nil {
		return nil, err
	}
	v, err := p.find(ctx, op, driver.Ref{Name: name}, name)
	if err == nil && p.recs.has(name, v.uuid) {
		err = errs.New(errs.Exists, op, name, "%s has a record of tarn's: it is a volume, or was one", name).WithHint("tarn doctor says what it is")
	}
	if err == nil {
		err = p.adoptable(ctx, op, v)
	}
	if err != nil {
		return nil, failed(op, name, err)
	}
	d, err := p.device(ctx, op, driver.Ref{Name: name, BackendID: v.uuid}, driver.Read)
	if err != nil {
		return nil, err
	}
	return &driver.Candidate{Device: d, Object: p.object(v)}, nil
}

// adoptable refuses a logical volume of another kind than the pool's, and one that
// others hang together with.
func (p *pool) adoptable(ctx context.Context, op string, v lv) error {
	kinds := []string{"linear", "striped"}
	if p.thinPool != "" {
		kinds = []string{"thin"}
	}
	if v.pool != p.thinPool || !slices.Contains(kinds, v.segment) {
		return errs.New(errs.Unsafe, op, v.name, "the logical volume is of the kind %s, volumes of this pool are %s", v.segment, strings.Join(kinds, " or "))
	}
	if v.origin != "" {
		lvs, err := p.list(ctx, op)
		if err != nil {
			return err
		}
		if p.thinPool == "" || lvs[v.origin].pool != p.thinPool {
			return errs.New(errs.Conflict, op, v.name, "the logical volume lies over %s", v.origin)
		}
	}
	ids, err := p.snapshotsOf(v)
	if err == nil && len(ids) > 0 {
		err = errs.New(errs.Conflict, op, v.name, "the logical volume has %d snapshots of tarn's", len(ids))
	}
	if err == nil {
		err = p.unfollowed(ctx, op, v.name)
	}
	return err
}

// Adopt implements driver.Adopter: the record first, so that the logical volume is
// tarn's from the moment it is changed.
func (p *pool) Adopt(ctx context.Context, r driver.Ref, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.adopt"
	err := errors.Join(p.checkID(op, string(r.ID)), p.checkName(op, r.Name), checkRecord(op, r.Name, sidecar), ctx.Err())
	if err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	unlock, err := p.lockNames(ctx)
	if err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	defer unlock()
	v, err := p.find(ctx, op, r, r.Name)
	if err == nil && !p.recs.has(v.name, v.uuid) {
		if err = p.room(op, driver.Spec{ID: r.ID}); err == nil {
			err = p.unused(ctx, op, v)
		}
	}
	if err == nil {
		err = p.recs.put(record{Name: v.name, ID: r.ID, Object: v.uuid, Data: bytes.Clone(sidecar)})
	}
	if err == nil {
		err = p.activate(ctx, v)
	}
	if err == nil {
		err = p.dress(ctx, r, v, immutable)
	}
	if err == nil {
		err = p.give(v.name)
	}
	if err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	return p.object(v), nil
}

// unused refuses a logical volume that could not be adopted, or that anybody has
// open.
func (p *pool) unused(ctx context.Context, op string, v lv) error {
	if err := p.adoptable(ctx, op, v); err != nil {
		return err
	}
	d, err := p.device(ctx, op, driver.Ref{Name: v.name, BackendID: v.uuid}, driver.Read)
	if err != nil {
		return err
	}
	return d.Close()
}

// dress gives a logical volume the tag and the permission of a volume that was
// published.
func (p *pool) dress(ctx context.Context, r driver.Ref, v lv, immutable bool) error {
	if !slices.ContainsFunc(v.tags, func(t string) bool { return strings.HasPrefix(t, tagPrefix+string(r.ID)+".") }) {
		if err := p.tag(ctx, v.name, p.tagOf(r.ID)); err != nil {
			return err
		}
	}
	if immutable {
		return p.freeze(ctx, v.name)
	}
	m, _, err := p.look(v.name)
	if err != nil || !readOnly(m.dev) {
		return err
	}
	return p.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.Flag("--yes"), hostexec.OptionValue("--permission", hostexec.Word("rw"))}, p.path(v.name))
}

// Disown implements driver.Adopter: the tags, then the record.
func (p *pool) Disown(ctx context.Context, r driver.Ref) error {
	const op = "volume.disown"
	err := p.checkName(op, r.Name)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return failed(op, r.Name, err)
	}
	unlock, err := p.lockNames(ctx)
	if err != nil {
		return failed(op, r.Name, err)
	}
	defer unlock()
	v, err := p.find(ctx, op, r, r.Name)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errAbsent) {
		return failed(op, r.Name, p.recs.remove(r.Name))
	}
	if err != nil || !p.recs.has(v.name, v.uuid) {
		return failed(op, r.Name, err)
	}
	ids, err := p.snapshotsOf(v)
	if err == nil && len(ids) > 0 {
		err = errs.New(errs.Conflict, op, r.Name, "the volume has %d snapshots", len(ids)).WithHint("delete its snapshots first")
	}
	for _, t := range v.tags {
		if err == nil && strings.HasPrefix(t, tagPrefix) {
			err = p.untag(ctx, v.name, t)
		}
	}
	if err == nil {
		err = p.recs.remove(v.name)
	}
	return failed(op, r.Name, err)
}
