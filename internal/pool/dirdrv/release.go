package dirdrv

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Open opens the pool at c as Type.Open does, for a technology that brings the
// directory about and embeds the Pool.
func Open(ctx context.Context, c driver.Config) (*Pool, driver.Capabilities, error) {
	p, err := start(ctx, c, capabilities, nil)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	return p, p.caps, nil
}

// MakeDir makes the directory at path, unless something is there, so that
// DropDir knows it again.
func MakeDir(path string) error {
	return failed("pool.prepare", path, makePlace("pool.prepare", driver.Config{Path: path}))
}

// DropDir removes a directory that MakeDir made, unless something is in it.
func DropDir(ctx context.Context, path string) error {
	const op = "pool.remove"
	if _, err := os.Lstat(path); isNotExist(err) {
		return failed(op, path, dropShadow(op, path))
	}
	d, err := openPlace(op, path)
	if err != nil {
		return err
	}
	defer d.close()
	return failed(op, path, unmake(ctx, op, d, path))
}

// IsMade reports whether name is the mark that MakeDir leaves in a directory.
func IsMade(name string) bool { return name == madeName }

// Release lets the pool's directory go, calls act, which may take the file system
// away, and closes the pool. Calls wait meanwhile. If act fails, or ctx has ended
// when its turn comes, as storage that hangs can have it, the pool takes its
// directory again and is as open as before; where that fails too it is closed. Of
// a pool that is closed only act is left to do.
func (p *pool) Release(ctx context.Context, act func() error) error {
	const op = "pool.stop"
	dirs := []*dir{p.root, p.tmp}
	if p.snaps != nil {
		dirs = append(dirs, p.snaps)
	}
	for i, d := range dirs {
		if err := d.halt(ctx); err != nil {
			for _, halted := range dirs[:i] {
				halted.gate.Unlock()
			}
			return failed(op, p.path, err)
		}
	}
	defer func() {
		for _, d := range dirs {
			d.gate.Unlock()
		}
	}()
	err := p.park(dirs)
	if errors.Is(err, os.ErrClosed) {
		return failed(op, p.path, act())
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = act()
	}
	if err != nil {
		lost := p.retake()
		if lost == nil {
			return failed(op, p.path, err)
		}
		err = errors.Join(err, lost)
	}
	for _, d := range dirs {
		d.unlock()
		err = errors.Join(err, ignoring(os.ErrClosed, d.f.Close()))
	}
	return failed(op, p.path, err)
}

// halt waits until nobody uses d and keeps everybody away until gate is unlocked.
// It never stands in line for the lock: a call that uses d may use it twice.
func (d *dir) halt(ctx context.Context) error {
	for !d.gate.TryLock() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

// park makes the descriptors of dirs, which nobody uses, those of a directory
// that no pool is in; the claim goes with what they were.
func (p *pool) park(dirs []*dir) error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, d := range dirs {
		d.unlock()
		if err := d.become(root); err != nil {
			return err
		}
	}
	return nil
}

// retake undoes park.
func (p *pool) retake() error {
	root, err := unix.Open(p.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	sub := func(d *dir, name string) error {
		if d == nil {
			return nil
		}
		how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
		fd, err := unix.Openat2(root, name, &how)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if name == tmpName {
			err = d.lockOut(fd)
		}
		return errors.Join(err, d.become(fd))
	}
	return errors.Join(p.root.become(root), sub(p.tmp, tmpName), sub(p.snaps, snapsName))
}

// become makes d the directory that fd is. The caller has halted d.
func (d *dir) become(fd int) error {
	conn, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	if conn.Control(func(own uintptr) { done = unix.Dup3(fd, int(own), unix.O_CLOEXEC) }) != nil {
		return os.ErrClosed
	}
	return done
}
