package signature

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// tool skips a test whose tool is missing; where CI is set it must be there.
func tool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: run scripts/install-deps test", name)
		}
		t.Skipf("%s is missing: run scripts/install-deps test", name)
	}
}

// run runs a tool in a directory and fails the test when the tool fails.
func run(t testing.TB, dir, stdin, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	cmd.Env = append(os.Environ(), "GNUPGHOME="+dir, "LC_ALL=C")
	var out, text bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &text
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, text.String())
	}
	return out.Bytes()
}

func write(t testing.TB, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// image has line ends that a signature of a text would not tell apart.
var image = bytes.Repeat([]byte("a disk\nimage\r\nof bytes\x00\xff\n"), 100_000)

// stream verifies in pieces, as an image passes.
func stream(key, sig, data []byte, now time.Time) (Signer, error) {
	v, err := New(key, sig, now)
	if err != nil {
		return Signer{}, err
	}
	for b := data; len(b) > 0; b = b[min(len(b), 70_001):] {
		v.Write(b[:min(len(b), 70_001)])
	}
	return v.Verify()
}

// refused checks a refusal.
func refused(t *testing.T, what string, who Signer, err error, kind errs.Kind, text string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || who != (Signer{}) {
		t.Errorf("%s: got %+v, %v; want an error of kind %s", what, who, err, kind)
		return
	}
	class := ""
	if kind == errs.Unsafe {
		class = classChecksum
	}
	if e.Kind != kind || e.Class != class || !strings.Contains(e.Error(), text) {
		t.Errorf("%s: got %s %q %q, want %s %q with %q", what, e.Kind, e.Class, e.Error(), kind, class, text)
	}
}

// changed is b with one bit flipped.
func changed(b []byte, at int) []byte {
	c := bytes.Clone(b)
	c[at] ^= 1
	return c
}

func TestMinisign(t *testing.T) {
	tool(t, "minisign")
	dir := t.TempDir()
	write(t, dir, "image", image)
	write(t, dir, "SHA256SUMS", image[:1000])
	for _, k := range []string{"a", "b"} {
		run(t, dir, "", "minisign", "-G", "-W", "-p", k+".pub", "-s", k+".key")
	}
	sign := func(file string, args ...string) []byte {
		run(t, dir, "", "minisign", append([]string{"-S", "-s", "a.key", "-m", file, "-x", "sig", "-t", "disk of today", "-c", "anything"}, args...)...)
		return read(t, filepath.Join(dir, "sig"))
	}
	key, other := read(t, filepath.Join(dir, "a.pub")), read(t, filepath.Join(dir, "b.pub"))
	hashed, old, sums := sign("image", "-H"), sign("image", "-l"), sign("SHA256SUMS", "-l")
	now := time.Now()

	who, err := stream(key, hashed, image, now)
	id := strings.TrimPrefix(strings.SplitN(string(key), "\n", 2)[0], "untrusted comment: minisign public key ")
	if want := (Signer{Scheme: "minisign", KeyID: id, Comment: "disk of today"}); err != nil || who != want {
		t.Errorf("got %+v, %v; want %+v", who, err, want)
	}
	bare := []byte(strings.Split(string(key), "\n")[1])
	if _, err := stream(bare, hashed, image, now); err != nil {
		t.Errorf("a key without its comment: %v", err)
	}
	if _, err := stream(key, bytes.ReplaceAll(hashed, []byte("\n"), []byte("\r\n")), image, now); err != nil {
		t.Errorf("a signature with other line ends: %v", err)
	}
	if who, err := Verify(key, sums, image[:1000], now); err != nil || who.Comment != "disk of today" {
		t.Errorf("legacy over checksums: %+v, %v", who, err)
	}
	for _, at := range []int{0, len(image) / 2, len(image) - 1} {
		who, err := stream(key, hashed, changed(image, at), now)
		refused(t, fmt.Sprintf("a changed byte at %d", at), who, err, errs.Unsafe, "not those that the key "+id)
	}
	for _, c := range []struct {
		what           string
		key, sig, data []byte
		kind           errs.Kind
		text           string
	}{
		{"one byte less", key, hashed, image[:len(image)-1], errs.Unsafe, "not those"},
		{"one byte more", key, hashed, append(bytes.Clone(image), 0), errs.Unsafe, "not those"},
		{"another key", other, hashed, image, errs.Unsafe, "not by the signing key"},
		{"legacy over an image", key, old, image, errs.Unsupported, "legacy"},
		{"a changed trusted comment", key, bytes.Replace(hashed, []byte("today"), []byte("monday"), 1), image, errs.Unsafe, "trusted comment"},
		{"no trusted comment", key, bytes.Join(bytes.SplitAfter(hashed, []byte("\n"))[:2], nil), image, errs.Invalid, "not complete"},
		{"cut short", key, hashed[:len(hashed)-10], image, errs.Invalid, "not complete"},
		{"no base64", key, bytes.Replace(hashed, []byte("\nRU"), []byte("\n!!"), 1), image, errs.Invalid, "not complete"},
		{"the secret key", read(t, filepath.Join(dir, "a.key")), hashed, image, errs.Invalid, "signing key is not"},
		{"a key that is none", []byte("-----BEGIN PGP PUBLIC KEY BLOCK-----\n"), hashed, image, errs.Invalid, "signing key is not"},
		{"an empty key", []byte("\n"), hashed, image, errs.Invalid, "empty"},
		{"an empty signature", key, nil, image, errs.Invalid, "empty"},
		{"a long signature", key, bytes.Repeat(hashed, 1000), image, errs.Invalid, "more than"},
	} {
		who, err := stream(c.key, c.sig, c.data, now)
		refused(t, c.what, who, err, c.kind, c.text)
	}
	who, err = Verify(key, sums, changed(image[:1000], 5), now)
	refused(t, "changed checksums", who, err, errs.Unsafe, "not those")
	who, err = Verify(key, sums, image, now)
	refused(t, "checksums that are an image", who, err, errs.Invalid, "more than 1048576 bytes")
}

func TestSignify(t *testing.T) {
	tool(t, "signify-openbsd")
	dir := t.TempDir()
	sums := write(t, dir, "SHA256", []byte("SHA256 (image) = "+strings.Repeat("ab", 32)+"\n"))
	run(t, dir, "", "signify-openbsd", "-G", "-n", "-p", "a.pub", "-s", "a.sec")
	run(t, dir, "", "signify-openbsd", "-S", "-s", "a.sec", "-m", sums, "-x", "a.sig")
	key, sig, data := read(t, filepath.Join(dir, "a.pub")), read(t, filepath.Join(dir, "a.sig")), read(t, sums)
	if who, err := Verify(key, sig, data, time.Now()); err != nil || who.Scheme != "minisign" || who.Comment != "" {
		t.Errorf("got %+v, %v", who, err)
	}
	who, err := Verify(key, sig, changed(data, 3), time.Now())
	refused(t, "a changed byte", who, err, errs.Unsafe, "not those")
	who, err = stream(key, sig, data, time.Now())
	refused(t, "over an image", who, err, errs.Unsupported, "signify")
}

// keyrings are made once by the real gpg: key generation takes its time.
type keyrings struct {
	dir                          string
	good, other, expired, subkey []byte
}

const names = "good other expired revoked subkey"

func newKeyrings(t *testing.T) keyrings {
	t.Helper()
	tool(t, "gpg")
	short, err := os.MkdirTemp("", "g") // the agent's socket is in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		exec.Command("gpgconf", "--homedir", short, "--kill", "all").Run()
		os.RemoveAll(short)
	})
	k := keyrings{dir: short}
	gpg := k.gpg
	for _, name := range strings.Fields(names) {
		expire := "never"
		if name == "expired" {
			expire = "1d"
		}
		gpg(t, "--passphrase", "", "--quick-generate-key", name+" <"+name+"@example.org>", "ed25519", "sign", expire)
	}
	gpg(t, "--passphrase", "", "--quick-add-key", k.fingerprint(t, "subkey", 0), "rsa2048", "sign", "never")
	gpg(t, "--passphrase", "", "--quick-add-key", k.fingerprint(t, "subkey", 0), "ed25519", "sign", "1d")
	k.good, k.other, k.expired, k.subkey = k.export(t, "good"), k.export(t, "other"), k.export(t, "expired"), k.export(t, "subkey")
	return k
}

