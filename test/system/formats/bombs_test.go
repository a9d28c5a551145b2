package formats_test

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// TestBombs imports small files that become large disks into a pool of 64 MiB:
// what they may take is reserved before, so that each is refused or stopped, the
// pool never fills up, and nothing stays.
func TestBombs(t *testing.T) {
	fs := fsloop.Ext4(t, 64<<20)
	w := newWorld(t)
	w.d.Must("pool", "create", "small", "--driver", "dir", "--path", filepath.Join(fs.Dir, "pool"))
	free := func() uint64 {
		var st unix.Statfs_t
		if err := unix.Statfs(fs.Dir, &st); err != nil {
			t.Fatal(err)
		}
		return st.Bavail * uint64(st.Bsize)
	}
	before := free()
	var zeroes bytes.Buffer
	z := gzip.NewWriter(&zeroes)
	if _, err := z.Write(make([]byte, 16*mib)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	raw := tarntest.WriteFile(t, "ones", bytes.Repeat([]byte{1}, 96*mib))
	image := func(args string) []byte {
		out := filepath.Join(t.TempDir(), "image")
		run(t, "qemu-img", append(strings.Fields("convert -f raw -O "+args), raw, out)...)
		return read(t, out)
	}
	for _, bomb := range []struct {
		name, flags string
		file        []byte
		status      int
		says        string
	}{
		{"2 GiB of zeroes by gzip", "--format raw --compression gzip", bytes.Repeat(zeroes.Bytes(), 128), 5, "QUOTA"},
		{"96 MiB by xz", "--format raw --compression xz", packed(t, "xz", read(t, raw)), 5, "QUOTA"},
		{"96 MiB by zstd", "--format raw --compression zstd", packed(t, "zstd", read(t, raw)), 5, "QUOTA"},
		{"96 MiB of compressed qcow2", "--format qcow2", image("qcow2 -c"), 6, "no_space"},
		{"96 MiB of compressed vmdk", "--format vmdk", image("vmdk -o subformat=streamOptimized"), 6, "no_space"},
	} {
		path := filepath.Join(w.dir, "bomb")
		if err := os.WriteFile(path, bomb.file, 0o644); err != nil {
			t.Fatal(err)
		}
		got := w.d.Run(append([]string{"image", "import", "new", path, "--pool", "small", "-o", "json"}, strings.Fields(bomb.flags)...)...)
		if got.Status != bomb.status || !strings.Contains(got.Stderr, bomb.says) {
			t.Errorf("%s, %d KiB: want exit status %d and %q of %v", bomb.name, len(bomb.file)>>10, bomb.status, bomb.says, got)
		}
		if now := free(); now+mib < before {
			t.Errorf("%s: %d KiB are free, %d were before", bomb.name, now>>10, before>>10)
		}
	}
	w.finish()
}
