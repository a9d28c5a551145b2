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

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

// daemon is a running tarnd with one pool.
type daemon struct {
	*client.Client
	dir    string
	socket string
	pid    int // of tarnd itself, also where it runs under another program
	cmd    *exec.Cmd
	began  time.Duration // from the start of the process to its first answer
}

// start starts tarnd with its state and its pool below dir. Arguments before it
// make it run under another program.
func (b *bench) start(ctx context.Context, dir string, under ...string) (*daemon, error) {
	d := &daemon{dir: dir, socket: filepath.Join(dir, "s")}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := append(under, b.path("bin", "tarnd"), "--state-dir", filepath.Join(dir, "state"), "--socket", d.socket)
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Stderr = log
	d.Client = client.New(client.Search{Socket: d.socket})
	begin := time.Now()
	if err := d.cmd.Start(); err != nil {
		return nil, err
	}
	for d.began == 0 {
		if _, err := d.Version(ctx); err == nil {
			d.began = time.Since(begin)
		} else if time.Since(begin) > patience.Wait || ctx.Err() != nil {
			text, _ := os.ReadFile(log.Name())
			return nil, errors.Join(fmt.Errorf("tarnd does not answer: %w\n%s", err, text), d.stop())
		} else {
			time.Sleep(time.Millisecond)
		}
	}
	pid, err := os.ReadFile(filepath.Join(dir, "state", "tarn.lock"))
	if err == nil {
		d.pid, err = strconv.Atoi(strings.TrimSpace(string(pid)))
	}
	return d, err
}

// stop ends the daemon and waits for it; a repeat does nothing.
func (d *daemon) stop() error {
	return d.end(syscall.SIGTERM)
}

func (d *daemon) end(sig syscall.Signal) error {
	d.Close()
	if d.cmd.ProcessState != nil {
		return nil
	}
	pid := d.pid
	if pid == 0 {
		pid = d.cmd.Process.Pid
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	if err := d.cmd.Wait(); err != nil && sig == syscall.SIGTERM {
		return fmt.Errorf("tarnd: %w", err)
	}
	return nil
}

// finished returns the error of a call that waited for its operation.
func finished(out api.Outcome, err error) error {
	switch {
	case err != nil:
		return err
	case out.Operation.State != "done":
		return fmt.Errorf("operation %s (%s) is %s: %+v", out.Operation.ID, out.Operation.Kind, out.Operation.State, out.Operation.Error)
	}
	return nil
}

// patience is how long a call waits for its operation.
var patience = api.Options{Wait: 10 * time.Minute}

// pool makes the daemon's pool in its directory.
func (d *daemon) pool(ctx context.Context) error {
	return d.poolOf(ctx, api.PoolCreate{Driver: "dir", Path: filepath.Join(d.dir, "pool")})
}

// poolOf makes the daemon's pool, which may promise much more than there is.
func (d *daemon) poolOf(ctx context.Context, p api.PoolCreate) error {
	p.Name, p.Overcommit = "p", new(1000.0)
	return finished(d.PoolCreate(ctx, patience, p))
}

// add imports the raw or qcow2 file at path.
func (d *daemon) add(ctx context.Context, name, path, format string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return finished(d.ImageImport(ctx, patience, api.ImageImport{Name: name, Format: format, Source: path}, client.Source{File: f}))
}

// disk makes an instance with a root disk.
func (d *daemon) disk(ctx context.Context, name, image, format string) error {
	return d.diskOf(ctx, name, image, format, diskSize)
}

func (d *daemon) diskOf(ctx context.Context, name, image, format string, size int64) error {
	return finished(d.InstanceCreate(ctx, patience, api.InstanceCreate{Name: name, Disks: []api.DiskSpec{{Role: "root", Image: image, Size: size, Format: format}}}))
}

// ready starts a daemon with a pool and an image "i" in it.
func (b *bench) ready(ctx context.Context, image string, under ...string) (*daemon, error) {
	dir, err := b.fresh("daemon")
	if err != nil {
		return nil, err
	}
	d, err := b.start(ctx, dir, under...)
	if err != nil {
		return nil, err
	}
	if err = d.pool(ctx); err == nil && image != "" {
		err = d.add(ctx, "i", image, "raw")
	}
	if err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// resident returns the daemon's resident memory in bytes.
func (d *daemon) resident() (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no VmRSS", d.pid)
}
