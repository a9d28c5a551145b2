package client

import (
	"context"
	"net/http"
	"time"

	"github.com/tarn-storage/tarn/api"
)

// PoolCreate creates a pool.
func (c *Client) PoolCreate(ctx context.Context, o api.Options, p api.PoolCreate) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"pools"}, body: p})
}

// PoolImport takes a self-describing pool into the records.
func (c *Client) PoolImport(ctx context.Context, o api.Options, p api.PoolImport) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"pools", "import"}, body: p})
}

// PoolSet renames a pool or changes its settings.
func (c *Client) PoolSet(ctx context.Context, o api.Options, ref string, p api.PoolSet) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPatch, path: []string{"pools", ref}, body: p})
}

// PoolStart makes a stopped pool active.
func (c *Client) PoolStart(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"pools", ref, "start"}})
}

// PoolStop makes a pool inactive.
func (c *Client) PoolStop(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"pools", ref, "stop"}})
}

// PoolBuild makes the storage of a pool that is not active from raw material.
func (c *Client) PoolBuild(ctx context.Context, o api.Options, ref string, b api.PoolBuild) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"pools", ref, "build"}, body: b})
}

// PoolRefresh looks at a pool's space and objects again now.
func (c *Client) PoolRefresh(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"pools", ref, "refresh"}})
}

// PoolDelete deletes a pool; with keepData its bytes and marker stay.
func (c *Client) PoolDelete(ctx context.Context, o api.Options, ref string, keepData bool) (api.Outcome, error) {
	r := request{method: http.MethodDelete, path: []string{"pools", ref}}
	if keepData {
		r.query = set(nil, "keep_data", "true")
	}
	return c.change(ctx, o, r)
}

// Pools lists pools.
func (c *Client) Pools(ctx context.Context, p api.Page) (api.List[api.Pool], error) {
	return list[api.Pool](ctx, c, "pools", p)
}

// Pool shows a pool.
func (c *Client) Pool(ctx context.Context, ref string) (api.Pool, error) {
	return get[api.Pool](ctx, c, "pools", ref)
}

// Drivers lists the pool technologies of the daemon's build.
func (c *Client) Drivers(ctx context.Context) (api.List[api.Driver], error) {
	return list[api.Driver](ctx, c, "drivers", api.Page{})
}

// Volumes lists volumes, of one pool unless pool is empty.
func (c *Client) Volumes(ctx context.Context, pool string, p api.Page) (api.List[api.Volume], error) {
	return list[api.Volume](ctx, c, "volumes", p, "pool", pool)
}

// Volume shows a volume.
func (c *Client) Volume(ctx context.Context, ref string) (api.Volume, error) {
	return get[api.Volume](ctx, c, "volumes", ref)
}

// Foreign lists what lies in pools and was not made by tarn, in one pool unless
// pool is empty.
func (c *Client) Foreign(ctx context.Context, pool string) (api.List[api.ForeignObject], error) {
	return list[api.ForeignObject](ctx, c, "foreign", api.Page{}, "pool", pool)
}

// VolumeAdopt takes an object that tarn did not make into the records, where it
// lies.
func (c *Client) VolumeAdopt(ctx context.Context, o api.Options, v api.VolumeAdopt) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"volumes", "adopt"}, body: v})
}

// VolumeRelease takes an adopted volume out of the records and leaves it where it
// lies.
func (c *Client) VolumeRelease(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"volumes", ref, "release"}})
}

// ImageRename renames an image.
func (c *Client) ImageRename(ctx context.Context, o api.Options, ref, name string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPatch, path: []string{"images", ref}, body: api.Rename{Name: name}})
}

// ImageDelete deletes an image; referenced bases stay.
func (c *Client) ImageDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodDelete, path: []string{"images", ref}})
}

// Images lists images.
func (c *Client) Images(ctx context.Context, p api.Page) (api.List[api.Image], error) {
	return list[api.Image](ctx, c, "images", p)
}

// Image shows an image.
func (c *Client) Image(ctx context.Context, ref string) (api.Image, error) {
	return get[api.Image](ctx, c, "images", ref)
}

// Cache lists the bases of all pools.
func (c *Client) Cache(ctx context.Context, p api.Page) (api.List[api.CacheEntry], error) {
	return list[api.CacheEntry](ctx, c, "cache", p)
}

// CacheAdd puts an image's base into a pool.
func (c *Client) CacheAdd(ctx context.Context, o api.Options, a api.CacheAdd) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"cache"}, body: a})
}

// CacheUnpin lets age decide about an image's base in a pool again.
func (c *Client) CacheUnpin(ctx context.Context, o api.Options, u api.CacheUnpin) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"cache", "unpin"}, body: u})
}

// CachePrune removes bases that nothing refers to.
func (c *Client) CachePrune(ctx context.Context, o api.Options, p api.CachePrune) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"cache", "prune"}, body: p})
}

// Scrub compares bases with what was imported. The operation's result is an
// api.Report.
func (c *Client) Scrub(ctx context.Context, o api.Options, s api.Scrub) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"cache", "scrub"}, body: s})
}

