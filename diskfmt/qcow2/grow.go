package qcow2

import (
	"encoding/binary"
	"errors"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// Grow makes the image in f, whose structure is what want says, newSize bytes
// large. The added range reads as zeroes also where the backing layer is longer
// than the image was: backingSize is that layer's size, 0 without one. The
// result survives a power failure once Grow has returned nil; a cut at any
// write leaves the old size or the new, and Grow may be repeated with the same
// arguments in both cases.
//
// errs.Unsupported is returned when the backing layer reaches beyond an old end
// that lies inside a cluster: only Writer.Grow, which can read it, does that.
func Grow(f File, want diskfmt.Recorded, newSize, backingSize int64) error {
	if (want.BackingName != "") != (backingSize > 0) {
		return errs.New(errs.Internal, "qcow2.grow", "", "the record says backing %q, the caller gave its size %d", want.BackingName, backingSize)
	}
	w, err := openWriter(f, want)
	if errors.Is(err, errs.Corrupt) {
		want.VirtualSize = newSize
		if _, again := openWriter(f, want); again == nil {
			return errs.Wrap(f.Sync(), "qcow2.grow", "") // an earlier Grow got there
		}
	}
	if err != nil {
		return err
	}
	w.backSize = uint64(backingSize)
	if err := w.Grow(newSize); err != nil {
		return err
	}
	return w.Close()
}

// Grow makes the disk newSize bytes large, durably. The added range reads as
// zeroes, over a longer backing layer too. A newSize below the present size is
// errs.Invalid.
func (w *Writer) Grow(newSize int64) error {
	const op = "qcow2.grow"
	return w.change(op, 0, 0, func() error {
		old := w.l.H.Size
		switch {
		case newSize < int64(old):
			return errs.New(errs.Invalid, op, "", "the disk has %d bytes; %d is smaller", old, newSize)
		case newSize%512 != 0 || newSize > MaxVirtualSize:
			return errs.New(errs.Invalid, op, "", "virtual size %d is not a multiple of 512 up to %d", newSize, int64(MaxVirtualSize))
		case newSize == int64(old):
			return w.flush()
		case w.l.H.L1Needed(uint64(newSize))*8 > layout.MaxL1Bytes:
			return errs.New(errs.Invalid, op, "", "a disk of %d bytes needs clusters larger than %d bytes", newSize, w.l.H.ClusterSize())
		}
		if err := w.claim(); err != nil {
			return err
		}
		if err := w.growL1(w.l.H.L1Needed(uint64(newSize))); err != nil {
			return err
		}
		// The header on disk keeps the old size until the added range is durably
		// zero. What the old last cluster holds past the old end is nobody's.
		w.l.H.Size = uint64(newSize)
		err := w.zero(old, uint64(newSize), true)
		if err == nil {
			err = w.flush()
		}
		if err == nil {
			err = w.put(binary.BigEndian.AppendUint64(nil, uint64(newSize)), 24)
		}
		if err != nil {
			w.l.H.Size = old
			return err
		}
		return w.sync()
	})
}

// growL1 makes room for need L1 entries: in the last cluster of the table when
// it has it, else in a new place that the header refers to once it is durable.
func (w *Writer) growL1(need uint64) error {
	h := w.l.H
	if need <= uint64(h.L1Size) {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	have := (uint64(h.L1Size)*8 + h.ClusterSize() - 1) &^ (h.ClusterSize() - 1)
	table := append(w.l.L1, make([]uint64, need-uint64(h.L1Size))...)
	if need*8 <= have && h.L1Size > 0 {
		if err := w.put(make([]byte, have-uint64(h.L1Size)*8), h.L1Offset+uint64(h.L1Size)*8); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
		return w.useL1(table, h.L1Offset)
	}
	clusters := (need*8 + h.ClusterSize() - 1) >> h.ClusterBits
	first, err := w.extent(clusters)
	if err != nil {
		return err
	}
	w.reach(first + clusters)
	padded := append(encode(table), make([]byte, clusters<<h.ClusterBits-need*8)...)
	if err := w.put(padded, first<<h.ClusterBits); err != nil {
		return err
	}
	if err := w.flush(); err != nil { // refcounts, and blocks it took to raise them
		return err
	}
	was := h.L1Offset >> h.ClusterBits
	if err := w.useL1(table, first<<h.ClusterBits); err != nil {
		return err
	}
	return w.drop(was, have>>h.ClusterBits)
}

// useL1 points the header at the table, which is durable, in one write.
func (w *Writer) useL1(table []uint64, off uint64) error {
	h := w.l.H
	field := binary.BigEndian.AppendUint32(nil, uint32(len(table)))
	if err := w.put(binary.BigEndian.AppendUint64(field, off), 36); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	w.l.L1, h.L1Size, h.L1Offset = table, uint32(len(table)), off
	w.l.Meta.SetSpans(h)
	return nil
}
