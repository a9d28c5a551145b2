package vmdk_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/oracle"
)

// tool runs one of QEMU's tools and returns what it says.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	return oracle.Run(t, "qemu-utils", name, args...)
}

// content returns size bytes with text, noise and zeroes in pieces that end
// anywhere.
func content(size int64) []byte {
	rng := rand.New(rand.NewPCG(uint64(size), 2))
	b := make([]byte, size)
	for off := 0; off < len(b); {
		part := b[off:min(len(b), off+512*(1+rng.IntN(400)))]
		switch rng.IntN(4) {
		case 0:
			for i := range part {
				part[i] = byte(rng.Uint32())
			}
		case 1, 2:
			for i := range part {
				part[i] = "guest data "[i%11] + byte(i>>12)
			}
		}
		off += len(part)
	}
	return b
}

func zero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

func write(t testing.TB, name string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func open(t testing.TB, img []byte) (*inspect.Source, strict.Report) {
	t.Helper()
	s, rep, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatalf("inspect.Open: %v", err)
	}
	return s, rep
}

// same reads the whole of a source in several ways, and compares.
func same(t testing.TB, s *inspect.Source, want []byte) {
	t.Helper()
	if s.Size() != int64(len(want)) {
		t.Fatalf("the size is %d, want %d", s.Size(), len(want))
	}
	got, err := io.ReadAll(io.NewSectionReader(s, 0, s.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("reading all: %v, equal: %v", err, bytes.Equal(got, want))
	}
	for off := int64(0); off < s.Size(); {
		m, err := s.Map(off)
		if err != nil || m.Offset != off || m.Length <= 0 || m.End() > s.Size() {
			t.Fatalf("Map(%d) = %+v, %v", off, m, err)
		}
		p := make([]byte, m.Length)
		if n, err := s.ReadAt(p, off); n < len(p) || err != nil || !bytes.Equal(p, want[off:m.End()]) {
			t.Fatalf("reading the mapping %+v: %d bytes, %v, equal: %v", m, n, err, bytes.Equal(p, want[off:m.End()]))
		}
		if m.Kind == diskfmt.Zero && !zero(p) {
			t.Fatalf("%+v has data", m)
		}
		off = m.End()
	}
	rng := rand.New(rand.NewPCG(1, 3))
	for range 200 {
		off := rng.Int64N(s.Size())
		p := make([]byte, 1+rng.IntN(300_000))
		n, err := s.ReadAt(p, off)
		if k := min(int64(len(p)), s.Size()-off); int64(n) != k || (err == io.EOF) != (k < int64(len(p))) || !bytes.Equal(p[:n], want[off:off+k]) {
			t.Fatalf("reading %d bytes at %d: %d, %v", len(p), off, n, err)
		}
	}
}

const grain = 64 << 10

// Everything that qemu-img can write as one file is read back equal.
func TestWhatQEMUWrites(t *testing.T) {
	sizes := []int64{512, grain, 5<<20 + 512*3, 40 << 20}
	if testing.Short() {
		sizes = sizes[:3]
	}
	for _, size := range sizes {
		for _, opts := range []string{
			"subformat=monolithicSparse", "subformat=monolithicSparse,zeroed_grain=on", "subformat=monolithicSparse,compat6=on",
			"subformat=monolithicSparse,adapter_type=lsilogic", "subformat=monolithicSparse,adapter_type=legacyESX,hwversion=9,toolsversion=10",
			"subformat=monolithicSparse,adapter_type=buslogic", "subformat=streamOptimized", "subformat=streamOptimized,zeroed_grain=on",
			"subformat=streamOptimized,adapter_type=lsilogic,compat6=on", "subformat=monolithicSparse -W -m 8",
		} {
			t.Run(fmt.Sprintf("%d/%s", size, opts), func(t *testing.T) {
				dir := t.TempDir()
				want := content(size)
				in, out := write(t, filepath.Join(dir, "in"), want), filepath.Join(dir, "out.vmdk")
				args := append([]string{"convert", "-t", "unsafe", "-f", "raw", "-O", "vmdk", "-o"}, strings.Fields(opts)...)
				tool(t, "qemu-img", append(args, in, out)...)
				img, err := os.ReadFile(out)
				if err != nil {
					t.Fatal(err)
				}
				s, rep := open(t, img)
				if rep.VirtualSize != size || strings.Contains(opts, "stream") != slices.Contains(rep.Features, "streamOptimized") {
					t.Errorf("the report is %+v", rep)
				}
				same(t, s, want)
			})
		}
	}
}

// Grains that were written again, zeroed and discarded by a guest.
func TestWhatAGuestLeaves(t *testing.T) {
	for _, opts := range []string{"zeroed_grain=on", "zeroed_grain=off"} {
		t.Run(opts, func(t *testing.T) {
			dir := t.TempDir()
			file, flat := filepath.Join(dir, "x.vmdk"), filepath.Join(dir, "flat")
			tool(t, "qemu-img", "create", "-f", "vmdk", "-o", opts, file, "200M")
			args := []string{"-t", "unsafe", "-f", "vmdk"}
			rng := rand.New(rand.NewPCG(7, 7))
			for range 200 {
				off, n := rng.IntN(190<<11)*512, (1+rng.IntN(900))*512
				switch rng.IntN(4) {
				case 0:
					args = append(args, "-c", fmt.Sprintf("write -z %d %d", off/grain*grain, 2*grain))
				default:
					args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), off, n))
				}
			}
			tool(t, "qemu-io", append(args, file)...)
			tool(t, "qemu-img", "convert", "-t", "unsafe", "-f", "vmdk", "-O", "raw", file, flat)
			img, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(flat)
			if err != nil {
				t.Fatal(err)
			}
			s, _ := open(t, img)
			same(t, s, want)
		})
	}
}

