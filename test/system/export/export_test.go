// Package export_test writes a disk and an image in every format with the
// shipped binaries and has QEMU compare them with what they hold.
package export_test

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

const mib = 1 << 20

// formats are the flags of every kind of export, and QEMU's name of the result.
var formats = []struct {
	flags string
	qemu  string
	check bool // qemu-img checks the format
	file  bool // it cannot be streamed
}{
	{flags: "raw", qemu: "raw"},
	{flags: "qcow2", qemu: "qcow2", check: true},
	{flags: "qcow2 --compression zlib", qemu: "qcow2", check: true, file: true},
	{flags: "qcow2 --compression zstd", qemu: "qcow2", check: true, file: true},
	{flags: "vmdk", qemu: "vmdk", check: true},
	{flags: "vhd", qemu: "vpc"},
	{flags: "vhd --type fixed", qemu: "vpc"},
	{flags: "vhdx", qemu: "vhdx", check: true},
	{flags: "vdi", qemu: "vdi", check: true},
}

// world has the image img, and the instance web1, whose root disk is an overlay
// with a guest's writes and whose data disk is noise.
type world struct {
	t        *testing.T
	d        *tarntest.Daemon
	dir      string
	img, web string // raw files with what image and root disk hold
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, d: tarntest.Start(t, t.TempDir()), dir: t.TempDir()}
	w.d.Must("pool", "create", "main", "--driver", "dir", "--path", filepath.Join(w.dir, "pool"))
	data := make([]byte, 40*mib+4096)
	for _, at := range []int{0, 3 * mib, 17*mib + 512, 40 * mib} {
		copy(data[at:], tarntest.Pattern(uint64(at), min(mib, len(data)-at)))
	}
	w.img = tarntest.WriteFile(t, "img", data)
	w.d.Must("image", "import", "img", w.img, "--format", "raw")
	w.d.Must("instance", "create", "web1", "--root", "img:64M,disk-format=qcow2", "--data", "96M")
	root := tarntest.Get[api.Disk](w.d, "disk", "show", "web1/root").Path
	w.tool("qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 4k", "-c", "write -q -P 9 30M 3M", "-c", "write -q -z 3M 256k", "-c", "write -q -P 5 63M 1M", root)
	w.web = filepath.Join(w.dir, "web1.raw")
	w.tool("qemu-img", "convert", "-f", "qcow2", "-O", "raw", root, w.web)
	noise := tarntest.Pattern(3, 96*mib)
	if err := os.WriteFile(tarntest.Get[api.Disk](w.d, "disk", "show", "web1/data0").Path, noise, 0); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) tool(name string, args ...string) {
	w.t.Helper()
	if out, err := exec.Command(tarntest.NeedTool(w.t, name), args...).CombinedOutput(); err != nil {
		w.t.Errorf("%s %q: %v\n%s", name, args, err, out)
	}
}

// absent demands that an export left nothing.
func (w *world) absent(path string) {
	w.t.Helper()
	for _, p := range []string{path, path + ".partial"} {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			w.t.Errorf("%s is there: %v", p, err)
		}
	}
}

func TestEveryFormat(t *testing.T) {
	w := newWorld(t)
	for _, f := range formats {
		for _, x := range []struct{ noun, ref, want string }{{"disk", "web1/root", w.web}, {"image", "img", w.img}} {
			out := filepath.Join(w.dir, "out")
			args := append([]string{x.noun, "export", x.ref, out, "--format"}, strings.Fields(f.flags)...)
			w.d.Must(args...)
			w.tool("qemu-img", "compare", "-q", "-f", f.qemu, "-F", "raw", out, x.want)
			if f.check {
				w.tool("qemu-img", "check", "-q", "-f", f.qemu, out)
			}
			args[3] = "-"
			if f.file {
				if r := w.d.Want(2, args...); !strings.Contains(r.Stderr, "hint: write to a file") {
					t.Errorf("no hint in %v", r)
				}
			} else {
				stream := tarntest.WriteFile(t, "stream", []byte(w.d.Must(args...).Stdout))
				w.tool("qemu-img", "compare", "-q", "-f", f.qemu, "-F", "raw", stream, x.want)
			}
			if err := os.Remove(out); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.d.AssertHealthy()
}

// TestHoles demands that what is empty takes no space in a file.
func TestHoles(t *testing.T) {
	w := newWorld(t)
	w.d.Must("disk", "create", "web1", "--data", "2G")
	for _, f := range formats {
		out := filepath.Join(w.dir, "empty")
		w.d.Must(append([]string{"disk", "export", "web1/data1", out, "--format"}, strings.Fields(f.flags)...)...)
		var st unix.Stat_t
		if err := unix.Stat(out, &st); err != nil || st.Blocks*512 > mib {
			t.Errorf("%s: %d bytes are allocated of an empty disk, %v", f.flags, st.Blocks*512, err)
		}
		if err := os.Remove(out); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWithoutRoom exports noise to a file system that is smaller.
func TestWithoutRoom(t *testing.T) {
	w := newWorld(t)
	fs := fsloop.Ext4(t, 64*mib)
	out := filepath.Join(fs.Dir, "out")
	for _, f := range formats {
		r := w.d.Want(6, append([]string{"disk", "export", "web1/data0", out, "--format"}, strings.Fields(f.flags)...)...)
		if !strings.Contains(r.Stderr, "space") {
			t.Errorf("no word of space in %v", r)
		}
		w.absent(out)
	}
	if err := unix.Mount("", fs.Dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	for _, noun := range []string{"disk export web1/root", "image export img"} {
		if r := w.d.Want(2, append(strings.Fields(noun), out, "--format", "raw")...); !strings.Contains(r.Stderr, "read-only") {
			t.Errorf("no word of read-only in %v", r)
		}
		w.absent(out)
	}
	w.d.AssertHealthy()
}

// TestInterrupted stops exports half-way.
func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	before := sum(t, tarntest.Get[api.Disk](w.d, "disk", "show", "web1/data0").Path)
	for _, f := range []string{"qcow2 --compression zlib", "vmdk"} {
		out := filepath.Join(w.dir, "stopped")
		cmd := exec.Command(filepath.Join(tarntest.Binaries(t), "tarn"), append([]string{"--socket", w.d.Socket, "disk", "export", "web1/data0", out, "--format"}, strings.Fields(f)...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_ = cmd.Wait()
		}()
		for half := false; !half; {
			select {
			case <-ended:
				t.Fatalf("%s: the export ended before it was seen half-way: %v\n%s", f, cmd.ProcessState, stderr.String())
			default:
			}
			fi, err := os.Stat(out + ".partial")
			half = err == nil && fi.Size() > mib
		}
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		<-ended
		if got := cmd.ProcessState.ExitCode(); got != 9 {
			t.Errorf("%s: exit status %d, want 9", f, got)
		}
		w.absent(out)
	}
	if after := sum(t, tarntest.Get[api.Disk](w.d, "disk", "show", "web1/data0").Path); after != before {
		t.Error("the disk has changed")
	}
	w.d.Must("disk", "export", "web1/data0", filepath.Join(w.dir, "again"), "--format", "vdi")
	w.d.AssertHealthy()
}

func sum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}
