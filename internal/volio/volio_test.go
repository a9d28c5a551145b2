package volio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// tool runs one of QEMU's tools, the oracle of these tests.
func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v; apt-get install qemu-utils", err)
	}
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func device(t *testing.T, path string) *blkio.File {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	d, err := blkio.NewFile(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// scatter writes n runs of random data into the guest of the image at path.
func scatter(t *testing.T, path, format string, size, n int, seed uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	args := []string{"-f", format}
	for range n {
		off, run := r.IntN(size/512)*512, (1+r.IntN(300))*512
		run = min(run, size-off)
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %d %d", 1+r.IntN(250), off, run))
	}
	tool(t, "qemu-io", append(args, path)...)
}

// chain is a made chain, the top first, and its guest's bytes as QEMU reads them.
type chain struct {
	layers []Layer
	want   []byte
}

// makeChain makes a chain of the given formats and sizes, the lowest first.
func makeChain(t *testing.T, formats []diskfmt.Format, sizes []int) chain {
	t.Helper()
	dir := t.TempDir()
	var c chain
	path := ""
	for i, f := range formats {
		name := fmt.Sprintf("layer%d", i)
		args := []string{"create", "-q", "-f", string(f)}
		rec := diskfmttest.Raw(int64(sizes[i]))
		if f == diskfmt.Qcow2 {
			rec = diskfmttest.Qcow2(int64(sizes[i]), 64*kib)
		}
		if i > 0 {
			below := fmt.Sprintf("layer%d", i-1)
			args = append(args, "-b", below, "-F", string(formats[i-1]))
			rec = diskfmttest.Overlay(int64(sizes[i]), 64*kib, below, formats[i-1])
		}
		path = filepath.Join(dir, name)
		tool(t, "qemu-img", append(args, path, fmt.Sprint(sizes[i]))...)
		scatter(t, path, string(f), sizes[i], 12, uint64(i))
		c.layers = append([]Layer{{Recorded: rec}}, c.layers...)
	}
	for i := range c.layers {
		c.layers[i].Device = device(t, filepath.Join(dir, fmt.Sprintf("layer%d", len(formats)-1-i)))
	}
	flat := filepath.Join(dir, "flat")
	tool(t, "qemu-img", "convert", "-f", string(formats[len(formats)-1]), "-O", "raw", path, flat)
	var err error
	if c.want, err = os.ReadFile(flat); err != nil {
		t.Fatal(err)
	}
	return c
}

var chains = map[string]struct {
	formats []diskfmt.Format
	sizes   []int
}{
	"raw":                      {[]diskfmt.Format{diskfmt.Raw}, []int{8 * mib}},
	"qcow2":                    {[]diskfmt.Format{diskfmt.Qcow2}, []int{8 * mib}},
	"odd size":                 {[]diskfmt.Format{diskfmt.Qcow2}, []int{5*mib + 512}},
	"over raw":                 {[]diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2}, []int{8 * mib, 8 * mib}},
	"over a shorter raw":       {[]diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2}, []int{3*mib + 4096, 9 * mib}},
	"over a longer raw":        {[]diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2}, []int{9 * mib, 4 * mib}},
	"three":                    {[]diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2, diskfmt.Qcow2}, []int{6 * mib, 8 * mib, 12 * mib}},
	"short in the middle":      {[]diskfmt.Format{diskfmt.Qcow2, diskfmt.Qcow2, diskfmt.Qcow2}, []int{12 * mib, 4 * mib, 12 * mib}},
	"qcow2 over qcow2, larger": {[]diskfmt.Format{diskfmt.Qcow2, diskfmt.Qcow2}, []int{16 * mib, 40 * mib}},
}

func TestChainsReadAsTheGuestSeesThem(t *testing.T) {
	for name, row := range chains {
		c := makeChain(t, row.formats, row.sizes)
		v, err := Open(c.layers)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if v.Size() != int64(len(c.want)) {
			t.Errorf("%s: size %d, want %d", name, v.Size(), len(c.want))
		}
		got := make([]byte, len(c.want)+5)
		n, err := v.ReadAt(got, 0)
		if n != len(c.want) || err != io.EOF || !bytes.Equal(got[:n], c.want) {
			t.Errorf("%s: ReadAt gave %d bytes, %v, or other bytes", name, n, err)
		}
		checkExtents(t, name, v, c.want)
		digest, err := Digest(t.Context(), v, nil)
		var whole blkio.Content
		for i := 0; i < len(c.want); i += blkio.ChunkSize {
			whole.Chunk(int64(i/blkio.ChunkSize), c.want[i:min(i+blkio.ChunkSize, len(c.want))])
		}
		if want := whole.Sum(int64(len(c.want))); digest != want || err != nil {
			t.Errorf("%s: digest %s, %v, want %s", name, digest, err, want)
		}
	}
}

