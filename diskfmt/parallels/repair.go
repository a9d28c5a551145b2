package parallels

import (
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// Repaired says what Repair did.
type Repaired struct {
	Dropped int // entries that named clusters behind the file's end: never synced, so never promised
	Copied  int // entries that named another one's cluster and got a copy
}

// Repair closes an image that a killed writer, this package's or QEMU, left in
// use; one that is closed stays as it is. Nobody else may have it open. Such a
// writer can have left clusters without an entry, entries of clusters that the
// file lost with the power, and, where the file's end was lost and used again,
// entries that name one cluster: each gets its own copy, as qemu-img check of
// later versions does. A header that differs from the record, and an entry that
// names the header or the BAT, no writer leaves: they are errs.Corrupt and
// nothing is changed.
func Repair(f File, want diskfmt.Recorded) (Repaired, error) {
	const op = "parallels.repair"
	img, err := load(f, f.Size(), want)
	if err != nil || img.h.InUse != layout.InUse {
		return Repaired{}, errs.Wrap(err, op, "")
	}
	w := &Writer{f: f, img: img, dirty: map[int]struct{}{}, marked: true}
	done, err := w.repair()
	if err == nil {
		err = w.close()
	}
	if err == nil {
		err = f.Sync()
	}
	return done, errs.Wrap(err, op, "")
}

func (w *Writer) repair() (Repaired, error) {
	var done Repaired
	m := &w.img
	for i, e := range m.bat {
		if e != 0 && e < m.first() {
			return done, corrupt("BAT entry %d names cluster %d, the data begin at %d: no writer leaves that", i, e, m.first())
		}
	}
	w.end = uint32((w.f.Size() + m.cluster() - 1) / m.cluster()) // a part of a cluster is kept
	if err := w.f.Truncate(m.at(w.end)); err != nil {
		return done, err
	}
	end := w.end // copies lie behind it
	used := newBitmap(uint64(end))
	buf := make([]byte, m.cluster())
	for i, e := range m.bat {
		switch {
		case e == 0:
		case e >= end:
			m.bat[i] = 0
			w.dirty[i/perPage] = struct{}{}
			done.Dropped++
		case used.has(e):
			if n, err := w.f.ReadAt(buf, m.at(e)); n < len(buf) {
				return done, short(err, "a cluster")
			}
			err := w.store(int64(i), func(at int64) error { _, err := w.f.WriteAt(buf, at); return err })
			if err != nil {
				return done, err
			}
			done.Copied++
		default:
			used.set(e)
		}
	}
	return done, nil
}
