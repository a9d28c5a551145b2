package qcow2

import (
	"maps"
	"slices"

	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
)

// flush writes what is pending in the order that Writer documents.
func (w *Writer) flush() error {
	if w.l.DirtyCount() == 0 && len(w.dirtyL1) == 0 && len(w.frees) == 0 && !w.refs.changed() {
		if !w.data {
			return nil
		}
		return w.sync()
	}
	parts := w.l.TakeDirty()
	if err := w.putBlocks(); err != nil {
		return err
	}
	if err := w.putParts(parts, true); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	if len(w.refs.dirty) > 0 {
		if err := w.putEntries(w.refs.dirty, w.refs.table, w.l.H.RefTableOffset); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
	}
	if err := w.putParts(parts, false); err != nil {
		return err
	}
	if err := w.putEntries(w.dirtyL1, w.l.L1, w.l.H.L1Offset); err != nil {
		return err
	}
	clear(w.newL2)
	if w.data {
		if err := w.sync(); err != nil {
			return err
		}
	}
	return w.dropFreed()
}

// putEntries writes the changed entries of a table, neighbours in one write,
// and forgets them.
func (w *Writer) putEntries(dirty map[uint64]struct{}, table []uint64, off uint64) error {
	index := slices.Sorted(maps.Keys(dirty))
	for len(index) > 0 {
		n := 1
		for n < len(index) && index[n] == index[n-1]+1 {
			n++
		}
		if err := w.put(encode(table[index[0]:index[0]+uint64(n)]), off+index[0]*8); err != nil {
			return err
		}
		index = index[n:]
	}
	clear(dirty)
	return nil
}

// putParts writes the changed parts of new L2 tables, or of the others.
func (w *Writer) putParts(parts []layout.Part, fresh bool) error {
	for _, p := range parts {
		if _, isNew := w.newL2[p.Table(w.l.H.ClusterBits)]; isNew != fresh {
			continue
		}
		if err := w.put(p.Bytes, p.Off); err != nil {
			return err
		}
		p.Clean()
	}
	return nil
}

func (r *refcounts) changed() bool {
	if len(r.dirty) > 0 {
		return true
	}
	for _, b := range r.blocks {
		if b.dirtyHi > 0 {
			return true
		}
	}
	return false
}

// putBlocks writes the changed parts of refcount blocks.
func (w *Writer) putBlocks() error {
	for _, b := range w.refs.blocks {
		if b.dirtyHi == 0 {
			continue
		}
		if err := w.put(b.buf[b.dirtyLo:b.dirtyHi], b.off+uint64(b.dirtyLo)); err != nil {
			return err
		}
		b.dirtyLo, b.dirtyHi = 0, 0
	}
	return nil
}

// dropFreed lowers the refcounts of what lost its last durable reference. The
// write is not synced: losing it leaks.
func (w *Writer) dropFreed() error {
	if len(w.frees) == 0 {
		return nil
	}
	bits := w.l.H.ClusterBits
	for _, off := range w.frees {
		if err := w.drop(off>>bits, 1); err != nil {
			w.err = err
			return err
		}
	}
	err := w.punch()
	w.frees = w.frees[:0]
	if err != nil {
		return err
	}
	return w.putBlocks()
}

// punch gives freed ranges back to the host, neighbours at once.
func (w *Writer) punch() error {
	p, ok := w.f.(puncher)
	if !ok {
		return nil
	}
	slices.Sort(w.frees)
	cluster := w.l.H.ClusterSize()
	for i := 0; i < len(w.frees); {
		off, n := w.frees[i], uint64(0)
		for ; i < len(w.frees) && w.frees[i] <= off+n; i++ {
			v, err := w.refs.get(w.frees[i] >> w.l.H.ClusterBits)
			if err != nil {
				return err
			}
			if v != 0 {
				i++
				break
			}
			n = w.frees[i] + cluster - off
		}
		if n == 0 {
			continue
		}
		if err := p.PunchHole(int64(off), int64(n)); err != nil {
			return err
		}
	}
	return nil
}