// source is a reader of bytes in memory with its holes known.
type source struct{ b []byte }

func (s source) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(s.b).ReadAt(p, off) }
func (s source) Size() int64                             { return int64(len(s.b)) }
func (s source) Extent(off int64) (diskfmt.Extent, error) {
	zeroAt := func(i int64) bool { return zero(s.b[i:min(i+4096, s.Size())]) }
	e := diskfmt.Extent{Offset: off, Kind: diskfmt.Data}
	if zeroAt(off) {
		e.Kind = diskfmt.Zero
	}
	end := off
	for end < s.Size() && zeroAt(end) == (e.Kind == diskfmt.Zero) {
		end = min(end+4096, s.Size())
	}
	e.Length = end - off
	return e, nil
}

func export(t testing.TB, src diskfmt.Reader, o vmdk.Options) []byte {
	t.Helper()
	var out bytes.Buffer
	done := int64(-1)
	err := vmdk.Write(t.Context(), &out, src, o, func(n, total int64) {
		if n < done || total != src.Size() {
			t.Errorf("progress went from %d to %d of %d", done, n, total)
		}
		done = n
	})
	if err != nil || done != src.Size() {
		t.Fatalf("Write: %v, progress ended at %d of %d", err, done, src.Size())
	}
	return out.Bytes()
}

// What is written is read by QEMU and by the strict door, does not depend on the
// number of cores, and leaves zeroes out.
func TestWrite(t *testing.T) {
	for _, size := range []int64{512, grain - 512, grain, 40<<20 + 1536} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			dir := t.TempDir()
			want := content(size)
			img := export(t, source{want}, vmdk.Options{ID: [16]byte{1, 2, 3}, Threads: 3})
			if one := export(t, source{want}, vmdk.Options{ID: [16]byte{1, 2, 3}}); !bytes.Equal(one, img) {
				t.Errorf("three cores wrote another file than one")
			}
			in, out := write(t, filepath.Join(dir, "in"), want), write(t, filepath.Join(dir, "out.vmdk"), img)
			tool(t, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", in, out)
			tool(t, "qemu-img", "check", "-f", "vmdk", out)
			if info := tool(t, "qemu-img", "info", "-f", "vmdk", out); !strings.Contains(info, "create type: streamOptimized") {
				t.Errorf("qemu-img info says %s", info)
			}
			s, rep := open(t, img)
			same(t, s, want)
			var stored int64
			for off := int64(0); off < size; off += grain {
				if !zero(want[off:min(off+grain, size)]) {
					stored += grain
				}
			}
			if rep.DataBytes != min(stored, size) {
				t.Errorf("%d bytes are stored, want %d", rep.DataBytes, min(stored, size))
			}
		})
	}
}

