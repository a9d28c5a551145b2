package ploopdrv

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"slices"
	"strings"

	"github.com/google/uuid"
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

// A snapshot is an image that is not written any more. The image above it, whose
// file carries the snapshot's id, holds what was written since. The description,
// replaced as a whole, decides what there is: a file that it does not name is
// crash residue.

// snapshots returns the ids of the chain's snapshots, the oldest first: "" for
// one that is being given up.
func snapshots(c bundle.Chain) []disk.SnapshotID {
	var ids []disk.SnapshotID
	for i, l := range c.Layers[1:] {
		if !c.Layers[i].Merging {
			ids = append(ids, disk.SnapshotID(strings.TrimPrefix(l.File, layerPrefix)))
		}
	}
	return ids
}

// frozen returns which image is that of snapshot id, or -1, given up or not.
func frozen(c bundle.Chain, id disk.SnapshotID) int {
	for i, l := range c.Layers[1:] {
		if l.File == layerPrefix+string(id) {
			return i
		}
	}
	return -1
}

func checkID(op string, r driver.Ref, id disk.SnapshotID) error {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-"
	if id == "" || len(id) > 64 || strings.Trim(string(id), letters) != "" {
		return errs.New(errs.Invalid, op, subject(r), "%q is no snapshot id", id)
	}
	return nil
}

// guid returns the GUID that the description has for a snapshot.
func guid(id disk.SnapshotID) string {
	if u, err := uuid.Parse(string(id)); err == nil && len(id) == 36 {
		return u.String()
	}
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte(id)).String()
}

// Snapshot implements driver.Snapshotter: the new image and its sync, then the
// description.
func (p *pool) Snapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.create"
	if err := checkID(op, r, id); err != nil {
		return err
	}
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return err
	}
	defer f.Close()
	return p.alter(op, r, f, func(c bundle.Chain) error {
		if at := frozen(c, id); at >= 0 {
			return merging(c, at)
		}
		return freeze(f, c, id)
	})
}

// alter calls do with what the description of r says, which nobody else changes
// meanwhile, and makes what it did durable: also what was done already, for an
// earlier call may have died before it.
func (p *pool) alter(op string, r driver.Ref, f *dirdrv.Folder, do func(c bundle.Chain) error) error {
	done, err := p.change(op, r)
	if err != nil {
		return err
	}
	defer done()
	c, err := describe(f)
	if err == nil {
		err = do(c)
	}
	if err == nil {
		err = f.Sync()
	}
	return failed(op, subject(r), err)
}

// freeze lays a new image over the volume, or leaves it as it was.
func freeze(f *dirdrv.Folder, c bundle.Chain, id disk.SnapshotID) error {
	next, err := frozenAs(c, id)
	if err != nil {
		return err
	}
	d, err := openDevice(f, driver.Read, "")
	if err != nil {
		return err
	}
	defer d.Close()
	top, name := len(c.Layers)-1, next.Layers[len(c.Layers)].File
	err = newImage(f, name, c.Size, false)
	if err == nil {
		err = syncImage(f, name)
	}
	if err == nil {
		err = d.files[top].Sync()
	}
	if err == nil {
		err = f.Protect(c.Layers[top].File, false)
	}
	if err == nil {
		err = replace(f, next)
	}
	if err != nil {
		if now, rerr := f.Read(bundle.Name); rerr == nil && !bytes.Contains(now, []byte(">"+name+"<")) {
			_ = thaw(f, c.Layers[top].File, name)
		}
	}
	return err
}

// frozenAs returns the chain of c's disk with the snapshot id; errs.Conflict if
// there can be none.
func frozenAs(c bundle.Chain, id disk.SnapshotID) (bundle.Chain, error) {
	top, u := len(c.Layers)-1, guid(id)
	switch {
	case c.Resizing != 0:
		return c, errs.New(errs.Conflict, "", "", "the volume is being resized").WithHint("repeat the resize first")
	case slices.ContainsFunc(c.Layers, func(l bundle.Layer) bool { return l.GUID == u }):
		return c, errs.New(errs.Conflict, "", "", "the UUID of the snapshot %s is another one's of the volume", id).WithHint("take another id")
	}
	c.Layers = append(slices.Clone(c.Layers), bundle.Layer{File: layerPrefix + string(id), GUID: bundle.Top, Size: c.Size})
	c.Layers[top].GUID = u
	if !readable(c) {
		return c, errs.New(errs.Conflict, "", "", "the volume has %d snapshots and cannot have another", top).WithHint("delete some")
	}
	return c, nil
}

// thaw undoes what was done for a snapshot that the description does not know.
func thaw(f *dirdrv.Folder, top, name string) error {
	if err := f.Protect(top, true); err != nil {
		return err
	}
	return f.Remove(name)
}

// syncImage makes an image survive power loss.
func syncImage(f *dirdrv.Folder, name string) error {
	file, err := openImage(f, name, unix.O_RDONLY, driver.Base)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// DeleteSnapshot implements driver.Snapshotter. What was written since goes down
// into the snapshot's image, which takes the place of the one above it. The
// description says so before it begins: from then on the snapshot is gone, and
// the volume and its other snapshots read the same whatever of it was done.
func (p *pool) DeleteSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.delete"
	if err := checkID(op, r, id); err != nil {
		return err
	}
	f, err := p.Folder(ctx, op, r)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return p.alter(op, r, f, func(c bundle.Chain) error {
		if at := frozen(c, id); at >= 0 {
			return drop(ctx, f, c, at)
		}
		name := layerPrefix + string(id)
		if names, err := f.Names(); err != nil || slices.Contains(names, name) { // crash residue
			return errors.Join(err, thaw(f, c.Layers[len(c.Layers)-1].File, name))
		}
		return nil
	})
}

