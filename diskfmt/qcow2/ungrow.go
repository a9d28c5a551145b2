package qcow2

import (
	"encoding/binary"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// offsetSize is where the header keeps the virtual size (qcow2 spec, section
// "Header").
const offsetSize = 24

// Ungrow takes a Grow back: it makes the image in f, whose structure is what
// want says, oldSize bytes large again, durably. It is for a range that nobody
// has written since: what lies behind oldSize stays allocated, if anything does,
// and reads as zeroes after another Grow. A cut leaves one size or the other.
func Ungrow(f File, want diskfmt.Recorded, oldSize int64) error {
	const op = "qcow2.ungrow"
	if oldSize <= 0 || oldSize > want.VirtualSize || oldSize%512 != 0 {
		return errs.New(errs.Invalid, op, "", "a disk of %d bytes cannot go back to %d", want.VirtualSize, oldSize)
	}
	size, err := f.Size()
	if err != nil {
		return errs.Wrap(err, op, "")
	}
	if _, err := Open(f, size, want); err != nil {
		return err
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(oldSize))
	if _, err := f.WriteAt(b[:], offsetSize); err != nil {
		return errs.Wrap(err, op, "")
	}
	return errs.Wrap(f.Sync(), op, "")
}
