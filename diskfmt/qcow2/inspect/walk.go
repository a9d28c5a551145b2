package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"io"
	"slices"

	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
)

// kind is what a host cluster holds, in the upper bits of its cell; the lower
// 28 bits count the references.
type kind uint32

const (
	metadata   kind = 1 << 28 // header, tables of tables, directories: one reference
	l2Table    kind = 2 << 28 // shared by the active disk and snapshots
	data       kind = 3 << 28 // likewise
	compressed kind = 4 << 28 // by the clusters that begin or end there, too
	kindMask   kind = 15 << 28
	countMask       = 1<<28 - 1
)

func (k kind) String() string {
	switch k & kindMask {
	case metadata:
		return "metadata"
	case l2Table:
		return "an L2 table"
	case data:
		return "data"
	}
	return "compressed data"
}

// walker visits every reference in the file, once per window of host clusters,
// so that its state stays bounded however large the file is.
type walker struct {
	ctx      context.Context
	r        io.ReaderAt
	h        *layout.Header
	l1       []uint64
	size     uint64
	progress func(done, total int64)
	rep      *Report

	first, end uint64 // clusters of this window
	cells      []kind
	ranges     []uint64 // compressed clusters of the active disk: start<<13 | sectors-1
	last       uint64   // the last range of the window before
	active     bool     // the references of the active disk are being walked
	visits     uint64   // of this window
	all, most  uint64   // of all windows, and their bound
	buf        []byte
	windows    uint64
}

var errWindow = errors.New("the window has too many compressed clusters")

// run walks window after window; one with too many compressed clusters is
// halved.
func (w *walker) run() error {
	w.buf = make([]byte, 64<<10)
	total := (w.size + w.h.ClusterSize() - 1) >> w.h.ClusterBits
	n := min(total, windowCells)
	w.cells = make([]kind, n)
	for w.first = 0; w.first < total; {
		w.end = min(w.first+n, total)
		err := w.window()
		if err == errWindow && n > smallestCells {
			n /= 2
			continue
		}
		if err == errWindow {
			err = layout.Faultf(layout.ClassLimit, "more than %d compressed clusters begin in %d clusters from 0x%x on", windowRanges, n, w.first<<w.h.ClusterBits)
		}
		if err != nil {
			return err
		}
		if w.windows++; w.windows > maxWindows {
			return layout.Faultf(layout.ClassLimit, "the file of %d bytes takes more than %d passes", w.size, maxWindows)
		}
		w.first = w.end
	}
	return nil
}

func (w *walker) window() error {
	clear(w.cells)
	w.ranges, w.visits = w.ranges[:0], 0
	w.rep.DataClusters, w.rep.CompressedClusters = 0, 0
	if err := w.mark(0, metadata, "the header"); err != nil {
		return err
	}
	blocks, err := w.markRefcounts()
	if err != nil {
		return err
	}
	w.active = true
	err = w.walkL1(w.h.L1Offset, uint64(w.h.L1Size), "L1 table")
	w.active = false
	if err != nil {
		return err
	}
	if err := w.checkRanges(); err != nil {
		return err
	}
	if err := w.walkSnapshots(); err != nil {
		return err
	}
	if err := w.walkBitmaps(); err != nil {
		return err
	}
	return w.compare(blocks)
}

// visit counts n entries of tables against the bound on a window's work, which
// grows with the file: without it a small file could have its tables walked
// once for each of many snapshots.
func (w *walker) visit(n uint64) error {
	w.visits += n
	if w.all += n; w.all > w.most {
		return layout.Faultf(layout.ClassLimit, "the file of %d bytes and its tables take more than %d steps to walk", w.size, w.most)
	}
	if most := min(maxVisits, 1<<22+8*w.size); w.visits > most {
		return layout.Faultf(layout.ClassLimit, "the tables have more than %d entries, counted per snapshot", most)
	}
	return w.ctx.Err()
}

// mark notes one reference to the cluster at off by what.
func (w *walker) mark(off uint64, k kind, what string) error {
	c := off >> w.h.ClusterBits
	if c < w.first || c >= w.end {
		return nil
	}
	cell := &w.cells[c-w.first]
	if *cell == 0 {
		*cell = k | 1
		return nil
	}
	if *cell&kindMask != k || k == metadata || w.active && k != compressed {
		return layout.Faultf(layout.ClassOverlap, "%s points to 0x%x, where %s lies already", what, off, *cell)
	}
	if *cell&countMask == countMask {
		return layout.Faultf(layout.ClassLimit, "%s points to 0x%x, which has more than %d references", what, off, countMask)
	}
	*cell++
	return nil
}

