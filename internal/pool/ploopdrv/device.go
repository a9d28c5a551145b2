package ploopdrv

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
	"github.com/tarn-storage/tarn/internal/volio"
)

// device is an open volume, or a snapshot: what its images hold, the highest
// first.
type device struct {
	*volio.Volume
	chain bundle.Chain
	files []*blkio.File     // the lowest first
	top   *parallels.Writer // nil: for reading
}

// openDevice opens a volume, or its snapshot id. The description says what to
// lock, and may be replaced before it is locked: then all is done again.
func openDevice(f *dirdrv.Folder, m driver.Mode, id disk.SnapshotID) (*device, error) {
	for range 100 {
		d, again, err := openOnce(f, m, id)
		if !again {
			return d, err
		}
	}
	return nil, errs.New(errs.Busy, "", "", "others keep changing the volume")
}

// openOnce is openDevice with the description as it is; again says that it was
// replaced meanwhile, and that nothing is open.
func openOnce(f *dirdrv.Folder, m driver.Mode, id disk.SnapshotID) (d *device, again bool, err error) {
	file, err := openDescription(f)
	if err != nil {
		return nil, false, err
	}
	defer file.Close()
	c, err := readDescription(file)
	if err != nil {
		return nil, false, err
	}
	d, err = openImages(f, c, m, id)
	again, rerr := replaced(f, file)
	if d != nil && (again || rerr != nil) {
		rerr = errors.Join(rerr, d.closeFiles())
		d = nil
	}
	return d, again, errors.Join(err, rerr)
}

// openImages opens the images of a volume, or of its snapshot id.
func openImages(f *dirdrv.Folder, c bundle.Chain, m driver.Mode, id disk.SnapshotID) (*device, error) {
	n := len(c.Layers)
	if id != "" {
		n = frozen(c, id) + 1
		if n == 0 || c.Layers[n-1].Merging {
			return nil, errs.New(errs.NotFound, "", "", "the volume has no snapshot %s", id)
		}
	}
	d := &device{chain: c}
	for i := range n {
		mode := m
		if i < n-1 && m == driver.Write {
			mode = driver.Read
		}
		if err := d.push(f, i, mode); err != nil {
			return nil, errors.Join(err, d.closeFiles())
		}
	}
	return d, nil
}

// push opens image i over those that are open.
func (d *device) push(f *dirdrv.Folder, i int, m driver.Mode) error {
	live, err := mend(f, d.chain, i, m)
	if err != nil {
		return err
	}
	flags := unix.O_RDONLY
	if m == driver.Write || m == driver.Staged {
		flags = unix.O_RDWR
	}
	file, err := openImage(f, d.chain.Layers[i].File, flags, m)
	if err != nil {
		return err
	}
	d.files = append(d.files, file)
	if flags == unix.O_RDWR {
		return d.pushWriter(file, i, m)
	}
	return eachSize(d.chain, i, func(want diskfmt.Recorded) (err error) {
		var r *parallels.Reader
		if live {
			r, err = parallels.OpenLive(file, file.Size(), want)
		} else {
			r, err = parallels.Open(file, file.Size(), want)
		}
		if err == nil {
			d.over(r)
		}
		return err
	})
}

// pushWriter makes the open file the image that is written.
func (d *device) pushWriter(file *blkio.File, i int, m driver.Mode) error {
	var below diskfmt.Reader
	if d.Volume != nil {
		below = d.Volume
	}
	return eachSize(d.chain, i, func(want diskfmt.Recorded) error {
		w, err := parallels.OpenWriter(file, want, below, parallels.Options{Through: m == driver.Staged})
		if err == nil {
			d.top = w
			d.over(w)
		}
		return err
	})
}

// over lays r on what is open.
func (d *device) over(r diskfmt.Reader) {
	if d.Volume == nil {
		d.Volume = volio.Over(r)
		return
	}
	d.Volume = volio.Over(r, d.Volume)
}

// openImage opens an image and takes the locks of m.
func openImage(f *dirdrv.Folder, name string, flags int, m driver.Mode) (*blkio.File, error) {
	file, err := f.Open(name, flags)
	if errors.Is(err, unix.ENOENT) {
		return nil, errs.New(errs.Corrupt, "", "", "the folder has no %s, which its description names", name)
	}
	if err != nil {
		return nil, err
	}
	b, err := blkio.NewFile(file)
	if err != nil {
		file.Close()
		return nil, err
	}
	if err := imagelock.Take(file, m); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// mend repairs image i if a killed writer left it in use. Base does without where
// somebody may be writing it: then it is live.
func mend(f *dirdrv.Folder, c bundle.Chain, i int, m driver.Mode) (live bool, err error) {
	name := c.Layers[i].File
	look, err := openImage(f, name, unix.O_RDONLY, driver.Base)
	if err != nil {
		return false, err
	}
	left, err := parallels.Abandoned(look)
	if err = errors.Join(err, look.Close()); err != nil || !left {
		return false, err
	}
	lock := driver.Write
	if m == driver.Staged {
		lock = m
	}
	file, err := openImage(f, name, unix.O_RDWR, lock)
	if m == driver.Base && errors.Is(err, errs.Busy) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	err = eachSize(c, i, func(want diskfmt.Recorded) error {
		_, err := parallels.Repair(file, want)
		return err
	})
	return false, errors.Join(err, file.Close())
}

// eachSize calls do with the record of image i for each size that the image may
// have until do finds it: an interrupted resize, or the end of a snapshot, left
// one of two.
func eachSize(c bundle.Chain, i int, do func(want diskfmt.Recorded) error) error {
	err := do(recorded(c, i, c.Layers[i].Size))
	if !errors.Is(err, errs.Corrupt) {
		return err
	}
	other := int64(0)
	switch {
	case i == len(c.Layers)-1:
		other = c.Resizing
	case c.Layers[i].Merging:
		other = c.Layers[i+1].Size
	}
	if other == 0 || do(recorded(c, i, other)) != nil {
		return err
	}
	return nil
}

// Extent implements driver.Device.
func (d *device) Extent(off int64) (diskfmt.Extent, error) {
	if off < 0 || off >= d.Size() {
		return diskfmt.Extent{}, errs.New(errs.Invalid, "volume.extent", "", "offset %d is outside of %d bytes", off, d.Size())
	}
	return d.Volume.Extent(off)
}

// ReadAt implements driver.Device. The writer reads through what is below, so
// that nothing changes between finding the layer and reading it.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	if d.top != nil {
		return d.top.ReadAt(p, off)
	}
	return d.Volume.ReadAt(p, off)
}

