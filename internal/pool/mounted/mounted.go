// Package mounted serves pools that are the root directories of file systems
// which tarn mounts: it mounts them at the pools' paths and leaves all else to
// dirdrv. It refuses to cover files with a mount, and to take whatever is mounted
// at a path for the pool's.
package mounted

import (
	"context"
	"errors"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Storage is what a technology has to mount. Its methods change nothing.
type Storage interface {
	// Find returns how to mount the storage of c, nil where it is mounted at
	// c.Path. Storage that cannot be mounted there is refused, with ErrNothing as
	// the cause where it cannot hold a pool.
	Find(ctx context.Context, op string, c driver.Config) (*Call, error)

	// Here reports whether what is mounted at c.Path is the storage of c, or
	// what is left of it.
	Here(op string, c driver.Config) (bool, error)

	// Unmountable says what the failure of a call that Find returned means.
	Unmountable(op string, c driver.Config, m Call, err error) error

	// Explained says what an error of the files in the storage means.
	Explained(op string, c driver.Config, err error) error
}

// Call is what mount(2) is told.
type Call struct{ Source, Kind, Options string }

// ErrNothing is the cause of errors that say that there is no file system of the
// pool's, rather than that it cannot be mounted now.
var ErrNothing = errors.New("no file system")

// Directory is the technology of pools in what a Storage mounts.
type Directory struct{ Storage }

// Prepare implements driver.Type.Prepare. What it refuses it leaves as it was;
// where something fails, a repeat or Remove goes on.
func (d Directory) Prepare(ctx context.Context, c driver.Config, marker []byte) error {
	const op = "pool.prepare"
	undo, err := d.mount(ctx, op, c)
	if err != nil {
		return err
	}
	err = d.Explained(op, c, dirdrv.Type.Prepare(ctx, c, marker))
	if errors.Is(err, errs.Conflict) || errors.Is(err, errs.Unsafe) {
		err = errors.Join(err, undo())
	}
	return err
}

// Marker implements driver.Type.Marker.
func (d Directory) Marker(ctx context.Context, c driver.Config) (data []byte, err error) {
	err = d.within(ctx, "pool.marker", c, func() error {
		data, err = dirdrv.Type.Marker(ctx, c)
		return err
	})
	return data, err
}

// Open opens the pool at c as driver.Type.Open does. Before, when the storage is
// mounted, it calls look, unless that is nil, and fails with it.
func (d Directory) Open(ctx context.Context, c driver.Config, look func() error) (*Pool, driver.Capabilities, error) {
	p := &Pool{storage: d, c: c}
	var caps driver.Capabilities
	err := d.within(ctx, "pool.open", c, func() (err error) {
		if look != nil {
			err = look()
		}
		if err == nil {
			p.Pool, caps, err = dirdrv.Open(ctx, c)
		}
		return err
	})
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	return p, caps, nil
}

// Remove implements driver.Type.Remove. Where there is no file system nothing of a
// pool is left; one that cannot be mounted now may hold the pool all the same.
func (d Directory) Remove(ctx context.Context, c driver.Config) error {
	const op = "pool.remove"
	undo, err := d.mount(ctx, op, c)
	if errors.Is(err, ErrNothing) {
		return dirdrv.DropDir(ctx, c.Path)
	}
	if err != nil {
		return err
	}
	if err := d.Explained(op, c, dirdrv.Type.Remove(ctx, c)); err != nil {
		if errors.Is(err, errs.Conflict) {
			err = errors.Join(err, undo())
		}
		return err
	}
	if err := d.unmount(op, c); err != nil {
		return err
	}
	return dirdrv.DropDir(ctx, c.Path)
}

// within mounts the storage, if it is not, for do; if do fails, what was mounted
// is unmounted.
func (d Directory) within(ctx context.Context, op string, c driver.Config, do func() error) error {
	undo, err := d.mount(ctx, op, c)
	if err != nil {
		return err
	}
	if err := do(); err != nil {
		return errors.Join(d.Explained(op, c, err), undo())
	}
	return nil
}

// Pool is an open pool.
type Pool struct {
	*dirdrv.Pool
	storage Directory
	c       driver.Config
}

var (
	_ driver.Driver      = (*Pool)(nil)
	_ driver.Stopper     = (*Pool)(nil)
	_ driver.Cloner      = (*Pool)(nil)
	_ driver.Snapshotter = (*Pool)(nil)
	_ driver.Attacher    = (*Pool)(nil)
	_ driver.Prober      = (*Pool)(nil)
	_ driver.Physical    = (*Pool)(nil)
	_ driver.Ballast     = (*Pool)(nil)
	_ driver.Leftovers   = (*Pool)(nil)
	_ driver.Protector   = (*Pool)(nil)
)

// Stop implements driver.Stopper.
func (p *Pool) Stop(ctx context.Context) error {
	const op = "pool.stop"
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, p.c.Path)
	}
	return p.Release(ctx, func() error { return p.storage.unmount(op, p.c) })
}
