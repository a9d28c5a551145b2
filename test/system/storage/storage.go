// Package storage gives the tests of what holds on every technology the storage
// of their pools, and the guest's side of it: what a guest or its QEMU does to a
// volume behind tarn's back. It refuses to know what the tests are about.
//
// Tests that use it have names that end in Everywhere. Where TARN_TEST_CEPH or
// TARN_TEST_LVM gives a technology that not every machine has, they run on that
// and on nothing else.
package storage

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// Technology is one row of a test.
type Technology struct {
	Name string // of the subtest
	Raw  bool   // its pools hold raw disks alone
	Slow bool   // each call takes most of a second

	// New returns empty storage with at least that much space, in bytes, that ends
	// with t.
	New func(t testing.TB, size int64) *Storage

	// Small is New with hardly more than that, which Fill can take away. Nil: New.
	Small func(t testing.TB, size int64) *Storage
}

// QCOW2 is the format of a disk that is not to be raw, where that can be.
func (tech Technology) QCOW2() string {
	if tech.Raw {
		return "raw"
	}
	return "qcow2"
}

// Storage is what one pool lies on.
type Storage struct {
	Request api.PoolCreate // what asks for a pool there, without a name
	Args    []string       // the same for "tarn pool create" and "tarn pool import"
	Dir     string         // of a pool that is a directory
	Unit    int64          // sizes are rounded up to it; 0: it does not show in whole MiB

	// Read returns all that a published volume's container holds, Write changes
	// it, as a guest can to whom it is attached.
	Read  func(t testing.TB, v api.Volume) []byte
	Write func(t testing.TB, v api.Volume, at int64, b []byte)

	// Hold opens a volume as a guest's QEMU does, until release is called.
	Hold func(t testing.TB, v api.Volume) (release func())

	// Fill takes what is free away, but for less than 1 MiB, and Free gives it back
	// but for left bytes. Nil where New gives no size of its own.
	Fill func(t testing.TB)
	Free func(t testing.TB, left int64)

	// Left returns the names of what lies there but the pool's own bookkeeping.
	Left func(t testing.TB) []string
}

// Run runs test on every technology of this run: on those given, or where the
// environment gives others on these.
func Run(t *testing.T, usual []Technology, test func(t *testing.T, tech Technology)) {
	t.Helper()
	if given := Given(); given != nil {
		usual = given
	}
	for _, tech := range usual {
		t.Run(tech.Name, func(t *testing.T) { test(t, tech) })
	}
}

// Given are the technologies that the environment gives, nil where it gives none.
func Given() []Technology {
	switch {
	case os.Getenv("TARN_TEST_CEPH") != "":
		return []Technology{RBD}
	case InGuest():
		return []Technology{Logical, LVMThin}
	}
	return nil
}

// Directory is a directory on whatever file system the tests' own is.
var Directory = Technology{Name: "dir", New: func(t testing.TB, _ int64) *Storage { return inDirectory("dir", t.TempDir()) }}

// On is a pool of a driver that keeps its volumes in a directory, on a file
// system of the given kind and of the wanted size.
func On(driver, kind string) Technology {
	return Technology{Name: driver + "/" + kind, Raw: driver == "ploop", New: func(t testing.TB, size int64) *Storage {
		dir := fsloop.New(t, kind, size).Dir
		s := inDirectory(driver, dir)
		s.Fill = func(t testing.TB) { t.Helper(); fillDirectory(t, dir) }
		s.Free = func(t testing.TB, left int64) {
			t.Helper()
			if err := os.Truncate(filepath.Join(dir, filler), left); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}}
}

// Directories are a file system that can reflink and one that cannot, or what a
// user without privileges has.
func Directories() []Technology {
	if os.Geteuid() != 0 && os.Getenv("TARN_TEST_ROOT") == "" {
		return []Technology{Directory}
	}
	return []Technology{On("dir", "ext4"), On("dir", "xfs")}
}

func inDirectory(driver, dir string) *Storage {
	pool := filepath.Join(dir, "pool")
	return &Storage{Request: api.PoolCreate{Driver: driver, Path: pool}, Args: []string{"--driver", driver, "--path", pool}, Dir: pool, Read: readFile, Write: writeFile, Hold: holdFile,
		Left: func(t testing.TB) (names []string) {
			for _, at := range []string{pool, filepath.Join(pool, ".tarn-tmp")} {
				entries, err := os.ReadDir(at)
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				for _, e := range entries {
					if n := e.Name(); !slices.Contains([]string{".tarn-pool", ".tarn-tmp", "lost+found"}, n) && !strings.HasPrefix(n, "ballast") {
						names = append(names, n)
					}
				}
			}
			return names
		}}
}

// readFile and writeFile reach a volume that is a file or a block device.
func readFile(t testing.TB, v api.Volume) []byte {
	t.Helper()
	b, err := os.ReadFile(v.Path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeFile(t testing.TB, v api.Volume, at int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(v.Path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err = f.WriteAt(b, at); err == nil {
		err = f.Sync()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func holdFile(t testing.TB, v api.Volume) func() {
	t.Helper()
	return hold(t, "driver=raw,file.driver=file,file.filename="+strings.ReplaceAll(v.Path, ",", ",,"))
}

// Volume returns the volume of a disk.
func Volume(d *tarntest.Daemon, ref string) api.Volume {
	return tarntest.Get[api.Volume](d, "volume", "show", tarntest.Get[api.Disk](d, "disk", "show", ref).Volume)
}
