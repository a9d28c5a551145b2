package cli

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
)

// openSource opens what SOURCE names with the user's rights: a path of a
// regular file, or "-" for standard input. The caller calls closed when done.
func (a *app) openSource(path string) (src client.Source, closed func(), err error) {
	if path == "-" {
		src, err = a.stdin()
		return src, func() {}, err
	}
	f, err := openRegular(path)
	if err != nil {
		return client.Source{}, nil, err
	}
	return client.Source{File: f, Size: -1}, func() { _ = f.Close() }, nil
}

// openRegular opens a regular file for reading. Whatever else the path names
// is refused without blocking on it.
func openRegular(path string) (*os.File, error) {
	const op = "source.open"
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errs.New(errs.NotFound, op, path, "%s does not exist", path)
	case errors.Is(err, unix.ENXIO): // a socket
		return nil, notRegular(path, fs.ModeSocket)
	case errors.Is(err, fs.ErrPermission):
		return nil, errs.New(errs.Invalid, op, path, "you may not read %s", path)
	case err != nil:
		return nil, errs.New(pathKind(err), op, path, "%s cannot be opened: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = notRegular(path, fi.Mode())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// pathKind is the kind of an error about a path that the user named.
func pathKind(err error) errs.Kind {
	for _, missing := range []error{fs.ErrNotExist, unix.ENOTDIR} {
		if errors.Is(err, missing) {
			return errs.NotFound
		}
	}
	for _, mistake := range []error{fs.ErrPermission, unix.EROFS, unix.EINVAL, unix.ELOOP, unix.ENAMETOOLONG} {
		if errors.Is(err, mistake) {
			return errs.Invalid
		}
	}
	return errs.KindOf(err)
}

func notRegular(path string, m fs.FileMode) *errs.Error {
	kind := "no regular file"
	switch {
	case m.IsDir():
		kind = "a directory"
	case m&fs.ModeNamedPipe != 0:
		kind = "a FIFO"
	case m&fs.ModeSocket != 0:
		kind = "a socket"
	case m&fs.ModeDevice != 0:
		kind = "a device"
	}
	return errs.New(errs.Unsafe, "source.open", path, "%s is %s, not a regular file", path, kind).
		WithClass("NOT_REGULAR").WithHint("copy it into a file, or pipe it in with -")
}

// stdin is standard input as a source: a file at its beginning goes as a
// descriptor, so that its holes are kept; a pipe is streamed.
func (a *app) stdin() (client.Source, error) {
	fi, err := a.In.Stat()
	if err != nil {
		return client.Source{}, errs.Wrap(err, "source.open", "-")
	}
	switch m := fi.Mode(); {
	case m.IsRegular():
		if at, err := a.In.Seek(0, io.SeekCurrent); err == nil && at == 0 {
			return client.Source{File: a.In, Size: fi.Size()}, nil
		}
	case terminal(a.In):
		return client.Source{}, usage("standard input is a terminal").WithHint("pipe the image in, or name a file")
	case m.IsDir() || m&fs.ModeDevice != 0:
		return client.Source{}, notRegular("standard input", m)
	}
	return client.Source{Stream: a.In, Size: -1}, nil
}

const maxDescription = 64 << 10 // of a DiskDescriptor.xml

// openPloop opens a ploop image: root.hds in the folder that path names, or that
// holds the DiskDescriptor.xml that it names, with that description; or a
// root.hds alone. The names are fixed: none is taken from the description, and
// no symbolic link leads out of the folder.
func openPloop(path string) (src client.Source, closed func(), description []byte, err error) {
	const op, image, about = "source.open", "root.hds", "DiskDescriptor.xml"
	folder := path
	if filepath.Base(path) == about {
		folder = filepath.Dir(path)
	} else if fi, err := os.Stat(path); err != nil || !fi.IsDir() {
		f, err := openRegular(path)
		return client.Source{File: f, Size: -1}, func() { _ = f.Close() }, nil, err
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return src, nil, nil, errs.New(pathKind(err), op, path, "%s cannot be opened: %w", folder, err)
	}
	defer root.Close()
	x, err := regularIn(root, about)
	switch {
	case err == nil:
		description, err = io.ReadAll(io.LimitReader(x, maxDescription+1))
		_ = x.Close() // was only read
		if err == nil && len(description) > maxDescription {
			err = errs.New(errs.Unsafe, op, path, "%s has more than %d bytes", about, maxDescription).WithClass("LIMIT")
		}
	case errors.Is(err, fs.ErrNotExist) && folder == path:
		err = nil
	case errors.Is(err, fs.ErrNotExist):
		err = errs.New(errs.NotFound, op, path, "%s does not exist", path)
	}
	if err != nil {
		return src, nil, nil, errs.Wrap(err, op, path)
	}
	f, err := regularIn(root, image)
	if errors.Is(err, fs.ErrNotExist) {
		err = errs.New(errs.NotFound, op, path, "%s has no %s", folder, image)
	}
	return client.Source{File: f, Size: -1}, func() { _ = f.Close() }, description, errs.Wrap(err, op, path)
}

// regularIn opens a regular file in root for reading.
func regularIn(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		if fi, lerr := root.Lstat(name); lerr == nil && fi.Mode()&fs.ModeSymlink != 0 && !errors.Is(err, fs.ErrNotExist) {
			return nil, errs.New(errs.Unsafe, "source.open", name, "%s is a symbolic link that leads out of the folder", name).WithClass("EXTERNAL_REFERENCE")
		}
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = notRegular(name, fi.Mode())
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}
