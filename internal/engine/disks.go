package engine

import (
	"context"
	"errors"
	"slices"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/store"
)

// Disks lists the disks of an instance, or with an empty name all disks.
func (e *Engine) Disks(ctx context.Context, instance string, p api.Page) (api.List[api.Disk], error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.List[api.Disk], error) {
		var where []store.Where
		if instance != "" {
			i, err := findInstance(ctx, tx, instance)
			if err != nil {
				return api.List[api.Disk]{}, err
			}
			where = append(where, store.Eq("instance_id", i.ID))
		}
		rows, next, err := tx.Disks.List(ctx, pageQuery(p, where...))
		if err != nil {
			return api.List[api.Disk]{}, err
		}
		items, err := e.view(tx).disks(ctx, rows)
		return api.List[api.Disk]{Items: items, Next: next}, err
	})
}

// Disk shows one disk.
func (e *Engine) Disk(ctx context.Context, ref string) (api.Disk, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.Disk, error) {
		d, err := findDisk(ctx, tx, ref)
		if err != nil {
			return api.Disk{}, err
		}
		out, err := e.view(tx).disks(ctx, []disk.Disk{d})
		if err != nil {
			return api.Disk{}, err
		}
		return out[0], nil
	})
}

// Volumes lists the volumes of a pool, or with an empty name all volumes.
func (e *Engine) Volumes(ctx context.Context, pool string, p api.Page) (api.List[api.Volume], error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.List[api.Volume], error) {
		var where []store.Where
		if pool != "" {
			r, err := findPool(ctx, tx, pool)
			if err != nil {
				return api.List[api.Volume]{}, err
			}
			where = append(where, store.Eq("pool_id", r.ID))
		}
		rows, next, err := tx.Volumes.List(ctx, pageQuery(p, where...))
		return listed(ctx, rows, next, err, e.view(tx).volume)
	})
}

// Volume shows one volume.
func (e *Engine) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.Volume, error) {
		r, err := findVolume(ctx, tx, ref)
		if err != nil {
			return api.Volume{}, err
		}
		return e.view(tx).volume(ctx, r)
	})
}

// DiskCreate makes one more disk for an instance.
func (e *Engine) DiskCreate(ctx context.Context, o api.Options, r api.DiskCreate) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "disk.create", r); out != nil || err != nil {
		return answer(out, err)
	}
	var b buildOrder
	var sur survey
	var name string
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if b.Instance, err = findInstance(ctx, tx, r.Instance); err != nil {
			return err
		}
		sur = survey{}
		if b.Disks, err = e.orders(ctx, tx, &sur, []api.DiskSpec{r.Disk}, ""); err != nil {
			return err
		}
		existing, err := disksOf(ctx, tx, b.Instance.ID)
		if err != nil {
			return err
		}
		if _, name, err = plan.NameDisk(disk.Role(r.Disk.Role), existing); err != nil {
			return err
		}
		return sur.complete(ctx, tx, b)
	})
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("disk.create", journal.Subject{Type: "disk", ID: string(b.Disks[0].Disk), Name: b.Instance.Name + "/" + name})
	d.request = r
	return e.submitBuild(ctx, o, d, b, sur)
}

// submitBuild submits the making of disks. When every base they need is ready
// in its pool the deciding transaction is the one that records the operation;
// else bases are fetched first and the decision follows as a step. So it is, too,
// when a base was pruned between the look at it and the decision.
func (e *Engine) submitBuild(ctx context.Context, o api.Options, d draft, b buildOrder, s survey) (api.Outcome, error) {
	out, err := e.submitBuildOnce(ctx, o, d, b, s)
	if len(s.missing) == 0 && errors.Is(err, errBaseGone) {
		s.missing = b.bases()
		return e.submitBuildOnce(ctx, o, d, b, s)
	}
	return out, err
}

