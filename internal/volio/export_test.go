package volio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/vhd"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

// exports are all ways to write a disk. qemu is what QEMU calls the format.
var exports = []struct {
	o       Options
	qemu    string
	check   bool // qemu-img checks the format
	seeking bool // it cannot be streamed
}{
	{o: Options{Format: diskfmt.Raw}, qemu: "raw"},
	{o: Options{Format: diskfmt.Qcow2}, qemu: "qcow2", check: true},
	{o: Options{Format: diskfmt.Qcow2, Compression: Zlib, Threads: 2}, qemu: "qcow2", check: true, seeking: true},
	{o: Options{Format: diskfmt.Qcow2, Compression: Zstd}, qemu: "qcow2", check: true, seeking: true},
	{o: Options{Format: diskfmt.VMDK, Threads: 2}, qemu: "vmdk", check: true},
	{o: Options{Format: diskfmt.VHD}, qemu: "vpc"},
	{o: Options{Format: diskfmt.VHD, Type: vhd.Fixed}, qemu: "vpc"},
	{o: Options{Format: diskfmt.VHDX}, qemu: "vhdx", check: true},
	{o: Options{Format: diskfmt.VDI}, qemu: "vdi", check: true},
}

func (o Options) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s%s", o.Format, o.Compression, o.Type))
}

// constant is a source of identifiers that repeats.
type constant struct{}

func (constant) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i + 1)
	}
	return len(p), nil
}

// occupied returns a new file with old content.
func occupied(t *testing.T) (*blkio.File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "export")
	if err := os.WriteFile(path, bytes.Repeat([]byte("old"), 100_000), 0o600); err != nil {
		t.Fatal(err)
	}
	return device(t, path), path
}

func TestExport(t *testing.T) {
	for name, row := range chains {
		c := makeChain(t, row.formats, row.sizes)
		v, err := Open(c.layers)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range exports {
			x.o.Rand = constant{}
			what := fmt.Sprintf("%s as %s", name, x.o)
			d, path := occupied(t)
			var done, total int64
			if err := Export(t.Context(), v, Sink{Device: d}, x.o, func(d, n int64) { done, total = d, n }); err != nil || done != total || total == 0 {
				t.Errorf("%s: %v, progress %d of %d", what, err, done, total)
				continue
			}
			compare(t, what, path, x.qemu, c.want)
			if x.check {
				tool(t, "qemu-img", "check", "-q", "-f", x.qemu, path)
			}
			noAllocatedZeroes(t, what, path)
			if x.seeking {
				continue
			}
			var stream bytes.Buffer
			if err := Export(t.Context(), v, Sink{Stream: &stream}, x.o, nil); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, stream.Bytes()) {
				t.Errorf("%s: file and stream differ (%v)", what, err)
			}
		}
	}
}

// compare demands that QEMU reads want from the image at path.
func compare(t *testing.T, what, path, format string, want []byte) {
	t.Helper()
	flat := path + ".raw"
	tool(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, flat)
	if got, err := os.ReadFile(flat); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: QEMU reads %d bytes, %v, or others; want %d", what, len(got), err, len(want))
	}
}

// noAllocatedZeroes demands that no long run of zeroes takes space.
func noAllocatedZeroes(t *testing.T, what, path string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	d := device(t, path)
	for off := int64(0); off < d.Size(); {
		e, err := d.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == diskfmt.Data && e.Length >= 128*kib && blkio.IsZero(got[e.Offset:e.End()]) {
			t.Errorf("%s: the zeroes %+v are allocated", what, e)
		}
		off = e.End()
	}
}

// memory is a disk of bytes without holes.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) Extent(off int64) (diskfmt.Extent, error) {
	return diskfmt.Extent{Offset: off, Length: int64(len(m)) - off, Kind: diskfmt.Data}, nil
}

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

