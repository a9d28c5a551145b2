package parallels_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/internal/crashtest"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/errs"
)

// memFile is a container in memory.
type memFile struct{ crashtest.File }

func inMemory(b []byte) *memFile { return &memFile{crashtest.File{B: b}} }

func (m *memFile) Size() int64 { return int64(len(m.B)) }

// create makes an empty image in memory.
func create(t testing.TB, size, cluster int64) *memFile {
	t.Helper()
	m := &memFile{}
	n, err := parallels.Create(m, parallels.CreateOptions{VirtualSize: size, ClusterSize: cluster})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Truncate(n); err != nil {
		t.Fatal(err)
	}
	return m
}

func record(size, cluster int64, backing diskfmt.Reader) diskfmt.Recorded {
	want := diskfmttest.Ploop(size, cluster)
	if backing != nil {
		want.BackingName, want.BackingFmt = "below", diskfmt.Raw
	}
	return want
}

// below is a layer with bytes from 5000 to its end.
type below struct{ b []byte }

func (l below) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(l.b).ReadAt(p, off) }
func (l below) Size() int64                             { return int64(len(l.b)) }
func (l below) Extent(off int64) (diskfmt.Extent, error) {
	e := diskfmt.Extent{Offset: off, Length: l.Size() - off, Kind: diskfmt.Data}
	if off < 5000 {
		e.Length, e.Kind = 5000-off, diskfmt.Zero
	}
	return e, nil
}

func newBelow(size int) below {
	l := below{pattern(1, size)}
	clear(l.b[:5000])
	return l
}

// pattern returns n random bytes, none of them zero.
func pattern(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 3))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32()) | 1
	}
	return b
}

// content reads what the guest sees of r over backing, which may be nil.
func content(t testing.TB, r diskfmt.Reader, backing diskfmt.Reader) []byte {
	t.Helper()
	out := make([]byte, r.Size())
	for off := int64(0); off < r.Size(); {
		e, err := r.Extent(off)
		if err != nil || e.Offset != off || e.Length <= 0 || e.End() > r.Size() {
			t.Fatalf("Extent(%d) = %+v, %v", off, e, err)
		}
		part := out[off:e.End()]
		switch e.Kind {
		case diskfmt.Backing:
			if off < backing.Size() {
				_, err = backing.ReadAt(part[:min(int64(len(part)), backing.Size()-off)], off)
			}
		default:
			_, err = r.ReadAt(part, off)
		}
		if err != nil && err != io.EOF {
			t.Fatalf("reading %+v: %v", e, err)
		}
		off = e.End()
	}
	return out
}

func wantContent(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is 0x%02x, want 0x%02x", what, i, got[i], want[i])
		}
	}
}

func wantKind(t *testing.T, what string, err error, want errs.Kind) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// step does one random thing to w and to model.
func step(rng *rand.Rand, w *parallels.Writer, model []byte, most int) ([]byte, string, error) {
	off := rng.IntN(len(model))
	n := min(1+rng.IntN(20000), len(model)-off)
	switch k := rng.IntN(20); {
	case k < 11:
		p := pattern(rng.Uint64(), n)
		copy(model[off:], p)
		_, err := w.WriteAt(p, int64(off))
		return model, "write", err
	case k < 16:
		if k > 13 { // whole clusters
			off, n = off&^4095, min(n|4095+1, len(model)-off&^4095)
		}
		clear(model[off : off+n])
		return model, "zero", w.Zero(int64(off), int64(n))
	case k < 18 || len(model) >= most:
		return model, "sync", w.Sync()
	}
	more := (1 + rng.IntN(1<<17)) &^ 511
	return append(model, make([]byte, more)...), "grow", w.Grow(int64(len(model) + more))
}

