package parallels

import (
	"encoding/binary"
	"io"
	"maps"
	"slices"
	"sync"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// File is the container of an image that is written in place. Bytes between
// its old end and a new one, made by Truncate, must read as zeroes. Sync returns
// when all earlier writes and size changes survive a power failure. Zero makes
// a range inside the file read as zeroes and releases its space where it can.
type File interface {
	io.ReaderAt
	io.WriterAt
	Size() int64
	Truncate(size int64) error
	Sync() error
	Zero(off, n int64) error
}

// Writer reads and writes one image at random. It is safe for concurrent use:
// reads, and writes to clusters that are stored, run side by side.
//
// Ordering. Before the first change the header is marked as in use and synced.
// Guest data goes to its place at once; changes of the BAT stay in memory until
// a flush, which syncs the data, writes the changed entries and syncs them.
// Clusters that lost their entry are released, and used again, only after that.
// Close flushes, gives up what is unused at the file's end, and marks the header
// as closed. So a cut at any write leaves a closed image, or one in use in which
// no entry names a cluster that is not complete, which Repair closes.
//
// After a failed sync or a failed write of metadata every call fails, and the
// mark stays.
type Writer struct {
	mu      sync.RWMutex
	f       File
	img     image
	backing diskfmt.Reader
	through bool

	marked  bool             // the header says in use
	end     uint32           // no cluster from here on was ever written
	free    []uint32         // unused clusters below end, with anything in them
	pending []uint32         // unused once the BAT is flushed
	dirty   map[int]struct{} // pages of the BAT to be written
	err     error
}

// perPage is how many BAT entries are written at once.
const perPage = 1024

// Options say how a Writer works. Through writes each BAT entry at once and
// makes no syncs of its own: for an image that nobody relies on before all of it
// is synced from outside, but that is to survive the end of the process.
type Options struct {
	Through bool
}

// OpenWriter opens the closed image in f, whose structure is what want says, as
// Open does. backing gives the bytes of the layers below; it is required exactly
// when want names a backing layer.
func OpenWriter(f File, want diskfmt.Recorded, backing diskfmt.Reader, o Options) (*Writer, error) {
	const op = "parallels.open"
	if (want.BackingName != "") != (backing != nil) {
		return nil, errs.New(errs.Internal, op, "", "the record says backing %q, the caller gave backing: %v", want.BackingName, backing != nil)
	}
	r, err := Open(f, f.Size(), want)
	if err != nil {
		return nil, err
	}
	w := &Writer{f: f, img: r.img, backing: backing, through: o.Through, dirty: map[int]struct{}{}}
	used, err := w.img.used(f.Size())
	if err != nil {
		return nil, errs.Wrap(err, op, "")
	}
	w.end = uint32(f.Size() / w.img.cluster())
	for c := w.img.first(); c < w.end; c++ {
		if !used.has(c) {
			w.free = append(w.free, c)
		}
	}
	return w, nil
}

// Size returns the virtual size in bytes.
func (w *Writer) Size() int64 {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.img.size()
}

// ReadAt reads what the guest sees, unflushed bytes and those of the layers below
// included.
func (w *Writer) ReadAt(p []byte, off int64) (int, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.img.readAt(p, off, w.backing)
}

// Extent returns the extent at off.
func (w *Writer) Extent(off int64) (diskfmt.Extent, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.img.extent(off)
}

// WriteAt writes guest bytes. A cluster that is not stored is stored, filled up
// from the layer below.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	done := 0
	err := w.each("parallels.write", off, int64(len(p)), func(i, in, n int64) error {
		err := w.write(i, in, p[done:done+int(n)])
		if err == nil {
			done += int(n)
		}
		return err
	})
	return done, err
}

// Zero makes a range read as zeroes. Whole clusters lose their entry, unless the
// layer below has bytes there.
func (w *Writer) Zero(off, n int64) error {
	return w.each("parallels.zero", off, n, w.zero)
}

