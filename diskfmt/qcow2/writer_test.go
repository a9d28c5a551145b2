package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/internal/crashtest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/raw"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*qcow2.Writer)(nil)

// diskFile is a qcow2.File over a real file.
type diskFile struct{ *os.File }

func (d diskFile) Size() (int64, error) {
	st, err := d.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// shape is one kind of image that the writer tests run on.
type shape struct {
	name    string
	size    int64
	cluster int64
	ext     bool
	backing int64  // size of a raw backing layer, 0 for none
	byQEMU  string // qemu-img create's options: QEMU makes the image and writes to it first
}

var shapes = []shape{
	{name: "64k", size: 24 << 20, cluster: 65536},
	{name: "512", size: 3 << 20, cluster: 512},
	{name: "4k", size: 8<<20 + 512, cluster: 4096},
	{name: "2M", size: 24 << 20, cluster: 2 << 20},
	{name: "ext", size: 8 << 20, cluster: 16384, ext: true},
	{name: "overlay", size: 8 << 20, cluster: 65536, backing: 5<<20 + 512},
	{name: "overlay-long", size: 4<<20 + 1536, cluster: 4096, backing: 9 << 20},
	{name: "overlay-ext", size: 8 << 20, cluster: 16384, ext: true, backing: 12 << 20},
	{name: "qemu-refcount1", size: 4 << 20, cluster: 4096, byQEMU: "refcount_bits=1"},
	{name: "qemu-refcount4", size: 4 << 20, cluster: 512, byQEMU: "refcount_bits=4"},
	{name: "qemu-refcount64", size: 4 << 20, cluster: 512, byQEMU: "refcount_bits=64"},
	{name: "qemu-ext", size: 8 << 20, cluster: 16384, ext: true, byQEMU: "extended_l2=on"},
	{name: "qemu-metadata", size: 8 << 20, cluster: 65536, byQEMU: "preallocation=metadata"},
	{name: "qemu-zlib", size: 8 << 20, cluster: 65536, byQEMU: "compress"},
}

// record returns the shape's record.
func (s shape) record() diskfmt.Recorded {
	want := diskfmttest.Qcow2(s.size, s.cluster)
	if s.backing > 0 {
		want = diskfmttest.Overlay(s.size, s.cluster, "base.raw", diskfmt.Raw)
	}
	want.ExtendedL2 = s.ext
	return want
}

// make creates the image in dir and returns its file, content and backing.
func (s shape) make(t testing.TB, dir string, seed uint64) (file string, model, backing []byte) {
	t.Helper()
	file = filepath.Join(dir, "disk.qcow2")
	model = make([]byte, s.size)
	if s.byQEMU != "" {
		opts := fmt.Sprintf("cluster_size=%d,", s.cluster) + s.byQEMU
		if s.byQEMU == "compress" {
			opts = fmt.Sprintf("cluster_size=%d", s.cluster)
		}
		tool(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, file, fmt.Sprint(s.size))
		qemuIO(t, file, scatter(seed, s.size, 40)...)
		if s.byQEMU == "compress" {
			tool(t, nil, "qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", file, file+".c")
			file += ".c"
		}
		return file, toRaw(t, file), nil
	}
	if s.backing > 0 {
		backing = make([]byte, s.backing)
		rng := rand.New(rand.NewPCG(seed, 7))
		for i := range backing {
			backing[i] = byte(rng.Uint32())
		}
		copy(model, backing)
		if err := os.WriteFile(filepath.Join(dir, "base.raw"), backing, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := s.record()
	err = qcow2.Create(f, qcow2.CreateOptions{VirtualSize: s.size, ClusterSize: s.cluster, ExtendedL2: s.ext,
		BackingName: want.BackingName, BackingFormat: want.BackingFmt})
	if err != nil {
		t.Fatal(err)
	}
	return file, model, backing
}

func backingReader(t testing.TB, b []byte) diskfmt.Reader {
	t.Helper()
	if b == nil {
		return nil
	}
	r, err := raw.Open(bytes.NewReader(b), int64(len(b)), diskfmttest.Raw(int64(len(b))), nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// step does one random change to both the image and its model, and returns the
// model, which a growth replaces.
func step(rng *rand.Rand, w *qcow2.Writer, s shape, model []byte, maxSize int64) ([]byte, string, error) {
	size := int64(len(model))
	length := 1 + rng.Int64N(3*s.cluster)
	if rng.IntN(4) == 0 {
		length = 1 + rng.Int64N(4096)
	}
	if rng.IntN(16) == 0 {
		length = (32 + rng.Int64N(64)) * min(s.cluster, 4096)
	}
	length = min(length, size)
	off := rng.Int64N(size - length + 1)
	if rng.IntN(2) == 0 { // aligned
		off = off / s.cluster * s.cluster
	}
	switch k := rng.IntN(20); {
	case k < 11:
		p := make([]byte, length)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		_, err := w.WriteAt(p, off)
		copy(model[off:], p)
		return model, fmt.Sprintf("write %d at %d", length, off), err
	case k < 14:
		err := w.WriteZeroes(off, length)
		clear(model[off : off+length])
		return model, fmt.Sprintf("zero %d at %d", length, off), err
	case k < 16:
		err := w.Discard(off, length)
		first, last := (off+s.cluster-1)/s.cluster*s.cluster, (off+length)/s.cluster*s.cluster
		if off+length == size {
			last = size
		}
		if first < last {
			clear(model[first:last])
		}
		return model, fmt.Sprintf("discard %d at %d", length, off), err
	case k < 18:
		return model, "sync", w.Sync()
	case k == 18 && size < maxSize:
		grown := min(maxSize, size+rng.Int64N(maxSize/8)/512*512)
		err := w.Grow(grown)
		return append(model, make([]byte, grown-size)...), fmt.Sprintf("grow to %d", grown), err
	}
	return model, "nothing", nil
}

func TestWriterAgainstModel(t *testing.T) {
	for i, s := range shapes {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(i) + 1000
			dir := t.TempDir()
			file, model, backing := s.make(t, dir, seed)
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			want, rng := s.record(), rand.New(rand.NewPCG(seed, 3))
			for round := range 4 {
				w, err := qcow2.OpenWriter(diskFile{f}, want, backingReader(t, backing))
				if err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				for n := range 150 {
					var what string
					if model, what, err = step(rng, w, s, model, 2*s.size); err != nil {
						t.Fatalf("seed %d, round %d, step %d, %s: %v", seed, round, n, what, err)
					}
					if n%50 == 49 {
						sameBytes(t, fmt.Sprintf("seed %d, round %d, step %d, %s", seed, round, n, what), readAll(t, w, backing), model)
					}
				}
				if err := w.Close(); err != nil {
					t.Fatalf("seed %d: close: %v", seed, err)
				}
				want.VirtualSize = int64(len(model))
				check(t, file)
				sameBytes(t, fmt.Sprintf("seed %d, round %d, opened again", seed, round), readAll(t, open(t, file, want), backing), model)
			}
			sameBytes(t, fmt.Sprintf("seed %d, as QEMU reads it", seed), toRaw(t, file), model)
		})
	}
}

func TestGrowAlone(t *testing.T) {
	for _, c := range []struct {
		name    string
		shape   shape
		to      int64
		backing int64
	}{
		{"same L1", shape{size: 1 << 20, cluster: 65536}, 3 << 20, 0},
		{"L1 in place", shape{size: 1 << 20, cluster: 4096}, 1 << 30, 0},
		{"L1 moves", shape{size: 1 << 20, cluster: 512}, 1 << 30, 0},
		{"64 TiB", shape{size: 1 << 20, cluster: 65536}, 64 << 40, 0},
		{"longer backing", shape{size: 1 << 20, cluster: 65536, backing: 5 << 20}, 9 << 20, 5 << 20},
		{"longer backing, extended L2", shape{size: 1 << 20, cluster: 65536, ext: true, backing: 5 << 20}, 9 << 20, 5 << 20},
		{"shorter backing, odd end", shape{size: 1<<20 + 512, cluster: 65536, backing: 1 << 20}, 9 << 20, 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			if testing.Short() && c.to == 1<<30 {
				t.Skip("reads a gigabyte, which takes long with the race detector")
			}
			file, model, backing := c.shape.make(t, t.TempDir(), 4)
			f, err := os.OpenFile(file, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			want := c.shape.record()
			for range 2 { // the repeat converges
				if err := qcow2.Grow(diskFile{f}, want, c.to, c.backing); err != nil {
					t.Fatal(err)
				}
			}
			want.VirtualSize = c.to
			check(t, file)
			r := open(t, file, want)
			if c.to > 1<<30 {
				if e, err := r.Extent(0); err != nil || e.Length != c.to || e.Kind != diskfmt.Zero {
					t.Fatalf("Extent(0) = %+v, %v; want %d zero bytes", e, err, c.to)
				}
				return
			}
			sameBytes(t, "grown", readAll(t, r, backing), append(model, make([]byte, c.to-int64(len(model)))...))
		})
	}
	file, _, _ := shape{size: 1<<20 + 512, cluster: 65536, backing: 2 << 20}.make(t, t.TempDir(), 4)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rec := shape{size: 1<<20 + 512, cluster: 65536, backing: 2 << 20}.record()
	if err := qcow2.Grow(diskFile{f}, rec, 4<<20, 2<<20); !errors.Is(err, errs.Unsupported) {
		t.Errorf("an end inside a cluster of the longer backing: got %v, want %v", err, errs.Unsupported)
	}
	for _, to := range []int64{1 << 20, 1<<20 + 513, 65 << 40} {
		if err := qcow2.Grow(diskFile{f}, rec, to, 2<<20); !errors.Is(err, errs.Invalid) {
			t.Errorf("Grow to %d: got %v, want %v", to, err, errs.Invalid)
		}
	}
	open(t, file, rec)
}

func TestOverlayIsUsableByQEMU(t *testing.T) {
	s := shape{size: 8 << 20, cluster: 65536, backing: 5 << 20}
	file, model, backing := s.make(t, t.TempDir(), 11)
	qemuIO(t, file, "write -P 9 1M 1M", "write -P 8 7M 4k")
	for i := range 1 << 20 {
		model[1<<20+i] = 9
	}
	for i := range 4096 {
		model[7<<20+i] = 8
	}
	check(t, file)
	sameBytes(t, "by QEMU", toRaw(t, file), model)
	sameBytes(t, "by us", readAll(t, open(t, file, s.record()), backing), model)
}

func TestWriterRefuses(t *testing.T) {
	dir := t.TempDir()
	v2 := filepath.Join(dir, "v2")
	tool(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", v2, "1M")
	snap := filepath.Join(dir, "snap")
	tool(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", snap, "1M")
	tool(t, nil, "qemu-img", "snapshot", "-c", "a", snap)
	for _, file := range []string{v2, snap} {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := qcow2.OpenWriter(diskFile{f}, diskfmttest.Qcow2(1<<20, 65536), nil); !errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: got %v, want %v", filepath.Base(file), err, errs.Unsupported)
		}
	}
	m := &memFile{}
	if err := qcow2.Create(m, qcow2.CreateOptions{VirtualSize: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	w, err := qcow2.OpenWriter(m, diskfmttest.Qcow2(1<<20, 65536), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(m.B)
	for _, c := range []struct{ off, n int64 }{{-1, 1}, {1 << 20, 1}, {1<<20 - 1, 2}, {1 << 62, 1}} {
		if _, err := w.WriteAt(make([]byte, c.n), c.off); !errors.Is(err, errs.Invalid) {
			t.Errorf("WriteAt(%d bytes, %d): got %v, want %v", c.n, c.off, err, errs.Invalid)
		}
		if err := w.Discard(c.off, c.n); !errors.Is(err, errs.Invalid) {
			t.Errorf("Discard(%d, %d): got %v, want %v", c.off, c.n, err, errs.Invalid)
		}
	}
	if err := w.Close(); err != nil || !bytes.Equal(before, m.B) {
		t.Errorf("a writer that wrote nothing changed the image (close: %v)", err)
	}
}

func TestConvertEqualsItsSource(t *testing.T) {
	for _, c := range []struct {
		cluster int64
		ext     bool
		size    int64
	}{{65536, false, 24 << 20}, {512, false, 3 << 20}, {4096, false, 9<<20 + 512}, {2 << 20, false, 24 << 20}, {65536, true, 24 << 20}} {
		t.Run(fmt.Sprintf("%d-%v", c.cluster, c.ext), func(t *testing.T) {
			v := variant{cluster: 65536, size: c.size, convert: "-c"}
			src, rec := v.make(t, 17)
			ref := toRaw(t, src)
			file := filepath.Join(t.TempDir(), "out.qcow2")
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			var last int64
			err = qcow2.Convert(context.Background(), f, open(t, src, rec),
				qcow2.CreateOptions{VirtualSize: c.size, ClusterSize: c.cluster, ExtendedL2: c.ext}, func(done int64) {
					if done <= last {
						t.Errorf("progress went from %d to %d", last, done)
					}
					last = done
				})
			if err != nil || last != c.size {
				t.Fatalf("Convert: %v, progress ended at %d of %d", err, last, c.size)
			}
			check(t, file)
			tool(t, nil, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", src, file)
			want := diskfmttest.Qcow2(c.size, c.cluster)
			want.ExtendedL2 = c.ext
			sameBytes(t, "converted", readAll(t, open(t, file, want), nil), ref)
		})
	}
}

func TestStreamWriterTakesAnyPieces(t *testing.T) {
	const size = 6 << 20
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 5))
		cluster := int64(512) << rng.IntN(8)
		m := &memFile{}
		s, err := qcow2.NewStreamWriter(m, qcow2.CreateOptions{VirtualSize: size, ClusterSize: cluster})
		if err != nil {
			t.Fatal(err)
		}
		var model []byte
		for len(model) < size-1<<20 {
			n := 1 + rng.IntN(300<<10)
			if rng.IntN(2) == 0 {
				if err := s.Zero(int64(n)); err != nil {
					t.Fatal(err)
				}
				model = append(model, make([]byte, n)...)
				continue
			}
			p := make([]byte, n)
			for i := range p[:n/2] {
				p[i] = byte(rng.Uint32())
			}
			if _, err := s.Write(p); err != nil {
				t.Fatal(err)
			}
			model = append(model, p...)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		model = append(model, make([]byte, size-len(model))...)
		r, err := qcow2.Open(m, int64(len(m.B)), diskfmttest.Qcow2(size, cluster))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		sameBytes(t, fmt.Sprintf("seed %d, clusters of %d", seed, cluster), readAll(t, r, nil), model)
		if seed < 8 {
			file := filepath.Join(t.TempDir(), "s.qcow2")
			if err := os.WriteFile(file, m.B, 0o600); err != nil {
				t.Fatal(err)
			}
			check(t, file)
		}
	}
}

func TestConvertRefusesWhatALayerBelowHolds(t *testing.T) {
	m := &memFile{}
	if err := qcow2.Create(m, qcow2.CreateOptions{VirtualSize: 1 << 20, BackingName: "b", BackingFormat: diskfmt.Raw}); err != nil {
		t.Fatal(err)
	}
	src, err := qcow2.Open(m, int64(len(m.B)), diskfmttest.Overlay(1<<20, 65536, "b", diskfmt.Raw))
	if err != nil {
		t.Fatal(err)
	}
	err = qcow2.Convert(context.Background(), &memFile{}, src, qcow2.CreateOptions{VirtualSize: 1 << 20}, nil)
	if !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v, want %v", err, errs.Invalid)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := backingReader(t, make([]byte, 1<<20))
	if err := qcow2.Convert(ctx, &memFile{}, r, qcow2.CreateOptions{VirtualSize: 1 << 20}, nil); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
}

func TestWritersAndReadersSideBySide(t *testing.T) {
	const part, parts = 1 << 20, 4
	s := shape{size: parts * part, cluster: 65536, backing: 3 << 20}
	file, model, backing := s.make(t, t.TempDir(), 21)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := qcow2.OpenWriter(diskFile{f}, s.record(), backingReader(t, backing))
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range parts {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 22))
			mine := model[i*part : (i+1)*part]
			for n := range 100 {
				off := rng.IntN(part - 8192)
				p := mine[off : off+1+rng.IntN(8191)]
				for j := range p {
					p[j] = byte(rng.Uint32())
				}
				if _, err := w.WriteAt(p, int64(i*part+off)); err != nil {
					t.Errorf("part %d: %v", i, err)
					return
				}
				got := make([]byte, len(p))
				if _, err := w.ReadAt(got, int64(i*part+off)); err != nil || !bytes.Equal(got, p) {
					t.Errorf("part %d, write %d: read back differs (%v)", i, n, err)
					return
				}
				if n%30 == 29 {
					if err := w.Sync(); err != nil {
						t.Errorf("part %d: %v", i, err)
					}
				}
			}
		})
	}
	group.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, file)
	r := open(t, file, s.record())
	for range parts {
		group.Go(func() { sameBytes(t, "read at once", readAll(t, r, backing), model) })
	}
	group.Wait()
}

func TestFreedClustersArePunchedAndReused(t *testing.T) {
	const size = 4 << 20
	rec := &recorder{}
	if err := qcow2.Create(&rec.File, qcow2.CreateOptions{VirtualSize: size}); err != nil {
		t.Fatal(err)
	}
	w, err := qcow2.OpenWriter(rec, diskfmttest.Qcow2(size, 65536), nil)
	if err != nil {
		t.Fatal(err)
	}
	fill := bytes.Repeat([]byte{1}, size)
	for round := range 3 {
		if _, err := w.WriteAt(fill, 0); err != nil {
			t.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := w.Discard(0, size); err != nil {
			t.Fatal(err)
		}
		if err := w.Sync(); err != nil {
			t.Fatal(err)
		}
		punched := int64(0)
		for _, e := range rec.Log {
			if e.Kind == crashtest.Zero {
				punched += e.Size
			}
		}
		if want := int64(round+1) * size; punched != want {
			t.Errorf("round %d: %d bytes were punched, want %d", round, punched, want)
		}
	}
	if most := int64(size + 8*65536); int64(len(rec.B)) > most {
		t.Errorf("the file has %d bytes after three rounds, want at most %d", len(rec.B), most)
	}
}
