package blkio

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// newFile returns an empty File of size bytes in a temporary directory.
func newFile(t testing.TB, size int64) *File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "dev"))
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return d
}

// sparseFile returns a File that holds content with holes at its zeroes.
func sparseFile(t testing.TB, content []byte) *File {
	t.Helper()
	d := newFile(t, int64(len(content)))
	write := func(p []byte, off int64) error { _, err := d.WriteAt(p, off); return err }
	if err := DataRuns(content, 0, write, func(int64, int64) error { return nil }); err != nil {
		t.Fatal(err)
	}
	return d
}

func contentOf(t testing.TB, s Source) []byte {
	t.Helper()
	p := make([]byte, s.Size())
	if _, err := s.ReadAt(p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return p
}

// patches returns size bytes, zero but for data in the given runs.
func patches(size int, runs ...[2]int) []byte {
	p := make([]byte, size)
	for _, r := range runs {
		for i := r[0]; i < r[1]; i++ {
			p[i] = byte(1 + i%255)
		}
	}
	return p
}

// holes returns the runs that d does not store.
func holes(t testing.TB, d *File) [][2]int64 {
	t.Helper()
	var h [][2]int64
	for off := int64(0); off < d.Size(); {
		e, err := d.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == diskfmt.Zero {
			h = append(h, [2]int64{e.Offset, e.End()})
		}
		off = e.End()
	}
	return h
}

func TestDataRuns(t *testing.T) {
	const k = 1024
	tests := []struct {
		name    string
		content []byte
		want    [][2]int // data
	}{
		{"empty", nil, nil},
		{"all zero", make([]byte, 200*k), nil},
		{"zero tail of no block", make([]byte, 4097), nil},
		{"all data", patches(200*k, [2]int{0, 200 * k}), [][2]int{{0, 200 * k}}},
		{"short gap stays data", patches(200*k, [2]int{0, 40 * k}, [2]int{100 * k, 200 * k}), [][2]int{{0, 200 * k}}},
		{"64 KiB gap is a hole", patches(200*k, [2]int{0, 40 * k}, [2]int{104 * k, 200 * k}), [][2]int{{0, 40 * k}, {104 * k, 200 * k}}},
		{"gap of 64 KiB without 16 whole blocks", patches(200*k, [2]int{0, 41 * k}, [2]int{105 * k, 200 * k}), [][2]int{{0, 200 * k}}},
		{"short ends are zero", patches(200*k, [2]int{8 * k, 192 * k}), [][2]int{{8 * k, 192 * k}}},
		{"one byte", patches(200*k, [2]int{100*k + 5, 100*k + 6}), [][2]int{{100 * k, 104 * k}}},
		{"last byte of no block", patches(4099, [2]int{4098, 4099}), [][2]int{{4096, 4099}}},
	}
	for _, tt := range tests {
		var got [][2]int
		next := int64(1 << 30)
		data := func(p []byte, off int64) error {
			if off != next {
				t.Errorf("%s: data at %d, want %d", tt.name, off, next)
			}
			next += int64(len(p))
			got = append(got, [2]int{int(off) - 1<<30, int(next) - 1<<30})
			return nil
		}
		zero := func(off, n int64) error {
			if off != next {
				t.Errorf("%s: zero at %d, want %d", tt.name, off, next)
			}
			next += n
			return nil
		}
		if err := DataRuns(tt.content, 1<<30, data, zero); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, tt.want) || next != 1<<30+int64(len(tt.content)) {
			t.Errorf("%s: got %v to %d, want %v", tt.name, got, next-1<<30, tt.want)
		}
	}
}

func TestCopy(t *testing.T) {
	const m = 1 << 20
	tests := []struct {
		name    string
		content []byte
		dst     []byte // what dst holds before
	}{
		{"empty", nil, make([]byte, 4096)},
		{"hole", make([]byte, 20*m), make([]byte, 20*m)},
		{"data", patches(9*m+5, [2]int{0, 9*m + 5}), make([]byte, 12*m)},
		{"data and holes", patches(20*m, [2]int{3 * m, 5 * m}, [2]int{12 * m, 12*m + 1}), make([]byte, 20*m)},
		{"over data", patches(20*m, [2]int{3 * m, 5 * m}), patches(20*m, [2]int{0, 20 * m})},
		{"holes across windows", patches(9*m, [2]int{0, 4*m - 32<<10}, [2]int{4*m + 32<<10, 9 * m}), make([]byte, 9*m)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src, dst := sparseFile(t, tt.content), sparseFile(t, tt.dst)
			var last int64
			if err := Copy(t.Context(), dst, src, func(done int64) { last = done }); err != nil {
				t.Fatal(err)
			}
			if last != src.Size() {
				t.Errorf("progress ended at %d of %d", last, src.Size())
			}
			got := contentOf(t, dst)
			if !bytes.Equal(got[:len(tt.content)], tt.content) {
				t.Error("the copy differs")
			}
			if !bytes.Equal(got[len(tt.content):], tt.dst[len(tt.content):]) {
				t.Error("bytes past the source's end changed")
			}
			if a, b := holes(t, src), holes(t, dst); len(tt.content) == len(tt.dst) && !slices.Equal(a, b) {
				t.Errorf("holes of the source %v, of the copy %v", a, b)
			}
		})
	}
}

// TestCopyFindsZeroes copies a file that stores its zeroes.
func TestCopyFindsZeroes(t *testing.T) {
	content := patches(16<<20, [2]int{5 << 20, 6 << 20})
	src, dst := newFile(t, int64(len(content))), newFile(t, int64(len(content)))
	if _, err := src.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if h := holes(t, src); h != nil {
		t.Fatalf("the source has holes %v", h)
	}
	if err := Copy(t.Context(), dst, unshared{src}, nil); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(contentOf(t, dst), content) {
		t.Error("the copy differs")
	}
	if want, got := [][2]int64{{0, 5 << 20}, {6 << 20, 16 << 20}}, holes(t, dst); !slices.Equal(got, want) {
		t.Errorf("holes %v, want %v", got, want)
	}
}

