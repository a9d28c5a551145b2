package vhdx_test

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
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/blocks/blockstest"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhdx"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/inspect"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/oracle"
)

var ids = vhdx.Options{ID: [16]byte{1}, FileWrite: [16]byte{2}, DataWrite: [16]byte{3}}

// qemu runs one of QEMU's tools and returns its output.
func qemu(t testing.TB, name string, args ...string) string {
	t.Helper()
	return oracle.Run(t, "qemu-utils", name, args...)
}

// create writes src to a sparse file and returns it.
func create(t testing.TB, src diskfmt.Reader) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := vhdx.Write(t.Context(), &holes{f: f}, src, ids, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

// holes leaves zeroes out, and makes the file long enough.
type holes struct {
	f   *os.File
	off int64
}

func (h *holes) Write(p []byte) (int, error) {
	at := h.off
	h.off += int64(len(p))
	if bytes.Count(p, []byte{0}) == len(p) {
		return len(p), h.f.Truncate(h.off)
	}
	return h.f.WriteAt(p, at)
}

// raw writes the bytes of src to a sparse file and returns its name.
func raw(t testing.TB, src blockstest.Disk) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(src.Bytes); err != nil {
		t.Fatal(err)
	}
	for _, p := range src.Pieces {
		b := make([]byte, p.Length)
		if _, err := src.ReadAt(b, p.Offset); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, p.Offset); err != nil {
			t.Fatal(err)
		}
	}
	return f.Name()
}

