package inspect

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"hash/maphash"
	"io"
	"slices"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
)

// maxStreamTables bounds what a Stream remembers: 16 bytes for each grain table
// seen and for each one expected, 32 TiB of stored guest bytes.
const maxStreamTables = 1 << 20

// Streamable reports whether a file that begins with the bytes head, of which a
// sector suffices, may be read by a Stream: a streamOptimized disk whose grain
// directory is behind the grains, as VMware and VirtualBox write it. QEMU puts
// it before them; that and all other files need Open.
func Streamable(head []byte) bool {
	if len(head) < layout.Sector {
		return false
	}
	h := layout.Decode(head)
	return h.Magic == layout.Magic && h.GDOffset == layout.AtEnd && h.Flags&layout.FlagRedundant == 0
}

// Grain is a compressed grain of a stream.
type Grain struct {
	Offset int64  // in the guest's disk
	Length int64  // its guest bytes: less than a grain at the disk's end
	Packed []byte // as it came

	at uint64 // in the stream
}

// Stream reads a streamOptimized disk front to back, without seeking: grains
// come in the order of their offsets, and what lies between them is zero. Only
// at the end is it known whether the grain tables, the grain directory and the
// footer say the same as the markers did: until Next has returned io.EOF what
// was read is not to be believed.
type Stream struct {
	r    *bufio.Reader
	h    layout.Header
	pos  uint64 // sectors read
	next uint64 // the least grain that may come
	gd   uint64 // sector of the grain directory, 0 before it
	err  error

	seed     maphash.Seed
	table    []byte     // the grain table that the grains of table index need
	index    uint64     //
	expected []tableSum // of the tables that the grains needed, by index
	found    []tableSum // of the tables that came, by sector
}

// tableSum remembers a grain table.
type tableSum struct {
	at   uint32 // index or sector
	used bool
	sum  uint64
}

// OpenStream reads the header and the descriptor and gives Header's verdict. A
// stream that is not Streamable is UNSUPPORTED_FEATURE.
func OpenStream(r io.Reader, lim strict.Limits) (*Stream, strict.Report, error) {
	s := &Stream{r: bufio.NewReaderSize(r, 256<<10), seed: maphash.MakeSeed(), table: make([]byte, layout.TableBytes)}
	rep, err := s.open(lim)
	return s, rep, refuse("vmdk.stream", err)
}

func (s *Stream) open(lim strict.Limits) (strict.Report, error) {
	head := make([]byte, layout.Sector)
	n, err := io.ReadFull(s.r, head)
	if d := layout.Decode(head); err == nil && d.DescOffset == 1 && d.DescSize <= maxDescriptor {
		head = append(head, make([]byte, d.DescSize*layout.Sector)...)
		n, err = io.ReadFull(s.r, head[layout.Sector:])
		n += layout.Sector
	}
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return strict.Report{}, err
	}
	f := strict.File{R: bytes.NewReader(head[:n]), Size: uint64(n)}
	if n == len(head) {
		f.Size = 1 << 62 // whatever comes
	}
	h, rep, err := readHeader(f, lim)
	if err != nil {
		return rep, err
	}
	if !Streamable(head) {
		return rep, strict.Refuse(strict.Feature, "the grain directory is before the grains, so that the disk cannot be read from a stream").
			WithHint("give the image as a file")
	}
	s.h, s.pos = h, uint64(n)/layout.Sector
	for s.pos < h.Overhead { // padding up to the first marker
		if _, err := s.sector("the room before the grains"); err != nil {
			return rep, err
		}
	}
	return rep, nil
}

// fill reads whole sectors into p.
func (s *Stream) fill(p []byte, what string) error {
	n, err := io.ReadFull(s.r, p)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return strict.Refuse(strict.Truncated, "the stream ends %d bytes behind its start, inside %s", s.pos*layout.Sector+uint64(n), what).
			WithHint("get the image again and compare its checksum")
	case err != nil:
		return err
	}
	s.pos += uint64(len(p)) / layout.Sector
	return nil
}

func (s *Stream) sector(what string) ([]byte, error) {
	b := make([]byte, layout.Sector)
	return b, s.fill(b, what)
}

