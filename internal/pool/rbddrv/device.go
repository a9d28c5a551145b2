package rbddrv

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/nbd"
)

// device is an image that a qemu-storage-daemon of its own has open. What one
// volume's storage hangs in, or a daemon dies of, is no other volume's trouble.
// The daemon caches nothing: a write that returned is in the cluster.
type device struct {
	name     string
	nbd      *nbd.Client
	process  *hostexec.Process
	writable bool
	client   int64        // as Ceph calls its daemon; 0 is not known
	close    func() error // instead of end, where more is to be let go of; may be nil

	touching chan struct{} // room for one

	failed atomic.Pointer[errs.Error] // by a Sync
	closed sync.Once
}

// attach opens an image, or a snapshot of it, by a daemon that lives as long as
// the device. Requests that the cluster does not answer fail after quiet, and
// with them the device.
func (t *tool) attach(ctx context.Context, op, name, snapshot string, writable bool, quiet time.Duration) (*device, error) {
	conn, files, err := t.descriptors()
	if err != nil {
		return nil, failed(op, name, err)
	}
	p, err := hostexec.Serve(context.WithoutCancel(ctx), hostexec.Call{Program: hostexec.QemuStorageDaemon, Files: files,
		Options: t.serving(name, snapshot, writable)})
	for _, f := range files { // the daemon's alone from now on: with it the connection ends
		f.Close()
	}
	if err != nil {
		conn.Close()
		return nil, failed(op, name, err)
	}
	client, err := nbd.New(conn, nbd.Config{Export: export, Patience: quiet, Opening: patience})
	if err != nil {
		return nil, refused(op, name, p, err)
	}
	return &device{name: name, nbd: client, process: p, writable: writable, touching: make(chan struct{}, 1)}, nil
}

// refused words the failure of a daemon that does not export its image, with its
// own words if it ended by itself.
func refused(op, name string, p *hostexec.Process, err error) error {
	p.Stop(patience / 3)
	var exit *hostexec.Exit
	if _, why := p.Wait(); errors.As(why, &exit) && exit.Signal == 0 {
		err = exit
	}
	return errs.New(errs.Unavailable, op, name, "qemu-storage-daemon cannot open the image: %w", err).
		WithHint("QEMU's driver for RBD may be missing (apt-get install qemu-block-extra), or the cluster does not answer")
}

const (
	export = "volume"
	node   = "volume"
	// The daemon's descriptors: the socket it accepts one connection on, the
	// cluster's configuration, the key.
	serverOption = "addr.type=fd,addr.str=3"
	confPath     = "/proc/self/fd/4"
	keyPath      = "/proc/self/fd/5"
)

// serving tells the daemon what to serve. JSON keeps names from being anything
// but names.
func (t *tool) serving(name, snapshot string, writable bool) []hostexec.Option {
	volume := map[string]any{"driver": "rbd", "node-name": node, "pool": t.ceph, "image": name, "conf": confPath, "user": t.user,
		"read-only": !writable, "discard": "unmap", "cache": map[string]bool{"direct": true}}
	if t.namespace != "" {
		volume["namespace"] = t.namespace
	}
	if snapshot != "" {
		volume["snapshot"] = snapshot
	}
	var o []hostexec.Option
	if t.keyFile != "" {
		volume["key-secret"], volume["auth-client-required"] = "key", []string{"cephx"}
		o = append(o, hostexec.OptionValue("--object", object(map[string]any{"qom-type": "secret", "id": "key", "format": "base64", "file": keyPath})))
	}
	return append(o, hostexec.OptionValue("--blockdev", object(volume)), hostexec.OptionValue("--nbd-server", hostexec.Word(serverOption)),
		hostexec.OptionValue("--export", object(map[string]any{"type": "nbd", "id": "export", "node-name": node, "name": export, "writable": writable})))
}

func object(m map[string]any) hostexec.Value {
	b, _ := json.Marshal(m) // plain data: cannot fail
	return text(string(b))
}

// descriptors returns our end of a connection and what the daemon inherits: the
// socket on which that connection waits to be accepted, which nobody else can
// find any more, the configuration, and the key if there is one.
func (t *tool) descriptors() (net.Conn, []*os.File, error) {
	conn, listener, err := rendezvous()
	if err != nil {
		return nil, nil, err
	}
	files := []*os.File{listener}
	data, err := os.ReadFile(t.conf)
	if err == nil {
		data = append(data, "\n[client]\nclient mount timeout = "+seconds(patience/3)+"\n"...)
		files, err = addMemory(files, "conf", data)
	}
	if err == nil && t.keyFile != "" {
		if data, err = os.ReadFile(t.keyFile); err == nil {
			files, err = addMemory(files, "key", []byte(strings.TrimSpace(string(data))))
		}
	}
	if err != nil {
		conn.Close()
		for _, f := range files {
			f.Close()
		}
		return nil, nil, err
	}
	return conn, files, nil
}