// InstanceCreate creates an instance and its disks.
func (c *Client) InstanceCreate(ctx context.Context, o api.Options, i api.InstanceCreate) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"instances"}, body: i})
}

// InstanceRename renames an instance.
func (c *Client) InstanceRename(ctx context.Context, o api.Options, ref, name string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPatch, path: []string{"instances", ref}, body: api.Rename{Name: name}})
}

// InstanceDelete deletes an instance and its disks.
func (c *Client) InstanceDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodDelete, path: []string{"instances", ref}})
}

// Instances lists instances.
func (c *Client) Instances(ctx context.Context, p api.Page) (api.List[api.Instance], error) {
	return list[api.Instance](ctx, c, "instances", p)
}

// Instance shows an instance and its disks.
func (c *Client) Instance(ctx context.Context, ref string) (api.Instance, error) {
	return get[api.Instance](ctx, c, "instances", ref)
}

// InstanceShow returns what a hypervisor needs, without taking leases.
func (c *Client) InstanceShow(ctx context.Context, ref, as string) (api.Attachment, error) {
	return c.attachment(ctx, "instances", ref, as)
}

// InstanceAttach takes the leases of all disks.
func (c *Client) InstanceAttach(ctx context.Context, ref string, a api.Attach) (api.Attachment, error) {
	return call[api.Attachment](ctx, c, request{method: http.MethodPost, path: []string{"instances", ref, "attach"}, body: a})
}

// InstanceDetach gives the leases of all disks up.
func (c *Client) InstanceDetach(ctx context.Context, ref string, d api.Detach) error {
	_, err := call[struct{}](ctx, c, request{method: http.MethodPost, path: []string{"instances", ref, "detach"}, body: d})
	return err
}

func (c *Client) attachment(ctx context.Context, noun, ref, as string) (api.Attachment, error) {
	return call[api.Attachment](ctx, c, request{method: http.MethodGet, path: []string{noun, ref, "attachment"}, query: set(nil, "as", as)})
}

// DiskCreate creates one more disk of an instance.
func (c *Client) DiskCreate(ctx context.Context, o api.Options, d api.DiskCreate) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"disks"}, body: d})
}

// DiskDelete deletes a disk.
func (c *Client) DiskDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodDelete, path: []string{"disks", ref}})
}

// DiskResize gives a disk another size.
func (c *Client) DiskResize(ctx context.Context, o api.Options, ref string, r api.DiskResize) (api.Outcome, error) {
	return c.change(ctx, o, request{method: http.MethodPost, path: []string{"disks", ref, "resize"}, body: r})
}

// Disks lists disks, of one instance unless instance is empty.
func (c *Client) Disks(ctx context.Context, instance string, p api.Page) (api.List[api.Disk], error) {
	return list[api.Disk](ctx, c, "disks", p, "instance", instance)
}

// Disk shows a disk.
func (c *Client) Disk(ctx context.Context, ref string) (api.Disk, error) {
	return get[api.Disk](ctx, c, "disks", ref)
}

// DiskShow returns what a hypervisor needs, without taking the lease.
func (c *Client) DiskShow(ctx context.Context, ref, as string) (api.Attachment, error) {
	return c.attachment(ctx, "disks", ref, as)
}

// DiskAttach takes a disk's lease.
func (c *Client) DiskAttach(ctx context.Context, ref string, a api.Attach) (api.Attachment, error) {
	return call[api.Attachment](ctx, c, request{method: http.MethodPost, path: []string{"disks", ref, "attach"}, body: a})
}

// DiskDetach gives a disk's lease up.
func (c *Client) DiskDetach(ctx context.Context, ref string, d api.Detach) error {
	_, err := call[struct{}](ctx, c, request{method: http.MethodPost, path: []string{"disks", ref, "detach"}, body: d})
	return err
}

// Operations lists operations, in one state unless state is empty.
func (c *Client) Operations(ctx context.Context, state string, p api.Page) (api.List[api.Operation], error) {
	return list[api.Operation](ctx, c, "operations", p, "state", state)
}

// Operation shows an operation.
func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	return get[api.Operation](ctx, c, "operations", id)
}

// OperationWait returns the operation when it has ended, or as it is after d,
// which is rounded to seconds, at least one.
func (c *Client) OperationWait(ctx context.Context, id string, d time.Duration) (api.Operation, error) {
	return call[api.Operation](ctx, c, request{method: http.MethodGet, path: []string{"operations", id}, query: set(nil, "wait", seconds(d))})
}

// OperationCancel asks an operation to stop and undo itself.
func (c *Client) OperationCancel(ctx context.Context, id string) (api.Operation, error) {
	return call[api.Operation](ctx, c, request{method: http.MethodPost, path: []string{"operations", id, "cancel"}})
}

// Doctor checks the invariants, and repairs what is safe if asked.
func (c *Client) Doctor(ctx context.Context, d api.Doctor) (api.Report, error) {
	return call[api.Report](ctx, c, request{method: http.MethodPost, path: []string{"doctor"}, body: d})
}

// Version says what the daemon runs.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	return get[api.Version](ctx, c, "version")
}
