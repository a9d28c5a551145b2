package inspect_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
)

// tiny returns a sound image with grains of 4 KiB, in few bytes.
func tiny(flags uint32) []byte {
	h := layout.Header{
		Magic: layout.Magic, Version: 3, Flags: flags | layout.FlagNewline, Capacity: 20, Grain: 8, DescOffset: 1, DescSize: 1,
		TableSize: 512, GDOffset: 2, Overhead: 13, Newline: [4]byte([]byte(layout.Newline)),
	}
	typ := "monolithicSparse"
	if flags&layout.FlagCompress != 0 {
		typ, h.GDOffset, h.Overhead, h.Compression = "streamOptimized", layout.AtEnd, 2, layout.Deflate
	}
	if flags&layout.FlagRedundant != 0 {
		h.RGDOffset = 3
	}
	b := make([]byte, h.Overhead*sector)
	copy(b, h.Encode())
	copy(b[sector:], "version=1\nCID=1\nparentCID=ffffffff\ncreateType=\""+typ+"\"\nRW 20 SPARSE \"x\"\n")
	if flags&layout.FlagCompress == 0 {
		table := func(dir, at int) {
			le.PutUint32(b[dir*sector:], uint32(at))
			le.PutUint32(b[at*sector:], 13)
			le.PutUint32(b[at*sector+4:], flags&layout.FlagZeroGrain>>2)
			le.PutUint32(b[at*sector+8:], 21)
		}
		if table(2, 4); h.RGDOffset != 0 {
			table(3, 8)
		}
		return append(b, bytes.Repeat([]byte("grain..."), 12*sector/8)...)
	}
	gt, gd := make([]byte, layout.TableBytes), make([]byte, sector)
	for i := range 2 {
		le.PutUint32(gt[i*8:], uint32(len(b)/sector))
		z := deflate(bytes.Repeat([]byte{byte(i)}, 8*sector))
		b = le.AppendUint32(le.AppendUint64(b, uint64(i)*16), uint32(len(z)))
		b = append(b, z...)
		b = append(b, make([]byte, -len(b)&(sector-1))...)
	}
	b = append(b, layout.Marker{Value: 4, Type: layout.MarkTable}.Encode()...)
	le.PutUint32(gd, uint32(len(b)/sector))
	b = append(append(b, gt...), layout.Marker{Value: 1, Type: layout.MarkDirectory}.Encode()...)
	h.GDOffset = uint64(len(b) / sector)
	b = append(append(b, gd...), layout.Marker{Value: 1, Type: layout.MarkFooter}.Encode()...)
	return append(append(b, h.Encode()...), make([]byte, sector)...)
}

func TestTinyImagesAreSound(t *testing.T) {
	for _, flags := range []uint32{0, layout.FlagRedundant | layout.FlagZeroGrain, layout.FlagCompress | layout.FlagMarkers} {
		img := tiny(flags)
		if _, rep, err := open(t, img); err != nil || rep.DataBytes != 16*sector {
			t.Errorf("flags 0x%x: %+v, %v", flags, rep, err)
		}
	}
}

// FuzzInspect: whatever the bytes, the untrusted door answers without panicking
// or allocating without bound, and every refusal has a class. What it accepts is
// readable from end to end; only the contents of a compressed grain may still
// turn out to be broken.
func FuzzInspect(f *testing.F) {
	f.Add(tiny(0))
	f.Add(tiny(layout.FlagRedundant | layout.FlagZeroGrain))
	f.Add(tiny(layout.FlagCompress | layout.FlagMarkers))
	f.Fuzz(func(t *testing.T, img []byte) {
		_, fast := inspect.Header(bytes.NewReader(img), int64(len(img)), strict.Limits{})
		s, rep, err := open(t, img)
		if fast != nil && err == nil {
			t.Fatalf("the header was refused (%v), the image accepted", fast)
		}
		if err != nil {
			if !classed(err) {
				t.Fatalf("%v has no class", err)
			}
			return
		}
		if s.Size() != rep.VirtualSize || rep.DataBytes > rep.VirtualSize {
			t.Fatalf("accepted %+v", rep)
		}
		p := make([]byte, 64<<10)
		steps := 0
		for off := int64(0); off < s.Size() && steps < 2000; steps++ {
			m, err := s.Map(off)
			if err != nil || m.Offset != off || m.Length <= 0 || m.End() > s.Size() || m.Kind == diskfmt.Backing {
				t.Fatalf("Map(%d) = %+v, %v in a disk of %d bytes", off, m, err, s.Size())
			}
			if m.Kind == diskfmt.Data && (m.HostOffset < 0 || m.HostLength <= 0 || m.HostOffset+m.HostLength > int64(len(img))) {
				t.Fatalf("Map(%d) = %+v in a file of %d bytes", off, m, len(img))
			}
			q := p[:min(m.Length, int64(len(p)))]
			n, err := s.ReadAt(q, off)
			if err != nil && err != io.EOF && !(m.Compressed && classed(err)) || n < len(q) && err == nil {
				t.Fatalf("ReadAt(%d) in %+v: %d, %v", off, m, n, err)
			}
			off = m.End()
		}
	})
}
