package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

const (
	opAdopt  = "volume.adopt"
	opForget = "volume.release"

	// adoptWrites is what adopting writes at most: a sidecar, and a description.
	adoptWrites = 256 << 10
)

// adoptedKind is the kind of the source of a disk that tarn did not make.
const adoptedKind = "adopted"

// adoption is a foreign object on its way into the records.
type adoption struct {
	api.VolumeAdopt
	pool     disk.Pool
	instance disk.Instance
	format   diskfmt.Format // as it was stated
	version  int            // of a qcow2 file
	volume   disk.Volume
}

// VolumeAdopt takes an object that tarn did not make into the records, where it
// lies: as a disk of an instance, or without one as a base, which others read
// from. Its format is what the request says, and the gate has to agree.
func (e *Engine) VolumeAdopt(ctx context.Context, o api.Options, r api.VolumeAdopt) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, opAdopt, r); out != nil || err != nil {
		return answer(out, err)
	}
	a := adoption{VolumeAdopt: r}
	if err := a.check(); err != nil {
		return api.Outcome{}, err
	}
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error { return a.resolve(ctx, tx) })
	if err != nil {
		return api.Outcome{}, err
	}
	p, err := e.pool(a.pool)
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft(opAdopt, journal.Subject{Type: "volume", Name: a.pool.Name + "/" + a.Name})
	if err := e.judgeCandidate(ctx, p, &a, d.id); err != nil {
		return api.Outcome{}, errs.Wrap(err, opAdopt, d.subject.Name)
	}
	e.space.forget(a.pool.DomainID) // the object may be younger than the last sample
	space, err := e.measure(ctx, a.pool.DomainID)
	if err != nil {
		return api.Outcome{}, err
	}
	d.subject.ID = string(a.volume.ID)
	d.request = r
	d.resources = []string{volumeResource(a.volume.ID), "adopt:" + string(a.pool.ID) + "/" + a.Name}
	if a.Instance != "" {
		d.resources = append(d.resources, "instance:"+string(a.instance.ID))
	}
	d.steps = []journal.Step{journal.NewStep(stepVolumeAdopt, adoptArgs{a.volume.ID})}
	d.notes = a.notes()
	d.intent = func(ctx context.Context, tx *store.Tx) error { return e.intendAdoption(ctx, tx, &a, space) }
	return e.submit(ctx, o, d)
}

// adoptable are the roles that a foreign object may get.
var adoptable = []disk.Role{disk.RoleRoot, disk.RoleData, disk.RoleEphemeral, disk.RoleSwap, disk.RoleCdrom}

// adoptableFormats are what an object may be said to be. Ploop is what pools of
// bundles call their containers; LUKS and ISO 9660 are the guest's, for tarn raw.
var adoptableFormats = []diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2, diskfmt.Ploop, diskfmt.LUKS, diskfmt.ISO}

const formatsHint = "say --format raw, qcow2, ploop, luks or iso"

// check refuses a request that cannot be meant.
func (a *adoption) check() error {
	bad := func(format string, args ...any) *errs.Error {
		return errs.New(errs.Invalid, opAdopt, a.Name, format, args...)
	}
	if a.Format == "" {
		return bad("the format is not stated, and it is never guessed").WithHint(formatsHint)
	}
	a.format = diskfmt.Format(a.Format)
	if !slices.Contains(adoptableFormats, a.format) {
		return bad("no volume has the format %q", a.Format).WithHint(formatsHint)
	}
	if err := disk.CheckName("volume", a.Name); err != nil {
		return errs.Wrap(err, opAdopt, a.Name)
	}
	switch role := disk.Role(a.Role); {
	case a.Instance == "" && role != "":
		return bad("a role is one in an instance").WithHint("say --instance INSTANCE as well; without both it becomes a base, which others read from")
	case a.Instance == "":
	case role == "":
		a.Role = string(disk.RoleData)
	case !slices.Contains(adoptable, role):
		return bad("%q is not a role that an adopted disk can have", a.Role).WithHint("use root, data, ephemeral, swap or cdrom")
	}
	return nil
}

