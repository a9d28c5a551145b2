package signature

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
)

var (
	a256, b256 = strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	a512       = strings.Repeat("c3", 64)
)

func TestParseSums(t *testing.T) {
	for _, c := range []struct {
		what, text string
		want       Sums // nil: errs.Invalid
		message    string
	}{
		{"GNU", a256 + "  disk.img\n" + b256 + " *other.img\n", Sums{"disk.img": {"sha256", a256}, "other.img": {"sha256", b256}}, ""},
		{"SHA-512, no end of line", a512 + "  disk.img", Sums{"disk.img": {"sha512", a512}}, ""},
		{"capitals and CR LF", strings.ToUpper(a256) + "  disk.img\r\n\r\n", Sums{"disk.img": {"sha256", a256}}, ""},
		{"BSD", "SHA256 (disk.img) = " + a256 + "\nSHA512 (disk 2.img) = " + a512 + "\n", Sums{"disk.img": {"sha256", a256}, "disk 2.img": {"sha512", a512}}, ""},
		{"with comments", "# disk.img: 5 bytes\nSHA256 (disk.img) = " + a256 + "\n", Sums{"disk.img": {"sha256", a256}}, ""},
		{"all kinds of one file", "MD5 (d) = " + a256[:32] + "\nSHA512 (d) = " + a512 + "\nSHA256 (d) = " + a256 + "\nSHA512/256 (d) = " + b256 + "\n", Sums{"d": {"sha512", a512}}, ""},
		{"names with blanks and brackets", a256 + "   a (b) = c\nSHA256 (a (b)) = " + b256 + "\n", Sums{" a (b) = c": {"sha256", a256}, "a (b)": {"sha256", b256}}, ""},
		{"escaped", `\` + a256 + `  a\\b\nc` + "\n", Sums{"a\\b\nc": {"sha256", a256}}, ""},
		{"folders", a256 + "  ./disk.img\n" + b256 + "  x/disk.img\n", Sums{"disk.img": {"sha256", a256}, "x/disk.img": {"sha256", b256}}, ""},
		{"the same twice", a256 + "  d\n" + a256 + "  d\n", Sums{"d": {"sha256", a256}}, ""},
		{"two for one file", a256 + "  d\n" + b256 + "  d\n", nil, "line 2"},
		{"only MD5", a256[:32] + "  d\n", nil, "no SHA-256"},
		{"empty", "", nil, "no SHA-256"},
		{"a digest alone", a256 + "\n", nil, "line 1"},
		{"something else", "<html>\n", nil, "line 1"},
		{"a digest of another length", "SHA256 (d) = " + a512 + "\n", nil, "line 1"},
		{"an odd number of digits", a256 + "0  d\n", nil, "line 1"},
		{"too large", strings.Repeat(a256+"  d\n", 20_000), nil, "more than 1048576"},
	} {
		got, err := ParseSums([]byte(c.text))
		if c.want == nil {
			if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), c.message) || got != nil {
				t.Errorf("%s: got %v, %v; want invalid with %q", c.what, got, err, c.message)
			}
		} else if err != nil || !maps.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v; want %v", c.what, got, err, c.want)
		}
	}
}

// TestToolsSums reads what the tools write.
func TestToolsSums(t *testing.T) {
	tool(t, "sha256sum")
	dir := t.TempDir()
	for _, name := range []string{"disk.img", "a b", `back\slash`, "new\nline"} {
		write(t, dir, name, []byte(name))
	}
	want := map[string]Sums{}
	for _, args := range [][]string{{"sha256sum"}, {"sha256sum", "--tag"}, {"sha256sum", "-b"}, {"sha512sum"}, {"sha512sum", "--tag"}} {
		text := run(t, dir, "", args[0], append(args[1:], "disk.img", "a b", `back\slash`, "new\nline")...)
		got, err := ParseSums(text)
		if err != nil || len(got) != 4 {
			t.Errorf("%v: %v, %v in\n%s", args, got, err, text)
		}
		if first := want[args[0]]; first == nil {
			want[args[0]] = got
		} else if !maps.Equal(first, got) {
			t.Errorf("%v: got %v, want %v", args, got, first)
		}
	}
	sum := sha256.Sum256([]byte("disk.img"))
	if d, err := want["sha256sum"].Find("disk.img"); err != nil || d != (Digest{"sha256", hex.EncodeToString(sum[:])}) {
		t.Errorf("disk.img: %v, %v; want %x", d, err, sum)
	}
}

func TestFind(t *testing.T) {
	sums := Sums{"disk.img": {"sha256", a256}, "x/disk.img": {"sha256", b256}, "x/one": {"sha256", a256}, "x/two": {"sha256", a256}, "y/two": {"sha256", b256}}
	for name, want := range map[string]string{"disk.img": a256, "one": a256, "x/two": a256, "two": "", "three": "", "": ""} {
		d, err := sums.Find(name)
		if d.Hex != want || (want == "") != (errs.KindOf(err) == errs.NotFound) || want != "" && err != nil {
			t.Errorf("%q: got %v, %v; want %q", name, d, err, want)
		}
	}
}

// FuzzParse gives any bytes for every file that is read.
func FuzzParse(f *testing.F) {
	f.Add([]byte(a256+"  disk.img\nSHA512 (d) = "+a512+"\n"), []byte("untrusted comment: x\nRWQ=\n"), []byte("untrusted comment: x\nRUQ=\ntrusted comment: y\nAA==\n"))
	f.Add([]byte(`\`+a256+`  a\\b`), []byte(keyBegin+"\n\nmDMEAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n"), []byte{0x88, 0x75, 4, 0, 22, 8, 0, 29})
	for _, v := range vectors {
		at := func(name string) []byte { return read(f, filepath.Join("testdata", name)) }
		f.Add(at("SHA256SUMS"), at(v.key), at(v.sig))
		f.Add(at("CHECKSUM"), at(v.key), at(v.sig))
	}
	f.Fuzz(func(t *testing.T, sums, key, sig []byte) {
		if got, err := ParseSums(sums); err == nil {
			for name, d := range got {
				if n := len(d.Hex); name == "" || d.Algo != digestAlgos[n] {
					t.Errorf("%q has the digest %v", name, d)
				}
			}
		}
		for _, sign := range []func() (Signer, error){
			func() (Signer, error) { return Verify(key, sig, sums, vectorTime) },
			func() (Signer, error) { return stream(key, sig, sums, vectorTime) },
			func() (Signer, error) { _, who, err := Cleartext(key, sums, vectorTime); return who, err },
		} {
			if who, err := sign(); err != nil && who != (Signer{}) {
				t.Errorf("a signer %+v beside %v", who, err)
			}
		}
	})
}
