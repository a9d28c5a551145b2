// Package imagelock keeps QEMU and tarn from using one file or block device at
// once, by the locks that QEMU itself takes. It refuses to wait for one, and to
// look at bytes.
package imagelock

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

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

// Take takes the locks of mode m on f, which keeps them until it is closed: none
// but for driver.Read and driver.Write. Others' that conflict are errs.Busy, also
// those of this process.
func Take(f *os.File, m driver.Mode) error {
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

// Probe returns errs.Busy if anybody holds f locked for writing, or relies on
// nobody writing it. Only a reader that does not mind writers, such as
// "qemu-img info -U", goes unnoticed.
func Probe(f *os.File) error {
	const writers = usedBase + 1 // all but "consistent read"
	return test(f, writers, lockEnd-writers)
}

func busy(f *os.File) error {
	who := Holder(f)
	if who == "" {
		who = "QEMU or another program"
	}
	return errs.New(errs.Busy, "volume.lock", filepath.Base(f.Name()), "%s holds the volume locked", who).
		WithHint("stop the guest or the program that uses it")
}

// Holder names a process, other than this one, that has f's file open, or ""
// where none can be seen. OFD locks have no owner to ask for.
func Holder(f *os.File) string {
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
		if !mayBe(info, link) {
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

// mayBe reports whether the open file behind a link of /proc may be the one that
// info is of, as far as the kernel tells (since Linux 5.14) without asking the file
// system that it is on, which may be slow to answer, or hang.
func mayBe(info os.FileInfo, link string) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	data, err := os.ReadFile(strings.Replace(link, "/fd/", "/fdinfo/", 1))
	if !ok || err != nil {
		return ok
	}
	_, rest, told := strings.Cut(string(data), "\nino:")
	number, _, _ := strings.Cut(rest, "\n")
	return !told || strings.TrimSpace(number) == strconv.FormatUint(st.Ino, 10)
}