// resolve finds what the request names.
func (a *adoption) resolve(ctx context.Context, tx *store.Tx) (err error) {
	if a.pool, err = findPool(ctx, tx, a.Pool); err != nil {
		return err
	}
	v, err := tx.Volumes.One(ctx, store.Eq("pool_id", a.pool.ID), store.Eq("name", a.Name))
	if err == nil {
		return errs.New(errs.Exists, opAdopt, a.pool.Name+"/"+a.Name, "it is on record already, as volume %s (%s)", v.ID, v.State)
	}
	if err = ignore(errs.NotFound, err); err == nil && a.Instance != "" {
		a.instance, err = findInstance(ctx, tx, a.Instance)
	}
	return err
}

// judgeCandidate opens the object, has the gate judge what it is claimed to be and
// drafts its records.
func (e *Engine) judgeCandidate(ctx context.Context, p *pool.Pool, a *adoption, op journal.ID) error {
	c, err := p.Candidate(ctx, a.Name)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := a.holds(p, c); err != nil {
		return err
	}
	h, err := e.verdict(ctx, a, c)
	if err != nil {
		return err
	}
	if err := e.draftAdopted(ctx, p, a, c, h, op); err != nil {
		return err
	}
	return p.Fits(c, a.volume)
}

// holds refuses a container that the pool's technology does not have volumes in.
func (a *adoption) holds(p *pool.Pool, c *driver.Candidate) error {
	switch {
	case c.Format != "" && a.format != c.Format:
		return errs.New(errs.Unsupported, "", "", "volumes of this pool lie in containers of format %s, not %s", c.Format, a.format).WithHint("say --format %s", c.Format)
	case c.Format == "" && !p.Caps.Holds(a.kept()):
		return errs.New(errs.Unsupported, "", "", "this pool cannot hold volumes of format %s", a.format).
			WithHint("import it as an image: tarn image import")
	}
	return nil
}

// kept returns the format of the volume, or of its container.
func (a *adoption) kept() diskfmt.Format {
	if a.format == diskfmt.LUKS || a.format == diskfmt.ISO {
		return diskfmt.Raw
	}
	return a.format
}

// verdict has the gate judge the candidate as what it is claimed to be: header and
// tables of a file, and of what is none what it begins with.
func (e *Engine) verdict(ctx context.Context, a *adoption, c *driver.Candidate) (ingest.Header, error) {
	src := ingest.Source{Name: a.Name, Description: c.Description}
	if d, ok := c.Device.(describer); ok {
		if info, err := d.Descriptor().Stat(); err == nil && info.Mode().IsRegular() {
			src.File = d.Descriptor()
		}
	}
	if src.File == nil {
		src.Stream, src.Size = io.NewSectionReader(c, 0, c.Size()), c.Size()
	}
	s, err := ingest.Open(ctx, e.cfg.Ingest, src, ingest.Claim{Format: string(a.format), MaxVirtualSize: disk.MaxSize, Adopt: true})
	if err != nil {
		return ingest.Header{}, err
	}
	return s.Header(), s.Close()
}

