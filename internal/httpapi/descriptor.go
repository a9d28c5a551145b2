package httpapi

import (
	"context"
	"net"
	"net/http"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// Peer is the process at the other end of a unix connection, as the kernel
// knew it when it connected.
type Peer struct {
	PID int32
	UID uint32
	GID uint32
}

// Listener accepts connections of a unix socket that may carry one file
// descriptor with their first byte (SCM_RIGHTS).
type Listener struct{ *net.UnixListener }

// Accept waits for the next connection. One whose peer the kernel cannot name
// is closed and not handed out.
func (l Listener) Accept() (net.Conn, error) {
	for {
		u, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		peer, err := peerOf(u)
		if err != nil {
			_ = u.Close()
			continue
		}
		return &conn{UnixConn: u, peer: peer}, nil
	}
}

func peerOf(u *net.UnixConn) (Peer, error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var sockErr error
	err = raw.Control(func(fd uintptr) {
		cred, sockErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return Peer{}, err
	}
	if sockErr != nil {
		return Peer{}, sockErr
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// conn is a unix connection that keeps at most one descriptor, that of its
// first read. Descriptors sent later are dropped by the kernel, because later
// reads give it no room for them.
type conn struct {
	*net.UnixConn
	peer Peer

	mu      sync.Mutex
	started bool
	file    *os.File
	refused error // why what came with the first byte was not accepted
}

// Read reads as a net.Conn does.
func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	first := !c.started
	c.started = true
	c.mu.Unlock()
	if !first || len(b) == 0 {
		return c.UnixConn.Read(b)
	}
	oob := make([]byte, unix.CmsgSpace(2*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(b, oob)
	if oobn > 0 || flags&unix.MSG_CTRUNC != 0 {
		c.keep(oob[:oobn], flags&unix.MSG_CTRUNC != 0)
	}
	if n == 0 && err == nil {
		return c.UnixConn.Read(b) // reports the end of the stream as io.EOF
	}
	return n, err
}

// keep stores the one descriptor of oob. Whatever else came is closed.
func (c *conn) keep(oob []byte, truncated bool) {
	fds, err := descriptors(oob)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.refused = errs.New(errs.Invalid, "api.descriptor", "", "the control message cannot be read: %w", err)
	case truncated || len(fds) > 1:
		c.refused = errs.New(errs.Invalid, "api.descriptor", "", "more than one descriptor came with the request")
	case len(fds) == 1:
		c.file = os.NewFile(uintptr(fds[0]), "descriptor")
		return
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

func descriptors(oob []byte) ([]int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var all []int
	for _, m := range msgs {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return all, err
		}
		all = append(all, fds...)
	}
	return all, nil
}

// take hands the descriptor over, once.
func (c *conn) take() *os.File {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.file
	c.file = nil
	return f
}

func (c *conn) state() (has bool, refused error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.file != nil, c.refused
}

// Close closes the connection and a descriptor that nobody took.
func (c *conn) Close() error {
	if f := c.take(); f != nil {
		_ = f.Close()
	}
	return c.UnixConn.Close()
}

type connKey struct{}

// connContext makes a connection known to the handlers of its requests.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*conn); ok {
		return context.WithValue(ctx, connKey{}, u)
	}
	return ctx
}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// takeDescriptor returns the descriptor that came with the request.
func takeDescriptor(ctx context.Context) (*os.File, error) {
	if c := connOf(ctx); c != nil {
		if f := c.take(); f != nil {
			return f, nil
		}
	}
	return nil, errs.New(errs.Invalid, "api.descriptor", "", "no descriptor came with the request")
}

// guardDescriptor refuses a request whose header and connection disagree on
// whether a descriptor came with it, and keeps connections that carry one from
// being used again. A descriptor that no handler took is closed at the end.
func guardDescriptor(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wants := r.Header.Get(api.DescriptorHeader) != ""
		c := connOf(r.Context())
		if c == nil {
			if wants {
				w.Header().Set("Connection", "close")
				writeFailure(w, fail(errs.New(errs.Invalid, "api.descriptor", "", "descriptors can be passed over the unix socket only")))
				return
			}
			next.ServeHTTP(w, r)
			return
		}
		has, refused := c.state()
		if refused == nil && has != wants {
			refused = errs.New(errs.Invalid, "api.descriptor", "",
				"the header %s and the descriptors that came with the request disagree", api.DescriptorHeader)
		}
		if refused != nil {
			w.Header().Set("Connection", "close")
			writeFailure(w, fail(refused))
			return
		}
		if wants {
			w.Header().Set("Connection", "close")
			defer func() {
				if f := c.take(); f != nil {
					_ = f.Close()
				}
			}()
		}
		next.ServeHTTP(w, r)
	})
}
