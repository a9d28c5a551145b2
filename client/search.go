package client

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tarn-storage/tarn/errs"
)

// SystemSocket is where a daemon that runs as root listens.
const SystemSocket = "/run/tarn/tarn.sock"

// Search says where to look for the daemon's socket. Socket, when set, is the
// only place; else Env, the value of TARN_SOCKET, when set; else
// RuntimeDir/tarn/tarn.sock, the value of XDG_RUNTIME_DIR, and then
// SystemSocket.
type Search struct {
	Socket     string
	Env        string
	RuntimeDir string
}

// Paths returns the places to try, in order.
func (s Search) Paths() []string {
	switch {
	case s.Socket != "":
		return []string{s.Socket}
	case s.Env != "":
		return []string{s.Env}
	case s.RuntimeDir != "":
		return []string{filepath.Join(s.RuntimeDir, "tarn", "tarn.sock"), SystemSocket}
	}
	return []string{SystemSocket}
}

// Dial connects to the first socket that answers. When none does, the error
// is errs.Unavailable and lists every place with the reason.
func (s Search) Dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	var tried []string
	denied := false
	for _, path := range s.Paths() {
		c, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return c, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		denied = denied || errors.Is(err, syscall.EACCES)
		tried = append(tried, path+" ("+reason(err)+")")
	}
	e := errs.New(errs.Unavailable, "client.connect", "", "no daemon answers; tried %s", strings.Join(tried, ", "))
	if denied {
		return nil, e.WithHint("join the group tarn, or set TARN_SOCKET to a daemon of your own")
	}
	return nil, e.WithHint("start one: systemctl start tarnd, or for one command: tarnd -- tarn ...")
}

// reason says in few words why a socket did not answer.
func reason(err error) string {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	switch errno {
	case syscall.ENOENT:
		return "no such file"
	case syscall.ECONNREFUSED:
		return "nobody listens"
	}
	return errno.Error()
}
