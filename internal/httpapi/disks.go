package httpapi

import (
	"context"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/engine"
)

type diskList struct {
	Paging
	Instance string `query:"instance" doc:"Only disks of this instance."`
}

func (s *Server) routeDisks() {
	e := s.engine
	query(s, call("disk-list", "GET", "/v1/disks", "List disks"),
		func(ctx context.Context, in *diskList) (api.List[api.Disk], error) {
			return e.Disks(ctx, in.Instance, in.page())
		})
	query(s, call("disk-show", "GET", "/v1/disks/{ref}", "Show a disk"),
		func(ctx context.Context, in *Ref) (api.Disk, error) { return e.Disk(ctx, in.Ref) })
	change(s, call("disk-create", "POST", "/v1/disks", "Create one more disk of an instance"),
		func(ctx context.Context, o api.Options, in *changeBody[api.DiskCreate]) (api.Outcome, error) {
			return e.DiskCreate(ctx, o, in.Body)
		})
	change(s, call("disk-delete", "DELETE", "/v1/disks/{ref}", "Delete a disk"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.DiskDelete(ctx, o, in.Ref.Ref)
		})
	change(s, call("disk-resize", "POST", "/v1/disks/{ref}/resize", "Give a disk another size"),
		func(ctx context.Context, o api.Options, in *changeRefBody[api.DiskResize]) (api.Outcome, error) {
			return e.DiskResize(ctx, o, in.Ref.Ref, in.Body)
		})
	query(s, call("disk-attachment", "GET", "/v1/disks/{ref}/attachment", "Show what a hypervisor needs, without a lease"),
		func(ctx context.Context, in *showAs) (api.Attachment, error) {
			return e.DiskShow(ctx, in.Ref.Ref, in.As)
		})
	query(s, call("disk-attach", "POST", "/v1/disks/{ref}/attach", "Take a disk's lease"),
		func(ctx context.Context, in *refBody[api.Attach]) (api.Attachment, error) {
			return e.DiskAttach(ctx, in.Ref.Ref, in.Body)
		})
	query(s, call("disk-detach", "POST", "/v1/disks/{ref}/detach", "Give a disk's lease up"),
		func(ctx context.Context, in *refBody[api.Detach]) (empty, error) {
			return empty{}, e.DiskDetach(ctx, in.Ref.Ref, in.Body)
		})
	s.routeExport("disk-export", "/v1/disks/{ref}/export", "Write a disk's bytes to the answer or into a descriptor",
		func(ctx context.Context, ref string, x api.Export, to engine.Sink, progress func(done, total int64)) error {
			return e.DiskExport(ctx, ref, x, to, progress)
		})
}
