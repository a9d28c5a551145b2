// Package silence gives tests a real file system that can stop answering: a FUSE
// one whose server is stopped and goes on. It needs root and bindfs and refuses to
// leave anybody hanging: whatever happens, the server ends with the test.
package silence

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// FS is a mounted file system, unmounted when its test ends.
type FS struct {
	Dir string // where it is mounted

	t      testing.TB
	server *os.Process
}

// New mounts an empty file system.
func New(t testing.TB) *FS {
	t.Helper()
	fsloop.NeedRoot(t)
	below, dir := t.TempDir(), t.TempDir()
	if err := errors.Join(os.Chmod(below, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	server := start(t, below, dir)
	for begun := time.Now(); ; runtime.Gosched() {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC {
			return &FS{dir, t, server}
		}
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("silence: nothing is mounted at %s", dir)
		}
	}
}

// start starts the server on a thread that lives as long as the test: with it the
// server would be killed, as it is with the process.
func start(t testing.TB, below, dir string) *os.Process {
	cmd := exec.Command("bindfs", "-f", "-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0", below, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, over, ended := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		<-over
		_ = cmd.Process.Kill() // the kernel answers whoever hangs, with an error
		_ = cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatalf("silence: %v: apt-get install bindfs", err)
	}
	t.Cleanup(func() {
		close(over)
		<-ended
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	})
	return cmd.Process
}

// Stop makes the file system silent: who uses it hangs.
func (f *FS) Stop() { f.signal(syscall.SIGSTOP) }

// Continue lets it go on.
func (f *FS) Continue() { f.signal(syscall.SIGCONT) }

func (f *FS) signal(s syscall.Signal) {
	f.t.Helper()
	if err := f.server.Signal(s); err != nil {
		f.t.Fatalf("silence: %v", err)
	}
}
