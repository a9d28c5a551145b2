package ingest

import (
	"context"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/internal/blkio"
)

// blockSize is the granularity of zero detection.
const blockSize = 4 << 10

// counter is how far the worker is: bytes read for a digest or converted, and
// how often it looked at tables.
type counter struct{ done, total, walked atomic.Int64 }

// job is one chunk of content on its way through a conversion.
type job struct {
	off  int64
	n    int            // content bytes in the chunk; of zeroes, in a whole run of chunks
	buf  []byte         // nil: all zeroes, nothing to read
	fill bool           // whether buf must still be read
	e    diskfmt.Extent // of the source, the last looked up: at first that at off
	refs atomic.Int32

	filled chan struct{} // closed when what follows is set
	pieces []piece
	packed int64 // bytes that its compressed clusters have in the source

	done chan struct{} // closed when what follows is set
	leaf blkio.Leaf
	runs runs
}

// piece is a part of a chunk as it lies in the source.
type piece struct {
	at, n int   // in the chunk
	off   int64 // in the source
}

// runs is what of a chunk was written.
type runs struct {
	count      int
	bytes      int64
	head, tail bool // whether data touches the chunk's start and end
}

// conversion moves content from a source into out, chunk by chunk on all
// cores, and digests it on the way. Chunks finish in any order; their leaves
// and extents are counted in order.
type conversion struct {
	dst    *descriptor // nil converts to nothing
	out    io.WriterAt // writes dst
	count  *counter
	source diskfmt.Reader // for jobs that are to be filled
	digest *sourceDigest  // nil when somebody else computes it
	flat   bool           // every byte lies in the digest's file where the guest has it
	base   int64          // where the source begins in the digest's file
	pass   int            // passSize, or more

	free  chan []byte
	work  chan *job
	sum   chan *job
	order chan *job
}

// converted is what a conversion found.
type converted struct {
	size    int64
	written int64
	extents int64
	content string
}

// newConversion returns a conversion into dst, or into nothing.
func newConversion(threads int, dst *descriptor, count *counter) *conversion {
	buffers := threads + 4
	c := &conversion{
		dst: dst, count: count, pass: passSize,
		free:  make(chan []byte, buffers),
		work:  make(chan *job, buffers),
		sum:   make(chan *job, buffers),
		order: make(chan *job, 4*buffers),
	}
	if dst != nil {
		c.out = &oneAtATime{w: dst}
	}
	for range buffers {
		c.free <- nil // made when first taken
	}
	return c
}

// oneAtATime lets one goroutine write while the others read and digest. A file
// system has one lock for the writes of a file, and waiting for it in the
// kernel costs processor time: a fifth of an import's.
type oneAtATime struct {
	mu sync.Mutex
	w  io.WriterAt
}

func (o *oneAtATime) WriteAt(p []byte, off int64) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.w.WriteAt(p, off)
}