func (k keyrings) gpg(t testing.TB, args ...string) []byte {
	t.Helper()
	return run(t, k.dir, "", "gpg", append([]string{"--batch", "--no-tty", "--yes", "--pinentry-mode", "loopback"}, args...)...)
}

func (k keyrings) export(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	return k.gpg(t, append(args, "--export", name+"@example.org")...)
}

// fingerprint is that of a key's n-th part, the primary key first.
func (k keyrings) fingerprint(t testing.TB, name string, n int) string {
	t.Helper()
	for _, line := range strings.Split(string(k.gpg(t, "--with-colons", "--list-keys", name+"@example.org")), "\n") {
		if f := strings.Split(line, ":"); f[0] == "fpr" {
			if n == 0 {
				return f[9]
			}
			n--
		}
	}
	t.Fatalf("gpg has no such key of %s", name)
	return ""
}

// revoke imports the revocation that gpg made beside the key.
func (k keyrings) revoke(t testing.TB, name string) []byte {
	t.Helper()
	file := filepath.Join(k.dir, "openpgp-revocs.d", k.fingerprint(t, name, 0)+".rev")
	certificate := bytes.Replace(read(t, file), []byte(":-----BEGIN"), []byte("-----BEGIN"), 1)
	k.gpg(t, "--import", write(t, k.dir, "revocation", certificate))
	return k.export(t, name)
}

