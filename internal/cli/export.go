package cli

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
)

// exportFile writes a disk to path with the user's rights: into PATH.partial,
// synced, then renamed, so that path is whole or absent. A failed export
// leaves no partial file; one that is there already belongs to somebody else
// and is not touched.
func (a *app) exportFile(ctx context.Context, c *client.Client, ref, path, format string, force bool) error {
	if err := checkTarget(path, force); err != nil {
		return err
	}
	partial := path + ".partial"
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return errs.New(errs.Exists, "disk.export", partial, "%s is there: another export runs, or one was cut off", partial).
				WithHint("remove it if no export runs")
		}
		return fileError(path, err)
	}
	p := a.progress()
	err = c.DiskExport(ctx, ref, format, f, func(now api.Progress) { p.show("export", now) })
	p.close()
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = publish(partial, path, force)
	}
	if err != nil {
		_ = os.Remove(partial)
		return fileError(path, err)
	}
	return a.exported(ref, path, format)
}

// checkTarget refuses early what publish would refuse at the end.
func checkTarget(path string, force bool) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fileError(path, err)
	case !fi.Mode().IsRegular():
		return notRegular(path, fi.Mode())
	case !force:
		return exists(path)
	}
	return nil
}

func exists(path string) error {
	return errs.New(errs.Exists, "disk.export", path, "%s exists", path).WithHint("add --force to replace it")
}

// publish gives the finished file its name; without force never over another
// file, even one that appeared in the meantime.
func publish(partial, path string, force bool) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if force {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, path, flags)
	if errors.Is(err, unix.EINVAL) && !force { // a file system without the flag
		if err = os.Link(partial, path); err == nil {
			err = os.Remove(partial)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return exists(path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func fileError(path string, err error) error {
	var e *errs.Error
	if errors.As(err, &e) {
		return e
	}
	kind := errs.KindOf(err)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = errs.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = errs.Invalid
	}
	return errs.New(kind, "disk.export", path, "%s cannot be written: %w", path, err)
}