// run converts what produce emits.
func (c *conversion) run(ctx context.Context, threads int, produce func(ctx context.Context) error) (converted, error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(c.work)
		defer close(c.sum)
		defer close(c.order)
		return produce(ctx)
	})
	for range threads {
		g.Go(func() error {
			for j := range c.work {
				if err := c.process(j); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error { return c.digestAll(ctx) })
	var result converted
	g.Go(func() (err error) {
		result, err = c.collect(ctx)
		return err
	})
	err := g.Wait()
	return result, err
}

// take waits for a free buffer.
func (c *conversion) take(ctx context.Context) ([]byte, error) {
	select {
	case b := <-c.free:
		if b == nil {
			b = make([]byte, blkio.ChunkSize)
		}
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// emit hands the next chunk to the stages that need it.
func (c *conversion) emit(ctx context.Context, j *job) error {
	j.done, j.filled = make(chan struct{}), make(chan struct{})
	j.refs.Store(1)
	stages := []chan *job{c.order, c.work}
	if c.digest != nil {
		j.refs.Store(2)
		stages = append(stages, c.sum)
	}
	for _, stage := range stages {
		select {
		case stage <- j:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// release gives the chunk's buffer back when its last stage is through.
func (c *conversion) release(j *job) {
	if j.refs.Add(-1) == 0 && j.buf != nil {
		c.free <- j.buf
	}
}

var zeroes [blkio.ChunkSize]byte

// digestAll feeds the chunks to the digest of the source as they are filled,
// and what no chunk has at last.
func (c *conversion) digestAll(ctx context.Context) error {
	for j := range c.sum {
		select {
		case <-j.filled:
		case <-ctx.Done():
			return ctx.Err()
		}
		for _, p := range j.pieces {
			b := zeroes[:p.n]
			if j.buf != nil {
				b = j.buf[p.at : p.at+p.n]
			}
			if err := c.digest.take(ctx, b, p.off); err != nil {
				return err
			}
		}
		c.release(j)
		if err := c.digest.advance(ctx, j.packed); err != nil {
			return err
		}
	}
	if c.digest == nil {
		return nil
	}
	return c.digest.read(ctx, c.digest.size)
}

// passSize is how much of a chunk goes through all that a core does with it at
// once: what its own cache keeps. A chunk as a whole would be fetched from
// memory for each digest and each write anew.
const passSize = 256 << 10

// process reads the chunk if nobody has, digests its content and writes what
// is not zero.
func (c *conversion) process(j *job) error {
	c.trace(j)
	if !j.fill {
		close(j.filled)
	}
	var leaf blkio.Leafing
	w := writer{out: c.out, off: j.off}
	for at := 0; j.buf != nil && at < j.n; {
		end := min(at+c.pass, j.n)
		if j.fill {
			if err := c.load(j, at, end); err != nil {
				return err
			}
		}
		_, _ = leaf.Write(j.buf[at:end])
		if err := w.write(j.buf[:end], end == j.n); err != nil {
			return err
		}
		at = end
	}
	j.leaf, j.runs = leaf.Leaf(), w.runs
	if j.fill {
		close(j.filled)
	}
	close(j.done)
	c.release(j)
	return nil
}

// writer writes the data of a chunk, part by part, to off of out, which reads
// as zeroes, and leaves long runs of zeroes out. A run at an edge of the chunk
// may be part of a longer one, so it is left out however short it is.
type writer struct {
	runs
	out  io.WriterAt // nil counts only
	off  int64
	done int // bytes of the chunk up to which it is written, zeroes or not
	end  int // of the last run
}

// write takes the chunk as far as it is known; zeroes at its end wait for what
// follows them, unless that is all.
func (w *writer) write(b []byte, all bool) error {
	end := len(b)
	for !all && end > w.done && blkio.IsZero(b[max(w.done, end-blockSize):end]) {
		end = max(w.done, end-blockSize)
	}
	if end == w.done {
		return nil
	}
	next := blkio.MoreDataRuns
	if w.done == 0 {
		next = blkio.DataRuns
	}
	err := next(b[w.done:end], w.off+int64(w.done), func(p []byte, off int64) error {
		at := int(off - w.off)
		if at == 0 || at > w.end {
			w.count++
		}
		w.end = at + len(p)
		w.head, w.tail = w.head || at == 0, all && w.end == len(b)
		w.bytes += int64(len(p))
		if w.out == nil {
			return nil
		}
		_, err := w.out.WriteAt(p, off)
		return err
	}, func(int64, int64) error { return nil })
	w.done = end
	return err
}

// writeBackEvery is how much of the output is finished before the kernel is
// asked to write it to the disk: so that the daemon's sync finds little left.
const writeBackEvery = 16 << 20

// collect takes the finished chunks in order.
func (c *conversion) collect(ctx context.Context) (converted, error) {
	var content blkio.Content
	var r converted
	tail := false
	var begun int64 // up to here write-back was
	for j := range c.order {
		select {
		case <-j.done:
		case <-ctx.Done():
			return r, ctx.Err()
		}
		content.Leaf(j.off/blkio.ChunkSize, j.leaf)
		r.size += int64(j.n)
		r.written += j.runs.bytes
		r.extents += int64(j.runs.count)
		if tail && j.runs.head {
			r.extents--
		}
		tail = j.runs.tail
		c.count.done.Add(int64(j.n))
		if c.dst != nil && r.size-begun >= writeBackEvery {
			c.dst.writeBack(begun, r.size-begun)
			begun = r.size
		}
	}
	if c.dst != nil {
		c.dst.writeBack(begun, r.size-begun)
	}
	r.content = content.Sum(r.size)
	return r, ctx.Err()
}

// chunks emits the chunks of source. Chunks that hold no data pass through
// unread; the others are read where they are converted.
func (c *conversion) chunks(ctx context.Context) error {
	size := c.source.Size()
	var e diskfmt.Extent
	for off := int64(0); off < size; {
		j := &job{off: off, n: int(min(blkio.ChunkSize, size-off)), fill: true}
		zero := true
		for pos := off; pos < off+int64(j.n) && zero; pos = e.End() {
			if e.End() <= pos {
				var err error
				if e, err = c.source.Extent(pos); err != nil {
					return err
				}
			}
			if pos == off {
				j.e = e
			}
			zero = e.Kind == diskfmt.Zero
		}
		if zero && (c.digest == nil || !c.flat) { // as many chunks as the run of zeroes has
			j.n = max(j.n, int(e.End()/blkio.ChunkSize*blkio.ChunkSize-off))
		}
		if !zero {
			var err error
			if j.buf, err = c.take(ctx); err != nil {
				return err
			}
		}
		if err := c.emit(ctx, j); err != nil {
			return err
		}
		off += int64(j.n)
	}
	return nil
}

// from makes r the source. What is compressed as one is read as one.
func (c *conversion) from(r diskfmt.Reader) {
	c.source = r
	if g, ok := r.(interface{ Grain() int64 }); ok {
		c.pass = int(max(passSize, min(g.Grain(), blkio.ChunkSize)))
	}
}

// trace notes where the chunk's bytes come from, as far as that is known before
// they are read. A source that does not tell it is digested on its own, at the
// same pace.
func (c *conversion) trace(j *job) {
	_, mapped := c.source.(diskfmt.Mapper)
	switch {
	case c.digest == nil:
	case c.flat:
		j.pieces = []piece{{0, j.n, j.off}}
	case !mapped:
		j.packed = int64(j.n)
	}
}

// load fills a part of the chunk and notes where its bytes come from, where
// they are to be digested.
func (c *conversion) load(j *job, at, end int) error {
	b, off := j.buf[at:end], j.off+int64(at)
	src, mapped := c.source.(diskfmt.Mapper)
	if c.digest == nil || c.flat || !mapped {
		return j.read(c.source, b, off)
	}
	return short(readMapped(src, b, off, func(m diskfmt.Mapping) {
		switch {
		case m.Compressed:
			j.packed += m.HostLength
		case m.Kind == diskfmt.Data:
			j.pieces = append(j.pieces, piece{int(m.Offset - j.off), int(m.Length), c.base + m.HostOffset})
		}
	}))
}

// readMapped reads the guest's bytes at off and tells seen where they lie.
func readMapped(src diskfmt.Mapper, b []byte, off int64, seen func(diskfmt.Mapping)) error {
	if q, ok := src.(*inspect.Source); ok { // whose Map looks far ahead
		_, err := q.ReadMapped(b, off, seen)
		return err
	}
	for len(b) > 0 {
		m, err := src.Map(off)
		if err != nil {
			return err
		}
		m.Length = min(m.Length, int64(len(b)))
		if m.Kind == diskfmt.Zero {
			clear(b[:m.Length])
		} else if _, err := src.ReadAt(b[:m.Length], off); err != nil {
			return err
		}
		seen(m)
		b, off = b[m.Length:], off+m.Length
	}
	return nil
}

// short says what the unexpected end of a source means.
func short(err error) error {
	if err == io.EOF {
		return errChanged()
	}
	return err
}

// sequential emits the chunks of r up to its end.
func (c *conversion) sequential(ctx context.Context, r io.Reader) error {
	for off := int64(0); ; {
		buf, err := c.take(ctx)
		if err != nil {
			return err
		}
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := c.emit(ctx, &job{off: off, n: n, buf: buf}); err != nil {
				return err
			}
			off += int64(n)
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// read reads the guest's bytes at off, a part of the chunk. Parts come in order.
func (j *job) read(r diskfmt.Reader, b []byte, off int64) error {
	for len(b) > 0 {
		if j.e.End() <= off {
			var err error
			if j.e, err = r.Extent(off); err != nil {
				return err
			}
		}
		n := min(j.e.End()-off, int64(len(b)))
		if j.e.Kind == diskfmt.Zero {
			clear(b[:n])
		} else if _, err := r.ReadAt(b[:n], off); err != nil {
			return short(err)
		}
		b, off = b[n:], off+n
	}
	return nil
}