// bases returns the bases that an order needs, once each.
func (b buildOrder) bases() (all []ensureArgs) {
	for _, o := range b.Disks {
		if a := (ensureArgs{o.Image, o.Pool}); o.Image != "" && !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

func (e *Engine) submitBuildOnce(ctx context.Context, o api.Options, d draft, b buildOrder, s survey) (api.Outcome, error) {
	space, err := e.measureAll(ctx, s.domains)
	if err != nil {
		return api.Outcome{}, err
	}
	place := func(ctx context.Context, tx *store.Tx) error { return e.place(ctx, tx, &s.seen, b, d.id, space) }
	d.resources = append(d.resources, "instance:"+string(b.Instance.ID))
	for _, m := range s.missing {
		d.steps = append(d.steps, journal.NewStep(stepBaseEnsure, m))
		d.notes = append(d.notes, "copies the image's content into the pool first")
	}
	if len(s.missing) == 0 {
		d.intent = place
	} else {
		d.steps = append(d.steps, journal.NewStep(stepDisksPlace, placeArgs{Order: b, Domains: s.domains}))
	}
	for _, x := range b.Disks {
		d.steps = append(d.steps, journal.NewStep(stepVolumeCreate, volumeArgs{x.Volume, b.added()}))
		d.notes = append(d.notes, "makes a "+x.Spec.Role+" disk of "+disk.FormatSize(x.Spec.Size))
	}
	if len(d.steps) == 0 {
		d.steps = append(d.steps, journal.NewStep(stepSidecars, sidecarArgs{}))
	}
	out, err := e.submit(ctx, o, d)
	if err != nil || o.DryRun {
		e.planned.drop(b)
	}
	return out, err
}

// survey is what submitBuild has to know of the records: the domains an order
// uses, the bases it needs that are not ready in their pools, once each, and what
// was read to find that out.
type survey struct {
	domains []disk.DomainID
	missing []ensureArgs
	seen    resolved
}

// complete looks at what all disks of b need.
func (s *survey) complete(ctx context.Context, tx *store.Tx, b buildOrder) error {
	for _, o := range b.Disks {
		r, err := s.seen.pool(ctx, tx, o.Pool)
		if err != nil {
			return err
		}
		if !slices.Contains(s.domains, r.DomainID) {
			s.domains = append(s.domains, r.DomainID)
		}
		a := ensureArgs{o.Image, o.Pool}
		if o.Image == "" || slices.Contains(s.missing, a) {
			continue
		}
		i, err := s.seen.image(ctx, tx, o.Image)
		if err != nil {
			return err
		}
		base, err := baseIn(ctx, tx, o.Pool, i.Content)
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		if err != nil || base.State != disk.VolumeReady {
			s.missing = append(s.missing, a)
		}
	}
	return nil
}

// resolved holds the pools and images that an order means, each read once: by
// the look at the request, and taken over by the decision. Either may change in
// between without harm. A pool that is gone is missed by the reference to it; of
// an image only the content matters, whose base the decision reads again; a
// pool's policy is that of the moment of the request. Its zero value is ready.
type resolved struct {
	pools  map[disk.PoolID]disk.Pool
	images map[disk.ImageID]disk.Image
}

func (r *resolved) pool(ctx context.Context, tx *store.Tx, id disk.PoolID) (disk.Pool, error) {
	return once(ctx, &r.pools, id, tx.Pools.Get)
}

func (r *resolved) image(ctx context.Context, tx *store.Tx, id disk.ImageID) (disk.Image, error) {
	return once(ctx, &r.images, id, tx.Images.Get)
}

// once returns the record that known holds, or reads it and keeps it there.
func once[K comparable, R any](ctx context.Context, known *map[K]R, id K, read func(context.Context, K) (R, error)) (R, error) {
	if r, ok := (*known)[id]; ok {
		return r, nil
	}
	r, err := read(ctx, id)
	if err == nil {
		keep(known, id, r)
	}
	return r, err
}

func keep[K comparable, R any](known *map[K]R, id K, r R) {
	if *known == nil {
		*known = map[K]R{}
	}
	(*known)[id] = r
}

func (e *Engine) measureAll(ctx context.Context, domains []disk.DomainID) (map[disk.DomainID]measured, error) {
	space := map[disk.DomainID]measured{}
	for _, id := range domains {
		if _, ok := space[id]; ok {
			continue
		}
		m, err := e.measure(ctx, id)
		if err != nil {
			return nil, err
		}
		space[id] = m
	}
	return space, nil
}

// placeArgs is what the step disks.place/v1 decides about.
type placeArgs struct {
	Order   buildOrder      `json:"order"`
	Domains []disk.DomainID `json:"domains"`
}

// disksPlace decides about disks whose bases had to be fetched first: step
// disks.place/v1. Its Act measures, and fetches a base again that was pruned
// behind its fetching; its Commit decides and writes the records.
func (e *Engine) disksPlace() journal.Handler[*store.Tx] {
	return simple{
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a placeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			space := map[disk.DomainID]measured{}
			for _, id := range a.Domains {
				space[id] = e.space.last(id)
			}
			err := e.place(ctx, tx, &resolved{}, a.Order, c.Op.ID, space)
			if errors.Is(err, errBaseGone) {
				return journal.Again
			}
			return err
		},
		act: func(ctx context.Context, c *journal.Call) error {
			var a placeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			for _, base := range a.Order.bases() {
				if err := e.ensureBase(ctx, c, base); err != nil {
					return err
				}
			}
			_, err := e.measureAll(ctx, a.Domains)
			return err
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a placeArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return unplace(ctx, tx, a.Order.added())
		},
	}
}

// unplace removes the record of an instance that an undone order had added, once
// its last disk is gone.
func unplace(ctx context.Context, tx *store.Tx, added disk.InstanceID) error {
	if added == "" {
		return nil
	}
	left, err := disksOf(ctx, tx, added)
	if err != nil || len(left) > 0 {
		return err
	}
	return tx.Instances.Delete(ctx, added)
}

// DiskDelete deletes a disk with its volume.
func (e *Engine) DiskDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "disk.delete", named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	r, err := e.diskByRef(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	if _, err := e.pool(r.pool); err != nil {
		return api.Outcome{}, err
	}
	if err := e.notInUse(ctx, "disk.delete", []disk.Volume{r.volume}); err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("disk.delete", diskSubject(r))
	d.request = named{ref}
	d.resources = []string{"volume:" + string(r.volume.ID)}
	d.steps = []journal.Step{journal.NewStep(stepVolumeDelete, volumeArgs{Volume: r.volume.ID})}
	d.notes = []string{"deletes " + r.volume.Name + " (" + disk.FormatSize(r.volume.VirtualSize) + ") and what was written to it"}
	d.intent = func(ctx context.Context, tx *store.Tx) error { return markDeleting(ctx, tx, r.volume.ID) }
	return e.submit(ctx, o, d)
}

func diskSubject(r diskRecords) journal.Subject {
	return journal.Subject{Type: "disk", ID: string(r.disk.ID), Name: r.instance.Name + "/" + r.disk.Name}
}

func (e *Engine) diskByRef(ctx context.Context, ref string) (diskRecords, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (diskRecords, error) {
		d, err := findDisk(ctx, tx, ref)
		if err != nil {
			return diskRecords{}, err
		}
		return recordsOf(ctx, tx, d.VolumeID)
	})
}

