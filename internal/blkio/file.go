package blkio

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// File is an open regular file or block device as a device: the container's
// bytes, its holes, and its durability. It is safe for concurrent use.
//
// A Sync that fails poisons the File: the kernel marks the lost pages clean,
// so that a second fsync would succeed over them. From then on every write and
// Sync returns the first failure.
type File struct {
	f      *os.File
	size   atomic.Int64
	failed atomic.Pointer[errs.Error]
	syncs  sync.Mutex
}

// NewFile makes a File of f, which it owns from then on.
func NewFile(f *os.File) (*File, error) {
	size, err := f.Seek(0, io.SeekEnd) // serves block devices too
	if err != nil {
		return nil, Error("file.open", f.Name(), err)
	}
	d := &File{f: f}
	d.size.Store(size)
	return d, nil
}

// Descriptor returns the open file behind d, for callers that hand it to the
// kernel or to a confined process. It stays d's.
func (d *File) Descriptor() *os.File { return d.f }

// extents returns the file whose extents Copy may share. What wraps a File
// without embedding it has none, even if it passes the descriptor on.
func (d *File) extents() *os.File { return d.f }

// Size returns the container's current size in bytes.
func (d *File) Size() int64 { return d.size.Load() }

// ReadAt implements io.ReaderAt; io.EOF is returned bare.
func (d *File) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.f.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = Error("file.read", d.f.Name(), err)
	}
	return n, err
}

// WriteAt implements io.WriterAt. Writing past the end grows the container.
func (d *File) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.act(faults.Write, "file.write", func() error {
		n, err = d.f.WriteAt(p, off)
		return err
	})
	if n > 0 {
		d.grown(off + int64(n))
	}
	return n, err
}

func (d *File) grown(end int64) {
	for {
		size := d.size.Load()
		if end <= size || d.size.CompareAndSwap(size, end) {
			return
		}
	}
}

// act performs one effect unless an earlier Sync failed.
func (d *File) act(kind faults.Kind, op string, f func() error) error {
	if e := d.failed.Load(); e != nil {
		return e
	}
	// The last name alone: the directory may be one that no user knows.
	return Error(op, filepath.Base(d.f.Name()), faults.Do(kind, op+" "+d.f.Name(), f))
}

// Extent returns the longest run at off that the file system knows to be a
// hole (Zero), or knows nothing better of (Data).
func (d *File) Extent(off int64) (diskfmt.Extent, error) {
	size := d.Size()
	if off < 0 || off >= size {
		return diskfmt.Extent{}, errs.New(errs.Invalid, "file.extent", d.f.Name(), "offset %d is outside of %d bytes", off, size)
	}
	data, err := unix.Seek(int(d.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return d.hole(off, size)
	case errors.Is(err, unix.EINVAL): // no holes here, as on block devices
		return diskfmt.Extent{Offset: off, Length: size - off, Kind: diskfmt.Data}, nil
	case err != nil:
		return diskfmt.Extent{}, Error("file.extent", d.f.Name(), err)
	case data > off:
		return diskfmt.Extent{Offset: off, Length: min(data, size) - off, Kind: diskfmt.Zero}, nil
	}
	hole, err := unix.Seek(int(d.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil || hole <= off { // ENXIO: the file shrank meanwhile
		hole = size
	}
	return diskfmt.Extent{Offset: off, Length: min(hole, size) - off, Kind: diskfmt.Data}, nil
}

// hole returns the hole from off to the end, unless the file lost its end:
// what somebody cut off must not pass for zeroes.
func (d *File) hole(off, size int64) (diskfmt.Extent, error) {
	end, err := d.f.Seek(0, io.SeekEnd)
	if err != nil {
		return diskfmt.Extent{}, Error("file.extent", d.f.Name(), err)
	}
	if end < size && d.Size() >= size { // not by d.Truncate
		return diskfmt.Extent{}, errs.New(errs.Corrupt, "file.extent", d.f.Name(), "the file has %d bytes and had %d when it was opened", end, size)
	}
	return diskfmt.Extent{Offset: off, Length: size - off, Kind: diskfmt.Zero}, nil
}

// Zero makes [off, off+n), which must lie inside the container, read as zeroes:
// by a hole, where that cannot be had by unwritten extents, else by writing.
func (d *File) Zero(off, n int64) error {
	if off < 0 || n < 0 || off > d.Size()-n {
		return errs.New(errs.Invalid, "file.zero", d.f.Name(), "bytes %d+%d are outside of %d", off, n, d.Size())
	}
	if n == 0 {
		return nil
	}
	for _, mode := range []uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE} {
		err := d.act(faults.Ioctl, "file.zero", func() error {
			return ignoringEINTR(func() error {
				return unix.Fallocate(int(d.f.Fd()), mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
			})
		})
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return d.writeZeroes(off, n)
}

func (d *File) writeZeroes(off, n int64) error {
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		w, err := d.WriteAt(buf[:min(n, int64(len(buf)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

// Truncate sets the container's size; what it adds reads as zeroes.
func (d *File) Truncate(size int64) error {
	err := d.act(faults.Ioctl, "file.truncate", func() error { return d.f.Truncate(size) })
	if err == nil {
		d.size.Store(size)
	}
	return err
}

// Sync makes everything written so far, and the size, survive power loss
// (fdatasync). It is never retried.
func (d *File) Sync() error {
	d.syncs.Lock()
	defer d.syncs.Unlock()
	err := d.act(faults.Sync, "file.sync", func() error {
		return ignoringEINTR(func() error { return unix.Fdatasync(int(d.f.Fd())) })
	})
	if err != nil && d.failed.Load() == nil {
		e := errs.New(KindOf(err), "file.sync", d.f.Name(), "an earlier sync failed, what was written may be lost: %w", err)
		d.failed.Store(e)
	}
	return err
}

// Close drops the file's OFD locks and closes it. It does not sync. Without the
// first a lock would outlive the file for as long as a process that is being
// started still has its descriptor.
func (d *File) Close() error {
	_ = unix.FcntlFlock(d.f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}) // there may be none
	return Error("file.close", d.f.Name(), d.f.Close())
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
