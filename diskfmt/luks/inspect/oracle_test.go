package inspect_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// tool runs a program. QEMU measures how fast it is before it makes a header,
// and gives up on a busy machine; then it is asked again.
func tool(t testing.TB, deb, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: install %s", name, deb)
		}
		t.Skipf("%s is missing: install %s", name, deb)
	}
	for try := 1; ; try++ {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err == nil {
			return
		}
		if try == 20 || !bytes.Contains(out, []byte("Unable to get accurate CPU usage")) {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
}

func accepted(t *testing.T, name, file, feature string) {
	t.Helper()
	img, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s, rep, err := open(t.Context(), img, strict.Limits{})
	if err != nil {
		t.Errorf("%s: %v", name, err)
	} else if rep.Features[0] != feature || !bytes.Equal(doortest.Contents(t, s, img), img) {
		t.Errorf("%s: reported as %+v", name, rep)
	}
}

func TestHeadersOfCryptsetup(t *testing.T) {
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte("a passphrase"), 0o600); err != nil {
		t.Fatal(err)
	}
	fast1, fast, slow := "--pbkdf-force-iterations=1000", "--pbkdf=pbkdf2 --pbkdf-force-iterations=1000", "--pbkdf-force-iterations=4 --pbkdf-memory=32 --pbkdf-parallel=1"
	for _, options := range []string{
		"--type=luks1 " + fast1,
		"--type=luks1 " + fast1 + " --cipher=aes-cbc-essiv:sha256 --key-size=256 --hash=sha1",
		"--type=luks1 " + fast1 + " --hash=sha512 --key-size=256",
		"--type=luks1 " + fast1 + " --align-payload=8",
		"--type=luks2 " + fast,
		"--type=luks2 --offset=8192 --pbkdf=argon2id " + slow,
		"--type=luks2 --offset=8192 --pbkdf=argon2i " + slow + " --sector-size=4096",
		"--type=luks2 --offset=8192 --sector-size=512 --cipher=aes-cbc-essiv:sha256 --key-size=128 " + fast,
		"--type=luks2 --offset=8192 --label=disk --subsystem=tests " + fast,
		"--type=luks2 --luks2-metadata-size=64k --luks2-keyslots-size=512k --offset=8192 " + fast,
		"--type=luks2 --luks2-metadata-size=4m " + fast,
	} {
		file := filepath.Join(dir, "disk")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, 32<<20); err != nil {
			t.Fatal(err)
		}
		kdf := fast
		if strings.Contains(options, "luks1") {
			kdf = fast1
		}
		args := append([]string{"luksFormat", "--batch-mode", "--key-file=" + key}, strings.Fields(options)...)
		tool(t, "cryptsetup-bin", "cryptsetup", append(args, file)...)
		feature := "LUKS" + options[len("--type=luks"):len("--type=luks")+1]
		accepted(t, options, file, feature)
		if options != "--type=luks1 "+fast1 && options != "--type=luks2 "+fast {
			continue
		}
		args = append([]string{"luksAddKey", "--batch-mode", "--key-file=" + key}, strings.Fields(kdf)...)
		args = append(args, file, key)
		tool(t, "cryptsetup-bin", "cryptsetup", args...)
		accepted(t, options+" with a second key", file, feature)
		tool(t, "cryptsetup-bin", "cryptsetup", "luksKillSlot", "--batch-mode", "--key-file="+key, file, "0")
		accepted(t, options+" with slot 0 killed", file, feature)
	}
}

func TestHeadersOfQEMU(t *testing.T) {
	for _, options := range []string{
		"", ",cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256", ",cipher-alg=serpent-256,cipher-mode=cbc,ivgen-alg=plain,hash-alg=sha512",
	} {
		file := filepath.Join(t.TempDir(), "disk")
		tool(t, "qemu-utils", "qemu-img", "create", "-f", "luks", "--object", "secret,id=s,data=passphrase",
			"-o", "key-secret=s,iter-time=10"+options, file, "3M")
		accepted(t, "qemu-img"+options, file, "LUKS1")
	}
}