// draftAdopted makes the records of what the gate has judged.
func (e *Engine) draftAdopted(ctx context.Context, p *pool.Pool, a *adoption, c *driver.Candidate, h ingest.Header, op journal.ID) error {
	size, format := h.VirtualSize, a.kept()
	if c.Format != "" {
		format = diskfmt.Raw
	}
	if c.Format != "" && size != c.Object.Size {
		return errs.New(errs.Corrupt, "", "", "its image has %d bytes, its description says %d", size, c.Object.Size)
	}
	if err := disk.CheckSize(size); err != nil {
		return err
	}
	if unit := max(p.Caps.SizeUnit, disk.Sector); size%unit != 0 {
		return errs.New(errs.Unsafe, "", "", "it has %d bytes; volumes of this pool have multiples of %d", size, unit).
			WithHint("bring it to %d bytes where it comes from: truncate or qemu-img resize", disk.RoundUp(size, unit))
	}
	now := e.now()
	v := disk.Volume{
		ID: disk.VolumeID(newID()), PoolID: a.pool.ID, Name: a.Name, Kind: disk.KindDisk, State: disk.VolumeCreating, Format: format,
		VirtualSize: size, RequestedSize: size, ClusterSize: h.ClusterSize, Adopted: true, Writing: adoptWrites,
		Allocated: c.Object.Allocated, BackendID: c.Object.BackendID, CreatedBy: disk.OperationID(op), CreatedAt: now, UpdatedAt: now,
	}
	v.Committed = max(adoptedNeed(v), c.Object.Allocated)
	if a.Instance == "" {
		v.Kind, v.ContentSize, v.Committed = disk.KindBase, size, c.Object.Allocated
	}
	a.volume, a.version = v, h.Version
	if h.Backing == nil {
		return nil
	}
	return e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error { return a.layOver(ctx, tx, *h.Backing) })
}

// adoptedNeed is what a volume may come to need: the smaller its clusters are, the
// more of them there are to keep account of.
func adoptedNeed(v disk.Volume) int64 {
	need := commitment(v.Format, v.VirtualSize)
	if v.ClusterSize > 0 && v.ClusterSize < plan.ClusterSize {
		need += plan.Qcow2Metadata(v.VirtualSize) * (plan.ClusterSize/v.ClusterSize - 1)
	}
	return need
}

// layOver finds the volume that the header's words mean. They must name a base on
// record in the same pool as tarn itself would have written it: nothing else in
// them is followed.
func (a *adoption) layOver(ctx context.Context, tx *store.Tx, b ingest.Backing) error {
	refused := func(format string, args ...any) *errs.Error { return errs.New(errs.Unsafe, "", "", format, args...) }
	if disk.CheckName("volume", b.Name) != nil {
		return refused("its header names the file it reads from as %q, which is not the bare name of a volume", b.Name).
			WithHint("give it the bare name: qemu-img rebase -u -f qcow2 -b NAME -F FORMAT FILE")
	}
	base, err := tx.Volumes.One(ctx, store.Eq("pool_id", a.pool.ID), store.Eq("name", b.Name))
	switch {
	case errors.Is(err, errs.NotFound):
		return refused("it reads from %q, which is not on record in pool %s: a chain is adopted from its lowest layer up", b.Name, a.pool.Name).
			WithHint("tarn volume adopt %s %s --format FORMAT", a.pool.Name, b.Name)
	case err != nil:
		return err
	case base.Kind != disk.KindBase:
		return refused("it reads from %s, which is a %s on record, and no base", b.Name, base.Kind).
			WithHint("release it and adopt it without an instance: tarn volume release %s/%s", a.pool.Name, b.Name)
	case b.Format != string(base.Format):
		return refused("its header says that %s has the format %q, on record is %s", b.Name, b.Format, base.Format).
			WithHint("qemu-img rebase -u -f qcow2 -b %s -F %s FILE", b.Name, base.Format)
	case a.Role == string(disk.RoleEphemeral) || a.Role == string(disk.RoleSwap):
		return refused("it reads from %s, and %s disks share nothing", b.Name, a.Role).WithHint("adopt it as --role data")
	}
	a.volume.Backing = &disk.Backing{VolumeID: base.ID, Name: base.Name, Format: base.Format, Content: base.Content}
	return a.backed(ctx, tx)
}

