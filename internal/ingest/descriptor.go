package ingest

import (
	"io"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
)

// descriptor is an open file of the worker. os.File would ask the kernel
// things that the filter forbids.
type descriptor int

// ReadAt reads as io.ReaderAt says.
func (d descriptor) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(int(d), p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, io.EOF
		default:
			done += n
		}
	}
	return done, nil
}

// WriteAt writes all of p at off.
func (d descriptor) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pwrite(int(d), p[done:], off+int64(done))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		default:
			done += n
		}
	}
	return done, nil
}

// writeBack has the kernel begin to write n bytes at off to the disk. It
// promises nothing: what fails here, the daemon's sync reports.
func (d descriptor) writeBack(off, n int64) {
	_ = unix.SyncFileRange(int(d), off, n, unix.SYNC_FILE_RANGE_WRITE)
}

// Read reads from a pipe, waiting where its other users made it non-blocking.
func (d descriptor) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), p)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(d), Events: unix.POLLIN}}, nil, nil)
			if err != nil && err != unix.EINTR {
				return 0, err
			}
		case err != nil:
			return 0, err
		case n == 0 && len(p) > 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write writes p with one call, as a message must be.
func (d descriptor) Write(p []byte) (int, error) {
	for {
		n, err := unix.Write(int(d), p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// extent returns the run at off that is data or a hole of a file of size bytes.
func (d descriptor) extent(off, size int64) (diskfmt.Extent, error) {
	e := diskfmt.Extent{Offset: off, Kind: diskfmt.Data}
	data, err := unix.Seek(int(d), off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // a hole up to the end
		e.Kind, e.Length = diskfmt.Zero, size-off
	case err == unix.EINVAL: // a file system without holes
		e.Length = size - off
	case err != nil:
		return e, err
	case data > off:
		e.Kind, e.Length = diskfmt.Zero, min(data, size)-off
	default:
		hole, err := unix.Seek(int(d), off, unix.SEEK_HOLE)
		if err != nil {
			return e, err
		}
		e.Length = min(hole, size) - off
	}
	return e, nil
}

// stamp is what shows that a file was changed.
type stamp struct {
	size         int64
	mtime, ctime unix.Timespec
}

func (d descriptor) stamp() (stamp, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(d), &st)
	return stamp{st.Size, st.Mtim, st.Ctim}, err
}
