package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// Instances lists instances with their disks.
func (e *Engine) Instances(ctx context.Context, p api.Page) (api.List[api.Instance], error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.List[api.Instance], error) {
		rows, next, err := tx.Instances.List(ctx, pageQuery(p))
		return listed(ctx, rows, next, err, e.view(tx).instance)
	})
}

// listed shows every row of a page.
func listed[R, A any](ctx context.Context, rows []R, next string, err error, show func(context.Context, R) (A, error)) (api.List[A], error) {
	out := api.List[A]{Items: make([]A, 0, len(rows)), Next: next}
	for _, r := range rows {
		if err != nil {
			break
		}
		var a A
		a, err = show(ctx, r)
		out.Items = append(out.Items, a)
	}
	return out, err
}

// Instance shows one instance.
func (e *Engine) Instance(ctx context.Context, ref string) (api.Instance, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.Instance, error) {
		i, err := findInstance(ctx, tx, ref)
		if err != nil {
			return api.Instance{}, err
		}
		return e.view(tx).instance(ctx, i)
	})
}

func instanceSubject(i disk.Instance) journal.Subject {
	return journal.Subject{Type: "instance", ID: string(i.ID), Name: i.Name}
}

// InstanceCreate records an instance and makes its disks. With IfAbsent an
// instance of that name and shape is as good.
func (e *Engine) InstanceCreate(ctx context.Context, o api.Options, r api.InstanceCreate) (api.Outcome, error) {
	if err := disk.CheckName("instance", r.Name); err != nil {
		return api.Outcome{}, err
	}
	r.ID = strings.ToLower(r.ID)
	if r.ID != "" && !disk.IsID(r.ID) {
		return api.Outcome{}, errs.New(errs.Invalid, "instance.create", r.ID, "%q is not a UUID", r.ID)
	}
	request := recorded(r)
	if out, err := e.seen(ctx, o, "instance.create", request); out != nil || err != nil {
		return answer(out, err)
	}
	out, err := e.instanceCreate(ctx, o, r, request)
	if err != nil && r.IfAbsent {
		return e.ifAbsent(ctx, o, "instance.create", r.Name, request, err, sameInstance(r))
	}
	return out, err
}

func (e *Engine) instanceCreate(ctx context.Context, o api.Options, r, request api.InstanceCreate) (api.Outcome, error) {
	now := e.now()
	b := buildOrder{New: true, Instance: disk.Instance{ID: disk.InstanceID(or(r.ID, newID())), Name: r.Name, CreatedAt: now, UpdatedAt: now}}
	d := newDraft("instance.create", instanceSubject(b.Instance))
	d.request = request
	var sur survey
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		sur = survey{}
		if b.Disks, err = e.orders(ctx, tx, &sur, r.Disks, r.Pool); err != nil {
			return err
		}
		if r.ConfigDrive != nil {
			if err := e.orderConfig(ctx, tx, &sur, &d, &b, r); err != nil {
				return err
			}
		}
		if err := sur.complete(ctx, tx, b); err != nil || len(sur.missing) == 0 {
			return err
		}
		// The name is taken only after bases were fetched: better refused now.
		_, err = tx.Instances.One(ctx, store.Eq("name", r.Name))
		if err == nil {
			return errs.New(errs.Exists, "instance.create", r.Name, "there is already an instance %q", r.Name)
		}
		return ignore(errs.NotFound, err)
	})
	var out api.Outcome
	if err == nil {
		if len(sur.missing) > 0 { // nobody else fetches bases for an instance of that name
			d.resources = append(d.resources, "instance:"+r.Name)
		}
		out, err = e.submitBuild(ctx, o, d, b, sur)
	}
	if err != nil || o.DryRun {
		e.configs.drop(d.id)
	}
	return out, err
}

// recorded is the request as the journal keeps it: a config drive's files may
// be secret, and are kept by digest.
func recorded(r api.InstanceCreate) api.InstanceCreate {
	if r.ConfigDrive == nil {
		return r
	}
	c := *r.ConfigDrive
	c.Files = nil
	for _, f := range r.ConfigDrive.Files {
		sum := sha256.Sum256(f.Data)
		c.Files = append(c.Files, api.ConfigFile{Path: f.Path + " sha256:" + hex.EncodeToString(sum[:]), Dir: f.Dir})
	}
	r.ConfigDrive = &c
	return r
}

