// Package fsloop gives tests real file systems of a known kind and size on
// loop devices, and cuts their power. It needs root and refuses to guess: a
// test that cannot have its file system is skipped with the reason, or fails
// where TARN_TEST_ROOT=1 says that it must run.
package fsloop

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// FS is a mounted file system, unmounted and removed when its test ends.
type FS struct {
	Dir    string // where it is mounted
	Kind   string // xfs, ext4 or btrfs
	Device string // the loop device it lies on

	t    testing.TB
	loop *os.File // keeps an autoclear loop device alive across remounts
}

// XFS mounts a new XFS of size bytes; it can reflink.
func XFS(t testing.TB, size int64) *FS { t.Helper(); return New(t, "xfs", size) }

// Ext4 mounts a new ext4 of size bytes; it cannot reflink.
func Ext4(t testing.TB, size int64) *FS { t.Helper(); return New(t, "ext4", size) }

// Btrfs mounts a new btrfs of size bytes; it can reflink.
func Btrfs(t testing.TB, size int64) *FS { t.Helper(); return New(t, "btrfs", size) }

// New mounts a new, empty file system of the kind xfs, ext4 or btrfs. Sizes
// down to 64 MiB serve to fill one up (btrfs needs 16 MiB of it for itself).
func New(t testing.TB, kind string, size int64) *FS {
	t.Helper()
	NeedRoot(t)
	dir := t.TempDir()
	image := filepath.Join(dir, kind+".img")
	if err := makeImage(image, size); err != nil {
		t.Fatalf("fsloop: %v", err)
	}
	mkfs(t, kind, image, size)
	f := &FS{Dir: filepath.Join(dir, "mnt"), Kind: kind, t: t}
	if err := os.Mkdir(f.Dir, 0o755); err != nil {
		t.Fatalf("fsloop: %v", err)
	}
	loop, err := attach(t, image)
	if err != nil {
		t.Fatalf("fsloop: loop device for %s: %v", image, err)
	}
	f.loop, f.Device = loop, loop.Name()
	t.Cleanup(f.close)
	f.mount()
	return f
}

// Device returns a loop device of size bytes that holds a new file system of
// kind, or nothing where kind is empty. It is mounted nowhere; who mounts it
// unmounts it before t ends.
func Device(t testing.TB, kind string, size int64) string {
	t.Helper()
	NeedRoot(t)
	image := filepath.Join(t.TempDir(), "device.img")
	if err := makeImage(image, size); err != nil {
		t.Fatalf("fsloop: %v", err)
	}
	if kind != "" {
		mkfs(t, kind, image, size)
	}
	loop, err := attach(t, image)
	if err != nil {
		t.Fatalf("fsloop: loop device for %s: %v", image, err)
	}
	t.Cleanup(func() { loop.Close() })
	return loop.Name()
}

// Cut cuts the power of the XFS or ext4 that is mounted at dir, as Shutdown
// does, and unmounts it.
func Cut(t testing.TB, dir string) {
	t.Helper()
	f := &FS{Dir: dir, t: t}
	f.Shutdown()
	if err := f.unmount(); err != nil {
		t.Fatalf("fsloop: unmount %s: %v: is a file of it still open?", dir, err)
	}
}

// NeedRoot skips t unless it runs as root; with TARN_TEST_ROOT=1 in the
// environment it fails instead.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "loop devices and mounts need root: run \"make test\" as root")
	}
}

// missing skips the test where that is honest.
func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("TARN_TEST_ROOT") == "1" {
		t.Fatalf("fsloop: %s (TARN_TEST_ROOT=1 forbids skipping)", why)
	}
	t.Skipf("fsloop: %s", why)
}

func makeImage(path string, size int64) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

