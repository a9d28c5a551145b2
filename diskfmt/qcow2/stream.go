package qcow2

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// streamRun is the size of the writes that a StreamWriter gathers.
const streamRun = 1 << 20

// StreamWriter writes a whole new image from guest bytes given in order. It
// writes the container front to back in runs of 1 MiB or more, each L2 table
// behind its data, L1 and refcounts at the end, and the header at last: until
// Close has returned nil the container is no qcow2 image. Zero clusters take no
// space. Memory: the L1 table (1 MiB for 64 TiB), one L2 table and one run.
// Nothing is synced: that is the caller's part.
type StreamWriter struct {
	w    io.WriterAt
	h    layout.Header
	l1   []uint64
	l2   []byte // the current L2 table; empty: all is unallocated
	l2i  uint64 // its L1 index
	pos  uint64 // guest offset of the next byte
	part []byte // the bytes before pos of a cluster that is not complete
	out  []byte // not yet written
	off  uint64 // host offset of out
	err  error
}

// NewStreamWriter returns a StreamWriter into the empty container w. Overlays
// are refused: what a stream leaves out reads as zeroes.
func NewStreamWriter(w io.WriterAt, o CreateOptions) (*StreamWriter, error) {
	if o.BackingName != "" {
		return nil, errs.New(errs.Invalid, "qcow2.stream", "", "a streamed image cannot have the backing layer %q", o.BackingName)
	}
	p, err := newPlan(o)
	if err != nil {
		return nil, err
	}
	h := p.h
	return &StreamWriter{
		w: w, h: h, l1: make([]uint64, h.L1Size), l2: make([]byte, 0, h.ClusterSize()),
		part: make([]byte, 0, h.ClusterSize()), out: make([]byte, 0, streamRun), off: h.ClusterSize(),
	}, nil
}

// Write appends guest bytes.
func (s *StreamWriter) Write(p []byte) (int, error) {
	if err := s.accept(uint64(len(p))); err != nil {
		return 0, err
	}
	cluster := int(s.h.ClusterSize())
	for n := len(p); ; {
		if len(s.part) > 0 || len(p) < cluster {
			take := min(cluster-len(s.part), len(p))
			s.part = append(s.part, p[:take]...)
			p, s.pos = p[take:], s.pos+uint64(take)
			if len(s.part) == cluster {
				s.put(s.part, s.pos-uint64(cluster))
				s.part = s.part[:0]
			}
		}
		for len(p) >= cluster && s.err == nil {
			s.put(p[:cluster], s.pos)
			p, s.pos = p[cluster:], s.pos+uint64(cluster)
		}
		if s.err != nil {
			return 0, s.err
		}
		if len(p) == 0 {
			return n, nil
		}
	}
}

// Zero appends n zero bytes without looking at each.
func (s *StreamWriter) Zero(n int64) error {
	if err := s.accept(uint64(n)); err != nil {
		return err
	}
	cluster := s.h.ClusterSize()
	left := uint64(n)
	if len(s.part) > 0 {
		take := min(cluster-uint64(len(s.part)), left)
		if _, err := s.Write(make([]byte, take)); err != nil {
			return err
		}
		left -= take
	}
	if whole := left &^ (cluster - 1); whole > 0 {
		s.skip(s.pos + whole)
		left -= whole
	}
	if s.err != nil {
		return s.err
	}
	_, err := s.Write(make([]byte, left))
	return err
}

func (s *StreamWriter) accept(n uint64) error {
	if s.err == nil && n > s.h.Size-s.pos {
		return errs.New(errs.Invalid, "qcow2.stream", "", "%d bytes at %d reach past the disk of %d bytes", n, s.pos, s.h.Size)
	}
	return s.err
}

// skip moves pos to the cluster's start to, over unallocated clusters.
func (s *StreamWriter) skip(to uint64) {
	shift := s.h.ClusterBits + s.h.L2Bits()
	if s.pos>>shift != to>>shift {
		s.endTable()
	}
	s.pos = to
}

// put stores the cluster at guest offset at, unless it is zero.
func (s *StreamWriter) put(b []byte, at uint64) {
	shift := s.h.ClusterBits + s.h.L2Bits()
	if !isZero(b) {
		entry := uint64(8)
		if s.h.ExtendedL2() {
			entry = 16
		}
		if len(s.l2) == 0 {
			s.l2 = s.l2[:cap(s.l2)]
			clear(s.l2)
			s.l2i = at >> shift
		}
		i := at >> s.h.ClusterBits & (1<<s.h.L2Bits() - 1) * entry
		binary.BigEndian.PutUint64(s.l2[i:], s.off+uint64(len(s.out))|layout.Copied)
		if entry == 16 {
			binary.BigEndian.PutUint64(s.l2[i+8:], layout.AllData)
		}
		s.emit(b)
	}
	if next := at + s.h.ClusterSize(); next>>shift != at>>shift {
		s.endTable()
	}
}

