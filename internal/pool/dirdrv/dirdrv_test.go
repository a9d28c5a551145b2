package dirdrv_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/oracle"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// effects are what each call has for an unprivileged user on any file system.
var effects = map[string]int{
	"Prepare": 11, "Remove": 8, "Create": 3, "Create preallocated": 4, "Publish": 7, "Publish immutable": 8,
	"Disown": 2, "Adopt": 7, "Adopt immutable": 7, "Resize": 2, "Delete": 3, "Delete staged": 2, "PutSidecar": 5, "PutSidecar of the marker": 5,
}

// harness tests directories that root makes.
func harness(root func(t *testing.T) string) drivertest.Harness {
	h := drivertest.Directory(dirdrv.Type, root)
	h.Effects = effects
	if _, err := exec.LookPath("qemu-io"); err == nil || os.Getenv("CI") != "" {
		h.Hold = func(t *testing.T, c driver.Config, r driver.Ref) func() {
			return hold(t, "length\n", "MiB", "qemu-io", "-f", "raw", filepath.Join(c.Path, r.Name))
		}
	}
	return h
}

func TestContract(t *testing.T) {
	drivertest.Run(t, harness(func(t *testing.T) string { return t.TempDir() }))
}

// TestContractUnprivileged runs TestContract as nobody.
func TestContractUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestContract itself is unprivileged")
	}
	oracle.AsNobody(t, "TestContract")
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
			if kind != "ext4" {
				h.Effects = maps.Clone(effects)
				maps.Copy(h.Effects, map[string]int{"Clone": 4, "Snapshot": 6, "Snapshot, the second": 6, "DeleteSnapshot": 2})
			}
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