// markTable marks the clusters of a table of length bytes.
func (w *walker) markTable(off, length uint64, what string) error {
	switch {
	case off == 0 || off&(w.h.ClusterSize()-1) != 0:
		return layout.Faultf(layout.ClassCorrupt, "%s: 0x%x is not at a cluster's start", what, off)
	case off > w.size || length > w.size-off:
		return layout.Faultf(layout.ClassTruncated, "%s at 0x%x (%d bytes) reaches past the end of the file (%d bytes)", what, off, length, w.size)
	}
	lo := max(off&^(w.h.ClusterSize()-1), w.first<<w.h.ClusterBits)
	for c := lo; c < min(off+length, w.end<<w.h.ClusterBits); c += w.h.ClusterSize() {
		if err := w.mark(c, metadata, what); err != nil {
			return err
		}
	}
	return nil
}

// markRefcounts marks the refcount table and its blocks, and returns the blocks
// that count clusters of this window.
func (w *walker) markRefcounts() (map[uint64]uint64, error) {
	n := uint64(w.h.RefTableCluster) << (w.h.ClusterBits - 3)
	if err := w.markTable(w.h.RefTableOffset, n*8, "the refcount table"); err != nil {
		return nil, err
	}
	blocks := map[uint64]uint64{}
	per := w.h.BlockRefs()
	return blocks, w.each(w.h.RefTableOffset, n, func(i, e uint64) error {
		if err := w.h.CheckTableEntry(e, layout.RefReserved, w.size); err != nil {
			return layout.Faultf(layout.ClassOf(err), "refcount table at 0x%x entry %d: %v", w.h.RefTableOffset, i, err)
		}
		if i*per < w.end && (i+1)*per > w.first {
			blocks[i] = e
		}
		return w.mark(e, metadata, "the refcount table")
	})
}

// each calls f for the entries of a table that are not 0.
func (w *walker) each(off, n uint64, f func(i, e uint64) error) error {
	if err := w.visit(n); err != nil {
		return err
	}
	buf := make([]byte, min(n*8, 64<<10))
	for i := uint64(0); i < n; {
		b := buf[:min(uint64(len(buf)), (n-i)*8)]
		if err := layout.ReadFull(w.r, b, off+i*8); err != nil {
			return err
		}
		for ; len(b) > 0; b = b[8:] {
			if e := binary.BigEndian.Uint64(b); e != 0 {
				if err := f(i, e); err != nil {
					return err
				}
			}
			i++
		}
	}
	return nil
}

// walkL1 marks an L1 table, its L2 tables and all that these refer to.
func (w *walker) walkL1(off, n uint64, name string) error {
	if n == 0 {
		return nil
	}
	if err := w.markTable(off, n*8, "the "+name); err != nil {
		return err
	}
	perTable := w.h.ClusterSize() << w.h.L2Bits()
	total := int64(w.h.L1Size) * int64((w.size>>w.h.ClusterBits)/windowCells+1)
	return w.each(off, n, func(i, e uint64) error {
		err := w.h.CheckTableEntry(e, layout.L1Reserved, w.size)
		if err == nil && e&layout.OffsetMask == 0 {
			err = layout.Faultf(layout.ClassCorrupt, "0x%016x has flags but no offset", e)
		}
		if err != nil {
			return layout.Faultf(layout.ClassOf(err), "%s at 0x%x entry %d: %v", name, off, i, err)
		}
		if err := w.mark(e&layout.OffsetMask, l2Table, "the "+name); err != nil {
			return err
		}
		if w.active && w.progress != nil {
			w.progress(int64(w.windows)*int64(w.h.L1Size)+int64(i), total)
		}
		return w.walkL2(e&layout.OffsetMask, i*perTable)
	})
}

// walkL2 marks all that the L2 table at off refers to; guest is the first guest
// offset that it maps.
func (w *walker) walkL2(off, guest uint64) error {
	size := uint64(8)
	if w.h.ExtendedL2() {
		size = 16
	}
	cluster := w.h.ClusterSize()
	if err := w.visit(cluster / size); err != nil {
		return err
	}
	for done := uint64(0); done < cluster; done += uint64(len(w.buf)) {
		b := w.buf[:min(uint64(len(w.buf)), cluster)]
		if err := layout.ReadFull(w.r, b, off+done); err != nil {
			return err
		}
		for i := uint64(0); i < uint64(len(b)); i += size {
			e, bitmap := binary.BigEndian.Uint64(b[i:]), uint64(0)
			if size == 16 {
				bitmap = binary.BigEndian.Uint64(b[i+8:])
			}
			if e|bitmap != 0 {
				if err := w.entry(e, bitmap, guest); err != nil {
					if err == errWindow || w.ctx.Err() != nil || layout.ClassOf(err) == "" {
						return err
					}
					return layout.Faultf(layout.ClassOf(err), "L2 table at 0x%x entry %d: %v", off, (done+i)/size, err)
				}
			}
			guest += cluster
		}
	}
	return nil
}

