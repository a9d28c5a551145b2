package dirdrv_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

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

// residue lists the files in and beside a pool with mode and size, the ballast
// apart.
func residue(t *testing.T, c driver.Config) []string {
	var all []string
	err := filepath.WalkDir(filepath.Dir(c.Path), func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Name() == "ballast" {
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
			h.Small = func(t *testing.T) driver.Config {
				small := harness(func(t *testing.T) string { return fsloop.New(t, kind, 64<<20).Dir })
				return small.Place(t)
			}
			drivertest.Run(t, h)
		})
	}
}