func TestRandomHistory(t *testing.T) {
	for _, c := range []struct {
		name    string
		cluster int64
		backing int
		through bool
	}{{"1k", 1024, 0, false}, {"2k", 2048, 0, false}, {"delta", 1024, 70000, false}, {"through", 1024, 0, true}} {
		t.Run(c.name, func(t *testing.T) {
			const size = 100 << 10
			var back diskfmt.Reader
			model := make([]byte, size)
			if c.backing > 0 {
				l := newBelow(c.backing)
				back = l
				copy(model, l.b)
			}
			f := create(t, size, c.cluster)
			rng := rand.New(rand.NewPCG(7, 7))
			open := func() *parallels.Writer {
				w, err := parallels.OpenWriter(f, record(int64(len(model)), c.cluster, back), back, parallels.Options{Through: c.through})
				if err != nil {
					t.Fatal(err)
				}
				return w
			}
			w := open()
			for n := range 400 {
				var what string
				var err error
				if model, what, err = step(rng, w, model, 9<<20); err != nil {
					t.Fatalf("step %d, %s: %v", n, what, err)
				}
				wantContent(t, what, content(t, w, back), model)
				if n%19 == 18 {
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					r, err := parallels.Open(f, f.Size(), record(int64(len(model)), c.cluster, back))
					if err != nil {
						t.Fatal(err)
					}
					wantContent(t, "closed", content(t, r, back), model)
					w = open()
				}
			}
			if int64(len(model)) < 260*c.cluster*c.cluster/1024 { // the BAT has outgrown its first cluster
				t.Errorf("the disk has grown to %d bytes only", len(model))
			}
		})
	}
}

func TestUngrow(t *testing.T) {
	f := create(t, 10000&^511, 4096)
	w, err := parallels.OpenWriter(f, record(10000&^511, 4096, nil), nil, parallels.Options{})
	if err != nil {
		t.Fatal(err)
	}
	data := pattern(4, 10000&^511)
	if _, err := w.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{10 << 20, 10000 &^ 511} {
		act := w.Grow
		if size < w.Size() {
			act = w.Ungrow
		}
		if err := act(size); err != nil || w.Size() != size {
			t.Fatalf("to %d bytes: %v, now %d", size, err, w.Size())
		}
	}
	wantKind(t, "Ungrow over data", w.Ungrow(512), errs.Unsupported)
	wantKind(t, "Ungrow over data", w.Ungrow(9216), errs.Unsupported)
	wantKind(t, "Grow to less", w.Grow(512), errs.Invalid)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := parallels.Open(f, f.Size(), record(10000&^511, 4096, nil))
	if err != nil {
		t.Fatal(err)
	}
	wantContent(t, "the disk", content(t, r, nil), data)
}

