package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
	"github.com/tarn-storage/tarn/internal/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) func(*testing.T) *store.Store {
		dir := t.TempDir()
		return func(t *testing.T) *store.Store { return open(t, sqlite.Options{Dir: dir}) }
	})
}

func open(t testing.TB, o sqlite.Options) *store.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

func insertHost(ctx context.Context, s *store.Store, id, name string) error {
	return s.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		return tx.Hosts.Insert(ctx, disk.Host{ID: disk.HostID(id), Name: name})
	})
}

func TestSecondOpenIsBusy(t *testing.T) {
	dir := t.TempDir()
	s := open(t, sqlite.Options{Dir: dir})
	_, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir})
	if pid := fmt.Sprintf("process %d", os.Getpid()); !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), pid) {
		t.Errorf("second open: got %v, want busy naming %s", err, pid)
	}
	if err := insertHost(t.Context(), s, "h", "x"); err != nil {
		t.Errorf("the first store after the refusal: %v", err)
	}
	inherit(t, filepath.Join(dir, "tarn.lock"))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	if err := open(t, sqlite.Options{Dir: dir}).Close(); err != nil {
		t.Errorf("close of a third: %v", err)
	}
}

// inherit keeps a copy of the descriptor of the open file at path, as a process
// has it that is being started.
func inherit(t *testing.T, path string) {
	t.Helper()
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		if to, _ := os.Readlink(link); to == path {
			n, _ := strconv.Atoi(filepath.Base(link))
			fd, err := syscall.Dup(n)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Close(fd) })
			return
		}
	}
	t.Fatalf("%s is not open", path)
}

func TestFilesArePrivate(t *testing.T) {
	dir := t.TempDir()
	defer syscall.Umask(syscall.Umask(0))
	s := open(t, sqlite.Options{Dir: dir})
	defer s.Close()
	if err := insertHost(t.Context(), s, "h", "x"); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(dir)
	if err != nil || len(names) != 4 {
		t.Fatalf("the directory holds %v, %v, want database, log, index and lock", names, err)
	}
	for _, name := range names {
		info, err := name.Info()
		if err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v, want 0600", name.Name(), info.Mode(), err)
		}
	}
}

// An older schema is brought up to this build's, with the rows that it has.
func TestOlderSchemaIsMigrated(t *testing.T) {
	dir := t.TempDir()
	s := open(t, sqlite.Options{Dir: dir})
	image := disk.Image{ID: "i", Name: "debian", State: disk.ImageReady, Format: "raw", VirtualSize: 4096}
	newest := s.SchemaVersion()
	pool := disk.Pool{ID: "p", Name: "main", Driver: "dir", State: disk.PoolActive, DomainID: "d", DiskFormat: disk.FormatAuto}
	err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.Images.Insert(ctx, image), tx.Domains.Insert(ctx, disk.Domain{ID: "d", Identity: "fs:d"}), tx.Pools.Insert(ctx, pool),
			tx.Volumes.Insert(ctx, disk.Volume{ID: "b", PoolID: "p", Name: "base", Kind: disk.KindBase, State: disk.VolumeReady, Format: "raw"}))
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, sqlite.File))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("DROP INDEX volumes_base; CREATE UNIQUE INDEX volumes_base ON volumes (pool_id, content, format) WHERE kind = 'base' AND content <> ''"); err != nil {
		t.Fatal(err)
	}
	for _, undo := range []string{"volumes DROP COLUMN adopted", "volumes DROP COLUMN pinned", "images DROP COLUMN source", "pools DROP COLUMN source", "pools DROP COLUMN image_formats", "images DROP COLUMN proof", "images DROP COLUMN generation", "instances DROP COLUMN generation"} {
		if _, err := db.Exec("ALTER TABLE " + undo); err != nil {
			t.Fatalf("%s: %v", undo, err)
		}
	}
	if _, err := db.Exec("UPDATE schema_version SET version = 1"); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := open(t, sqlite.Options{Dir: dir})
		err := s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			got, err := tx.Images.Get(ctx, "i")
			if err == nil && (got.Name != image.Name || got.VirtualSize != image.VirtualSize || got.Generation != 0 || got.Proof != nil || got.Source != nil) {
				t.Errorf("the image is %+v, want %+v", got, image)
			}
			if p, perr := tx.Pools.Get(ctx, "p"); perr != nil || p.Source != (disk.PoolSource{}) {
				t.Errorf("the pool is %+v, %v, want one without a source", p, perr)
			}
			if v, verr := tx.Volumes.Get(ctx, "b"); verr != nil || v.Name != "base" || v.Pinned || v.Adopted {
				t.Errorf("the base is %+v, %v, want one that is not pinned nor adopted", v, verr)
			}
			return err
		})
		if err := errors.Join(err, s.Close()); err != nil || s.SchemaVersion() != newest {
			t.Errorf("the schema has version %d, %v, want %d", s.SchemaVersion(), err, newest)
		}
	}
}