// mkfs makes the file system in the image. Small ones need other options:
// mkfs.xfs refuses less than 300 MB and mkfs.btrfs less than 109 MiB.
func mkfs(t testing.TB, kind, image string, size int64) {
	t.Helper()
	args := map[string][]string{
		"xfs":   {"mkfs.xfs", "-q", "-m", "reflink=1"},
		"ext4":  {"mkfs.ext4", "-q", "-F", "-m0"},
		"btrfs": {"mkfs.btrfs", "-q"},
	}[kind]
	if args == nil {
		t.Fatalf("fsloop: unknown file system %q", kind)
	}
	switch {
	case kind == "xfs" && size < 300<<20:
		args = append(args, "--unsupported")
	case kind == "btrfs" && size < 256<<20:
		args = append(args, "--mixed")
	}
	path, err := lookTool(args[0])
	if err != nil {
		missing(t, args[0]+" is not installed: run scripts/install-deps test")
	}
	if out, err := exec.CommandContext(t.Context(), path, append(args[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("fsloop: %v %s: %v\n%s", args, image, err, out)
	}
}

// lookTool finds mkfs programs also where PATH lacks the sbin directories.
func lookTool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// attach binds the image to a free loop device. Others take loop devices at
// the same time, so that one found free may be busy: then the next is tried.
func attach(t testing.TB, image string) (*os.File, error) {
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(backing.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
	copy(config.Info.File_name[:], image)
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		loop, err := openLoop(t, n)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("LOOP_CONFIGURE %s: %w", loop.Name(), err)
		}
	}
	return nil, errors.New("64 loop devices in a row were taken by others")
}

// openLoop opens loop device n. In a container whose /dev is no devtmpfs the
// node is made here, and removed at the end.
func openLoop(t testing.TB, n int) (*os.File, error) {
	path := "/dev/loop" + strconv.Itoa(n)
	loop, err := os.OpenFile(path, os.O_RDWR, 0)
	if !errors.Is(err, os.ErrNotExist) {
		return loop, err
	}
	err = unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n))))
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("mknod %s: %w", path, err)
	}
	t.Cleanup(func() { os.Remove(path) })
	return os.OpenFile(path, os.O_RDWR, 0)
}

func (f *FS) mount() {
	f.t.Helper()
	if err := unix.Mount(f.Device, f.Dir, f.Kind, 0, ""); err != nil {
		f.t.Fatalf("fsloop: mount %s on %s: %v", f.Device, f.Dir, err)
	}
}

// unmount waits a while for processes that were just killed to let go.
func (f *FS) unmount() error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := unix.Unmount(f.Dir, 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (f *FS) close() {
	err := f.unmount()
	if err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
		f.t.Errorf("fsloop: unmount %s: %v: something still holds it", f.Dir, err)
		_ = unix.Unmount(f.Dir, unix.MNT_DETACH)
	}
	f.loop.Close()
}

// goingDown is XFS_IOC_GOINGDOWN, which ext4 understands too; its argument
// noLogFlush drops everything that is not in the journal on disk.
const (
	goingDown  = 0x8004587d
	noLogFlush = 2
)

// Shutdown cuts the power of an XFS or ext4: what was not synced is lost, and
// every access fails with EIO until Remount. (btrfs has no such call.)
func (f *FS) Shutdown() {
	f.t.Helper()
	dir, err := unix.Open(f.Dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.t.Fatalf("fsloop: open %s: %v", f.Dir, err)
	}
	defer unix.Close(dir)
	if err := unix.IoctlSetPointerInt(dir, goingDown, noLogFlush); err != nil {
		f.t.Fatalf("fsloop: shut %s on %s down: %v", f.Kind, f.Dir, err)
	}
}

// Remount unmounts the file system, which every user must have closed, and
// mounts it again: the journal is replayed, the page cache is empty.
func (f *FS) Remount() {
	f.t.Helper()
	if err := f.unmount(); err != nil {
		f.t.Fatalf("fsloop: unmount %s: %v: is a file of it still open?", f.Dir, err)
	}
	f.mount()
}
