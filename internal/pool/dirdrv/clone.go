package dirdrv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const (
	// fewExtents is how many extents one FICLONE may take at once. It locks the
	// base for as long as it lasts, about 20 microseconds an extent.
	fewExtents = 1000
	cloneStep  = 64 << 20
)

// Clone implements driver.Cloner.
func (p *pool) Clone(ctx context.Context, s driver.Spec, base driver.Ref) error {
	const op = "volume.clone"
	if err := ctx.Err(); err != nil {
		return failed(op, string(s.ID), err)
	}
	from, err := p.device(op, base, driver.Base)
	if err != nil {
		return err
	}
	defer from.Close()
	if s.Size < from.Size() {
		return errs.New(errs.Invalid, op, string(s.ID), "%d bytes are fewer than the base's %d", s.Size, from.Size())
	}
	err = p.stage(ctx, op, s, func(f *os.File) error {
		err := reflink(f, from.Descriptor(), from.Size())
		if cannotReflink(err) {
			return errs.New(errs.Unsupported, op, string(s.ID), "the file system does not share extents between these files: %w", err)
		}
		return err
	})
	return failed(op, string(s.ID), err)
}

// reflink makes the empty file dst share all size bytes of src.
func reflink(dst, src *os.File, size int64) error {
	if n, err := countExtents(src, fewExtents+1); err != nil || n <= fewExtents {
		return faults.Do(faults.Ioctl, "clone "+filepath.Base(dst.Name()), func() error {
			return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
		})
	}
	for off := int64(0); off < size; off += cloneStep {
		r := unix.FileCloneRange{
			Src_fd: int64(src.Fd()), Src_offset: uint64(off), Dest_offset: uint64(off),
			Src_length: uint64(min(cloneStep, size-off)),
		}
		err := faults.Do(faults.Ioctl, "clone range "+filepath.Base(dst.Name()), func() error {
			return unix.IoctlFileCloneRange(int(dst.Fd()), &r)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// cannotReflink tells what file systems without shared extents, or with rules
// that these files break, answer.
func cannotReflink(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.EXDEV, unix.ENOTTY, unix.EINVAL, unix.ENOSYS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// tryClone finds out whether this directory can reflink, by doing it with two
// files that have no name: nothing of them can stay behind.
func (p *pool) tryClone() disk.CloneKind {
	src, err := p.tmp.openat(".", unix.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return disk.CloneCopy // no such files here, or no room
	}
	defer src.Close()
	dst, err := p.tmp.openat(".", unix.O_RDWR|unix.O_TMPFILE, 0o600)
	if err != nil {
		return disk.CloneCopy
	}
	defer dst.Close()
	_, err = src.Write(make([]byte, sizeUnit))
	if err != nil || unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		return disk.CloneCopy
	}
	return disk.CloneReflink
}

// FIEMAP (Linux, Documentation/filesystems/fiemap.rst).
const (
	fiemapIoctl    = 0xc020660b // FS_IOC_FIEMAP
	fiemapBatch    = 512
	fiemapLast     = 0x1
	fiemapUnknown  = 0x2
	fiemapDelalloc = 0x4
	fiemapShared   = 0x2000
)

type fiemapExtent struct {
	Logical, Physical, Length uint64
	_                         [2]uint64
	Flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	Start, Length           uint64
	Flags, Mapped, Count, _ uint32
	Extents                 [fiemapBatch]fiemapExtent
}

// eachExtent calls visit with the extents of f until it returns false.
func eachExtent(f *os.File, visit func(fiemapExtent) bool) error {
	m := new(fiemap)
	for {
		m.Length, m.Mapped, m.Count = ^uint64(0)-m.Start, 0, fiemapBatch
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapIoctl, uintptr(unsafe.Pointer(m)))
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return errno
		case m.Mapped == 0:
			return nil
		}
		for _, e := range m.Extents[:m.Mapped] {
			if !visit(e) || e.Flags&fiemapLast != 0 {
				return nil
			}
			m.Start = e.Logical + e.Length
		}
	}
}

// countExtents returns the number of extents of f, or limit if it has more.
func countExtents(f *os.File, limit int) (n int, err error) {
	err = eachExtent(f, func(fiemapExtent) bool { n++; return n < limit })
	return n, err
}
