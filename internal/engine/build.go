package engine

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/generate"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/store"
)

// diskOrder is one disk to make, with everything about it that chance or a
// person chose, so that planning it again gives the same disk. It goes into the
// journal.
type diskOrder struct {
	Disk   disk.DiskID    `json:"disk"`
	Volume disk.VolumeID  `json:"volume"`
	Serial string         `json:"serial"`
	Pool   disk.PoolID    `json:"pool"`
	Image  disk.ImageID   `json:"image,omitempty"`
	Spec   api.DiskSpec   `json:"spec"`
	Config *configRequest `json:"config,omitempty"`
	At     time.Time      `json:"at"`
}

// configRequest says what a config drive is made of, without holding it.
type configRequest struct {
	Kind  string         `json:"kind"`
	Input generate.Input `json:"input"`
}

// buildOrder is an instance, new or not, and disks to make for it.
type buildOrder struct {
	Instance disk.Instance `json:"instance"`
	New      bool          `json:"new"`
	Disks    []diskOrder   `json:"disks"`
}

// added returns the id of the instance the order adds, if it adds one.
func (b buildOrder) added() disk.InstanceID {
	if b.New {
		return b.Instance.ID
	}
	return ""
}

// newSerial returns 20 random characters of [a-z0-9]: what virtio-blk carries.
func newSerial() string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b [20]byte
	for i := 0; i < len(b); {
		var r [32]byte
		rand.Read(r[:]) // never fails: crypto/rand
		for _, x := range r {
			if int(x) < 256/len(alphabet)*len(alphabet) && i < len(b) {
				b[i] = alphabet[int(x)%len(alphabet)]
				i++
			}
		}
	}
	return string(b[:])
}

// order resolves a disk specification against the records and checks all that
// can be known before anything is written.
func (e *Engine) order(ctx context.Context, tx *store.Tx, sur *survey, s api.DiskSpec, pool string) (diskOrder, error) {
	o := diskOrder{Disk: disk.DiskID(newID()), Volume: disk.VolumeID(newID()), Serial: newSerial(), Spec: s, At: e.now()}
	if err := checkSpec(s); err != nil {
		return o, err
	}
	p, err := e.choosePool(ctx, tx, s.Pool, pool)
	if err != nil {
		return o, err
	}
	if _, err := e.pool(p); err != nil {
		return o, err
	}
	o.Pool = p.ID
	keep(&sur.seen.pools, p.ID, p)
	if s.Image == "" {
		return o, nil
	}
	i, err := findImage(ctx, tx, s.Image)
	if err != nil {
		return o, err
	}
	if i.State != disk.ImageReady {
		return o, errs.New(errs.Busy, "disk.create", i.Name, "image %s is %s", i.Name, i.State).WithHint("wait until its import is done")
	}
	o.Image = i.ID
	keep(&sur.seen.images, i.ID, i)
	if s.Size == 0 {
		o.Spec.Size = max(i.VirtualSize, i.MinDisk)
	} else if err := plan.FitsImage(s.Size, max(i.VirtualSize, i.MinDisk)); err != nil {
		return o, err
	}
	return o, nil
}

// checkSpec validates what a request says of one disk.
func checkSpec(s api.DiskSpec) error {
	bad := func(format string, args ...any) *errs.Error {
		return errs.New(errs.Invalid, "disk.create", s.Role, format, args...)
	}
	role := disk.Role(s.Role)
	switch role {
	case disk.RoleRoot, disk.RoleCdrom:
		if s.FS != "" {
			return bad("a %s disk takes its file system from its image", s.Role)
		}
		if role == disk.RoleCdrom && s.Image == "" {
			return bad("a cdrom needs an image")
		}
	case disk.RoleEphemeral, disk.RoleData, disk.RoleSwap:
		if s.Image != "" {
			return bad("a %s disk is not made from an image; only root and cdrom are", s.Role)
		}
		if role == disk.RoleSwap && s.FS != "" {
			return bad("a swap disk holds no file system")
		}
	case disk.RoleConfig:
	default:
		return bad("%q is not a role a disk can be asked for", s.Role).WithHint("use root, ephemeral, swap, data or cdrom")
	}
	if s.Image == "" || s.Size != 0 {
		if err := disk.CheckSize(s.Size); err != nil && role != disk.RoleConfig {
			return err
		}
	}
	return errors.Join(
		plan.CheckChoice("bus", s.Bus, plan.Buses...),
		plan.CheckChoice("disk format", s.Format, "auto", "raw", "qcow2"),
		plan.CheckChoice("discard mode", s.Discard, "unmap", "ignore"),
		plan.CheckChoice("cache mode", s.Cache, "none", "writeback", "writethrough", "directsync", "unsafe"),
		plan.CheckChoice("preallocation", s.Prealloc, "none", "full"),
		generator(s, 0).Validate(max(s.Size, 1)),
	)
}