// markDeleting moves a volume that nobody may write to the state deleting.
func markDeleting(ctx context.Context, tx *store.Tx, id disk.VolumeID) error {
	v, err := tx.Volumes.Get(ctx, id)
	if err != nil {
		return err
	}
	l, err := leaseOf(ctx, tx, id)
	if err != nil {
		return err
	}
	if l != nil {
		return attachedError(ctx, tx, v)
	}
	switch v.State {
	case disk.VolumeCreating, disk.VolumeResizing:
		return errs.New(errs.Busy, "volume.delete", v.Name, "the volume is %s", v.State).WithHint("wait for its operation: tarn operation list")
	}
	v.State = disk.VolumeDeleting
	return tx.Volumes.Update(ctx, v)
}

func attachedError(ctx context.Context, tx *store.Tx, v disk.Volume) error {
	name := v.Name
	if r, err := recordsOf(ctx, tx, v.ID); err == nil {
		name = diskSubject(r).Name
	}
	return errs.New(errs.Busy, "disk", name, "%s is attached", name).WithHint("detach it first: tarn disk detach %s", name)
}

// usable returns why nobody can use v now, or nil: errs.Corrupt if it was taken
// out of use, errs.Busy while an operation is at work on it.
func usable(v disk.Volume, op, name string) error {
	switch v.State {
	case disk.VolumeReady:
		return nil
	case disk.VolumeCorrupt, disk.VolumeLost, disk.VolumeQuarantined:
		return errs.New(errs.Corrupt, op, name, "%s is recorded as %s", name, v.State).WithHint("run tarn doctor, or delete it")
	}
	return errs.New(errs.Busy, op, name, "%s is %s", name, v.State).WithHint("wait for its operation: tarn operation list")
}

