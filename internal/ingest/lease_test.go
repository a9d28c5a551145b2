package ingest

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
)

// TestLeaseIsSeenToBreak: a lease holds while others read, breaks when somebody
// wants to write, of which no signal tells, and is given up in the end.
func TestLeaseIsSeenToBreak(t *testing.T) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGIO)
	defer signal.Stop(signals)
	f := writeFile(t, mixed(31, mib))
	l, err := takeLease(f)
	if err != nil {
		t.Fatal(err)
	}
	if l == nil {
		t.Skip("does not apply: the file system of the temporary directory has no leases")
	}
	second, err := takeLease(f)
	if err != nil || second == nil {
		t.Errorf("a second import of the file: %v, %v", second, err)
	}
	second.end()
	contents(t, f)
	if err := l.holds(); err != nil {
		t.Errorf("others read it: %v", err)
	}
	if _, err := unix.Open(f.Name(), unix.O_WRONLY|unix.O_NONBLOCK, 0); err != unix.EWOULDBLOCK {
		t.Errorf("opening it for writing gives %v, want EWOULDBLOCK", err)
	}
	refusal{errs.Conflict, "", "changed while"}.check(t, "opened for writing", l.holds())
	l.end()
	l.end()
	_, err = takeLease(writable(t, f))
	refusal{errs.Busy, "", "open for writing"}.check(t, "still open", err)
	select {
	case <-signals:
		t.Error("a signal came")
	default:
	}
}

// TestFileWithoutLease: where no lease is to be had, promised bytes are read
// once, and others are watched by the file's times.
func TestFileWithoutLease(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("only root can give a file away and drop CAP_LEASE")
		}
		t.Skip("only root can give a file away and drop CAP_LEASE")
	}
	withoutCapability(t, unix.CAP_LEASE)
	for kind, s := range samples(t) {
		promised := Claim{Format: s.format, SHA256: sha256Of(s.file)}
		for what, claim := range map[string]Claim{
			"nothing":        {Format: s.format},
			"SHA-256":        promised,
			"something else": {Format: s.format, Promised: true},
		} {
			name := fmt.Sprintf("%s, %s promised", kind, what)
			f := writeFile(t, s.file)
			if err := os.Chown(f.Name(), 4242, 4242); err != nil {
				t.Fatal(err)
			}
			if l, err := takeLease(f); l != nil || err != nil {
				t.Fatalf("%s: a lease %v, %v on another's file", name, l, err)
			}
			got, err := importSource(t.Context(), t, Source{File: f, Name: "f", Description: s.description}, claim)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if !bytes.HasPrefix(got.bytes, s.disk) || got.result.SourceSHA256 != promised.SHA256 {
				t.Errorf("%s: the output differs from the image", name)
			}
			if spooled, want := got.header.MaxSpool > 0, claim.promised() && !claim.readOnce() && kind != "plain ploop"; spooled != want {
				t.Errorf("%s: a copy is read: %v, want %v", name, spooled, want)
			}
		}
	}
}

// withoutCapability takes a capability from the thread, and so from the test,
// until its end.
func withoutCapability(t *testing.T, which int) {
	t.Helper()
	runtime.LockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var was [2]unix.CapUserData
	if err := unix.Capget(&head, &was[0]); err != nil {
		t.Fatal(err)
	}
	now := was
	now[which/32].Effective &^= 1 << (which % 32)
	if err := unix.Capset(&head, &now[0]); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Capset(&head, &was[0]); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}
