// Package device keeps pools on block devices with the shipped binaries, as an
// administrator does. It refuses to look at a device but through what is mounted.
package device

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// options returns those of what is mounted at path, "" if nothing is.
func options(t *testing.T, path string) (found string) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[4] == path {
			found = f[5]
		}
	}
	return found
}

// unmounted unmounts path when t ends, if something is mounted there still.
func unmounted(t *testing.T, path string) string {
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Errorf("unmount %s: %v", path, err)
		}
	})
	return path
}

func state(t *testing.T, d *tarntest.Daemon) string {
	t.Helper()
	return tarntest.Get[api.Pool](d, "pool", "show", "main").State
}

func TestDevicePool(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) { testDevicePool(t, kind) })
	}
}

func testDevicePool(t *testing.T, kind string) {
	device := fsloop.Device(t, "", 640<<20)
	at := unmounted(t, filepath.Join(t.TempDir(), "pool"))
	d := tarntest.Start(t, t.TempDir())
	where := []string{"--driver", "fs", "--source-device", device, "--file-system", kind, "--path", at}
	create := append([]string{"pool", "create", "main"}, where...)
	if r := d.Want(8, create...); !strings.Contains(r.Stderr, "--build") {
		t.Errorf("a device without a file system: %s", r.Stderr)
	}
	d.Must(append(create, "--build", "--dry-run")...)
	d.Must(append(create, "--build")...)
	for _, want := range []string{"nosuid", "nodev", "noexec"} {
		if got := options(t, at); !strings.Contains(got, want) {
			t.Errorf("it is mounted with %q, want %s", got, want)
		}
	}
	content := tarntest.Pattern(1, 3<<20)
	d.Must("image", "import", "img", tarntest.WriteFile(t, "img.raw", content), "--format", "raw")
	d.Must("instance", "create", "web1", "--root", "img:8M", "--data", "1M")
	root := tarntest.Get[api.Disk](d, "disk", "show", "web1/root")

	guest, err := os.OpenFile(root.Path, os.O_RDWR, 0) // its QEMU
	if err != nil {
		t.Fatal(err)
	}
	if r := d.Want(7, "pool", "stop", "main"); !strings.Contains(r.Stderr, "in use") || state(t, d) != "active" {
		t.Errorf("stopping a pool in use: %s; it is %s", r.Stderr, state(t, d))
	}
	d.Restart() // which guests do not notice
	if _, err := guest.ReadAt(make([]byte, 4096), 0); err != nil || state(t, d) != "active" {
		t.Errorf("after a restart the guest reads: %v; the pool is %s", err, state(t, d))
	}
	d.Must("disk", "create", "web1", "--data", "1M")
	guest.Close()

	d.Must("pool", "stop", "main")
	if got := options(t, at); got != "" || state(t, d) != "inactive" {
		t.Errorf("a stopped pool is %s and mounted with %q", state(t, d), got)
	}
	d.Want(8, "instance", "create", "web2", "--pool", "main", "--data", "1M")
	d.Want(4, "pool", "build", "main", "--overwrite", "--yes") // disks are on record
	d.Must("pool", "start", "main")
	d.Must("pool", "refresh", "main")
	exports(t, d, content)

	d.Stop()
	if err := unix.Unmount(at, 0); err != nil { // as a reboot
		t.Fatal(err)
	}
	d.Start()
	exports(t, d, content)
	d.LoseDatabase()
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	d.Must(append([]string{"pool", "import"}, where...)...)
	exports(t, d, content)
	d.AssertHealthy()

	d.Must("instance", "delete", "web1", "--yes")
	d.Must("image", "delete", "img", "--yes")
	d.Must("pool", "delete", "main", "--yes")
	if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) || options(t, at) != "" {
		t.Errorf("a deleted pool left %s: %v", at, err)
	}
	if r := d.Want(4, append(create, "--build")...); !strings.Contains(r.Stderr, kind) || !strings.Contains(r.Stderr, "--overwrite") {
		t.Errorf("a device with a file system: %s", r.Stderr)
	}
	d.Want(2, append(create, "--build", "--overwrite")...) // nobody can be asked
	d.Must(append(create, "--define")...)
	d.Want(4, "pool", "build", "main")
	d.Must("pool", "build", "main", "--overwrite", "--yes")
	d.Must("pool", "start", "main")
	d.Must("pool", "delete", "main", "--yes")
	d.AssertSettled()
}

// exports compares the root disk with what was imported.
func exports(t *testing.T, d *tarntest.Daemon, content []byte) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "out.raw")
	d.Must("disk", "export", "web1/root", out, "--format", "raw")
	got, err := os.ReadFile(out)
	if err != nil || len(got) != 8<<20 || !bytes.Equal(got[:len(content)], content) {
		t.Errorf("the root disk has %d bytes that are not the image's, %v", len(got), err)
	}
}
