package qcow2

import (
	"encoding/binary"
	"slices"

	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

const refcountCache = 16 << 20

// block is a refcount block in memory; dirtyHi 0 means unchanged.
type block struct {
	off              uint64
	buf              []byte
	dirtyLo, dirtyHi int
}

// refcounts is the refcount structure of an image: the whole table and the
// blocks in use.
type refcounts struct {
	f      File
	h      *layout.Header
	per    uint64 // refcounts in a block
	table  []uint64
	blocks map[uint64]*block
	dirty  map[uint64]struct{} // table entries to be written
	max    int                 // blocks kept
}

func (r *refcounts) load(f File, h *layout.Header) error {
	r.f, r.h, r.per = f, h, h.BlockRefs()
	r.blocks, r.dirty = map[uint64]*block{}, map[uint64]struct{}{}
	r.max = max(4, refcountCache>>h.ClusterBits)
	size, err := f.Size()
	if err != nil {
		return err
	}
	r.table, err = layout.ReadTable(f, h.RefTableOffset, uint64(h.RefTableCluster)<<(h.ClusterBits-3))
	if err != nil {
		return err
	}
	for i, e := range r.table {
		if e == 0 {
			continue
		}
		if err := h.CheckTableEntry(e, layout.RefReserved, uint64(size)); err != nil {
			return layout.Faultf(layout.ClassOf(err), "refcount table entry %d: %v", i, err)
		}
	}
	return nil
}

// full reports whether changed blocks fill the cache.
func (r *refcounts) full() bool {
	if len(r.blocks) <= r.max {
		return false
	}
	for i, b := range r.blocks {
		if b.dirtyHi == 0 {
			delete(r.blocks, i)
		}
	}
	return len(r.blocks) > r.max
}

// block returns refcount block i, which must exist.
func (r *refcounts) block(i uint64) (*block, error) {
	if b := r.blocks[i]; b != nil {
		return b, nil
	}
	b := &block{off: r.table[i], buf: make([]byte, r.h.ClusterSize())}
	if err := layout.ReadFull(r.f, b.buf, b.off); err != nil {
		return nil, err
	}
	r.full()
	r.blocks[i] = b
	return b, nil
}

// get returns the refcount of host cluster c.
func (r *refcounts) get(c uint64) (uint64, error) {
	i := c / r.per
	if i >= uint64(len(r.table)) || r.table[i] == 0 {
		return 0, nil
	}
	b, err := r.block(i)
	if err != nil {
		return 0, err
	}
	return layout.Refcount(b.buf, r.h.RefcountOrder, c%r.per), nil
}

// set changes the refcount of host cluster c, whose block must exist.
func (r *refcounts) set(c, v uint64) error {
	b, err := r.block(c / r.per)
	if err != nil {
		return err
	}
	b.set(r.h.RefcountOrder, c%r.per, v)
	return nil
}

func (b *block) set(order uint32, i, v uint64) {
	layout.SetRefcount(b.buf, order, i, v)
	lo := int(i << order / 8)
	hi := lo + max(1, 1<<order/8)
	if b.dirtyHi == 0 {
		b.dirtyLo, b.dirtyHi = lo, hi
		return
	}
	b.dirtyLo, b.dirtyHi = min(b.dirtyLo, lo), max(b.dirtyHi, hi)
}

// alloc takes up to n contiguous free clusters from the lowest free one on, and
// returns the first and how many. Their refcounts become one in memory.
func (w *Writer) alloc(n uint64) (first, got uint64, err error) {
	from := w.next
	first = from
	for {
		got = 0
		for got < n {
			free, err := w.free(first + got)
			if err != nil {
				return 0, 0, err
			}
			if !free {
				break
			}
			got++
		}
		if got > 0 {
			break
		}
		first++
	}
	for i := range got {
		if err := w.refs.set(first+i, 1); err != nil {
			return 0, 0, err
		}
	}
	if w.next == from { // a flush on the way may have freed lower ones
		w.next = first + got
	}
	return first, got, nil
}

// extent takes n contiguous free clusters: among those that refcount blocks
// cover, else in front of the first blocks that are to come, which then lie
// behind them.
func (w *Writer) extent(n uint64) (first uint64, err error) {
	r := &w.refs
	got := uint64(0)
	for c := w.next; got < n && c/r.per < uint64(len(r.table)) && r.table[c/r.per] != 0; c++ {
		free, err := w.free(c)
		if err != nil {
			return 0, err
		}
		if got++; !free {
			got = 0
		}
		first = c + 1 - got
	}
	if got == n {
		for i := range n {
			if err := r.set(first+i, 1); err != nil {
				return 0, err
			}
		}
		return first, nil
	}
	blocks, i := uint64(0), uint64(0)
	for blocks*r.per < n+blocks {
		blocks++
	}
	for j := uint64(0); j < i+blocks; j++ {
		if j >= uint64(len(r.table)) {
			if err := w.growRefTable(i + blocks); err != nil {
				return 0, err
			}
		}
		if r.table[j] != 0 {
			i = j + 1
		}
	}
	first = i * r.per
	if what, hit := w.l.Meta.Hit(first<<r.h.ClusterBits, (n+blocks)<<r.h.ClusterBits); hit {
		return 0, layout.Faultf(layout.ClassCorrupt, "no refcount block covers 0x%x, but %s lies there", first<<r.h.ClusterBits, what)
	}
	for b := range blocks {
		r.add(i+b, first+n+b, n+blocks-min(n+blocks, b*r.per))
		w.l.Meta.Add((first + n + b) << r.h.ClusterBits)
	}
	w.reach(first + n + blocks)
	return first, nil
}

// add makes cluster c refcount block i, in which the first used clusters count
// one.
func (r *refcounts) add(i, c, used uint64) {
	b := &block{off: c << r.h.ClusterBits, buf: make([]byte, r.h.ClusterSize())}
	for j := range min(used, r.per) {
		layout.SetRefcount(b.buf, r.h.RefcountOrder, j, 1)
	}
	b.dirtyHi = len(b.buf)
	r.blocks[i], r.table[i] = b, b.off
	r.dirty[i] = struct{}{}
}

// reach notes that clusters below end are in use or were.
func (w *Writer) reach(end uint64) {
	w.fresh = max(w.fresh, end)
	w.l.Size = max(w.l.Size, w.fresh<<w.l.H.ClusterBits)
}

// free reports whether host cluster c may be taken. Where no refcount block
// covers it, c becomes that block, as in QEMU.
func (w *Writer) free(c uint64) (bool, error) {
	r := &w.refs
	i := c / r.per
	if i >= uint64(len(r.table)) {
		if err := w.growRefTable(i); err != nil {
			return false, err
		}
	}
	off := c << r.h.ClusterBits
	if off > layout.OffsetMask {
		return false, errs.New(errs.NoSpace, "qcow2.write", "", "the container would pass 64 PiB")
	}
	if r.table[i] != 0 {
		v, err := r.get(c)
		if err != nil || v != 0 {
			return false, err
		}
	}
	if what, hit := w.l.Meta.Hit(off, r.h.ClusterSize()); hit {
		return false, layout.Faultf(layout.ClassCorrupt, "the cluster at 0x%x holds %s, but its refcount is 0", off, what)
	}
	if r.table[i] != 0 {
		return true, nil
	}
	r.add(i, c, 0)
	w.l.Meta.Add(off)
	w.reach(c + 1)
	return false, r.set(c, 1)
}

// growRefTable moves the refcount table to a larger place that covers block i:
// the first clusters the old table does not reach, followed by the blocks that
// count them. The header changes, in one write, when all that is durable.
func (w *Writer) growRefTable(i uint64) error {
	if err := w.flush(); err != nil {
		return err
	}
	r, h := &w.refs, w.l.H
	old := uint64(len(r.table))
	clusters := (max(i+1, old*3/2)*8 + h.ClusterSize() - 1) >> h.ClusterBits
	if clusters<<h.ClusterBits > layout.MaxRefTable {
		return errs.New(errs.NoSpace, "qcow2.write", "", "the refcount table would pass %d MiB", layout.MaxRefTable>>20)
	}
	base, blocks := old*r.per, uint64(0)
	for blocks*r.per < clusters+blocks {
		blocks++
	}
	table := append(slices.Clone(r.table), make([]uint64, clusters<<(h.ClusterBits-3)-old)...)
	for b := range blocks {
		off := (base + clusters + b) << h.ClusterBits
		table[old+b] = off
		nb := &block{off: off, buf: make([]byte, h.ClusterSize())}
		for c := b * r.per; c < min((b+1)*r.per, clusters+blocks); c++ {
			layout.SetRefcount(nb.buf, h.RefcountOrder, c%r.per, 1)
		}
		if err := w.put(nb.buf, off); err != nil {
			return err
		}
		r.blocks[old+b] = nb
		w.l.Meta.Add(off)
	}
	if err := w.put(encode(table), base<<h.ClusterBits); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	field := binary.BigEndian.AppendUint64(nil, base<<h.ClusterBits)
	if err := w.put(binary.BigEndian.AppendUint32(field, uint32(clusters)), 48); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	was, wasClusters := h.RefTableOffset>>h.ClusterBits, uint64(h.RefTableCluster)
	r.table, h.RefTableOffset, h.RefTableCluster = table, base<<h.ClusterBits, uint32(clusters)
	w.l.Meta.SetSpans(h)
	w.reach(base + clusters + blocks)
	return w.drop(was, wasClusters)
}

func encode(table []uint64) []byte {
	b := make([]byte, 0, len(table)*8)
	for _, e := range table {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	return b
}

// drop lowers the refcounts of n clusters to which nothing on disk refers.
func (w *Writer) drop(first, n uint64) error {
	for c := first; c < first+n; c++ {
		v, err := w.refs.get(c)
		if err != nil {
			return err
		}
		if v == 0 {
			return layout.Faultf(layout.ClassCorrupt, "the cluster at 0x%x was in use, but its refcount is 0", c<<w.l.H.ClusterBits)
		}
		if err := w.refs.set(c, v-1); err != nil {
			return err
		}
		if v == 1 {
			w.next = min(w.next, c)
		}
	}
	return nil
}
