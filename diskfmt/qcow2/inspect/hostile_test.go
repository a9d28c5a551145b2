package inspect_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*inspect.Source)(nil)

var be = binary.BigEndian

// The sound image that the hostile rows start from has clusters of 64 KiB:
// header 0x0, refcount table 0x10000, refcount block 0x20000, L1 0x30000, L2
// 0x40000, data 0x50000 (guest 0) and 0x60000 (guest 0x10000).
const (
	refTable = 0x10000
	refBlock = 0x20000
	l1       = 0x30000
	l2       = 0x40000
	data0    = 0x50000
	data1    = 0x60000
	copied   = 1 << 63
	diskSize = 1 << 20
)

type file struct{ memFile }

func (f *file) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(f.b).ReadAt(p, off) }
func (f *file) Size() (int64, error)                    { return int64(len(f.b)), nil }
func (f *file) Sync() error                             { return nil }
func (f *file) Truncate(n int64) error {
	f.b = append(f.b, make([]byte, max(0, n-int64(len(f.b))))...)[:n]
	return nil
}

func sound(t testing.TB, ext bool) []byte {
	t.Helper()
	f := &file{}
	if err := qcow2.Create(f, qcow2.CreateOptions{VirtualSize: diskSize, ExtendedL2: ext}); err != nil {
		t.Fatal(err)
	}
	want := diskfmttest.Qcow2(diskSize, 65536)
	want.ExtendedL2 = ext
	w, err := qcow2.OpenWriter(f, want, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(bytes.Repeat([]byte("guest"), 26214), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f.b
}

func put64(off int, v uint64) func([]byte) []byte {
	return func(b []byte) []byte { be.PutUint64(b[off:], v); return b }
}
func put32(off int, v uint32) func([]byte) []byte {
	return func(b []byte) []byte { be.PutUint32(b[off:], v); return b }
}
func cut(n int) func([]byte) []byte { return func(b []byte) []byte { return b[:n] } }
func all(fs ...func([]byte) []byte) func([]byte) []byte {
	return func(b []byte) []byte {
		for _, f := range fs {
			b = f(b)
		}
		return b
	}
}

// extension puts a header extension behind the header's 112 bytes.
func extension(typ uint32, data string) func([]byte) []byte {
	return func(b []byte) []byte {
		be.PutUint32(b[112:], typ)
		be.PutUint32(b[116:], uint32(len(data)))
		copy(b[120:], data)
		return b
	}
}

var hostile = []struct {
	name    string
	ext     bool // the sound image has extended L2 entries
	spoil   func([]byte) []byte
	class   string
	says    string // part of the message
	record  bool   // the trusted door refuses it at Open too
	reading bool   // the trusted door refuses it when it reads
}{
	{"empty file", false, cut(0), "EMPTY", "empty", true, false},
	{"one byte", false, cut(1), "FORMAT_MISMATCH", "magic", true, false},
	{"not qcow2", false, put32(0, 0x4b444d56), "FORMAT_MISMATCH", "magic", true, false},
	{"cut in the header", false, cut(80), "TRUNCATED", "80 bytes", true, false},
	{"version 1", false, put32(4, 1), "UNSUPPORTED_VERSION", "version 1", true, false},
	{"version 4", false, put32(4, 4), "UNSUPPORTED_VERSION", "version 4", true, false},
	{"backing file", false, all(put64(8, 0x200), put32(16, 11), func(b []byte) []byte { copy(b[0x200:], "/etc/passwd"); return b }), "EXTERNAL_REFERENCE", "backing file", true, false},
	{"json backing file", false, all(put64(8, 0x200), put32(16, 28), func(b []byte) []byte { copy(b[0x200:], `json:{"driver":"nbd","host"}`); return b }), "EXTERNAL_REFERENCE", "backing file", true, false},
	{"backing file without a name", false, put64(8, 0x200), "EXTERNAL_REFERENCE", "backing file", true, false},
	{"backing format alone", false, extension(0xe2792aca, "raw"), "EXTERNAL_REFERENCE", "backing", true, false},
	{"backing name too long", false, all(put64(8, 0x200), put32(16, 1024)), "CORRUPT", "1024 bytes", true, false},
	{"backing name outside the first cluster", false, all(put64(8, 0xffff), put32(16, 8)), "CORRUPT", "first cluster", true, false},
	{"backing name at 2^64-1", false, all(put64(8, 1<<64-1), put32(16, 1)), "CORRUPT", "first cluster", true, false},
	{"data file", false, put64(72, 4), "EXTERNAL_REFERENCE", "another file", true, false},
	{"data file with a name", false, all(put64(72, 4), extension(0x44415441, "/etc/passwd")), "EXTERNAL_REFERENCE", "another file", true, false},
	{"data file name without the bit", false, extension(0x44415441, "/etc/passwd"), "EXTERNAL_REFERENCE", "data file", true, false},
	{"raw data file without a data file", false, put64(88, 2), "CORRUPT", "0x58", true, false},
	{"dirty", false, put64(72, 1), "DIRTY", "dirty", true, false},
	{"marked as corrupt", false, put64(72, 2), "CORRUPT", "marked", true, false},
	{"unknown feature", false, put64(72, 1<<63), "UNSUPPORTED_FEATURE", "unknown bits", true, false},
	{"AES", false, put32(32, 1), "UNSUPPORTED_FEATURE", "encrypted", true, false},
	{"LUKS", false, put32(32, 2), "UNSUPPORTED_FEATURE", "encrypted", true, false},
	{"cluster bits 8", false, put32(20, 8), "CORRUPT", "cluster_bits", true, false},
	{"cluster bits 63", false, put32(20, 63), "CORRUPT", "cluster_bits", true, false},
	{"cluster bits 2^32-1", false, put32(20, 1<<32-1), "CORRUPT", "cluster_bits", true, false},
	{"refcount order 7", false, put32(96, 7), "CORRUPT", "refcount_order", true, false},
	{"header length 96", false, put32(100, 96), "CORRUPT", "header_length", true, false},
	{"header length 2^32-8", false, put32(100, 1<<32-8), "CORRUPT", "header_length", true, false},
	{"compression type 9", false, all(put64(72, 8), func(b []byte) []byte { b[104] = 9; return b }), "UNSUPPORTED_FEATURE", "compression type 9", true, false},
	{"zstd without its bit", false, func(b []byte) []byte { b[104] = 1; return b }, "CORRUPT", "compression type 1", true, false},
	{"size 0", false, put64(24, 0), "EMPTY", "virtual size", true, false},
	{"size 65 TiB", false, put64(24, 65<<40), "QUOTA", "virtual size", true, false},
	{"size 2^64-512", false, put64(24, 1<<64-512), "QUOTA", "virtual size", true, false},
	{"size beyond L1", false, put64(24, 1<<40), "CORRUPT", "L1 table", true, false},
	{"odd size", false, put64(24, diskSize-1), "CORRUPT", "512", true, false},
	{"L1 of 4 Gi entries", false, put32(36, 1<<32-1), "LIMIT", "L1 table", true, false},
	{"L1 at 0", false, put64(40, 0), "CORRUPT", "L1 table", true, false},
	{"L1 misaligned", false, put64(40, l1+8), "CORRUPT", "L1 table", true, false},
	{"L1 past the end", false, put64(40, 1<<40), "TRUNCATED", "L1 table", true, false},
	{"L1 at 2^64-64K", false, put64(40, 1<<64-65536), "TRUNCATED", "L1 table", true, false},
	{"L1 on the refcount table", false, put64(40, refTable), "OVERLAP", "overlap", true, false},
	{"refcount table at 0", false, put64(48, 0), "CORRUPT", "refcount table", true, false},
	{"refcount table without clusters", false, put32(56, 0), "CORRUPT", "refcount table", true, false},
	{"refcount table of 4 Gi clusters", false, put32(56, 1<<32-1), "LIMIT", "refcount table", true, false},
	{"refcount table past the end", false, put64(48, 1<<50), "TRUNCATED", "refcount table", true, false},
	{"snapshots past the end", false, all(put32(60, 1), put64(64, 1<<50)), "TRUNCATED", "snapshot table", true, false},
	{"snapshots misaligned", false, all(put32(60, 1), put64(64, 8)), "CORRUPT", "snapshot table", true, false},
	{"snapshots on the L2 table", false, all(put32(60, 1), put64(64, l2)), "OVERLAP", "0x40000", true, false},
	{"no snapshots, at an odd place", false, put64(64, data1+512), "CORRUPT", "0x60200", true, false},
	{"4 Gi snapshots", false, all(put32(60, 1<<32-1), put64(64, data1)), "LIMIT", "snapshots", true, false},
	{"extension past the cluster", false, all(put32(112, 0x12345678), put32(116, 1<<32-1)), "CORRUPT", "extension", true, false},
	{"extension twice", false, all(extension(0x12345678, ""), put32(120, 0x12345678)), "CORRUPT", "twice", true, false},
	{"extended L2 in small clusters", false, all(put64(72, 16), put32(20, 13)), "CORRUPT", "extended L2", true, false},
	{"bitmaps of no length", false, put64(88, 1), "CORRUPT", "bitmaps", false, false},

	{"L1 entry reserved bits", false, put64(l1, copied|l2|1), "CORRUPT", "L1 table entry 0", true, false},
	{"L1 entry misaligned", false, put64(l1, copied|l2|0x200), "CORRUPT", "L1 table entry 0", true, false},
	{"L1 entry past the end", false, put64(l1, copied|1<<50), "TRUNCATED", "L1 table entry 0", true, false},
	{"L1 entry on the header", false, put64(l1, copied), "CORRUPT", "L1 table entry 0", true, false},
	{"L1 entry on L1", false, put64(l1, copied|l1), "OVERLAP", "0x30000", true, false},
	{"refcount block past the end", false, put64(refTable, 1<<50), "TRUNCATED", "refcount table entry 0", true, false},
	{"refcount block reserved bits", false, put64(refTable, refBlock|1), "CORRUPT", "refcount table entry 0", true, false},
	{"refcount block on the L2 table", false, put64(refTable, l2), "OVERLAP", "0x40000", true, false},
	{"refcount too low", false, put32(refBlock+10, 0), "CORRUPT", "refcount 0, but 1 references", false, false},
	{"L2 entry reserved bits", false, put64(l2, copied|data0|2), "CORRUPT", "L2 table at 0x40000 entry 0", false, true},
	{"L2 entry misaligned", false, put64(l2, copied|data0|0x200), "CORRUPT", "entry 0", false, true},
	{"L2 entry past the end", false, put64(l2, copied|1<<50), "TRUNCATED", "entry 0: 0x8004000000000000 points to 0x4000000000000, past the end of the file", false, true},
	{"L2 entry at 2^56-64K", false, put64(l2, copied|0x00ffffffffff0000), "TRUNCATED", "entry 0", false, true},
	{"L2 entry COPIED to nowhere", false, put64(l2, copied), "CORRUPT", "no offset", false, true},
	{"data on the L2 table", false, put64(l2, copied|l2), "OVERLAP", "0x40000, where an L2 table lies", false, true},
	{"data on L1", false, put64(l2, copied|l1), "OVERLAP", "0x30000, where metadata lies", false, true},
	{"data on the refcount block", false, put64(l2, copied|refBlock), "OVERLAP", "0x20000, where metadata lies", false, true},
	{"data on data", false, put64(l2, copied|data1), "OVERLAP", "where data lies", false, false},
	{"data cut off", false, cut(data1 + 512), "TRUNCATED", "past the end", false, true},
	{"compressed past the end", false, put64(l2, 1<<62|1<<50), "TRUNCATED", "past the end", false, true},
	{"compressed with COPIED", false, put64(l2, copied|1<<62|data0), "CORRUPT", "COPIED", false, true},
	{"compressed larger than a cluster", false, put64(l2, 1<<62|255<<54|data0), "CORRUPT", "more than a cluster", false, true},
	{"compressed on metadata", false, put64(l2, 1<<62|l1), "OVERLAP", "where metadata lies", false, true},
	{"compressed on data", false, put64(l2, 1<<62|data1), "OVERLAP", "lies already", false, true},
	{"two compressed on the same bytes", false, all(put64(l2, 1<<62|1<<54|data0), put64(l2+8, 1<<62|1<<54|data0)), "OVERLAP", "share bytes", false, true},
	{"two compressed on some bytes", false, all(put64(l2, 1<<62|1<<54|data0), put64(l2+8, 1<<62|1<<54|data0+511)), "OVERLAP", "share bytes", false, true},
	{"subclusters allocated and zero", true, put64(l2+8, 1<<32|1), "CORRUPT", "allocated and zero", false, true},
	{"subclusters without a cluster", true, all(put64(l2, 0), put64(l2+8, 1)), "CORRUPT", "no offset", false, true},
	{"zero flag beside subclusters", true, put64(l2, copied|data0|1), "CORRUPT", "zero flag", false, true},
	{"compressed with subclusters", true, put64(l2, 1<<62|data0), "CORRUPT", "subclusters", false, true},
}

func TestHostileImages(t *testing.T) {
	for _, c := range hostile {
		t.Run(c.name, func(t *testing.T) {
			img := c.spoil(sound(t, c.ext))
			in := bytes.NewReader(img)
			_, rep, err := inspect.Open(context.Background(), in, int64(len(img)), inspect.Limits{})
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Unsafe || e.Class != c.class || !strings.Contains(e.Message, c.says) {
				t.Errorf("inspect: got %v (class %q); want class %s and a message with %q", err, class(err), c.class, c.says)
			}
			if strings.Contains(c.name, "backing file") && !rep.Backing || strings.Contains(c.name, "data file") && !rep.DataFile {
				t.Errorf("the report does not say so: %+v", rep)
			}
			if err != nil && strings.Contains(err.Error(), "passwd") {
				t.Errorf("the error carries a name of the file's: %v", err)
			}
			want := diskfmttest.Qcow2(diskSize, 65536)
			want.ExtendedL2 = c.ext
			r, err := qcow2.Open(in, int64(len(img)), want)
			if c.record != (err != nil) || err != nil && !errors.Is(err, errs.Corrupt) {
				t.Fatalf("qcow2.Open: got %v, want corrupt: %v", err, c.record)
			}
			if err != nil {
				return
			}
			if _, err := r.ReadAt(make([]byte, diskSize), 0); c.reading != (err != nil) || err != nil && !errors.Is(err, errs.Corrupt) {
				t.Errorf("reading through the trusted door: got %v, want corrupt: %v", err, c.reading)
			}
		})
	}
}

func class(err error) string {
	var e *errs.Error
	errors.As(err, &e)
	if e == nil {
		return ""
	}
	return e.Class
}

func TestSoundImageAndLeaksAreAccepted(t *testing.T) {
	for _, ext := range []bool{false, true} {
		img := sound(t, ext)
		rep, err := inspect.Inspect(t.Context(), bytes.NewReader(img), int64(len(img)), inspect.Limits{})
		want := inspect.Report{Version: 3, VirtualSize: diskSize, ClusterSize: 65536, RefcountBits: 16, ExtendedL2: ext, Compression: "zlib", DataClusters: 2}
		if err != nil || rep != want {
			t.Errorf("Inspect = %+v, %v; want %+v", rep, err, want)
		}
		be.PutUint64(img[l2:], 0)
		be.PutUint64(img[l2+8:], 0)
		if ext {
			be.PutUint64(img[l2+16:], 0)
			be.PutUint64(img[l2+24:], 0)
		}
		rep, err = inspect.Inspect(t.Context(), bytes.NewReader(img), int64(len(img)), inspect.Limits{})
		if err != nil || rep.LeakedClusters != 2 {
			t.Errorf("with two leaked clusters: %+v, %v", rep, err)
		}
	}
}

func TestOffsetsOutsideTheDiskAreInvalid(t *testing.T) {
	img := sound(t, false)
	s, _, err := inspect.Open(t.Context(), bytes.NewReader(img), int64(len(img)), inspect.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{-1, diskSize, 1 << 62} {
		if _, err := s.Extent(off); !errors.Is(err, errs.Invalid) {
			t.Errorf("Extent(%d): got %v, want %v", off, err, errs.Invalid)
		}
	}
}

func TestLimitsAndCancellation(t *testing.T) {
	img := sound(t, false)
	in := bytes.NewReader(img)
	if _, err := inspect.Header(in, int64(len(img)), inspect.Limits{VirtualSize: diskSize - 512}); class(err) != "QUOTA" {
		t.Errorf("a disk larger than the limit: got %v, want class QUOTA", err)
	}
	if _, err := inspect.Header(in, int64(len(img)), inspect.Limits{VirtualSize: diskSize}); err != nil {
		t.Errorf("a disk of the limit's size: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := inspect.Inspect(ctx, in, int64(len(img)), inspect.Limits{}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
}

// A small file whose compressed clusters all lie on the same bytes would expand
// without end.
func TestDecompressionBombIsRefused(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("qemu-img is missing: install qemu-utils")
		}
		t.Skip("qemu-img is missing: install qemu-utils")
	}
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in.raw"), filepath.Join(dir, "out.qcow2")
	if err := os.WriteFile(in, bytes.Repeat([]byte{7}, 512<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.Command("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", in, out).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	img, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := inspect.Inspect(t.Context(), bytes.NewReader(img), int64(len(img)), inspect.Limits{}); err != nil {
		t.Fatalf("the sound image: %v", err)
	}
	table := be.Uint64(img[be.Uint64(img[40:]):]) &^ copied
	for i := table + 8; i < table+64; i += 8 {
		copy(img[i:i+8], img[table:])
	}
	if _, err := inspect.Inspect(t.Context(), bytes.NewReader(img), int64(len(img)), inspect.Limits{}); class(err) != "OVERLAP" {
		t.Errorf("eight clusters on the same bytes: got %v, want class OVERLAP", err)
	}
}
