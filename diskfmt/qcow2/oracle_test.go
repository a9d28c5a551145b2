package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/internal/crashtest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*qcow2.Reader)(nil)

// tool runs one of QEMU's tools and returns its output and exit status. A
// status other than 0 fails the test unless it is in ok.
func tool(t testing.TB, ok []int, name string, args ...string) (string, int) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: install qemu-utils", name)
		}
		t.Skipf("%s is missing: install qemu-utils", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	status := 0
	if err != nil {
		ee, isExit := err.(*exec.ExitError)
		if !isExit {
			t.Fatalf("%s: %v", name, err)
		}
		status = ee.ExitCode()
		for _, s := range ok {
			if s == status {
				return string(out), status
			}
		}
		t.Fatalf("%s %s: status %d\n%s", name, strings.Join(args, " "), status, out)
	}
	return string(out), status
}

// check fails unless qemu-img check finds neither errors nor leaks.
func check(t testing.TB, file string) {
	t.Helper()
	if out, _ := tool(t, nil, "qemu-img", "check", "-f", "qcow2", file); !strings.Contains(out, "No errors were found") {
		t.Fatalf("qemu-img check: %s", out)
	}
}

// qemuIO runs qemu-io commands on a qcow2 file.
func qemuIO(t testing.TB, file string, cmds ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	tool(t, nil, "qemu-io", append(args, file)...)
}

// scatter makes qemu-io commands that leave data, zeroes, discards and partly
// written clusters all over a disk of size bytes.
func scatter(seed uint64, size int64, n int) []string {
	rng := rand.New(rand.NewPCG(seed, 1))
	var cmds []string
	for range n {
		length := int64(1+rng.IntN(300)) * 512
		off := rng.Int64N(size-length) / 512 * 512
		switch rng.IntN(6) {
		case 0:
			cmds = append(cmds, fmt.Sprintf("write -z %d %d", off, length))
		case 1:
			cmds = append(cmds, fmt.Sprintf("discard %d %d", off, length))
		default:
			cmds = append(cmds, fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), off, length))
		}
	}
	return cmds
}

func toRaw(t testing.TB, file string) []byte {
	t.Helper()
	out := file + ".raw"
	tool(t, nil, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, out)
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(out)
	return b
}

func openFile(t testing.TB, file string) (*os.File, int64) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

func open(t testing.TB, file string, want diskfmt.Recorded) *qcow2.Reader {
	t.Helper()
	f, size := openFile(t, file)
	r, err := qcow2.Open(f, size, want)
	if err != nil {
		t.Fatalf("Open(%s): %v", filepath.Base(file), err)
	}
	return r
}

// readAll reads the disk by its extents; ranges of kind Backing come from
// backing, and are zero beyond it.
func readAll(t testing.TB, r diskfmt.Mapper, backing []byte) []byte {
	t.Helper()
	out := make([]byte, r.Size())
	for off := int64(0); off < r.Size(); {
		e, err := r.Extent(off)
		if err != nil {
			t.Fatalf("Extent(%d): %v", off, err)
		}
		if e.Offset != off || e.Length <= 0 || e.End() > r.Size() {
			t.Fatalf("Extent(%d) = %+v on a disk of %d bytes", off, e, r.Size())
		}
		switch e.Kind {
		case diskfmt.Data:
			if n, err := r.ReadAt(out[off:e.End()], off); err != nil || n != int(e.Length) {
				t.Fatalf("ReadAt(%d bytes at %d) = %d, %v", e.Length, off, n, err)
			}
		case diskfmt.Backing:
			if off < int64(len(backing)) {
				copy(out[off:e.End()], backing[off:])
			}
		}
		off = e.End()
	}
	return out
}

func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: got %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte 0x%x is 0x%02x, want 0x%02x", what, i, got[i], want[i])
		}
	}
}

type variant struct {
	name    string
	cluster int64
	opts    string // further -o options
	ext     bool
	convert string // options of a conversion of the written image
	size    int64
	bitmap  bool
	snap    bool // internal snapshot in the middle of the writes
	grow    int64
}