// TestCut exports disks that end before the volume does, as an image's content
// ends before its base, also inside of a sector where the format can have that.
func TestCut(t *testing.T) {
	whole := bytes.Repeat([]byte("tarn"), 300*kib)
	for _, size := range []int{len(whole), 5 * 512, mib + 512, mib + 100, 1} {
		for _, x := range exports {
			d, path := occupied(t)
			err := Export(t.Context(), Cut(memory(whole), int64(size)), Sink{Device: d}, x.o, nil)
			if size%512 != 0 && (x.o.Format == diskfmt.VHD || x.o.Format == diskfmt.VHDX) {
				if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "whole sectors") {
					t.Errorf("%d bytes as %s: got %v, want a refusal that speaks of whole sectors", size, x.o, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%d bytes as %s: %v", size, x.o, err)
				continue
			}
			want := whole[:size:size]
			if x.o.Format == diskfmt.Raw {
				if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
					t.Errorf("%d bytes as raw: got %d bytes, %v", size, len(got), err)
				}
				continue
			}
			compare(t, fmt.Sprintf("%d bytes as %s", size, x.o), path, x.qemu, append(want, make([]byte, -size&511)...))
		}
	}
	c := Cut(memory(whole), 1000)
	p := make([]byte, 20)
	if n, err := c.ReadAt(p, 990); n != 10 || err != io.EOF {
		t.Errorf("reading over the end: got %d, %v, want 10 bytes and io.EOF", n, err)
	}
	if n, err := c.ReadAt(p, 1001); n != 0 || err != io.EOF {
		t.Errorf("reading behind the end: got %d, %v, want io.EOF", n, err)
	}
}

// sparse is a disk too large to make: a few runs of data.
type sparse struct {
	size int64
	at   []int64
}

func (s sparse) Size() int64 { return s.size }

func (s sparse) Extent(off int64) (diskfmt.Extent, error) {
	e := diskfmt.Extent{Offset: off, Length: s.size - off, Kind: diskfmt.Zero}
	for _, a := range s.at {
		switch {
		case off >= a && off < a+4*kib:
			return diskfmt.Extent{Offset: off, Length: a + 4*kib - off, Kind: diskfmt.Data}, nil
		case off < a:
			e.Length = min(e.Length, a-off)
		}
	}
	return e, nil
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0
		for _, a := range s.at {
			if pos := off + int64(i); pos >= a && pos < a+4*kib {
				p[i] = 0xab
			}
		}
	}
	return len(p), nil
}

func TestExportOfAHugeDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "huge")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 16 << 40
	src := sparse{size, []int64{0, 1 << 40, size - 4*kib}}
	if err := Export(t.Context(), src, Sink{Device: device(t, path)}, Options{Format: diskfmt.Qcow2}, nil); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
	tool(t, "qemu-io", "-f", "qcow2", "-r",
		"-c", "read -q -P 0xab 0 4k", "-c", "read -q -P 0 4k 60k",
		"-c", fmt.Sprintf("read -q -P 0xab %d 4k", int64(1<<40)), "-c", fmt.Sprintf("read -q -P 0xab %d 4k", int64(size-4*kib)), path)
}

func TestCancelledExport(t *testing.T) {
	for _, x := range exports {
		ctx, cancel := context.WithCancel(t.Context())
		d, _ := occupied(t)
		before := d.Size()
		err := Export(ctx, memory(bytes.Repeat([]byte{1, 2, 3}, 8*mib)), Sink{Device: d}, x.o, func(int64, int64) { cancel() })
		if !errors.Is(err, errs.Cancelled) || d.Size() != 0 && d.Size() != before {
			t.Errorf("%s: got %v and %d bytes, want errs.Cancelled and none or the %d before", x.o, err, d.Size(), before)
		}
		if err := Export(ctx, sparse{mib, []int64{0}}, Sink{Stream: io.Discard}, x.o, nil); !x.seeking && !errors.Is(err, errs.Cancelled) {
			t.Errorf("%s as a stream: got %v, want errs.Cancelled", x.o, err)
		}
	}
}