// Next returns the next grain, whose Packed uses the memory of buf if that
// suffices, or io.EOF at the end of a stream that was sound. Every other error
// is final.
func (s *Stream) Next(ctx context.Context, buf []byte) (Grain, error) {
	for s.err == nil {
		if err := ctx.Err(); err != nil {
			return Grain{}, refuse("vmdk.stream", err)
		}
		g, err := s.marker(buf)
		if err == nil && g.Packed != nil {
			return g, nil
		}
		s.err = refuse("vmdk.stream", err)
	}
	return Grain{}, s.err
}

// marker reads a marker and what belongs to it.
func (s *Stream) marker(buf []byte) (Grain, error) {
	at := s.pos
	b, err := s.sector("the markers")
	if err != nil {
		return Grain{}, err
	}
	m := layout.DecodeMarker(b)
	switch {
	case m.Size > 0 && s.gd == 0:
		return s.grain(layout.DecodeGrain(b), b, at, buf)
	case m.Size == 0 && m.Type == layout.MarkTable && s.gd == 0:
		return Grain{}, s.grainTable(m)
	case m.Size == 0 && m.Type == layout.MarkDirectory && s.gd == 0:
		return Grain{}, s.directory(m)
	case m.Size == 0 && m.Type == layout.MarkProgress && m.Value == 0:
		return Grain{}, nil
	case m.Size == 0 && m.Type == layout.MarkFooter && s.gd != 0 && m.Value <= 1:
		return Grain{}, s.footer()
	}
	return Grain{}, strict.Refuse(strict.Corrupt, "the marker at 0x%x (value %d, size %d, type %d) is none that may stand there", at*layout.Sector, m.Value, m.Size, m.Type)
}

// grain reads the rest of a grain whose first sector is b.
func (s *Stream) grain(m layout.Marker, b []byte, at uint64, buf []byte) (Grain, error) {
	i := m.Value / s.h.Grain
	switch {
	case at > 1<<32-1:
		return Grain{}, strict.Refuse(strict.Limit, "the grain at 0x%x is where no grain table can point", at*layout.Sector)
	case m.Value%s.h.Grain != 0 || m.Value >= s.h.Capacity:
		return Grain{}, strict.Refuse(strict.Corrupt, "the marker at 0x%x is for sector %d, where no grain begins", at*layout.Sector, m.Value)
	case i < s.next:
		return Grain{}, strict.Refuse(strict.Feature, "the marker at 0x%x is for sector %d, behind which the stream was already", at*layout.Sector, m.Value).
			WithHint("give the image as a file")
	}
	if err := checkGrain(&s.h, m, m.Value, at*layout.Sector); err != nil {
		return Grain{}, err
	}
	if err := s.expect(i, uint32(at)); err != nil {
		return Grain{}, err
	}
	n := layout.MarkerHead + int(m.Size)
	whole := (n + layout.Sector - 1) / layout.Sector * layout.Sector
	packed := append(slices.Grow(buf[:0], whole), b...)[:whole]
	if err := s.fill(packed[layout.Sector:], "a grain"); err != nil {
		return Grain{}, err
	}
	s.next = i + 1
	return Grain{
		Offset: int64(m.Value) * layout.Sector, Length: int64(min(s.h.Grain, s.h.Capacity-m.Value)) * layout.Sector,
		Packed: packed[layout.MarkerHead:n], at: at * layout.Sector,
	}, nil
}

// Unpack decompresses g into p, which has Length bytes. It may be called from
// several goroutines, also after further calls of Next.
func (s *Stream) Unpack(p []byte, g Grain) error {
	return refuse("vmdk.stream", unpack(p[:g.Length], 0, g.Packed, &s.h, uint64(g.Offset)/layout.Sector, g.at))
}

// expect notes that a grain table has to point to a sector for grain i. Tables
// are complete when the first grain of a later one comes.
func (s *Stream) expect(i uint64, sector uint32) error {
	if t := i / layout.TableEntries; t != s.index {
		if err := s.complete(); err != nil {
			return err
		}
		s.index = t
	}
	binary.LittleEndian.PutUint32(s.table[i%layout.TableEntries*4:], sector)
	return nil
}

func (s *Stream) complete() error {
	if s.next <= s.index*layout.TableEntries { // no grain of it came
		return nil
	}
	err := remember(&s.expected, tableSum{at: uint32(s.index), sum: maphash.Bytes(s.seed, s.table)})
	clear(s.table)
	return err
}

