package engine

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// attachWait bounds how long attach and detach wait for the sidecars that say
// so; the operation goes on behind it.
const attachWait = time.Minute

// leaseCounter numbers the leases that are granted.
const leaseCounter = "lease"

// InstanceShow prints what a hypervisor needs to open an instance's disks,
// without the right to write them.
func (e *Engine) InstanceShow(ctx context.Context, ref, as string) (api.Attachment, error) {
	ds, err := e.instanceRecords(ctx, ref)
	if err != nil {
		return api.Attachment{}, err
	}
	return e.show(ctx, "instance.show", ds, as)
}

// DiskShow is InstanceShow for one disk.
func (e *Engine) DiskShow(ctx context.Context, ref, as string) (api.Attachment, error) {
	r, err := e.diskByRef(ctx, ref)
	if err != nil {
		return api.Attachment{}, err
	}
	return e.show(ctx, "disk.show", []diskRecords{r}, as)
}

func (e *Engine) show(ctx context.Context, op string, ds []diskRecords, as string) (api.Attachment, error) {
	out, err := e.render(ctx, ds, as)
	for _, r := range ds {
		if err == nil {
			err = e.presentable(ctx, op, r)
		}
	}
	if err != nil {
		return api.Attachment{}, err
	}
	return out, nil
}

// presentable returns why a hypervisor must not be told of a disk, or nil. QEMU
// believes a container's header, which a guest may have rewritten, and opens
// whatever file it names: so nobody is told of a container, or of one that it
// reads from, that is not what its record says. One that somebody uses is theirs
// to change: it was looked at before they were told of it. No lock is taken,
// which could keep a guest from starting.
func (e *Engine) presentable(ctx context.Context, op string, r diskRecords) error {
	name := r.instance.Name + "/" + r.disk.Name
	if err := usable(r.volume, op, name); err != nil {
		return err
	}
	if r.lease != nil && r.lease.HostID != e.cfg.Host.ID || errors.Is(e.unlocked(ctx, r.volume), errs.Busy) {
		return nil
	}
	p, err := e.pool(r.pool)
	if err == nil {
		_, err = p.Stat(ctx) // the hypervisor goes by the path
	}
	if err == nil {
		err = e.opens(ctx, p, r.volume, driver.Base)
	}
	if errors.Is(err, errs.Corrupt) && errors.Is(e.unlocked(ctx, r.volume), errs.Busy) {
		return nil // somebody took it meanwhile
	}
	return errs.Wrap(err, op, name)
}

// InstanceAttach takes the right to write all disks of an instance for this
// host and prints what a hypervisor needs. A repeat on the same host prints the
// same; while another host or program has one of the disks it is errs.Busy.
func (e *Engine) InstanceAttach(ctx context.Context, ref string, a api.Attach) (api.Attachment, error) {
	if a.Target != "" {
		return api.Attachment{}, errs.New(errs.Invalid, "instance.attach", ref, "a target names one disk").WithHint("tarn disk attach DISK --target %s", a.Target)
	}
	i, err := e.Instance(ctx, ref)
	if err != nil {
		return api.Attachment{}, err
	}
	ds, err := e.instanceRecords(ctx, ref)
	if err != nil {
		return api.Attachment{}, err
	}
	return e.attach(ctx, newDraft("instance.attach", journal.Subject{Type: "instance", ID: i.ID, Name: i.Name}), ds, a)
}

// DiskAttach is InstanceAttach for one disk, which may ask for its device name
// the first time.
func (e *Engine) DiskAttach(ctx context.Context, ref string, a api.Attach) (api.Attachment, error) {
	r, err := e.diskByRef(ctx, ref)
	if err != nil {
		return api.Attachment{}, err
	}
	return e.attach(ctx, newDraft("disk.attach", diskSubject(r)), []diskRecords{r}, a)
}

// instanceRecords collects the records of an instance's disks.
func (e *Engine) instanceRecords(ctx context.Context, ref string) ([]diskRecords, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]diskRecords, error) {
		i, err := findInstance(ctx, tx, ref)
		if err != nil {
			return nil, err
		}
		ds, err := disksOf(ctx, tx, i.ID)
		if err != nil {
			return nil, err
		}
		out := make([]diskRecords, 0, len(ds))
		for _, d := range ds {
			r, err := recordsOf(ctx, tx, d.VolumeID)
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
		return out, nil
	})
}

