package dirdrv_test

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// tool finds a program of QEMU's, or skips the test; CI must have it.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		t.Fatalf("%s is missing: run scripts/install-deps test", name)
	}
	if err != nil {
		t.Skipf("%s is missing: run scripts/install-deps test", name)
	}
	return path
}

// guestArgs are those of a stopped guest with path as its one raw disk.
func guestArgs(path, readOnly string) []string {
	return []string{
		"-M", "pc", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio",
		"-blockdev", "driver=file,node-name=f,filename=" + path + ",read-only=" + readOnly,
		"-blockdev", "driver=raw,node-name=r,file=f,read-only=" + readOnly,
		"-device", "virtio-blk-pci,drive=r",
	}
}

// hold runs a program of QEMU's until the returned function is called. It is
// ready when, asked, it answers with a line that contains ready.
func hold(t *testing.T, ask, ready, name string, args ...string) (release func()) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), tool(t, name), args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = func() {
		in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(release)
	watchdog := time.AfterFunc(60*time.Second, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	if _, err := in.Write([]byte(ask)); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.Contains(s.Text(), ready) {
			return release
		}
	}
	t.Fatalf("%s ended before it was ready: %s", name, stderr.String())
	return nil
}

// refused runs a program of QEMU's that must fail for want of a lock.
func refused(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), tool(t, name), args...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "lock") || !strings.Contains(string(out), "Failed to get") {
		t.Errorf("%s ran while we hold the volume: %v\n%s", name, err, out)
	}
}

const (
	qmpAsk   = `{"execute":"qmp_capabilities"}{"execute":"query-status","id":"ready"}`
	qmpReady = `"id": "ready"`
)

// TestQEMUHolds has QEMU hold a volume and asks for it.
func TestQEMUHolds(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	v := newVolume(t, d, "v", 1<<20, false)
	path := filepath.Join(c.Path, "v")
	tests := []struct {
		name              string
		hold              func() func()
		write, read, base bool // may be opened meanwhile
		probe             bool // is seen as free
	}{
		{"guest", func() func() {
			return hold(t, qmpAsk, qmpReady, "qemu-system-x86_64", guestArgs(path, "off")...)
		}, false, false, true, false},
		{"guest, read-only", func() func() {
			return hold(t, qmpAsk, qmpReady, "qemu-system-x86_64", guestArgs(path, "on")...)
		}, false, true, true, false},
		{"writable export", func() func() {
			return hold(t, qmpAsk, qmpReady, "qemu-storage-daemon", "--chardev", "stdio,id=m", "--monitor", "chardev=m",
				"--blockdev", "driver=file,node-name=f,filename="+path, "--nbd-server", "addr.type=unix,addr.path="+filepath.Join(t.TempDir(), "nbd"),
				"--export", "type=nbd,id=e,node-name=f,writable=on")
		}, false, false, true, false},
		{"qemu-io", func() func() {
			return hold(t, "length\n", "1 MiB", "qemu-io", "-f", "raw", path)
		}, false, false, true, false},
		{"reader that does not mind", func() func() {
			return hold(t, "length\n", "1 MiB", "qemu-io", "-r", "-U", "-f", "raw", path)
		}, true, true, true, true},
		{"nobody", func() func() { return func() {} }, true, true, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			release := tt.hold()
			defer release()
			for m, ok := range map[driver.Mode]bool{driver.Write: tt.write, driver.Read: tt.read, driver.Base: tt.base} {
				dev, err := d.Open(t.Context(), v, m)
				wantFree(t, "Open", err, ok)
				if dev != nil {
					dev.Close()
				}
			}
			wantFree(t, "Resize", d.Resize(t.Context(), v, 1<<20), tt.write)
			wantFree(t, "Probe", d.(driver.Prober).Probe(t.Context(), v), tt.probe)
		})
	}
}

func wantFree(t *testing.T, what string, err error, free bool) {
	t.Helper()
	switch {
	case free && err != nil:
		t.Errorf("%s = %v, want success", what, err)
	case !free && !errors.Is(err, errs.Busy):
		t.Errorf("%s = %v, want busy", what, err)
	case !free && !strings.Contains(err.Error(), "qemu"):
		t.Errorf("%s = %v, which does not name the holder", what, err)
	}
}

// TestQEMUAsks holds a volume and has QEMU ask for it.
func TestQEMUAsks(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	v := newVolume(t, d, "v", 1<<20, false)
	path := filepath.Join(c.Path, "v")
	writeCommand := []string{"-f", "raw", "-c", "write 0 512", path}
	for _, m := range []driver.Mode{driver.Write, driver.Read} {
		dev, err := d.Open(t.Context(), v, m)
		if err != nil {
			t.Fatal(err)
		}
		refused(t, "qemu-io", writeCommand...)
		refused(t, "qemu-system-x86_64", guestArgs(path, "off")...)
		if m == driver.Write {
			refused(t, "qemu-system-x86_64", guestArgs(path, "on")...)
		} else {
			hold(t, qmpAsk, qmpReady, "qemu-system-x86_64", guestArgs(path, "on")...)()
		}
		dev.Close()
		if out, err := exec.CommandContext(t.Context(), tool(t, "qemu-io"), writeCommand...).CombinedOutput(); err != nil {
			t.Errorf("qemu-io after we closed the volume: %v\n%s", err, out)
		}
	}
}
