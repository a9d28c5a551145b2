package metamorph

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash"
	"maps"
	"math/rand/v2"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const pageSize = 64 << 10

var zeroPage [pageSize]byte

// content is what a volume must read: pages that are never changed once they
// are shared, so that a copy costs a map. What has no page is zero.
type content struct {
	size  int64
	pages map[int64]*[pageSize]byte
}

func newContent(size int64) content { return content{size, map[int64]*[pageSize]byte{}} }

func (c content) copy() content { return content{c.size, maps.Clone(c.pages)} }

// write puts b at off.
func (c content) write(b []byte, off int64) {
	for len(b) > 0 {
		n := off / pageSize
		page := new([pageSize]byte)
		if old := c.pages[n]; old != nil {
			*page = *old
		}
		done := copy(page[off%pageSize:], b)
		c.pages[n] = page
		b, off = b[done:], off+int64(done)
	}
}

// resize sets the size; what a shrink cuts off reads as zeroes when it is grown
// again.
func (c *content) resize(size int64) {
	maps.DeleteFunc(c.pages, func(n int64, _ *[pageSize]byte) bool { return n*pageSize >= size })
	c.size = size
}

// page returns page n.
func (c content) page(n int64) []byte {
	if p := c.pages[n]; p != nil {
		return p[:]
	}
	return zeroPage[:]
}

// sum adds the content to h.
func (c content) sum(h hash.Hash) {
	var head [8]byte
	add := func(n int64) { binary.LittleEndian.PutUint64(head[:], uint64(n)); h.Write(head[:]) }
	add(c.size)
	for n := int64(0); n*pageSize < c.size; n++ {
		if p := c.page(n); !bytes.Equal(p, zeroPage[:]) {
			add(n)
			h.Write(p)
		}
	}
}

// read reads a whole device.
func read(d driver.Device) (content, error) {
	c := newContent(d.Size())
	if c.size%pageSize != 0 {
		return c, fmt.Errorf("the device has %d bytes, no whole pages", c.size)
	}
	b := make([]byte, 16*pageSize)
	for off := int64(0); off < c.size; off += int64(len(b)) {
		b = b[:min(int64(len(b)), c.size-off)]
		if n, err := d.ReadAt(b, off); n < len(b) {
			return c, fmt.Errorf("reading at %d: %d bytes, %w", off, n, err)
		}
		for at := int64(0); at < int64(len(b)); at += pageSize {
			if page := [pageSize]byte(b[at:]); page != zeroPage {
				c.pages[(off+at)/pageSize] = &page
			}
		}
	}
	return c, nil
}

// compare returns how what was read differs from what must be.
func (c content) compare(got content) error {
	if got.size != c.size {
		return fmt.Errorf("it has %d bytes, must have %d", got.size, c.size)
	}
	for n := int64(0); n*pageSize < c.size; n++ {
		want, have := c.page(n), got.page(n)
		if bytes.Equal(want, have) {
			continue
		}
		for i := range want {
			if want[i] != have[i] {
				return fmt.Errorf("byte %d reads %#02x, must be %#02x", n*pageSize+int64(i), have[i], want[i])
			}
		}
	}
	return nil
}

// holes checks that what d knows to be zero is.
func (c content) holes(d driver.Device) error {
	for off := int64(0); off < c.size; {
		e, err := d.Extent(off)
		if err != nil || e.Offset != off || e.Length <= 0 || e.End() > c.size {
			return fmt.Errorf("the extent at %d is %+v, %v", off, e, err)
		}
		for n := off / pageSize; e.Kind == diskfmt.Zero && n*pageSize < e.End(); n++ {
			from, to := max(off, n*pageSize)-n*pageSize, min(e.End(), (n+1)*pageSize)-n*pageSize
			if !bytes.Equal(c.page(n)[from:to], zeroPage[from:to]) {
				return fmt.Errorf("the extent at %d is said to be zero to %d, and is not on page %d", off, e.End(), n)
			}
		}
		off = e.End()
	}
	return nil
}

// piece is one write: Length bytes at Offset that follow from Seed, or zeroes.
type piece struct {
	Offset, Length int64
	Seed           uint64 // 0: zeroes
}

func (p piece) bytes() []byte {
	b := make([]byte, p.Length)
	if p.Seed == 0 {
		return b
	}
	r := rand.New(rand.NewPCG(p.Seed, uint64(p.Offset)))
	for i := 0; i < len(b); i += 8 {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], r.Uint64())
		copy(b[i:], word[:])
	}
	return b
}
