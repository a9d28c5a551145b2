package inspect

import (
	"encoding/binary"
	"io"
	"sync"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// tableSlots is how many grain tables a Source keeps: 64 cover 2 GiB of guest
// with grains of 64 KiB.
const tableSlots = 64

type table struct {
	index   uint64
	entries [layout.TableEntries]uint32
}

// Source reads a file that Open has accepted. It is a diskfmt.Mapper, safe for
// concurrent use, and keeps every check while it reads, should the file change
// under it. Memory: the grain directory (16 MiB at most) and 64 grain tables.
type Source struct {
	f    strict.File
	h    layout.Header
	gd   []uint32
	bufs sync.Pool // *[]byte of a marker and the most compressed bytes

	mu    sync.Mutex
	slots [tableSlots]*table
}

func newSource(f strict.File, h layout.Header, gd []uint32) *Source {
	s := &Source{f: f, h: h, gd: gd}
	s.bufs.New = func() any {
		b := make([]byte, layout.MarkerHead+maxPacked(&h))
		return &b
	}
	return s
}

// Size returns the virtual size in bytes.
func (s *Source) Size() int64 { return int64(s.h.Capacity * layout.Sector) }

// Grain returns how many guest bytes are compressed as one, if any are: a read
// of less decompresses that many.
func (s *Source) Grain() int64 { return int64(s.h.GrainBytes()) }

// Extent returns the extent at off: Data or Zero.
func (s *Source) Extent(off int64) (diskfmt.Extent, error) {
	m, err := s.Map(off)
	return m.Extent, err
}

// Map returns the mapping at off. A compressed grain is a mapping of its own,
// with its marker; its HostLength may count some bytes behind it.
func (s *Source) Map(off int64) (diskfmt.Mapping, error) {
	if off < 0 || off >= s.Size() {
		return diskfmt.Mapping{}, errs.New(errs.Invalid, "vmdk.map", "", "offset %d is outside the disk of %d bytes", off, s.Size())
	}
	g := uint64(off) / s.h.GrainBytes()
	t, err := s.table(g / layout.TableEntries)
	if err != nil {
		return diskfmt.Mapping{}, refuse("vmdk.map", err)
	}
	m := diskfmt.Mapping{Extent: diskfmt.Extent{Offset: off, Kind: diskfmt.Data}}
	i := g % layout.TableEntries
	e := s.entry(t, i)
	switch {
	case e == 0:
		m.Kind = diskfmt.Zero
		m.Length = s.upTo(s.zeroes(t, g), off)
	case s.packed():
		m.HostOffset, m.HostLength, m.Compressed = int64(e)*layout.Sector, int64(s.span(t, i)), true
		m.Length = s.upTo(g+1, off)
	default:
		n := uint64(1)
		for i+n < layout.TableEntries && uint64(t.entries[i+n]) == uint64(e)+n*s.h.Grain {
			n++
		}
		m.HostOffset = int64(e)*layout.Sector + off%int64(s.h.GrainBytes())
		m.Length = s.upTo(g+n, off)
		m.HostLength = m.Length
	}
	return m, nil
}

func (s *Source) packed() bool { return s.h.Flags&layout.FlagCompress != 0 }

// upTo returns the guest bytes from off to the start of grain g.
func (s *Source) upTo(g uint64, off int64) int64 {
	return min(int64(g*s.h.GrainBytes()), s.Size()) - off
}

// entry returns entry i of a table, 0 for all grains that are not stored.
func (s *Source) entry(t *table, i uint64) uint32 {
	if t == nil || t.entries[i] == 1 && s.h.Flags&layout.FlagZeroGrain != 0 {
		return 0
	}
	return t.entries[i]
}

// zeroes returns the first grain behind g, which is not stored, that may be: in
// g's table or in the next table that there is.
func (s *Source) zeroes(t *table, g uint64) uint64 {
	next := (g/layout.TableEntries + 1) * layout.TableEntries
	for g++; t != nil && g < next; g++ {
		if s.entry(t, g%layout.TableEntries) != 0 {
			return g
		}
	}
	for next/layout.TableEntries < uint64(len(s.gd)) && s.gd[next/layout.TableEntries] == 0 {
		next += layout.TableEntries
	}
	return next
}

// span returns a number of bytes at the compressed grain i of a table that
// holds it and its marker: up to the next grain in an ordered stream.
func (s *Source) span(t *table, i uint64) uint64 {
	most := min(layout.MarkerHead+maxPacked(&s.h), s.f.Size-min(s.f.Size, uint64(t.entries[i])*layout.Sector))
	for k := i + 1; k < layout.TableEntries; k++ {
		if e := s.entry(t, k); e > t.entries[i] {
			return min(most, uint64(e-t.entries[i])*layout.Sector)
		} else if e != 0 {
			break
		}
	}
	return most
}

// table returns grain table n, nil if there is none.
func (s *Source) table(n uint64) (*table, error) {
	if s.gd[n] == 0 {
		return nil, nil
	}
	slot := &s.slots[n%tableSlots]
	s.mu.Lock()
	t := *slot
	s.mu.Unlock()
	if t != nil && t.index == n {
		return t, nil
	}
	var raw [layout.TableBytes]byte
	if err := s.f.Read(raw[:], uint64(s.gd[n])*layout.Sector, "a grain table"); err != nil {
		return nil, err
	}
	t = &table{index: n}
	for i := range t.entries {
		t.entries[i] = binary.LittleEndian.Uint32(raw[i*4:])
	}
	s.mu.Lock()
	*slot = t
	s.mu.Unlock()
	return t, nil
}

// ReadAt reads guest bytes. A read of one whole compressed grain is one read of
// the file and one decompression into p.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > s.Size() {
		return 0, errs.New(errs.Invalid, "vmdk.read", "", "offset %d is outside the disk of %d bytes", off, s.Size())
	}
	var end error
	if left := s.Size() - off; int64(len(p)) > left {
		p, end = p[:left], io.EOF
	}
	n := 0
	for n < len(p) {
		m, err := s.Map(off + int64(n))
		if err != nil {
			return n, err
		}
		part := p[n:min(int64(len(p)), int64(n)+m.Length)]
		switch {
		case m.Kind == diskfmt.Zero:
			clear(part)
		case m.Compressed:
			err = s.readPacked(part, m)
		default:
			err = s.f.Read(part, uint64(m.HostOffset), "a grain")
		}
		if err != nil {
			return n, refuse("vmdk.read", err)
		}
		n += len(part)
	}
	return n, end
}

// readPacked reads the first bytes of the mapping of a compressed grain.
func (s *Source) readPacked(p []byte, m diskfmt.Mapping) error {
	grain := int64(s.h.GrainBytes())
	first, at := m.Offset-m.Offset%grain, uint64(m.HostOffset)
	buf := s.bufs.Get().(*[]byte)
	defer s.bufs.Put(buf)
	b := (*buf)[:m.HostLength]
	if err := s.f.Read(b, at, "a compressed grain"); err != nil {
		return err
	}
	if len(b) < layout.MarkerHead {
		return strict.Refuse(strict.Truncated, "the marker of a grain at 0x%x reaches past the end of the file", at)
	}
	head := layout.DecodeGrain(b)
	if err := checkGrain(&s.h, head, uint64(first)/layout.Sector, at); err != nil {
		return err
	}
	b = b[layout.MarkerHead:]
	if uint64(head.Size) > uint64(len(b)) {
		return strict.Refuse(strict.Corrupt, "the compressed grain at 0x%x reaches into the next", at)
	}
	return unpack(p, m.Offset-first, b[:head.Size], &s.h, head.Value, at)
}
