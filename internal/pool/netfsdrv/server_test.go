package netfsdrv_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
)

// server is the kernel's NFS server, in the guest of test/lvm: it serves what lies
// below dir to the same machine, from the first test until the guest's end.
type server struct {
	dir   string
	n     int    // directories that were made to be exported
	table string // of exports
}

const (
	exported = "rw,sync,wdelay,hide,nocrossmnt,secure,%s,no_all_squash,no_subtree_check,secure_locks,acl,no_pnfs,%sanonuid=65534,anongid=65534,sec=sys,rw,secure,%[2]s,no_all_squash"
	nfsd     = "/proc/fs/nfsd"
	table    = "/var/lib/nfs/etab" // what exportfs writes
)

var started = sync.OnceValues(start)

// serve returns the server that runs.
func serve(t *testing.T) *server {
	t.Helper()
	if os.Getenv("TARN_TEST_LVM") == "" {
		t.Skip("the NFS server runs in a guest: CGO_ENABLED=0 go test -exec test/lvm/run, or scripts/test lvm")
	}
	s, err := started()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func start() (*server, error) {
	s := &server{dir: "/srv"}
	modules, err := os.ReadFile("/etc/modules.nfs")
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Fields(string(modules)) {
		f, err := os.Open("/lib/modules/" + name)
		if err != nil {
			return nil, err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return nil, fmt.Errorf("module %s: %w", name, err)
		}
	}
	for _, words := range [][]string{
		{"ip", "link", "set", "lo", "up"},
		{"mkfs.xfs", "-q", "-f", os.Getenv("TARN_TEST_LVM")},
		{"mkdir", "-p", s.dir, nfsd, filepath.Dir(table) + "/v4recovery"},
		{"mount", "-t", "xfs", os.Getenv("TARN_TEST_LVM"), s.dir},
		{"mount", "-t", "nfsd", "nfsd", nfsd},
	} {
		if out, err := exec.Command(words[0], words[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", words, err, out)
		}
	}
	if err := errors.Join(s.serve("", "no_root_squash", "fsid=0,"), s.write(filepath.Dir(table)+"/rmtab", "")); err != nil {
		return nil, err
	}
	// It answers the kernel's questions of who may what, in the background.
	if out, err := exec.Command("rpc.mountd", "-N", "3", "-u").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("rpc.mountd: %w: %s", err, out)
	}
	err = errors.Join(
		s.write("/proc/sys/fs/leases-enable", "0\n"), // no delegations: tests look at files behind the clients' backs
		s.write("/etc/services", "nfs 2049/tcp\n"),
		s.write("/etc/protocols", "tcp 6 TCP\n"),
		s.write("/etc/netconfig", "tcp tpi_cots_ord v inet tcp - -\n"),
		s.write(nfsd+"/nfsv4leasetime", "10\n"), // the least: clients are held to be alive for as long
		s.write(nfsd+"/nfsv4gracetime", "10\n"),
	)
	if out, rerr := exec.Command("rpc.nfsd", "-N", "3", "4").CombinedOutput(); rerr != nil {
		err = errors.Join(err, fmt.Errorf("rpc.nfsd: %w: %s", rerr, out))
	}
	for begun := time.Now(); err == nil; runtime.Gosched() {
		conn, derr := net.Dial("tcp", "127.0.0.1:2049")
		if derr == nil {
			return s, conn.Close()
		}
		if time.Since(begun) > time.Minute {
			err = derr
		}
	}
	return nil, err
}

func (s *server) write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// serve exports path below dir. The daemon reads a table that is another file.
func (s *server) serve(path, squash, more string) error {
	s.table += fmt.Sprintf("%s\t127.0.0.1("+exported+")\n", filepath.Join(s.dir, path), squash, more)
	return errors.Join(s.write(table+".new", s.table), os.Rename(table+".new", table))
}

// export makes a new directory to be a pool.
func (s *server) export(t *testing.T) driver.Config {
	t.Helper()
	s.n++
	name := fmt.Sprintf("/e%d", s.n)
	if err := os.Mkdir(filepath.Join(s.dir, name), 0o755); err != nil {
		t.Fatal(err)
	}
	c := driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(t.TempDir(), "pool"),
		Source: disk.PoolSource{Host: "127.0.0.1", Export: name}, Owner: disk.Owner{UID: 65534, GID: 65534}}
	t.Cleanup(func() {
		_ = unix.Unmount(c.Path, unix.MNT_DETACH)
		_ = os.RemoveAll(filepath.Join(s.dir, name))
	})
	return c
}

// cover puts a file system of 64 MiB where c's export is, and exports that.
func (s *server) cover(t *testing.T, c driver.Config, squash string) {
	t.Helper()
	dir := filepath.Join(s.dir, c.Source.Export)
	image := dir + ".img"
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 64<<20)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", image)
	run(t, "mount", "-o", "loop", image, dir)
	run(t, "rmdir", filepath.Join(dir, "lost+found"))
	if err := s.serve(c.Source.Export, squash, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(c.Path, unix.MNT_DETACH)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.Remove(image)
	})
}
