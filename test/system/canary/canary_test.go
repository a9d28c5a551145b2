package canary

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestUntouchedCanaryPasses(t *testing.T) {
	c := New(t)
	if _, err := os.Stat(c.Path); err != nil { // a stat opens nothing
		t.Fatal(err)
	}
	c.AssertNeverOpened(t)
	c.AssertNeverOpened(t) // its own access must not count against it
}

// recorder is a test whose failures are what is tested.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, format)
}

func TestEveryWayOfOpeningIsSeen(t *testing.T) {
	tests := []struct {
		name string
		open func(c *Canary) error
	}{
		{"this process", func(c *Canary) error {
			_, err := os.ReadFile(c.Path)
			return err
		}},
		{"opened, not read", func(c *Canary) error {
			f, err := os.Open(c.Path)
			if err != nil {
				return err
			}
			return f.Close()
		}},
		{"another process", func(c *Canary) error {
			return exec.Command("cat", c.Path).Run()
		}},
		{"a second name", func(c *Canary) error {
			link := filepath.Join(filepath.Dir(c.Path), "link")
			if err := os.Link(c.Path, link); err != nil {
				return err
			}
			_, err := os.ReadFile(link)
			return err
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := New(t)
			if err := tt.open(c); err != nil {
				t.Fatal(err)
			}
			r := &recorder{TB: t}
			c.AssertNeverOpened(r)
			if len(r.failures) != 1 || !strings.Contains(r.failures[0], "was opened") {
				t.Errorf("failures: got %q, want exactly that it was opened", r.failures)
			}
		})
	}
}

// TestInotifySees runs the fall-back also where fanotify is allowed.
func TestInotifySees(t *testing.T) {
	c := New(t)
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, c.Path, unix.IN_OPEN|unix.IN_ACCESS); err != nil {
		t.Fatal(err)
	}
	c.watch = inotify(fd)
	c.AssertNeverOpened(t)
	if _, err := os.ReadFile(c.Path); err != nil {
		t.Fatal(err)
	}
	if seen, err := c.watch.accesses(); err != nil || len(seen) == 0 {
		t.Errorf("accesses after a read: got %q, %v, want at least one", seen, err)
	}
}