// TestRefusedExport demands that what cannot be is refused before anything is
// written.
func TestRefusedExport(t *testing.T) {
	small := sparse{mib, []int64{0}}
	for _, row := range []struct {
		o    Options
		r    diskfmt.Reader
		want string
	}{
		{Options{}, small, "use raw, qcow2, vmdk, vhd, vhdx or vdi"},
		{Options{Format: "qed"}, small, "use raw, qcow2, vmdk, vhd, vhdx or vdi"},
		{Options{Format: diskfmt.Qcow2, Compression: "lzma"}, small, "use zlib or zstd"},
		{Options{Format: diskfmt.VMDK, Compression: Zlib}, small, "only the format qcow2"},
		{Options{Format: diskfmt.VHD, Type: "thin"}, small, "use dynamic or fixed"},
		{Options{Format: diskfmt.Raw, Type: vhd.Fixed}, small, "only the format vhd"},
		{Options{Format: diskfmt.VHD}, sparse{size: 2040<<30 + 512}, "2040 GiB"},
		{Options{Format: diskfmt.VHD}, sparse{size: mib + 1}, "whole sectors"},
		{Options{Format: diskfmt.VHDX}, sparse{size: 64<<40 + 512}, "64 TiB"},
		{Options{Format: diskfmt.VDI}, sparse{size: 1 << 50}, "cannot hold"},
		{Options{Format: diskfmt.VMDK}, sparse{size: 1 << 50}, "cannot be written"},
		{Options{Format: diskfmt.Qcow2, Compression: Zlib}, sparse{size: 1 << 50}, "64 TiB"},
	} {
		d, _ := occupied(t)
		before := d.Size()
		err := Export(t.Context(), row.r, Sink{Device: d}, row.o, nil)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s of %d bytes: got %v, want errs.Invalid and %q", row.o, row.r.Size(), err, row.want)
		}
		if d.Size() != before {
			t.Errorf("%s of %d bytes: the file has %d bytes, want the %d before", row.o, row.r.Size(), d.Size(), before)
		}
	}
	err := Export(t.Context(), small, Sink{Stream: io.Discard}, Options{Format: diskfmt.Qcow2, Compression: Zstd}, nil)
	if e, ok := errors.AsType[*errs.Error](err); !ok || e.Kind != errs.Invalid || !strings.Contains(e.Hint, "write to a file") {
		t.Errorf("compressed qcow2 as a stream: got %v, want errs.Invalid with a hint", err)
	}
}

// odd is a disk whose extents are wrong.
type odd struct {
	memory
	e diskfmt.Extent
}

func (o odd) Extent(int64) (diskfmt.Extent, error) { return o.e, nil }

func TestExportRefusesWrongExtents(t *testing.T) {
	for _, e := range []diskfmt.Extent{
		{Offset: 0, Length: 0, Kind: diskfmt.Data}, {Offset: 0, Length: 0, Kind: diskfmt.Zero},
		{Offset: 512, Length: 512, Kind: diskfmt.Data}, {Offset: 0, Length: mib, Kind: diskfmt.Backing}, {Offset: 0, Length: -1, Kind: diskfmt.Zero},
	} {
		for _, x := range exports {
			d, _ := occupied(t)
			err := Export(t.Context(), odd{make(memory, mib), e}, Sink{Device: d}, x.o, nil)
			if !errors.Is(err, errs.Internal) {
				t.Errorf("%s with the extent %+v: got %v, want errs.Internal", x.o, e, err)
			}
		}
	}
}

// full is a stream that ends for lack of room.
type full struct{ room int }

func (f *full) Write(p []byte) (int, error) {
	if f.room -= len(p); f.room < 0 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}

// TestExportWithoutRoom leaves nothing in a file, and passes on what a stream
// says.
func TestExportWithoutRoom(t *testing.T) {
	noise := make(memory, 8*mib)
	if _, err := rand.NewChaCha8([32]byte{}).Read(noise); err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	for _, x := range exports {
		if !x.seeking {
			if err := Export(t.Context(), noise, Sink{Stream: &full{room: 2 * mib}}, x.o, nil); !errors.Is(err, unix.ENOSPC) {
				t.Errorf("%s into a full stream: got %v, want ENOSPC", x.o, err)
			}
		}
		d, _ := occupied(t)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 2 * mib, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		err := Export(t.Context(), noise, Sink{Device: d}, x.o, nil)
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
			t.Fatal(err)
		}
		if !errors.Is(err, unix.EFBIG) || d.Size() != 0 {
			t.Errorf("%s past the file size limit: got %v and %d bytes, want EFBIG and none", x.o, err, d.Size())
		}
	}
}