func (e *Engine) attach(ctx context.Context, d draft, ds []diskRecords, a api.Attach) (api.Attachment, error) {
	if _, err := e.render(ctx, ds, a.As); err != nil {
		return api.Attachment{}, err // nothing is taken that could not be printed
	}
	var take []diskRecords
	for _, r := range ds {
		if err := e.attachable(ctx, r); err != nil {
			return api.Attachment{}, err
		}
		if r.lease == nil || !e.holds(*r.lease) || a.Target != "" && a.Target != r.disk.Device {
			take = append(take, r)
		}
	}
	if len(take) > 0 {
		if err := e.takeLeases(ctx, d, take, a.Target); err != nil {
			return api.Attachment{}, err
		}
	}
	fresh := make([]diskRecords, 0, len(ds))
	for _, r := range ds {
		now, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (diskRecords, error) { return recordsOf(ctx, tx, r.volume.ID) })
		if err != nil {
			return api.Attachment{}, err
		}
		fresh = append(fresh, now)
	}
	return e.render(ctx, fresh, a.As)
}

// holds reports whether l is this host's, granted in this boot.
func (e *Engine) holds(l disk.Lease) bool {
	return l.HostID == e.cfg.Host.ID && l.BootID == e.cfg.Host.BootID && l.State == disk.LeaseHeld
}

// attachable returns why a disk cannot be attached here now, or nil.
func (e *Engine) attachable(ctx context.Context, r diskRecords) error {
	name := r.instance.Name + "/" + r.disk.Name
	if err := usable(r.volume, "disk.attach", name); err != nil {
		return err
	}
	if _, err := e.pool(r.pool); err != nil {
		return err
	}
	if r.lease != nil && e.holds(*r.lease) {
		return e.presentable(ctx, "disk.attach", r)
	}
	if r.lease != nil && r.lease.HostID != e.cfg.Host.ID {
		return errs.New(errs.Busy, "disk.attach", name, "%s is attached to another host (%s)", name, r.lease.HostID).
			WithHint("detach it there; if that host is gone for good: tarn disk detach %s --force", name)
	}
	if err := e.unlocked(ctx, r.volume); err != nil {
		return errs.Wrap(err, "disk.attach", name)
	}
	return e.presentable(ctx, "disk.attach", r)
}

// takeLeases grants this host the right to write ds and writes it beside them.
func (e *Engine) takeLeases(ctx context.Context, d draft, ds []diskRecords, target string) error {
	var vols []disk.Volume
	for _, r := range ds {
		vols = append(vols, r.volume)
		d.resources = append(d.resources, "volume:"+string(r.volume.ID))
	}
	d.steps = []journal.Step{sidecarStep(vols)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		for _, r := range ds {
			if err := e.grant(ctx, tx, r, target); err != nil {
				return err
			}
		}
		return touchVolumes(ctx, tx, vols)
	}
	return e.run(ctx, d)
}

// grant writes one lease, fenced by a generation no lease had before.
func (e *Engine) grant(ctx context.Context, tx *store.Tx, r diskRecords, target string) error {
	now, err := recordsOf(ctx, tx, r.volume.ID)
	if err != nil {
		return err
	}
	if now.volume.State != disk.VolumeReady || (now.lease == nil) != (r.lease == nil) || now.lease != nil && now.lease.Generation != r.lease.Generation {
		return errs.New(errs.Busy, "disk.attach", r.disk.Name, "the disk changed meanwhile").WithHint("try again")
	}
	for b := now.volume.Backing; b != nil; {
		base, err := tx.Volumes.Get(ctx, b.VolumeID)
		if err == nil {
			err = sound("disk.attach", diskSubject(now).Name, base)
		}
		if err != nil {
			return err
		}
		b = base.Backing
	}
	if err := e.fixTarget(ctx, tx, now, target); err != nil {
		return err
	}
	if now.lease != nil && e.holds(*now.lease) {
		return nil
	}
	gen, err := tx.NextGeneration(ctx, leaseCounter)
	if err != nil {
		return err
	}
	l := disk.Lease{VolumeID: r.volume.ID, HostID: e.cfg.Host.ID, BootID: e.cfg.Host.BootID, Generation: gen, State: disk.LeaseHeld, CreatedAt: e.now()}
	if now.lease != nil {
		err = tx.Leases.Update(ctx, l)
	} else {
		err = tx.Leases.Insert(ctx, l)
	}
	return errors.Join(err, e.emit(ctx, tx, "disk.attached", diskSubject(now), ""))
}

