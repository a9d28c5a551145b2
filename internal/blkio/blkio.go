// Package blkio moves bytes between open block containers: files as devices,
// sparse copies, zero detection and content digests. It works on descriptors
// and interfaces alone: it refuses to open a path, to know a record or a pool,
// and to guess a format.
package blkio

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// Source is what can be copied or digested: bytes whose extents are Data or
// Zero. Extents of kind Backing are refused, because a layer alone is not the
// content.
type Source interface {
	io.ReaderAt
	Size() int64
	Extent(off int64) (diskfmt.Extent, error)
}

// Target takes a copy. Its size is not less than the source's.
type Target interface {
	io.WriterAt
	Extent(off int64) (diskfmt.Extent, error)
	Zero(off, n int64) error
}

// Error wraps a failed access with op and subject and gives system errors the
// kind they stand for. A nil err stays nil; the cause stays in the chain.
func Error(op, subject string, err error) error {
	if err == nil {
		return nil
	}
	var e *errs.Error
	if errors.As(err, &e) {
		return errs.Wrap(err, op, subject)
	}
	if errors.Is(err, syscall.EFBIG) {
		return tooLarge(op, subject, err)
	}
	return errs.New(KindOf(err), op, subject, "%w", err)
}

// tooLarge words EFBIG: ext4, for one, holds no file of more than 16 TiB,
// whatever is free.
func tooLarge(op, subject string, err error) error {
	e := errs.New(errs.NoSpace, op, subject, "the file system cannot hold so large a file").
		WithHint("choose a smaller size, or a file system that holds larger files, as XFS does")
	e.Err = err
	return e
}

// errnoKinds gives system errors their kind, the ones errs.KindOf does not know.
var errnoKinds = map[syscall.Errno]errs.Kind{
	syscall.ENOENT:       errs.NotFound,
	syscall.EEXIST:       errs.Exists,
	syscall.ENAMETOOLONG: errs.Invalid,
	syscall.EFBIG:        errs.NoSpace,
	syscall.ENOTDIR:      errs.Invalid,
	syscall.EISDIR:       errs.Unsafe,
	syscall.ELOOP:        errs.Unsafe,
	syscall.EXDEV:        errs.Unsafe,
	syscall.EBUSY:        errs.Busy,
	syscall.EOPNOTSUPP:   errs.Unsupported,
	syscall.EACCES:       errs.Unavailable,
	syscall.EPERM:        errs.Unavailable,
	syscall.EIO:          errs.Unavailable,
	syscall.EROFS:        errs.Unavailable,
	syscall.ESTALE:       errs.Unavailable,
	syscall.ENODEV:       errs.Unavailable,
	syscall.ENXIO:        errs.Unavailable,
}

// KindOf is errs.KindOf with the system errors that Error knows.
func KindOf(err error) errs.Kind {
	var no syscall.Errno
	if errors.As(err, &no) {
		if k, ok := errnoKinds[no]; ok {
			return k
		}
	}
	if errors.Is(err, os.ErrClosed) {
		return errs.Unavailable
	}
	return errs.KindOf(err)
}