// A newer schema is refused with every byte as it was, whether its version lies
// in the database or still in the log of a daemon that was killed.
func TestNewerSchemaIsRefused(t *testing.T) {
	for _, place := range []string{"database", "log"} {
		t.Run(place, func(t *testing.T) {
			made := t.TempDir()
			if err := open(t, sqlite.Options{Dir: made}).Close(); err != nil {
				t.Fatalf("close: %v", err)
			}
			db, err := sql.Open("sqlite", filepath.Join(made, sqlite.File))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec("INSERT INTO schema_version (version) VALUES (99)"); err != nil {
				t.Fatalf("raise the version: %v", err)
			}
			if place == "database" {
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			} else {
				defer db.Close() // closing would empty the log
			}
			dir := t.TempDir()
			before := map[string][]byte{}
			for _, name := range []string{sqlite.File, sqlite.File + "-wal"} {
				b, err := os.ReadFile(filepath.Join(made, name))
				if errors.Is(err, os.ErrNotExist) {
					continue
				}
				if err == nil {
					before[name], err = b, os.WriteFile(filepath.Join(dir, name), b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if want := map[string]int{"database": 1, "log": 2}[place]; len(before) != want {
				t.Fatalf("%d files to compare, want %d", len(before), want)
			}
			if _, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir}); !errors.Is(err, errs.Version) {
				t.Errorf("open: got %v, want newer_version", err)
			}
			for name, want := range before {
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s changed: %d bytes, %v, want the %d as they were", name, len(got), err, len(want))
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	garbage := t.TempDir()
	if err := os.WriteFile(filepath.Join(garbage, sqlite.File), bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, kind := range map[string]errs.Kind{
		filepath.Join(t.TempDir(), "none"): errs.NotFound,
		garbage:                            errs.Corrupt,
	} {
		for range 2 { // the refusal gives the lock back
			if _, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir}); !errors.Is(err, kind) {
				t.Errorf("open %s: got %v, want %s", dir, err, kind)
			}
		}
	}
}

// small mounts a file system of size bytes in memory.
func small(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tarn-test", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("mount a tmpfs: %v", err)
		}
		t.Skipf("mount a tmpfs: %v; run as root", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill writes name in dir until nothing fits any more.
func fill(t *testing.T, dir, name string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the file system: %v", err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := small(t, 8<<20)
	room := 0
	s := open(t, sqlite.Options{Dir: dir, OnFull: func() error {
		room++
		return os.Remove(filepath.Join(dir, "ballast"))
	}})
	defer s.Close()
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, "filler")
	rows := 0
	insert := func() error {
		err := insertHost(t.Context(), s, fmt.Sprint(rows), strings.Repeat("x", 4000))
		if err == nil {
			rows++
		}
		return err
	}
	check := func(when string) {
		t.Helper()
		err := s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			n, err := tx.Hosts.Count(ctx)
			if n != rows {
				t.Errorf("%s: %d rows, want the %d acknowledged", when, n, rows)
			}
			return err
		})
		if err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	for room == 0 {
		if err := insert(); err != nil {
			t.Fatalf("insert %d with a ballast to release: %v", rows, err)
		}
	}
	check("with the ballast released")
	var err error
	for err == nil {
		err = insert()
	}
	if !errors.Is(err, errs.NoSpace) || room != 2 {
		t.Errorf("insert on the full disk: got %v after %d calls of OnFull, want no_space after 2", err, room)
	}
	check("on the full disk")
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil {
		t.Fatal(err)
	}
	if err := insert(); err != nil {
		t.Errorf("insert when there is room again: %v", err)
	}
	check("with room again")
}

// A daemon that starts on a full disk opens its database with the ballast's help.
func TestOpenOnFullDisk(t *testing.T) {
	dir := small(t, 8<<20)
	if err := open(t, sqlite.Options{Dir: dir}).Close(); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fill(t, dir, "filler")
	if _, err := sqlite.Open(t.Context(), sqlite.Options{Dir: dir}); !errors.Is(err, errs.NoSpace) {
		t.Errorf("open without a ballast: got %v (%s), want no_space", err, errs.KindOf(err))
	}
	s := open(t, sqlite.Options{Dir: dir, OnFull: func() error { return os.Remove(ballast) }})
	defer s.Close()
	if err := insertHost(t.Context(), s, "h", "x"); err != nil {
		t.Errorf("insert after the ballast's release: %v", err)
	}
}
