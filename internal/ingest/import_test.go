package ingest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// contentOf is the content digest computed by its definition alone.
func contentOf(b []byte) string {
	h := blake3.NewDeriveKey("tarn b3-4m v1")
	h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b))))
	for chunk := range chunksOf(b, 4*mib) {
		leaf := blake3.Sum256(chunk)
		if len(bytes.Trim(chunk, "\x00")) == 0 {
			leaf = [32]byte{}
		}
		h.Write(leaf[:])
	}
	return "b3-4m:" + hex.EncodeToString(h.Sum(nil))
}

func chunksOf(b []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(b) > 0 {
			c := b[:min(n, len(b))]
			if b = b[len(c):]; !yield(c) {
				return
			}
		}
	}
}

func sha256Of(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// mixed returns n bytes as disks have them: random data, text, and runs of
// zeroes of all lengths, some across chunks.
func mixed(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	random := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	for pos := 0; pos < n; {
		run := min(1<<r.IntN(22)+r.IntN(5000), n-pos)
		switch r.IntN(3) {
		case 0:
			random.Read(b[pos : pos+run])
		case 1:
			copy(b[pos:pos+run], bytes.Repeat([]byte("the quick brown fox\n"), run/20+1))
		}
		pos += run
	}
	return b
}

func writeFile(t testing.TB, b []byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "source"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil { // what somebody may still write is refused
		t.Fatal(err)
	}
	return readable(t, f.Name())
}

func readable(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// writable opens a file of writeFile for writing.
func writable(t testing.TB, f *os.File) *os.File {
	t.Helper()
	w, err := os.OpenFile(f.Name(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

// output returns an empty sparse file of size bytes.
func output(t testing.TB, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f
}

func contents(t testing.TB, f *os.File) []byte {
	t.Helper()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// imported is what an import gave.
type imported struct {
	header Header
	result Result
	bytes  []byte // of the output
	file   *os.File
}

// importSource does what the engine does.
func importSource(ctx context.Context, t testing.TB, src Source, claim Claim) (imported, error) {
	t.Helper()
	var got imported
	s, err := Open(ctx, Config{}, src, claim)
	if err != nil {
		return got, err
	}
	defer s.Close()
	got.header = s.Header()
	got.file = output(t, (max(0, got.header.VirtualSize)+4095)&^4095)
	spool := func() (*os.File, error) { return output(t, 0), nil }
	var last int64
	got.result, err = s.Convert(ctx, got.file, spool, func(done, total int64) {
		if done < last || total > 0 && done > total {
			t.Errorf("progress went from %d to %d of %d", last, done, total)
		}
		last = done
	})
	got.bytes = contents(t, got.file)
	return got, err
}

// check compares an import with what it must be: want are the guest's bytes,
// source the file's.
func check(t *testing.T, name string, got imported, want, source []byte) {
	t.Helper()
	if !bytes.Equal(got.bytes[:len(want)], want) || len(bytes.Trim(got.bytes[len(want):], "\x00")) != 0 {
		t.Errorf("%s: the output differs from the image", name)
	}
	r := got.result
	if r.SourceSHA256 != sha256Of(source) {
		t.Errorf("%s: source_sha256 %s, want %s", name, r.SourceSHA256, sha256Of(source))
	}
	if c := contentOf(want); r.Content != c {
		t.Errorf("%s: content %s, want %s", name, r.Content, c)
	}
	if r.VirtualSize != int64(len(want)) {
		t.Errorf("%s: virtual size %d, want %d", name, r.VirtualSize, len(want))
	}
	if h := got.header; r.Written > h.MaxData {
		t.Errorf("%s: %d bytes were written, the header promised at most %d", name, r.Written, h.MaxData)
	}
	checkSparse(t, name, got, want)
}

// checkSparse demands that no run of 64 KiB of zero blocks is allocated, and
// that Written and Extents tell the truth.
func checkSparse(t *testing.T, name string, got imported, want []byte) {
	t.Helper()
	size := int64(len(want))
	var data, extents int64
	for off := int64(0); off < size; {
		e, err := descriptor(got.file.Fd()).extent(off, size)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind.String() == "data" {
			data += e.Length
			extents++
			for pos := off; pos+64*kib <= e.End(); pos += 4 * kib {
				if blkio.IsZero(want[pos : pos+64*kib]) {
					t.Fatalf("%s: the zeroes at %d are allocated", name, pos)
				}
			}
		}
		off = e.End()
	}
	if slop := (size+4095)&^4095 - size; got.result.Written > data || got.result.Written+4095+slop < data || got.result.Extents != extents {
		t.Errorf("%s: written %d in %d extents, the file has %d in %d", name, got.result.Written, got.result.Extents, data, extents)
	}
}

func TestRawFiles(t *testing.T) {
	holes := mixed(3, 20*mib)
	clear(holes[4*mib-40*kib : 4*mib+40*kib])
	clear(holes[8*mib : 16*mib])
	for name, b := range map[string][]byte{
		"one byte":              {1},
		"one zero":              {0},
		"a sector":              mixed(1, 512),
		"not a block":           mixed(2, 5*mib+777),
		"holes":                 holes,
		"one chunk":             mixed(4, 4*mib),
		"all zero":              make([]byte, 9*mib),
		"zeroes, then one byte": append(make([]byte, 8*mib), 1),
	} {
		got, err := importSource(t.Context(), t, Source{File: writeFile(t, b), Name: name}, Claim{Format: "raw"})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		check(t, name, got, b, b)
	}
}

func TestRawFileWithHoles(t *testing.T) {
	f := output(t, 64*mib)
	want := make([]byte, 64*mib)
	for _, off := range []int{4*mib - 4096, 30 * mib, 64*mib - 1} {
		copy(want[off:], "data")
		if _, err := f.WriteAt(want[off:min(off+4, len(want))], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	got, err := importSource(t.Context(), t, Source{File: f}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "sparse", got, want, want)
	if got.header.MaxData > mib {
		t.Errorf("the header promises %d bytes for three blocks", got.header.MaxData)
	}
}

// dribble gives a reader's bytes in odd pieces.
type dribble struct{ r io.Reader }

func (d dribble) Read(p []byte) (int, error) { return d.r.Read(p[:min(len(p), 70001)]) }

func TestRawStreams(t *testing.T) {
	for _, size := range []int{1, 512, 68 * kib, 68*kib + 1, 4 * mib, 9*mib + 5} {
		b := mixed(uint64(size), size)
		for _, announced := range []int64{-1, int64(size)} {
			got, err := importSource(t.Context(), t, Source{Stream: dribble{bytes.NewReader(b)}, Size: announced}, Claim{Format: "raw"})
			if err != nil {
				t.Errorf("%d bytes, %d announced: %v", size, announced, err)
				continue
			}
			if announced < 0 {
				if err := got.file.Truncate(int64(size)); err != nil {
					t.Fatal(err)
				}
				got.bytes = contents(t, got.file)
			}
			check(t, "stream", got, b, b)
		}
	}
}

func TestPipeOnStandardInput(t *testing.T) {
	b := mixed(7, 6*mib)
	for _, flags := range []int{0, unix.O_NONBLOCK} {
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
		go func() {
			defer w.Close()
			_, _ = w.Write(b)
		}()
		if err := unix.SetNonblock(fds[0], flags != 0); err != nil {
			t.Fatal(err)
		}
		got, err := importSource(t.Context(), t, Source{File: r, Name: Stdin, Size: -1}, Claim{Format: "raw"})
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.bytes[:len(b)], b) || got.result.SourceSHA256 != sha256Of(b) {
			t.Error("the pipe's bytes differ from the output")
		}
	}
}

// refusal is what the gate must say.
type refusal struct {
	kind  errs.Kind
	class string
	text  string // a part of the message
}

func (r refusal) check(t *testing.T, name string, err error) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: got %v, want a refusal of class %s", name, err, r.class)
		return
	}
	if e.Kind != r.kind || e.Class != r.class || !strings.Contains(e.Message, r.text) {
		t.Errorf("%s: got kind %s, class %q, %q; want %s, %q, %q", name, e.Kind, e.Class, e.Message, r.kind, r.class, r.text)
	}
}

func TestWhatIsNotRegularIsRefused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ path, name, text string }{
		{dir, dir, "a directory"},
		{fifo, fifo, "a FIFO"},
		{"/dev/null", "/dev/null", "a device"},
		{"/dev/null", Stdin, "a device"},
	} {
		f, err := os.OpenFile(row.path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = Open(t.Context(), Config{}, Source{File: f, Name: row.name}, Claim{Format: "raw"})
		f.Close()
		refusal{errs.Unsafe, strict.NotRegular, row.text}.check(t, row.path, err)
	}
}

func TestRawRefusals(t *testing.T) {
	disk := mixed(5, 5*mib)
	flipped := sha256Of(disk)[:63] + "0"
	if flipped == sha256Of(disk) {
		flipped = sha256Of(disk)[:63] + "1"
	}
	at := func(off int, text string) []byte {
		b := bytes.Clone(disk)
		copy(b[off:], text)
		return b
	}
	for _, row := range []struct {
		name  string
		bytes []byte
		size  int64 // announced by a stream
		claim Claim
		want  refusal
	}{
		{"empty", nil, 0, Claim{Format: "raw"}, refusal{errs.Unsafe, strict.Empty, "no bytes"}},
		{"unknown format", disk, int64(len(disk)), Claim{Format: "dmg"}, refusal{errs.Unsafe, strict.Format, "dmg"}},
		{"bad checksum", disk, int64(len(disk)), Claim{Format: "raw", SHA256: "12"}, refusal{errs.Invalid, "", "64 digits"}},
		{"qcow2", at(0, "QFI\xfb\x00\x00\x00\x03"), int64(len(disk)), Claim{Format: "raw"}, refusal{errs.Unsafe, strict.Mismatch, "look like qcow2"}},
		{"gzip", at(0, "\x1f\x8b\x08"), int64(len(disk)), Claim{Format: "raw"}, refusal{errs.Unsafe, strict.Mismatch, "look like gzip"}},
		{"vhd at the end", at(len(disk)-512, "conectix"), int64(len(disk)), Claim{Format: "raw"}, refusal{errs.Unsafe, strict.Mismatch, "look like VHD"}},
		{"too large", disk, int64(len(disk)), Claim{Format: "raw", MaxVirtualSize: mib}, refusal{errs.Unsafe, strict.Quota, "virtual size is 5242880"}},
		{"wrong digest", disk, int64(len(disk)), Claim{Format: "raw", SHA256: flipped}, refusal{errs.Unsafe, strict.Checksum, sha256Of(disk)}},
	} {
		_, err := importSource(t.Context(), t, Source{File: writeFile(t, row.bytes), Name: "f"}, row.claim)
		row.want.check(t, row.name+", file", err)
		_, err = importSource(t.Context(), t, Source{Stream: bytes.NewReader(row.bytes), Size: row.size}, row.claim)
		row.want.check(t, row.name+", stream", err)
	}
	for _, row := range []struct {
		name string
		size int64
		max  int64
		want refusal
	}{
		{"short", int64(len(disk)) + 1, 0, refusal{errs.Unsafe, strict.Truncated, "after 5242880 of the 5242881"}},
		{"long", int64(len(disk)) - 1, 0, refusal{errs.Unsafe, strict.Corrupt, "5242879"}},
		{"more than reserved", -1, mib, refusal{errs.Unsafe, strict.Quota, "1048576"}},
	} {
		_, err := importSource(t.Context(), t, Source{Stream: bytes.NewReader(disk), Size: row.size}, Claim{Format: "raw", MaxUnannounced: row.max})
		row.want.check(t, row.name, err)
	}
	good := Claim{Format: "raw", SHA256: strings.ToUpper(sha256Of(disk))}
	if _, err := importSource(t.Context(), t, Source{File: writeFile(t, disk)}, good); err != nil {
		t.Errorf("right digest in capitals: %v", err)
	}
}

func TestInstallerISOIsRaw(t *testing.T) {
	b := make([]byte, mib)
	copy(b[510:], "\x55\xaa")
	copy(b[32769:], "CD001")
	got, err := importSource(t.Context(), t, Source{File: writeFile(t, b)}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	check(t, "iso", got, b, b)
}

func TestStreamThatBreaksOff(t *testing.T) {
	broken := io.MultiReader(bytes.NewReader(mixed(1, 5*mib)), errorReader{errors.New("peer is gone")})
	_, err := importSource(t.Context(), t, Source{Stream: broken, Size: -1}, Claim{Format: "raw"})
	refusal{errs.Cancelled, "", "peer is gone"}.check(t, "broken stream", err)
}

type errorReader struct{ err error }

func (e errorReader) Read([]byte) (int, error) { return 0, e.err }

func TestInspectRaw(t *testing.T) {
	b := mixed(9, 3*mib)
	v, err := Inspect(t.Context(), Config{}, Source{File: writeFile(t, b), Name: "x"}, Claim{Format: "raw"})
	if err != nil || v.Verdict != "accept" || v.Content != contentOf(b) || v.SourceSHA256 != sha256Of(b) || v.VirtualSize != 3*mib {
		t.Errorf("got %+v, %v", v, err)
	}
	for n, want := range map[int]bool{1: true, 511: true, 512: false, 4096: false} {
		v, err := Inspect(t.Context(), Config{}, Source{Stream: bytes.NewReader(make([]byte, n)), Size: -1}, Claim{Format: "raw"})
		if text := fmt.Sprint(v.Features); err != nil || v.Verdict != "accept" || strings.Contains(text, "no multiple of 512") != want {
			t.Errorf("a raw image of %d bytes: got %+v, %v, want a feature that says so: %v", n, v, err, want)
		}
	}
	v, err = Inspect(t.Context(), Config{}, Source{File: writeFile(t, []byte("\x1f\x8b\x08"))}, Claim{Format: "raw"})
	if err != nil || v.Verdict != "reject" || v.Error != strict.Mismatch || v.Detail == "" || v.Hint == "" {
		t.Errorf("got %+v, %v", v, err)
	}
}