// each calls do with the part of [off, off+n) in each cluster.
func (w *Writer) each(op string, off, n int64, do func(i, in, n int64) error) error {
	size, c := w.Size(), w.img.cluster()
	if off < 0 || n < 0 || off > size-n {
		return errs.New(errs.Invalid, op, "", "bytes %d+%d are outside of a disk of %d", off, n, size)
	}
	for n > 0 {
		i, in := off/c, off%c
		part := min(n, c-in)
		if err := do(i, in, part); err != nil {
			return errs.Wrap(err, op, "")
		}
		off, n = off+part, n-part
	}
	return nil
}

func (w *Writer) write(i, in int64, p []byte) error {
	if done, err := w.overwrite(i, in, p); done {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.mark(); err != nil {
		return err
	}
	if e := w.img.bat[i]; e != 0 {
		_, err := w.f.WriteAt(p, w.img.at(e)+in)
		return err
	}
	return w.store(i, func(at int64) error { return w.fill(i, in, p, at) })
}

// overwrite writes into a cluster that is stored, beside other reads and writes.
func (w *Writer) overwrite(i, in int64, p []byte) (bool, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	e := w.img.bat[i]
	if w.err != nil || !w.marked || e == 0 {
		return false, nil
	}
	_, err := w.f.WriteAt(p, w.img.at(e)+in)
	return true, err
}

// mark says in the header that the image is in use, before the first change.
func (w *Writer) mark() error {
	if w.err != nil || w.marked {
		return w.err
	}
	if err := w.header(layout.InUse); err != nil {
		return w.failed(err)
	}
	if !w.through {
		if err := w.f.Sync(); err != nil {
			return w.failed(err)
		}
	}
	w.marked = true
	return nil
}

func (w *Writer) header(inUse uint32) error {
	h := w.img.h
	h.InUse = inUse
	_, err := w.f.WriteAt(h.Bytes(), 0)
	if err == nil {
		w.img.h = h
	}
	return err
}

func (w *Writer) failed(err error) error {
	if w.err == nil {
		w.err = err
	}
	return err
}

// store gives guest cluster i a cluster of the file that reads as zeroes, and
// lets fill write at it.
func (w *Writer) store(i int64, fill func(at int64) error) error {
	c, err := w.take()
	if err != nil {
		return err
	}
	if err := fill(w.img.at(c)); err != nil {
		w.free = append(w.free, c)
		return err
	}
	return w.entry(i, c)
}

// entry sets BAT entry i.
func (w *Writer) entry(i int64, c uint32) error {
	w.img.bat[i] = c
	w.dirty[int(i)/perPage] = struct{}{}
	if w.through {
		return w.flushBAT()
	}
	return nil
}

// take returns an unused cluster that reads as zeroes.
func (w *Writer) take() (uint32, error) {
	if n := len(w.free); n > 0 {
		c := w.free[n-1]
		if err := w.f.Zero(w.img.at(c), w.img.cluster()); err != nil {
			return 0, err
		}
		w.free = w.free[:n-1]
		return c, nil
	}
	c := w.end
	if err := w.f.Truncate(w.img.at(c + 1)); err != nil {
		return 0, err
	}
	w.end++
	return c, nil
}

// below returns whether the layer below has bytes in [off, off+n).
func (w *Writer) below(off, n int64) (bool, error) {
	if w.backing == nil {
		return false, nil
	}
	for end := min(off+n, w.backing.Size()); off < end; {
		e, err := w.backing.Extent(off)
		if err != nil || e.Kind != diskfmt.Zero {
			return true, err
		}
		off = e.End()
	}
	return false, nil
}

// fill writes p, which belongs at byte in of guest cluster i, to a fresh cluster
// at an offset of the file, and around it what the layer below has.
func (w *Writer) fill(i, in int64, p []byte, at int64) error {
	c := w.img.cluster()
	have, err := w.below(i*c, c)
	if err != nil {
		return err
	}
	if have && int64(len(p)) < c {
		buf := make([]byte, min(c, w.backing.Size()-i*c, w.img.size()-i*c))
		if n, err := w.backing.ReadAt(buf, i*c); n < len(buf) {
			return short(err, "the layer below")
		}
		buf = append(buf, make([]byte, max(0, in+int64(len(p))-int64(len(buf))))...)
		copy(buf[in:], p)
		p, in = buf, 0
	}
	_, err = w.f.WriteAt(p, at+in)
	return err
}

func (w *Writer) zero(i, in, n int64) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	c := w.img.cluster()
	e := w.img.bat[i]
	have, err := w.below(i*c+in, n)
	if err != nil || e == 0 && !have {
		return err
	}
	if err := w.mark(); err != nil {
		return err
	}
	whole := in == 0 && n == min(c, w.img.size()-i*c)
	switch {
	case e != 0 && whole && !have:
		w.pending = append(w.pending, e)
		return w.entry(i, 0)
	case e != 0:
		return w.f.Zero(w.img.at(e)+in, n)
	case whole:
		return w.store(i, func(int64) error { return nil })
	}
	return w.store(i, func(at int64) error { return w.fill(i, in, make([]byte, n), at) })
}

