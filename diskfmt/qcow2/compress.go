package qcow2

import (
	"bytes"
	"context"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// CompressOptions says how Compress writes an image.
type CompressOptions struct {
	Zstd    bool // zstd clusters, which QEMU reads since 5.1, instead of deflate
	Threads int  // that compress at once; 0 means one
}

// streamCluster is the cluster size of compressed images.
const streamCluster = DefaultClusterSize

// batchClusters is how many clusters a goroutine compresses before it hands
// them on.
const batchClusters = 16

// The cheapest levels of klauspost's encoders that make images no larger than
// QEMU does.
const (
	deflateLevel = 6
	zstdLevel    = zstd.SpeedBetterCompression
)

// Compress writes the guest bytes of src as a new version 3 image of compressed
// clusters of 64 KiB into the empty container w. What does not become smaller
// is stored as it is; zero clusters take no space. Of a size that is no multiple
// of 512 the last sector is filled up with zeroes. progress, if not nil, is
// called with the guest bytes done so far. Until nil is returned the container
// is no qcow2 image. Memory: 2 MiB for each thread, and 2 bytes for each
// cluster written. The caller syncs w.
func Compress(ctx context.Context, w io.WriterAt, src diskfmt.Reader, o CompressOptions, progress func(done int64)) error {
	const op = "qcow2.compress"
	p, err := newPlan(CreateOptions{VirtualSize: (src.Size() + 511) &^ 511})
	if err != nil {
		return errs.Wrap(err, op, "")
	}
	if o.Zstd {
		p.h.Incompat |= layout.CompressionBit
		p.h.Compression = layout.Zstd
	}
	c := &compressor{w: w, src: src, h: p.h, l1: make([]uint64, p.h.L1Size), refs: []uint16{1}, table: -1, first: 1, open: -1}
	c.out = make([]byte, 0, 4*streamRun)
	if err := c.run(ctx, o, progress); err != nil {
		return errs.Wrap(err, op, "")
	}
	return errs.Wrap(c.finish(), op, "")
}

// batch is a run of guest clusters on its way through the compressors.
type batch struct {
	first  int64 // cluster
	n      int
	raw    []byte
	packed bytes.Buffer
	ends   [batchClusters]int // where each ends in packed
	kinds  [batchClusters]uint8
	done   chan error
}

// The kinds of cluster in a batch.
const (
	zeroCluster = iota
	packedCluster
	rawCluster
)

// compressor is the one writer of the container; clusters come to it in order.
type compressor struct {
	w   io.WriterAt
	src diskfmt.Reader
	h   layout.Header

	l1    []uint64
	l2    []uint64
	table int64 // L1 index of l2, -1 none

	refs []uint16 // of every host cluster so far
	out  []byte   // not yet written, from the host cluster first on
	// open is where in out the next compressed cluster goes; what follows it up
	// to the end of its host cluster is free. -1: nowhere.
	open  int
	first uint64 // host cluster of out[0]; the header's is written last
	// held is the host cluster that open was in when out was written with
	// others behind it, as far as it is filled: each run would else leave most
	// of one empty. open is then -1.
	held   []byte
	heldAt uint64 // in the container
}

func (c *compressor) run(ctx context.Context, o CompressOptions, progress func(done int64)) error {
	threads := max(1, o.Threads)
	free, work, order := make(chan *batch, 2*threads), make(chan *batch, 2*threads), make(chan *batch, 2*threads)
	for range cap(free) {
		free <- &batch{raw: make([]byte, batchClusters*streamCluster), done: make(chan error, 1)}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(work)
		defer close(order)
		return c.divide(ctx, func(first int64, n int) error {
			select {
			case b := <-free:
				b.first, b.n = first, n
				work <- b
				order <- b
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	for range threads {
		g.Go(func() error {
			pack, err := packer(o.Zstd)
			for b := range work {
				if err == nil {
					err = b.compress(c.src, pack)
				}
				b.done <- err
			}
			return err
		})
	}
	g.Go(func() error {
		for b := range order {
			if err := <-b.done; err != nil {
				return err
			}
			if err := c.take(b); err != nil {
				return err
			}
			if progress != nil {
				progress(min((b.first+int64(b.n))*streamCluster, c.src.Size()))
			}
			free <- b
		}
		return nil
	})
	return g.Wait()
}

// divide calls f for runs of clusters that hold data, in order.
func (c *compressor) divide(ctx context.Context, f func(first int64, n int) error) error {
	next := int64(0) // the first cluster that f was not called for
	for off := int64(0); off < c.src.Size(); {
		e, err := c.src.Extent(off)
		if err == nil && e.Kind == diskfmt.Backing {
			err = errs.New(errs.Invalid, "", "", "%d bytes at %d belong to a layer below the source", e.Length, off)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		off = e.End()
		if e.Kind == diskfmt.Zero {
			continue
		}
		end := (e.End() + streamCluster - 1) / streamCluster
		for next = max(next, e.Offset/streamCluster); next < end; {
			n := min(end-next, batchClusters)
			if err := f(next, int(n)); err != nil {
				return err
			}
			next += n
		}
	}
	return nil
}

// packer returns a function that appends the compressed form of p to b.
func packer(useZstd bool) (func(b *bytes.Buffer, p []byte) error, error) {
	if useZstd {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstdLevel), zstd.WithEncoderCRC(false), zstd.WithWindowSize(streamCluster))
		return func(b *bytes.Buffer, p []byte) error {
			b.Grow(len(p) + 1024)
			b.Write(e.EncodeAll(p, b.AvailableBuffer()))
			return nil
		}, err
	}
	f, err := flate.NewWriter(nil, deflateLevel)
	return func(b *bytes.Buffer, p []byte) error {
		f.Reset(b)
		if _, err := f.Write(p); err != nil {
			return err
		}
		return f.Close()
	}, err
}

// compress reads the clusters of b and packs them.
func (b *batch) compress(src diskfmt.Reader, pack func(*bytes.Buffer, []byte) error) error {
	raw := b.raw[:b.n*streamCluster]
	off := b.first * streamCluster
	inside := min(int64(len(raw)), src.Size()-off)
	if n, err := src.ReadAt(raw[:inside], off); int64(n) < inside {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	clear(raw[inside:])
	b.packed.Reset()
	for i := range b.n {
		p := raw[i*streamCluster:][:streamCluster]
		before := b.packed.Len()
		b.kinds[i] = zeroCluster
		if !isZero(p) {
			if err := pack(&b.packed, p); err != nil {
				return err
			}
			if b.kinds[i] = packedCluster; b.packed.Len()-before >= streamCluster {
				b.packed.Truncate(before)
				b.kinds[i] = rawCluster
			}
		}
		b.ends[i] = b.packed.Len()
	}
	return nil
}

// take places the clusters of b.
func (c *compressor) take(b *batch) error {
	begin := 0
	for i := range b.n {
		entry := uint64(0)
		switch b.kinds[i] {
		case packedCluster:
			var err error
			if entry, err = c.place(b.packed.Bytes()[begin:b.ends[i]]); err != nil {
				return err
			}
		case rawCluster:
			entry = c.append(b.raw[i*streamCluster:][:streamCluster]) | layout.Copied
		}
		begin = b.ends[i]
		if entry == 0 {
			continue
		}
		guest, per := b.first+int64(i), int64(1)<<c.h.L2Bits()
		if guest/per != c.table {
			c.endTable()
			c.table, c.l2 = guest/per, make([]uint64, per)
		}
		c.l2[guest%per] = entry
		if len(c.out) > 3*streamRun {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// append adds whole clusters to the container and returns their host offset.
func (c *compressor) append(p []byte) uint64 {
	at := c.first*streamCluster + uint64(len(c.out))
	c.out = append(c.out, p...)
	for range len(p) / streamCluster {
		c.refs = append(c.refs, 1)
	}
	return at
}

// place adds a compressed cluster, behind the one before where that can be, and
// returns the L2 entry ("Compressed Clusters Descriptor").
func (c *compressor) place(p []byte) (uint64, error) {
	if c.held != nil && len(c.held)+len(p) <= streamCluster {
		host := c.heldAt + uint64(len(c.held))
		c.held = append(c.held, p...)
		return c.entry(host, len(p)), nil
	}
	if err := c.release(); err != nil {
		return 0, err
	}
	if c.open >= 0 {
		room := streamCluster - c.open%streamCluster
		if c.open+room < len(c.out) && room < len(p) { // and something else follows
			c.open = -1
		}
	}
	if c.open < 0 {
		c.open = len(c.out)
	}
	at := c.open
	if c.open += len(p); c.open > len(c.out) {
		c.out = append(c.out, make([]byte, streamCluster)...)
		c.refs = append(c.refs, 0)
	}
	copy(c.out[at:], p)
	if c.open%streamCluster == 0 {
		c.open = -1
	}
	return c.entry(c.first*streamCluster+uint64(at), len(p)), nil
}

// entry counts the references of the n compressed bytes at host and returns
// their L2 entry.
func (c *compressor) entry(host uint64, n int) uint64 {
	end := host + uint64(n)
	for i := host / streamCluster; i <= (end-1)/streamCluster; i++ {
		c.refs[i]++
	}
	shift := 62 - (c.h.ClusterBits - 8)
	return host | ((host&511+uint64(n)+511)/512-1)<<shift | layout.CompressFlag
}

// release writes the held cluster.
func (c *compressor) release() error {
	if c.held == nil {
		return nil
	}
	_, err := c.w.WriteAt(c.held, int64(c.heldAt))
	c.held = nil
	return err
}

func (c *compressor) endTable() {
	if c.table >= 0 {
		c.l1[c.table] = c.append(encode(c.l2)) | layout.Copied
	}
}

// flush writes out, but for an open cluster at its end, which stays.
func (c *compressor) flush() error {
	n, begin := len(c.out), c.open&^(streamCluster-1)
	switch {
	case c.open < 0:
	case begin+streamCluster == n:
		n = begin
	default:
		c.held, c.heldAt = append(make([]byte, 0, streamCluster), c.out[begin:c.open]...), c.first*streamCluster+uint64(begin)
		c.open = -1
	}
	_, err := c.w.WriteAt(c.out[:n], int64(c.first)*streamCluster)
	c.first += uint64(n) / streamCluster
	c.out = c.out[:copy(c.out, c.out[n:])]
	if c.open >= 0 {
		c.open -= n
	}
	return err
}

// finish writes the tables behind the data, and the header.
func (c *compressor) finish() error {
	if err := c.release(); err != nil {
		return err
	}
	c.open = -1
	c.endTable()
	l1 := encode(c.l1)
	c.h.L1Offset = c.append(append(l1, make([]byte, -len(l1)&(streamCluster-1))...))
	per := c.h.BlockRefs()
	used, blocks, table := uint64(len(c.refs)), uint64(0), uint64(0)
	for blocks*per < used+blocks+table || table<<(c.h.ClusterBits-3) < blocks {
		blocks = (used + blocks + table + per - 1) / per
		table = (blocks + 1<<(c.h.ClusterBits-3) - 1) >> (c.h.ClusterBits - 3)
	}
	for range blocks + table {
		c.refs = append(c.refs, 1)
	}
	entries := make([]uint64, table<<(c.h.ClusterBits-3))
	buf := make([]byte, streamCluster)
	for b := range blocks {
		clear(buf)
		for i := b * per; i < min((b+1)*per, uint64(len(c.refs))); i++ {
			layout.SetRefcount(buf, c.h.RefcountOrder, i%per, uint64(c.refs[i]))
		}
		entries[b] = c.first*streamCluster + uint64(len(c.out))
		c.out = append(c.out, buf...)
		if len(c.out) > 3*streamRun {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
	c.h.RefTableOffset, c.h.RefTableCluster = c.first*streamCluster+uint64(len(c.out)), uint32(table)
	c.out = append(c.out, encode(entries)...)
	if err := c.flush(); err != nil {
		return err
	}
	head := appendHeader(make([]byte, 0, streamCluster), &c.h)
	_, err := c.w.WriteAt(head[:streamCluster], 0)
	return err
}