// generator returns what makes the first content of a disk without an image.
func generator(s api.DiskSpec, index int) generate.Request {
	switch {
	case s.Role == string(disk.RoleSwap):
		return generate.Request{Kind: generate.Swap, Label: or(s.Label, generate.LabelSwap)}
	case s.FS != "":
		label := s.Label
		if label == "" && s.Role == string(disk.RoleEphemeral) {
			label = "ephemeral" + itoa(index)
		}
		return generate.Request{Kind: generate.FileSystem, FS: generate.FS(s.FS), Label: label}
	}
	return generate.Request{Kind: generate.Blank, Label: s.Label}
}

// built is one planned disk with the volume that will hold it.
type built struct {
	pool   disk.Pool
	base   *disk.Volume
	disk   disk.Disk
	volume disk.Volume
	plan   plan.VolumePlan
}

// build plans one disk of an instance inside the deciding transaction. The
// image's base must be ready in the pool.
func (e *Engine) build(ctx context.Context, tx *store.Tx, seen *resolved, i disk.Instance, o diskOrder, existing []disk.Disk, op journal.ID) (built, error) {
	var b built
	r, err := seen.pool(ctx, tx, o.Pool)
	if err != nil {
		return b, err
	}
	p, err := e.pool(r)
	if err != nil {
		return b, err
	}
	role := disk.Role(o.Spec.Role)
	index, name, err := plan.NameDisk(role, existing)
	if err != nil {
		return b, err
	}
	req := plan.VolumeRequest{
		Caps: p.Caps, Policy: r.DiskFormat, Want: disk.FormatPolicy(o.Spec.Format), Size: o.Spec.Size, Prealloc: o.Spec.Prealloc == "full",
		Generates: generator(o.Spec, index).Kind != generate.Blank || o.Config != nil,
	}
	source, base, err := e.source(ctx, tx, seen, o, index)
	if err != nil {
		return b, err
	}
	req.Base, b.base, b.pool = base, base, r
	if b.plan, err = plan.Volume(req); err != nil {
		return b, err
	}
	b.disk, err = e.newDisk(i, o, role, index, name, source, existing)
	if err != nil {
		return b, err
	}
	b.disk.Size = b.plan.VirtualSize
	b.volume = newVolume(b.disk, o, b.plan, op)
	if base != nil {
		b.volume.Backing = &disk.Backing{VolumeID: base.ID, Name: base.Name, Format: base.Format, Content: base.Content}
	}
	return b, nil
}

// errBaseGone says that a base was ready and is not any more: it has to be seen
// to again.
var errBaseGone = errors.New("its base in the pool was pruned meanwhile")

// source says where the disk's content comes from and, for an image, which base
// of the pool holds it.
func (e *Engine) source(ctx context.Context, tx *store.Tx, seen *resolved, o diskOrder, index int) (disk.Source, *disk.Volume, error) {
	if o.Config != nil {
		return disk.Source{Kind: o.Config.Kind, Content: "sha256:" + o.Config.Input.SHA256, Label: o.Config.Kind}, nil, nil
	}
	if o.Image == "" {
		g := generator(o.Spec, index)
		return disk.Source{Kind: string(g.Kind), FS: string(g.FS), Label: g.Label}, nil, nil
	}
	i, err := seen.image(ctx, tx, o.Image)
	if err != nil {
		return disk.Source{}, nil, err
	}
	base, err := baseIn(ctx, tx, o.Pool, i.Content)
	switch {
	case errors.Is(err, errs.NotFound), err == nil && base.State != disk.VolumeReady:
		err = errs.New(errs.Busy, "disk.create", i.Name, "image %s: %w", i.Name, errBaseGone).WithHint("try again")
	}
	return disk.Source{Kind: "image", ImageID: i.ID, Image: i.Name, Content: i.Content}, &base, err
}

// driverInfo is what tarn keeps for a disk beside its record: opaque to users,
// versioned for tarn.
type driverInfo struct {
	V      int    `json:"v"`
	Target string `json:"target,omitempty"` // "asked": the device name was chosen at the first attach
}