// Sync makes everything written so far survive a power failure.
func (w *Writer) Sync() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errs.Wrap(w.flush(), "parallels.sync", "")
}

func (w *Writer) flush() error {
	if w.err != nil {
		return w.err
	}
	if err := w.f.Sync(); err != nil {
		return w.failed(err)
	}
	if len(w.dirty) > 0 {
		if err := w.flushBAT(); err != nil {
			return err
		}
		if err := w.f.Sync(); err != nil {
			return w.failed(err)
		}
	}
	return w.release()
}

// release gives the space of clusters back that nothing names any more.
func (w *Writer) release() error {
	for _, c := range w.pending {
		if err := w.f.Zero(w.img.at(c), w.img.cluster()); err != nil {
			return err
		}
	}
	w.free = append(w.free, w.pending...)
	w.pending = nil
	return nil
}

// flushBAT writes the entries that changed.
func (w *Writer) flushBAT() error {
	for _, page := range slices.Sorted(maps.Keys(w.dirty)) {
		from := page * perPage
		entries := w.img.bat[from:min(from+perPage, len(w.img.bat))]
		b := make([]byte, 0, perPage*layout.EntrySize)
		for _, e := range entries {
			b = binary.LittleEndian.AppendUint32(b, e)
		}
		if _, err := w.f.WriteAt(b, entryAt(from)); err != nil {
			return w.failed(err)
		}
		delete(w.dirty, page)
	}
	return nil
}

// Close flushes and marks the image as closed, if it was changed. The mark
// itself is not synced: until it is, the image may need Repair after a power
// failure, and has lost nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return errs.Wrap(w.close(), "parallels.close", "")
}

func (w *Writer) close() error {
	if w.err != nil || !w.marked {
		return w.err
	}
	if !w.through || len(w.pending) > 0 {
		if err := w.settle(); err != nil {
			return err
		}
	}
	if end := w.img.at(w.img.last()); end < w.f.Size() {
		if err := w.f.Truncate(end); err != nil {
			return w.failed(err)
		}
		if err := w.barrier(); err != nil {
			return err
		}
	}
	if err := w.header(layout.Closed); err != nil {
		return w.failed(err)
	}
	w.marked = false
	w.err = errs.New(errs.Internal, "", "", "the writer is closed")
	return nil
}

// settle is flush, without syncs where the caller has none.
func (w *Writer) settle() error {
	if w.through {
		return w.release()
	}
	return w.flush()
}

// barrier syncs where the caller wants syncs.
func (w *Writer) barrier() error {
	if w.through {
		return nil
	}
	if err := w.f.Sync(); err != nil {
		return w.failed(err)
	}
	return nil
}

// last returns the number of the cluster behind the last one that is named.
func (m *image) last() uint32 {
	last := m.first()
	for _, e := range m.bat {
		last = max(last, e+1)
	}
	return last
}
