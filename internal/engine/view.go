package engine

import (
	"context"
	"os/user"
	"strconv"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/store"
)

// defaultLimit is how many items a page has that asks for no number.
const defaultLimit = 1000

// pageQuery turns a page of the API into a query.
func pageQuery(p api.Page, where ...store.Where) store.Query {
	limit := p.Limit
	switch {
	case limit == 0:
		limit = defaultLimit
	case limit < 0:
		limit = 0
	}
	return store.Query{Where: where, After: p.After, Limit: limit}
}

// view turns records into what the API shows. It looks up what they refer to
// once per kind.
type view struct {
	e         *Engine
	tx        *store.Tx
	pools     map[disk.PoolID]disk.Pool
	hosts     map[disk.HostID]disk.Host
	instances map[disk.InstanceID]string
}

func (e *Engine) view(tx *store.Tx) *view {
	return &view{e: e, tx: tx, pools: map[disk.PoolID]disk.Pool{}, hosts: map[disk.HostID]disk.Host{}, instances: map[disk.InstanceID]string{}}
}

// remember returns m[id], asking get for it the first time.
func remember[K ~string, R any](m map[K]R, id K, get func() (R, error)) (R, error) {
	if r, ok := m[id]; ok {
		return r, nil
	}
	r, err := get()
	if err == nil {
		m[id] = r
	}
	return r, err
}

func (v *view) pool(ctx context.Context, id disk.PoolID) (disk.Pool, error) {
	return remember(v.pools, id, func() (disk.Pool, error) { return v.tx.Pools.Get(ctx, id) })
}

func (v *view) instanceName(ctx context.Context, id disk.InstanceID) (string, error) {
	return remember(v.instances, id, func() (string, error) {
		i, err := v.tx.Instances.Get(ctx, id)
		return i.Name, err
	})
}

func (v *view) path(vol disk.Volume) string {
	if p, ok := v.e.pools.get(vol.PoolID); ok {
		return p.Path(vol)
	}
	return ""
}

func backingView(b *disk.Backing) *api.Backing {
	if b == nil {
		return nil
	}
	return &api.Backing{Volume: string(b.VolumeID), Format: string(b.Format), Content: b.Content}
}

func (v *view) volume(ctx context.Context, r disk.Volume) (api.Volume, error) {
	p, err := v.pool(ctx, r.PoolID)
	return api.Volume{
		ID: string(r.ID), Pool: p.Name, Name: r.Name, Kind: string(r.Kind), State: string(r.State), Format: string(r.Format),
		VirtualSize: r.VirtualSize, RequestedSize: r.RequestedSize, AllocatedSize: r.Allocated, Committed: r.Committed,
		Adopted: r.Adopted, Backing: backingView(r.Backing), Content: r.Content, Path: v.path(r), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}, err
}

func (v *view) disk(ctx context.Context, d disk.Disk, vol disk.Volume, lease *disk.Lease) (api.Disk, error) {
	p, err := v.pool(ctx, vol.PoolID)
	if err != nil {
		return api.Disk{}, err
	}
	instance, err := v.instanceName(ctx, d.InstanceID)
	if err != nil {
		return api.Disk{}, err
	}
	attached, err := v.lease(ctx, lease)
	return api.Disk{
		ID: string(d.ID), Instance: instance, Name: d.Name, Role: string(d.Role), Index: d.Index, Size: d.Size,
		Format: string(vol.Format), Pool: p.Name, Volume: string(vol.ID), State: string(vol.State), Path: v.path(vol),
		Serial: d.Serial, Bus: d.Bus, Device: d.Device, BootIndex: d.BootIndex, ReadOnly: d.ReadOnly, Discard: d.Discard, Cache: d.Cache,
		Source:  api.DiskSource{Kind: d.Source.Kind, Image: d.Source.Image, Content: d.Source.Content, FS: d.Source.FS, Label: d.Source.Label},
		Backing: backingView(vol.Backing), DriverInfo: d.DriverInfo, Attached: attached, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt,
	}, err
}

func (v *view) lease(ctx context.Context, l *disk.Lease) (*api.Lease, error) {
	if l == nil {
		return nil, nil
	}
	h, err := remember(v.hosts, l.HostID, func() (disk.Host, error) { return v.tx.Hosts.Get(ctx, l.HostID) })
	if errs.KindOf(err) == errs.NotFound && err != nil {
		h, err = disk.Host{Name: string(l.HostID)}, nil
	}
	return &api.Lease{Host: h.Name, State: string(l.State), Since: l.CreatedAt}, err
}

