// Package ploopdrv keeps volumes as ploop keeps its disks: a folder of a
// directory with root.hds, a Parallels expandable image, the images of its
// snapshots, and DiskDescriptor.xml, which says what they are. The devices give
// the guest's bytes. It refuses to learn anything from an image: what one must
// be stands in the description, which neither guests nor QEMU's user can write.
package ploopdrv

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const (
	rootFile    = "root.hds"
	layerPrefix = rootFile + "." // and the id of the snapshot below
	newSuffix   = ".new"         // of a description that is to replace the old one

	sizeUnit = 4096
	maxName  = 255 - len(".tarn.json")
)

var capabilities = driver.Capabilities{
	Formats:     []diskfmt.Format{diskfmt.Raw},
	Clone:       driver.CloneReflink,
	SizeUnit:    sizeUnit,
	HolesKnown:  true,
	MaxName:     maxName,
	Snapshot:    driver.SnapshotChain,
	GrowFrozen:  true,
	Description: "folders of Parallels images, as ploop's; disks are reflinks where the file system shares extents (XFS, btrfs), copies elsewhere",
}

// Type is the ploop pool.
var Type = dirdrv.FolderType("ploop", capabilities, open)

// pool is an open ploop pool. What treats a volume as one object is the
// directory pool's.
type pool struct {
	*dirdrv.Pool
	clones   bool
	changing sync.Map // the volumes whose description a call is to replace
}

var (
	_ driver.Driver      = (*pool)(nil)
	_ driver.Cloner      = (*pool)(nil)
	_ driver.Attacher    = (*pool)(nil)
	_ driver.Layered     = (*pool)(nil)
	_ driver.Prober      = (*pool)(nil)
	_ driver.Snapshotter = (*pool)(nil)
)

func open(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	p, caps, err := dirdrv.OpenFolders(ctx, c, capabilities, folders{})
	if err != nil {
		return nil, caps, err
	}
	return &pool{Pool: p, clones: caps.Clone == driver.CloneReflink}, caps, nil
}

// folders says what the directory pool must know of a bundle.
type folders struct{}

// Size implements dirdrv.Folders.
func (folders) Size(f *dirdrv.Folder) (int64, error) {
	c, err := describe(f)
	return c.Size, err
}

// Writable implements dirdrv.Folders.
func (folders) Writable(f *dirdrv.Folder) ([]string, error) {
	c, err := describe(f)
	if err != nil {
		return nil, err
	}
	return []string{c.Layers[len(c.Layers)-1].File}, nil
}

// Deletable implements dirdrv.Folders. A description that is lost or damaged
// does not keep a volume from being deleted.
func (folders) Deletable(f *dirdrv.Folder) error {
	c, err := describe(f)
	if err == nil && len(snapshots(c)) > 0 {
		return errs.New(errs.Conflict, "", "", "the volume has %d snapshots", len(snapshots(c))).WithHint("delete them first")
	}
	names, err := f.Names()
	for _, name := range names {
		if name != rootFile && !strings.HasPrefix(name, layerPrefix) && name != bundle.Name && name != bundle.Name+newSuffix {
			return errs.New(errs.Conflict, "", "", "the volume's folder holds %s, which tarn did not make", name).WithHint("move it away")
		}
	}
	return err
}

// change keeps others from replacing the description of r until done is called;
// errs.Busy while another does. The images' locks let readers be, and with them
// whoever takes a snapshot.
func (p *pool) change(op string, r driver.Ref) (done func(), err error) {
	if _, busy := p.changing.LoadOrStore(subject(r), nil); busy {
		return nil, errs.New(errs.Busy, op, subject(r), "the volume is being changed").WithHint("wait for the other call")
	}
	return func() { p.changing.Delete(subject(r)) }, nil
}

// describe reads the description of a volume's folder.
func describe(f *dirdrv.Folder) (bundle.Chain, error) {
	file, err := openDescription(f)
	if err != nil {
		return bundle.Chain{}, err
	}
	defer file.Close()
	return readDescription(file)
}

func openDescription(f *dirdrv.Folder) (*os.File, error) {
	file, err := f.Open(bundle.Name, unix.O_RDONLY)
	if errors.Is(err, unix.ENOENT) {
		err = errs.New(errs.Corrupt, "", "", "the folder has no %s", bundle.Name)
	}
	return file, err
}

func readDescription(file *os.File) (bundle.Chain, error) {
	b, err := io.ReadAll(io.LimitReader(file, bundle.MaxSize+1))
	if err != nil {
		return bundle.Chain{}, err
	}
	c, err := bundle.ParseChain(b)
	if err == nil && c.BlockSize != parallels.DefaultClusterSize {
		err = errs.New(errs.Corrupt, "", "", "the description says clusters of %d bytes, tarn makes them of %d", c.BlockSize, parallels.DefaultClusterSize)
	}
	return c, err
}

// replaced reports whether the description is another than the one that is open
// as file, whose inode no other has meanwhile.
func replaced(f *dirdrv.Folder, file *os.File) (bool, error) {
	now, err := openDescription(f)
	if err != nil {
		return false, err
	}
	defer now.Close()
	a, err := file.Stat()
	if err != nil {
		return false, err
	}
	b, err := now.Stat()
	return err == nil && !os.SameFile(a, b), err
}

