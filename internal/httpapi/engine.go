package httpapi

import (
	"context"
	"iter"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// Engine is what the API serves. A ref names an object the way a user does: by
// name, id, serial or INSTANCE/root. Every changing call answers with a plan
// when the options ask for a dry run, else with an operation, which may still
// be running.
type Engine interface {
	Pools
	Images
	Cache
	Instances
	Disks
	Operations
	System
}

// Pools is the part of the engine that keeps pools.
type Pools interface {
	PoolCreate(context.Context, api.Options, api.PoolCreate) (api.Outcome, error)
	PoolImport(context.Context, api.Options, api.PoolImport) (api.Outcome, error)
	PoolSet(ctx context.Context, o api.Options, ref string, set api.PoolSet) (api.Outcome, error)
	PoolBuild(ctx context.Context, o api.Options, ref string, b api.PoolBuild) (api.Outcome, error)
	PoolStart(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
	PoolStop(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
	PoolRefresh(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
	PoolDelete(ctx context.Context, o api.Options, ref string, keepData bool) (api.Outcome, error)
	Pools(context.Context, api.Page) (api.List[api.Pool], error)
	Pool(ctx context.Context, ref string) (api.Pool, error)
	Drivers(context.Context) (api.List[api.Driver], error)
	Volumes(ctx context.Context, pool string, p api.Page) (api.List[api.Volume], error)
	Volume(ctx context.Context, ref string) (api.Volume, error)
	Foreign(ctx context.Context, pool string) (api.List[api.ForeignObject], error)
	VolumeAdopt(context.Context, api.Options, api.VolumeAdopt) (api.Outcome, error)
	VolumeRelease(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
}

// Images is the part that keeps images. A source is read until the operation
// has ended; the API closes it then.
type Images interface {
	ImageImport(context.Context, api.Options, api.ImageImport, ingest.Source) (api.Outcome, error)
	ImageInspect(context.Context, api.ImageInspect, ingest.Source) (api.Verdict, error)
	ImageExport(ctx context.Context, ref string, x api.Export, s engine.Sink, progress func(done, total int64)) error
	ImageRename(ctx context.Context, o api.Options, ref, name string) (api.Outcome, error)
	ImageDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
	Images(context.Context, api.Page) (api.List[api.Image], error)
	Image(ctx context.Context, ref string) (api.Image, error)
}

// Cache is the part that keeps bases.
type Cache interface {
	Cache(context.Context, api.Page) (api.List[api.CacheEntry], error)
	CacheAdd(context.Context, api.Options, api.CacheAdd) (api.Outcome, error)
	CacheUnpin(context.Context, api.Options, api.CacheUnpin) (api.Outcome, error)
	CachePrune(context.Context, api.Options, api.CachePrune) (api.Outcome, error)
	Scrub(context.Context, api.Options, api.Scrub) (api.Outcome, error)
}

// Instances is the part that keeps instances.
type Instances interface {
	InstanceCreate(context.Context, api.Options, api.InstanceCreate) (api.Outcome, error)
	InstanceRename(ctx context.Context, o api.Options, ref, name string) (api.Outcome, error)
	InstanceDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
	Instances(context.Context, api.Page) (api.List[api.Instance], error)
	Instance(ctx context.Context, ref string) (api.Instance, error)
	InstanceShow(ctx context.Context, ref, as string) (api.Attachment, error)
	InstanceAttach(ctx context.Context, ref string, a api.Attach) (api.Attachment, error)
	InstanceDetach(ctx context.Context, ref string, d api.Detach) error
}

// Disks is the part that keeps single disks. An export's progress is called
// from one goroutine at a time.
type Disks interface {
	DiskCreate(context.Context, api.Options, api.DiskCreate) (api.Outcome, error)
	DiskDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error)
	DiskResize(ctx context.Context, o api.Options, ref string, r api.DiskResize) (api.Outcome, error)
	Disks(ctx context.Context, instance string, p api.Page) (api.List[api.Disk], error)
	Disk(ctx context.Context, ref string) (api.Disk, error)
	DiskShow(ctx context.Context, ref, as string) (api.Attachment, error)
	DiskAttach(ctx context.Context, ref string, a api.Attach) (api.Attachment, error)
	DiskDetach(ctx context.Context, ref string, d api.Detach) error
	DiskExport(ctx context.Context, ref string, x api.Export, s engine.Sink, progress func(done, total int64)) error
}

// Operations is the part that keeps the journal. OperationWait returns when
// the operation has ended or the time is over, whichever is first.
type Operations interface {
	Operations(ctx context.Context, state string, p api.Page) (api.List[api.Operation], error)
	Operation(ctx context.Context, id string) (api.Operation, error)
	OperationWait(ctx context.Context, id string, d time.Duration) (api.Operation, error)
	OperationCancel(ctx context.Context, id string) (api.Operation, error)
}

// System is what concerns the whole. Events yields every event after the
// given one and then waits for new ones until ctx ends; EventPage returns at
// most limit of them and none when there are none yet.
type System interface {
	Doctor(context.Context, api.Doctor) (api.Report, error)
	Events(ctx context.Context, after int64) iter.Seq2[api.Event, error]
	EventPage(ctx context.Context, after int64, limit int) ([]api.Event, error)
	Version(context.Context) api.Version
}