// disks shows ds; one lookup of volumes and leases serves all of them.
func (v *view) disks(ctx context.Context, ds []disk.Disk) ([]api.Disk, error) {
	out := make([]api.Disk, 0, len(ds))
	for _, d := range ds {
		vol, err := v.tx.Volumes.Get(ctx, d.VolumeID)
		if err != nil {
			return nil, err
		}
		lease, err := leaseOf(ctx, v.tx, vol.ID)
		if err != nil {
			return nil, err
		}
		a, err := v.disk(ctx, d, vol, lease)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// leaseOf returns the lease on a volume, or nil.
func leaseOf(ctx context.Context, tx *store.Tx, id disk.VolumeID) (*disk.Lease, error) {
	l, err := tx.Leases.Get(ctx, id)
	if err != nil {
		if errs.KindOf(err) == errs.NotFound {
			return nil, nil
		}
		return nil, err
	}
	return &l, nil
}

func (v *view) instance(ctx context.Context, i disk.Instance) (api.Instance, error) {
	ds, err := disksOf(ctx, v.tx, i.ID)
	if err != nil {
		return api.Instance{}, err
	}
	v.instances[i.ID] = i.Name
	disks, err := v.disks(ctx, ds)
	return api.Instance{ID: string(i.ID), Name: i.Name, Disks: disks, CreatedAt: i.CreatedAt, UpdatedAt: i.UpdatedAt}, err
}

func (v *view) image(ctx context.Context, i disk.Image) (api.Image, error) {
	out := api.Image{
		ID: string(i.ID), Name: i.Name, State: string(i.State), Format: string(i.Format), VirtualSize: i.VirtualSize, MinDisk: i.MinDisk,
		SourceSHA256: i.SourceSHA256, Source: (*api.ImageSource)(i.Source), Content: i.Content, Bases: []api.ImageBase{}, CreatedAt: i.CreatedAt, UpdatedAt: i.UpdatedAt,
	}
	if i.Proof != nil {
		out.Verified, out.Signed = i.Proof.Checksums, (*api.ImageSigned)(i.Proof.Signature)
	}
	bases, err := basesOf(ctx, v.tx, i.Content)
	if err != nil {
		return out, err
	}
	for _, b := range bases {
		p, err := v.pool(ctx, b.PoolID)
		if err != nil {
			return out, err
		}
		out.Bases = append(out.Bases, api.ImageBase{Volume: string(b.ID), Pool: p.Name, State: string(b.State), Format: string(b.Format)})
	}
	return out, nil
}

// basesOf returns the bases that hold content, in any pool and state, as copies of
// images: not those that were adopted.
func basesOf(ctx context.Context, tx *store.Tx, content string) ([]disk.Volume, error) {
	if content == "" {
		return nil, nil
	}
	bases, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("kind", disk.KindBase), store.Eq("content", content), store.Eq("adopted", false)}})
	return bases, err
}

// poolView shows a pool with the space of its domain. A pool that is not
// active shows what is promised but not what is measured, one that does not
// answer what was measured last.
func (e *Engine) poolView(ctx context.Context, r disk.Pool) (api.Pool, error) {
	look := e.lookAt(ctx, r)
	out := api.Pool{
		ID: string(r.ID), Name: r.Name, Driver: r.Driver, State: look.state, Reason: look.reason, Path: r.Path, Source: api.PoolSource(r.Source), Owner: ownerName(r.Owner),
		Identity: r.Identity, DiskFormat: string(r.DiskFormat), ImageFormats: make([]string, 0, len(r.ImageFormats)), CreatedAt: r.CreatedAt, UpdatedAt: r.UpdatedAt,
	}
	for _, f := range r.ImageFormats {
		out.ImageFormats = append(out.ImageFormats, string(f))
	}
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		d, err := tx.Domains.Get(ctx, r.DomainID)
		if err != nil {
			return err
		}
		sums, err := tx.PoolSums(ctx, r.ID)
		if err != nil {
			return err
		}
		all, err := tx.DomainSums(ctx, r.DomainID)
		if err != nil {
			return err
		}
		out.Domain, out.Overcommit = d.Identity, float64(d.Overcommit)/1000
		out.Provisioned, out.Allocated, out.Committed = sums.Provisioned, sums.Allocated, all.Committed
		if look.unknown == nil {
			e.showSpace(&out, look, d, plan.Space{Capacity: look.capacity, Free: look.free, Foreign: look.foreign, Committed: all.Committed, Writing: all.Writing})
		}
		out.SharesWith, err = sharing(ctx, tx, r)
		return err
	})
	e.stir(r.ID, out.State)
	return out, err
}

// answers reports whether a pool is open and its storage where it was.
func (e *Engine) answers(ctx context.Context, r disk.Pool) bool {
	_, err := e.peek(ctx, r)
	return err == nil
}

// sharing names the other pools of r's capacity domain.
func sharing(ctx context.Context, tx *store.Tx, r disk.Pool) ([]string, error) {
	pools, _, err := tx.Pools.List(ctx, store.Query{Where: []store.Where{store.Eq("domain_id", r.DomainID)}})
	var names []string
	for _, p := range pools {
		if p.ID != r.ID {
			names = append(names, p.Name)
		}
	}
	return names, err
}

// ownerName writes an owner as USER:GROUP, by name where the host knows one.
func ownerName(o disk.Owner) string {
	uid, gid := strconv.Itoa(o.UID), strconv.Itoa(o.GID)
	if u, err := user.LookupId(uid); err == nil {
		uid = u.Username
	}
	if g, err := user.LookupGroupId(gid); err == nil {
		gid = g.Name
	}
	return uid + ":" + gid
}

func operationView(op journal.Operation) api.Operation {
	out := api.Operation{
		ID: string(op.ID), Kind: op.Kind, State: string(op.State), Subject: api.Subject(op.Subject), Key: op.Key,
		Progress: api.Progress(op.Progress), Steps: stepsView(op.Steps), Result: op.Result, CreatedAt: op.CreatedAt, UpdatedAt: op.UpdatedAt,
	}
	if op.State == journal.Done {
		out.Progress.Done, out.Progress.Rate, out.Progress.ETASeconds = op.Progress.Total, 0, 0
	}
	if op.Error != nil {
		out.Error = &api.Error{Kind: op.Error.Kind, Class: op.Error.Class, Op: op.Error.Op, Subject: op.Error.Subject, Message: op.Error.Message, Hint: op.Error.Hint}
	}
	return out
}

func stepsView(steps []journal.Step) []api.Step {
	out := make([]api.Step, 0, len(steps))
	for _, s := range steps {
		out = append(out, api.Step{Kind: s.Kind, State: string(s.State), Detail: s.Args})
	}
	return out
}