func variants() []variant {
	v := []variant{
		{name: "v2", cluster: 65536, opts: "compat=0.10"},
		{name: "v2-zlib", cluster: 65536, opts: "compat=0.10", convert: "-c -o compat=0.10"},
		{name: "refcount1", cluster: 65536, opts: "refcount_bits=1"},
		{name: "refcount2", cluster: 4096, opts: "refcount_bits=2"},
		{name: "refcount8", cluster: 4096, opts: "refcount_bits=8"},
		{name: "refcount32", cluster: 4096, opts: "refcount_bits=32"},
		{name: "refcount64", cluster: 65536, opts: "refcount_bits=64"},
		{name: "lazy", cluster: 65536, opts: "lazy_refcounts=on"},
		{name: "prealloc-metadata", cluster: 65536, opts: "preallocation=metadata"},
		{name: "prealloc-falloc", cluster: 65536, opts: "preallocation=falloc"},
		{name: "prealloc-full", cluster: 65536, opts: "preallocation=full", size: 8 << 20},
		{name: "zlib", cluster: 65536, convert: "-c"},
		{name: "zlib-512", cluster: 512, convert: "-c -o cluster_size=512"},
		{name: "zlib-2M", cluster: 2 << 20, convert: "-c -o cluster_size=2M"},
		{name: "zlib-parallel", cluster: 65536, convert: "-c -W -m 8"},
		{name: "zstd", cluster: 65536, convert: "-c -o compression_type=zstd"},
		{name: "zstd-4k", cluster: 4096, convert: "-c -o compression_type=zstd,cluster_size=4096"},
		{name: "zstd-2M", cluster: 2 << 20, convert: "-c -o compression_type=zstd,cluster_size=2M"},
		{name: "ext-16k", cluster: 16384, opts: "extended_l2=on", ext: true},
		{name: "ext-64k", cluster: 65536, opts: "extended_l2=on", ext: true},
		{name: "ext-2M", cluster: 2 << 20, opts: "extended_l2=on", ext: true},
		{name: "ext-zlib", cluster: 65536, ext: true, convert: "-c -o extended_l2=on"},
		{name: "ext-prealloc", cluster: 65536, opts: "extended_l2=on,preallocation=metadata", ext: true},
		{name: "bitmaps", cluster: 65536, bitmap: true},
		{name: "snapshots", cluster: 65536, snap: true},
		{name: "ext-snapshots", cluster: 65536, opts: "extended_l2=on", ext: true, snap: true},
		{name: "odd-size", cluster: 65536, size: 9<<20 + 512},
		{name: "odd-size-zlib", cluster: 65536, size: 9<<20 + 512, convert: "-c"},
		{name: "grown-512", cluster: 512, size: 4 << 20, grow: 24 << 20},
		{name: "grown-64k", cluster: 65536, grow: 2 << 40 / 1024 / 64},
	}
	for _, c := range []int64{512, 1024, 4096, 16384, 131072, 2 << 20} {
		v = append(v, variant{name: fmt.Sprintf("cluster-%d", c), cluster: c})
	}
	for i := range v {
		if v[i].size == 0 {
			v[i].size = 16 << 20
		}
	}
	return v
}

// make writes the variant's image with QEMU and returns its file and record.
func (v variant) make(t testing.TB, seed uint64) (string, diskfmt.Recorded) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "img.qcow2")
	opts := fmt.Sprintf("cluster_size=%d", v.cluster)
	if v.opts != "" {
		opts += "," + v.opts
	}
	tool(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-o", opts, file, fmt.Sprint(v.size))
	if v.bitmap {
		tool(t, nil, "qemu-img", "bitmap", "--add", "-f", "qcow2", file, "one")
		tool(t, nil, "qemu-img", "bitmap", "--add", "-f", "qcow2", file, "two")
	}
	cmds := scatter(seed, v.size, 120)
	qemuIO(t, file, cmds[:60]...)
	if v.snap {
		tool(t, nil, "qemu-img", "snapshot", "-c", "one", file)
	}
	qemuIO(t, file, cmds[60:90]...)
	if v.snap {
		tool(t, nil, "qemu-img", "snapshot", "-c", "two", file)
	}
	size := v.size
	if v.grow != 0 {
		size = v.grow
		tool(t, nil, "qemu-img", "resize", "-q", "-f", "qcow2", file, fmt.Sprint(size))
	}
	qemuIO(t, file, append(cmds[90:], fmt.Sprintf("write -P 77 %d 512", size-512))...)
	if v.convert != "" {
		args := append([]string{"convert", "-f", "qcow2", "-O", "qcow2"}, strings.Fields(v.convert)...)
		tool(t, nil, "qemu-img", append(args, file, file+".2")...)
		file += ".2"
		qemuIO(t, file, scatter(seed+1, size, 8)...)
	}
	want := diskfmttest.Qcow2(size, v.cluster)
	want.ExtendedL2 = v.ext
	return file, want
}

