package vdi_test

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

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vdi"
	"github.com/tarn-storage/tarn/diskfmt/vdi/inspect"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/oracle"
)

const mib = 1 << 20

var options = vdi.Options{ID: [16]byte([]byte("0123456789abcdef")), Change: [16]byte([]byte("the last change."))}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	return oracle.Run(t, "qemu-utils", name, args...)
}

// disk is a Reader whose extents are given; what is not Data is zero.
type disk struct {
	b    []byte
	kind func(block int64) diskfmt.ExtentKind // for each 64 KiB
}

func (d disk) Size() int64 { return int64(len(d.b)) }
func (d disk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(d.b).ReadAt(p, off)
}
func (d disk) Extent(off int64) (diskfmt.Extent, error) {
	const unit = 64 << 10
	return diskfmt.Extent{Offset: off, Length: min(unit-off%unit, d.Size()-off), Kind: d.kind(off / unit)}, nil
}

// scattered makes a disk of size bytes of which about a third is data.
func scattered(seed uint64, size int) disk {
	rng := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, size)
	data := map[int64]bool{}
	for off := 0; off < size; off += 64 << 10 {
		if rng.IntN(24) == 0 || off/mib%3 == 1 {
			data[int64(off/(64<<10))] = true
			for i := off; i < min(off+64<<10, size); i += 8 {
				b[i] = byte(1 + rng.IntN(255))
			}
		}
	}
	return disk{b, func(i int64) diskfmt.ExtentKind {
		if data[i] {
			return diskfmt.Data
		}
		return diskfmt.Zero
	}}
}

func write(t testing.TB, src diskfmt.Reader) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := vdi.Write(t.Context(), &out, src, options, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := vdi.Size(t.Context(), src, options); err != nil || n != int64(out.Len()) {
		t.Errorf("Size = %d, %v; Write wrote %d", n, err, out.Len())
	}
	return out.Bytes()
}

func save(t testing.TB, name string, b []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func toRaw(t testing.TB, file string) []byte {
	t.Helper()
	raw := file + ".raw"
	tool(t, "qemu-img", "convert", "-f", "vdi", "-O", "raw", file, raw)
	b, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t testing.TB, img []byte) (*inspect.Source, strict.Report) {
	t.Helper()
	s, rep, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return s, rep
}

// What is written is read the same by QEMU and by the strict door.
func TestWriteIsReadByQEMU(t *testing.T) {
	for seed, size := range []int{512, 64 << 10, mib - 512, mib, mib + 512, 9*mib + 3*512, 40 * mib} {
		src := scattered(uint64(seed), size)
		img := write(t, src)
		file, raw := save(t, "out.vdi", img), save(t, "in.raw", src.b)
		if out := tool(t, "qemu-img", "check", "-f", "vdi", file); !strings.Contains(out, "No errors were found") {
			t.Errorf("%d bytes: qemu-img check: %s", size, out)
		}
		tool(t, "qemu-img", "compare", "-f", "vdi", "-F", "raw", file, raw)
		if got := toRaw(t, file); len(got) != size {
			t.Errorf("%d bytes: QEMU reads %d", size, len(got))
		}
		s, rep := open(t, img)
		if rep.VirtualSize != int64(size) || !bytes.Equal(doortest.Contents(t, s, img), src.b) {
			t.Errorf("%d bytes: the strict door reads it differently: %+v", size, rep)
		}
		if again := write(t, src); !bytes.Equal(again, img) {
			t.Errorf("%d bytes: the same disk made another image", size)
		}
	}
}

func TestZeroBlocksAreNotStored(t *testing.T) {
	src := disk{make([]byte, 8*mib), func(i int64) diskfmt.ExtentKind {
		if i == 5*16+3 {
			return diskfmt.Data
		}
		return diskfmt.Zero
	}}
	img := write(t, src)
	if s, rep := open(t, img); rep.DataBytes != mib {
		t.Errorf("%d bytes are stored, want 1 MiB", rep.DataBytes)
	} else if e, err := s.Extent(5 * mib); err != nil || e != (diskfmt.Extent{Offset: 5 * mib, Length: mib, Kind: diskfmt.Data}) {
		t.Errorf("Extent(5 MiB) = %+v, %v", e, err)
	}
	if len(img) != 2*mib {
		t.Errorf("the image has %d bytes, want 2 MiB", len(img))
	}
}

func TestWriteRefuses(t *testing.T) {
	data := scattered(1, 3*mib)
	backed := disk{make([]byte, mib), func(int64) diskfmt.ExtentKind { return diskfmt.Backing }}
	for _, row := range []struct {
		name string
		src  diskfmt.Reader
		o    vdi.Options
		want string
	}{
		{"no disk", disk{}, options, "no bytes"},
		{"no identifiers", data, vdi.Options{ID: options.ID}, "identifiers"},
		{"a layer below", backed, options, "layer below"},
	} {
		err := vdi.Write(t.Context(), io.Discard, row.src, row.o, nil)
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %v about %q", row.name, err, errs.Invalid, row.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := vdi.Write(ctx, io.Discard, data, options, nil); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
	full := errors.New("no space")
	for n := range 4 {
		if err := vdi.Write(t.Context(), &failing{n, full}, data, options, nil); !errors.Is(err, full) {
			t.Errorf("write %d fails: got %v, want %v", n, err, full)
		}
	}
}

type failing struct {
	left int
	err  error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.left--; f.left < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func TestProgress(t *testing.T) {
	src, last := scattered(3, 5*mib), int64(0)
	err := vdi.Write(t.Context(), io.Discard, src, options, func(done, total int64) {
		if done < last || total != 5*mib {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	})
	if err != nil || last != 5*mib {
		t.Errorf("progress ended at %d (%v)", last, err)
	}
}

// Every kind of image that qemu-img can write is accepted and read back equal.
func TestImagesOfQEMU(t *testing.T) {
	for _, static := range []string{"off", "on"} {
		for seed, size := range []int{512, mib - 512, mib, 7*mib + 512, 33 * mib} {
			name := fmt.Sprintf("static=%s, %d bytes", static, size)
			src := scattered(uint64(100+seed), size)
			raw, file := save(t, "in.raw", src.b), filepath.Join(t.TempDir(), "q.vdi")
			tool(t, "qemu-img", "convert", "-f", "raw", "-O", "vdi", "-o", "static="+static, raw, file)
			img, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			s, rep := open(t, img)
			if rep.VirtualSize != int64(size) || !bytes.Equal(doortest.Contents(t, s, img), src.b) {
				t.Errorf("%s: reads differently: %+v", name, rep)
			}
			if want := map[string]string{"off": "dynamic", "on": "static"}[static]; rep.Features[0] != want {
				t.Errorf("%s: reported as %v", name, rep.Features)
			}
		}
	}
}

// Blocks written in any order, grown by QEMU in place.
func TestImageWrittenInDisorder(t *testing.T) {
	file := filepath.Join(t.TempDir(), "q.vdi")
	tool(t, "qemu-img", "create", "-f", "vdi", file, "16M")
	tool(t, "qemu-io", "-f", "vdi", "-c", "write -P 9 9M 512", "-c", "write -P 3 3M 64k", "-c", "write -P 4 4M 1M", "-c", "write -P 15 15M 1M", "-c", "write -P 1 700k 2M", file)
	img, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if s, _ := open(t, img); !bytes.Equal(doortest.Contents(t, s, img), toRaw(t, file)) {
		t.Error("reads differently from qemu-img convert")
	}
}
