package vmdk

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// job is a grain on its way from the source to the file.
type job struct {
	index uint64        // of the grain
	in    []byte        // its bytes
	out   bytes.Buffer  // marker and compressed bytes; empty for zeroes
	ready chan struct{} // receives one value when out is complete
}

// Write writes the guest bytes of src as a streamOptimized disk into w, front to
// back. Grains of 64 KiB that are all zero are left out, also in data. src must
// hold all its bytes: an extent of kind Backing is errs.Invalid; a file of more
// than 2 TiB, which the format cannot address, is errs.Unsupported. A size that
// is no multiple of 512 is rounded up with zeroes. Several cores read and
// compress, each a grain at a time; memory is about 150 KiB for each of four
// grains a core, and the grain directory. progress, if not nil, is called with
// guest bytes.
func Write(ctx context.Context, w io.Writer, src diskfmt.Reader, o Options, progress func(done, total int64)) error {
	if err := o.complete(); err != nil {
		return err
	}
	if src.Size() <= 0 || src.Size() > maxTables*layout.TableEntries*grainBytes {
		return errs.New(errs.Invalid, "vmdk.write", "", "a disk of %d bytes cannot be written", src.Size())
	}
	g, ctx := errgroup.WithContext(ctx)
	n := 4 * o.Threads
	free, work, order := make(chan *job, n), make(chan *job, n), make(chan *job, n)
	for range n {
		free <- &job{in: make([]byte, grainBytes), ready: make(chan struct{}, 1)}
	}
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return plan(ctx, src, func(index uint64) error {
			select {
			case j := <-free:
				j.index = index
				order <- j // never full: there are n jobs
				work <- j
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range o.Threads {
		g.Go(func() error { return compress(src, o.Level, work) })
	}
	g.Go(func() error {
		s := newStream(w, &o, src.Size())
		for j := range order {
			select {
			case <-j.ready:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := s.grain(j); err != nil {
				return err
			}
			if progress != nil {
				progress(min(int64(j.index+1)*grainBytes, src.Size()), src.Size())
			}
			free <- j
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		return s.close()
	})
	if err := g.Wait(); err != nil {
		return errs.Wrap(err, "vmdk.write", "")
	}
	if progress != nil {
		progress(src.Size(), src.Size())
	}
	return nil
}

// plan calls do, in order, with the index of each grain that holds data.
func plan(ctx context.Context, src diskfmt.Reader, do func(uint64) error) error {
	next := uint64(0)
	for off := int64(0); off < src.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := src.Extent(off)
		switch {
		case err != nil:
			return err
		case e.Kind == diskfmt.Backing:
			return errs.New(errs.Invalid, "vmdk.write", "", "%d bytes at %d belong to a layer below the source", e.Length, off)
		case e.Kind == diskfmt.Data:
			for next = max(next, uint64(off)/grainBytes); int64(next)*grainBytes < e.End(); next++ {
				if err := do(next); err != nil {
					return err
				}
			}
		}
		off = e.End()
	}
	return nil
}

// compress reads and compresses the grains that come until there are no more.
func compress(src diskfmt.Reader, level int, work <-chan *job) error {
	z, err := zlib.NewWriterLevel(nil, level)
	if err != nil {
		return err
	}
	for j := range work {
		j.out.Reset()
		off := int64(j.index) * grainBytes
		n := min(src.Size()-off, grainBytes)
		if k, err := src.ReadAt(j.in[:n], off); int64(k) < n {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		clear(j.in[n:])
		if !isZero(j.in) {
			j.out.Write(make([]byte, layout.MarkerHead))
			z.Reset(&j.out)
			if _, err := z.Write(j.in); err != nil {
				return err
			}
			if err := z.Close(); err != nil {
				return err
			}
			b := j.out.Bytes()
			binary.LittleEndian.PutUint64(b, j.index*grain)
			binary.LittleEndian.PutUint32(b[8:], uint32(len(b)-layout.MarkerHead))
		}
		j.ready <- struct{}{}
	}
	return nil
}

func isZero(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }

// stream appends grains and their tables to a file.
type stream struct {
	w       *bufio.Writer
	head    layout.Header
	pos     uint64 // sectors written
	gd      []byte
	table   []byte // the current grain table
	index   uint64 // its number
	entries int    // how many of its entries are set
	err     error
}

func newStream(w io.Writer, o *Options, size int64) *stream {
	sectors := (uint64(size) + layout.Sector - 1) / layout.Sector
	s := &stream{w: bufio.NewWriterSize(w, 1<<20), head: header(sectors), table: make([]byte, layout.TableBytes)}
	s.gd = make([]byte, s.head.Tables()*4)
	s.put(s.head.Encode())
	s.put(descriptor(o, sectors))
	s.put(make([]byte, (overhead-s.pos)*layout.Sector))
	return s
}

// put appends b and pads it to a sector.
func (s *stream) put(b []byte) {
	if s.err != nil {
		return
	}
	n := (uint64(len(b)) + layout.Sector - 1) / layout.Sector
	if s.pos+n > maxSectors {
		s.err = errs.New(errs.Unsupported, "vmdk.write", "", "the file would have more than 2 TiB, which VMDK cannot address").
			WithHint("export the disk as qcow2 or raw")
		return
	}
	var pad [layout.Sector]byte
	if _, s.err = s.w.Write(b); s.err == nil {
		_, s.err = s.w.Write(pad[:n*layout.Sector-uint64(len(b))])
	}
	s.pos += n
}

func (s *stream) grain(j *job) error {
	if j.out.Len() == 0 {
		return s.err
	}
	if t := j.index / layout.TableEntries; t != s.index {
		s.endTable()
		s.index = t
	}
	binary.LittleEndian.PutUint32(s.table[j.index%layout.TableEntries*4:], uint32(s.pos))
	s.entries++
	s.put(j.out.Bytes())
	return s.err
}

// endTable appends the current grain table, if it has any entry.
func (s *stream) endTable() {
	if s.entries == 0 {
		return
	}
	s.put(layout.Marker{Value: layout.TableBytes / layout.Sector, Type: layout.MarkTable}.Encode())
	binary.LittleEndian.PutUint32(s.gd[s.index*4:], uint32(s.pos))
	s.put(s.table)
	clear(s.table)
	s.entries = 0
}

// close appends the last table, the grain directory, the footer and the end.
func (s *stream) close() error {
	s.endTable()
	s.put(layout.Marker{Value: (uint64(len(s.gd)) + layout.Sector - 1) / layout.Sector, Type: layout.MarkDirectory}.Encode())
	s.head.GDOffset = s.pos
	s.put(s.gd)
	s.put(layout.Marker{Value: 1, Type: layout.MarkFooter}.Encode())
	s.put(s.head.Encode())
	s.put(layout.Marker{Type: layout.MarkEnd}.Encode())
	if s.err != nil {
		return s.err
	}
	return s.w.Flush()
}