// entry judges one L2 entry and marks what it refers to.
func (w *walker) entry(e, bitmap, guest uint64) error {
	if e&layout.CompressFlag != 0 {
		return w.compressedEntry(e, bitmap)
	}
	if err := layout.CheckStandard(w.h, e); err != nil {
		return err
	}
	cluster := w.h.ClusterSize()
	stored := cluster // how much of the cluster holds data
	if w.h.ExtendedL2() {
		if alloc, zero := bitmap&layout.AllData, bitmap>>32; alloc&zero != 0 {
			return layout.Faultf(layout.ClassCorrupt, "the subcluster bitmap 0x%016x says allocated and zero at once", bitmap)
		} else if alloc != 0 && e&layout.OffsetMask == 0 {
			return layout.Faultf(layout.ClassCorrupt, "the subcluster bitmap 0x%016x has data, but 0x%016x has no offset", bitmap, e)
		}
		stored = layout.StoredBytes(w.h, bitmap)
	} else if e&layout.ZeroFlag != 0 {
		stored = 0
	}
	host := e & layout.OffsetMask
	if host == 0 {
		return nil
	}
	if guest < w.h.Size {
		stored = min(stored, w.h.Size-guest)
	}
	if host >= w.size || stored > w.size-host {
		return layout.Faultf(layout.ClassTruncated, "0x%016x points to 0x%x, past the end of the file (%d bytes)", e, host, w.size)
	}
	if w.active {
		w.rep.DataClusters++
	}
	return w.mark(host, data, "it")
}

func (w *walker) compressedEntry(e, bitmap uint64) error {
	off, n, err := w.h.CheckCompressed(e, w.size)
	if err != nil {
		return err
	}
	if bitmap != 0 {
		return layout.Faultf(layout.ClassCorrupt, "the compressed entry 0x%016x has subclusters", e)
	}
	cluster := w.h.ClusterSize()
	for c := off &^ (cluster - 1); c < off+n; c += cluster {
		if err := w.mark(c, compressed, "it"); err != nil {
			return err
		}
	}
	if !w.active {
		return nil
	}
	w.rep.CompressedClusters++
	if c := off >> w.h.ClusterBits; c < w.first || c >= w.end {
		return nil
	}
	if len(w.ranges) == windowRanges {
		return errWindow
	}
	_, whole := w.h.CompressedRange(e)
	w.ranges = append(w.ranges, off<<13|(off&511+whole)/512-1)
	return nil
}

// checkRanges refuses compressed clusters that share bytes. A cluster's last
// sector holds at least one byte of it; the next one may begin behind that.
func (w *walker) checkRanges() error {
	slices.Sort(w.ranges)
	prev, have := w.last, w.last != 0
	for _, r := range w.ranges {
		if have {
			start := prev >> 13
			least := start&^511 + (prev&(1<<13-1))*512 + 1 // the first byte that may belong to another
			if off := r >> 13; off <= start || off < least {
				return layout.Faultf(layout.ClassOverlap, "the compressed clusters at 0x%x and 0x%x share bytes", start, off)
			}
		}
		prev, have = r, true
	}
	w.last = prev
	return nil
}

// compare reads the refcounts of this window. One that is too low would let a
// writer overwrite data; one that is too high only wastes space.
func (w *walker) compare(blocks map[uint64]uint64) error {
	per, order := w.h.BlockRefs(), w.h.RefcountOrder
	step := uint64(len(w.buf)) * 8 >> order // refcounts in one read
	for c := w.first; c < w.end; {
		block, ok := blocks[c/per]
		index := c % per
		n := min(step-index%step, per-index, w.end-c)
		if ok {
			need := ((index%step+n)<<order + 7) / 8
			if err := layout.ReadFull(w.r, w.buf[:need], block+(index-index%step)<<order/8); err != nil {
				return err
			}
		}
		for i := range n {
			var have uint64
			if ok {
				have = layout.Refcount(w.buf, order, index%step+i)
			}
			switch found := uint64(w.cells[c+i-w.first] & countMask); {
			case have < found:
				return layout.Faultf(layout.ClassCorrupt, "the cluster at 0x%x has refcount %d, but %d references", (c+i)<<w.h.ClusterBits, have, found)
			case have > found:
				w.rep.LeakedClusters++
			}
		}
		c += n
	}
	return nil
}