// merging returns errs.Conflict if image i is being written into for the end of
// its snapshot: it may have the size of the image above, which must not change.
func merging(c bundle.Chain, i int) error {
	if i < 0 || !c.Layers[i].Merging {
		return nil
	}
	id := strings.TrimPrefix(c.Layers[i+1].File, layerPrefix)
	return errs.New(errs.Conflict, "", "", "the snapshot %s is being deleted", id).WithHint("repeat its deletion first")
}

// drop takes image at+1 out of the chain, and its file away. An unfinished resize
// is ended first, and beside an unfinished drop none is begun: an image may have
// one of two sizes, not of three.
func drop(ctx context.Context, f *dirdrv.Folder, c bundle.Chain, at int) (err error) {
	if c.Resizing != 0 {
		if c, err = endResize(f); err != nil {
			return err
		}
	}
	if !c.Layers[at].Merging {
		if err := errors.Join(merging(c, at-1), merging(c, at+1)); err != nil {
			return err
		}
	}
	for _, i := range []int{at, at + 1} {
		if _, err := mend(f, c, i, driver.Write); err != nil {
			return err
		}
	}
	above, err := openImage(f, c.Layers[at+1].File, unix.O_RDONLY, driver.Write) // whoever reads the volume reads it
	if err != nil {
		return err
	}
	defer above.Close()
	below, err := openImage(f, c.Layers[at].File, unix.O_RDONLY, driver.Write)
	if err != nil {
		return err
	}
	if err := below.Close(); err != nil {
		return err
	}
	if !c.Layers[at].Merging {
		c.Layers[at].Merging = true
		if err := replace(f, c); err != nil {
			return err
		}
	}
	err = f.Protect(c.Layers[at].File, true)
	if err == nil {
		err = merge(ctx, f, c, at, above)
	}
	if err == nil && at+1 < len(c.Layers)-1 {
		err = f.Protect(c.Layers[at].File, false)
	}
	if err != nil {
		return err
	}
	l := c.Layers[at+1]
	name := l.File
	l.File = c.Layers[at].File
	c.Layers = append(c.Layers[:at:at], append([]bundle.Layer{l}, c.Layers[at+2:]...)...)
	if err := replace(f, c); err != nil {
		return err
	}
	return f.Remove(name) // still locked: nobody writes what goes
}

// merge writes what the image above holds into image at, durably.
func merge(ctx context.Context, f *dirdrv.Folder, c bundle.Chain, at int, above *blkio.File) error {
	d := &device{chain: c}
	for i := range at + 1 {
		mode := driver.Base
		if i == at {
			mode = driver.Write
		}
		if err := d.push(f, i, mode); err != nil {
			return errors.Join(err, d.closeFiles())
		}
	}
	var from *parallels.Reader
	err := eachSize(c, at+1, func(want diskfmt.Recorded) (err error) {
		from, err = parallels.Open(above, above.Size(), want)
		return err
	})
	if err == nil {
		err = d.take(ctx, from)
	}
	return errors.Join(err, d.Close())
}

// take gives d the size and the bytes of from.
func (d *device) take(ctx context.Context, from *parallels.Reader) error {
	var err error
	switch now := d.Size(); {
	case from.Size() > now:
		err = d.top.Grow(from.Size())
	case from.Size() < now:
		err = d.top.Ungrow(from.Size())
	}
	if err != nil {
		return err
	}
	buf := make([]byte, parallels.DefaultClusterSize)
	for off := int64(0); off < from.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := from.Extent(off)
		if err != nil {
			return err
		}
		n := e.Length
		if e.Kind == diskfmt.Data {
			n = min(n, int64(len(buf)))
			if _, err := from.ReadAt(buf[:n], off); err != nil {
				return err
			}
			if blkio.IsZero(buf[:n]) {
				err = d.top.Zero(off, n)
			} else {
				_, err = d.top.WriteAt(buf[:n], off)
			}
			if err != nil {
				return err
			}
		}
		off += n
	}
	return d.top.Sync()
}

// Snapshots implements driver.Snapshotter.
func (p *pool) Snapshots(ctx context.Context, r driver.Ref) iter.Seq2[disk.SnapshotID, error] {
	const op = "snapshot.list"
	return func(yield func(disk.SnapshotID, error) bool) {
		f, err := p.Folder(ctx, op, r)
		if err != nil {
			yield("", err)
			return
		}
		defer f.Close()
		c, err := describe(f)
		if err != nil {
			yield("", failed(op, subject(r), err))
			return
		}
		for _, id := range snapshots(c) {
			if !yield(id, nil) {
				return
			}
		}
	}
}

// OpenSnapshot implements driver.Snapshotter.
func (p *pool) OpenSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) (driver.Device, error) {
	const op = "snapshot.open"
	if err := checkID(op, r, id); err != nil {
		return nil, err
	}
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, err := openDevice(f, driver.Read, id)
	if err != nil {
		return nil, failed(op, subject(r), err)
	}
	return d, nil
}