// endTable writes the current L2 table, if it maps anything.
func (s *StreamWriter) endTable() {
	if len(s.l2) == 0 {
		return
	}
	s.l1[s.l2i] = s.off + uint64(len(s.out)) | layout.Copied
	s.emit(s.l2)
	s.l2 = s.l2[:0]
}

// emit appends whole clusters to the container.
func (s *StreamWriter) emit(b []byte) {
	if len(s.out)+len(b) > cap(s.out) {
		s.flush()
	}
	if len(b) >= cap(s.out) {
		s.write(b, s.off)
		s.off += uint64(len(b))
		return
	}
	s.out = append(s.out, b...)
}

func (s *StreamWriter) flush() {
	if len(s.out) == 0 {
		return
	}
	s.write(s.out, s.off)
	s.off += uint64(len(s.out))
	s.out = s.out[:0]
}

func (s *StreamWriter) write(b []byte, off uint64) {
	if s.err == nil {
		if _, err := s.w.WriteAt(b, int64(off)); err != nil {
			s.err = errs.Wrap(err, "qcow2.stream", "")
		}
	}
}

// Close completes the image: what was not given reads as zeroes. It does not
// close the container.
func (s *StreamWriter) Close() error {
	cluster := s.h.ClusterSize()
	if len(s.part) > 0 {
		n := uint64(len(s.part))
		whole := s.part[:cluster]
		clear(whole[n:])
		s.put(whole, s.pos-n)
	}
	s.endTable()
	pad := func(n uint64) { s.emit(make([]byte, -n&(cluster-1))) }
	s.h.L1Offset = s.off + uint64(len(s.out))
	l1 := encode(s.l1)
	s.emit(l1)
	pad(uint64(len(l1)))
	s.refcounts()
	s.flush()
	head := appendHeader(make([]byte, 0, cluster), &s.h)
	s.write(head[:cluster], 0)
	return s.err
}

// refcounts appends blocks that count every cluster from the header to the end
// of the table itself once, and the table.
func (s *StreamWriter) refcounts() {
	bits, per := s.h.ClusterBits, s.h.BlockRefs()
	used := (s.off + uint64(len(s.out))) >> bits
	blocks, table := uint64(0), uint64(0)
	for blocks*per < used+blocks+table || table<<(bits-3) < blocks {
		blocks = (used + blocks + table + per - 1) / per
		table = (blocks + 1<<(bits-3) - 1) >> (bits - 3)
	}
	entries := make([]uint64, table<<(bits-3))
	buf := make([]byte, s.h.ClusterSize())
	for b := range blocks {
		entries[b] = s.off + uint64(len(s.out))
		clear(buf)
		for c := b * per; c < min((b+1)*per, used+blocks+table); c++ {
			layout.SetRefcount(buf, s.h.RefcountOrder, c%per, 1)
		}
		s.emit(buf)
	}
	s.h.RefTableOffset, s.h.RefTableCluster = s.off+uint64(len(s.out)), uint32(table)
	s.emit(encode(entries))
}

func isZero(b []byte) bool {
	for len(b) > len(zeroes) {
		if !bytes.Equal(b[:len(zeroes)], zeroes[:]) {
			return false
		}
		b = b[len(zeroes):]
	}
	return bytes.Equal(b, zeroes[:len(b)])
}

// Convert writes the guest bytes of src as a new uncompressed image into the
// empty container dst. Zero extents and zero clusters take no space. src must
// hold all its bytes: an extent of kind Backing is errs.Invalid. progress, if
// not nil, is called with the guest bytes done so far. The caller syncs dst.
func Convert(ctx context.Context, dst io.WriterAt, src diskfmt.Reader, o CreateOptions, progress func(done int64)) error {
	s, err := NewStreamWriter(dst, o)
	if err != nil {
		return err
	}
	if src.Size() > o.VirtualSize {
		return errs.New(errs.Invalid, "qcow2.convert", "", "the source has %d bytes, more than the image's %d", src.Size(), o.VirtualSize)
	}
	buf := make([]byte, streamRun)
	for off := int64(0); off < src.Size(); {
		e, err := src.Extent(off)
		if err != nil {
			return err
		}
		for off < e.End() {
			if err := ctx.Err(); err != nil {
				return errs.Wrap(err, "qcow2.convert", "")
			}
			n := e.End() - off
			switch e.Kind {
			case diskfmt.Zero:
				err = s.Zero(n)
			case diskfmt.Data:
				n = min(n, streamRun)
				if _, err = io.ReadFull(io.NewSectionReader(src, off, n), buf[:n]); err == nil {
					_, err = s.Write(buf[:n])
				}
			default:
				err = errs.New(errs.Invalid, "qcow2.convert", "", "%d bytes at %d belong to a layer below the source", n, off)
			}
			if err != nil {
				return errs.Wrap(err, "qcow2.convert", "")
			}
			if off += n; progress != nil {
				progress(off)
			}
		}
	}
	return s.Close()
}
