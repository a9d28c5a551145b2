package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/tarn-storage/tarn/errs"
)

// socket is the unix socket the daemon serves on. Path is empty when it was
// handed over by systemd, which keeps it.
type socket struct {
	*net.UnixListener
	path string
}

// maxPath is the longest path that bind and connect take (unix(7)).
const maxPath = 107

// listen returns the socket that systemd handed over, or a new one at path,
// mode 0660 for group where it exists and may be used, else 0600. A socket
// that nobody answers on is replaced; one that answers is errs.Busy.
func listen(path, group string) (*socket, error) {
	const op = "daemon.listen"
	if l, err := inherited(); l != nil || err != nil {
		return l, err
	}
	if len(path) > maxPath {
		return nil, errs.New(errs.Invalid, op, path, "the path of the socket has %d bytes, more than %d", len(path), maxPath).WithHint("give a shorter one with --socket")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, errs.New(errs.Unavailable, op, path, "the socket's directory cannot be made: %w", err)
	}
	if err := checkVacant(path); err != nil {
		return nil, err
	}
	// The socket is made in a directory that only this user can enter and gets
	// its name once its rights are set: nobody connects before.
	dir, err := os.MkdirTemp(filepath.Dir(path), ".tarn-")
	if err != nil {
		return nil, errs.New(errs.Unavailable, op, path, "the socket cannot be made: %w", err)
	}
	defer os.RemoveAll(dir)
	open, err := os.Open(dir)
	if err != nil {
		return nil, errs.New(errs.Unavailable, op, path, "the socket cannot be made: %w", err)
	}
	defer open.Close()
	hidden := fmt.Sprintf("/proc/self/fd/%d/s", open.Fd()) // short, however long path is
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: hidden, Net: "unix"})
	if err != nil {
		return nil, errs.New(errs.Unavailable, op, path, "the socket cannot be made: %w", err)
	}
	l.SetUnlinkOnClose(false)
	err = permit(hidden, group)
	if err == nil {
		err = os.Rename(hidden, path)
	}
	if err != nil {
		_ = l.Close()
		return nil, errs.New(errs.Unavailable, op, path, "the socket cannot be made: %w", err)
	}
	return &socket{UnixListener: l, path: path}, nil
}

// checkVacant refuses a path where somebody answers or something else lies.
func checkVacant(path string) error {
	const op = "daemon.listen"
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return errs.New(errs.Unavailable, op, path, "the socket's place cannot be looked at: %w", err)
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return errs.New(errs.Conflict, op, path, "%s is there and is no socket", path).WithHint("give another place with --socket")
	}
	c, err := net.Dial("unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err == nil {
		_ = c.Close()
	}
	return errs.New(errs.Busy, op, path, "another daemon listens on %s", path).WithHint("stop it, or give another place with --socket")
}

// permit lets the group use the socket, if there is such a group and this
// user may give it away.
func permit(path, group string) error {
	mode := fs.FileMode(0o600)
	if g, err := user.LookupGroup(group); err == nil {
		gid, err := strconv.Atoi(g.Gid)
		if err == nil && os.Chown(path, -1, gid) == nil {
			mode = 0o660
		}
	}
	return os.Chmod(path, mode)
}

// remove takes the socket's name away, after its listener was closed.
func (s *socket) remove() error {
	_ = s.Close() // the server closed it unless the start failed
	if s.path == "" {
		return nil
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.Wrap(err, "daemon.stop", s.path)
	}
	return nil
}