func remember(to *[]tableSum, t tableSum) error {
	if len(*to) == maxStreamTables {
		return strict.Refuse(strict.Limit, "the stream has more than %d grain tables", maxStreamTables).
			WithHint("give the image as a file")
	}
	*to = append(*to, t)
	return nil
}

// grainTable reads a grain table.
func (s *Stream) grainTable(m layout.Marker) error {
	at := s.pos
	if m.Value != 0 && m.Value != layout.TableBytes/layout.Sector || at > 1<<32-1 {
		return strict.Refuse(strict.Corrupt, "the grain table at 0x%x has %d sectors", at*layout.Sector, m.Value)
	}
	b := make([]byte, layout.TableBytes)
	if err := s.fill(b, "a grain table"); err != nil {
		return err
	}
	if s.h.Flags&layout.FlagZeroGrain != 0 {
		for e := range slices.Chunk(b, 4) {
			if binary.LittleEndian.Uint32(e) == 1 {
				clear(e)
			}
		}
	}
	return remember(&s.found, tableSum{at: uint32(at), sum: maphash.Bytes(s.seed, b)})
}

// directory reads the grain directory and compares the tables that it points to
// with those that the grains need.
func (s *Stream) directory(m layout.Marker) error {
	n := s.h.Tables()
	sectors := (n*4 + layout.Sector - 1) / layout.Sector
	s.gd = s.pos
	if m.Value != 0 && m.Value != sectors {
		return strict.Refuse(strict.Corrupt, "the grain directory at 0x%x has %d sectors, not %d", s.gd*layout.Sector, m.Value, sectors)
	}
	if err := s.complete(); err != nil {
		return err
	}
	empty := maphash.Bytes(s.seed, make([]byte, layout.TableBytes))
	need := s.expected
	for i := uint64(0); i < sectors*layout.Sector/4; {
		b, err := s.sector("the grain directory")
		if err != nil {
			return err
		}
		for ; len(b) > 0 && i < n; b, i = b[4:], i+1 {
			want, stored := empty, len(need) > 0 && uint64(need[0].at) == i
			if stored {
				want, need = need[0].sum, need[1:]
			}
			if e := binary.LittleEndian.Uint32(b); e != 0 || stored {
				if err := s.compare(i, e, want); err != nil {
					return err
				}
			}
		}
		i = max(i, (s.pos-s.gd)*layout.Sector/4)
	}
	return nil
}

// compare refuses entry i of the grain directory unless it points to a table of
// its own with the sum want.
func (s *Stream) compare(i uint64, sector uint32, want uint64) error {
	k, ok := slices.BinarySearchFunc(s.found, sector, func(t tableSum, at uint32) int { return cmp.Compare(t.at, at) })
	switch {
	case !ok:
		return strict.Refuse(strict.Corrupt, "entry %d of the grain directory at 0x%x points to 0x%x, where no grain table was", i, s.gd*layout.Sector, uint64(sector)*layout.Sector)
	case s.found[k].used:
		return strict.Refuse(strict.Overlap, "entry %d of the grain directory at 0x%x points to a grain table of another entry, at 0x%x", i, s.gd*layout.Sector, uint64(sector)*layout.Sector)
	case s.found[k].sum != want:
		return strict.Refuse(strict.Corrupt, "the grain table at 0x%x does not point to the grains that came", uint64(sector)*layout.Sector)
	}
	s.found[k].used = true
	return nil
}

// footer reads the footer and the end of the stream.
func (s *Stream) footer() error {
	at := s.pos * layout.Sector
	b, err := s.sector("the footer")
	if err != nil {
		return err
	}
	foot, err := checkFooter(s.h, b, at)
	if err != nil {
		return err
	}
	if foot.GDOffset != s.gd {
		return strict.Refuse(strict.Corrupt, "the footer at 0x%x has the grain directory at sector %d; it was at %d", at, foot.GDOffset, s.gd)
	}
	if b, err = s.sector("the end of the stream"); err != nil {
		return err
	}
	if err := checkEnd(b, (s.pos-1)*layout.Sector); err != nil {
		return err
	}
	if _, err := s.r.ReadByte(); err == nil {
		return strict.Refuse(strict.Corrupt, "the stream goes on behind its end at 0x%x", s.pos*layout.Sector)
	} else if err != io.EOF {
		return err
	}
	return io.EOF
}
