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
	dir   string
	cmd   *exec.Cmd
	peers *peers // that it runs from, or nil
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
	return b.startLibvirt(ctx, nil, func(dir string) *exec.Cmd {
		return exec.Command("unshare", "-m", "sh", "-c", libvirtScript, "sh", dir)
	})
}

// libvirtOf starts the peers' own libvirtd, without its driver for QEMU, which
// asks for a user of its own.
func (b *bench) libvirtOf(ctx context.Context, p *peers) (*libvirt, error) {
	drivers, err := filepath.Glob(p.root + "/usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so")
	for _, d := range drivers {
		err = errors.Join(err, os.Remove(d))
	}
	if err != nil {
		return nil, err
	}
	return b.startLibvirt(ctx, p, func(dir string) *exec.Cmd {
		return p.program(context.WithoutCancel(ctx), "/usr/sbin/libvirtd", "-f", filepath.Join(dir, "libvirtd.conf"), "-p", filepath.Join(dir, "pid"))
	})
}

func (b *bench) startLibvirt(ctx context.Context, p *peers, libvirtd func(dir string) *exec.Cmd) (*libvirt, error) {
	dir := b.path("libvirt" + b.name())
	l := &libvirt{dir: dir, cmd: libvirtd(dir), peers: p}
	conf := fmt.Sprintf("unix_sock_dir = %q\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n", l.dir)
	err := errors.Join(os.Mkdir(l.dir, 0o700), os.WriteFile(filepath.Join(l.dir, "libvirtd.conf"), []byte(conf), 0o600))
	if err != nil {
		return nil, err
	}
	if err := l.cmd.Start(); err != nil {
		return nil, err
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = l.virsh(ctx, "pool-list"); err == nil {
			return l, nil
		}
		if time.Since(begin) > patience.Wait || ctx.Err() != nil {
			return nil, errors.Join(err, l.stop())
		}
	}
}

// virsh has a client ask libvirt's storage driver.
func (l *libvirt) virsh(ctx context.Context, args ...string) error {
	return l.ask(ctx, "storage", args...)
}

func (l *libvirt) ask(ctx context.Context, driver string, args ...string) error {
	uri := driver + "+unix:///system?socket=" + filepath.Join(l.dir, "libvirt-sock")
	args = append([]string{"-q", "-c", uri}, args...)
	if l.peers != nil {
		return output(l.peers.program(ctx, "/usr/bin/virsh", args...))
	}
	return command(ctx, "virsh", args...)
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

// clone has n volumes cloned from a base, which libvirt's pool has under its
// name.
func (l *libvirt) clone(b *bench, pool string, x cachedBase, n int, flags ...string) work {
	return l.volumes(b, pool, "virsh vol-clone, base of "+x.label, n, func(ctx context.Context, name string) error {
		return l.virsh(ctx, append([]string{"vol-clone", "--pool", pool, x.name, name}, flags...)...)
	})
}

// create has n volumes of the size of a base made from it.
func (l *libvirt) create(b *bench, pool string, x cachedBase, n int) work {
	return l.volumes(b, pool, "virsh vol-create-from, base of "+x.label, n, func(ctx context.Context, name string) error {
		file := filepath.Join(l.dir, name)
		xml := fmt.Sprintf("<volume><name>%s</name><capacity>%d</capacity></volume>", name, x.size)
		if err := os.WriteFile(file, []byte(xml), 0o600); err != nil {
			return err
		}
		return l.virsh(ctx, "vol-create-from", "--pool", pool, "--inputpool", pool, file, x.name)
	})
}

// volumes has n made, one at a time, and deletes them when they were measured.
func (l *libvirt) volumes(b *bench, pool, what string, n int, do func(ctx context.Context, name string) error) work {
	var names []string
	return work{name: what, n: n, pid: l.pid(), do: func(ctx context.Context) error {
		for range n {
			names = append(names, b.name())
			if err := do(ctx, names[len(names)-1]); err != nil {
				return err
			}
		}
		return nil
	}, after: func(ctx context.Context) error {
		for _, name := range names {
			if err := l.virsh(ctx, "vol-delete", "--pool", pool, name); err != nil {
				return err
			}
		}
		names = nil
		return nil
	}}
}
