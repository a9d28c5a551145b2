package storage

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	mib    = 1 << 20
	filler = "filler" // the file that takes what is free
)

// fillDirectory writes a file until the file system of dir has no room for one
// byte more.
func fillDirectory(t testing.TB, dir string) {
	t.Helper()
	if err := fillFile(filepath.Join(dir, filler)); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize >= mib {
		t.Fatalf("the file system is not full: %d bytes free, %v", int64(st.Bavail)*st.Bsize, err)
	}
}

func fillFile(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	var at int64
	for size := mib; size > 0; {
		n, err := f.WriteAt(make([]byte, size), at)
		at += int64(n)
		switch {
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		case err != nil:
			return err
		}
	}
	if err := f.Sync(); !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return nil
}
