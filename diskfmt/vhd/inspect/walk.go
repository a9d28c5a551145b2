package inspect

import (
	"context"
	"encoding/binary"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhd/internal/layout"
)

// window is how many bytes of a table are read at once, chunk how many entries
// are looked at between two reports of progress.
const (
	window = 1 << 20
	chunk  = 256 << 10
)

// walk reads the block allocation table and checks every block.
func (im *image) walk(ctx context.Context, lim strict.Limits) (*Source, error) {
	s := &Source{im: im}
	if im.footer.Type == layout.Fixed {
		s.stored = im.size
		return s, im.checkTail(s)
	}
	s.block = uint64(im.header.BlockSize)
	s.bitmapSize = layout.BitmapSize(s.block)
	s.maps = newBitmaps(int(s.bitmapSize))
	var err error
	if s.bat, err = im.readTable(); err != nil {
		return nil, err
	}
	bm, err := im.readBatmap()
	if err != nil {
		return nil, err
	}
	if err := im.mark(ctx, lim, s, bm); err != nil {
		return nil, err
	}
	if err := im.checkBatmap(ctx, s, bm); err != nil {
		return nil, err
	}
	return s, im.checkTail(s)
}

func (im *image) readTable() ([]uint32, error) {
	bat := make([]uint32, im.header.Entries)
	buf := make([]byte, min(window, 4*len(bat)))
	for i := 0; i < len(bat); {
		b := buf[:min(len(buf), 4*(len(bat)-i))]
		if err := im.file.Read(b, im.header.TableOffset+4*uint64(i), "the block allocation table"); err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[4:] {
			bat[i] = binary.BigEndian.Uint32(b)
			i++
		}
	}
	return bat, nil
}

// mark notes what lies where. Blocks past the end of the disk, which a disk
// that was made smaller has, must be sound, too.
func (im *image) mark(ctx context.Context, lim strict.Limits, s *Source, bm *batmap) error {
	m := strict.NewMap(im.file.Size, layout.Sector)
	done, total := int64(0), m.Passes()*int64(len(s.bat))
	for m.Next() {
		if err := im.markTables(m, bm); err != nil {
			return err
		}
		for i, e := range s.bat {
			if i%chunk == 0 {
				if err := lim.Tell(ctx, done+int64(i), total); err != nil {
					return err
				}
			}
			if e == layout.Absent {
				continue
			}
			if err := s.checkBlock(uint64(i), e); err != nil {
				return err
			}
			if err := m.Mark(uint64(e)*layout.Sector, s.bitmapSize+s.block, "a block"); err != nil {
				return err
			}
			if m.First() && uint64(i)*s.block < im.size {
				s.stored += min(s.block, im.size-uint64(i)*s.block)
			}
		}
		done += int64(len(s.bat))
	}
	return nil
}

func (im *image) markTables(m *strict.Map, bm *batmap) error {
	for _, t := range []struct {
		off, n uint64
		what   string
	}{
		{0, layout.FooterSize, "the footer's copy"},
		{im.data, im.file.Size - im.data, "the footer"},
		{im.footer.DataOffset, layout.HeaderSize, "the dynamic disk header"},
		{im.header.TableOffset, uint64(im.header.Entries) * 4, "the block allocation table"},
		{bm.header, bm.headerSize, "the batmap's header"},
		{bm.off, bm.size, "the batmap"},
	} {
		if err := m.Mark(t.off, t.n, t.what); err != nil {
			return err
		}
	}
	return nil
}

// checkBlock refuses block i unless it lies between the head and the footer.
func (s *Source) checkBlock(i uint64, e uint32) error {
	off, n := uint64(e)*layout.Sector, s.bitmapSize+s.block
	switch {
	case off == 0:
		return strict.Refuse(strict.Overlap, "block %d lies on the footer's copy at 0x0", i)
	case off > s.im.data || n > s.im.data-off:
		return strict.Refuse(strict.Truncated, "block %d at 0x%x (%d bytes) reaches past the end of the data at 0x%x", i, off, n, s.im.data)
	}
	return nil
}

