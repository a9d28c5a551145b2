package ingest

import (
	"context"
	"crypto/sha256"
	"hash"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
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
	n    int    // content bytes in the chunk; of zeroes, in a whole run of chunks
	buf  []byte // nil: all zeroes, nothing to read
	fill bool   // whether buf must still be read
	refs atomic.Int32
	done chan struct{} // closed when what follows is set
	leaf blkio.Leaf
	runs runs
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
	sha    hash.Hash      // fed with every chunk in order; nil when somebody else does

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
		dst: dst, count: count,
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
	g.Go(func() error {
		for j := range c.sum {
			c.digest(j)
		}
		return nil
	})
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
	j.done = make(chan struct{})
	j.refs.Store(1)
	stages := []chan *job{c.order, c.work}
	if c.sha != nil {
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

// digest feeds the chunk to the digest of the source.
func (c *conversion) digest(j *job) {
	b := zeroes[:j.n]
	if j.buf != nil {
		b = j.buf[:j.n]
	}
	c.sha.Write(b)
	c.release(j)
}

// process reads the chunk if nobody has, digests its content and writes what
// is not zero.
func (c *conversion) process(j *job) error {
	if j.buf != nil {
		b := j.buf[:j.n]
		if j.fill {
			if err := fill(c.source, b, j.off); err != nil {
				return err
			}
		}
		var err error
		if j.runs, err = writeData(c.out, b, j.off); err != nil {
			return err
		}
		if j.runs.count > 0 {
			j.leaf = blkio.ChunkLeaf(b)
		}
	}
	close(j.done)
	c.release(j)
	return nil
}

// writeData writes the data of b at off, where out reads as zeroes, and leaves
// runs of zeroes out. A run at an edge of b may be part of a longer one, so it
// is left out however short it is.
func writeData(out io.WriterAt, b []byte, off int64) (runs, error) {
	start, end := 0, len(b)
	for start < end && blkio.IsZero(b[start:min(start+blockSize, end)]) {
		start = min(start+blockSize, end)
	}
	for last := (end - 1) &^ (blockSize - 1); start < end && blkio.IsZero(b[last:end]); last -= blockSize {
		end = last
	}
	r := runs{head: start == 0 && end > 0, tail: end == len(b) && start < end}
	err := blkio.DataRuns(b[start:end], off+int64(start), func(p []byte, off int64) error {
		r.count++
		r.bytes += int64(len(p))
		if out == nil {
			return nil
		}
		_, err := out.WriteAt(p, off)
		return err
	}, func(int64, int64) error { return nil })
	return r, err
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
// unread; the others are read where they are converted, or here when they are
// to be hashed in order.
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
			zero = e.Kind == diskfmt.Zero
		}
		if zero && c.sha == nil { // as many chunks as the run of zeroes has
			j.n = max(j.n, int(e.End()/blkio.ChunkSize*blkio.ChunkSize-off))
		}
		if !zero {
			if err := c.load(ctx, j); err != nil {
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

// load gives the chunk a buffer, and fills it where chunks are to be hashed in
// order.
func (c *conversion) load(ctx context.Context, j *job) (err error) {
	if j.buf, err = c.take(ctx); err != nil || c.sha == nil {
		return err
	}
	j.fill = false
	return fill(c.source, j.buf[:j.n], j.off)
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

// fill reads the guest's bytes at off.
func fill(r diskfmt.Reader, b []byte, off int64) error {
	for pos := 0; pos < len(b); {
		e, err := r.Extent(off + int64(pos))
		if err != nil {
			return err
		}
		n := int(min(e.Length, int64(len(b)-pos)))
		if e.Kind == diskfmt.Zero {
			clear(b[pos : pos+n])
		} else if _, err := r.ReadAt(b[pos:pos+n], off+int64(pos)); err == io.EOF {
			return errChanged()
		} else if err != nil {
			return err
		}
		pos += n
	}
	return nil
}

// hashFile feeds size bytes of src to a SHA-256, holes without reading them.
// It is also what reads ahead for the conversion that runs beside it.
func hashFile(ctx context.Context, src descriptor, size int64, count *counter) ([]byte, error) {
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for off := int64(0); off < size; {
		e, err := src.extent(off, size)
		if err != nil {
			return nil, err
		}
		for ; off < e.End(); off += int64(len(buf)) {
			b := zeroes[:]
			if e.Kind == diskfmt.Data {
				b = buf
			}
			b = b[:min(int64(len(b)), int64(len(buf)), e.End()-off)]
			if e.Kind == diskfmt.Data {
				if _, err := src.ReadAt(b, off); err == io.EOF {
					return nil, errChanged()
				} else if err != nil {
					return nil, err
				}
			}
			h.Write(b)
			count.done.Add(int64(len(b)))
			if err := ctx.Err(); err != nil {
				return nil, err
			}
		}
		off = e.End()
	}
	return h.Sum(nil), nil
}