// backed refuses a volume that reads from what is going, or is corrupt, at any depth.
func (a *adoption) backed(ctx context.Context, tx *store.Tx) error {
	for b := a.volume.Backing; b != nil; {
		below, err := tx.Volumes.Get(ctx, b.VolumeID)
		switch {
		case err != nil:
			return err
		case below.State != disk.VolumeReady:
			return errs.New(errs.Conflict, "", "", "it reads from %s, which is %s", below.Name, below.State).
				WithHint("see tarn volume show %s/%s", a.pool.Name, below.Name)
		case below.Content != b.Content:
			return errs.New(errs.Corrupt, "", "", "it reads from %s, which holds %s, not %s", below.Name, below.Content, b.Content)
		}
		b = below.Backing
	}
	return nil
}

func (a *adoption) notes() []string {
	as := "a base, which nobody writes any more"
	if a.Instance != "" {
		as = "a " + a.Role + " disk of instance " + a.instance.Name
	}
	notes := []string{fmt.Sprintf("takes %s (%s, %s) where it lies as %s; 0 bytes are copied", a.Name, a.format, disk.FormatSize(a.volume.VirtualSize), as),
		"gives it the owner and the permissions of the pool's volumes"}
	if a.volume.Backing != nil {
		notes = append(notes, "it reads from "+a.volume.Backing.Name)
	}
	if a.version == 2 && a.Instance != "" {
		notes = append(notes, "it cannot be resized, being qcow2 of version 2; \"qemu-img amend -f qcow2 -o compat=v3\" makes it version 3 before it is adopted")
	}
	if a.Instance == "" {
		notes = append(notes, "reads all of it once, for the digest of its content")
	}
	return notes
}

// intendAdoption writes the records, in state creating, after deciding that its
// domain can take the volume on: the bytes it has are foreign no longer.
func (e *Engine) intendAdoption(ctx context.Context, tx *store.Tx, a *adoption, space measured) error {
	space.foreign = max(0, space.foreign-a.volume.Allocated)
	if err := admit(ctx, tx, a.pool.DomainID, space, plan.Need{Commit: a.volume.Committed, Write: adoptWrites}); err != nil {
		return errs.Wrap(err, opAdopt, a.pool.Name+"/"+a.Name)
	}
	if err := a.backed(ctx, tx); err != nil { // again: the gate took its time
		return errs.Wrap(err, opAdopt, a.pool.Name+"/"+a.Name)
	}
	if err := tx.Volumes.Insert(ctx, a.volume); err != nil {
		return err
	}
	if a.Instance == "" {
		return nil
	}
	existing, err := disksOf(ctx, tx, a.instance.ID)
	if err != nil {
		return err
	}
	d, err := a.newDisk(existing)
	if err != nil {
		return errs.Wrap(err, opAdopt, a.pool.Name+"/"+a.Name)
	}
	return tx.Disks.Insert(ctx, d)
}

// newDisk is the disk that the volume becomes. What the guest sees of it is new:
// nothing knows what it saw before.
func (a *adoption) newDisk(existing []disk.Disk) (disk.Disk, error) {
	v, role := a.volume, disk.Role(a.Role)
	index, name, err := plan.NameDisk(role, existing)
	if err != nil {
		return disk.Disk{}, err
	}
	bus := plan.Buses[0]
	if role == disk.RoleCdrom {
		bus = "sata"
	}
	device, err := plan.NameDevice(bus, "", existing)
	info, _ := json.Marshal(driverInfo{V: 1}) // plain data: cannot fail
	return disk.Disk{
		ID: disk.DiskID(newID()), InstanceID: a.instance.ID, Name: name, Role: role, Index: index, Size: v.VirtualSize, VolumeID: v.ID, Serial: newSerial(),
		Bus: bus, Device: device, BootIndex: plan.BootIndex(role, existing), ReadOnly: role == disk.RoleCdrom, Discard: "unmap", Cache: "none", Prealloc: "none",
		Source: disk.Source{Kind: adoptedKind}, DriverInfo: info, CreatedAt: v.CreatedAt, UpdatedAt: v.UpdatedAt,
	}, err
}