// fixTarget records the device name at the first attach. It is kept from then
// on: a guest must find its disks where they were (I7).
func (e *Engine) fixTarget(ctx context.Context, tx *store.Tx, r diskRecords, target string) error {
	var info driverInfo
	if err := json.Unmarshal(r.disk.DriverInfo, &info); err != nil || info.V != 1 {
		return errs.New(errs.Version, "disk.attach", r.disk.Name, "the disk's driver_info has version %d; this build knows 1", info.V)
	}
	if info.Target != "" {
		if target != "" && target != info.Target {
			return errs.New(errs.Conflict, "disk.attach", r.disk.Name, "the guest knows this disk as %s", info.Target).WithHint("leave --target out, or ask for %s", info.Target)
		}
		return nil
	}
	if target != "" && target != r.disk.Device {
		others, err := disksOf(ctx, tx, r.instance.ID)
		if err != nil {
			return err
		}
		if r.disk.Device, err = plan.NameDevice(r.disk.Bus, target, others); err != nil {
			return err
		}
	}
	info.Target = r.disk.Device
	r.disk.DriverInfo, _ = json.Marshal(info) // plain data: cannot fail
	r.disk.UpdatedAt = e.now()
	return tx.Disks.Update(ctx, r.disk)
}

// run submits an operation and waits for its end.
func (e *Engine) run(ctx context.Context, d draft) error {
	out, err := e.submit(ctx, api.Options{}, d)
	if err != nil {
		return err
	}
	op, err := e.runner.Wait(ctx, journal.ID(out.Operation.ID), attachWait)
	if err != nil {
		return err
	}
	if !op.State.Final() {
		return errs.New(errs.Busy, d.kind, d.subject.Name, "operation %s is still running", op.ID).WithHint("tarn operation wait %s", op.ID)
	}
	return e.joined(op, nil)
}

// InstanceDetach gives up the right to write all disks of an instance.
func (e *Engine) InstanceDetach(ctx context.Context, ref string, r api.Detach) error {
	i, err := e.Instance(ctx, ref)
	if err != nil {
		return err
	}
	ds, err := e.instanceRecords(ctx, ref)
	if err != nil {
		return err
	}
	return e.detach(ctx, newDraft("instance.detach", journal.Subject{Type: "instance", ID: i.ID, Name: i.Name}), ds, r.Force)
}

// DiskDetach is InstanceDetach for one disk.
func (e *Engine) DiskDetach(ctx context.Context, ref string, r api.Detach) error {
	d, err := e.diskByRef(ctx, ref)
	if err != nil {
		return err
	}
	return e.detach(ctx, newDraft("disk.detach", diskSubject(d)), []diskRecords{d}, r.Force)
}

func (e *Engine) detach(ctx context.Context, d draft, ds []diskRecords, force bool) error {
	var judged []diskRecords
	var vols []disk.Volume
	for _, r := range ds {
		name := r.instance.Name + "/" + r.disk.Name
		if !force {
			if r.lease != nil && r.lease.HostID != e.cfg.Host.ID {
				return errs.New(errs.Busy, "disk.detach", name, "%s is attached to another host (%s)", name, r.lease.HostID).WithHint("detach it there, or say --force if that host is gone for good")
			}
			if err := e.unlocked(ctx, r.volume); err != nil {
				return errs.Wrap(err, "disk.detach", name)
			}
		}
		if r.lease == nil {
			continue
		}
		judged, vols = append(judged, r), append(vols, r.volume)
		d.resources = append(d.resources, "volume:"+string(r.volume.ID))
	}
	if len(vols) == 0 {
		return nil
	}
	if err := e.needPools(ctx, vols); err != nil {
		return err
	}
	measured := e.measureVolumes(ctx, vols)
	d.steps = []journal.Step{sidecarStep(vols)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		for _, r := range judged {
			same, err := e.dropLease(ctx, tx, *r.lease, measured)
			if err != nil {
				return err
			}
			if !same {
				return errs.New(errs.Busy, d.kind, diskSubject(r).Name, "%s was attached anew meanwhile", diskSubject(r).Name).WithHint("try again")
			}
		}
		return nil
	}
	return e.run(ctx, d)
}

// measureVolumes asks the pools how much of each volume is allocated now.
func (e *Engine) measureVolumes(ctx context.Context, vols []disk.Volume) map[disk.VolumeID]int64 {
	out := map[disk.VolumeID]int64{}
	for _, v := range vols {
		if p, ok := e.pools.get(v.PoolID); ok {
			if obj, err := p.Describe(ctx, pool.Ref(v)); err == nil {
				out[v.ID] = obj.Allocated
			}
		}
	}
	return out
}