func (d *device) readOnly(op string) error {
	if d.top == nil {
		return errs.New(errs.Invalid, op, "", "the device is open for reading")
	}
	return nil
}

// WriteAt implements driver.Device.
func (d *device) WriteAt(p []byte, off int64) (int, error) {
	if err := d.readOnly("volume.write"); err != nil {
		return 0, err
	}
	return d.top.WriteAt(p, off)
}

// Zero implements driver.Device.
func (d *device) Zero(off, n int64) error {
	if err := d.readOnly("volume.zero"); err != nil {
		return err
	}
	return d.top.Zero(off, n)
}

// Truncate implements driver.Device.
func (d *device) Truncate(int64) error {
	return errs.New(errs.Unsupported, "volume.truncate", "", "a disk does not grow as it is written")
}

// Sync implements driver.Device.
func (d *device) Sync() error {
	if d.top == nil {
		return nil
	}
	return d.top.Sync()
}

// Close implements driver.Device.
func (d *device) Close() error {
	var err error
	if d.top != nil {
		err = d.top.Close()
	}
	return errors.Join(err, d.closeFiles())
}

func (d *device) closeFiles() error {
	var all error
	for _, file := range d.files {
		all = errors.Join(all, file.Close())
	}
	return all
}

// Open implements driver.Driver.
func (p *pool) Open(ctx context.Context, r driver.Ref, m driver.Mode) (driver.Device, error) {
	const op = "volume.open"
	if (m == driver.Staged) != (r.Name == "") {
		return nil, errs.New(errs.Invalid, op, subject(r), "mode %d is not for this volume's stage", m)
	}
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	d, err := openDevice(f, m, "")
	if err != nil {
		return nil, failed(op, subject(r), err)
	}
	return d, nil
}

// Probe implements driver.Prober.
func (p *pool) Probe(ctx context.Context, r driver.Ref) error {
	const op = "volume.probe"
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := describe(f)
	if err != nil {
		return failed(op, subject(r), err)
	}
	file, err := openImage(f, c.Layers[len(c.Layers)-1].File, unix.O_RDONLY, driver.Base)
	if err != nil {
		return failed(op, subject(r), err)
	}
	defer file.Close()
	return failed(op, subject(r), imagelock.Probe(file.Descriptor()))
}

// Resize implements driver.Driver. The description says what is about to
// happen before it does.
func (p *pool) Resize(ctx context.Context, r driver.Ref, size int64) error {
	const op = "volume.resize"
	f, err := p.Folder(ctx, op, r)
	if err != nil {
		return err
	}
	defer f.Close()
	if size <= 0 || size%sizeUnit != 0 || size > parallels.MaxVirtualSize {
		return errs.New(errs.Invalid, op, subject(r), "size %d is not a multiple of %d up to %d", size, sizeUnit, int64(parallels.MaxVirtualSize))
	}
	done, err := p.change(op, r)
	if err != nil {
		return err
	}
	defer done()
	mode := driver.Write
	if r.Name == "" {
		mode = driver.Staged
	}
	d, err := openDevice(f, mode, "")
	if err != nil {
		return failed(op, subject(r), err)
	}
	if err = d.resize(f, size); err != nil {
		return failed(op, subject(r), errors.Join(err, d.Close()))
	}
	if err = d.Close(); err == nil {
		err = d.finish(f, size)
	}
	return failed(op, subject(r), err)
}

// resize brings the image to size.
func (d *device) resize(f *dirdrv.Folder, size int64) error {
	now := d.Size()
	if now == size {
		return nil
	}
	if err := merging(d.chain, len(d.chain.Layers)-2); err != nil {
		return err
	}
	d.sized(now, size)
	if err := replace(f, d.chain); err != nil {
		return err
	}
	if size > now {
		return d.top.Grow(size)
	}
	err := d.top.Ungrow(size)
	if errors.Is(err, errs.Unsupported) {
		d.sized(now, 0)
		return errors.Join(err, replace(f, d.chain))
	}
	return err
}

// endResize ends an unfinished resize at the size that the disk has.
func endResize(f *dirdrv.Folder) (bundle.Chain, error) {
	d, err := openDevice(f, driver.Read, "")
	if err != nil {
		return bundle.Chain{}, err
	}
	defer d.Close()
	err = d.finish(f, d.Size())
	return d.chain, err
}

// finish says in the description that the disk has size.
func (d *device) finish(f *dirdrv.Folder, size int64) error {
	if d.chain.Size == size && d.chain.Resizing == 0 {
		return f.Sync() // an earlier call may have died before it
	}
	d.sized(size, 0)
	return replace(f, d.chain)
}

func (d *device) sized(size, resizing int64) {
	d.chain.Size, d.chain.Resizing = size, resizing
	d.chain.Layers[len(d.chain.Layers)-1].Size = size
}
