package dirdrv

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// dir is an open directory. Everything in it is reached by one name, below it,
// never through a symlink or onto another file system.
type dir struct {
	f    *os.File
	gate sync.RWMutex // shared while f is used, see halt
	lock *os.File     // of a claim, on NFS

	turn sync.Mutex // held by the one fsync that is running
	mu   sync.Mutex
	next *syncRound // the fsync that has not begun and may still be joined
}

type syncRound struct {
	done chan struct{}
	err  error
}

// openDir opens the directory at path, which must not be a symlink itself.
func openDir(path string) (*dir, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return &dir{f: f}, nil
}

// sub opens the directory name.
func (d *dir) sub(name string) (*dir, error) {
	f, err := d.openat(name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	return &dir{f: f}, nil
}

// close drops a claim and closes the directory, unless Release did. Without the
// first the claim would outlive it for as long as a process that is being started
// still has its descriptor.
func (d *dir) close() error {
	_ = d.use(func(fd int) error { return unix.Flock(fd, unix.LOCK_UN) }) // there may be none
	d.unlock()
	return ignoring(os.ErrClosed, d.f.Close())
}

// use calls do with the directory's descriptor, which stays open meanwhile: a
// pool may be closed while calls run, and a number that was closed could be
// another file's by then. On a closed directory it fails with os.ErrClosed.
func (d *dir) use(do func(fd int) error) error {
	d.gate.RLock()
	defer d.gate.RUnlock()
	conn, err := d.f.SyscallConn()
	if err != nil {
		return err
	}
	var done error
	if conn.Control(func(fd uintptr) { done = do(int(fd)) }) != nil {
		return os.ErrClosed
	}
	return done
}

// useBoth is use for two directories.
func useBoth(from, to *dir, do func(from, to int) error) error {
	return from.use(func(a int) error { return to.use(func(b int) error { return do(a, b) }) })
}

func (d *dir) openat(name string, flags int, mode uint32) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	for {
		var fd int
		err := d.use(func(at int) (err error) {
			fd, err = unix.Openat2(at, name, &how)
			return err
		})
		if err == nil {
			return os.NewFile(uintptr(fd), d.f.Name()+"/"+name), nil
		}
		if err != unix.EINTR && err != unix.EAGAIN { // EAGAIN: a rename raced with the lookup
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// open opens the regular file name; nothing else, and it does not wait for a
// FIFO's other end to find that out.
func (d *dir) open(name string, flags int) (*os.File, error) {
	f, err := d.openat(name, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, errs.New(errs.Unsafe, "dir.open", name, "is not a regular file")
	}
	return f, nil
}

// create makes the file name, which must not exist, with mode 0600.
func (d *dir) create(name string) (f *os.File, err error) {
	err = faults.Do(faults.Create, "create "+name, func() error {
		f, err = d.openat(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
		return err
	})
	if err != nil && f != nil { // made, but reported as failed
		f.Close()
		f = nil
	}
	return f, err
}

// createAnew makes the file name in place of one that has the name.
func (d *dir) createAnew(name string) (*os.File, error) {
	f, err := d.create(name)
	if errors.Is(err, unix.EEXIST) {
		if err = d.remove(name); err == nil {
			f, err = d.create(name)
		}
	}
	return f, err
}

// stat looks at name itself, not through it.
func (d *dir) stat(name string) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := d.use(func(fd int) error {
		return unix.Statx(fd, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	return st, err
}

func (d *dir) exists(name string) (bool, error) {
	_, err := d.stat(name)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil, err
}

// remove unlinks name if it exists.
func (d *dir) remove(name string) error {
	if there, err := d.exists(name); err != nil || !there {
		return err
	}
	return faults.Do(faults.Unlink, "unlink "+name, func() error {
		return d.use(func(fd int) error { return ignoring(unix.ENOENT, unix.Unlinkat(fd, name, 0)) })
	})
}

// rename moves name to newName in to, over what has that name.
func (d *dir) rename(name string, to *dir, newName string) error {
	return faults.Do(faults.Rename, "rename "+name+" "+newName, func() error {
		return useBoth(d, to, func(from, to int) error { return unix.Renameat(from, name, to, newName) })
	})
}

// publish moves name to newName in to; EEXIST if something has that name.
func (d *dir) publish(name string, to *dir, newName string) error {
	return faults.Do(faults.Rename, "rename "+name+" "+newName, func() error {
		err := useBoth(d, to, func(from, to int) error { return unix.Renameat2(from, name, to, newName, unix.RENAME_NOREPLACE) })
		if err != unix.EINVAL { // this file system cannot, as NFS
			return err
		}
		switch there, err := to.exists(newName); {
		case err != nil:
			return err
		case there:
			return unix.EEXIST
		}
		return useBoth(d, to, func(from, to int) error { return unix.Renameat(from, name, to, newName) })
	})
}

// writeFile makes or replaces name with data, synced, but not its entry.
func (d *dir) writeFile(name string, data []byte) error {
	f, err := d.createAnew(name) // a new inode: never a second fsync of a failed one
	if err != nil {
		return err
	}
	defer f.Close()
	err = faults.Do(faults.Write, "write "+name, func() error { _, err := f.Write(data); return err })
	if err == nil {
		err = faults.Do(faults.Sync, "sync "+name, f.Sync)
	}
	if err != nil {
		_ = d.remove(name)
	}
	return err
}

// readFile returns the bytes of a sidecar or marker, of what cannot be one the first.
func (d *dir) readFile(name string) ([]byte, error) {
	f, err := d.open(name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	data := make([]byte, min(info.Size(), maxRecord))
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return nil, err
	}
	return data, nil
}

// sync makes the directory's entries survive power loss. Callers that wait
// while an fsync runs share the next one, which sees all that they did.
func (d *dir) sync() error {
	d.mu.Lock()
	round, leads := d.next, d.next == nil
	if leads {
		round = &syncRound{done: make(chan struct{})}
		d.next = round
	}
	d.mu.Unlock()
	if leads {
		d.turn.Lock()
		runtime.Gosched() // those that are about to need it as well come first
		d.mu.Lock()
		d.next = nil
		d.mu.Unlock()
		round.err = faults.Do(faults.Sync, "sync directory", func() error {
			return d.use(func(int) error { return d.f.Sync() })
		})
		d.turn.Unlock()
		close(round.done)
	}
	<-round.done
	return round.err
}

// each calls visit with the entries of d until it returns false.
func (d *dir) each(ctx context.Context, visit func(name string) bool) error {
	f, err := d.openat(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(512)
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if !visit(name) {
				return nil
			}
		}
		if len(names) == 0 {
			return ignoring(io.EOF, err)
		}
	}
}

// backendID names a file: its inode and birth time. Both stay for the life of
// the file, across renames, writes and reboots, and no other file of the file
// system ever has both, though inode numbers are used again. A file restored
// from a backup is another file.
func backendID(st unix.Statx_t) string {
	id := "ino:" + strconv.FormatUint(st.Ino, 10)
	if st.Mask&unix.STATX_BTIME != 0 {
		id += "." + strconv.FormatInt(st.Btime.Sec*1e9+int64(st.Btime.Nsec), 36)
	}
	return id
}

func isRegular(st unix.Statx_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFREG }

func ignoring(expected, err error) error {
	if errors.Is(err, expected) {
		return nil
	}
	return err
}
