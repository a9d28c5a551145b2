package blkio

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// window is how much is read, judged and written at once: large enough that
// contiguous data becomes writes of a megabyte and more, and the chunk of the
// content digest.
const window = ChunkSize

// Copy makes the first src.Size() bytes of dst equal to src. Runs of 64 KiB and
// more that read as zeroes, holes or not, become holes where dst can have
// them. Where both are files of one file system that shares extents, what is
// not a hole is shared instead of read. progress, when not nil, is called with the bytes
// done so far, holes included. Copy does not sync. When it fails dst holds a
// part of src; repeating it converges.
func Copy(ctx context.Context, dst Target, src Source, progress func(done int64)) error {
	c := copier{dst: dst, src: src, size: src.Size()}
	c.share = sharing(dst, src)
	for off := int64(0); off < c.size; {
		if err := ctx.Err(); err != nil {
			return errs.New(errs.Cancelled, "copy", "", "stopped after %d of %d bytes: %w", off, c.size, err)
		}
		n, err := c.step(off)
		if err != nil {
			return errs.Wrap(err, "copy", "")
		}
		off += n
		if progress != nil {
			progress(off)
		}
	}
	return nil
}

type copier struct {
	dst   Target
	src   Source
	size  int64
	share func(off, n int64) error // nil: extents cannot be shared
	buf   []byte
}

// step copies some bytes at off and returns how many.
func (c *copier) step(off int64) (int64, error) {
	e, err := extentOf(c.src, off)
	if err != nil {
		return 0, err
	}
	n := min(e.Length, c.size-off)
	if e.Kind == diskfmt.Zero && n >= minHole {
		return n, c.zero(off, n)
	}
	if c.share != nil && e.Kind == diskfmt.Data {
		n = min(n, shareStep-off%shareStep)
		err := c.share(off, n)
		if err == nil || !cannotShare(err) {
			return n, Error("copy", "", err)
		}
		c.share = nil
	}
	if c.buf == nil {
		c.buf = make([]byte, window)
	}
	p := c.buf[:min(window-off%window, c.size-off)]
	if err := readSparse(c.src, p, off, e); err != nil {
		return 0, err
	}
	return int64(len(p)), DataRuns(p, off, c.write, c.zero)
}

func (c *copier) write(p []byte, off int64) error {
	_, err := c.dst.WriteAt(p, off)
	return err
}

// zero zeroes what of [off, off+n) does not read as zeroes already.
func (c *copier) zero(off, n int64) error {
	for end := off + n; off < end; {
		e, err := c.dst.Extent(off)
		if err != nil {
			return err
		}
		run := min(e.Length, end-off)
		if e.Kind != diskfmt.Zero {
			if err := c.dst.Zero(off, run); err != nil {
				return err
			}
		}
		off += run
	}
	return nil
}

// extentOf returns src's extent at off and refuses what no copy can use.
func extentOf(src Source, off int64) (diskfmt.Extent, error) {
	e, err := src.Extent(off)
	switch {
	case err != nil:
		return e, err
	case e.Offset != off || e.Length <= 0:
		return e, errs.New(errs.Internal, "extent", "", "asked at %d, got %d+%d", off, e.Offset, e.Length)
	case e.Kind != diskfmt.Data && e.Kind != diskfmt.Zero:
		return e, errs.New(errs.Internal, "extent", "", "a %v extent at %d has no bytes here", e.Kind, off)
	}
	return e, nil
}

// readSparse reads len(p) bytes at off of which e is the first extent, without
// reading holes.
func readSparse(src Source, p []byte, off int64, e diskfmt.Extent) error {
	for {
		n := int(min(e.Length, int64(len(p))))
		if e.Kind == diskfmt.Zero {
			clear(p[:n])
		} else if err := readFull(src, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
		if len(p) == 0 {
			return nil
		}
		var err error
		if e, err = extentOf(src, off); err != nil {
			return err
		}
	}
}

func readFull(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return errs.New(errs.Corrupt, "read", "", "the source ends at %d, inside of its size", off+int64(n))
	}
	return err
}

// shareStep bounds one FICLONERANGE, which holds locks of both files for as
// long as it takes.
const shareStep = 64 << 20

// sharing returns a function that shares extents of src with dst, or nil where
// they are not both files.
func sharing(dst Target, src Source) func(off, n int64) error {
	type sharer interface{ extents() *os.File }
	d, ok := dst.(sharer)
	s, ok2 := src.(sharer)
	if !ok || !ok2 {
		return nil
	}
	return func(off, n int64) error {
		r := unix.FileCloneRange{Src_fd: int64(s.extents().Fd()), Src_offset: uint64(off), Src_length: uint64(n), Dest_offset: uint64(off)}
		return faults.Do(faults.Ioctl, "share "+d.extents().Name(), func() error {
			return unix.IoctlFileCloneRange(int(d.extents().Fd()), &r)
		})
	}
}

// cannotShare tells the answers of file systems that do not share these
// extents (EINVAL: not aligned, or shared never) from failures.
func cannotShare(err error) bool {
	for _, e := range []error{unix.EOPNOTSUPP, unix.ENOTTY, unix.EXDEV, unix.EINVAL, unix.EPERM, unix.ETXTBSY, unix.EISDIR} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
