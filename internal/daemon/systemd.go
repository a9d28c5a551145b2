package daemon

import (
	"net"
	"os"
	"strconv"

	"github.com/tarn-storage/tarn/errs"
)

// firstInherited is the number of the first descriptor that a service manager
// passes (sd_listen_fds(3)).
const firstInherited = 3

// inherited returns the socket that the service manager opened for this
// process, or nil. More than one, or one of another kind, is an error.
func inherited() (*socket, error) {
	if pid, err := strconv.Atoi(os.Getenv("LISTEN_PID")); err != nil || pid != os.Getpid() {
		return nil, nil
	}
	n := os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name) // not for the processes that are started from here
	}
	if n != "1" {
		return nil, errs.New(errs.Invalid, "daemon.listen", "", "the service manager passed %s sockets, not one", n)
	}
	f := os.NewFile(firstInherited, "systemd")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, errs.New(errs.Invalid, "daemon.listen", "", "what the service manager passed is no socket: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		_ = l.Close()
		return nil, errs.New(errs.Invalid, "daemon.listen", "", "the service manager passed a socket of %s, not a unix socket", l.Addr().Network())
	}
	u.SetUnlinkOnClose(false)
	return &socket{UnixListener: u}, nil
}

// notify tells the service manager the daemon's state (sd_notify(3)). Without
// one it does nothing.
func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return errs.Wrap(err, "daemon.notify", path)
	}
	defer c.Close()
	_, err = c.Write([]byte(state))
	return errs.Wrap(err, "daemon.notify", path)
}
