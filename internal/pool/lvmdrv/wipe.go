package lvmdrv

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const wipeZero = "zero" // of disk.PoolSource.Wipe

// overwrite zeroes what a logical volume that is about to be removed holds, a
// snapshot what it kept of its volume. One that somebody has open is errs.Busy.
func (s *source) overwrite(ctx context.Context, name string) error {
	const op = "volume.wipe"
	m, _, err := s.look(name)
	if isNotExist(err) {
		if err = s.activate(ctx, lv{name: name}); err == nil {
			m, _, err = s.look(name)
		}
	}
	snapshot := strings.HasPrefix(name, snapPrefix)
	if err == nil && !snapshot && readOnly(m.dev) {
		err = s.change(ctx, 0, []hostexec.Option{hostexec.Flag("lvchange"), hostexec.Flag("--yes"), hostexec.OptionValue("--permission", hostexec.Word("rw"))}, s.path(name))
	}
	if err != nil {
		return err
	}
	mode := driver.Write
	if snapshot {
		mode = driver.Read
	}
	d, err := s.open(ctx, op, name, driver.Ref{}, mode) // with locks, to know that nobody uses it
	if err != nil {
		return err
	}
	if !snapshot {
		return errors.Join(d.erase(), d.Close())
	}
	defer d.Close()
	f, err := os.OpenFile(s.node(name)+"-cow", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	file, err := blkio.NewFile(f)
	if err != nil {
		f.Close()
		return err
	}
	area := &device{File: file, in: s, from: new(opening)}
	return errors.Join(area.erase(), area.Close())
}

// erase overwrites all of a device, durably.
func (d *device) erase() error {
	if err := d.zeroOut(0, d.Size()); err != nil {
		return err
	}
	return d.Sync()
}