func TestOpenReadsWhatQEMUWrites(t *testing.T) {
	for i, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			file, want := v.make(t, uint64(i))
			ref := toRaw(t, file)
			r := open(t, file, want)
			sameBytes(t, "by extents", readAll(t, r, nil), ref)
			f, size := openFile(t, file)
			src, rep, err := inspect.Open(t.Context(), f, size, inspect.Limits{})
			if err != nil {
				t.Fatalf("inspect.Open: %v", err)
			}
			if rep.VirtualSize != want.VirtualSize || rep.ClusterSize != want.ClusterSize || rep.ExtendedL2 != v.ext ||
				rep.Backing || rep.DataFile || rep.LeakedClusters != 0 || (rep.Snapshots == 2) != v.snap {
				t.Errorf("inspect.Open reports %+v for a %s image of %d bytes", rep, v.name, want.VirtualSize)
			}
			sameBytes(t, "through inspect", readAll(t, src, nil), ref)
			whole := make([]byte, r.Size())
			if _, err := r.ReadAt(whole, 0); err != nil {
				t.Fatal(err)
			}
			sameBytes(t, "in one read", whole, ref)
			rng := rand.New(rand.NewPCG(uint64(i), 2))
			for range 200 {
				off := rng.Int64N(r.Size())
				p := make([]byte, rng.Int64N(200<<10))
				n, err := r.ReadAt(p, off)
				wantN := min(int64(len(p)), r.Size()-off)
				if int64(n) != wantN || (err != nil && err != io.EOF) || (err == io.EOF) != (n < len(p)) {
					t.Fatalf("ReadAt(%d bytes at %d) = %d, %v; want %d", len(p), off, n, err, wantN)
				}
				sameBytes(t, fmt.Sprintf("%d bytes at %d", n, off), p[:n], ref[off:off+wantN])
			}
		})
	}
}

func TestMapFindsTheBytes(t *testing.T) {
	v := variant{cluster: 65536, size: 16 << 20}
	file, want := v.make(t, 99)
	ref := toRaw(t, file)
	r := open(t, file, want)
	f, _ := openFile(t, file)
	for off := int64(0); off < r.Size(); {
		m, err := r.Map(off)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, m.Length)
		if m.Kind == diskfmt.Data {
			if m.Compressed || m.HostLength != m.Length {
				t.Fatalf("Map(%d) = %+v in an image without compression", off, m)
			}
			if _, err := f.ReadAt(got, m.HostOffset); err != nil {
				t.Fatal(err)
			}
		}
		sameBytes(t, fmt.Sprintf("mapping %+v", m), got, ref[off:m.End()])
		off = m.End()
	}
}

