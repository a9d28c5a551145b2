package drivertest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Directory is the harness of a technology whose pools are directories: each is
// made in a directory of its own, which root returns.
func Directory(technology driver.Type, root func(t *testing.T) string) Harness {
	return Harness{
		Type: technology,
		Place: func(t *testing.T) driver.Config {
			return driver.Config{ID: disk.PoolID(NewID()), Path: filepath.Join(root(t), "pool"), Owner: Owner()}
		},
		Foreign: PutFile,
		Settle:  Flush,
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
		Residue: Files,
	}
}

// Owner is nobody where root can give files away, else whoever runs the test.
func Owner() disk.Owner {
	if os.Geteuid() == 0 {
		return disk.Owner{UID: 65534, GID: 65534}
	}
	return disk.Owner{UID: -1, GID: -1}
}

// PutFile is Harness.Foreign of pools that are directories.
func PutFile(t *testing.T, c driver.Config, name string) {
	if err := os.WriteFile(filepath.Join(c.Path, name), []byte("not tarn's"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Flush is Harness.Settle of pools that are directories: btrfs counts when it
// commits.
func Flush(t *testing.T, c driver.Config) {
	d, err := os.Open(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		t.Fatal(err)
	}
}

// Files lists the files in and beside a pool with mode and size.
func Files(t *testing.T, c driver.Config) []string { return Tree(t, filepath.Dir(c.Path)) }

// Tree lists root and what lies below it with mode and size, but for what NFS has
// removed already.
func Tree(t *testing.T, root string) (all []string) {
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if e != nil && strings.HasPrefix(e.Name(), ".nfs") {
			return nil
		}
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
		all = append(all, fmt.Sprintf("%s %v %d", strings.TrimPrefix(path, root), info.Mode(), size))
		return nil
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return all
}
