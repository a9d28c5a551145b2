// Package full_test fills the file system that holds the state directory and a
// pool: what needs space is refused with the numbers and leaves nothing, what
// frees space works.
package full_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/storage"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

const mib = 1 << 20

// world is a small storage with a pool on it, and where that is a file system with
// the daemon's state.
type world struct {
	t     *testing.T
	d     *tarntest.Daemon
	store *storage.Storage
}

// newWorld has an image, the instance keep, whose data disk is as large as the
// storage, the instance doomed, and a base that nothing refers to.
func newWorld(t *testing.T, tech storage.Technology, size int64) *world {
	w := &world{t: t}
	if tech.Small == nil {
		tech.Small = tech.New
	}
	w.store = tech.Small(t, size)
	state := filepath.Join(filepath.Dir(w.store.Dir), "state")
	if w.store.Dir == "" {
		state = filepath.Join(t.TempDir(), "state")
	}
	w.d = tarntest.Start(t, state)
	w.d.Must(append([]string{"pool", "create", "main", "--overcommit", "8", "--reserve", "0%"}, w.store.Args...)...)
	for seed, name := range []string{"img", "old"} {
		w.d.Must("image", "import", name, tarntest.WriteFile(t, name, tarntest.Pattern(uint64(seed), mib)), "--format", "raw")
	}
	qcow2 := "disk-format=" + tech.QCOW2()
	w.d.Must("instance", "create", "keep", "--root", "img:2M,"+qcow2, "--data", "64M,disk-format=raw")
	w.d.Must("instance", "create", "doomed", "--root", "img:2M,"+qcow2, "--data", "1M", "--data", "1M")
	w.d.Must("instance", "create", "past", "--root", "old,"+qcow2)
	w.d.Must("image", "delete", "old", "--yes")
	w.d.Must("instance", "delete", "past", "--yes")
	w.d.Must("instance", "attach", "keep", "--as", "qemu")
	return w
}

// filler is the file that fills a file system.
func (w *world) filler() string { return filepath.Join(filepath.Dir(w.store.Dir), "filler") }

// fill has the guest of keep write some of its disk, and somebody else the rest.
func (w *world) fill() {
	w.t.Helper()
	w.write()
	w.take()
}

// write has the guest of keep write some of its disk.
func (w *world) write() {
	w.t.Helper()
	w.store.Write(w.t, storage.Volume(w.d, "keep/data0"), 0, make([]byte, 6*mib))
	w.d.Must("pool", "refresh", "main")
}

// take has somebody else use what is free.
func (w *world) take() {
	w.t.Helper()
	w.store.Fill(w.t)
	w.d.Must("pool", "refresh", "main")
}

// free gives back what others took but for n bytes.
func (w *world) free(n int64) {
	w.t.Helper()
	w.store.Free(w.t, n)
}

// state is what must not change when something is refused.
func (w *world) state() string {
	var all string
	for _, noun := range []string{"image", "instance", "volume"} {
		all += w.d.Must(noun, "list", "-o", "json").Stdout
	}
	return all + strings.Join(w.store.Left(w.t), "\n")
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

// is asks what state the pool is shown in.
func (w *world) is(state string) {
	w.t.Helper()
	if p := tarntest.Get[api.Pool](w.d, "pool", "show", "main"); p.State != state || (p.Reason == "") != (state == "active") {
		w.t.Errorf("the pool is %s because of %q, with %d bytes free; want %s", p.State, p.Reason, p.Free, state)
	}
}

// same asks that nothing changed, and that nothing is left in the pool.
func (w *world) same(before string, args []string) {
	w.t.Helper()
	if after := w.state(); after != before {
		w.t.Errorf("tarn %s was refused and changed something:\n%s\nbefore:\n%s", strings.Join(args, " "), after, before)
	}
	w.d.AssertHealthy()
}

// numbers is what a refusal that was planned says.
const numbers = `[0-9]+ [KMGT]?i?B (more are asked for|must be written), .* (may still be promised|are free)`

var kinds = []storage.Technology{storage.On("dir", "ext4"), storage.On("dir", "xfs")}

func TestWhatNeedsSpaceIsRefusedEverywhere(t *testing.T) {
	image := tarntest.WriteFile(t, "another", tarntest.Pattern(9, 2*mib))
	storage.Run(t, kinds, func(t *testing.T, tech storage.Technology) {
		w := newWorld(t, tech, 64*mib)
		w.fill()
		w.is("full")
		none := strings.NewReader("")
		w.refused(none, numbers, "image", "import", "another", image, "--format", "raw")
		w.refused(none, numbers, "instance", "create", "new", "--root", "img:4M")
		w.refused(none, numbers, "disk", "create", "doomed", "--data", "2M")
		w.refused(none, numbers, "disk", "create", "doomed", "--data", "2M,prealloc=full")
		w.refused(none, numbers, "disk", "create", "doomed", "--data", "8T")
		w.refused(none, numbers, "disk", "resize", "doomed/data0", "8T")
		w.free(0)
		w.d.Must("pool", "refresh", "main")
		w.is("active")
		w.d.Must("disk", "create", "doomed", "--data", "2M")
		w.d.AssertHealthy()
	})
}

// freeing is what must work on full storage, in an order in which all can be done.
var freeing = []string{"disk delete doomed/data0 --yes", "instance delete doomed --yes", "cache prune --yes"}

// TestWhatFreesSpaceWorksEverywhere runs each command on a file system of its own,
// so that each finds it full, with those that write beside what stays, for which a
// directory keeps room; elsewhere one after the other.
func TestWhatFreesSpaceWorksEverywhere(t *testing.T) {
	storage.Run(t, kinds, func(t *testing.T, tech storage.Technology) {
		if storage.Given() != nil {
			freed(t, tech, freeing...)
			return
		}
		for _, command := range append(slices.Clone(freeing), "disk detach keep/data0", "instance detach keep", "image delete img --yes") {
			t.Run(command, func(t *testing.T) {
				t.Parallel()
				freed(t, tech, command)
			})
		}
	})
}

// freed runs commands on full storage.
func freed(t *testing.T, tech storage.Technology, commands ...string) {
	w := newWorld(t, tech, 64*mib)
	w.fill()
	for _, c := range commands {
		w.d.Must(strings.Fields(c)...)
		w.d.AssertHealthy()
	}
	if w.store.Dir != "" {
		w.d.Restart() // also with what is left
		w.d.AssertHealthy()
	}
	w.free(0)
	w.d.Must("instance", "detach", "keep")
	w.d.Must("disk", "delete", "keep/data0", "--yes")
	w.d.Must("pool", "refresh", "main")
	w.d.Must("instance", "create", "after", "--data", "2M")
	w.d.AssertHealthy()
	w.d.AssertSettled()
}

// TestCreateAtEverySpace creates an instance with ever more free space, until
// it works: wherever it ends before, nothing is left.
func TestCreateAtEverySpace(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.Name, func(t *testing.T) {
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
			t.Run(fmt.Sprint(kind.Name, " after ", at), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, kind, 112*mib)
				why := "no space left"
				if at == 0 { // before anything was promised
					why = "must be written"
				}
				w.write() // what a guest writes changes what is listed
				w.refused(&filling{image: image, at: at, fill: w.take}, why, "image", "import", "another", "-", "--format", "raw")
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
