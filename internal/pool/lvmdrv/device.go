package lvmdrv

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
)

// device is an open logical volume.
type device struct {
	*blkio.File
	in    *source
	chunk int64 // what a thin pool maps at once; 0 for a thick volume
	from  *opening
	once  sync.Once
}

// opening counts how often this process has one logical volume open: what the
// kernel counts beyond that are others.
type opening struct {
	mu sync.Mutex
	n  int
}

var openings sync.Map // of *opening, by device-mapper's id

// settle is how long an opening by others may last that is only a look: udev
// and blkid take one when a writer closes.
const settle = 2 * time.Second

// open opens the logical volume name in mode m. id, if not empty, must be its
// own id.
func (s *source) open(ctx context.Context, op, name string, r driver.Ref, m driver.Mode) (*device, error) {
	at, id, err := s.look(name)
	if err != nil {
		return nil, err
	}
	if err := sameObject(op, r, id); err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if m == driver.Write || m == driver.Staged {
		flags = os.O_RDWR
	}
	v, _ := openings.LoadOrStore(at.uuid, new(opening))
	from := v.(*opening)
	from.mu.Lock()
	f, err := os.OpenFile(s.node(name), flags, 0)
	if err == nil {
		from.n++
	}
	from.mu.Unlock()
	if err != nil {
		return nil, err
	}
	file, err := blkio.NewFile(f)
	if err != nil {
		f.Close()
		from.gone()
		return nil, err
	}
	d := &device{File: file, in: s, chunk: s.chunk, from: from}
	var st unix.Stat_t
	if err = unix.Fstat(int(f.Fd()), &st); err == nil && st.Rdev != at.dev {
		err = unix.ENXIO // it was renamed meanwhile
	}
	if err == nil && (m == driver.Read || m == driver.Write) {
		if err = imagelock.Take(f, m); err == nil {
			err = s.alone(ctx, op, name, from)
		}
	}
	if err != nil {
		_ = d.Close() // with the locks that were got
		return nil, err
	}
	return d, nil
}

func (o *opening) gone() {
	o.mu.Lock()
	o.n--
	o.mu.Unlock()
}

// others returns how many openings of the device name are not this process's.
func (o *opening) others(name string) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	m, err := mapped(name)
	return m.opens - o.n, err
}

// alone returns errs.Busy if another process has the volume open for longer
// than it takes to look at it.
func (s *source) alone(ctx context.Context, op, name string, from *opening) error {
	ctx, cancel := context.WithTimeout(ctx, settle)
	defer cancel()
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for {
		n, err := from.others(dmName(s.vg, name))
		if err != nil || n <= 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.Busy, op, name, "%s has the volume open", holderOf(s.node(name))).
				WithHint("stop the guest or the program that uses it")
		case <-look.C:
		}
	}
}

// Close drops the volume's locks and closes it. It does not sync.
func (d *device) Close() error {
	var err error = os.ErrClosed
	d.once.Do(func() {
		d.from.mu.Lock()
		defer d.from.mu.Unlock()
		err = d.File.Close()
		d.from.n--
	})
	return err
}

// Sync is that of the file, but that a thin pool without room fails it as a
// broken disk would: the kernel keeps no reason for a page that it cannot write.
func (d *device) Sync() error {
	err := d.File.Sync()
	if err != nil && !errors.Is(err, faults.ErrCrash) {
		if full := d.in.writable("file.sync"); errors.Is(full, errs.NoSpace) {
			return errs.New(errs.NoSpace, "file.sync", d.Descriptor().Name(), "the thin pool %s is full, what was written may be lost: %w", d.in, err)
		}
	}
	return err
}

// Truncate is not for logical volumes.
func (d *device) Truncate(int64) error {
	return errs.New(errs.Unsupported, "file.truncate", d.Descriptor().Name(), "a logical volume does not grow as it is written")
}

// Extent says Data of everything: device-mapper does not tell what is mapped
// where.
func (d *device) Extent(off int64) (diskfmt.Extent, error) {
	size := d.Size()
	if off < 0 || off >= size {
		return diskfmt.Extent{}, errs.New(errs.Invalid, "file.extent", d.Descriptor().Name(), "offset %d is outside of %d bytes", off, size)
	}
	return diskfmt.Extent{Offset: off, Length: size - off, Kind: diskfmt.Data}, nil
}

const (
	pageSize = 4096
	zeroStep = 1 << 30 // one ioctl's share, so that others get a turn
)

// Zero makes [off, off+n) read as zeroes: thin volumes give whole chunks back,
// which then read as zeroes; everything else is written, because a discarded
// range of a thick volume may read as anything.
func (d *device) Zero(off, n int64) error {
	if off < 0 || n < 0 || off > d.Size()-n {
		return errs.New(errs.Invalid, "file.zero", d.Descriptor().Name(), "bytes %d+%d are outside of %d", off, n, d.Size())
	}
	end := off + n
	if d.chunk > 0 {
		unit := discardUnit(d.chunk)
		from, to := roundUp(off, unit), end/d.chunk*d.chunk
		if from < to {
			step := max(unit, zeroStep/unit*unit)
			err := d.eachStep(unix.BLKDISCARD, "discard", from, to, step)
			if err == nil {
				return errors.Join(d.zeroOut(off, from), d.zeroOut(to, end))
			}
			if !errors.Is(err, unix.EOPNOTSUPP) { // a pool that ignores discards
				return err
			}
		}
	}
	return d.zeroOut(off, end)
}

// discardUnit is what a discard must begin at a multiple of to reach whole chunks
// only: of a part of one nothing is given back, and the kernel cuts a discard
// where it would be aligned if the chunk were a power of two (Linux, block/blk-lib.c:
// bio_discard_limit).
func discardUnit(chunk int64) int64 {
	power := int64(1)
	for power < chunk {
		power *= 2
	}
	unit := chunk
	for unit%power != 0 {
		unit *= 2
	}
	return unit
}

// zeroOut writes zeroes, by the device's own means for whole pages.
func (d *device) zeroOut(off, end int64) error {
	from, to := roundUp(off, pageSize), end/pageSize*pageSize
	if from >= to {
		return d.writeZeroes(off, end)
	}
	if err := d.writeZeroes(off, from); err != nil {
		return err
	}
	if err := d.eachStep(unix.BLKZEROOUT, "zeroout", from, to, zeroStep); err != nil {
		return err
	}
	return d.writeZeroes(to, end)
}

func (d *device) writeZeroes(off, end int64) error {
	if off == end {
		return nil
	}
	_, err := d.WriteAt(make([]byte, end-off), off) // less than two pages
	return err
}

func (d *device) eachStep(request uintptr, what string, from, to, step int64) error {
	f := d.Descriptor()
	for ; from < to; from += step {
		part := [2]uint64{uint64(from), uint64(min(step, to-from))}
		err := faults.Do(faults.Ioctl, what+" "+f.Name(), func() error {
			for {
				_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(&part)))
				if errno == 0 {
					return nil
				}
				if errno != unix.EINTR {
					return errno
				}
			}
		})
		if err != nil {
			return failed("file.zero", f.Name(), err)
		}
	}
	return nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
