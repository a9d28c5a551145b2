package httpapi

import (
	"context"

	"github.com/tarn-storage/tarn/api"
)

func (s *Server) routeCache() {
	e := s.engine
	query(s, call("cache-list", "GET", "/v1/cache", "List the bases of all pools"),
		func(ctx context.Context, in *Paging) (api.List[api.CacheEntry], error) {
			return e.Cache(ctx, in.page())
		})
	change(s, call("cache-add", "POST", "/v1/cache", "Put an image's base into a pool"),
		func(ctx context.Context, o api.Options, in *changeBody[api.CacheAdd]) (api.Outcome, error) {
			return e.CacheAdd(ctx, o, in.Body)
		})
	change(s, call("cache-unpin", "POST", "/v1/cache/unpin", "Let age decide about an image's base in a pool again"),
		func(ctx context.Context, o api.Options, in *changeBody[api.CacheUnpin]) (api.Outcome, error) {
			return e.CacheUnpin(ctx, o, in.Body)
		})
	change(s, call("cache-prune", "POST", "/v1/cache/prune", "Remove bases that nothing refers to"),
		func(ctx context.Context, o api.Options, in *changeBody[api.CachePrune]) (api.Outcome, error) {
			return e.CachePrune(ctx, o, in.Body)
		})
	change(s, call("cache-scrub", "POST", "/v1/cache/scrub", "Compare bases with what was imported, quarantine corrupt ones, and make them again where that is asked for"),
		func(ctx context.Context, o api.Options, in *changeBody[api.Scrub]) (api.Outcome, error) {
			return e.Scrub(ctx, o, in.Body)
		})
}
