package libvirt_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// ready is far above what libvirtd needs to start: it tries every QEMU.
const ready = 2 * time.Minute

// inPrivate runs as root in a mount namespace of its own and puts directories
// of the test over those that libvirtd has built in: $1 holds them.
const inPrivate = `set -e
for dir in run etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
	mount --bind "$1/$dir" "/$dir"
done
exec libvirtd --config /etc/libvirt/libvirtd.conf`

// Settings with which libvirtd needs no other daemon and no cgroups.
const (
	libvirtdConf = "auth_unix_rw = \"none\"\nunix_sock_rw_perms = \"0700\"\n"
	qemuConf     = "stdio_handler = \"file\"\ncgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n"
)

// libvirtd is a daemon with its own state: it neither sees nor touches the
// machine's.
type libvirtd struct {
	t   *testing.T
	uri string
	env []string // for programs that shall talk to it and to tarnd
}

func startLibvirtd(t *testing.T, tarnd *tarntest.Daemon) libvirtd {
	t.Helper()
	fsloop.NeedRoot(t)
	for _, tool := range []string{"libvirtd", "virsh", "virt-xml-validate", "qemu-system-x86_64", "unshare"} {
		tarntest.NeedTool(t, tool)
	}
	dir, err := os.MkdirTemp("", "lv") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	for path, text := range map[string]string{
		"run": "", "var/lib/libvirt": "", "var/cache/libvirt": "", "var/log/libvirt": "",
		"etc/libvirt/libvirtd.conf": libvirtdConf, "etc/libvirt/qemu.conf": qemuConf,
	} {
		path = filepath.Join(dir, path)
		if text == "" {
			err = os.MkdirAll(path, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	l := libvirtd{t: t, uri: "qemu+unix:///system?socket=" + dir + "/run/libvirt/libvirt-sock"}
	l.env = append(os.Environ(), "LIBVIRT_DEFAULT_URI="+l.uri, "TARN_SOCKET="+tarnd.Socket,
		"PATH="+tarntest.Binaries(t)+":"+os.Getenv("PATH"))
	l.run(dir)
	return l
}

// run starts the daemon and returns when it answers. At the end of the test
// nothing of it is left.
func (l libvirtd) run(dir string) {
	t := l.t
	t.Helper()
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/notify", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	cmd := exec.Command("unshare", "--mount", "sh", "-c", inPrivate, "sh", dir)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+dir+"/notify")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state has the status
		notify.Close() // ends the wait below
		close(done)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		<-done
		if t.Failed() {
			t.Logf("libvirtd said:\n%s", &said)
		}
		os.RemoveAll(dir)
	})
	if err := notify.SetReadDeadline(time.Now().Add(ready)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	if n, err := notify.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "READY=1") {
		t.Fatalf("libvirtd did not start: %v", err)
	}
}

// shell runs a line as an administrator types it, with tarn and virsh on PATH,
// and returns what it prints. Every part of a pipe has to work.
func (l libvirtd) shell(format string, args ...any) string {
	l.t.Helper()
	line := fmt.Sprintf(format, args...)
	cmd := exec.CommandContext(l.t.Context(), "bash", "-c", "set -eo pipefail; "+line)
	cmd.Env = l.env
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		l.t.Fatalf("%s: %v\n%s%s", line, err, &stdout, &stderr)
	}
	return strings.TrimSpace(stdout.String())
}

// of returns the daemon for a subtest.
func (l libvirtd) of(t *testing.T) libvirtd {
	l.t = t
	return l
}

// define makes a domain that emulates its processor and has the given disks. It
// is destroyed at the end of the test.
func (l libvirtd) define(name, disks string) {
	l.t.Helper() // without ACPI nothing can be plugged in while it runs
	text := fmt.Sprintf(`<domain type="qemu"><name>%s</name><memory unit="MiB">64</memory><vcpu>1</vcpu>
<os><type arch="x86_64" machine="pc">hvm</type></os><features><acpi/></features>
<devices>
<emulator>/usr/bin/qemu-system-x86_64</emulator>
%s
</devices></domain>`, name, disks)
	path := tarntest.WriteFile(l.t, name+".xml", []byte(text))
	l.shell("virt-xml-validate %s domain", path)
	l.shell("virsh define --validate %s", path)
	l.t.Cleanup(func() {
		for _, verb := range []string{"destroy", "undefine"} {
			cmd := exec.Command("virsh", verb, name) // destroy fails when it is not running
			cmd.Env = l.env
			_ = cmd.Run()
		}
	})
}
