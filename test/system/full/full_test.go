// Package full_test fills the file system that holds the state directory and a
// pool: what needs space is refused with the numbers and leaves nothing, what
// frees space works.
package full_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

const mib = 1 << 20

// world is a small file system with a daemon's state and a pool on it.
type world struct {
	t  *testing.T
	d  *tarntest.Daemon
	fs *fsloop.FS
}

// newWorld has an image, the instance keep, whose data disk is as large as the
// file system, the instance doomed, and a base that nothing refers to.
func newWorld(t *testing.T, kind string, size int64) *world {
	w := &world{t: t, fs: fsloop.New(t, kind, size)}
	w.d = tarntest.Start(t, filepath.Join(w.fs.Dir, "state"))
	w.d.Must("pool", "create", "main", "--driver", "dir", "--path", w.pool(), "--overcommit", "8", "--reserve", "0%")
	for seed, name := range []string{"img", "old"} {
		w.d.Must("image", "import", name, tarntest.WriteFile(t, name, tarntest.Pattern(uint64(seed), mib)), "--format", "raw")
	}
	w.d.Must("instance", "create", "keep", "--root", "img:2M,disk-format=qcow2", "--data", "64M,disk-format=raw")
	w.d.Must("instance", "create", "doomed", "--root", "img:2M,disk-format=qcow2", "--data", "1M", "--data", "1M")
	w.d.Must("instance", "create", "past", "--root", "old,disk-format=qcow2")
	w.d.Must("image", "delete", "old", "--yes")
	w.d.Must("instance", "delete", "past", "--yes")
	w.d.Must("instance", "attach", "keep", "--as", "qemu")
	return w
}

func (w *world) pool() string   { return filepath.Join(w.fs.Dir, "pool") }
func (w *world) filler() string { return filepath.Join(w.fs.Dir, "filler") }

// write fills a file up to limit bytes, or until the file system has no room for
// one byte more.
func write(t *testing.T, path string, limit int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if err != nil {
		return
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
			t.Fatal(err)
		}
		if at >= limit {
			break
		}
	}
	if err := f.Sync(); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// fill has the guest of keep write some of its disk, and somebody else the rest.
func (w *world) fill() {
	w.t.Helper()
	write(w.t, tarntest.Get[api.Disk](w.d, "disk", "show", "keep/data0").Path, 6*mib)
	write(w.t, w.filler(), 1<<40)
	var st unix.Statfs_t
	if err := unix.Statfs(w.fs.Dir, &st); err != nil || int64(st.Bavail)*st.Bsize >= mib {
		w.t.Fatalf("the file system is not full: %d bytes free, %v", int64(st.Bavail)*st.Bsize, err)
	}
}

// free gives back what others took but for n bytes.
func (w *world) free(n int64) {
	w.t.Helper()
	if err := os.Truncate(w.filler(), n); err != nil {
		w.t.Fatal(err)
	}
}

// state is what must not change when something is refused.
func (w *world) state() string {
	var all string
	for _, noun := range []string{"image", "instance", "volume"} {
		all += w.d.Must(noun, "list", "-o", "json").Stdout
	}
	return all
}

// refused runs what must end for want of space, say what, and change nothing.
func (w *world) refused(in io.Reader, what string, args ...string) {
	w.t.Helper()
	before := w.state()
	r := w.d.RunInput(in, args...)
	if r.Status != 6 || !regexp.MustCompile(what).MatchString(r.Stderr) {
		w.t.Errorf("want exit status 6 and %q of %v\ntarnd warned:\n%s", what, r, w.d.Warnings())
	}
	w.same(before, args)
}

// same asks that nothing changed, and that nothing is left in the pool.
func (w *world) same(before string, args []string) {
	w.t.Helper()
	if after := w.state(); after != before {
		w.t.Errorf("tarn %s was refused and changed something:\n%s\nbefore:\n%s", strings.Join(args, " "), after, before)
	}
	w.d.AssertHealthy()
	entries, err := os.ReadDir(filepath.Join(w.pool(), ".tarn-tmp"))
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "ballast") {
			w.t.Errorf("tarn %s left %s staged", strings.Join(args, " "), e.Name())
		}
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// numbers is what a refusal that was planned says.
const numbers = `[0-9]+ [KMGT]?i?B (more are asked for|must be written), .* (may still be promised|are free)`

var kinds = []string{"ext4", "xfs"}