// unshared hides the descriptor, so that extents are not shared.
type unshared struct{ Source }

// TestCopyRandom copies random patterns over random patterns.
func TestCopyRandom(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 0))
		random := func() []byte {
			p := make([]byte, 9<<20+r.IntN(5000))
			for range r.IntN(30) {
				a := r.IntN(len(p))
				for i := a; i < min(a+r.IntN(300<<10), len(p)); i++ {
					p[i] = byte(r.Uint32())
				}
			}
			return p
		}
		content, before := random(), random()
		src, dst := sparseFile(t, content), sparseFile(t, before)
		if err := dst.Truncate(10 << 20); err != nil {
			t.Fatal(err)
		}
		if err := Copy(t.Context(), dst, src, nil); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contentOf(t, dst)[:len(content)], content) {
			t.Errorf("seed %d: the copy differs", seed)
		}
	}
}

func TestFileZero(t *testing.T) {
	content := patches(1<<20, [2]int{0, 1 << 20})
	d := newFile(t, 0)
	if _, err := d.WriteAt(content, 0); err != nil {
		t.Fatal(err)
	}
	if d.Size() != 1<<20 {
		t.Errorf("size %d after a write that grew the file", d.Size())
	}
	for _, r := range [][2]int64{{0, 0}, {1, 5}, {4095, 8194}, {100 << 10, 400 << 10}, {1<<20 - 3, 3}} {
		if err := d.Zero(r[0], r[1]); err != nil {
			t.Fatalf("Zero(%d, %d): %v", r[0], r[1], err)
		}
		clear(content[r[0] : r[0]+r[1]])
	}
	if !bytes.Equal(contentOf(t, d), content) {
		t.Error("the file differs after Zero")
	}
	for _, r := range [][2]int64{{-1, 2}, {0, -1}, {1 << 20, 1}, {1, 1 << 20}, {1, 1<<63 - 1}} {
		if err := d.Zero(r[0], r[1]); !errors.Is(err, errs.Invalid) {
			t.Errorf("Zero(%d, %d) = %v, want invalid", r[0], r[1], err)
		}
	}
	for _, off := range []int64{-1, 1 << 20} {
		if _, err := d.Extent(off); !errors.Is(err, errs.Invalid) {
			t.Errorf("Extent(%d) = %v, want invalid", off, err)
		}
	}
}

type failSync struct{ n int }

func (f *failSync) Before(e faults.Effect) error {
	if e.Kind == faults.Sync {
		f.n++
		return syscall.EIO
	}
	return nil
}
func (f *failSync) After(_ faults.Effect, err error) error { return err }

func TestSyncIsNeverRetried(t *testing.T) {
	d := newFile(t, 8192)
	inj := &failSync{}
	remove := faults.Install(inj)
	err := d.Sync()
	remove()
	if !errors.Is(err, errs.Unavailable) || !errors.Is(err, syscall.EIO) {
		t.Errorf("failed Sync = %v, want unavailable caused by EIO", err)
	}
	_, werr := d.WriteAt([]byte{1}, 0)
	for name, err := range map[string]error{"Sync": d.Sync(), "WriteAt": werr, "Zero": d.Zero(0, 1), "Truncate": d.Truncate(1)} {
		if !errors.Is(err, syscall.EIO) {
			t.Errorf("%s after a failed Sync = %v, want the first failure", name, err)
		}
	}
	if inj.n != 1 {
		t.Errorf("fsync was called %d times", inj.n)
	}
}

func TestErrorKinds(t *testing.T) {
	for no, want := range map[syscall.Errno]errs.Kind{
		syscall.ENOENT: errs.NotFound, syscall.ENOSPC: errs.NoSpace, syscall.EDQUOT: errs.Quota,
		syscall.EFBIG: errs.NoSpace, syscall.EIO: errs.Unavailable, syscall.ELOOP: errs.Unsafe, syscall.EBADF: errs.Internal,
	} {
		err := Error("op", "x", &os.PathError{Op: "open", Path: "x", Err: no})
		if !errors.Is(err, want) || !errors.Is(err, no) {
			t.Errorf("%v: got %v of kind %v, want %v and the cause", no, err, errs.KindOf(err), want)
		}
	}
	if err := Error("op", "x", nil); err != nil {
		t.Errorf("nil: got %v", err)
	}
}

func TestTooLargeIsWorded(t *testing.T) {
	const want = "op disk: the file system cannot hold so large a file"
	err := Error("op", "disk", &os.PathError{Op: "truncate", Path: "/internal/path", Err: syscall.EFBIG})
	var e *errs.Error
	if !errors.As(err, &e) || err.Error() != want || e.Hint == "" {
		t.Errorf("got %v, want %q with a hint", err, want)
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := bytes.Repeat([]byte{1}, 256<<20) // real pages, and more than caches hold
	clear(p)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		if !IsZero(p) {
			b.Fatal("zeroes are not zero")
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	content := patches(256<<20, [2]int{0, 100 << 20}, [2]int{128 << 20, 200 << 20})
	src := sparseFile(b, content)
	b.SetBytes(172 << 20)
	for b.Loop() {
		dst := newFile(b, src.Size())
		if err := Copy(b.Context(), dst, src, nil); err != nil {
			b.Fatal(err)
		}
		_ = os.Remove(dst.Descriptor().Name())
		dst.Close()
	}
}