func TestOverlayByQEMU(t *testing.T) {
	dir := t.TempDir()
	base := make([]byte, 8<<20)
	for i := range base {
		base[i] = byte(i>>12) | 1
	}
	if err := os.WriteFile(filepath.Join(dir, "base.raw"), base, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, opts := range []string{"cluster_size=64k", "cluster_size=64k,extended_l2=on"} {
		file := filepath.Join(dir, opts+".qcow2")
		tool(t, nil, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "-o", opts, file, "10M")
		qemuIO(t, file, scatter(5, 10<<20, 30)...)
		want := diskfmttest.Overlay(10<<20, 65536, "base.raw", diskfmt.Raw)
		want.ExtendedL2 = strings.Contains(opts, "extended")
		r := open(t, file, want)
		sameBytes(t, opts, readAll(t, r, base), toRaw(t, file))
		for off := int64(0); ; {
			e, err := r.Extent(off)
			if err != nil {
				t.Fatal(err)
			}
			if e.Kind == diskfmt.Backing {
				if _, err := r.ReadAt(make([]byte, 512), off); !errors.Is(err, errs.Internal) {
					t.Errorf("%s: ReadAt of the layer below at %d: got %v, want %v", opts, off, err, errs.Internal)
				}
				break
			}
			off = e.End()
		}
	}
}

// memFile is a container in memory.
type memFile struct{ crashtest.File }

func inMemory(b []byte) *memFile { return &memFile{crashtest.File{B: b}} }

func (m *memFile) Size() (int64, error) { return int64(len(m.B)), nil }

func TestCreateWritesLittleThatQEMUAccepts(t *testing.T) {
	for _, o := range []qcow2.CreateOptions{
		{VirtualSize: 512, ClusterSize: 512},
		{VirtualSize: 1 << 30},
		{VirtualSize: 100<<20 + 512, ClusterSize: 512},
		{VirtualSize: 20 << 30, ClusterSize: 1024},
		{VirtualSize: 64 << 40},
		{VirtualSize: 64 << 40, ClusterSize: 2 << 20, ExtendedL2: true},
		{VirtualSize: 8 << 40, ClusterSize: 16384},
		{VirtualSize: 3 << 30, BackingName: "base.raw", BackingFormat: diskfmt.Raw},
		{VirtualSize: 3 << 20, BackingName: "base.raw", BackingFormat: diskfmt.Raw, ClusterSize: 512},
		{VirtualSize: 3 << 30, BackingName: "base.raw", BackingFormat: diskfmt.Raw, ExtendedL2: true, ClusterSize: 131072},
	} {
		t.Run(fmt.Sprintf("%d-%d-%v-%s", o.VirtualSize, o.ClusterSize, o.ExtendedL2, o.BackingName), func(t *testing.T) {
			w := &counting{}
			if err := qcow2.Create(w, o); err != nil {
				t.Fatal(err)
			}
			if w.writes != 3 || w.bytes > 8192 {
				t.Errorf("Create made %d writes of %d bytes, want 3 of at most 8192", w.writes, w.bytes)
			}
			cluster := o.ClusterSize
			if cluster == 0 {
				cluster = 65536
			}
			want := diskfmttest.Overlay(o.VirtualSize, cluster, o.BackingName, o.BackingFormat)
			want.ExtendedL2 = o.ExtendedL2
			r, err := qcow2.Open(w, int64(len(w.B)), want)
			if err != nil {
				t.Fatal(err)
			}
			kind := diskfmt.Zero
			if o.BackingName != "" {
				kind = diskfmt.Backing
			}
			if e, err := r.Extent(0); err != nil || e != (diskfmt.Extent{Length: o.VirtualSize, Kind: kind}) {
				t.Errorf("Extent(0) = %+v, %v; want the whole disk as %v", e, err, kind)
			}
			dir := t.TempDir()
			file := filepath.Join(dir, "new.qcow2")
			base := bytes.Repeat([]byte("base"), 1<<19)
			for name, b := range map[string][]byte{"base.raw": base, "new.qcow2": w.B} {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			check(t, file)
			if o.VirtualSize <= 1<<20 {
				return
			}
			qemuIO(t, file, "write -P 3 1M 4k", fmt.Sprintf("write -P 4 %d 512", o.VirtualSize-512))
			check(t, file)
			if o.BackingName != "" {
				p := make([]byte, 4)
				r := open(t, file, want)
				if _, err := r.ReadAt(p, 1<<20); err != nil || !bytes.Equal(p, []byte{3, 3, 3, 3}) {
					t.Errorf("what QEMU wrote reads %v, %v", p, err)
				}
			}
		})
	}
}

type counting struct {
	memFile
	writes int
	bytes  int
}

func (c *counting) WriteAt(p []byte, off int64) (int, error) {
	c.writes++
	c.bytes += len(p)
	return c.memFile.WriteAt(p, off)
}
