package vhd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/blocks/blockstest"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhd"
	"github.com/tarn-storage/tarn/diskfmt/vhd/inspect"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/oracle"
)

// qemu runs one of QEMU's tools and returns its output.
func qemu(t testing.TB, name string, args ...string) string {
	t.Helper()
	return oracle.Run(t, "qemu-utils", name, args...)
}

func write(t testing.TB, src diskfmt.Reader, o vhd.Options) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := vhd.Write(t.Context(), &out, src, o, nil); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func save(t testing.TB, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// virtualSize asks qemu-img for the size of a VHD.
func virtualSize(t testing.TB, name string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	out := qemu(t, "qemu-img", "info", "--output", "json", "-f", "vpc", name)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// source opens a VHD with the strict door and reads it by its mappings.
func source(t testing.TB, b []byte) (*inspect.Source, strict.Report, []byte) {
	t.Helper()
	s, rep, err := inspect.Open(t.Context(), bytes.NewReader(b), int64(len(b)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return s, rep, doortest.Contents(t, s, b)
}

// The sizes are those of no cylinder, of whole cylinders, of a part of a block
// and larger than Virtual PC's geometry.
func TestWriteKeepsSizeAndBytes(t *testing.T) {
	for _, o := range []vhd.Options{{Type: vhd.Fixed}, {Type: vhd.Dynamic}} {
		for _, size := range []int64{512, 34816, 1000448, 2 << 20, 2<<20 + 512, 4 << 20, 64<<20 - 512, 64 << 20} {
			t.Run(fmt.Sprintf("%s-%d", o.Type, size), func(t *testing.T) {
				src := blockstest.Scattered(size, 5)
				b := write(t, src, o)
				if n, err := vhd.Size(t.Context(), src, o); err != nil || n != int64(len(b)) {
					t.Errorf("Size = %d, %v; %d were written", n, err, len(b))
				}
				if again := write(t, src, o); !bytes.Equal(again, b) {
					t.Error("the same source and options gave other bytes")
				}
				_, rep, got := source(t, b)
				want := blockstest.All(t, src)
				if rep.VirtualSize != size || !bytes.Equal(got, want) {
					t.Errorf("read back %d bytes that are not the source's %d", rep.VirtualSize, size)
				}
				name := save(t, b)
				if got := virtualSize(t, name); got != size {
					t.Errorf("qemu-img sees %d bytes, want %d", got, size)
				}
				qemu(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", name, save(t, want))
			})
		}
	}
}

func TestWriteLargest(t *testing.T) {
	src := blockstest.Scattered(vhd.MaxSize, 3)
	b := write(t, src, vhd.Options{ID: [16]byte{1, 2, 3}, Time: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)})
	if s, _, err := inspect.Open(t.Context(), bytes.NewReader(b), int64(len(b)), strict.Limits{}); err != nil || s.Size() != vhd.MaxSize {
		t.Fatalf("Open: %v", err)
	}
	if got := virtualSize(t, save(t, b)); got != vhd.MaxSize {
		t.Errorf("qemu-img sees %d bytes, want %d", got, int64(vhd.MaxSize))
	}
}

func TestWriteRefuses(t *testing.T) {
	cookie := bytes.NewReader(append([]byte("conectix"), make([]byte, 504)...))
	for name, row := range map[string]struct {
		src  diskfmt.Reader
		o    vhd.Options
		want errs.Kind
	}{
		"no whole sectors":   {blockstest.Disk{Bytes: 513}, vhd.Options{}, errs.Invalid},
		"no bytes":           {blockstest.Disk{}, vhd.Options{}, errs.Invalid},
		"too large":          {blockstest.Disk{Bytes: vhd.MaxSize + 512}, vhd.Options{}, errs.Invalid},
		"unknown type":       {blockstest.Disk{Bytes: 512}, vhd.Options{Type: "differencing"}, errs.Invalid},
		"backing":            {blockstest.Disk{Bytes: 512, Kind: diskfmt.Backing}, vhd.Options{}, errs.Invalid},
		"backing, fixed":     {blockstest.Disk{Bytes: 512, Kind: diskfmt.Backing}, vhd.Options{Type: vhd.Fixed}, errs.Invalid},
		"begins as a footer": {blockstest.Plain{Reader: cookie}, vhd.Options{Type: vhd.Fixed}, errs.Unsafe},
	} {
		err := vhd.Write(t.Context(), io.Discard, row.src, row.o, nil)
		if errs.KindOf(err) != row.want {
			t.Errorf("%s: got %v, want %s", name, err, row.want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := vhd.Write(ctx, io.Discard, blockstest.Scattered(1<<20, 1), vhd.Options{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: got %v", err)
	}
	for _, typ := range []vhd.Type{vhd.Fixed, vhd.Dynamic} {
		blockstest.Failures(t, 3, func(w io.Writer) error {
			return vhd.Write(t.Context(), w, blockstest.Scattered(8<<20, 2), vhd.Options{Type: typ}, nil)
		})
	}
}

func TestProgress(t *testing.T) {
	for _, o := range []vhd.Options{{Type: vhd.Fixed}, {Type: vhd.Dynamic}} {
		report, end := blockstest.Progress(t, 7<<20)
		if err := vhd.Write(t.Context(), io.Discard, blockstest.Scattered(7<<20, 3), o, report); err != nil {
			t.Error(err)
		}
		end()
	}
}

// What qemu-img writes, with each option that changes the layout, is read as
// qemu-img reads it, and what it left out is reported as zeroes.
func TestReadsWhatQemuWrites(t *testing.T) {
	for _, size := range []int64{512, 1000448, 5 << 20, 64 << 20} {
		raw := save(t, blockstest.All(t, blockstest.Scattered(size, 4)))
		for _, opts := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"} {
			t.Run(fmt.Sprintf("%d-%s", size, opts), func(t *testing.T) {
				name := filepath.Join(t.TempDir(), "disk.vhd")
				qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", opts, raw, name)
				compareWithQemu(t, name)
			})
		}
	}
}

func compareWithQemu(t *testing.T, name string) {
	t.Helper()
	back := name + ".raw"
	qemu(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", name, back)
	want, err := os.ReadFile(back)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, rep, got := source(t, b)
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes differ from qemu-img's %d", len(got), len(want))
	}
	if rep.DataBytes > rep.VirtualSize {
		t.Errorf("%d bytes of data in a disk of %d", rep.DataBytes, rep.VirtualSize)
	}
}

// A disk written by a guest through QEMU, with its blocks in no order.
func TestReadsWhatQemuGuestsWrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.vhd")
	qemu(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "force_size=on", name, "40M")
	rng := rand.New(rand.NewPCG(3, 4))
	args := []string{"-f", "vpc"}
	for range 30 {
		n := int64(1+rng.IntN(400)) * 512
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), rng.Int64N(40<<20-n)/512*512, n))
	}
	qemu(t, "qemu-io", append(args, name)...)
	compareWithQemu(t, name)
}

func TestHolesAreReported(t *testing.T) {
	b := write(t, blockstest.Disk{Bytes: 100 << 20, Pieces: []diskfmt.Extent{{Offset: 50 << 20, Length: 512}}}, vhd.Options{})
	s, rep, _ := source(t, b)
	var got []diskfmt.Extent
	for off := int64(0); off < s.Size(); off = got[len(got)-1].End() {
		e, err := s.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e)
	}
	want := []diskfmt.Extent{{Offset: 0, Length: 50 << 20, Kind: diskfmt.Zero}, {Offset: 50 << 20, Length: 2 << 20, Kind: diskfmt.Data}, {Offset: 52 << 20, Length: 48 << 20, Kind: diskfmt.Zero}}
	if fmt.Sprint(got) != fmt.Sprint(want) || rep.DataBytes != 2<<20 {
		t.Errorf("got %v and %d bytes of data, want %v", got, rep.DataBytes, want)
	}
}
