package engine

import (
	"context"
	"errors"
	"sort"
	"strings"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// byIDOrName finds a record by its id, or by its name.
func byIDOrName[K ~string, R any](ctx context.Context, t store.Table[K, R], typ, ref string) (R, error) {
	var none R
	if ref == "" {
		return none, errs.New(errs.Invalid, typ, "", "which %s? none was named", typ).WithHint("tarn %s list", typ)
	}
	if disk.IsID(strings.ToLower(ref)) {
		if r, err := t.Get(ctx, K(strings.ToLower(ref))); err == nil || !errors.Is(err, errs.NotFound) {
			return r, err
		}
	} else if r, err := t.One(ctx, store.Eq("name", ref)); err == nil || !errors.Is(err, errs.NotFound) {
		return r, err
	}
	return none, errs.New(errs.NotFound, typ, ref, "there is no %s %q", typ, ref).WithHint("tarn %s list shows what there is", typ)
}

func findPool(ctx context.Context, tx *store.Tx, ref string) (disk.Pool, error) {
	return byIDOrName(ctx, tx.Pools, "pool", ref)
}

func findImage(ctx context.Context, tx *store.Tx, ref string) (disk.Image, error) {
	return byIDOrName(ctx, tx.Images, "image", ref)
}

func findInstance(ctx context.Context, tx *store.Tx, ref string) (disk.Instance, error) {
	return byIDOrName(ctx, tx.Instances, "instance", ref)
}

// choosePool finds the pool a request means: the named one, else the configured
// default, else the only active one.
func (e *Engine) choosePool(ctx context.Context, tx *store.Tx, refs ...string) (disk.Pool, error) {
	for _, ref := range append(refs, e.cfg.DefaultPool) {
		if ref != "" {
			return findPool(ctx, tx, ref)
		}
	}
	pools, _, err := tx.Pools.List(ctx, store.Query{})
	if err != nil {
		return disk.Pool{}, err
	}
	switch len(pools) {
	case 1:
		return pools[0], nil
	case 0:
		return disk.Pool{}, errs.New(errs.Invalid, "pool", "", "there is no pool yet").
			WithHint("tarn pool create NAME --driver dir --path DIR")
	}
	names := make([]string, 0, len(pools))
	for _, p := range pools {
		names = append(names, p.Name)
	}
	sort.Strings(names)
	return disk.Pool{}, errs.New(errs.Invalid, "pool", "", "there are several pools: %s", strings.Join(names, ", ")).
		WithHint("name one: --pool NAME, or ,pool=NAME behind a disk's size")
}

// findDisk finds a disk by id, serial, or INSTANCE/NAME.
func findDisk(ctx context.Context, tx *store.Tx, ref string) (disk.Disk, error) {
	instance, name, path := strings.Cut(ref, "/")
	var d disk.Disk
	var err error
	switch {
	case path:
		i, ierr := findInstance(ctx, tx, instance)
		if ierr != nil {
			return d, ierr
		}
		d, err = tx.Disks.One(ctx, store.Eq("instance_id", i.ID), store.Eq("name", name))
	case disk.IsID(strings.ToLower(ref)):
		d, err = tx.Disks.Get(ctx, disk.DiskID(strings.ToLower(ref)))
	case disk.IsSerial(ref):
		d, err = tx.Disks.One(ctx, store.Eq("serial", ref))
	default:
		return d, errs.New(errs.Invalid, "disk", ref, "%q does not name a disk", ref).
			WithHint("name it INSTANCE/root, INSTANCE/data0, or by its id or serial")
	}
	if errors.Is(err, errs.NotFound) {
		return d, errs.New(errs.NotFound, "disk", ref, "there is no disk %q", ref).WithHint("tarn disk list shows what there is")
	}
	return d, err
}

// findVolume finds a volume by id, POOL/NAME, or by a name only one volume has.
func findVolume(ctx context.Context, tx *store.Tx, ref string) (disk.Volume, error) {
	pool, name, path := strings.Cut(ref, "/")
	var v disk.Volume
	var err error
	switch {
	case path:
		p, perr := findPool(ctx, tx, pool)
		if perr != nil {
			return v, perr
		}
		v, err = tx.Volumes.One(ctx, store.Eq("pool_id", p.ID), store.Eq("name", name))
	case disk.IsID(strings.ToLower(ref)):
		v, err = tx.Volumes.Get(ctx, disk.VolumeID(strings.ToLower(ref)))
	default:
		v, err = tx.Volumes.One(ctx, store.Eq("name", ref))
	}
	switch {
	case errors.Is(err, errs.NotFound):
		return v, errs.New(errs.NotFound, "volume", ref, "there is no volume %q", ref).WithHint("tarn volume list shows what there is")
	case errors.Is(err, errs.Conflict):
		return v, errs.New(errs.Invalid, "volume", ref, "several pools hold a volume %q", ref).WithHint("name it POOL/NAME or by its id")
	}
	return v, err
}

func (e *Engine) driverType(name string) (driver.Type, error) {
	if t, ok := e.types[name]; ok {
		return t, nil
	}
	names := make([]string, 0, len(e.types))
	for n := range e.types {
		names = append(names, n)
	}
	sort.Strings(names)
	return driver.Type{}, errs.New(errs.Invalid, "pool.driver", name, "%q is not a driver of this build", name).
		WithHint("use one of: %s", strings.Join(names, ", "))
}
