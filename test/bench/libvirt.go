package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// libvirt is a libvirtd of this run's own: its sockets lie in dir, and what it
// would keep in the system's directories goes to a mount namespace.
type libvirt struct {
	dir string
	cmd *exec.Cmd
}

const libvirtScript = `for d in /run /var/lib/libvirt /var/log/libvirt /var/cache/libvirt /etc/libvirt; do
	[ ! -d $d ] || mount -t tmpfs t $d || exit
done
exec libvirtd -f "$1/libvirtd.conf" -p "$1/pid"`

// libvirt starts a libvirtd; nil where there is none.
func (b *bench) libvirt(ctx context.Context) (*libvirt, error) {
	if _, err := exec.LookPath("libvirtd"); err != nil || os.Geteuid() != 0 {
		fmt.Println("  virsh is left out: it needs root and libvirtd (apt-get install libvirt-daemon libvirt-clients)")
		return nil, nil
	}
	l := &libvirt{dir: b.path("libvirt")}
	conf := fmt.Sprintf("unix_sock_dir = %q\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n", l.dir)
	err := errors.Join(os.Mkdir(l.dir, 0o700), os.WriteFile(filepath.Join(l.dir, "libvirtd.conf"), []byte(conf), 0o600))
	if err != nil {
		return nil, err
	}
	l.cmd = exec.Command("unshare", "-m", "sh", "-c", libvirtScript, "sh", l.dir)
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = l.virsh(ctx, "pool-list"); err == nil {
			return l, nil
		}
		if time.Since(begin) > 30*time.Second || ctx.Err() != nil {
			return nil, errors.Join(err, l.stop())
		}
	}
}

func (l *libvirt) virsh(ctx context.Context, args ...string) error {
	uri := "storage+unix:///system?socket=" + filepath.Join(l.dir, "libvirt-sock")
	return command(ctx, "virsh", append([]string{"-q", "-c", uri}, args...)...)
}

// pid returns the process whose CPU time is libvirt's.
func (l *libvirt) pid() int {
	text, _ := os.ReadFile(filepath.Join(l.dir, "pid"))
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

func (l *libvirt) stop() error {
	if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	_ = l.cmd.Wait() // its status says how it was stopped
	return os.RemoveAll(l.dir)
}