func (e *Engine) orders(ctx context.Context, tx *store.Tx, sur *survey, specs []api.DiskSpec, pool string) ([]diskOrder, error) {
	out := make([]diskOrder, 0, len(specs))
	for _, s := range specs {
		if s.Role == string(disk.RoleConfig) {
			return nil, errs.New(errs.Invalid, "disk.create", s.Role, "a config drive is made from files, with its instance").WithHint("give config_drive instead of a disk")
		}
		o, err := e.order(ctx, tx, sur, s, pool)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, nil
}

// orderConfig adds the config drive of a request to what is built.
func (e *Engine) orderConfig(ctx context.Context, tx *store.Tx, sur *survey, d *draft, b *buildOrder, r api.InstanceCreate) error {
	req, spec, data, err := configOrder(r.ConfigDrive, b.Instance)
	if err != nil {
		return err
	}
	o, err := e.order(ctx, tx, sur, spec, r.Pool)
	if err != nil {
		return err
	}
	req.Input.ID = string(spoolID(o.Volume))
	o.Config = req
	b.Disks = append(b.Disks, o)
	e.configs.put(d.id, data)
	d.steps = append(d.steps, journal.NewStep(spoolStep, spoolArgs{Volume: o.Volume, Pool: o.Pool, Input: req.Input}))
	return nil
}

// InstanceRename gives an instance another name, in the records and in the
// sidecars of its disks.
func (e *Engine) InstanceRename(ctx context.Context, o api.Options, ref, name string) (api.Outcome, error) {
	if err := disk.CheckName("instance", name); err != nil {
		return api.Outcome{}, err
	}
	request := renamed{ref, name}
	if out, err := e.seen(ctx, o, "instance.rename", request); out != nil || err != nil {
		return answer(out, err)
	}
	i, vols, err := e.instanceVolumes(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	if err := e.needPools(ctx, vols); err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("instance.rename", instanceSubject(i))
	d.request = request
	d.resources = []string{"instance:" + string(i.ID)}
	for _, v := range vols {
		d.resources = append(d.resources, "volume:"+string(v.ID))
	}
	d.steps = []journal.Step{sidecarStep(vols)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		i, err := tx.Instances.Get(ctx, i.ID)
		if err != nil {
			return err
		}
		i.Name, i.UpdatedAt = name, e.now()
		i.Generation++
		if err := tx.Instances.Update(ctx, i); err != nil {
			return err
		}
		return touchVolumes(ctx, tx, vols)
	}
	return e.submit(ctx, o, d)
}

// instanceVolumes finds an instance and the volumes of its disks.
func (e *Engine) instanceVolumes(ctx context.Context, ref string) (i disk.Instance, vols []disk.Volume, err error) {
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if i, err = findInstance(ctx, tx, ref); err != nil {
			return err
		}
		ds, err := disksOf(ctx, tx, i.ID)
		if err != nil {
			return err
		}
		vols = nil
		for _, d := range ds {
			v, err := tx.Volumes.Get(ctx, d.VolumeID)
			if err != nil {
				return err
			}
			vols = append(vols, v)
		}
		return nil
	})
	return i, vols, err
}

// needPools returns errs.Unavailable if a pool of any of vols is not active.
func (e *Engine) needPools(ctx context.Context, vols []disk.Volume) error {
	for _, v := range vols {
		if _, err := e.poolOf(ctx, v.PoolID); err != nil {
			return err
		}
	}
	return nil
}

// InstanceDelete deletes an instance with all of its disks.
func (e *Engine) InstanceDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "instance.delete", named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	i, vols, err := e.instanceVolumes(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("instance.delete", instanceSubject(i))
	d.request = named{ref}
	d.resources = []string{"instance:" + string(i.ID)}
	if err := e.needPools(ctx, vols); err != nil {
		return api.Outcome{}, err
	}
	for _, v := range slices.Backward(vols) {
		d.resources = append(d.resources, "volume:"+string(v.ID))
		d.steps = append(d.steps, journal.NewStep(stepVolumeDelete, volumeArgs{Volume: v.ID}))
		d.notes = append(d.notes, "deletes "+v.Name+" ("+disk.FormatSize(v.VirtualSize)+")")
	}
	d.steps = append(d.steps, journal.NewStep(stepInstanceForget, instanceArgs{i.ID}))
	if err := e.notInUse(ctx, "instance.delete", vols); err != nil {
		return api.Outcome{}, err
	}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		left, err := disksOf(ctx, tx, i.ID)
		if err != nil {
			return err
		}
		if len(left) != len(vols) {
			return errs.New(errs.Busy, "instance.delete", i.Name, "disks of the instance changed meanwhile").WithHint("try again")
		}
		for _, v := range vols {
			if err := markDeleting(ctx, tx, v.ID); err != nil {
				return err
			}
		}
		return nil
	}
	return e.submit(ctx, o, d)
}

// instanceArgs names the instance a step works on.
type instanceArgs struct {
	Instance disk.InstanceID `json:"instance"`
}

// instanceForget removes the record of an instance without disks: step
// instance.forget/v1.
func (e *Engine) instanceForget() journal.Handler[*store.Tx] {
	return simple{final: true, commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
		var a instanceArgs
		if err := c.Args(&a); err != nil {
			return err
		}
		return tx.Instances.Delete(ctx, a.Instance)
	}}
}