func TestWhatNeedsSpaceIsRefused(t *testing.T) {
	image := tarntest.WriteFile(t, "another", tarntest.Pattern(9, 2*mib))
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, kind, 64*mib)
			w.fill()
			none := strings.NewReader("")
			w.refused(none, numbers, "image", "import", "another", image, "--format", "raw")
			w.refused(none, numbers, "instance", "create", "new", "--root", "img:4M")
			w.refused(none, numbers, "disk", "create", "doomed", "--data", "2M")
			w.refused(none, numbers, "disk", "create", "doomed", "--data", "2M,prealloc=full")
			w.refused(none, numbers, "disk", "create", "doomed", "--data", "8T")
			w.refused(none, numbers, "disk", "resize", "doomed/data0", "8T")
			w.free(0)
			w.d.Must("disk", "create", "doomed", "--data", "2M")
			w.d.AssertHealthy()
		})
	}
}

// TestWhatFreesSpaceWorks runs each command on a file system of its own, so
// that each finds it full.
func TestWhatFreesSpaceWorks(t *testing.T) {
	for _, kind := range kinds {
		for _, command := range []string{
			"disk delete doomed/data0 --yes",
			"instance delete doomed --yes",
			"cache prune --yes",
			"disk detach keep/data0",
			"instance detach keep",
			"image delete img --yes",
		} {
			t.Run(kind+" "+command, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, kind, 64*mib)
				w.fill()
				w.d.Must(strings.Fields(command)...)
				w.d.AssertHealthy()
				w.d.Restart() // also with what is left
				w.d.AssertHealthy()
				w.free(0)
				w.d.Must("instance", "detach", "keep")
				w.d.Must("disk", "delete", "keep/data0", "--yes")
				w.d.Must("instance", "create", "after", "--data", "2M")
				w.d.AssertHealthy()
				w.d.AssertSettled()
			})
		}
	}
}

// TestCreateAtEverySpace creates an instance with ever more free space, until
// it works: wherever it ends before, nothing is left.
func TestCreateAtEverySpace(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			w := newWorld(t, kind, 64*mib)
			w.fill()
			fi, err := os.Stat(w.filler())
			if err != nil {
				t.Fatal(err)
			}
			refused := 0
			args := []string{"instance", "create", "new", "--root", "img:4M,disk-format=raw", "--ephemeral", "8M,fs=ext4", "--swap", "1M", "--data", "1M,disk-format=qcow2"}
			for left := fi.Size(); ; left -= mib / 2 {
				w.free(max(left, 0))
				before := w.state()
				r := w.d.Run(args...)
				if r.Status == 0 {
					break
				}
				if refused++; r.Status != 6 {
					t.Fatalf("with the filler at %d bytes: want exit status 0 or 6 of %v", left, r)
				}
				w.same(before, args)
				if left <= 0 {
					t.Fatalf("it never works: %v", r)
				}
			}
			w.d.AssertHealthy()
			t.Logf("refused %d times", refused)
			if refused == 0 {
				t.Error("it was never refused: the file system was not full")
			}
		})
	}
}

// TestFilledWhileImporting fills the file system when some of a stream has been
// read, and what was free at the beginning is not there any more. The image is
// larger than the ballast, which whoever is at work may get.
func TestFilledWhileImporting(t *testing.T) {
	image := tarntest.Pattern(5, 24*mib)
	for _, kind := range kinds {
		for _, at := range []int{0, 1 * mib, 5 * mib, 7 * mib} {
			t.Run(fmt.Sprint(kind, " after ", at), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, kind, 112*mib)
				why := "no space left"
				if at == 0 { // before anything was promised
					why = "must be written"
				}
				w.refused(&filling{image: image, at: at, fill: w.fill}, why, "image", "import", "another", "-", "--format", "raw")
				w.free(0)
				w.d.Must("image", "import", "another", tarntest.WriteFile(t, "again", image), "--format", "raw")
				w.d.AssertSettled()
			})
		}
	}
}

// filling is a stream that calls fill when at bytes of it were read.
type filling struct {
	image []byte
	at    int
	fill  func()
	n     int
}

// Read reads as an io.Reader does.
func (f *filling) Read(b []byte) (int, error) {
	if f.n == f.at {
		f.fill()
	}
	end := len(f.image)
	if f.n < f.at {
		end = f.at
	}
	n := copy(b, f.image[f.n:end])
	f.n += n
	if f.n == len(f.image) {
		return n, io.EOF
	}
	return n, nil
}
