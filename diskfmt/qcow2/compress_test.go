package qcow2_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

// patchwork is size bytes of what compresses well, badly and not at all, with
// holes of any length between.
func patchwork(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 9))
	b := make([]byte, size)
	for off := 0; off < size; {
		n := min(1+rng.IntN(400<<10), size-off)
		p := b[off : off+n]
		switch rng.IntN(5) {
		case 0:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		case 1:
			for i := range p {
				p[i] = "storage"[i%7]
			}
		case 2:
			for i := range p {
				p[i] = byte(rng.Uint32()) & 0x77
			}
		case 3:
			copy(p, fmt.Sprintf("one line at %d\n", off))
		}
		off += n
	}
	return b
}

func TestCompress(t *testing.T) {
	for _, zstd := range []bool{false, true} {
		for seed, size := range []int{1, 512, 65536, 65537, 20 << 20, 30<<20 + 1536, 8 << 20} {
			t.Run(fmt.Sprintf("zstd=%v/%d", zstd, size), func(t *testing.T) {
				dir := t.TempDir()
				plain := patchwork(uint64(seed), size)
				file, ref := filepath.Join(dir, "out.qcow2"), filepath.Join(dir, "ref.raw")
				f, err := os.Create(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				last := int64(0)
				err = qcow2.Compress(t.Context(), f, backingReader(t, plain), qcow2.CompressOptions{Zstd: zstd, Threads: 3}, func(done int64) {
					if done <= last {
						t.Errorf("progress went from %d to %d", last, done)
					}
					last = done
				})
				if err != nil || last > int64(size) {
					t.Fatalf("Compress: %v, progress ended at %d of %d", err, last, size)
				}
				plain = append(plain, make([]byte, -len(plain)&511)...)
				if err := os.WriteFile(ref, plain, 0o600); err != nil {
					t.Fatal(err)
				}
				check(t, file)
				tool(t, nil, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", file, ref)
				in, n := openFile(t, file)
				src, rep, err := inspect.Open(t.Context(), in, n, inspect.Limits{})
				if err != nil || rep.LeakedClusters != 0 {
					t.Fatalf("inspect: %v, %+v", err, rep)
				}
				sameBytes(t, "compressed", readAll(t, src, nil), plain)
				sameBytes(t, "by its record", readAll(t, open(t, file, diskfmttest.Qcow2(int64(len(plain)), 65536)), nil), plain)
			})
		}
	}
}

// TestCompressIsNoLargerThanQEMU compares images of the same content, this
// program's own. The last clusters of data and tables are allowed to be
// partly empty.
func TestCompressIsNoLargerThanQEMU(t *testing.T) {
	dir := t.TempDir()
	ref := filepath.Join(dir, "ref.raw")
	plain, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for range 24 { // and what does not compress among what does
		noise := make([]byte, 1<<20)
		if _, err := rand.NewChaCha8([32]byte{1}).Read(noise); err != nil {
			t.Fatal(err)
		}
		plain = append(append(plain, noise...), bytes.Repeat([]byte("the quick brown fox\n"), 50_000)...)
	}
	plain = append(plain, make([]byte, -len(plain)&511)...)
	if err := os.WriteFile(ref, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		zstd bool
		name string
	}{{false, "zlib"}, {true, "zstd"}} {
		ours, theirs := filepath.Join(dir, "ours"+row.name), filepath.Join(dir, "theirs"+row.name)
		f, err := os.Create(ours)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := qcow2.Compress(t.Context(), f, backingReader(t, plain), qcow2.CompressOptions{Zstd: row.zstd, Threads: 2}, nil); err != nil {
			t.Fatal(err)
		}
		tool(t, nil, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type="+row.name, ref, theirs)
		tool(t, nil, "qemu-img", "check", "-q", "-f", "qcow2", ours)
		tool(t, nil, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", ours, ref)
		a, b := sizeOf(t, ours), sizeOf(t, theirs)
		if t.Logf("%s: %d bytes, qemu-img %d", row.name, a, b); a > b+2*65536 {
			t.Errorf("%s: %d bytes, qemu-img writes %d", row.name, a, b)
		}
	}
}

func sizeOf(t *testing.T, file string) int64 {
	t.Helper()
	fi, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

type brokenReader struct{ diskfmt.Reader }

var errBroken = errors.New("I/O error")

func (b brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > 7<<20 {
		return 0, errBroken
	}
	return b.Reader.ReadAt(p, off)
}

type fullDisk struct {
	memFile
	limit int64
}

func (f *fullDisk) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.limit {
		return 0, io.ErrShortWrite
	}
	return f.memFile.WriteAt(p, off)
}

func TestCompressFails(t *testing.T) {
	src := backingReader(t, patchwork(4, 16<<20))
	if err := qcow2.Compress(t.Context(), &memFile{}, brokenReader{src}, qcow2.CompressOptions{Threads: 2}, nil); !errors.Is(err, errBroken) {
		t.Errorf("a source that fails: got %v, want %v", err, errBroken)
	}
	full := &fullDisk{limit: 1 << 20}
	if err := qcow2.Compress(t.Context(), full, src, qcow2.CompressOptions{Threads: 2}, nil); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a full disk: got %v, want %v", err, io.ErrShortWrite)
	}
	if bytes.HasPrefix(full.B, []byte("QFI")) {
		t.Error("a file that was not completed looks like qcow2")
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := qcow2.Compress(ctx, &memFile{}, src, qcow2.CompressOptions{Threads: 2}, func(int64) { cancel() })
	if !errors.Is(err, errs.Cancelled) {
		t.Errorf("cancelled: got %v, want %v", err, errs.Cancelled)
	}
}
