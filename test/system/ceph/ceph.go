// Package ceph gives tests a real Ceph cluster of one node: a monitor, a
// manager and one OSD in memory, on loopback, in a directory of their own. It is
// started once for a test binary, or by test/ceph for several, and ends with who
// started it, however that ends. It refuses to use a cluster that it did not make.
package ceph

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Size is how many bytes the OSD says it has; they are memory once written.
const Size = 4 << 30

// patience bounds the wait for the cluster to be up, on a busy machine.
const patience = 2 * time.Minute

// Cluster is a running cluster.
type Cluster struct {
	Conf string // path of its configuration, which names the administrator's keyring
	FSID string
	Pool string // the Ceph pool of this process

	spaces atomic.Int64
}

// asked is "1" where tests shall have a cluster, or the path of the configuration
// that Up wrote of one that test binaries share.
func asked() string { return os.Getenv("TARN_TEST_CEPH") }

var shared = sync.OnceValues(func() (*Cluster, error) {
	if asked() == "1" {
		return own()
	}
	c := &Cluster{Conf: asked()}
	return c, c.begin()
})

func own() (*Cluster, error) {
	c, err := Up()
	if err != nil {
		return nil, err
	}
	return c, c.begin()
}

// Start returns the cluster of this test binary, or of several. It takes its time
// and half a gigabyte: where TARN_TEST_CEPH does not ask for it the test is
// skipped, and fails where it cannot be had then.
func Start(t testing.TB) *Cluster {
	t.Helper()
	return need(t, shared)
}

// Own is Start of a cluster that nobody shares, for tests that stop it.
func Own(t testing.TB) *Cluster {
	t.Helper()
	return need(t, own)
}

func need(t testing.TB, start func() (*Cluster, error)) *Cluster {
	t.Helper()
	if asked() == "" {
		t.Skip("ceph: run \"scripts/test ceph\", or set TARN_TEST_CEPH=1")
	}
	c, err := start()
	if err != nil {
		t.Fatalf("ceph: %v (scripts/install-deps test installs what it needs)", err)
	}
	return c
}

// Namespace makes an empty RBD namespace and returns its name with the pool's,
// "POOL/NAMESPACE". Namespaces share the pool's space and nothing else.
func (c *Cluster) Namespace(t testing.TB) string {
	t.Helper()
	at := fmt.Sprintf("%s/test%d", c.Pool, c.spaces.Add(1))
	c.Run(t, "rbd", "namespace", "create", at)
	return at
}

// Key makes a user of RBD with a key of its own and returns the path of the file
// that holds it.
func (c *Cluster) Key(t testing.TB, user string) string {
	t.Helper()
	key := c.Run(t, "ceph", "auth", "get-or-create-key", "client."+user, "mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")
	return WriteKey(t, key)
}

// WriteKey writes a key to a file as it has to be, readable to its owner alone.
func WriteKey(t testing.TB, key string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(strings.TrimSpace(key)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Run runs one of Ceph's tools on the cluster and returns what it printed.
func (c *Cluster) Run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := c.Try(argv...)
	if err != nil {
		t.Fatalf("ceph: %v", err)
	}
	return out
}

// Try is Run that returns the failure.
func (c *Cluster) Try(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CEPH_CONF="+c.Conf)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, said.String())
	}
	return string(out), nil
}

// Freeze stops the OSD, so that nothing in the cluster answers but the monitor,
// until thaw is called or the test ends. The cluster is the test's Own.
func (c *Cluster) Freeze(t testing.TB) (thaw func()) {
	t.Helper()
	return c.stop(t, "ceph-osd")
}

// FreezeAll is Freeze of all that the cluster consists of.
func (c *Cluster) FreezeAll(t testing.TB) (thaw func()) {
	t.Helper()
	return c.stop(t, "ceph-osd", "ceph-mgr", "ceph-mon")
}

func (c *Cluster) stop(t testing.TB, daemons ...string) (thaw func()) {
	t.Helper()
	var stopped []int
	thaw = func() {
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	t.Cleanup(thaw)
	for _, d := range daemons {
		said, err := os.ReadFile(c.path(d + ".pid"))
		pid := 0
		if err == nil {
			pid, err = strconv.Atoi(string(said))
		}
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGSTOP)
		}
		if err != nil {
			t.Fatal(err)
		}
		stopped = append(stopped, pid)
	}
	return thaw
}

