package mounted

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// flags keep what lies in a pool from being anything but data: guests write
// there, and whoever made the file system may have been somebody else.
const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mount mounts the storage of c at its path, unless it is mounted there. undo
// takes back what was done.
func (d Directory) mount(ctx context.Context, op string, c driver.Config) (undo func() error, err error) {
	undo = func() error { return nil }
	if err := ctx.Err(); err != nil {
		return undo, errs.Wrap(err, op, c.Path)
	}
	m, err := d.Find(ctx, op, c)
	if err != nil || m == nil {
		return undo, err
	}
	undo = func() error { return errors.Join(d.unmount(op, c), dirdrv.DropDir(context.WithoutCancel(ctx), c.Path)) }
	if err = makePoint(op, c.Path); err == nil {
		err = faults.Do(faults.Ioctl, "mount "+c.Path, func() error { return unix.Mount(m.Source, Place(c.Path), m.Kind, flags, m.Options) })
		if err != nil {
			err = d.Unmountable(op, c, *m, err)
		}
	}
	if err != nil {
		err = errors.Join(err, undo())
	}
	return undo, err
}

// Other is the refusal to mount at path, where source is mounted already.
func Other(op, path, source string) error {
	return errs.New(errs.Conflict, op, path, "another file system, %s, is mounted at %s", source, path).
		WithHint("unmount it, or choose another path")
}

// makePoint makes the directory at path to mount at. One in which files are is
// refused: they could not be reached any more.
func makePoint(op, path string) error {
	if err := dirdrv.MakeDir(path); err != nil {
		return err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return blkio.Error(op, path, err)
	}
	for _, e := range entries {
		if !dirdrv.IsMade(e.Name()) {
			return errs.New(errs.Conflict, op, path, "the directory %s is not empty: a mount would cover what is in it", path).
				WithHint("choose an empty directory")
		}
	}
	return nil
}

// Unmounting tries a little while: a process that is being started has the
// daemon's descriptors until it runs.
const (
	unmountTries = 20
	unmountPause = 10 * time.Millisecond
)

// unmount unmounts the storage of c from its path, unless it is not there;
// errs.Busy while it is in use.
func (d Directory) unmount(op string, c driver.Config) error {
	here, err := d.Here(op, c)
	if err != nil || !here {
		return err
	}
	err = faults.Do(faults.Ioctl, "unmount "+c.Path, func() (err error) {
		for range unmountTries {
			if err = unix.Unmount(Place(c.Path), unix.UMOUNT_NOFOLLOW); !errors.Is(err, unix.EBUSY) {
				return err
			}
			time.Sleep(unmountPause)
		}
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		return errs.New(errs.Busy, op, c.Path, "the file system at %s is in use", c.Path).WithHint("fuser -vm %s shows by what", c.Path)
	}
	return blkio.Error(op, c.Path, err)
}
