// Package netfsdrv keeps volumes on an NFS export: it finds out how to mount that
// and leaves all else to mounted. It refuses servers that speak no NFS 4.2.
package netfsdrv

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
)

// Type is the pool on an NFS export.
var Type = driver.Type{
	Name:         "netfs",
	Capabilities: capabilities(dirdrv.Type.Capabilities),
	Needs:        []disk.SourceField{disk.FieldPath, disk.FieldHost, disk.FieldExport},
	Hangs:        true,
	Prepare:      files.Prepare,
	Marker:       files.Marker,
	Open:         open,
	Remove:       files.Remove,
}

var files = mounted.Directory{Storage: export{}}

// capabilities are those of files, but for what needs shared extents: where a
// server has them nothing tells its clients which are shared, so that what a pool
// occupies could not be measured.
func capabilities(c driver.Capabilities) driver.Capabilities {
	c.Clone, c.Snapshot = driver.CloneCopy, driver.SnapshotNone
	c.Description = "files on an NFS 4.2 export that tarn mounts; disks are overlays; a server that does not answer stalls its own pools only"
	return c
}

// pool is an open pool.
type pool struct {
	*mounted.Pool
	c      driver.Config
	domain string
}

var (
	_ driver.Driver      = (*pool)(nil)
	_ driver.Cloner      = (*pool)(nil)
	_ driver.Snapshotter = (*pool)(nil)
)

func open(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	p := &pool{c: c}
	opened, caps, err := files.Open(ctx, c, func() (err error) {
		p.domain, err = domain(c)
		return failed("pool.open", c, err)
	})
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	p.Pool = opened
	return p, capabilities(caps), nil
}

// Create implements driver.Driver.
func (p *pool) Create(ctx context.Context, s driver.Spec) error {
	return export{}.Explained("volume.create", p.c, p.Pool.Create(ctx, s))
}

// Clone implements driver.Cloner.
func (p *pool) Clone(ctx context.Context, s driver.Spec, _ driver.Ref) error {
	const op = "volume.clone"
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, string(s.ID))
	}
	return errs.New(errs.Unsupported, op, string(s.ID), "extents are not shared over NFS")
}

// Snapshot implements driver.Snapshotter.
func (p *pool) Snapshot(ctx context.Context, r driver.Ref, _ disk.SnapshotID) error {
	const op = "snapshot.create"
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, r.Name)
	}
	return errs.New(errs.Unsupported, op, r.Name, "extents are not shared over NFS")
}

// Stat implements driver.Driver. The names are such that every host that mounts
// the export by the server's name has the same.
func (p *pool) Stat(ctx context.Context) (driver.Usage, error) {
	u, err := p.Pool.Stat(ctx)
	if err != nil {
		return u, export{}.Explained("pool.stat", p.c, err)
	}
	inode := u.Storage[strings.LastIndexByte(u.Storage, '/'):]
	u.Identity, u.Storage = p.domain, p.domain+p.c.Source.Export+inode
	return u, nil
}

// domain names the space behind an export: the server and its number of the file
// system, by which exports of one file system are seen to share it.
func domain(c driver.Config) (string, error) {
	var st unix.Stat_t
	if err := unix.Lstat(c.Path, &st); err != nil {
		return "", err
	}
	table, err := os.ReadFile("/proc/fs/nfsfs/volumes")
	if err != nil {
		return "", err
	}
	id := fileSystem(string(table), fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if id == "" {
		return "", errs.New(errs.Unavailable, "pool.identify", c.Path, "the kernel does not list the mount at %s", c.Path)
	}
	return "nfs:" + c.Source.Host + "/" + id, nil
}

// fileSystem finds the server's id of the file system that is dev on this host in
// the kernel's table: version, server, port, dev, fsid.
func fileSystem(table, dev string) string {
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) >= 5 && f[3] == dev {
			return f[4]
		}
	}
	return ""
}

// failed gives err op and subject.
func failed(op string, c driver.Config, err error) error { return blkio.Error(op, source(c), err) }
