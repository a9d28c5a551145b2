package inspect

import (
	"sync"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhd/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

var _ strict.Source = (*Source)(nil)

// mapBytes bounds the bitmaps in memory, mergeSteps the runs that one Map looks
// at to join zeroes.
const (
	mapBytes   = 4 << 20
	mergeSteps = 1 << 16
)

// Source reads a file that Open has accepted. It is safe for concurrent use.
// Blocks without a place in the file, and sectors that the bitmap of their
// block says are absent, read as zeroes, as the specification has it: QEMU reads
// what lies in the file there. It keeps every check while it reads, should the
// file change under it.
type Source struct {
	im         *image
	block      uint64 // 0 for a fixed disk
	bitmapSize uint64
	bat        []uint32
	maps       *bitmaps
	stored     uint64
	past       uint64 // the end for checkTail; 0 means the virtual size
}

// Size returns the virtual size in bytes.
func (s *Source) Size() int64 { return int64(s.im.size) }

func (s *Source) end() uint64 {
	if s.past != 0 {
		return s.past
	}
	return s.im.size
}

// ReadAt reads guest bytes.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	return s.im.file.ReadMapped("vhd.read", p, off, s.Size(), s.mapping)
}

// Extent returns the extent at off: Data or Zero.
func (s *Source) Extent(off int64) (diskfmt.Extent, error) {
	m, err := s.Map(off)
	return m.Extent, err
}

// Map returns the mapping at off. A Data mapping is contiguous in the file; of
// a dynamic disk it ends with its block.
func (s *Source) Map(off int64) (diskfmt.Mapping, error) {
	if off < 0 || uint64(off) >= s.end() {
		return diskfmt.Mapping{}, errs.New(errs.Invalid, "vhd.map", "", "offset %d is outside the disk of %d bytes", off, s.end())
	}
	m, err := s.mapping(off)
	if m.Kind != diskfmt.Zero {
		return m, errs.Wrap(err, "vhd.map", "")
	}
	for range mergeSteps {
		if uint64(m.End()) >= s.end() {
			break
		}
		next, err := s.mapping(m.End())
		if err != nil || next.Kind != diskfmt.Zero {
			break // whoever asks for that offset gets the error
		}
		m.Length += next.Length
	}
	return m, nil
}

// mapping returns the run at off, which is inside the disk, within its block.
func (s *Source) mapping(off int64) (diskfmt.Mapping, error) {
	at := uint64(off)
	m := diskfmt.Mapping{Extent: diskfmt.Extent{Offset: off, Length: int64(s.end() - at), Kind: diskfmt.Data}}
	if s.block == 0 {
		m.HostOffset, m.HostLength = off, m.Length
		return m, nil
	}
	i, in := at/s.block, at%s.block
	m.Length = min(m.Length, int64(s.block-in))
	e := s.bat[i]
	if e == layout.Absent {
		m.Kind = diskfmt.Zero
		return m, nil
	}
	if err := s.checkBlock(i, e); err != nil {
		return diskfmt.Mapping{}, err
	}
	bits, err := s.bitmap(e)
	if err != nil {
		return diskfmt.Mapping{}, err
	}
	if bits != nil {
		present, n := run(bits, in/layout.Sector, s.block/layout.Sector)
		m.Length = min(m.Length, int64(n*layout.Sector-in%layout.Sector))
		if !present {
			m.Kind = diskfmt.Zero
			return m, nil
		}
	}
	m.HostOffset, m.HostLength = int64(uint64(e)*layout.Sector+s.bitmapSize+in), m.Length
	return m, nil
}

// run returns whether the bit first is set and how many from it on are alike,
// of count bits in all.
func run(bits []byte, first, count uint64) (set bool, n uint64) {
	bit := func(i uint64) bool { return bits[i/8]&(0x80>>(i%8)) != 0 }
	alike := byte(0)
	if set = bit(first); set {
		alike = 0xff
	}
	i := first + 1
	for i < count {
		if i%8 == 0 && bits[i/8] == alike {
			i += 8
		} else if bit(i) == set {
			i++
		} else {
			break
		}
	}
	return set, min(i, count) - first
}

// bitmap returns the bitmap of the block at sector e, nil if all its sectors
// are present.
func (s *Source) bitmap(e uint32) ([]byte, error) {
	if b, ok := s.maps.get(e); ok {
		return b, nil
	}
	b, err := s.im.file.Bytes(uint64(e)*layout.Sector, s.bitmapSize, "a block's bitmap")
	if err != nil {
		return nil, err
	}
	n := s.block / layout.Sector
	if set, all := run(b, 0, n); set && all == n {
		b = nil
	}
	s.maps.put(e, b)
	return b, nil
}

// bitmaps keeps the bitmaps that were read last. They are never written after
// insertion.
type bitmaps struct {
	mu   sync.Mutex
	m    map[uint32][]byte
	keys []uint32
	next int
	max  int
}

func newBitmaps(size int) *bitmaps {
	return &bitmaps{m: map[uint32][]byte{}, max: mapBytes / size}
}

func (c *bitmaps) get(e uint32) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.m[e]
	return b, ok
}

func (c *bitmaps) put(e uint32, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, have := c.m[e]; have {
		return
	}
	c.m[e] = b
	if len(c.keys) < c.max {
		c.keys = append(c.keys, e)
		return
	}
	delete(c.m, c.keys[c.next])
	c.keys[c.next] = e
	c.next = (c.next + 1) % c.max
}