func (e *Engine) newDisk(i disk.Instance, o diskOrder, role disk.Role, index int, name string, source disk.Source, existing []disk.Disk) (disk.Disk, error) {
	bus := o.Spec.Bus
	if bus == "" {
		bus = plan.Buses[0]
		if role == disk.RoleCdrom {
			bus = "sata"
		}
	}
	device, err := plan.NameDevice(bus, "", existing)
	info, _ := json.Marshal(driverInfo{V: 1}) // plain data: cannot fail
	return disk.Disk{
		ID: o.Disk, InstanceID: i.ID, Name: name, Role: role, Index: index, VolumeID: o.Volume, Serial: o.Serial, Bus: bus, Device: device,
		BootIndex: plan.BootIndex(role, existing), ReadOnly: role == disk.RoleCdrom || role == disk.RoleConfig,
		Discard: or(o.Spec.Discard, "unmap"), Cache: or(o.Spec.Cache, "none"), Prealloc: or(o.Spec.Prealloc, "none"),
		Source: source, DriverInfo: info, CreatedAt: o.At, UpdatedAt: o.At,
	}, err
}

// newVolume is the record of the volume that will hold d.
func newVolume(d disk.Disk, o diskOrder, p plan.VolumePlan, op journal.ID) disk.Volume {
	return disk.Volume{
		ID: o.Volume, PoolID: o.Pool, Name: string(d.InstanceID) + "_" + string(d.Role) + itoa(d.Index) + "." + string(p.Format), Kind: disk.KindDisk, State: disk.VolumeCreating,
		Format: p.Format, VirtualSize: p.VirtualSize, RequestedSize: p.RequestedSize, ClusterSize: p.ClusterSize, Committed: p.Committed, Writing: p.Writing,
		CreatedBy: disk.OperationID(op), CreatedAt: o.At, UpdatedAt: o.At,
	}
}

// place plans all disks of an order, checks that their domains can take them on
// and writes their records. It is the deciding transaction of every build.
func (e *Engine) place(ctx context.Context, tx *store.Tx, seen *resolved, b buildOrder, op journal.ID, space map[disk.DomainID]measured) error {
	var existing []disk.Disk
	var err error
	if b.New {
		err = tx.Instances.Insert(ctx, b.Instance)
	} else {
		existing, err = disksOf(ctx, tx, b.Instance.ID)
	}
	if err != nil {
		return err
	}
	for _, o := range b.Disks {
		d, err := e.build(ctx, tx, seen, b.Instance, o, existing, op)
		if err != nil {
			return err
		}
		domain := d.pool.DomainID
		if err := admit(ctx, tx, domain, space[domain], plan.Need{Commit: d.plan.Committed, Write: d.plan.Writing}); err != nil {
			return errs.Wrap(err, "disk.create", b.Instance.Name+"/"+d.disk.Name)
		}
		if err := tx.Volumes.Insert(ctx, d.volume); err != nil {
			return err
		}
		if err := tx.Disks.Insert(ctx, d.disk); err != nil {
			return err
		}
		existing = append(existing, d.disk)
		e.planned.put(d.volume.ID, making{diskRecords: diskRecords{pool: d.pool, volume: d.volume, disk: d.disk, instance: b.Instance}, base: d.base})
	}
	return nil
}

// making is what the making of one volume needs to know.
type making struct {
	diskRecords
	base  *disk.Volume
	first bool // nothing was done yet to make it
}

// plans keeps, from the deciding transaction until the volume is made, what
// would otherwise be read again. It may be empty at any time. Its zero value is
// ready.
type plans struct {
	mu sync.Mutex
	of map[disk.VolumeID]making
}

func (p *plans) put(id disk.VolumeID, m making) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil {
		p.of = map[disk.VolumeID]making{}
	}
	p.of[id] = m
}

// take returns what is kept for id and keeps it no longer.
func (p *plans) take(id disk.VolumeID) (making, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m, ok := p.of[id]
	delete(p.of, id)
	return m, ok
}

func (p *plans) drop(b buildOrder) {
	for _, o := range b.Disks {
		p.take(o.Volume)
	}
}

// disksOf returns an instance's disks in the order they were made.
func disksOf(ctx context.Context, tx *store.Tx, id disk.InstanceID) ([]disk.Disk, error) {
	ds, _, err := tx.Disks.List(ctx, store.Query{Where: []store.Where{store.Eq("instance_id", id)}})
	return ds, err
}

func or(s, fallback string) string {
	if strings.TrimSpace(s) == "" {
		return fallback
	}
	return s
}
