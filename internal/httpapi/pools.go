package httpapi

import (
	"context"

	"github.com/tarn-storage/tarn/api"
)

type poolDelete struct {
	Change
	Ref
	KeepData bool `query:"keep_data" doc:"Forget the pool and leave its bytes and marker where they are."`
}

type volumeList struct {
	Paging
	Pool string `query:"pool" doc:"Only volumes of this pool."`
}

type foreignList struct {
	Pool string `query:"pool" doc:"Only what lies in this pool."`
}

func (s *Server) routePools() {
	e := s.engine
	query(s, call("pool-list", "GET", "/v1/pools", "List pools"),
		func(ctx context.Context, in *Paging) (api.List[api.Pool], error) { return e.Pools(ctx, in.page()) })
	query(s, call("pool-show", "GET", "/v1/pools/{ref}", "Show a pool"),
		func(ctx context.Context, in *Ref) (api.Pool, error) { return e.Pool(ctx, in.Ref) })
	change(s, call("pool-create", "POST", "/v1/pools", "Create a pool"),
		func(ctx context.Context, o api.Options, in *changeBody[api.PoolCreate]) (api.Outcome, error) {
			return e.PoolCreate(ctx, o, in.Body)
		})
	change(s, call("pool-import", "POST", "/v1/pools/import", "Take a self-describing pool into the records"),
		func(ctx context.Context, o api.Options, in *changeBody[api.PoolImport]) (api.Outcome, error) {
			return e.PoolImport(ctx, o, in.Body)
		})
	change(s, call("pool-set", "PATCH", "/v1/pools/{ref}", "Rename a pool or change its settings"),
		func(ctx context.Context, o api.Options, in *changeRefBody[api.PoolSet]) (api.Outcome, error) {
			return e.PoolSet(ctx, o, in.Ref.Ref, in.Body)
		})
	change(s, call("pool-build", "POST", "/v1/pools/{ref}/build", "Make the storage of an inactive pool from raw material"),
		func(ctx context.Context, o api.Options, in *changeRefBody[api.PoolBuild]) (api.Outcome, error) {
			return e.PoolBuild(ctx, o, in.Ref.Ref, in.Body)
		})
	change(s, call("pool-start", "POST", "/v1/pools/{ref}/start", "Make a stopped pool active"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.PoolStart(ctx, o, in.Ref.Ref)
		})
	change(s, call("pool-stop", "POST", "/v1/pools/{ref}/stop", "Make a pool inactive"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.PoolStop(ctx, o, in.Ref.Ref)
		})
	change(s, call("pool-refresh", "POST", "/v1/pools/{ref}/refresh", "Look at a pool's space and objects again now"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.PoolRefresh(ctx, o, in.Ref.Ref)
		})
	query(s, call("driver-list", "GET", "/v1/drivers", "List the pool technologies and what they declare"),
		func(ctx context.Context, _ *struct{}) (api.List[api.Driver], error) { return e.Drivers(ctx) })
	change(s, call("pool-delete", "DELETE", "/v1/pools/{ref}", "Delete a pool"),
		func(ctx context.Context, o api.Options, in *poolDelete) (api.Outcome, error) {
			return e.PoolDelete(ctx, o, in.Ref.Ref, in.KeepData)
		})
	query(s, call("volume-list", "GET", "/v1/volumes", "List volumes"),
		func(ctx context.Context, in *volumeList) (api.List[api.Volume], error) {
			return e.Volumes(ctx, in.Pool, in.page())
		})
	query(s, call("volume-show", "GET", "/v1/volumes/{ref}", "Show a volume"),
		func(ctx context.Context, in *Ref) (api.Volume, error) { return e.Volume(ctx, in.Ref) })
	query(s, call("foreign-list", "GET", "/v1/foreign", "List what lies in pools and was not made by tarn"),
		func(ctx context.Context, in *foreignList) (api.List[api.ForeignObject], error) {
			return e.Foreign(ctx, in.Pool)
		})
	change(s, call("volume-adopt", "POST", "/v1/volumes/adopt", "Take an object that tarn did not make into the records, where it lies"),
		func(ctx context.Context, o api.Options, in *changeBody[api.VolumeAdopt]) (api.Outcome, error) {
			return e.VolumeAdopt(ctx, o, in.Body)
		})
	change(s, call("volume-release", "POST", "/v1/volumes/{ref}/release", "Take an adopted volume out of the records and leave it where it lies"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.VolumeRelease(ctx, o, in.Ref.Ref)
		})
}
