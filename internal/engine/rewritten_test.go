package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// twoFaced returns two qcow2 images that differ in their L1 table alone, whose
// first two entries are exchanged, so that what was judged of the one can be
// converted while the other is digested; and where the tables lie.
func twoFaced(t *testing.T) (good, bad []byte, l1 int64) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(raw, append(bytes.Repeat([]byte("GOOD"), 8<<10), bytes.Repeat([]byte("EVIL"), 8<<10)...), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=512", raw, raw+".qcow2").CombinedOutput(); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("qemu-img: %v\n%s", err, out)
		}
		t.Skip("qemu-img is not installed (package qemu-utils)")
	}
	good, err := os.ReadFile(raw + ".qcow2")
	if err != nil {
		t.Fatal(err)
	}
	bad, l1 = bytes.Clone(good), int64(binary.BigEndian.Uint64(good[40:]))
	copy(bad[l1:], good[l1+8:l1+16])
	copy(bad[l1+8:], good[l1:l1+8])
	return good, bad, l1
}

// beforeConversion acts between the verdict and the conversion of an import.
type beforeConversion struct{ act func() }

func (c beforeConversion) Before(e faults.Effect) error {
	if e.Kind == faults.Write && strings.HasPrefix(e.Name, "convert ") {
		c.act()
	}
	return nil
}

func (beforeConversion) After(_ faults.Effect, err error) error { return err }

// promises are what may be said of an image's bytes.
func promises(t *testing.T, image []byte) map[string]api.ImageImport {
	long, sum := sha512.Sum512(image), sha256.Sum256(image)
	key, sig := minisign(t, image)
	return map[string]api.ImageImport{
		"sha256":    {SHA256: hex.EncodeToString(sum[:])},
		"sha512":    {ImageDetails: api.ImageDetails{SHA512: hex.EncodeToString(long[:])}},
		"checksums": {ImageDetails: api.ImageDetails{Checksums: []byte(hex.EncodeToString(sum[:]) + "  disk.qcow2\n"), File: "disk.qcow2"}},
		"signature": {ImageDetails: api.ImageDetails{SigningKey: key, Signature: sig}},
		"nothing":   {},
	}
}

// TestFileRewrittenBehindItsVerdict has a file judged that is not the promised
// one, and then puts the promised bytes and the old time in its place.
func TestFileRewrittenBehindItsVerdict(t *testing.T) {
	good, bad, l1 := twoFaced(t)
	b := newBench(t)
	b.pool("main")
	for name, r := range promises(t, good) {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		var was unix.Stat_t
		if err := unix.Stat(path, &was); err != nil {
			t.Fatal(err)
		}
		remove := faults.Install(beforeConversion{func() {
			w, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK, 0)
			if errors.Is(err, unix.EWOULDBLOCK) {
				return // who insists waits for the import's end
			}
			if err == nil {
				_, err = w.WriteAt(good[l1:l1+16], l1)
				err = errors.Join(err, w.Close(), unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{was.Atim, was.Mtim}, 0))
			}
			if err != nil {
				t.Error(err)
			}
		}})
		e := b.refusedWith(remove, path, r)
		if e.Kind != errs.Conflict || !strings.Contains(e.Message, "changed while it was read") {
			t.Errorf("%s: got %s %q, want a conflict", name, e.Kind, e.Message)
		}
		b.empty("main")
	}
}

// TestFileRewrittenThroughAMapping does the same where no time of the file ever
// shows it: through a mapping whose pages were dirty before.
func TestFileRewrittenThroughAMapping(t *testing.T) {
	good, bad, l1 := twoFaced(t)
	b := newBench(t)
	b.pool("main")
	for name, r := range promises(t, good) {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		mapped, err := unix.Mmap(int(w.Fd()), 0, len(bad), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		copy(mapped[l1:], bad[l1:l1+16])
		remove := faults.Install(beforeConversion{func() { copy(mapped[l1:], good[l1:l1+16]) }})
		e := b.refusedWith(remove, path, r)
		if err := unix.Munmap(mapped); err != nil {
			t.Fatal(err)
		}
		if e.Kind != errs.Busy || !strings.Contains(e.Message, "open for writing") {
			t.Errorf("%s: got %s %q, want busy", name, e.Kind, e.Message)
		}
		b.empty("main")
	}
}

// refusedWith returns why the qcow2 file at path, of which r says something, was
// refused, and removes an injector.
func (b *bench) refusedWith(remove func(), path string, r api.ImageImport) api.Error {
	b.t.Helper()
	defer remove()
	f, err := os.Open(path)
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	r.Name, r.Format = "two", "qcow2"
	return b.refused(b.ImageImport(context.Background(), api.Options{}, r, ingest.Source{File: f, Name: path}))
}