// readable reports whether describe would return c again.
func readable(c bundle.Chain) bool {
	_, err := bundle.ParseChain(c.Bytes())
	return err == nil
}

// replace makes c the description, durably: none that would make the volume
// unreadable.
func replace(f *dirdrv.Folder, c bundle.Chain) error {
	if !readable(c) {
		return errs.New(errs.Conflict, "", "", "the volume's description cannot say what was asked: the volume stays as it is")
	}
	return f.Replace(bundle.Name, c.Bytes())
}

// newChain describes a disk without snapshots.
func newChain(size int64) bundle.Chain {
	return bundle.Chain{
		Size: size, BlockSize: parallels.DefaultClusterSize,
		Layers: []bundle.Layer{{File: rootFile, GUID: bundle.Top, Size: size}},
	}
}

// failed gives err op and subject.
func failed(op, subject string, err error) error { return blkio.Error(op, subject, err) }

func subject(r driver.Ref) string {
	if r.Name == "" {
		return string(r.ID)
	}
	return r.Name
}

// Create implements driver.Driver.
func (p *pool) Create(ctx context.Context, s driver.Spec) error {
	const op = "volume.create"
	if s.Size == 0 {
		return errs.New(errs.Unsupported, op, string(s.ID), "a volume without bytes cannot be a Parallels image of tarn's")
	}
	return p.Stage(ctx, op, s, func(f *dirdrv.Folder) error {
		err := newImage(f, rootFile, s.Size, s.Prealloc)
		if err == nil {
			err = f.Write(bundle.Name, newChain(s.Size).Bytes())
		}
		return err
	})
}

// newImage makes an empty image.
func newImage(f *dirdrv.Folder, name string, size int64, prealloc bool) error {
	file, err := f.Create(name)
	if err != nil {
		return err
	}
	d, err := blkio.NewFile(file)
	if err != nil {
		file.Close()
		return err
	}
	defer d.Close()
	length, err := parallels.Create(d, parallels.CreateOptions{VirtualSize: size, Stored: prealloc})
	if err == nil {
		err = d.Truncate(length)
	}
	if err == nil && prealloc {
		err = dirdrv.Allocate(file, length)
	}
	return err
}

// Clone implements driver.Cloner.
func (p *pool) Clone(ctx context.Context, s driver.Spec, base driver.Ref) error {
	const op = "volume.clone"
	from, err := p.Folder(ctx, op, base)
	if err != nil {
		return err
	}
	defer from.Close()
	c, err := describe(from)
	if err != nil {
		return failed(op, subject(base), err)
	}
	switch {
	case s.Size < c.Size:
		return errs.New(errs.Invalid, op, string(s.ID), "%d bytes are fewer than the base's %d", s.Size, c.Size)
	case !p.clones || len(c.Layers) > 1 || c.Resizing != 0:
		return errs.New(errs.Unsupported, op, string(s.ID), "the file system does not share extents between files, or %s has snapshots", subject(base))
	}
	return p.Stage(ctx, op, s, func(f *dirdrv.Folder) error {
		err := cloneImage(f, from, c, s.Size)
		if err == nil {
			err = f.Write(bundle.Name, newChain(s.Size).Bytes())
		}
		return err
	})
}

// cloneImage makes the image of f share the bytes of the one in from, and gives
// it another size.
func cloneImage(f, from *dirdrv.Folder, c bundle.Chain, size int64) error {
	src, err := from.Open(c.Layers[0].File, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer src.Close()
	file, err := f.Create(rootFile)
	if err != nil {
		return err
	}
	if err := dirdrv.Reflink(file, src); err != nil {
		file.Close()
		return err
	}
	d, err := blkio.NewFile(file)
	if err != nil {
		file.Close()
		return err
	}
	defer d.Close()
	w, err := parallels.OpenWriter(d, recorded(c, 0, c.Size), nil, parallels.Options{Through: true})
	if err != nil {
		return err
	}
	if size > c.Size {
		err = w.Grow(size)
	}
	return errors.Join(err, w.Close())
}

// recorded is what an image of the chain must be if its disk has size bytes.
func recorded(c bundle.Chain, i int, size int64) diskfmt.Recorded {
	v := disk.Volume{Format: diskfmt.Ploop, VirtualSize: size, ClusterSize: c.BlockSize}
	if i > 0 {
		v.Backing = &disk.Backing{Name: c.Layers[i-1].File, Format: diskfmt.Ploop}
	}
	return v.Recorded()
}

// Attachment implements driver.Attacher: the volume is its folder. Layers says
// what to open in it.
func (p *pool) Attachment(r driver.Ref) driver.Attachment {
	return driver.Attachment{Type: "file", Path: p.Path(r, ""), Format: diskfmt.Ploop}
}

// Layers implements driver.Layered.
func (p *pool) Layers(ctx context.Context, r driver.Ref) ([]driver.Attachment, error) {
	const op = "volume.layers"
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, err := openDevice(f, driver.Base, "")
	if err != nil {
		return nil, failed(op, subject(r), err)
	}
	defer d.Close()
	var out []driver.Attachment
	for _, l := range d.chain.Layers {
		out = append([]driver.Attachment{{Type: "file", Path: p.Path(r, l.File), Format: diskfmt.Ploop}}, out...)
	}
	return out, nil
}
