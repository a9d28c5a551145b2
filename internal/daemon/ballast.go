package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// ballastSize is what a full file system's records need for many deletes.
const ballastSize = 16 << 20

// ballast is space in the state directory that is given up when the database
// cannot grow, so that deletes work on a full file system.
type ballast struct {
	dir string
	mu  sync.Mutex
}

func (b *ballast) path() string { return filepath.Join(b.dir, "ballast") }

// Release gives the space up. An error means that there was none to give.
func (b *ballast) Release() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := faults.Do(faults.Unlink, "state ballast", func() error { return os.Remove(b.path()) })
	return errs.Wrap(err, "ballast.release", b.path())
}

// Missing returns how many bytes of the ballast are not there.
func (b *ballast) Missing() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	fi, err := os.Stat(b.path())
	if err != nil {
		return ballastSize
	}
	return max(0, ballastSize-fi.Size())
}

// Restore takes the space again; having it already is no error.
func (b *ballast) Restore() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if fi, err := os.Stat(b.path()); err == nil && fi.Size() == ballastSize {
		return nil
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return errs.Wrap(err, "ballast.restore", b.path())
	}
	err := faults.Do(faults.Create, "state ballast", b.allocate)
	if err != nil {
		_ = os.Remove(b.path()) // half a ballast helps nobody
	}
	return errs.Wrap(err, "ballast.restore", b.path())
}

func (b *ballast) allocate() error {
	f, err := os.OpenFile(b.path(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, ballastSize), f.Close())
}