// notInUse returns errs.Busy while anybody holds one of vols, which are disks': a
// lease on record, or a lock that a program holds whatever the record says.
func (e *Engine) notInUse(ctx context.Context, op string, vols []disk.Volume) error {
	for _, v := range vols {
		err := e.notLeased(ctx, v)
		if err == nil {
			err = e.unlocked(ctx, v)
		}
		if err != nil {
			return e.ofDisk(ctx, err, op, v)
		}
	}
	return nil
}

// ofDisk says of which disk err is, whose volume is v: users do not know the
// names of files.
func (e *Engine) ofDisk(ctx context.Context, err error, op string, v disk.Volume) error {
	r, unknown := query(ctx, e, func(ctx context.Context, tx *store.Tx) (diskRecords, error) { return recordsOf(ctx, tx, v.ID) })
	if unknown != nil {
		return errs.Wrap(err, op, v.Name)
	}
	return errs.Wrap(err, op, diskSubject(r).Name)
}

// notLeased returns errs.Busy while there is a lease on v.
func (e *Engine) notLeased(ctx context.Context, v disk.Volume) error {
	return e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		l, err := leaseOf(ctx, tx, v.ID)
		if err == nil && l != nil {
			err = attachedError(ctx, tx, v)
		}
		return err
	})
}

// unlocked returns errs.Busy while a program outside of tarn holds v open, or an
// export reads it, and errs.Corrupt if something else has v's name in the pool.
func (e *Engine) unlocked(ctx context.Context, v disk.Volume) error {
	p, ok := e.pools.get(v.PoolID)
	if !ok {
		return nil
	}
	err := p.InUse(ctx, v)
	switch {
	case errors.Is(err, errs.NotFound):
		return nil
	case errors.Is(err, errs.Busy) && e.exports.count(v.ID) > 0:
		return errs.New(errs.Busy, "volume.lock", v.Name, "it is being exported").WithHint("wait until that is done")
	}
	return err
}

// volumeDelete removes a volume and its records for good: step
// volume.delete/v1.
func (e *Engine) volumeDelete() journal.Handler[*store.Tx] {
	return simple{final: true, commit: e.volumeForget, act: func(ctx context.Context, c *journal.Call) error {
		var a volumeArgs
		if err := c.Args(&a); err != nil {
			return err
		}
		v, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) { return tx.Volumes.Get(ctx, a.Volume) })
		if err == nil && v.Kind == disk.KindDisk {
			err = e.unlocked(ctx, v) // taken since the request was looked at
		}
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		e.awaitDescribed(a.Volume)
		return e.volumeRemove(ctx, c)
	}}
}
