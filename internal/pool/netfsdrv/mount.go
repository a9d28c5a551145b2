package netfsdrv

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
)

// options are what every export is mounted with (nfs(5)). 4.2 because it has locks
// in the protocol, so that QEMU's on one host are seen on the others, and tells of
// holes. Hard because a soft mount returns errors to a guest in the middle of its
// writes when the server restarts. Nosharecache because an export that is mounted
// elsewhere by another name of its server would show that name here too, and not
// be known for the pool's. The address is added.
const options = "vers=4.2,hard,proto=tcp,nosharecache"

const (
	port      = "2049"
	reachable = 5 * time.Second // for a server to accept a connection
)

// export is what a pool's export is to those who mount it.
type export struct{}

// source is the export as the kernel's table of mounts has it.
func source(c driver.Config) string {
	host := c.Source.Host
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return host + ":" + path.Clean(c.Source.Export)
}

// checkSource refuses what is no name of a host or an export.
func checkSource(op string, c driver.Config) error {
	host, export := c.Source.Host, c.Source.Export
	if _, err := netip.ParseAddr(host); err != nil && (host == "" || len(host) > 255 || strings.ContainsAny(host, ":/[]@%, \\")) {
		return errs.New(errs.Invalid, op, host, "%q is no host name or address", host)
	}
	if !path.IsAbs(export) {
		return errs.New(errs.Invalid, op, export, "the path of an export must be absolute")
	}
	return nil
}

// Find implements mounted.Storage.
func (export) Find(ctx context.Context, op string, c driver.Config) (*mounted.Call, error) {
	if err := checkSource(op, c); err != nil {
		return nil, err
	}
	here, err := mounted.Source(c.Path)
	switch {
	case err != nil:
		return nil, failed(op, c, err)
	case here == source(c):
		return nil, nil
	case here != "":
		return nil, mounted.Other(op, c.Path, here)
	}
	addr, err := reach(ctx, op, c)
	if err != nil {
		return nil, err
	}
	return &mounted.Call{Source: source(c), Kind: "nfs4", Options: options + ",addr=" + addr.String()}, nil
}

// Here implements mounted.Storage.
func (export) Here(op string, c driver.Config) (bool, error) {
	here, err := mounted.Source(c.Path)
	return here == source(c), failed(op, c, err)
}

// reach returns the address at which the server accepts connections: mounting by
// itself would find out only after minutes that there is none.
func reach(ctx context.Context, op string, c driver.Config) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, reachable)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(c.Source.Host, port))
	if err != nil {
		return netip.Addr{}, errs.New(errs.Unavailable, op, source(c), "no NFS server answers at %s: %w", c.Source.Host, err).
			WithHint("is its name right, does it run, and does a firewall let TCP port %s through?", port)
	}
	defer conn.Close()
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	return at.Addr().Unmap(), failed(op, c, err)
}

// Unmountable implements mounted.Storage.
func (export) Unmountable(op string, c driver.Config, _ mounted.Call, err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return failed(op, c, err)
	}
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		return errs.New(errs.Unavailable, op, source(c), "the server exports no %s", path.Clean(c.Source.Export)).
			WithHint("showmount or exportfs -v on the server lists its exports; with fsid=0 paths begin below that one")
	case unix.EACCES, unix.EPERM:
		return errs.New(errs.Unavailable, op, source(c), "the server does not let this host mount the export, or the kernel tarnd: %w", err).
			WithHint("export it to this host, and run tarnd as root, with CAP_SYS_ADMIN")
	case unix.EPROTONOSUPPORT, unix.EINVAL:
		return errs.New(errs.Unavailable, op, source(c), "the server, or this kernel, speaks no NFS 4.2: %w", err)
	case unix.ENODEV:
		return errs.New(errs.Unavailable, op, source(c), "this kernel has no NFS client").WithHint("modprobe nfsv4")
	case unix.ETIMEDOUT, unix.ECONNREFUSED, unix.ECONNRESET, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN:
		return errs.New(errs.Unavailable, op, source(c), "no NFS server answers at %s: %w", c.Source.Host, err)
	}
	return failed(op, c, err)
}

// Explained implements mounted.Storage: a server has a mind of its own.
func (export) Explained(op string, c driver.Config, err error) error {
	switch {
	case errors.Is(err, unix.ESTALE):
		return errs.New(errs.Unavailable, op, source(c), "the server does not know any more what was mounted: %w", err).
			WithHint("see that it exports %s as before, then tarn pool stop and tarn pool start", path.Clean(c.Source.Export))
	case os.Geteuid() == 0 && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)):
		return errs.New(errs.Unavailable, op, source(c), "the server does not let root write in the export: %w", err).
			WithHint("export it to this host with rw and no_root_squash: tarn gives disks to the user that runs guests")
	}
	return err
}
