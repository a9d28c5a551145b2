package fsloop_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// writeSynced writes a file that must survive a power cut.
func writeSynced(t *testing.T, dir, name, content string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, werr := f.WriteString(content)
	if err := errors.Join(werr, f.Sync(), f.Close(), d.Sync(), d.Close()); err != nil {
		t.Fatalf("write %s durably: %v", name, err)
	}
}

func TestShutdownLosesOnlyUnsyncedData(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			fs := fsloop.New(t, kind, 512<<20)
			for round := range 3 {
				writeSynced(t, fs.Dir, "synced", string(rune('a'+round)))
				unsynced := filepath.Join(fs.Dir, "unsynced")
				if err := os.WriteFile(unsynced, []byte("lost"), 0o600); err != nil {
					t.Fatal(err)
				}
				fs.Shutdown()
				err := os.WriteFile(filepath.Join(fs.Dir, "after"), nil, 0o600)
				if !errors.Is(err, unix.EIO) {
					t.Fatalf("write after the power cut: got %v, want EIO", err)
				}
				fs.Remount()
				got, err := os.ReadFile(filepath.Join(fs.Dir, "synced"))
				if want := string(rune('a' + round)); err != nil || string(got) != want {
					t.Fatalf("round %d: synced file: got %q, %v, want %q", round, got, err, want)
				}
				if got, err := os.ReadFile(unsynced); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("round %d: unsynced file: got %q, %v, want it gone", round, got, err)
				}
			}
		})
	}
}

func TestFileSystemsAreWhatTheySay(t *testing.T) {
	const xfs, btrfs, ext4 = 0x58465342, 0x9123683e, 0xef53
	tests := []struct {
		kind  string
		size  int64
		magic int64
		clone error
	}{
		{"xfs", 512 << 20, xfs, nil},
		{"btrfs", 512 << 20, btrfs, nil},
		{"ext4", 512 << 20, ext4, unix.EOPNOTSUPP},
		{"xfs", 64 << 20, xfs, nil},
		{"btrfs", 64 << 20, btrfs, nil},
		{"ext4", 64 << 20, ext4, unix.EOPNOTSUPP},
	}
	for _, tt := range tests {
		fs := fsloop.New(t, tt.kind, tt.size)
		var st unix.Statfs_t
		if err := unix.Statfs(fs.Dir, &st); err != nil {
			t.Fatal(err)
		}
		if int64(st.Type) != tt.magic {
			t.Errorf("%s: magic number: got %#x, want %#x", tt.kind, st.Type, tt.magic)
		}
		if total := int64(st.Blocks) * st.Bsize; total > tt.size {
			t.Errorf("%s: capacity: got %d, want at most %d", tt.kind, total, tt.size)
		}
		writeSynced(t, fs.Dir, "source", string(make([]byte, 1<<16)))
		if err := clone(fs.Dir, "source", "copy"); !errors.Is(err, tt.clone) {
			t.Errorf("%s: reflink: got %v, want %v", tt.kind, err, tt.clone)
		}
	}
}

func clone(dir, from, to string) error {
	src, err := os.Open(filepath.Join(dir, from))
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(filepath.Join(dir, to))
	if err != nil {
		return err
	}
	defer dst.Close()
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}

func TestSmallFileSystemFillsUp(t *testing.T) {
	for _, kind := range []string{"xfs", "ext4", "btrfs"} {
		fs := fsloop.New(t, kind, 64<<20)
		err := os.WriteFile(filepath.Join(fs.Dir, "big"), make([]byte, 64<<20), 0o600)
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("%s: 64 MiB into 64 MiB: got %v, want ENOSPC", kind, err)
		}
	}
}
