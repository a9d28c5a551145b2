package fsdrv

import (
	"context"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/mounted"
)

// device is what a pool's block device is to those who mount it.
type device struct{}

// Find implements mounted.Storage.
func (device) Find(ctx context.Context, op string, c driver.Config) (*mounted.Call, error) {
	dev, err := number(op, c)
	if err != nil {
		return nil, err
	}
	here, elsewhere, err := find(op, c, dev)
	switch {
	case err != nil:
		return nil, err
	case here != nil && here.On(dev):
		return nil, nil
	case here != nil:
		return nil, mounted.Other(op, c.Path, here.Source)
	case elsewhere != "":
		return nil, errs.New(errs.Conflict, op, c.Source.Device, "%s is mounted at %s already", c.Source.Device, elsewhere).
			WithHint("unmount it: tarn mounts it at %s", c.Path)
	}
	kind, err := kindOf(ctx, op, c)
	if err != nil {
		return nil, err
	}
	return &mounted.Call{Source: c.Source.Device, Kind: kind}, nil
}

// Here implements mounted.Storage.
func (device) Here(op string, c driver.Config) (bool, error) {
	dev, err := number(op, c)
	if errors.Is(err, errs.Unavailable) {
		dev, err = 0, nil // unplugged; what is mounted there may be what is left of it
	}
	if err != nil {
		return false, err
	}
	here, _, err := find(op, c, dev)
	return here != nil && (here.On(dev) || here.Source == c.Source.Device), err
}

// Unmountable implements mounted.Storage.
func (device) Unmountable(op string, c driver.Config, m mounted.Call, err error) error {
	name, kind := m.Source, m.Kind
	var errno syscall.Errno
	errors.As(err, &errno)
	switch errno {
	case unix.EINVAL:
		return nothing(errs.New(errs.Unavailable, op, name, "there is no sound %s on %s", kind, name).
			WithHint("tarn pool create --build and tarn pool build make a file system"))
	case unix.ENODEV:
		return errs.New(errs.Unavailable, op, name, "this kernel has no %s", kind).WithHint("modprobe %s", kind)
	case unix.EBUSY:
		return errs.New(errs.Conflict, op, name, "%s is in use by something else", name).WithHint("lsblk %s shows what", name)
	case unix.EPERM, unix.EACCES:
		return errs.New(errs.Unavailable, op, name, "tarnd may not mount %s: %w", name, err).WithHint("run tarnd as root, with CAP_SYS_ADMIN")
	case unix.EUCLEAN:
		return errs.New(errs.Corrupt, op, name, "the %s on %s is damaged: %w", kind, name, err).WithHint("fsck it")
	case unix.ENXIO, unix.ENOENT, unix.ENOTBLK:
		return errs.New(errs.Unavailable, op, name, "%s does not answer: %w", name, err)
	}
	return failed(op, name, err)
}

// Explained implements mounted.Storage: errors of local files say it themselves.
func (device) Explained(_ string, _ driver.Config, err error) error { return err }

func nothing(e *errs.Error) error {
	e.Err = mounted.ErrNothing
	return e
}

// number returns the number of the pool's block device.
func number(op string, c driver.Config) (uint64, error) {
	name := c.Source.Device
	var st unix.Stat_t
	switch err := unix.Stat(name, &st); {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOTDIR):
		return 0, errs.New(errs.Unavailable, op, name, "there is no device %s", name).WithHint("is the disk plugged in? names below /dev/disk/by-id last")
	case err != nil:
		return 0, failed(op, name, err)
	case st.Mode&unix.S_IFMT != unix.S_IFBLK:
		return 0, errs.New(errs.Invalid, op, name, "%s is no block device", name)
	}
	return st.Rdev, nil
}

// find returns what is mounted at the pool's path, and where else its device is.
func find(op string, c driver.Config, dev uint64) (here *mounted.Point, elsewhere string, err error) {
	all, err := mounted.Points()
	if err != nil {
		return nil, "", failed(op, c.Path, err)
	}
	path := mounted.Place(c.Path)
	for _, p := range all {
		switch {
		case p.Path == path:
			here = &p
		case p.On(dev):
			elsewhere = p.Path
		}
	}
	return here, elsewhere, nil
}

// failed gives err op and subject.
func failed(op, subject string, err error) error { return blkio.Error(op, subject, err) }
