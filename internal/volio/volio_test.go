package volio

import (
	"bytes"
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
