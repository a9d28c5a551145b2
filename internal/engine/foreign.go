package engine

import (
	"context"
	"slices"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// Foreign lists what lies in a pool, or with an empty name in all active ones, and
// was not made by tarn. None of it is opened.
func (e *Engine) Foreign(ctx context.Context, ref string) (api.List[api.ForeignObject], error) {
	out := api.List[api.ForeignObject]{Items: []api.ForeignObject{}}
	pools, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]disk.Pool, error) {
		if ref != "" {
			p, err := findPool(ctx, tx, ref)
			return []disk.Pool{p}, err
		}
		all, _, err := tx.Pools.List(ctx, store.Query{})
		return all, err
	})
	if err != nil {
		return out, err
	}
	for _, r := range pools {
		if ref == "" && r.State != disk.PoolActive {
			continue
		}
		found, err := e.foreignIn(ctx, r)
		if err != nil {
			return out, errs.Wrap(err, "volume.list", r.Name)
		}
		out.Items = append(out.Items, found...)
	}
	return out, nil
}

func (e *Engine) foreignIn(ctx context.Context, r disk.Pool) ([]api.ForeignObject, error) {
	p, err := e.pool(r)
	if err != nil {
		return nil, err
	}
	var all []driver.Object
	for o, err := range p.List(ctx) {
		if err != nil {
			return nil, err
		}
		all = append(all, o)
	}
	known, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (map[string]bool, error) {
		vols, err := volumesIn(ctx, tx, r.ID)
		names := make(map[string]bool, len(vols))
		for _, v := range vols {
			names[v.Name] = true
		}
		return names, err
	})
	if err != nil {
		return nil, err
	}
	var out []api.ForeignObject
	for _, o := range all {
		if known[o.Name] {
			continue
		}
		_, err := p.Sidecar(ctx, o.Name)
		if hasNoSidecar(err) {
			out = append(out, api.ForeignObject{Pool: r.Name, Name: o.Name, Size: o.Size, Allocated: o.Allocated})
		} else if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b api.ForeignObject) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