// checkTail refuses data between the size by geometry and the current size: it
// would be lost.
func (im *image) checkTail(s *Source) error {
	whole := &Source{im: im, block: s.block, bitmapSize: s.bitmapSize, bat: s.bat, maps: s.maps, past: im.footer.CurrentSize}
	buf := make([]byte, 64<<10)
	for off := im.size; off < whole.past; { // less than a cylinder, 2 MiB
		m, err := whole.Map(int64(off))
		if err != nil {
			return err
		}
		n := min(uint64(m.Length), uint64(len(buf)))
		if m.Kind == diskfmt.Data {
			if err := im.file.Read(buf[:n], uint64(m.HostOffset), "the disk's end"); err != nil {
				return err
			}
			for _, b := range buf[:n] {
				if b != 0 {
					return strict.Refuse(strict.Corrupt, "the geometry says %d bytes and the current size %d, and data lies in between: it would be lost", im.size, whole.past).
						WithHint("convert the image with the program that made it")
				}
			}
		} else {
			n = uint64(m.Length)
		}
		off += n
	}
	return nil
}

// batmap is XenServer's extension: a bit for each block all of whose sectors
// are present, so that the block's bitmap need not be read. The bitmaps decide
// here; a batmap that contradicts one is refused. The structure is that of
// blktap's vhd.h: struct dd_batmap_hdr.
type batmap struct {
	header, headerSize uint64
	off, size          uint64
}

func (im *image) readBatmap() (*batmap, error) {
	if string(im.footer.CreatorApp[:]) != "tap\x00" {
		return &batmap{}, nil
	}
	at := (im.header.TableOffset + 4*uint64(im.header.Entries) + layout.Sector - 1) / layout.Sector * layout.Sector
	if at+layout.Sector > im.data {
		return &batmap{}, nil
	}
	b, err := im.file.Bytes(at, layout.Sector, "the batmap's header")
	if err != nil {
		return nil, err
	}
	if string(b[:8]) != "tdbatmap" {
		return &batmap{}, nil
	}
	be := binary.BigEndian
	bm := &batmap{at, layout.Sector, be.Uint64(b[8:]), uint64(be.Uint32(b[16:])) * layout.Sector}
	switch version := be.Uint32(b[20:]); {
	case version>>16 != 1:
		return nil, strict.Refuse(strict.Version, "the batmap's header at 0x%x has version 0x%08x; 0x00010002 is known", at, version)
	case b[29] != 0:
		return nil, strict.Refuse(strict.Feature, "the batmap's header at 0x%x says that the disk is encrypted", at)
	case bm.off%layout.Sector != 0 || bm.size*8 < uint64(im.header.Entries)/8*8:
		return nil, strict.Refuse(strict.Corrupt, "the batmap's header at 0x%x has %d bytes at 0x%x for %d blocks", at, bm.size, bm.off, im.header.Entries)
	}
	return bm, im.file.Inside(bm.off, bm.size, "the batmap")
}

// checkBatmap refuses a block that the batmap calls complete and the block's own
// bitmap does not: XenServer's guest saw data where others would read zeroes.
func (im *image) checkBatmap(ctx context.Context, s *Source, bm *batmap) error {
	n := min(bm.size, uint64(len(s.bat)+7)/8)
	buf := make([]byte, min(n, window))
	for at := uint64(0); at < n; at += uint64(len(buf)) {
		b := buf[:min(uint64(len(buf)), n-at)]
		if err := im.file.Read(b, bm.off+at, "the batmap"); err != nil {
			return err
		}
		for k := range b {
			for i := (at + uint64(k)) * 8; b[k] != 0 && i < uint64(len(s.bat)); i++ {
				if set := b[k] & 0x80; set != 0 && s.bat[i] != layout.Absent {
					if err := ctx.Err(); err != nil {
						return err
					}
					if full, err := s.bitmap(s.bat[i]); err != nil || full != nil {
						if err == nil {
							err = strict.Refuse(strict.Corrupt, "the batmap at 0x%x says that block %d is complete, but its bitmap at 0x%x does not", bm.off, i, uint64(s.bat[i])*layout.Sector)
						}
						return err
					}
				}
				b[k] <<= 1
			}
		}
	}
	return nil
}
