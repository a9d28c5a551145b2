package unpack_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
)

// pack compresses plain with the tool of that name.
func pack(t testing.TB, name string, plain []byte, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: install gzip, xz-utils, zstd and bzip2", name)
		}
		t.Skipf("%s is missing: install gzip, xz-utils, zstd and bzip2", name)
	}
	cmd := exec.Command(name, append(args, "-c")...)
	cmd.Stdin = bytes.NewReader(plain)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return out
}

func content(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, n)
	for i := range b {
		if i/70_000%3 == 0 {
			b[i] = byte(rng.Uint32()) & 0x3f
		}
	}
	return b
}

func unpacked(name string, packed []byte) ([]byte, error) {
	r, err := unpack.NewReader(name, bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

func TestReadsWhatTheToolsWrite(t *testing.T) {
	plain := content(3 << 20)
	for _, row := range []struct {
		name string
		args []string
	}{
		{"gzip", nil}, {"gzip", []string{"-1"}}, {"xz", nil}, {"xz", []string{"-9e"}}, {"xz", []string{"-T2", "--block-size=300000"}}, {"xz", []string{"--check=sha256"}},
		{"zstd", nil}, {"zstd", []string{"-19", "--long=27"}}, {"zstd", []string{"--ultra", "-22"}}, {"bzip2", nil},
	} {
		packed := pack(t, row.name, plain, row.args...)
		if got, err := unpacked(row.name, packed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s %v: %v, %d bytes, want %d", row.name, row.args, err, len(got), len(plain))
		}
		two := append(pack(t, row.name, plain[:1000]), packed...)
		if got, err := unpacked(row.name, two); err != nil || !bytes.Equal(got, append(plain[:1000:1000], plain...)) {
			t.Errorf("two streams of %s: %v, %d bytes", row.name, err, len(got))
		}
	}
}

func TestRefused(t *testing.T) {
	plain := content(1 << 20)
	for _, name := range unpack.Names() {
		packed := pack(t, name, plain)
		for _, cut := range []int{1, 5, 11, len(packed) / 2, len(packed) - 1} {
			_, err := unpacked(name, packed[:cut])
			if class := strict.ClassOf(err); class != strict.Truncated && !(cut < 12 && class == strict.Mismatch) {
				t.Errorf("%s cut to %d of %d bytes: got %v (%s), want TRUNCATED", name, cut, len(packed), err, class)
			}
		}
		broken := bytes.Clone(packed)
		broken[len(broken)/2] ^= 0x55
		if _, err := unpacked(name, broken); strict.ClassOf(err) != strict.Corrupt && strict.ClassOf(err) != strict.Truncated {
			t.Errorf("%s with a changed byte: got %v, want CORRUPT", name, err)
		}
		if _, err := unpacked(name, append(bytes.Clone(packed), "what is this?   "...)); strict.ClassOf(err) != strict.Corrupt {
			t.Errorf("%s with other bytes behind it: got %v, want CORRUPT", name, err)
		}
		if _, err := unpacked(name, plain[70_000:]); strict.ClassOf(err) != strict.Mismatch {
			t.Errorf("no %s at all: got %v, want FORMAT_MISMATCH", name, err)
		}
		if _, err := unpacked(name, nil); strict.ClassOf(err) != strict.Empty {
			t.Errorf("an empty file as %s: got %v, want EMPTY", name, err)
		}
		r, err := unpack.NewReader(name, io.MultiReader(bytes.NewReader(packed[:len(packed)/2]), failing{}))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !errors.Is(err, errBroken) || strict.ClassOf(err) != "" {
			t.Errorf("%s on a failing disk: got %v, want the failure itself", name, err)
		}
	}
	for _, packed := range [][]byte{pack(t, "xz", plain, "--lzma2=dict=128MiB"), pack(t, "zstd", content(3<<20), "--ultra", "-22", "--long=28")} {
		name := "xz"
		if packed[0] == 0x28 {
			name = "zstd"
		}
		if _, err := unpacked(name, packed); strict.ClassOf(err) != strict.Limit {
			t.Errorf("%s with a large window: got %v, want LIMIT", name, err)
		}
	}
	if _, err := unpack.NewReader("lzip", bytes.NewReader(plain)); strict.ClassOf(err) != strict.Format {
		t.Errorf("an unknown compression: got %v, want UNSUPPORTED_FORMAT", err)
	}
}

var errBroken = errors.New("I/O error")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }

// BenchmarkUnpack reads 64 MiB, of which a third is noise of 6 bits a byte.
func BenchmarkUnpack(b *testing.B) {
	plain := content(64 << 20)
	for _, name := range unpack.Names() {
		packed := pack(b, name, plain)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			for range b.N {
				r, err := unpack.NewReader(name, bytes.NewReader(packed))
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, r); err != nil || n != int64(len(plain)) {
					b.Fatal(n, err)
				}
				r.Close()
			}
		})
		b.Run(name+"/tool", func(b *testing.B) {
			file := filepath.Join(b.TempDir(), "packed")
			if err := os.WriteFile(file, packed, 0o600); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(plain)))
			for range b.N {
				if out, err := exec.Command(name, "-dc", file).Output(); err != nil || len(out) != len(plain) {
					b.Fatal(len(out), err)
				}
			}
		})
	}
}

// TestXzSays: a filter that is not supported is no damage, and stray bytes
// behind the end are not a missing one.
func TestXzSays(t *testing.T) {
	plain := content(100_000)
	for _, row := range []struct {
		name   string
		packed []byte
		want   string
	}{
		{"the filter for ARM64", pack(t, "xz", plain, "--arm64", "--lzma2"), strict.Feature},
		{"three zeroes behind it", append(pack(t, "xz", plain), 0, 0, 0), strict.Corrupt},
		{"padding", append(pack(t, "xz", plain), 0, 0, 0, 0), ""},
		{"without its end", cutEnd(pack(t, "xz", plain)), strict.Truncated},
	} {
		r, err := unpack.NewReader("xz", bytes.NewReader(row.packed))
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if strict.ClassOf(err) != row.want {
			t.Errorf("%s: got %v, want class %q", row.name, err, row.want)
		}
	}
}

func cutEnd(b []byte) []byte { return b[:len(b)-3] }