// blind is a source that knows no holes.
type blind struct{ source }

func (b blind) Extent(off int64) (diskfmt.Extent, error) {
	return diskfmt.Extent{Offset: off, Length: b.Size() - off, Kind: diskfmt.Data}, nil
}

func TestWriteSparse(t *testing.T) {
	b := make([]byte, 150<<20)
	b[100<<20] = 1
	img := export(t, source{b}, vmdk.Options{Threads: 2})
	if len(img) > 80<<10 {
		t.Errorf("one byte in 150 MiB of zeroes takes %d bytes", len(img))
	}
	s, _ := open(t, img)
	same(t, s, b)
	if got := export(t, blind{source{b}}, vmdk.Options{Threads: 2}); !bytes.Equal(got, img) {
		t.Errorf("a source that knows no holes gives another file: %d bytes, not %d", len(got), len(img))
	}
}

// overlay says that its second half belongs to a layer below.
type overlay struct{ source }

func (o overlay) Extent(off int64) (diskfmt.Extent, error) {
	half := o.Size() / 2
	if off < half {
		return diskfmt.Extent{Offset: off, Length: half - off, Kind: diskfmt.Data}, nil
	}
	return diskfmt.Extent{Offset: off, Length: o.Size() - off, Kind: diskfmt.Backing}, nil
}

// broken fails to read behind its first MiB.
type broken struct{ source }

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off >= 1<<20 {
		return 0, errs.New(errs.Unavailable, "", "", "the disk is gone")
	}
	return b.source.ReadAt(p, off)
}

// full takes a MiB and then has no room.
type full struct{ n int }

func (f *full) Write(p []byte) (int, error) {
	if f.n += len(p); f.n > 1<<20 {
		return 0, errs.New(errs.NoSpace, "", "", "no room")
	}
	return len(p), nil
}

func TestWriteFails(t *testing.T) {
	src := source{content(8 << 20)}
	noise := make([]byte, 8<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		w    io.Writer
		src  diskfmt.Reader
		o    vmdk.Options
		want errs.Kind
	}{
		{"layer below", t.Context(), io.Discard, overlay{src}, vmdk.Options{}, errs.Invalid},
		{"empty", t.Context(), io.Discard, source{}, vmdk.Options{}, errs.Invalid},
		{"adapter", t.Context(), io.Discard, src, vmdk.Options{Adapter: "\"\nparentCID"}, errs.Invalid},
		{"level", t.Context(), io.Discard, src, vmdk.Options{Level: 10}, errs.Invalid},
		{"threads", t.Context(), io.Discard, src, vmdk.Options{Threads: -1}, errs.Invalid},
		{"unreadable source", t.Context(), io.Discard, broken{src}, vmdk.Options{Threads: 2}, errs.Unavailable},
		{"full target", t.Context(), &full{}, source{noise}, vmdk.Options{Threads: 2}, errs.NoSpace},
		{"cancelled", cancelled, io.Discard, src, vmdk.Options{}, errs.Cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := vmdk.Write(c.ctx, c.w, c.src, c.o, nil); !errors.Is(err, c.want) {
				t.Errorf("Write: got %v, want %v", err, c.want)
			}
		})
	}
}

// Several goroutines read one source, each in its own order.
func TestConcurrentReads(t *testing.T) {
	want := make([]byte, 100<<20)
	for i := int64(0); i < 300; i++ {
		copy(want[i*331<<10:], fmt.Sprintf("piece %d of the guest's disk", i))
	}
	s, _ := open(t, export(t, source{want}, vmdk.Options{Threads: 2}))
	var wg sync.WaitGroup
	for k := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(k, 5))
			for range 300 {
				off := rng.Int64N(300) * 331 << 10
				p := make([]byte, grain)
				if _, err := s.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+grain]) {
					t.Errorf("reading at %d: %v", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
