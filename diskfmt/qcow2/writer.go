package qcow2

import (
	"io"
	"sync"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// File is the container of an image that is written in place. Bytes between
// its old end and a new one, made by Truncate or by a write further on, must
// read as zeroes. Sync returns when all earlier writes and size changes survive
// a power failure. A File that also has PunchHole(off, length int64) error gets
// the ranges that discards have freed, once nothing refers to them.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error)
	Sync() error
	Truncate(size int64) error
}

type puncher interface {
	PunchHole(off, length int64) error
}

// Bounds of what a Writer keeps unwritten before it flushes by itself.
const (
	maxDirtySlices = 128
	maxPendingFree = 1 << 16
)

// Writer reads and writes one qcow2 layer at random. It is a diskfmt.Mapper of
// that layer and safe for concurrent use: reads, and writes to clusters that
// are already stored, run side by side.
//
// Ordering. Guest data goes to its place at once; changes of metadata stay in
// memory until a flush, which writes them in this order, each step synced
// before the next begins: (1) data, raised refcounts, new refcount blocks and
// new L2 tables, to which nothing on disk refers yet; (2) refcount table
// entries; (3) changes of existing L2 tables and of L1; (4) lowered refcounts of
// what nothing refers to any more, which is not used again before (3) is
// synced. So a cut at any write leaves an image that is whole or has leaked
// clusters, with all that was synced in it.
//
// A write to a cluster that is not stored fills all of it, also where extended
// L2 entries would allow less. A flush keeps everything else waiting.
//
// After a failed sync or a failed write of metadata every call fails: what is
// on disk is then unknown until the image is opened again.
type Writer struct {
	mu       sync.RWMutex
	f        File
	l        *layout.Reader
	backing  diskfmt.Reader
	backSize uint64 // below this guest offset an unallocated cluster may have data underneath
	refs     refcounts
	next     uint64              // no cluster below is known to be free
	fresh    uint64              // no cluster from here on was ever written
	newL2    map[uint64]struct{} // L2 tables that no L1 entry on disk refers to
	dirtyL1  map[uint64]struct{} // L1 entries to be written
	frees    []uint64            // host offsets of clusters that lose a reference at the next flush
	buf      []byte              // a cluster for fill
	data     bool                // data was written since the last sync
	err      error
}

// OpenWriter opens the image in f, whose structure is what want says, as Open
// does. backing gives the bytes of the layer below, resolved through its whole
// chain; it is required exactly when want names a backing layer. errs.Unsupported
// is returned for version 2 and for images with internal snapshots, of which
// tarn makes neither.
func OpenWriter(f File, want diskfmt.Recorded, backing diskfmt.Reader) (*Writer, error) {
	if (want.BackingName != "") != (backing != nil) {
		return nil, errs.New(errs.Internal, "qcow2.open", "", "the record says backing %q, the caller gave backing: %v",
			want.BackingName, backing != nil)
	}
	w, err := openWriter(f, want)
	if err != nil {
		return nil, err
	}
	if backing != nil {
		w.backing, w.backSize = backing, uint64(backing.Size())
	}
	return w, nil
}

func openWriter(f File, want diskfmt.Recorded) (*Writer, error) {
	const op = "qcow2.open"
	size, err := f.Size()
	if err != nil {
		return nil, errs.Wrap(err, op, "")
	}
	l, err := open(f, size, want)
	if err != nil {
		return nil, corrupt(op, err)
	}
	if l.H.Version != 3 || l.H.Snapshots != 0 {
		return nil, errs.New(errs.Unsupported, op, "", "writing an image of version %d with %d internal snapshots is not possible",
			l.H.Version, l.H.Snapshots).WithHint("export it and import the export")
	}
	w := &Writer{f: f, l: l, newL2: map[uint64]struct{}{}, dirtyL1: map[uint64]struct{}{}}
	w.fresh = (uint64(size) + l.H.ClusterSize() - 1) >> l.H.ClusterBits
	if err := w.refs.load(f, l.H); err != nil {
		return nil, corrupt(op, err)
	}
	return w, nil
}

// Size returns the virtual size in bytes.
func (w *Writer) Size() int64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return int64(w.l.H.Size)
}

// ReadAt reads guest bytes of this layer, unflushed ones included. Reading a
// range of kind Backing is an error.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	n, err := w.l.ReadAt(p, off)
	return n, corrupt("qcow2.read", err)
}

