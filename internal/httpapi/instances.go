package httpapi

import (
	"context"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tarn-storage/tarn/api"
)

// empty is the answer of a call that has nothing to say.
type empty struct{}

// largeBody lets a config drive's files through.
func largeBody(op *huma.Operation) {
	op.MaxBodyBytes, op.BodyReadTimeout = maxConfigDrive, driveTimeout
}

func (s *Server) routeInstances() {
	e := s.engine
	query(s, call("instance-list", "GET", "/v1/instances", "List instances"),
		func(ctx context.Context, in *Paging) (api.List[api.Instance], error) {
			return e.Instances(ctx, in.page())
		})
	query(s, call("instance-show", "GET", "/v1/instances/{ref}", "Show an instance and its disks"),
		func(ctx context.Context, in *Ref) (api.Instance, error) { return e.Instance(ctx, in.Ref) })
	change(s, call("instance-create", "POST", "/v1/instances", "Create an instance and its disks", largeBody),
		func(ctx context.Context, o api.Options, in *changeBody[api.InstanceCreate]) (api.Outcome, error) {
			return e.InstanceCreate(ctx, o, in.Body)
		})
	change(s, call("instance-rename", "PATCH", "/v1/instances/{ref}", "Rename an instance"),
		func(ctx context.Context, o api.Options, in *changeRefBody[api.Rename]) (api.Outcome, error) {
			return e.InstanceRename(ctx, o, in.Ref.Ref, in.Body.Name)
		})
	change(s, call("instance-delete", "DELETE", "/v1/instances/{ref}", "Delete an instance and its disks"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.InstanceDelete(ctx, o, in.Ref.Ref)
		})
	query(s, call("instance-attachment", "GET", "/v1/instances/{ref}/attachment", "Show what a hypervisor needs, without a lease"),
		func(ctx context.Context, in *showAs) (api.Attachment, error) {
			return e.InstanceShow(ctx, in.Ref.Ref, in.As)
		})
	query(s, call("instance-attach", "POST", "/v1/instances/{ref}/attach", "Take the leases of all disks"),
		func(ctx context.Context, in *refBody[api.Attach]) (api.Attachment, error) {
			return e.InstanceAttach(ctx, in.Ref.Ref, in.Body)
		})
	query(s, call("instance-detach", "POST", "/v1/instances/{ref}/detach", "Give the leases of all disks up"),
		func(ctx context.Context, in *refBody[api.Detach]) (empty, error) {
			return empty{}, e.InstanceDetach(ctx, in.Ref.Ref, in.Body)
		})
}
