package dirdrv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// QEMU's image locks (QEMU, block/file-posix.c: raw_apply_lock_bytes and
// raw_check_lock_bytes). A program holds an OFD read lock on byte 100+i for a
// permission i that it uses and on byte 200+i for one that it denies others.
// Having taken its own it tests, with a write lock's eyes, byte 200+i for each
// permission it uses and byte 100+i for each it denies; a hit is a conflict.
const (
	usedBase   = 100
	deniedBase = 200
	lockEnd    = 300 // QEMU keeps 100 bytes for each

	consistentRead = 1 << 0
	write          = 1 << 1
	resize         = 1 << 3
	allPermissions = 5 // bits; older versions of QEMU use the fifth (graph-mod)
)

// permissions are what each mode uses and denies: what QEMU takes for a disk
// of a guest that is writable, and for one that is read-only.
var permissions = map[driver.Mode]struct{ uses, denies uint }{
	driver.Write: {consistentRead | write | resize, write | resize},
	driver.Read:  {consistentRead, write | resize},
}

// lock takes the locks of m on f, which keeps them until it is closed.
func lock(f *os.File, m driver.Mode) error {
	want, ok := permissions[m]
	if !ok {
		return nil
	}
	for i := range allPermissions {
		for base, set := range map[int]uint{usedBase: want.uses, deniedBase: want.denies} {
			if set&(1<<i) == 0 {
				continue
			}
			if err := take(f, int64(base+i)); err != nil {
				return err
			}
		}
	}
	for i := range allPermissions {
		for base, set := range map[int]uint{deniedBase: want.uses, usedBase: want.denies} {
			if set&(1<<i) == 0 {
				continue
			}
			if err := test(f, int64(base+i), 1); err != nil {
				return err
			}
		}
	}
	return nil
}

// take holds a read lock on one byte.
func take(f *os.File, off int64) error {
	l := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: off, Len: 1}
	err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &l)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return busy(f)
	}
	return err
}

// test finds out whether others hold locks on n bytes.
func test(f *os.File, off, n int64) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: off, Len: n}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l); err != nil {
		return err
	}
	if l.Type != unix.F_UNLCK {
		return busy(f)
	}
	return nil
}

// Probe implements driver.Prober. Only a reader that does not mind writers,
// such as "qemu-img info -U", goes unnoticed.
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
	const writers = usedBase + 1 // all but "consistent read"
	return failed(op, subject(r), test(f, writers, lockEnd-writers))
}

// claim makes this opening of a pool's .tarn-tmp the only one, for as long as it
// is open: two that serve one pool would take each other's volumes for their
// own. The kernel drops the lock with the process. Only root and the daemon can
// open that directory, so that nobody else can keep a pool from being served.
func claim(op string, tmp *dir) error {
	err := tmp.use(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	who := holder(tmp.f)
	if who == "" {
		who = "another tarnd"
	}
	path := filepath.Dir(tmp.f.Name())
	return errs.New(errs.Busy, op, path, "%s serves the pool at %s", who, path).
		WithHint("one tarnd serves a pool: stop that one, or have it give the pool up with \"tarn pool stop\"")
}

func busy(f *os.File) error {
	who := holder(f)
	if who == "" {
		who = "QEMU or another program"
	}
	return errs.New(errs.Busy, "volume.lock", filepath.Base(f.Name()), "%s holds the volume locked", who).
		WithHint("stop the guest or the program that uses it")
}

// holder names a process, other than this one, that has f's file open, or ""
// where none can be seen. OFD locks have no owner to ask for.
func holder(f *os.File) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	self := fmt.Sprintf("/proc/%d/", os.Getpid())
	for _, link := range links {
		if strings.HasPrefix(link, self) {
			continue
		}
		if other, err := os.Stat(link); err == nil && os.SameFile(info, other) {
			pid := strings.Split(link, "/")[2]
			if _, err := strconv.Atoi(pid); err != nil {
				continue
			}
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf("%s (process %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}