// Extent returns the extent at off.
func (w *Writer) Extent(off int64) (diskfmt.Extent, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	e, err := w.l.Extent(off)
	return e, corrupt("qcow2.extent", err)
}

// Map returns the mapping at off. It holds until the next write.
func (w *Writer) Map(off int64) (diskfmt.Mapping, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	m, err := w.l.Map(off)
	return m, corrupt("qcow2.map", err)
}

// WriteAt writes guest bytes. The range must lie inside the disk. After Sync
// the bytes survive a power failure.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if n, done, err := w.writeInPlace(p, off); done {
		return n, err
	}
	err := w.change("qcow2.write", off, int64(len(p)), func() error { return w.write(p, uint64(off)) })
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// writeInPlace writes p if all of it is one stored run, beside other readers
// and writers.
func (w *Writer) writeInPlace(p []byte, off int64) (n int, done bool, err error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if len(p) == 0 || !w.data || w.err != nil || !w.inside(off, int64(len(p))) {
		return 0, false, nil
	}
	run, err := w.l.Scan(uint64(off), uint64(off)+uint64(len(p)), true)
	if err != nil || !run.Stored() || run.Length != uint64(len(p)) {
		return 0, false, nil
	}
	n, err = w.f.WriteAt(p, int64(run.Host))
	return n, true, corrupt("qcow2.write", err)
}

// WriteZeroes makes a range read as zeroes. Whole clusters lose their place in
// the container.
func (w *Writer) WriteZeroes(off, length int64) error {
	return w.change("qcow2.zero", off, length, func() error {
		return w.zero(uint64(off), uint64(off)+uint64(length), true)
	})
}

// Discard gives up the whole clusters inside a range; they then read as zeroes,
// over a backing layer too. Parts of clusters at its ends are left alone.
func (w *Writer) Discard(off, length int64) error {
	return w.change("qcow2.discard", off, length, func() error {
		return w.zero(uint64(off), uint64(off)+uint64(length), false)
	})
}

// Sync flushes: all that was written before survives a power failure.
func (w *Writer) Sync() error {
	return w.change("qcow2.sync", 0, 0, w.flush)
}

// Close flushes and leaves the image without leaks. It does not close the File.
func (w *Writer) Close() error {
	return w.change("qcow2.close", 0, 0, func() error {
		if err := w.flush(); err != nil {
			return err
		}
		if w.data {
			return w.sync()
		}
		return nil
	})
}

func (w *Writer) inside(off, length int64) bool {
	return off >= 0 && length >= 0 && uint64(off) <= w.l.H.Size && uint64(length) <= w.l.H.Size-uint64(off)
}

// change runs do alone, after the checks that every change needs, and flushes
// when much is pending.
func (w *Writer) change(op string, off, length int64, do func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return corrupt(op, w.err)
	}
	if !w.inside(off, length) {
		return errs.New(errs.Invalid, op, "", "the range of %d bytes at %d is outside the disk of %d bytes", length, off, w.l.H.Size)
	}
	if length > 0 {
		if err := w.claim(); err != nil {
			return corrupt(op, err)
		}
	}
	if err := do(); err != nil {
		return corrupt(op, err)
	}
	if w.l.DirtyCount() > maxDirtySlices || len(w.frees) > maxPendingFree || w.refs.full() {
		return corrupt(op, w.flush())
	}
	return nil
}

// claim clears the autoclear features before the first change: they promise
// things (bitmaps, for one) that this writer does not keep true.
func (w *Writer) claim() error {
	w.data = true
	if w.l.H.Autoclear == 0 {
		return nil
	}
	if err := w.put(make([]byte, 8), 88); err != nil {
		return err
	}
	w.l.H.Autoclear = 0
	return w.sync()
}

// put writes metadata; a failure is final.
func (w *Writer) put(p []byte, off uint64) error {
	w.data = true
	if _, err := w.f.WriteAt(p, int64(off)); err != nil {
		w.err = err
	}
	return w.err
}

// sync makes all writes durable; a failure is final and never retried, because
// the kernel may have dropped the pages.
func (w *Writer) sync() error {
	if err := w.f.Sync(); err != nil {
		w.err = err
		return err
	}
	w.data = false
	return nil
}

