package parallels_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/crashtest"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/oracle"
)

// recorder is a container that logs its effects, and fails at one of them.
type recorder struct{ crashtest.Recorder }

func (r *recorder) Size() int64 { return int64(len(r.B)) }

// recording returns one that holds an empty image.
func recording(t *testing.T, size int64) *recorder {
	t.Helper()
	return &recorder{crashtest.Recorder{File: create(t, size, crashCluster).File}}
}

const crashCluster = 1024 // 240 entries fit before the data

// history records a random run of operations on a fresh image.
func history(t *testing.T, seed uint64, size, ops int, back diskfmt.Reader) (run crashtest.Run) {
	t.Helper()
	rec := recording(t, int64(size))
	model := make([]byte, size)
	if back != nil {
		_, _ = back.ReadAt(model[:min(int64(size), back.Size())], 0)
	}
	rng := rand.New(rand.NewPCG(seed, 8))
	open := func() *parallels.Writer {
		w, err := parallels.OpenWriter(rec, record(int64(len(model)), crashCluster, back), back, parallels.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	w := open()
	run = crashtest.Run{Seed: seed, Base: bytes.Clone(rec.B), Seen: []crashtest.Version{{Durable: true, Content: bytes.Clone(model)}}}
	rec.Log = nil
	for n := range ops {
		var what string
		var err error
		if model, what, err = step(rng, w, model, size*8); err != nil {
			t.Fatalf("seed %d, step %d, %s: %v", seed, n, what, err)
		}
		durable := what == "sync" || what == "grow"
		if n%13 == 12 {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			durable, w = true, open()
		}
		run.Seen = append(run.Seen, crashtest.Version{At: len(rec.Log), Durable: durable, Content: bytes.Clone(model)})
	}
	run.Log = rec.Log
	return run
}

// mend opens a crashed image, repairing it if it says that it was in use. Its
// disk has one of the sizes of seen.
func mend(t *testing.T, m *memFile, seen []crashtest.Version, back diskfmt.Reader) ([]byte, error) {
	t.Helper()
	size := int64(binary.LittleEndian.Uint64(m.B[36:])) * 512
	if !slices.ContainsFunc(seen, func(v crashtest.Version) bool { return int64(len(v.Content)) == size }) {
		return nil, fmt.Errorf("the disk has %d bytes, which it never had", size)
	}
	want := record(size, crashCluster, back)
	if left, err := parallels.Abandoned(m); err != nil {
		return nil, err
	} else if left {
		if _, err := parallels.Repair(m, want); err != nil {
			return nil, err
		}
	}
	r, err := parallels.Open(m, m.Size(), want)
	if err != nil {
		return nil, err
	}
	return content(t, r, back), nil
}

// TestCutAtAnyWrite cuts the power at every effect, with all, none or some of
// what was not synced on the disk.
func TestCutAtAnyWrite(t *testing.T) {
	for i, backed := range []bool{false, true} {
		t.Run(fmt.Sprintf("backed=%v", backed), func(t *testing.T) {
			t.Parallel()
			var back diskfmt.Reader
			if backed {
				back = newBelow(100 << 10)
			}
			ops := 90
			if testing.Short() {
				ops = 40
			}
			seed := uint64(40 + i)
			run := history(t, seed, 180<<10, ops, back)
			if last := run.Seen[len(run.Seen)-1].Content; !testing.Short() && len(last) < 500<<10 {
				t.Errorf("the disk has grown to %d bytes only: the BAT never moved a cluster", len(last))
			}
			dir := t.TempDir()
			crashtest.Cut(t, run, func(img []byte, seen []crashtest.Version, sample bool) error {
				m := inMemory(img)
				got, err := mend(t, m, seen, back)
				if err != nil {
					return err
				}
				if sample {
					qemuCheck(t, filepath.Join(dir, "cut"), m.B)
				}
				return crashtest.Verify(got, seen)
			})
		})
	}
}

// TestFailAtAnyEffect makes each effect of a history fail: the operation says
// so, the mark stays, and after a repair everything that was synced is there.
func TestFailAtAnyEffect(t *testing.T) {
	const size = 64 << 10
	for fail := 1; ; fail++ {
		rec := recording(t, size)
		rec.Fail = fail
		w, err := parallels.OpenWriter(rec, record(size, crashCluster, nil), nil, parallels.Options{})
		if err != nil {
			t.Fatal(err)
		}
		synced := 0
		data := pattern(3, 24<<10)
		ops := []func() error{
			func() error { _, err := w.WriteAt(data[:8<<10], 0); return err }, w.Sync,
			func() error { _, err := w.WriteAt(data[8<<10:], 8<<10); return err }, w.Sync,
			func() error { return w.Zero(32<<10, 4<<10) },
			func() error { return w.Grow(8 << 20) }, w.Close,
		}
		var failed error
		for i, op := range ops {
			if failed = op(); failed != nil {
				break
			}
			synced = []int{0, 8 << 10, 8 << 10, 24 << 10, 24 << 10, 24 << 10, 24 << 10}[i]
		}
		if len(rec.Log) < fail {
			if failed != nil {
				t.Fatalf("without a failure: %v", failed)
			}
			t.Logf("%d effects", len(rec.Log))
			return
		}
		if failed == nil {
			t.Fatalf("effect %d failed and nobody was told", fail)
		}
		if sync := rec.Log[fail-1].Kind == crashtest.Sync; sync && w.Sync() == nil {
			t.Errorf("after the failed sync %d another one succeeds", fail)
		}
		_ = w.Close()
		rec.Fail = 0
		got, err := mend(t, inMemory(rec.B), []crashtest.Version{{Content: make([]byte, size)}, {Content: make([]byte, 8<<20)}}, nil)
		if err != nil {
			t.Fatalf("effect %d: %v", fail, err)
		}
		if !bytes.Equal(got[:synced], data[:synced]) {
			t.Errorf("effect %d: what was synced is lost", fail)
		}
	}
}

func qemuCheck(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if out := oracle.Run(t, "qemu-utils", "qemu-img", "check", "-f", "parallels", path); !strings.Contains(out, "No errors") {
		t.Errorf("qemu-img check: %s", out)
	}
}

// TestRepair gives it what a killed writer leaves, and what none does.
func TestRepair(t *testing.T) {
	const size, crashCluster = 64 << 10, 4096
	entry := func(b []byte, i int) []byte { return b[64+4*i:] }
	for _, c := range []struct {
		name   string
		damage func(m *memFile)
		done   parallels.Repaired
		want   func(model []byte) // what it does to the disk
	}{
		{"the mark alone", func(*memFile) {}, parallels.Repaired{}, func([]byte) {}},
		{"clusters at the end", func(m *memFile) { m.B = append(m.B, pattern(1, 9000)...) }, parallels.Repaired{}, func([]byte) {}},
		{"an entry behind the end", func(m *memFile) { binary.LittleEndian.PutUint32(entry(m.B, 9), 77) }, parallels.Repaired{Dropped: 1}, func([]byte) {}},
		{"a lost end", func(m *memFile) { m.B = m.B[:len(m.B)-4096] }, parallels.Repaired{Dropped: 1}, func(b []byte) { clear(b[12<<10 : 16<<10]) }},
		{"a lost half of a cluster", func(m *memFile) { m.B = m.B[:len(m.B)-2048] }, parallels.Repaired{}, func(b []byte) { clear(b[14<<10 : 16<<10]) }},
		{"one cluster twice", func(m *memFile) { copy(entry(m.B, 9)[:4], entry(m.B, 1)) }, parallels.Repaired{Copied: 1}, func(b []byte) { copy(b[36<<10:40<<10], b[4<<10:]) }},
	} {
		f := create(t, size, crashCluster)
		w, err := parallels.OpenWriter(f, record(size, crashCluster, nil), nil, parallels.Options{})
		if err != nil {
			t.Fatal(err)
		}
		model := append(pattern(8, 16<<10), make([]byte, 48<<10)...)
		if _, err := w.WriteAt(model[:16<<10], 0); err != nil {
			t.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		c.damage(f)
		c.want(model)
		done, err := parallels.Repair(f, record(size, crashCluster, nil))
		if err != nil || done != c.done {
			t.Errorf("%s: Repair = %+v, %v; want %+v", c.name, done, err, c.done)
			continue
		}
		r, err := parallels.Open(f, f.Size(), record(size, crashCluster, nil))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		wantContent(t, c.name, content(t, r, nil), model)
		qemuCheck(t, filepath.Join(t.TempDir(), "repaired"), f.B)
		// None of these is anything that a writer leaves.
		copy(f.B[44:], "Ynot")
		for _, wrong := range []diskfmt.Recorded{record(size+512, crashCluster, nil), record(size, 8192, nil)} {
			before := bytes.Clone(f.B)
			_, err := parallels.Repair(f, wrong)
			wantKind(t, "Repair of another image", err, errs.Corrupt)
			if !bytes.Equal(before, f.B) {
				t.Error("a refused Repair changed the image")
			}
		}
	}
	f := create(t, size, crashCluster)
	f.B = append(f.B, make([]byte, 4096)...)
	copy(f.B[32:], []byte{16})
	copy(f.B[44:], "Ynot")
	copy(f.B[48:], []byte{16}) // the data begin at the second cluster
	binary.LittleEndian.PutUint32(entry(f.B, 0), 1)
	_, err := parallels.Repair(f, record(size, crashCluster, nil))
	wantKind(t, "Repair of an entry in front of the data", err, errs.Corrupt)
}