// revokeSubkey revokes the n-th subkey of a key alone.
func (k keyrings) revokeSubkey(t testing.TB, name string, n int) []byte {
	t.Helper()
	run(t, k.dir, fmt.Sprintf("key %d\nrevkey\ny\n0\n\ny\nsave\n", n), "gpg", "--batch", "--no-tty", "--command-fd", "0",
		"--pinentry-mode", "loopback", "--passphrase", "", "--edit-key", name+"@example.org")
	return k.export(t, name)
}

func (k keyrings) sign(t testing.TB, name string, data []byte, args ...string) []byte {
	t.Helper()
	file, out := write(t, k.dir, "data", data), filepath.Join(k.dir, "data.sig")
	k.gpg(t, append(args, "--local-user", name, "--output", out, "--detach-sign", file)...)
	return read(t, out)
}

func TestOpenPGP(t *testing.T) {
	k := newKeyrings(t)
	now := time.Now().Add(time.Hour) // after all that is signed here
	sig := k.sign(t, "good@example.org", image)
	armored := k.sign(t, "good@example.org", image, "--armor")
	id := k.fingerprint(t, "good", 0)[24:]
	both := append(k.export(t, "other", "--armor"), k.export(t, "good", "--armor")...)
	for what, c := range map[string][2][]byte{
		"binary": {k.good, sig}, "armored": {k.export(t, "good", "--armor"), armored}, "mixed": {k.good, armored},
		"two blocks of armor": {both, sig}, "two keys": {append(bytes.Clone(k.other), k.good...), sig},
		"two signatures": {k.good, append(k.sign(t, "other@example.org", image), sig...)},
		"SHA-512":        {k.good, k.sign(t, "good@example.org", image, "--digest-algo", "SHA512")},
	} {
		who, err := stream(c[0], c[1], image, now)
		if err != nil || who.Scheme != "openpgp" || who.KeyID != id || who.Name != "good <good@example.org>" || now.Sub(who.Time) > 2*time.Hour {
			t.Errorf("%s: got %+v, %v; want the key %s", what, who, err, id)
		}
		for _, at := range []int{0, len(image) / 2, len(image) - 1} {
			who, err := stream(c[0], c[1], changed(image, at), now)
			refused(t, what+", a changed byte", who, err, errs.Unsafe, "not those that the key "+id)
		}
	}
	subkey := k.fingerprint(t, "subkey", 1)
	bySubkey := k.sign(t, subkey+"!", image)
	if who, err := stream(k.subkey, bySubkey, image, now); err != nil || who.KeyID != subkey[24:] {
		t.Errorf("a subkey: got %+v, %v; want the key %s", who, err, subkey[24:])
	}
	expiring := k.sign(t, "expired@example.org", image)
	if _, err := stream(k.expired, expiring, image, now); err != nil {
		t.Errorf("before it expires: %v", err)
	}
	short := k.sign(t, k.fingerprint(t, "subkey", 2)+"!", image)
	if _, err := stream(k.subkey, short, image, now); err != nil {
		t.Errorf("a subkey before it expires: %v", err)
	}
	text := k.sign(t, "good@example.org", image[:1000], "--textmode")
	if _, err := Verify(k.good, text, image[:1000], now); err != nil {
		t.Errorf("a text signature over checksums: %v", err)
	}
	brief := k.sign(t, "good@example.org", image, "--default-sig-expire", "1d")
	toBeRevoked := k.sign(t, "revoked@example.org", image)
	weak := k.sign(t, "good@example.org", image, "--digest-algo", "SHA1", "--allow-weak-digest-algos")
	md5 := k.sign(t, subkey+"!", image, "--digest-algo", "MD5", "--allow-weak-digest-algos")
	secret := k.gpg(t, "--passphrase", "", "--export-secret-keys", "good@example.org")
	clear := k.gpg(t, "--local-user", "good@example.org", "--output", "-", "--clearsign", write(t, k.dir, "data", []byte("text\n")))

	for _, c := range []struct {
		what           string
		key, sig, data []byte
		now            time.Time
		kind           errs.Kind
		text           string
	}{
		{"one byte less", k.good, sig, image[:len(image)-1], now, errs.Unsafe, "not those"},
		{"another key", k.other, sig, image, now, errs.Unsafe, "made by the key " + id},
		{"expired", k.expired, expiring, image, now.Add(48 * time.Hour), errs.Unsafe, "has expired"},
		{"expired subkey", k.subkey, short, image, now.Add(48 * time.Hour), errs.Unsafe, "has expired"},
		{"revoked subkey", k.revokeSubkey(t, "subkey", 1), bySubkey, image, now, errs.Unsafe, "is revoked"},
		{"expired signature", k.good, brief, image, now.Add(48 * time.Hour), errs.Unsafe, "signature of the key " + id + " has expired"},
		{"from the future", k.good, sig, image, now.Add(-48 * time.Hour), errs.Unsafe, "from the future"},
		{"revoked", k.revoke(t, "revoked"), toBeRevoked, image, now, errs.Unsafe, "is revoked"},
		{"subkey of a revoked key", k.revoke(t, "subkey"), bySubkey, image, now, errs.Unsafe, "is revoked"},
		{"SHA-1", k.good, weak, image, now, errs.Unsafe, "SHA-1, which is too weak"},
		{"MD5", k.subkey, md5, image, now, errs.Invalid, "no signature of a kind"},
		{"a text signature over an image", k.good, text, image, now, errs.Unsupported, "line ends"},
		{"no signature", k.good, k.good, image, now, errs.Invalid, "no signature of a kind"},
		{"a clear signed text", k.good, clear, []byte("text\n"), now, errs.Unsupported, "line ends"},
		{"nonsense", k.good, []byte("nonsense"), image, now, errs.Invalid, "neither one of minisign nor"},
		{"cut short", k.good, sig[:len(sig)-5], image, now, errs.Invalid, "neither"},
		{"a secret key", secret, sig, image, now, errs.Invalid, "secret key"},
		{"a key that is none", []byte("key"), sig, image, now, errs.Invalid, "signing key is neither"},
	} {
		who, err := stream(c.key, c.sig, c.data, c.now)
		refused(t, c.what, who, err, c.kind, c.text)
	}
	if got, who, err := Cleartext(k.good, clear, now); err != nil || string(got) != "text" || who.KeyID != id {
		t.Errorf("a clear signed text: got %q, %+v, %v", got, who, err)
	}
	for what, c := range map[string]struct {
		text []byte
		kind errs.Kind
		want string
	}{
		"changed":       {bytes.Replace(clear, []byte("\ntext"), []byte("\ntest"), 1), errs.Unsafe, "not those"},
		"text before":   {append([]byte("evil\n"), clear...), errs.Invalid, "nothing else"},
		"text behind":   {append(bytes.Clone(clear), "evil\n"...), errs.Invalid, "nothing else"},
		"not signed":    {[]byte("text\n"), errs.Invalid, "nothing else"},
		"far too large": {bytes.Repeat(clear, 10_000), errs.Invalid, "more than"},
	} {
		got, who, err := Cleartext(k.good, c.text, now)
		refused(t, "clear signed, "+what, who, err, c.kind, c.want)
		if got != nil {
			t.Errorf("clear signed, %s: got %q", what, got)
		}
	}
	if who, err := stream(k.good, text, bytes.ReplaceAll(image[:1000], []byte("\n"), []byte("\r\n")), now); err == nil {
		t.Errorf("other line ends pass: %+v", who)
	}
}

// TestWeakKey has RSA keys that are too short.
func TestWeakKey(t *testing.T) {
	tool(t, "gpg")
	k := newKeyrings(t)
	k.gpg(t, "--passphrase", "", "--quick-generate-key", "short <short@example.org>", "rsa1024", "sign", "never")
	who, err := stream(k.export(t, "short"), k.sign(t, "short@example.org", image), image, time.Now().Add(time.Hour))
	refused(t, "RSA of 1024 bits", who, err, errs.Unsafe, "minimum rsa length")
}