// write puts p at guest offset pos, run by run.
func (w *Writer) write(p []byte, pos uint64) error {
	for len(p) > 0 {
		run, err := w.l.Scan(pos, pos+uint64(len(p)), true)
		if err != nil {
			return err
		}
		n := run.Length
		if run.Stored() {
			_, err = w.f.WriteAt(p[:n], int64(run.Host))
		} else {
			n, err = w.place(p[:n], pos)
		}
		if err != nil {
			return err
		}
		p, pos = p[n:], pos+n
	}
	return nil
}

// place gives the first clusters of p, none of which is wholly stored, a place,
// writes them with what surrounds p in them, and returns how many bytes of p
// that took care of.
func (w *Writer) place(p []byte, pos uint64) (uint64, error) {
	h := w.l.H
	cluster := h.ClusterSize()
	if err := w.ensureL2(pos); err != nil {
		return 0, err
	}
	start := pos &^ (cluster - 1)
	e, _, err := w.l.Entry(start)
	if err != nil {
		return 0, err
	}
	host, count, fresh := e&layout.OffsetMask, uint64(1), false
	if layout.InPlace(e) {
		if err := w.l.CheckHost(host, cluster); err != nil {
			return 0, err
		}
	} else {
		want, err := w.movable(start, pos+uint64(len(p)))
		if err != nil {
			return 0, err
		}
		first, got, err := w.alloc(want)
		if err != nil {
			return 0, err
		}
		host, count = first<<h.ClusterBits, got
		fresh = first >= w.fresh
		w.reach(first + got)
	}
	end := start + count*cluster
	n := min(uint64(len(p)), end-pos)
	if err := w.fill(start, pos, host, fresh); err != nil {
		return 0, err
	}
	if _, err := w.f.WriteAt(p[:n], int64(host+pos-start)); err != nil {
		return 0, err
	}
	if err := w.fill(pos+n, end, host+pos+n-start, fresh); err != nil {
		return 0, err
	}
	for i := range count {
		at := start + i*cluster
		old, _, err := w.l.Entry(at)
		if err != nil {
			return 0, err
		}
		e, bitmap := w.l.DataEntry(host + i*cluster)
		if err := w.l.SetEntry(at, e, bitmap); err != nil {
			return 0, err
		}
		if !layout.InPlace(old) {
			w.release(old)
		}
	}
	return n, nil
}

// movable counts the clusters from start on, up to guest offset end and within
// one L2 table, that need a new place.
func (w *Writer) movable(start, end uint64) (uint64, error) {
	n := uint64(0)
	for at := start; at < end && w.l.L1Index(at) == w.l.L1Index(start); at += w.l.H.ClusterSize() {
		e, _, err := w.l.Entry(at)
		if err != nil {
			return 0, err
		}
		if layout.InPlace(e) {
			break
		}
		n++
	}
	return n, nil
}

var zeroes [64 << 10]byte

// fill writes what the guest range [pos, end), inside one cluster, read as so
// far to the new place host. In a fresh place zeroes are there already, but the
// file must reach beyond them.
func (w *Writer) fill(pos, end, host uint64, fresh bool) error {
	if pos == end {
		return nil
	}
	if w.buf == nil {
		w.buf = make([]byte, w.l.H.ClusterSize())
	}
	buf := w.buf[:end-pos]
	zero, err := w.readOld(buf, pos)
	if err != nil {
		return err
	}
	if fresh && zero {
		if end&(w.l.H.ClusterSize()-1) != 0 {
			return nil // the head: p follows
		}
		return w.extend(host + end - pos)
	}
	_, err = w.f.WriteAt(buf, int64(host))
	return err
}

// extend lengthens the file to at least end bytes.
func (w *Writer) extend(end uint64) error {
	size, err := w.f.Size()
	if err == nil && uint64(size) < end {
		err = w.f.Truncate(int64(end))
	}
	return err
}

// readOld reads guest bytes through this layer and the one below, zeroes past
// the end of either, and reports whether all are known to be zero.
func (w *Writer) readOld(p []byte, pos uint64) (zero bool, err error) {
	zero = true
	for len(p) > 0 {
		if pos >= w.l.H.Size {
			clear(p)
			return zero, nil
		}
		run, err := w.l.Scan(pos, min(pos+uint64(len(p)), w.l.H.Size), true)
		if err != nil {
			return false, err
		}
		dst := p[:run.Length]
		switch run.Kind {
		case diskfmt.Data:
			zero = false
			err = w.l.ReadRun(dst, run, pos)
		case diskfmt.Backing:
			var z bool
			z, err = w.readBacking(dst, pos)
			zero = zero && z
		default:
			clear(dst)
		}
		if err != nil {
			return false, err
		}
		p, pos = p[run.Length:], pos+run.Length
	}
	return zero, nil
}

