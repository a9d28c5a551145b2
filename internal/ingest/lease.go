package ingest

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// lease is the kernel's promise to tell when somebody opens a file for writing.
// Size and times of a file show nothing when bytes change through a mapping, or
// when a writer sets the time back; a file that is judged by its tables and
// converted and digested in several reads must not change between them. It is
// taken while nobody has the file open or mapped for writing; who wants to open
// it for writing from then on waits, and the lease is broken, which holds
// reports ever after.
type lease struct{ f *os.File }

// kernelOnly are the file systems whose files change through this kernel alone,
// so that a lease sees every writer. Behind those of the network and of user
// space others write; a mapping of a file of overlayfs is one of another file.
var kernelOnly = []int64{
	unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.BCACHEFS_SUPER_MAGIC,
	unix.TMPFS_MAGIC, unix.ISOFS_SUPER_MAGIC, unix.UDF_SUPER_MAGIC, unix.SQUASHFS_MAGIC,
	unix.EROFS_SUPER_MAGIC_V1, unix.MSDOS_SUPER_MAGIC, unix.EXFAT_SUPER_MAGIC,
	0x2fc12fc1, // ZFS
}

// takeLease takes a lease on what f has open. It returns nil where there is none
// to be had: the file system has none that means anything, or this process may
// not, being neither the file's owner nor root. A file that somebody has open
// for writing is errs.Busy.
func takeLease(f *os.File) (*lease, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil || !slices.Contains(kernelOnly, int64(fs.Type)) {
		return nil, err
	}
	// An open file of its own: the caller could give up a lease on the one that
	// it shares with us.
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
			_ = unix.Close(fd)
		}
	}
	switch err {
	case nil:
		// Nobody is to be told by a signal: it is asked for.
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETOWN, 0)
		return &lease{os.NewFile(uintptr(fd), f.Name())}, nil
	case unix.EAGAIN:
		return nil, errs.New(errs.Busy, "", "", "another program has the file open for writing").
			WithHint("import it again when that program has closed it, or import a copy")
	}
	return nil, nil
}

// holds returns an error when somebody opened the file for writing. No lease
// holds nothing and has no error.
func (l *lease) holds() error {
	if l == nil {
		return nil
	}
	if kind, err := unix.FcntlInt(l.f.Fd(), unix.F_GETLEASE, 0); err != nil || kind != unix.F_RDLCK {
		return errChanged()
	}
	return nil
}

// end gives the lease up, so that writers need not wait. To end it again is not
// an error.
func (l *lease) end() {
	if l != nil {
		_ = l.f.Close()
	}
}

// promised reports whether somebody said what the bytes are.
func (c Claim) promised() bool { return c.SHA256 != "" || c.Promised }

// readOnce reports whether each byte of a file is read only once, for its
// content and its digest together.
func (c Claim) readOnce() bool {
	f := diskfmt.Format(c.Format)
	return c.Compression != "" || f == diskfmt.Raw || doors[f].flat
}