// Up makes a cluster without a pool; what it started ends with this process.
func Up() (*Cluster, error) {
	for _, tool := range []string{"ceph", "rbd", "ceph-mon", "ceph-mgr", "ceph-osd", "ceph-authtool", "monmaptool"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "ceph") // short: sockets lie in it
	if err != nil {
		return nil, err
	}
	if err := removeAfter(dir); err != nil {
		return nil, err
	}
	c := &Cluster{Conf: filepath.Join(dir, "ceph.conf"), FSID: uuid.NewString()}
	err = c.configure()
	if err == nil {
		err = c.monitor()
	}
	if err == nil {
		err = c.store()
	}
	return c, err
}

// begin finds out which cluster it is and makes this process's pool in it.
func (c *Cluster) begin() error {
	out, err := c.Try("ceph", "fsid")
	c.FSID = strings.TrimSpace(out)
	c.Pool = fmt.Sprintf("tarn%d", os.Getpid())
	if err == nil {
		err = c.pool(c.Pool)
	}
	return err
}

// removeAfter has a process of its own remove dir when this one has ended.
func removeAfter(dir string) error {
	var ends [2]int // the second stays open until this process ends
	if err := syscall.Pipe2(ends[:], syscall.O_CLOEXEC); err != nil {
		return err
	}
	end := os.NewFile(uintptr(ends[0]), "end")
	defer end.Close()
	cmd := exec.Command("/bin/sh", "-c", `read -r x; for n in 1 2 3 4 5; do rm -rf -- "$0" && exit; done`, dir)
	cmd.Stdin, cmd.SysProcAttr = end, &syscall.SysProcAttr{Setsid: true}
	return cmd.Start()
}

// path is that of a file of the cluster's.
func (c *Cluster) path(name string) string { return filepath.Join(filepath.Dir(c.Conf), name) }

// configure writes the configuration, the keys and the monitor's map.
func (c *Cluster) configure() error {
	l, err := net.Listen("tcp", "127.0.0.1:0") // a free port, for a moment
	if err != nil {
		return err
	}
	address := "[v1:" + l.Addr().String() + "/0]"
	l.Close()
	err = os.WriteFile(c.Conf, []byte(strings.NewReplacer("DIR", filepath.Dir(c.Conf), "FSID", c.FSID, "ADDRESS", address, "SIZE", fmt.Sprint(Size)).Replace(configuration)), 0o600)
	for _, d := range []string{"mon", "mgr", "osd"} {
		err = errors.Join(err, os.Mkdir(c.path(d), 0o700))
	}
	keys := [][]string{
		{"-C", "-n", "mon.", "--cap", "mon", "allow *"},
		{"-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"},
		{"-n", "mgr.x", "--cap", "mon", "allow profile mgr", "--cap", "osd", "allow *"},
		{"-n", "osd.0", "--cap", "mon", "allow profile osd", "--cap", "mgr", "allow profile osd", "--cap", "osd", "allow *"},
	}
	for _, k := range keys {
		if err == nil {
			_, err = c.Try(append([]string{"ceph-authtool", c.path("keyring"), "--gen-key"}, k...)...)
		}
	}
	if err == nil {
		_, err = c.Try("monmaptool", "--create", "--clobber", "--fsid", c.FSID, "--addv", "a", address, c.path("monmap"))
	}
	return err
}

func (c *Cluster) monitor() error {
	if _, err := c.Try("ceph-mon", "-i", "a", "--mkfs", "--monmap", c.path("monmap"), "--keyring", c.path("keyring")); err != nil {
		return err
	}
	return errors.Join(c.daemon("ceph-mon", "-f", "-i", "a"), c.daemon("ceph-mgr", "-f", "-i", "x"))
}

// store makes and starts the OSD.
func (c *Cluster) store() error {
	id := uuid.NewString()
	if _, err := c.Try("ceph", "osd", "new", id); err != nil {
		return err
	}
	if _, err := c.Try("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", id, "--no-mon-config"); err != nil {
		return err
	}
	return c.daemon("ceph-osd", "-f", "-i", "0")
}

// pool makes a pool and waits until it can be used and measured.
func (c *Cluster) pool(name string) error {
	if _, err := c.Try("ceph", "osd", "pool", "create", name, "8"); err != nil {
		return err
	}
	if _, err := c.Try("rbd", "pool", "init", name); err != nil {
		return err
	}
	for deadline := time.Now().Add(patience); ; {
		out, err := c.Try("ceph", "--format", "json", "df")
		if err == nil && strings.Contains(out, `"name":"`+name+`"`) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the cluster does not come up: %s %w", out, err)
		}
	}
}

// daemon starts a program that dies with this process, and writes down which
// process it is.
func (c *Cluster) daemon(argv ...string) error {
	log, err := os.Create(c.path(argv[0] + ".out"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "CEPH_CONF="+c.Conf)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // whose end Pdeathsig waits for
		started <- cmd.Start()
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		return err
	}
	return os.WriteFile(c.path(argv[0]+".pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
}