func source(t testing.TB, f *os.File) (*inspect.Source, strict.Report) {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	s, rep, err := inspect.Open(t.Context(), f, st.Size(), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return s, rep
}

// same fails unless got has the bytes of want, and says of zeroes where want has
// no data that they are zero. Blocks of data are compared in full.
func same(t *testing.T, got diskfmt.Mapper, want blockstest.Disk) {
	t.Helper()
	if got.Size() != want.Bytes {
		t.Fatalf("%d bytes, want %d", got.Size(), want.Bytes)
	}
	for off := int64(0); off < got.Size(); {
		m, err := got.Map(off)
		if err != nil || m.Offset != off || m.Length <= 0 || m.End() > got.Size() {
			t.Fatalf("Map(%d) = %+v, %v", off, m, err)
		}
		if e, err := want.Extent(off); m.Kind == diskfmt.Zero && (err != nil || e.Kind != diskfmt.Zero || e.Length < m.Length) {
			t.Fatalf("%+v holds data of the source", m)
		}
		if m.Kind == diskfmt.Data {
			a, b := make([]byte, m.Length), make([]byte, m.Length)
			_, err := got.ReadAt(a, off)
			_, err2 := want.ReadAt(b, off)
			if err != nil || err2 != nil || !bytes.Equal(a, b) {
				t.Fatalf("%+v differs from the source: %v, %v", m, err, err2)
			}
		}
		off = m.End()
	}
}

func virtualSize(t testing.TB, name string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	out := qemu(t, "qemu-img", "info", "--output", "json", "-f", "vhdx", name)
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// The sizes are of each size of blocks; from 4 GiB on entries of sector bitmaps
// lie between the others.
func TestWriteIsReadByAll(t *testing.T) {
	for _, size := range []int64{512, 1000448, 8 << 20, 8<<20 + 512, 100<<20 - 512, 1 << 30, 1<<30 + 512, 4<<30 + 512, 13 << 30, 100<<30 + 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			src := blockstest.Scattered(size, 4)
			f := create(t, src)
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			if n, err := vhdx.Size(t.Context(), src, ids); err != nil || n != st.Size() {
				t.Errorf("Size = %d, %v; %d were written", n, err, st.Size())
			}
			s, _ := source(t, f)
			same(t, s, src)
			if got := virtualSize(t, f.Name()); got != size {
				t.Errorf("qemu-img sees %d bytes, want %d", got, size)
			}
			if out := qemu(t, "qemu-img", "check", "-f", "vhdx", f.Name()); !strings.Contains(out, "No errors were found") {
				t.Errorf("qemu-img check: %s", out)
			}
			if size < 200<<20 {
				qemu(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", f.Name(), raw(t, src))
			} else {
				qemuReads(t, f.Name(), src)
			}
		})
	}
}

// qemuReads fails unless qemu-io reads the first and the last sector of each
// piece, and zeroes where there is none: comparing all would take minutes.
func qemuReads(t *testing.T, name string, src blockstest.Disk) {
	t.Helper()
	args := []string{"-r", "-f", "vhdx"}
	for _, p := range src.Pieces {
		for _, off := range []int64{p.Offset, p.End() - 512, (p.Offset / 2) &^ 511} {
			var b [1]byte
			if _, err := src.ReadAt(b[:], off); err != nil {
				t.Fatal(err)
			}
			args = append(args, "-c", fmt.Sprintf("read -P %d %d 512", b[0], off))
		}
	}
	if out := qemu(t, "qemu-io", append(args, name)...); strings.Contains(out, "failed") {
		t.Errorf("qemu-io: %s", out)
	}
}

func TestWriteIsDeterministic(t *testing.T) {
	src := blockstest.Scattered(30<<20, 2)
	var a, b bytes.Buffer
	report, end := blockstest.Progress(t, 30<<20)
	if err := errors.Join(vhdx.Write(t.Context(), &a, src, ids, report), vhdx.Write(t.Context(), &b, src, ids, nil)); err != nil {
		t.Fatal(err)
	}
	end()
	if !bytes.Equal(a.Bytes(), b.Bytes()) {
		t.Error("the same source and options gave other bytes")
	}
}

func TestWriteLargest(t *testing.T) {
	f := create(t, blockstest.Scattered(vhdx.MaxSize, 1))
	if s, _ := source(t, f); s.Size() != vhdx.MaxSize {
		t.Errorf("%d bytes, want %d", s.Size(), int64(vhdx.MaxSize))
	}
	if got := virtualSize(t, f.Name()); got != vhdx.MaxSize {
		t.Errorf("qemu-img sees %d bytes, want %d", got, int64(vhdx.MaxSize))
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		src diskfmt.Reader
		o   vhdx.Options
	}{
		"no whole sectors": {blockstest.Disk{Bytes: 513}, ids},
		"no bytes":         {blockstest.Disk{}, ids},
		"too large":        {blockstest.Disk{Bytes: vhdx.MaxSize + 512}, ids},
		"no ids":           {blockstest.Disk{Bytes: 512}, vhdx.Options{}},
		"backing":          {blockstest.Disk{Bytes: 512, Kind: diskfmt.Backing}, ids},
	} {
		if err := vhdx.Write(t.Context(), io.Discard, row.src, row.o, nil); errs.KindOf(err) != errs.Invalid {
			t.Errorf("%s: got %v, want %s", name, err, errs.Invalid)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := vhdx.Write(ctx, io.Discard, blockstest.Scattered(1<<20, 1), ids, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: got %v", err)
	}
	blockstest.Failures(t, 3, func(w io.Writer) error {
		return vhdx.Write(t.Context(), w, blockstest.Scattered(8<<20, 2), ids, nil)
	})
}

// What qemu-img writes, with each option that changes the layout.
func TestReadsWhatQemuWrites(t *testing.T) {
	for _, size := range []int64{512, 1000448, 30<<20 + 512, 5 << 30} {
		src := blockstest.Scattered(size, 3)
		from := raw(t, src)
		for _, opts := range []string{"subformat=dynamic", "subformat=fixed", "block_size=1M", "block_size=256M", "block_size=2M,log_size=5M",
			"subformat=fixed,block_size=1M", "subformat=fixed,block_size=64M,block_state_zero=off", "subformat=fixed,block_size=1M,block_state_zero=off"} {
			if size > 1<<30 && opts != "block_size=1M" && opts != "subformat=dynamic" {
				continue // they would take their whole size, or much of it
			}
			t.Run(fmt.Sprintf("%d-%s", size, opts), func(t *testing.T) {
				name := filepath.Join(t.TempDir(), "disk.vhdx")
				qemu(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", opts, from, name)
				f, err := os.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				s, rep := source(t, f)
				same(t, s, src)
				if rep.DataBytes > rep.VirtualSize {
					t.Errorf("%d bytes of data in a disk of %d", rep.DataBytes, rep.VirtualSize)
				}
			})
		}
	}
}

// A disk written by a guest through QEMU, with its blocks in no order.
func TestReadsWhatQemuGuestsWrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.vhdx")
	qemu(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", name, "40M")
	rng := rand.New(rand.NewPCG(3, 4))
	args := []string{"-f", "vhdx"}
	for range 20 {
		n := int64(1+rng.IntN(400)) * 512
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), rng.Int64N(40<<20-n)/512*512, n))
	}
	qemu(t, "qemu-io", append(args, name)...)
	qemu(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", name, name+".raw")
	want, err := os.ReadFile(name + ".raw")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := inspect.Open(t.Context(), bytes.NewReader(b), int64(len(b)), strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(doortest.Contents(t, s, b), want) {
		t.Error("the bytes differ from qemu-img's")
	}
}

func TestHolesAreReported(t *testing.T) {
	s, rep := source(t, create(t, blockstest.Disk{Bytes: 100 << 20, Pieces: []diskfmt.Extent{{Offset: 33 << 20, Length: 8 << 20}}}))
	want := []diskfmt.Extent{{Offset: 0, Length: 32 << 20, Kind: diskfmt.Zero}, {Offset: 32 << 20, Length: 16 << 20, Kind: diskfmt.Data}, {Offset: 48 << 20, Length: 52 << 20, Kind: diskfmt.Zero}}
	for _, w := range want {
		if got, err := s.Extent(w.Offset); err != nil || got != w {
			t.Errorf("Extent(%d) = %+v, %v, want %+v", w.Offset, got, err, w)
		}
	}
	if rep.DataBytes != 16<<20 {
		t.Errorf("%d bytes of data, want 16 MiB", rep.DataBytes)
	}
}
