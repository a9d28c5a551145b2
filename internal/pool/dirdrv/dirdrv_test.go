package dirdrv_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// effects are what each call has for an unprivileged user on any file system.
var effects = map[string]int{
	"Prepare": 11, "Remove": 8, "Create": 3, "Create preallocated": 4, "Publish": 7, "Publish immutable": 8,
	"Resize": 2, "Delete": 3, "Delete staged": 2, "PutSidecar": 5, "PutSidecar of the marker": 5,
}

// harness tests directories that root makes.
func harness(root func(t *testing.T) string) drivertest.Harness {
	return drivertest.Harness{
		Type: dirdrv.Type,
		Place: func(t *testing.T) driver.Config {
			return driver.Config{ID: disk.PoolID(drivertest.NewID()), Path: filepath.Join(root(t), "pool"), Owner: owner()}
		},
		Foreign: func(t *testing.T, c driver.Config, name string) {
			if err := os.WriteFile(filepath.Join(c.Path, name), []byte("not tarn's"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		Settle: func(t *testing.T, c driver.Config) { // btrfs counts when it commits
			d, err := os.Open(c.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := unix.Syncfs(int(d.Fd())); err != nil {
				t.Fatal(err)
			}
		},
		Vanish: func(t *testing.T, c driver.Config) func() {
			kept := filepath.Join(t.TempDir(), "kept")
			if err := errors.Join(os.CopyFS(kept, os.DirFS(c.Path)), os.RemoveAll(c.Path), os.Mkdir(c.Path, 0o711)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.CopyFS(c.Path, os.DirFS(kept)); err != nil {
					t.Fatal(err)
				}
			}
		},
		Residue: residue,
		Effects: effects,
	}
}

// owner is nobody where root can give files away, else whoever runs the test.
func owner() disk.Owner {
	if os.Geteuid() == 0 {
		return disk.Owner{UID: 65534, GID: 65534}
	}
	return disk.Owner{UID: -1, GID: -1}
}

// residue lists the files in and beside a pool with mode and size.
func residue(t *testing.T, c driver.Config) []string {
	var all []string
	err := filepath.WalkDir(filepath.Dir(c.Path), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if e.IsDir() {
			size = 0
		}
		all = append(all, fmt.Sprintf("%s %v %d", strings.TrimPrefix(path, filepath.Dir(c.Path)), info.Mode(), size))
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}

func TestContract(t *testing.T) {
	drivertest.Run(t, harness(func(t *testing.T) string { return t.TempDir() }))
}

// TestContractUnprivileged runs TestContract as nobody.
func TestContractUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestContract itself is unprivileged")
	}
	dir, err := os.MkdirTemp("", "tarn-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "test"), binary, 0o755)
	}
	if err == nil {
		err = os.Chown(dir, 65534, 65534)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "test"), "-test.run=^TestContract$", "-test.v")
	cmd.Dir, cmd.Env = dir, []string{"TMPDIR=" + dir, "HOME=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestContract ")) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// TestContractOn runs the suite on each file system that people keep disks on.
func TestContractOn(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4", "btrfs"} {
		t.Run(kind, func(t *testing.T) {
			f := fsloop.New(t, kind, 2<<30)
			n := 0
			h := harness(func(t *testing.T) string {
				n++
				dir := filepath.Join(f.Dir, fmt.Sprint(n))
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				return dir
			})
			if kind != "btrfs" { // which has no call that cuts its power
				h.Power = func(t *testing.T) (driver.Config, func()) {
					fs := fsloop.New(t, kind, 512<<20)
					on := harness(func(*testing.T) string { return fs.Dir })
					return on.Place(t), func() { fs.Shutdown(); fs.Remount() }
				}
			}
			h.Small = func(t *testing.T) driver.Config {
				small := harness(func(t *testing.T) string { return fsloop.New(t, kind, 64<<20).Dir })
				return small.Place(t)
			}
			drivertest.Run(t, h)
		})
	}
}
