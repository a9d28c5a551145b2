package dirdrv

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
)

// Probe implements driver.Prober.
func (p *pool) Probe(ctx context.Context, r driver.Ref) error {
	const op = "volume.probe"
	if err := ctx.Err(); err != nil {
		return failed(op, subject(r), err)
	}
	at, name, err := p.place(op, r)
	if err != nil {
		return err
	}
	f, err := at.open(name, unix.O_RDONLY)
	if err != nil {
		return missing(op, r, err)
	}
	defer f.Close()
	if err := p.checkIdentity(op, r, f); err != nil {
		return failed(op, subject(r), err)
	}
	return failed(op, subject(r), imagelock.Probe(f))
}

// claim makes this opening of a pool's .tarn-tmp the only one, for as long as it
// is open: two that serve one pool would take each other's volumes for their
// own. The kernel drops the lock with the process. Only root and the daemon can
// open that directory, so that nobody else can keep a pool from being served.
func claim(op string, tmp *dir) error {
	err := tmp.use(tmp.lockOut)
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	who := imagelock.Holder(tmp.f)
	if who == "" {
		who = "another tarnd"
	}
	path := filepath.Dir(tmp.f.Name())
	return errs.New(errs.Busy, op, path, "%s serves the pool at %s", who, path).
		WithHint("one tarnd serves a pool: stop that one, or have it give the pool up with \"tarn pool stop\"")
}

// lockOut takes the locks of a claim on d, which fd is: that of the directory, and
// on NFS, where that stays on the host, one of a file in it that all hosts see.
func (d *dir) lockOut(fd int) error {
	var fs unix.Statfs_t
	err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		err = unix.Fstatfs(fd, &fs)
	}
	if err != nil || fs.Type != unix.NFS_SUPER_MAGIC {
		return err
	}
	const flags = unix.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC
	lock, err := unix.Openat(fd, lockName, flags, 0)
	if errors.Is(err, unix.ENOENT) {
		err = faults.Do(faults.Create, "create "+lockName, func() (err error) {
			lock, err = unix.Openat(fd, lockName, flags|unix.O_CREAT, 0o600)
			return err
		})
	}
	if err != nil {
		return err
	}
	err = unix.FcntlFlock(uintptr(lock), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	if errors.Is(err, unix.EACCES) { // as some servers say it
		err = unix.EAGAIN
	}
	if err != nil {
		unix.Close(lock)
		return err
	}
	d.lock = os.NewFile(uintptr(lock), lockName)
	return nil
}

// unlock drops the lock that other hosts see.
func (d *dir) unlock() {
	if d.lock == nil {
		return
	}
	_ = unix.FcntlFlock(d.lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}) // the close drops it as well
	_ = d.lock.Close()
	d.lock = nil
}
