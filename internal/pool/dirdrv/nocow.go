package dirdrv

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// nocowFlag is FS_NOCOW_FL (Linux, include/uapi/linux/fs.h): btrfs writes over
// the file's blocks instead of beside them, and keeps no checksums of its data.
// New files have it from the directory they are made in, and files share extents
// only with such as have it too.
const nocowFlag = 0x00800000

const cowOff = "off" // of disk.PoolSource.CopyOnWrite

// checkCOW refuses what c says of copy-on-write where it cannot be had.
func checkCOW(op string, c driver.Config) error {
	switch c.Source.CopyOnWrite {
	case "":
		return nil
	case cowOff:
	default:
		return errs.New(errs.Invalid, op, c.Path, "copy-on-write is %q; it can be %q or left to the file system", c.Source.CopyOnWrite, cowOff)
	}
	at := filepath.Clean(c.Path)
	if _, err := os.Lstat(at); isNotExist(err) {
		at = filepath.Dir(at)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil && !isNotExist(err) {
		return err
	} else if err == nil && fs.Type != unix.BTRFS_SUPER_MAGIC {
		return errs.New(errs.Unsupported, op, c.Path, "the file system at %s always writes in place where nothing is shared: only btrfs can be told to", at).
			WithHint("leave copy-on-write out")
	}
	return nil
}

// setCOW has files that are made in d from now on be as c says. Volumes and
// snapshots are all made in directories of tarn's own, so that those that may
// come to share extents are alike.
func setCOW(d *dir, c driver.Config) error {
	if c.Source.CopyOnWrite != cowOff || d == nil {
		return nil
	}
	return d.use(func(fd int) error {
		flags, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
		if err != nil || flags&nocowFlag != 0 {
			return err
		}
		return faults.Do(faults.Ioctl, "copy-on-write off", func() error {
			return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|nocowFlag)
		})
	})
}
