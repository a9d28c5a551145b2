package parallels

import (
	"slices"

	"github.com/tarn-storage/tarn/diskfmt/parallels/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// Grow sets a larger virtual size, durably. What is added reads as zeroes, or as
// what a longer layer below has not: that there is none is the caller's affair.
// Where the BAT needs more room than there is before the data, the first
// clusters move to the end: copied and synced, then renamed in the BAT and
// synced, and when none is left in the way the header says the new size.
func (w *Writer) Grow(size int64) error {
	const op = "parallels.grow"
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.img.cluster()
	if size%layout.SectorSize != 0 || size < w.img.size() || size > MaxVirtualSize || (size+c-1)/c > maxEntries {
		return errs.New(errs.Invalid, op, "", "%d bytes are not a multiple of %d from %d to %d", size, layout.SectorSize, w.img.size(), int64(MaxVirtualSize))
	}
	return errs.Wrap(w.grow(size), op, "")
}

func (w *Writer) grow(size int64) error {
	if err := w.mark(); err != nil {
		return err
	}
	h := w.img.h
	resize(&h, size)
	first := uint32(h.Data() / h.Cluster())
	if err := w.settle(); err != nil {
		return err
	}
	if err := w.clearWay(first); err != nil {
		return err
	}
	from, to := int64(w.img.h.TableEnd()), int64(h.TableEnd())
	if from < to {
		if err := w.f.Zero(from, to-from); err != nil {
			return w.failed(err)
		}
	}
	if err := w.barrier(); err != nil {
		return err
	}
	w.img.bat = append(w.img.bat, make([]uint32, int(h.Entries)-len(w.img.bat))...)
	return w.rewrite(h)
}

// rewrite makes h the header.
func (w *Writer) rewrite(h layout.Header) error {
	w.img.h = h
	if err := w.header(layout.InUse); err != nil {
		return w.failed(err)
	}
	return w.barrier()
}

// clearWay moves every cluster before first to one from there on.
func (w *Writer) clearWay(first uint32) error {
	w.free = slices.DeleteFunc(w.free, func(c uint32) bool { return c < first })
	if w.end < first {
		if err := w.f.Truncate(w.img.at(first)); err != nil {
			return w.failed(err)
		}
		w.end = first
	}
	buf := make([]byte, w.img.cluster())
	for i, e := range w.img.bat {
		if e == 0 || e >= first {
			continue
		}
		if n, err := w.f.ReadAt(buf, w.img.at(e)); n < len(buf) {
			return short(err, "a cluster")
		}
		err := w.store(int64(i), func(at int64) error { _, err := w.f.WriteAt(buf, at); return err })
		if err != nil {
			return err
		}
	}
	return w.settle()
}

// Ungrow takes back a grow in which nothing was written, durably: size is
// smaller than the disk. What is cut off must not be stored, here or below, else it returns errs.Unsupported and changes nothing.
func (w *Writer) Ungrow(size int64) error {
	const op = "parallels.ungrow"
	w.mu.Lock()
	defer w.mu.Unlock()
	if size < 0 || size%layout.SectorSize != 0 || size > w.img.size() {
		return errs.New(errs.Invalid, op, "", "%d bytes are not a multiple of %d up to %d", size, layout.SectorSize, w.img.size())
	}
	h := w.img.h
	resize(&h, size)
	stored := slices.ContainsFunc(w.img.bat[h.Entries:], func(e uint32) bool { return e != 0 })
	if in := size % w.img.cluster(); in != 0 && !stored && w.img.bat[h.Entries-1] != 0 {
		tail := make([]byte, min(w.img.cluster()-in, w.img.size()-size))
		if n, err := w.img.readAt(tail, size, nil); n < len(tail) {
			return errs.Wrap(short(err, "a cluster"), op, "")
		}
		stored = slices.ContainsFunc(tail, func(b byte) bool { return b != 0 })
	}
	if !stored { // what the layer below has there would come back with the next grow
		var err error
		if stored, err = w.below(size, w.img.size()-size); err != nil {
			return errs.Wrap(err, op, "")
		}
	}
	if stored {
		return errs.New(errs.Unsupported, op, "", "a disk of this format cannot be made smaller: there is data behind its first %d bytes", size)
	}
	err := w.mark()
	if err == nil {
		err = w.settle()
	}
	if err == nil {
		w.img.bat = w.img.bat[:h.Entries]
		err = w.rewrite(h)
	}
	return errs.Wrap(err, op, "")
}