// checkExtents demands that extents cover the volume with Data and Zero and
// that Zero reads as zeroes.
func checkExtents(t *testing.T, name string, v *Volume, want []byte) {
	t.Helper()
	for off := int64(0); off < v.Size(); {
		e, err := v.Extent(off)
		if err != nil || e.Offset != off || e.Length <= 0 || e.End() > v.Size() || e.Kind != diskfmt.Data && e.Kind != diskfmt.Zero {
			t.Fatalf("%s: extent at %d: %+v, %v", name, off, e, err)
		}
		if e.Kind == diskfmt.Zero && !blkio.IsZero(want[e.Offset:e.End()]) {
			t.Errorf("%s: the extent %+v is not zero", name, e)
		}
		off = e.End()
	}
}

func TestRandomReads(t *testing.T) {
	row := chains["three"]
	c := makeChain(t, row.formats, row.sizes)
	v, err := Open(c.layers)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		off := r.IntN(len(c.want))
		p := make([]byte, min(1+r.IntN(200*kib), len(c.want)-off))
		if n, err := v.ReadAt(p, int64(off)); n != len(p) || err != nil || !bytes.Equal(p, c.want[off:off+n]) {
			t.Fatalf("%d bytes at %d: %d, %v, or other bytes", len(p), off, n, err)
		}
	}
	if _, err := v.ReadAt(make([]byte, 1), v.Size()); err != io.EOF {
		t.Errorf("at the end: got %v, want io.EOF", err)
	}
	if _, err := v.ReadAt(make([]byte, 1), -1); !errors.Is(err, errs.Invalid) {
		t.Errorf("before the start: got %v, want errs.Invalid", err)
	}
}

func TestOpenRefusesAnInconsistentChain(t *testing.T) {
	row := chains["over raw"]
	c := makeChain(t, row.formats, row.sizes)
	other := c.layers[0].Recorded
	other.BackingFmt = diskfmt.Qcow2
	smaller := c.layers[1].Recorded
	smaller.VirtualSize -= 512
	for _, row := range []struct {
		name   string
		layers []Layer
		want   errs.Kind
	}{
		{"none", nil, errs.Internal},
		{"top without its backing", c.layers[:1], errs.Internal},
		{"backing twice", []Layer{c.layers[0], c.layers[1], c.layers[1]}, errs.Internal},
		{"other backing format", []Layer{{c.layers[0].Device, other}, c.layers[1]}, errs.Corrupt},
		{"other backing size", []Layer{c.layers[0], {c.layers[1].Device, smaller}}, errs.Corrupt},
		{"the guest's bytes as a header", []Layer{{c.layers[1].Device, c.layers[0].Recorded}, c.layers[1]}, errs.Corrupt},
	} {
		if _, err := Open(row.layers); !errors.Is(err, row.want) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}

func TestExport(t *testing.T) {
	for name, row := range chains {
		c := makeChain(t, row.formats, row.sizes)
		v, err := Open(c.layers)
		if err != nil {
			t.Fatal(err)
		}
		for _, format := range []diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2} {
			path := filepath.Join(t.TempDir(), "export")
			if err := os.WriteFile(path, bytes.Repeat([]byte("old"), 100_000), 0o600); err != nil {
				t.Fatal(err)
			}
			d := device(t, path)
			var done, total int64
			err := Export(t.Context(), v, Sink{Device: d}, format, func(d, n int64) { done, total = d, n })
			if err != nil || done != total || total != d.Size() {
				t.Errorf("%s as %s: %v, progress %d of %d, the file has %d", name, format, err, done, total, d.Size())
				continue
			}
			checkExport(t, name, path, format, c.want)
			var stream bytes.Buffer
			if err := Export(t.Context(), v, Sink{Stream: &stream}, format, nil); err != nil {
				t.Errorf("%s as %s: %v", name, format, err)
			}
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, stream.Bytes()) {
				t.Errorf("%s as %s: file and stream differ (%v)", name, format, err)
			}
		}
	}
}

func checkExport(t *testing.T, name, path string, format diskfmt.Format, want []byte) {
	t.Helper()
	flat := path
	if format == diskfmt.Qcow2 {
		tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
		flat += ".raw"
		tool(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, flat)
	}
	got, err := os.ReadFile(flat)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s as %s: other bytes than the volume's (%v)", name, format, err)
	}
	d := device(t, path)
	for off := int64(0); format == diskfmt.Raw && off < d.Size(); {
		e, err := d.Extent(off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == diskfmt.Data && e.Length >= 128*kib && blkio.IsZero(want[e.Offset:e.End()]) {
			t.Errorf("%s: the zeroes %+v are allocated", name, e)
		}
		off = e.End()
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
	if err := Export(t.Context(), src, Sink{Device: device(t, path)}, diskfmt.Qcow2, nil); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
	tool(t, "qemu-io", "-f", "qcow2", "-r",
		"-c", "read -q -P 0xab 0 4k", "-c", "read -q -P 0 4k 60k",
		"-c", fmt.Sprintf("read -q -P 0xab %d 4k", int64(1<<40)), "-c", fmt.Sprintf("read -q -P 0xab %d 4k", int64(size-4*kib)), path)
}

func TestCancelledExport(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, format := range []diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2} {
		if err := Export(ctx, sparse{mib, []int64{0}}, Sink{Stream: io.Discard}, format, nil); !errors.Is(err, errs.Cancelled) {
			t.Errorf("%s: got %v, want errs.Cancelled", format, err)
		}
	}
}
