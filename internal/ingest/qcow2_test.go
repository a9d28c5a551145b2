package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/system/canary"
)

// tool runs one of QEMU's tools, the oracle of these tests.
func tool(t testing.TB, name string, args ...string) {
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

// qcow2Of makes a qcow2 file of the disk b and returns its bytes.
func qcow2Of(t testing.TB, b []byte, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	raw, file := filepath.Join(dir, "raw"), filepath.Join(dir, "file")
	if err := os.WriteFile(raw, b, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, file)...)
	out, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

var variants = map[string][]string{
	"v3":              nil,
	"v2":              {"-o", "compat=0.10"},
	"zlib":            {"-c"},
	"zstd":            {"-c", "-o", "compression_type=zstd"},
	"v2 zlib":         {"-c", "-o", "compat=0.10"},
	"clusters of 512": {"-o", "cluster_size=512"},
	"clusters of 2M":  {"-o", "cluster_size=2M"},
	"2M zlib":         {"-c", "-o", "cluster_size=2M"},
	"4K zstd":         {"-c", "-o", "cluster_size=4k,compression_type=zstd"},
	"extended L2":     {"-o", "extended_l2=on"},
	"ext. L2 zlib":    {"-c", "-o", "extended_l2=on"},
	"refcounts of 1":  {"-o", "refcount_bits=1"},
	"64 bits":         {"-o", "refcount_bits=64"},
	"lazy":            {"-o", "lazy_refcounts=on"},
	"metadata":        {"-o", "preallocation=metadata"},
	"falloc":          {"-o", "preallocation=falloc"},
	"out of order":    {"-W", "-m", "16"},
}

func TestQcow2(t *testing.T) {
	disk := mixed(11, 9*mib+512)
	for name, args := range variants {
		file := qcow2Of(t, disk, args...)
		claim := Claim{Format: "qcow2", SHA256: sha256Of(file)}
		got, err := importSource(t.Context(), t, Source{File: writeFile(t, file), Name: name}, claim)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		check(t, name, got, disk, file)
		sizes := []int64{-1, int64(len(file))}
		if testing.Short() {
			sizes = sizes[:1]
		}
		for _, size := range sizes {
			got, err := importSource(t.Context(), t, Source{Stream: dribble{bytes.NewReader(file)}, Size: size, Name: name}, claim)
			if err != nil {
				t.Errorf("%s as a stream of %d: %v", name, size, err)
				continue
			}
			check(t, name+" as a stream", got, disk, file)
		}
	}
}

func TestQcow2WithSnapshots(t *testing.T) {
	disk := mixed(12, 4*mib)
	file := writeFile(t, qcow2Of(t, disk))
	tool(t, "qemu-img", "snapshot", "-c", "one", file.Name())
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 7 0 1M", file.Name())
	copy(disk, bytes.Repeat([]byte{7}, mib))
	got, err := importSource(t.Context(), t, Source{File: file}, Claim{Format: "qcow2"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "snapshot", got, disk, contents(t, file))
	if f := strings.Join(got.header.Features, "; "); !strings.Contains(f, "1 internal snapshots") {
		t.Errorf("features %q do not speak of the snapshot", f)
	}
}

// put overwrites bytes of a file.
func put(b []byte, off int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], with)
	return b
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// hostile makes files that must be refused; canary is the path of a file that
// none may make anybody open.
func hostile(t *testing.T, canary string) map[string]struct {
	file []byte
	want refusal
} {
	t.Helper()
	type row = struct {
		file []byte
		want refusal
	}
	plain := qcow2Of(t, mixed(13, 4*mib))
	zlib := qcow2Of(t, mixed(13, 4*mib), "-c")
	l1 := int(beAt(plain, 40))
	l2 := int(beAt(plain, uint64(l1)) & offsetBits)
	small := qcow2Of(t, mixed(13, 9*mib), "-o", "cluster_size=4k")
	smallL1 := int(beAt(small, 40))
	smallL2 := func(i int) int { return int(beAt(small, uint64(smallL1+8*i)) & offsetBits) }
	rows := map[string]row{
		"data on a later L2 table":     {put(small, smallL2(0)+8*100, be64(uint64(smallL2(2))|1<<63)...), refusal{errs.Unsafe, strict.Overlap, "lies already"}},
		"two L1 entries for one table": {put(small, smallL1+8, small[smallL1:smallL1+8]...), refusal{errs.Unsafe, strict.Overlap, "same cluster"}},
		"empty":                        {nil, refusal{errs.Unsafe, strict.Empty, "no bytes"}},
		"raw":                          {mixed(1, mib), refusal{errs.Unsafe, strict.Mismatch, "magic"}},
		"gzip":                         {put(mixed(1, mib), 0, 0x1f, 0x8b, 8), refusal{errs.Unsafe, strict.Mismatch, "gzip"}},
		"version 1":                    {put(plain, 4, 0, 0, 0, 1), refusal{errs.Unsafe, strict.Mismatch, "qcow version 1"}},
		"version 4":                    {put(plain, 4, 0, 0, 0, 4), refusal{errs.Unsafe, strict.Version, "version 4"}},
		"dirty":                        {put(plain, 79, 1), refusal{errs.Unsafe, strict.Dirty, "dirty"}},
		"corrupt":                      {put(plain, 79, 2), refusal{errs.Unsafe, strict.Corrupt, "corrupt"}},
		"data file bit":                {put(plain, 79, 4), refusal{errs.Unsafe, strict.External, "another file"}},
		"unknown feature":              {put(plain, 79, 0x80), refusal{errs.Unsafe, strict.Feature, "unknown"}},
		"encrypted":                    {put(plain, 35, 2), refusal{errs.Unsafe, strict.Feature, "encrypted"}},
		"65 TiB":                       {put(plain, 24, be64(65<<40)...), refusal{errs.Unsafe, strict.Quota, "virtual size"}},
		"64 TiB":                       {put(plain, 24, be64(64<<40)...), refusal{errs.Unsafe, strict.Corrupt, "L1 table"}},
		"size -1":                      {put(plain, 24, be64(1<<64-512)...), refusal{errs.Unsafe, strict.Quota, "virtual size"}},
		"cluster bits 63":              {put(plain, 20, 0, 0, 0, 63), refusal{errs.Unsafe, strict.Corrupt, "cluster_bits"}},
		"L1 past the end":              {put(plain, 40, be64(1<<40)...), refusal{errs.Unsafe, strict.Truncated, "L1"}},
		"L1 on the header":             {put(plain, 40, be64(0)...), refusal{errs.Unsafe, strict.Corrupt, "L1"}},
		"truncated":                    {plain[:len(plain)-64*kib], refusal{errs.Unsafe, strict.Truncated, "end of the file"}},
		"cut in the header":            {plain[:50], refusal{errs.Unsafe, strict.Truncated, "50 bytes"}},
		"two entries for one cluster":  {put(plain, l2+8, plain[l2:l2+8]...), refusal{errs.Unsafe, strict.Overlap, "lies already"}},
		"data on the L1 table":         {put(plain, l2, be64(uint64(l1)|1<<63)...), refusal{errs.Unsafe, strict.Overlap, "lies already"}},
		"bad deflate":                  {put(zlib, 5*64*kib+100, bytes.Repeat([]byte{0xff}, 64*kib)...), refusal{errs.Unsafe, strict.Corrupt, "compressed"}},
		"VHD footer":                   {append(bytes.Clone(plain), put(make([]byte, 512), 0, []byte("conectix")...)...), refusal{errs.Unsafe, strict.Mismatch, "VHD"}},
		"VDI signature":                {put(plain, 0x40, 0x7f, 0x10, 0xda, 0xbe), refusal{errs.Unsafe, strict.Mismatch, "VDI"}},
	}
	for name, args := range map[string][]string{
		"backing file":       {"-b", canary, "-F", "raw"},
		"backing json":       {"-u", "-b", fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"file","filename":%q}}`, canary), "-F", "raw"},
		"backing nbd":        {"-u", "-b", "nbd:127.0.0.1:1", "-F", "raw"},
		"external data file": {"-o", "data_file=" + canary + ".data,data_file_raw=on"},
	} {
		file := filepath.Join(t.TempDir(), "file")
		if !strings.Contains(name, "data") {
			args = append([]string{"-u"}, args...)
		}
		tool(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), file, "4M")...)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		b = bytes.ReplaceAll(b, []byte(canary+".data"), []byte(canary+"\x00\x00\x00\x00\x00"))
		rows[name] = row{b, refusal{errs.Unsafe, strict.External, ""}}
	}
	return rows
}

func TestHostileQcow2(t *testing.T) {
	c := canary.New(t)
	for name, row := range hostile(t, c.Path) {
		got, err := importSource(t.Context(), t, Source{File: writeFile(t, row.file), Name: "image.qcow2"}, Claim{Format: "qcow2"})
		row.want.check(t, name, err)
		if err != nil && strings.Contains(err.Error(), c.Path) {
			t.Errorf("%s: the message names the file that the image names: %v", name, err)
		}
		if got.result != (Result{}) {
			t.Errorf("%s: a refused image has a result: %+v", name, got.result)
		}
		_, err = importSource(t.Context(), t, Source{Stream: bytes.NewReader(row.file), Size: int64(len(row.file))}, Claim{Format: "qcow2"})
		if want := row.want; want.class != strict.External || err == nil {
			want.check(t, name+" as a stream", err)
		}
		v, err := Inspect(t.Context(), Config{}, Source{File: writeFile(t, row.file)}, Claim{Format: "qcow2"})
		if err != nil || v.Verdict != "reject" || v.Error != row.want.class {
			t.Errorf("%s: verdict %+v, %v, want class %s", name, v, err, row.want.class)
		}
	}
	c.AssertNeverOpened(t)
}

// TestQcow2AsRaw imports qcow2 headers under the claim that they are raw.
func TestQcow2AsRaw(t *testing.T) {
	c := canary.New(t)
	for name, row := range hostile(t, c.Path) {
		if !bytes.HasPrefix(row.file, []byte("QFI\xfb")) {
			continue
		}
		_, err := importSource(t.Context(), t, Source{File: writeFile(t, row.file)}, Claim{Format: "raw"})
		refusal{errs.Unsafe, strict.Mismatch, "look like"}.check(t, name, err)
	}
	c.AssertNeverOpened(t)
}

func TestWrongDigestOfQcow2(t *testing.T) {
	file := qcow2Of(t, mixed(14, 3*mib))
	sum := sha256Of(file)
	file[len(file)-1] ^= 1 // the last byte of the last data cluster
	for _, src := range []Source{{File: writeFile(t, file)}, {Stream: bytes.NewReader(file), Size: int64(len(file))}} {
		_, err := importSource(t.Context(), t, src, Claim{Format: "qcow2", SHA256: sum})
		refusal{errs.Unsafe, strict.Checksum, sum}.check(t, "flipped bit", err)
	}
	_, err := importSource(t.Context(), t, Source{Stream: bytes.NewReader(file[:len(file)-1]), Size: int64(len(file))}, Claim{Format: "qcow2"})
	refusal{errs.Unsafe, strict.Truncated, "ended after"}.check(t, "short body", err)
}

// TestSpool looks at how much of a stream waits: nothing but tables where they
// come first, all of it where they come last.
func TestSpool(t *testing.T) {
	disk := mixed(15, 24*mib)
	var last writerAt
	w, err := qcow2.NewStreamWriter(&last, qcow2.CreateOptions{VirtualSize: int64(len(disk))})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(disk); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	first := qcow2Of(t, disk)
	for name, row := range map[string]struct {
		file        []byte
		least, most int64
	}{
		"tables first":         {first, 64 * kib, 1 * mib},
		"tables among data":    {qcow2Of(t, disk, "-o", "cluster_size=4k"), 64 * kib, 1 * mib},
		"tables last":          {last.b, int64(len(last.b)) - mib, int64(len(last.b))},
		"compressed in part":   {qcow2Of(t, disk, "-c"), mib, int64(len(first))},
		"extended L2, spooled": {qcow2Of(t, disk, "-o", "extended_l2=on"), int64(len(first)) / 2, int64(len(first))},
	} {
		s, err := Open(t.Context(), Config{}, Source{Stream: bytes.NewReader(row.file), Size: int64(len(row.file))}, Claim{Format: "qcow2"})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := imported{header: s.Header(), file: output(t, s.Header().VirtualSize)}
		spool := output(t, 0)
		got.result, err = s.Convert(t.Context(), got.file, func() (*os.File, error) { return spool, nil }, nil)
		s.Close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got.bytes = contents(t, got.file)
		check(t, name, got, disk, row.file)
		var st unix.Stat_t
		if err := unix.Fstat(int(spool.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		if n := st.Blocks * 512; n < row.least || n > row.most+64*kib {
			t.Errorf("%s: %d KiB of %d were spooled, want %d to %d", name, n/kib, len(row.file)/kib, row.least/kib, row.most/kib)
		}
	}
}

// writerAt is a container in memory.
type writerAt struct{ b []byte }

func (w *writerAt) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(w.b)) {
		w.b = append(w.b, make([]byte, end-int64(len(w.b)))...)
	}
	return copy(w.b[off:], p), nil
}

func TestInspectQcow2(t *testing.T) {
	disk := mixed(16, 5*mib)
	file := qcow2Of(t, disk)
	stream := func() Source { return Source{Stream: bytes.NewReader(file), Size: -1, Name: Stdin} }
	spooling := Config{Spool: func() (*os.File, error) { return output(t, 0), nil }}
	for name, row := range map[string]struct {
		cfg Config
		src Source
	}{
		"file":   {Config{}, Source{File: writeFile(t, file)}},
		"stream": {spooling, stream()},
	} {
		v, err := Inspect(t.Context(), row.cfg, row.src, Claim{Format: "qcow2"})
		if err != nil || v.Verdict != "accept" || v.Content != contentOf(disk) || v.SourceSHA256 != sha256Of(file) ||
			v.VirtualSize != 5*mib || len(v.Features) == 0 {
			t.Errorf("%s: got %+v, %v", name, v, err)
		}
	}
	if _, err := Inspect(t.Context(), Config{}, stream(), Claim{Format: "qcow2"}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("a stream without a spool: got %v, want errs.Unsupported", err)
	}
}
