// Package canary proves that a file was never opened: it plants one, watches
// it in the kernel, and at the end opens it itself to show that the watch
// works. It refuses to pass without that proof.
package canary

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Canary is a readable file with a content that occurs nowhere else. A program
// that was tricked into opening it is seen; one that leaks it can be found by
// looking for Content in its output.
type Canary struct {
	Path    string
	Content []byte
	watch   watch
}

// watch returns the accesses to one file since the last call; every access
// that has returned to its caller is there.
type watch interface {
	accesses() ([]string, error)
}

// New plants a canary in a directory of its own and watches it until t ends:
// by fanotify, which names the process, or without privilege by inotify.
func New(t testing.TB) *Canary {
	t.Helper()
	dir := t.TempDir()
	c := &Canary{
		Path:    filepath.Join(dir, "canary"),
		Content: []byte("canary " + rand.Text() + "\n"),
	}
	if err := os.WriteFile(c.Path, c.Content, 0o644); err != nil {
		t.Fatalf("canary: %v", err)
	}
	fd, w, err := newWatch(c.Path)
	if err != nil {
		t.Fatalf("canary: watch %s: %v", c.Path, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	c.watch = w
	return c
}

// AssertNeverOpened fails t if anybody opened or read the canary since New or
// the last call, or if the watch does not see this function opening it.
func (c *Canary) AssertNeverOpened(t testing.TB) {
	t.Helper()
	seen, err := c.watch.accesses()
	if err != nil {
		t.Fatalf("canary: read events: %v", err)
	}
	if len(seen) > 0 {
		t.Errorf("canary %s was opened: %s", c.Path, strings.Join(seen, "; "))
	}
	if got, err := os.ReadFile(c.Path); err != nil || string(got) != string(c.Content) {
		t.Errorf("canary %s: got %q, %v, want its content unchanged", c.Path, got, err)
	}
	seen, err = c.watch.accesses()
	if err != nil || len(seen) == 0 {
		t.Fatalf("canary: the watch did not see its own access (%v): it proves nothing", err)
	}
}

func newWatch(path string) (int, watch, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_NONBLOCK|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_LARGEFILE|unix.O_CLOEXEC)
	if err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN|unix.FAN_ACCESS, unix.AT_FDCWD, path)
		if err == nil {
			return fd, fanotify(fd), nil
		}
		unix.Close(fd)
	}
	if fd, err = unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC); err != nil {
		return -1, nil, err
	}
	if _, err = unix.InotifyAddWatch(fd, path, unix.IN_OPEN|unix.IN_ACCESS); err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, inotify(fd), nil
}

// drain reads all waiting events of a non-blocking descriptor, each read a
// whole number of events, and hands each read to f.
func drain(fd int, f func([]byte)) error {
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Read(fd, buf)
		switch err {
		case nil:
			f(buf[:n])
		case unix.EINTR:
		case unix.EAGAIN:
			return nil
		default:
			return err
		}
	}
}

type fanotify int

func (fd fanotify) accesses() (seen []string, err error) {
	err = drain(int(fd), func(b []byte) {
		for len(b) >= int(unsafe.Sizeof(unix.FanotifyEventMetadata{})) {
			e := (*unix.FanotifyEventMetadata)(unsafe.Pointer(&b[0]))
			if e.Fd >= 0 {
				unix.Close(int(e.Fd))
			}
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", e.Pid))
			seen = append(seen, fmt.Sprintf("by process %d %q, mask %#x", e.Pid, cmdline, e.Mask))
			b = b[e.Event_len:]
		}
	})
	return seen, err
}

type inotify int

func (fd inotify) accesses() (seen []string, err error) {
	err = drain(int(fd), func(b []byte) {
		for len(b) >= unix.SizeofInotifyEvent {
			e := (*unix.InotifyEvent)(unsafe.Pointer(&b[0]))
			seen = append(seen, fmt.Sprintf("by a process inotify does not name, mask %#x", e.Mask))
			b = b[unix.SizeofInotifyEvent+int(e.Len):]
		}
	})
	return seen, err
}