// TestContradictions changes one thing in an image or its record.
func TestContradictions(t *testing.T) {
	const size, cluster = 64 << 10, 4096
	make := func() *memFile {
		f := create(t, size, cluster)
		w, err := parallels.OpenWriter(f, record(size, cluster, nil), nil, parallels.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteAt(pattern(1, 20000), 0); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   diskfmt.Recorded
	}{
		{"virtual size", nil, record(size+512, cluster, nil)},
		{"smaller", nil, record(size-512, cluster, nil)},
		{"cluster size", nil, record(size, 8192, nil)},
		{"magic", set(0, 'w'), record(size, cluster, nil)},
		{"old magic", func(b []byte) []byte { copy(b, "WithoutFreeSpace"); return b }, record(size, cluster, nil)},
		{"version", set(16, 3), record(size, cluster, nil)},
		{"entries", set(32, 15), record(size, cluster, nil)},
		{"more entries", set(33, 1), record(size, cluster, nil)},
		{"in use", func(b []byte) []byte { copy(b[44:], "Ynot"); return b }, record(size, cluster, nil)},
		{"neither closed nor open", set(44, 1), record(size, cluster, nil)},
		{"data in the BAT", set(48, 0), record(size, cluster, nil)},
		{"data between clusters", set(48, 9), record(size, cluster, nil)},
		{"data behind the end", set(49, 9), record(size, cluster, nil)},
		{"flags", set(52, 2), record(size, cluster, nil)},
		{"extension", set(56, 1), record(size, cluster, nil)},
		{"an entry twice", set(64, 2), record(size, cluster, nil)},
		{"an entry in the BAT", func(b []byte) []byte { b[64] = 0; copy(b[68:], []byte{0, 0, 0, 1}); return b }, record(size, cluster, nil)},
		{"an entry behind the end", set(64, 6), record(size, cluster, nil)},
		{"cut", func(b []byte) []byte { return b[:len(b)-1] }, record(size, cluster, nil)},
		{"cut in the header", func(b []byte) []byte { return b[:63] }, record(size, cluster, nil)},
		{"empty", func([]byte) []byte { return nil }, record(size, cluster, nil)},
	} {
		f := make()
		if c.change != nil {
			f.B = c.change(f.B)
		}
		_, err := parallels.Open(f, f.Size(), c.want)
		wantKind(t, c.name, err, errs.Corrupt)
		_, err = parallels.OpenWriter(f, c.want, nil, parallels.Options{})
		wantKind(t, c.name+", for writing", err, errs.Corrupt)
	}
}

func set(off int, v byte) func([]byte) []byte {
	return func(b []byte) []byte { b[off] = v; return b }
}

func TestCreateRefuses(t *testing.T) {
	for _, o := range []parallels.CreateOptions{
		{VirtualSize: -512}, {VirtualSize: 511}, {VirtualSize: parallels.MaxVirtualSize + 512},
		{VirtualSize: 512, ClusterSize: 3 << 20}, {VirtualSize: 512, ClusterSize: 256}, {VirtualSize: 512, ClusterSize: 1 << 30},
		{VirtualSize: parallels.MaxVirtualSize, ClusterSize: 64 << 10},
	} {
		_, err := parallels.Create(&memFile{}, o)
		wantKind(t, "Create", err, errs.Invalid)
	}
}

// TestCreateStored makes an image in which every cluster has its place.
func TestCreateStored(t *testing.T) {
	f := &memFile{}
	n, err := parallels.Create(f, parallels.CreateOptions{VirtualSize: 10000 &^ 511, ClusterSize: 4096, Stored: true})
	if err != nil || f.Truncate(n) != nil {
		t.Fatal(err)
	}
	r, err := parallels.Open(f, n, record(10000&^511, 4096, nil))
	if err != nil {
		t.Fatal(err)
	}
	if e, err := r.Extent(0); err != nil || e.Length != r.Size() || e.Kind != diskfmt.Data {
		t.Errorf("Extent(0) = %+v, %v; want all of it as data", e, err)
	}
	wantContent(t, "the disk", content(t, r, nil), make([]byte, 10000&^511))
	qemuCheck(t, filepath.Join(t.TempDir(), "stored"), f.B)
}

// TestOutside refuses what is not on the disk.
func TestOutside(t *testing.T) {
	f := create(t, 8192, 4096)
	w, err := parallels.OpenWriter(f, record(8192, 4096, nil), nil, parallels.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][2]int64{{-1, 1}, {8192, 1}, {8191, 2}, {1, 8192}} {
		_, err := w.WriteAt(make([]byte, r[1]), r[0])
		wantKind(t, "WriteAt", err, errs.Invalid)
		wantKind(t, "Zero", w.Zero(r[0], r[1]), errs.Invalid)
	}
	if n, err := w.ReadAt(make([]byte, 10), 8190); n != 2 || err != io.EOF {
		t.Errorf("ReadAt over the end: %d bytes, %v; want 2 and EOF", n, err)
	}
	if abandoned, err := parallels.Abandoned(f); abandoned || err != nil {
		t.Errorf("an image that nobody changed is abandoned: %v, %v", abandoned, err)
	}
}
