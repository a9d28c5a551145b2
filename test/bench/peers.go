package main

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// peers is a root file system with Nova and libvirt, in a mount namespace of its
// own that ends with this process.
type peers struct {
	root string
	cmd  *exec.Cmd
	end  io.Closer // its standard input
}

// peersScript mounts the file system $2 below $1, with the directories that
// follow as they are here, and keeps it: a disk that is this run's alone, or a
// file that other runs may use, with what is written held in memory.
const peersScript = `set -e
at=$1 disk=$2 root=$1/root
shift 2
mount -t tmpfs t "$at"
mkdir "$at/lower" "$at/upper" "$at/work" "$root"
if [ -b "$disk" ]; then
	mount -t ext4 "$disk" "$root"
else
	mount -o loop,ro "$disk" "$at/lower"
	mount -t overlay -o "lowerdir=$at/lower,upperdir=$at/upper,workdir=$at/work" o "$root"
fi
for d in /dev /proc /sys "$@"; do
	mkdir -p "$root$d"
	mount -o rbind "$d" "$root$d"
done
exec chroot "$root" /bin/sh -c 'echo && exec cat'`

// peersDisk is where a guest finds the file system.
const peersDisk = "/dev/vdb"

// peers mounts what the peers run from. They find this run's directory and the
// shared ones under the same names; nil where that cannot be.
func (b *bench) peers(ctx context.Context, shared ...string) (*peers, error) {
	if os.Geteuid() != 0 {
		fmt.Println("  left out: Nova and libvirt run from a file system that is mounted, which needs root")
		return nil, nil
	}
	disk := peersDisk
	if !b.guest {
		cmd := exec.CommandContext(ctx, "test/bench/peers")
		cmd.Dir, cmd.Stderr = b.repo, os.Stderr
		path, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("making the peers: %w", err)
		}
		disk = strings.TrimSpace(string(path))
	}
	at, err := b.fresh("peers")
	if err != nil {
		return nil, err
	}
	p := &peers{cmd: exec.Command("/bin/sh", append([]string{"-c", peersScript, "sh", at, disk, b.dir}, shared...)...)}
	p.cmd.Stderr, p.cmd.SysProcAttr = os.Stderr, &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.end = in
	if _, err := out.Read(make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("mounting the peers: %w", err), p.stop())
	}
	p.root = fmt.Sprintf("/proc/%d/root", p.cmd.Process.Pid)
	if b.guest { // whose kernel has no name, without which Nova does not start
		err = errors.Join(p.adopt("/etc/lvm/lvm.conf"), syscall.Sethostname([]byte("guest")))
	}
	return p, err
}

// adopt gives the peers a file of this machine.
func (p *peers) adopt(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(p.root, path), data, 0o644)
}

// program is one of the peers' own, by its absolute path.
func (p *peers) program(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.SysProcAttr = "/", &syscall.SysProcAttr{Chroot: p.root}
	return cmd
}

func (p *peers) stop() error {
	return errors.Join(p.end.Close(), p.cmd.Wait())
}

// nova is Nova's image backend in a process that stays, so that what it costs to
// start Python is no part of a disk.
type nova struct {
	cmd *exec.Cmd
	dir string // instances_path
	in  io.WriteCloser
	out *bufio.Reader
}

//go:embed nova.py
var novaScript string

// options are Nova's, by their groups.
type options map[string]map[string]any

// nova starts it in dir, with bases below dir/_base.
func (p *peers) nova(ctx context.Context, dir string, o options) (*nova, error) {
	if err := os.Mkdir(filepath.Join(dir, "_base"), 0o755); err != nil {
		return nil, err
	}
	if o["DEFAULT"] == nil {
		o["DEFAULT"] = map[string]any{}
	}
	o["DEFAULT"]["instances_path"] = dir
	o["oslo_concurrency"] = map[string]any{"lock_path": filepath.Join(dir, "locks")}
	conf, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	n := &nova{dir: dir, cmd: p.program(ctx, "/usr/bin/python3", "-c", novaScript, string(conf))}
	n.cmd.Stderr = os.Stderr
	if n.in, err = n.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	n.out = bufio.NewReader(out)
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	return n, n.heard("ready")
}

// heard waits for an answer.
func (n *nova) heard(want string) error {
	line, err := n.out.ReadString('\n')
	if line = strings.TrimSpace(line); err == nil && line != want {
		var text string
		_ = json.Unmarshal([]byte(line), &text) // a traceback, or what it is
		err = fmt.Errorf("nova: %s%s", line, text)
	}
	return err
}

// order is one disk that Nova makes; nova.py says what the fields are.
type order struct {
	Type     string  `json:"type"`
	UUID     string  `json:"uuid"`
	Base     string  `json:"base"`
	Size     int64   `json:"size"`
	Location *string `json:"location"`
}

// disk has a disk made; it returns the instance's id, which is in its name.
func (n *nova) disk(o order) (id string, err error) {
	o.UUID = uuid.NewString()
	line, err := json.Marshal(o)
	if err == nil && (o.Type == "raw" || o.Type == "qcow2") {
		err = os.Mkdir(filepath.Join(n.dir, o.UUID), 0o755) // the compute manager's
	}
	if err == nil {
		_, err = n.in.Write(append(line, '\n'))
	}
	if err != nil {
		return "", err
	}
	return o.UUID, n.heard("ok")
}

// work has n disks made, one after the other.
func (n *nova) work(name string, count int, o order, made func(ctx context.Context, id string) error) work {
	var ids []string
	w := work{name: name, n: count, pid: n.cmd.Process.Pid, do: func(context.Context) error {
		for range count {
			id, err := n.disk(o)
			if err != nil {
				return err
			}
			ids = append(ids, id)
		}
		return nil
	}}
	if made != nil {
		w.after = func(ctx context.Context) error {
			for _, id := range ids {
				if err := made(ctx, id); err != nil {
					return err
				}
			}
			ids = nil
			return nil
		}
	}
	return w
}

func (n *nova) stop() error {
	return errors.Join(n.in.Close(), n.cmd.Wait())
}
