package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/crashtest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

// recorder is a container that logs its effects.
type recorder struct{ crashtest.Recorder }

func (r *recorder) Size() (int64, error)         { return int64(len(r.B)), nil }
func (r *recorder) PunchHole(off, n int64) error { return r.Zero(off, n) }

// history records a random run of operations on a fresh image.
func history(t *testing.T, s shape, seed uint64, ops int, prefill int64) (run crashtest.Run, backing []byte) {
	t.Helper()
	file, model, backing := s.make(t, t.TempDir(), seed)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{crashtest.Recorder{File: crashtest.File{B: b}}}
	rng := rand.New(rand.NewPCG(seed, 8))
	open := func(size int64) *qcow2.Writer {
		want := s.record()
		want.VirtualSize = size
		w, err := qcow2.OpenWriter(rec, want, backingReader(t, backing))
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := open(s.size)
	if prefill > 0 {
		for i := range model[:prefill] {
			model[i] = byte(rng.Uint32())
		}
		if _, err := w.WriteAt(model[:prefill], 0); err != nil {
			t.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	run = crashtest.Run{Seed: seed, Base: bytes.Clone(rec.B), Seen: []crashtest.Version{{Durable: true, Content: bytes.Clone(model)}}}
	rec.Log = nil
	for n := range ops {
		var what string
		if model, what, err = step(rng, w, s, model, s.size+s.size/2); err != nil {
			t.Fatalf("seed %d, step %d, %s: %v", seed, n, what, err)
		}
		if n%17 == 16 { // the process goes away without closing, or after it
			if rng.IntN(2) == 0 {
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				what = "sync"
			} else if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			what, w = "sync", open(int64(len(model)))
		}
		durable := what == "sync" || strings.HasPrefix(what, "grow")
		run.Seen = append(run.Seen, crashtest.Version{At: len(rec.Log), Durable: durable, Content: bytes.Clone(model)})
	}
	run.Log = rec.Log
	return run, backing
}

// alone returns the image with its backing reference blanked, for inspect.
func alone(img []byte) []byte {
	b := bytes.Clone(img)
	clear(b[8:20])
	if n := binary.BigEndian.Uint32(b[100:]); binary.BigEndian.Uint32(b[n:]) == 0xe2792aca {
		binary.BigEndian.PutUint32(b[n:], 0x12345678)
	}
	return b
}

// verify opens a crashed image and holds it against what the guest had seen:
// each byte is that of the last durable version or of one that came after it.
func verify(t *testing.T, s shape, img, backing []byte, seen []crashtest.Version) error {
	t.Helper()
	rep, err := inspect.Inspect(t.Context(), bytes.NewReader(alone(img)), int64(len(img)), inspect.Limits{})
	if err != nil {
		return fmt.Errorf("the image is not consistent: %w", err)
	}
	want := s.record()
	want.VirtualSize = rep.VirtualSize
	r, err := qcow2.Open(bytes.NewReader(img), int64(len(img)), want)
	if err != nil {
		return err
	}
	return crashtest.Verify(readAll(t, r, backing), seen)
}

func TestCutAtAnyWrite(t *testing.T) {
	for i, c := range []struct {
		shape
		ops     int
		prefill int64
		header  []int64 // header fields that the history must have changed
	}{
		{shape{name: "4k", size: 256 << 10, cluster: 4096}, 80, 0, []int64{24}},
		{shape{name: "512", size: 320 << 10, cluster: 512}, 100, 0, []int64{24, 36}},
		{shape{name: "refcount-table-moves", size: 3500 << 10, cluster: 512, byQEMU: "refcount_bits=64"}, 80, 1210 << 10, []int64{48}},
		{shape{name: "ext", size: 512 << 10, cluster: 16384, ext: true}, 60, 0, []int64{24}},
		{shape{name: "overlay", size: 256 << 10, cluster: 4096, backing: 200<<10 + 512}, 80, 0, []int64{24}},
		{shape{name: "overlay-long", size: 96<<10 + 512, cluster: 512, backing: 200 << 10}, 90, 0, []int64{24}},
		{shape{name: "overlay-ext", size: 512 << 10, cluster: 16384, ext: true, backing: 700 << 10}, 60, 0, []int64{24}},
		{shape{name: "zlib", size: 1 << 20, cluster: 65536, byQEMU: "compress"}, 50, 0, []int64{24}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(i) + 500
			if testing.Short() {
				c.ops /= 4
			}
			run, backing := history(t, c.shape, seed, c.ops, c.prefill)
			dir := t.TempDir()
			if backing != nil {
				if err := os.WriteFile(filepath.Join(dir, "base.raw"), backing, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cuts := crashtest.Cut(t, run, func(img []byte, seen []crashtest.Version, sample bool) error {
				err := verify(t, c.shape, img, backing, seen)
				if err == nil && sample {
					qemuCheck(t, filepath.Join(dir, "cut.qcow2"), img)
				}
				return err
			})
			for _, off := range c.header {
				if !testing.Short() && !slices.ContainsFunc(run.Log, func(e crashtest.Event) bool { return e.Kind == crashtest.Write && e.Off == off }) {
					t.Errorf("seed %d: no operation changed the header at %d", seed, off)
				}
			}
			if cuts < 4*c.ops {
				t.Errorf("only %d cuts for %d operations", cuts, c.ops)
			}
		})
	}
}

// qemuCheck fails unless QEMU finds the image whole or merely leaking.
func qemuCheck(t *testing.T, file string, img []byte) {
	t.Helper()
	if err := os.WriteFile(file, img, 0o600); err != nil {
		t.Fatal(err)
	}
	const leaks = 3
	tool(t, []int{leaks}, "qemu-img", "check", "-f", "qcow2", file)
}

func TestAFailedSyncIsFinal(t *testing.T) {
	m := &failing{}
	if err := qcow2.Create(&m.memFile, qcow2.CreateOptions{VirtualSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	w, err := qcow2.OpenWriter(m, diskfmt.Recorded{Format: diskfmt.Qcow2, VirtualSize: 1 << 20, ClusterSize: 65536}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	m.fail = true
	if err := w.Sync(); err == nil {
		t.Fatal("Sync hid a failed sync")
	}
	m.fail = false
	syncs := m.syncs
	for name, do := range map[string]func() error{
		"Sync":    w.Sync,
		"Close":   w.Close,
		"WriteAt": func() error { _, err := w.WriteAt([]byte("y"), 0); return err },
		"Grow":    func() error { return w.Grow(2 << 20) },
	} {
		if err := do(); err == nil {
			t.Errorf("%s after a failed sync succeeded", name)
		}
	}
	if m.syncs != syncs {
		t.Errorf("a failed sync was followed by %d more", m.syncs-syncs)
	}
}

type failing struct {
	memFile
	fail  bool
	syncs int
}

func (f *failing) Sync() error {
	if f.syncs++; f.fail {
		return fmt.Errorf("input/output error")
	}
	return nil
}

// nthFails is a container without space for its n-th growth or write, once.
type nthFails struct {
	memFile
	left int
}

func (f *nthFails) effect() error {
	if f.left--; f.left == -1 {
		return syscall.ENOSPC
	}
	return nil
}

func (f *nthFails) WriteAt(p []byte, off int64) (int, error) {
	if err := f.effect(); err != nil {
		return 0, err
	}
	return f.memFile.WriteAt(p, off)
}

func (f *nthFails) Truncate(n int64) error {
	if err := f.effect(); err != nil {
		return err
	}
	return f.memFile.Truncate(n)
}

// Each write in turn finds no space: the caller is told so once, goes on, and
// at the end the image is consistent whatever could still be written.
func TestEveryWriteMayFindNoSpace(t *testing.T) {
	for _, s := range []shape{
		{name: "4k", size: 256 << 10, cluster: 4096},
		{name: "512", size: 320 << 10, cluster: 512},
		{name: "overlay", size: 256 << 10, cluster: 4096, backing: 300<<10 + 512},
	} {
		t.Run(s.name, func(t *testing.T) {
			const seed = 77
			file, fresh, backing := s.make(t, t.TempDir(), seed)
			img, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for ; ; n++ {
				f := &nthFails{*inMemory(bytes.Clone(img)), n}
				w, err := qcow2.OpenWriter(f, s.record(), backingReader(t, backing))
				if err != nil {
					t.Fatal(err)
				}
				rng := rand.New(rand.NewPCG(seed, 10))
				model := bytes.Clone(fresh)
				var failed error
				for range 40 {
					size := w.Size()
					model, _, err = step(rng, w, s, model[:size], s.size*2)
					if model = model[:w.Size()]; err != nil && failed == nil {
						failed = err
					}
				}
				if err := w.Close(); err != nil && failed == nil {
					failed = err
				}
				if f.left >= 0 && failed != nil {
					t.Fatalf("nothing failed, but: %v", failed)
				}
				if f.left < 0 && !errors.Is(failed, errs.NoSpace) {
					t.Fatalf("write %d of the run failed, the caller saw %v; want %v", n, failed, errs.NoSpace)
				}
				if _, err := inspect.Inspect(t.Context(), bytes.NewReader(alone(f.B)), int64(len(f.B)), inspect.Limits{}); err != nil {
					t.Fatalf("write %d found no space (%v): %v", n, failed, err)
				}
				if f.left >= 0 {
					break
				}
			}
			if n < 40 {
				t.Errorf("only %d writes in the run, want 40 or more", n)
			}
		})
	}
}