func (w *Writer) readBacking(p []byte, pos uint64) (zero bool, err error) {
	if pos >= w.backSize {
		clear(p)
		return true, nil
	}
	if w.backing == nil {
		return false, errs.New(errs.Unsupported, "qcow2.grow", "", "the old end %d lies inside a cluster of the backing layer, which is longer", w.l.H.Size)
	}
	n := min(uint64(len(p)), w.backSize-pos)
	e, err := w.backing.Extent(int64(pos))
	if err != nil {
		return false, err
	}
	clear(p[n:])
	if e.Kind == diskfmt.Zero && uint64(e.Length) >= n {
		clear(p[:n])
		return true, nil
	}
	got, err := w.backing.ReadAt(p[:n], int64(pos))
	if uint64(got) == n {
		err = nil
	}
	return false, err
}

// ensureL2 makes the L2 table that maps guest offset pos, if there is none.
func (w *Writer) ensureL2(pos uint64) error {
	i := w.l.L1Index(pos)
	if e := w.l.L1[i]; e != 0 {
		if e&layout.Copied == 0 {
			return layout.Faultf(layout.ClassCorrupt, "L1 table entry %d shares its L2 table, but there is no snapshot", i)
		}
		return nil
	}
	c, _, err := w.alloc(1)
	if err != nil {
		return err
	}
	off := c << w.l.H.ClusterBits
	for n := uint64(0); n < w.l.H.ClusterSize(); n += uint64(len(zeroes)) {
		if err := w.put(zeroes[:min(uint64(len(zeroes)), w.l.H.ClusterSize())], off+n); err != nil {
			return err
		}
	}
	w.reach(c + 1)
	w.l.Meta.Add(off)
	w.l.L1[i] = off | layout.Copied
	w.newL2[off] = struct{}{}
	w.dirtyL1[i] = struct{}{}
	return nil
}

// zero makes [pos, end) read as zeroes; with partial also where it covers a
// part of a cluster.
func (w *Writer) zero(pos, end uint64, partial bool) error {
	cluster := w.l.H.ClusterSize()
	for pos < end {
		start := pos &^ (cluster - 1)
		stop := min(start+cluster, w.l.H.Size)
		next := min(stop, end)
		run, err := w.l.Scan(pos, next, false)
		if err != nil {
			return err
		}
		empty := run.Kind == diskfmt.Zero || run.Kind == diskfmt.Backing && pos >= w.backSize
		switch {
		case empty && run.Length == next-pos: // then skip all that is like it
			if run, err = w.l.Scan(pos, end, false); err != nil {
				return err
			}
			if next = pos + run.Length; next != end {
				next &^= cluster - 1
			}
		case pos == start && end >= stop:
			err = w.zeroCluster(start)
		case partial:
			next = min(next, pos+uint64(len(zeroes)))
			err = w.write(zeroes[:next-pos], pos)
		}
		if err != nil {
			return err
		}
		pos = next
	}
	return nil
}

// zeroCluster drops the cluster at guest offset at. Over a backing layer it
// gets the zero flag; elsewhere an unallocated cluster reads as zeroes.
func (w *Writer) zeroCluster(at uint64) error {
	var e, bitmap uint64
	if w.l.Backed && at < w.backSize {
		e, bitmap = w.l.ZeroEntry()
		if err := w.ensureL2(at); err != nil {
			return err
		}
	}
	old, oldMap, err := w.l.Entry(at)
	if err != nil || old == e && oldMap == bitmap {
		return err
	}
	if err := w.l.SetEntry(at, e, bitmap); err != nil {
		return err
	}
	w.release(old)
	return nil
}

// release notes that an entry no longer refers to its host clusters.
func (w *Writer) release(e uint64) {
	cluster := w.l.H.ClusterSize()
	if e&layout.CompressFlag != 0 {
		off, n := w.l.H.CompressedRange(e)
		for c := off &^ (cluster - 1); c < off+n; c += cluster {
			w.frees = append(w.frees, c)
		}
		return
	}
	if off := e & layout.OffsetMask; off != 0 {
		w.frees = append(w.frees, off)
	}
}
