// Package fsdrv keeps volumes on a block device of their own: it makes a file
// system there, finds out how to mount it, and leaves all else to mounted. It
// refuses to touch a device that carries a signature of anything or is in use.
package fsdrv

import (
	"context"
	"errors"
	"iter"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
)

// Type is the pool on a block device.
var Type = driver.Type{
	Name:         "fs",
	Capabilities: capabilities(dirdrv.Type.Capabilities),
	Needs:        []disk.SourceField{disk.FieldPath, disk.FieldDevice},
	Takes:        append([]disk.SourceField{disk.FieldFileSystem}, dirdrv.Type.Takes...),
	Prepare:      files.Prepare,
	Build:        build,
	Marker:       files.Marker,
	Open:         open,
	Remove:       remove,
}

var files = mounted.Directory{Storage: device{}}

func capabilities(c driver.Capabilities) driver.Capabilities {
	c.Description = "files on a block device that tarn formats (ext4, XFS, btrfs) and mounts; disks as of `dir`"
	return c
}

// pool is an open pool.
type pool struct{ *mounted.Pool }

var _ driver.Driver = pool{}

func open(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	p, caps, err := files.Open(ctx, c, nil)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	return pool{p}, capabilities(caps), nil
}

// remove implements driver.Type.Remove.
func remove(ctx context.Context, c driver.Config) error {
	const op = "pool.remove"
	if _, err := number(op, c); errors.Is(err, errs.Unavailable) {
		return errs.New(errs.NotFound, op, c.Source.Device, "there is no device %s to remove the pool from", c.Source.Device).
			WithHint("plug the disk in, or leave it as it is with \"tarn pool delete --keep-data\"")
	}
	return files.Remove(ctx, c)
}

// ownEntry is a directory that ext4 keeps in its root.
const ownEntry = "lost+found"

// List implements driver.Driver: dirdrv's, without the file system's own entry.
func (p pool) List(ctx context.Context) iter.Seq2[driver.Object, error] {
	return func(yield func(driver.Object, error) bool) {
		for o, err := range p.Pool.List(ctx) {
			if (err != nil || o.Name != ownEntry) && !yield(o, err) {
				return
			}
		}
	}
}