// rendezvous connects to a socket that has a name for just that long, in a
// directory that nobody else can enter.
func rendezvous() (net.Conn, *os.File, error) {
	dir, err := os.MkdirTemp("", "tarn-nbd-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	f, err := l.File()
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, f, nil
}

// addMemory appends a file without a name that holds data.
func addMemory(files []*os.File, name string, data []byte) ([]*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return files, err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(data)
	return append(files, f), err
}

// Size implements driver.Device.
func (d *device) Size() int64 { return d.nbd.Size() }

// ReadAt implements driver.Device.
func (d *device) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.nbd.ReadAt(p, off)
	if err != nil && err != io.EOF {
		err = failed("volume.read", d.name, err)
	}
	return n, err
}

// WriteAt implements driver.Device.
func (d *device) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.act(faults.Write, "volume.write", func() error {
		n, err = d.nbd.WriteAt(p, off)
		return err
	})
	return n, err
}

// Zero implements driver.Device.
func (d *device) Zero(off, n int64) error {
	return d.act(faults.Ioctl, "volume.zero", func() error { return d.nbd.Zero(off, n) })
}

// Truncate implements driver.Device: images do not grow as they are written.
func (d *device) Truncate(int64) error {
	return errs.New(errs.Unsupported, "volume.truncate", d.name, "an RBD image is resized, not truncated")
}

// Sync implements driver.Device.
func (d *device) Sync() error {
	err := d.act(faults.Sync, "volume.sync", d.nbd.Flush)
	if err != nil && d.failed.Load() == nil {
		d.failed.Store(errs.New(errs.KindOf(err), "volume.sync", d.name, "an earlier sync failed, what was written may be lost: %w", err))
	}
	return err
}

// act performs one effect unless an earlier Sync failed.
func (d *device) act(kind faults.Kind, op string, f func() error) error {
	if e := d.failed.Load(); e != nil {
		return e
	}
	if !d.writable {
		return errs.New(errs.Invalid, op, d.name, "the volume is open for reading")
	}
	return failed(op, d.name, faults.Do(kind, op+" "+d.name, f))
}

// Extent implements driver.Device.
func (d *device) Extent(off int64) (diskfmt.Extent, error) {
	size := d.Size()
	if off < 0 || off >= size {
		return diskfmt.Extent{}, errs.New(errs.Invalid, "volume.extent", d.name, "offset %d is outside of %d bytes", off, size)
	}
	var e diskfmt.Extent
	for at := off; at < size; {
		status, err := d.nbd.Status(at, size-at)
		if err != nil {
			return diskfmt.Extent{}, failed("volume.extent", d.name, err)
		}
		for _, s := range status {
			kind := diskfmt.Data
			if s.Zero {
				kind = diskfmt.Zero
			}
			if e.Length > 0 && e.Kind != kind {
				return e, nil
			}
			e = diskfmt.Extent{Offset: off, Length: e.Length + s.Length, Kind: kind}
			at += s.Length
		}
		if e.Length >= 1<<30 {
			break // long enough: a question about a huge volume takes a while
		}
	}
	return e, nil
}

// Close implements driver.Device. All that was written is in the cluster.
func (d *device) Close() (err error) {
	d.closed.Do(func() {
		if d.close == nil {
			d.close = d.end
		}
		err = failed("volume.close", d.name, d.close())
	})
	return err
}

// touch writes what is of no meaning, as only one can that is not shut out.
func (d *device) touch() error {
	return d.answered(func() error { _, err := d.nbd.WriteAt(make([]byte, 512), 0); return err })
}

// look reads what touch wrote, which nobody can either that is shut out, but
// which waits for no room in a full Ceph pool.
func (d *device) look() error { return d.answered(d.peek) }

// answered makes a request and waits for no longer than patience; one request at
// most goes on without anybody.
func (d *device) answered(request func() error) error {
	late := time.NewTimer(patience)
	defer late.Stop()
	silent := errs.New(errs.Unavailable, "volume.look", d.name, "the cluster does not answer")
	select {
	case d.touching <- struct{}{}:
	case <-late.C:
		return silent
	}
	done := make(chan error, 1)
	go func() {
		err := request()
		<-d.touching
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return silent
	}
}

// peek reads what is of no meaning.
func (d *device) peek() error {
	_, err := d.nbd.ReadAt(make([]byte, 512), 0)
	return err
}

// ended reports whether the daemon has ended, by itself or by anybody's hand.
func (d *device) ended() bool {
	select {
	case <-d.process.Done():
		return true
	default:
		return false
	}
}

// end takes the daemon away, which lets go of the image.
func (d *device) end() error {
	err := d.nbd.Close()
	d.process.Stop(patience / 3)
	return err
}

func seconds(d time.Duration) string { return strconv.FormatInt(max(1, int64(d/time.Second)), 10) }