// walkSnapshots marks the snapshot table and the L1 table of each snapshot
// ("Snapshots" in the specification).
func (w *walker) walkSnapshots() error {
	pos, ids := w.h.SnapshotsOffset, map[uint64]struct{}{}
	seed := maphash.MakeSeed()
	head := make([]byte, 40+maxSnapExtra+maxSnapName)
	for i := range w.h.Snapshots {
		if pos+40 > w.size {
			return layout.Faultf(layout.ClassTruncated, "snapshot %d at 0x%x lies past the end of the file (%d bytes)", i, pos, w.size)
		}
		if err := layout.ReadFull(w.r, head[:40], pos); err != nil {
			return err
		}
		be := binary.BigEndian
		l1, n := be.Uint64(head), uint64(be.Uint32(head[8:]))
		id, name, extra := uint64(be.Uint16(head[12:])), uint64(be.Uint16(head[14:])), uint64(be.Uint32(head[36:]))
		if extra > maxSnapExtra || id > maxSnapName || name > maxSnapName || n > maxL1Entries {
			return layout.Faultf(layout.ClassLimit, "snapshot %d at 0x%x: %d L1 entries, %d bytes of extra data, id of %d and name of %d bytes", i, pos, n, extra, id, name)
		}
		if err := layout.ReadFull(w.r, head[:extra+id], pos+40); err != nil {
			return err
		}
		sum := maphash.Bytes(seed, head[extra:extra+id])
		if _, twice := ids[sum]; twice {
			return layout.Faultf(layout.ClassCorrupt, "snapshot %d at 0x%x has the id of another", i, pos)
		}
		ids[sum] = struct{}{}
		if err := w.walkL1(l1, n, "snapshot's L1 table"); err != nil {
			return err
		}
		pos += (40 + extra + id + name + 7) &^ 7
		if pos-w.h.SnapshotsOffset > layout.MaxSnapTable {
			return layout.Faultf(layout.ClassLimit, "the snapshot table at 0x%x has more than %d MiB", w.h.SnapshotsOffset, layout.MaxSnapTable>>20)
		}
	}
	if w.h.Snapshots == 0 {
		return nil
	}
	return w.markTable(w.h.SnapshotsOffset, min(pos, w.size)-w.h.SnapshotsOffset, "the snapshot table")
}

// walkBitmaps marks what belongs to persistent bitmaps, while the autoclear bit
// says that they are valid ("Bitmaps" in the specification).
func (w *walker) walkBitmaps() error {
	if w.h.Autoclear&layout.AutoBitmaps == 0 {
		return nil
	}
	if len(w.h.Bitmaps) != 24 {
		return layout.Faultf(layout.ClassCorrupt, "the bitmaps extension has %d bytes, not 24", len(w.h.Bitmaps))
	}
	be := binary.BigEndian
	n, length, off := be.Uint32(w.h.Bitmaps), be.Uint64(w.h.Bitmaps[8:]), be.Uint64(w.h.Bitmaps[16:])
	if n == 0 || n > maxBitmaps || length > maxBitmapDir {
		return layout.Faultf(layout.ClassLimit, "%d bitmaps in a directory of %d bytes", n, length)
	}
	if err := w.markTable(off, length, "the bitmap directory"); err != nil {
		return err
	}
	head := make([]byte, 24)
	for pos := off; n > 0; n-- {
		if off+length-pos < 24 {
			return layout.Faultf(layout.ClassCorrupt, "the bitmap directory at 0x%x ends inside an entry", off)
		}
		if err := layout.ReadFull(w.r, head, pos); err != nil {
			return err
		}
		table, entries := be.Uint64(head), uint64(be.Uint32(head[8:]))
		size := (24 + uint64(be.Uint16(head[18:])) + uint64(be.Uint32(head[20:])) + 7) &^ 7
		if size > off+length-pos {
			return layout.Faultf(layout.ClassCorrupt, "the bitmap directory at 0x%x ends inside an entry", off)
		}
		if err := w.walkBitmap(table, entries); err != nil {
			return err
		}
		pos += size
	}
	return nil
}

func (w *walker) walkBitmap(table, entries uint64) error {
	if entries == 0 {
		return nil
	}
	if err := w.markTable(table, entries*8, "a bitmap table"); err != nil {
		return err
	}
	return w.each(table, entries, func(i, e uint64) error {
		if e&layout.OffsetMask == 0 && e == 1 {
			return nil
		}
		if err := w.h.CheckTableEntry(e, layout.RefReserved, w.size); err != nil {
			return layout.Faultf(layout.ClassOf(err), "bitmap table at 0x%x entry %d: %v", table, i, err)
		}
		return w.mark(e, metadata, "a bitmap table")
	})
}
