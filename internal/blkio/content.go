package blkio

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"runtime"
	"sync"

	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// The content digest b3-4m names guest-visible content whatever format holds
// it, and can be computed in parallel and in any order:
//
//   - the content is cut into chunks of 4 MiB, the last one not padded;
//   - a chunk's leaf is its BLAKE3-256, or 32 zero bytes if all of it is zero;
//   - the root is BLAKE3 in derive_key mode with the context "tarn b3-4m v1"
//     over the size as 64 bits little-endian and the leaves in order;
//   - it is written "b3-4m:" and the root's 32 bytes in lower-case hex.
//
// Of content without a byte, size 0, the root is over the eight zero bytes
// alone. Test vectors: testdata/b3-4m.txt.
const (
	ChunkSize     = 4 << 20
	contentPrefix = "b3-4m:"
	rootContext   = "tarn b3-4m v1"
)

// Leaf is the digest of one chunk.
type Leaf [32]byte

// ZeroLeaf is the leaf of a chunk, of whatever length, that is all zero.
var ZeroLeaf Leaf

// ChunkLeaf returns the leaf of a chunk.
func ChunkLeaf(chunk []byte) Leaf {
	if IsZero(chunk) {
		return ZeroLeaf
	}
	return blake3.Sum256(chunk)
}

// Leafing computes the leaf of a chunk from its parts, in order. The zero value
// is ready.
type Leafing struct {
	hash   *blake3.Hasher // nil while all is zero
	zeroes int            // bytes that came before it
}

// Write adds the next part. It never fails.
func (l *Leafing) Write(p []byte) (int, error) {
	if l.hash == nil {
		if IsZero(p) {
			l.zeroes += len(p)
			return len(p), nil
		}
		l.hash = blake3.New()
		for n := l.zeroes; n > 0; n -= len(zeroPart) {
			_, _ = l.hash.Write(zeroPart[:min(n, len(zeroPart))])
		}
	}
	return l.hash.Write(p)
}

var zeroPart [64 << 10]byte

// Leaf returns the leaf of what came.
func (l *Leafing) Leaf() (leaf Leaf) {
	if l.hash != nil {
		l.hash.Sum(leaf[:0])
	}
	return leaf
}

// Content computes a content digest. Chunks may be added in any order and by
// several goroutines; those never added count as zero. The zero value is ready.
type Content struct {
	mu     sync.Mutex
	leaves map[int64]Leaf // those that are not ZeroLeaf
}

// Chunk adds chunk number i: the bytes from i*ChunkSize, ChunkSize of them
// unless it is the last. Adding it again replaces it.
func (c *Content) Chunk(i int64, chunk []byte) { c.Leaf(i, ChunkLeaf(chunk)) }

// Leaf adds chunk number i by its leaf.
func (c *Content) Leaf(i int64, l Leaf) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l == ZeroLeaf {
		delete(c.leaves, i)
		return
	}
	if c.leaves == nil {
		c.leaves = make(map[int64]Leaf)
	}
	c.leaves[i] = l
}

// Sum returns the digest of size bytes made of the chunks added so far.
func (c *Content) Sum(size int64) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := blake3.NewDeriveKey(rootContext)
	buf := binary.LittleEndian.AppendUint64(nil, uint64(size))
	for i := int64(0); i*ChunkSize < size; i++ {
		l := c.leaves[i]
		if buf = append(buf, l[:]...); len(buf) >= 64<<10 {
			_, _ = h.Write(buf)
			buf = buf[:0]
		}
	}
	_, _ = h.Write(buf)
	return contentPrefix + hex.EncodeToString(h.Sum(nil))
}

// SumSource returns the content digest of the first size bytes of src, which
// is not longer than src. Holes are not read; chunks are digested in parallel.
// progress, when not nil, is called with the bytes handed out so far, by one
// goroutine.
func SumSource(ctx context.Context, src Source, size int64, progress func(done int64)) (string, error) {
	if size < 0 || size > src.Size() {
		return "", errs.New(errs.Invalid, "digest", "", "%d bytes of a source of %d", size, src.Size())
	}
	d := digester{src: src, size: size, progress: progress}
	d.buffers.New = func() any { return new([ChunkSize]byte) }
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	err := d.run(gctx, group)
	if werr := group.Wait(); werr != nil {
		err = werr // what cancelled gctx
	}
	if err != nil {
		return "", errs.Wrap(err, "digest", "")
	}
	return d.content.Sum(size), nil
}

type digester struct {
	src      Source
	size     int64
	progress func(done int64)
	content  Content
	buffers  sync.Pool
}

// run hands every chunk that is not a hole as a whole to group.
func (d *digester) run(ctx context.Context, group *errgroup.Group) error {
	for off := int64(0); off < d.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := extentOf(d.src, off)
		if err != nil {
			return err
		}
		end := min(off+ChunkSize, d.size)
		if e.Kind == diskfmt.Zero && e.End() >= end {
			end = max(end, min(e.End()/ChunkSize*ChunkSize, d.size))
		} else {
			group.Go(d.chunk(off, end, e))
		}
		off = end
		if d.progress != nil {
			d.progress(off)
		}
	}
	return nil
}

func (d *digester) chunk(off, end int64, first diskfmt.Extent) func() error {
	return func() error {
		b := d.buffers.Get().(*[ChunkSize]byte)
		defer d.buffers.Put(b)
		p := b[:end-off]
		if err := readSparse(d.src, p, off, first); err != nil {
			return err
		}
		d.content.Chunk(off/ChunkSize, p)
		return nil
	}
}
