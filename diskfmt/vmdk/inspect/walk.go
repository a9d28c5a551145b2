package inspect

import (
	"context"
	"encoding/binary"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
)

// window is how many bytes of a grain directory are read at once.
const window = 64 << 10

// walker gives the full verdict on a file whose header was accepted.
type walker struct {
	ctx    context.Context
	f      strict.File
	h      layout.Header // with the footer's offsets, if there is a footer
	lim    strict.Limits
	atEnd  bool
	gd     []uint32
	m      *strict.Map
	grains uint64 // stored grains
	head   [16]byte

	steps, total int64 // progress, in grain tables
}

func (w *walker) run() error {
	if w.h.GDOffset == layout.AtEnd {
		w.atEnd = true
		if err := w.footer(); err != nil {
			return err
		}
	}
	n := w.h.Tables()
	if err := w.inside(w.h.GDOffset, n*4, "the grain directory"); err != nil {
		return err
	}
	w.gd = make([]uint32, 0, n)
	err := w.directory(w.h.GDOffset, "the grain directory", func(_ uint64, e uint32) error {
		w.gd = append(w.gd, e)
		return nil
	})
	if err != nil {
		return err
	}
	w.m = strict.NewMap(w.f.Size, layout.Sector)
	w.total = w.m.Passes() * int64(n)
	if redundant(&w.h) {
		w.total *= 2
	}
	for w.m.Next() {
		if err := w.pass(); err != nil {
			return err
		}
	}
	return nil
}

// footer replaces the header by the footer, which says where the grain
// directory is: footer marker, footer and end-of-stream marker are the last
// three sectors of the file. Everything but the offsets must be as in the
// header.
func (w *walker) footer() error {
	const cutOff = "the file was cut off, or bytes were added to it"
	if w.f.Size < layout.FooterBytes {
		return strict.Refuse(strict.Truncated, "a file of %d bytes has no room for the footer", w.f.Size)
	}
	at := w.f.Size - layout.FooterBytes
	b, err := w.f.Bytes(at, layout.FooterBytes, "the footer")
	if err != nil {
		return err
	}
	if w.f.Size%layout.Sector != 0 || binary.LittleEndian.Uint32(b[layout.Sector:]) != layout.Magic {
		return strict.Refuse(strict.Truncated, "the footer, which must begin at 0x%x, is not there: %s", at+layout.Sector, cutOff).
			WithHint("get the file again and compare its checksum")
	}
	foot := layout.DecodeMarker(b)
	if foot.Size != 0 || foot.Type != layout.MarkFooter || foot.Value > 1 {
		return strict.Refuse(strict.Corrupt, "the marker at 0x%x (value %d, size %d, type %d) is not the footer's", at, foot.Value, foot.Size, foot.Type)
	}
	if err := checkEnd(b[2*layout.Sector:], at+2*layout.Sector); err != nil {
		return err
	}
	h, err := checkFooter(w.h, b[layout.Sector:2*layout.Sector], at+layout.Sector)
	w.h = h
	return err
}

// checkEnd refuses what was read at the offset at, unless it is the marker of the
// stream's end. VMware leaves old bytes behind the marker's fields.
func checkEnd(b []byte, at uint64) error {
	if layout.DecodeMarker(b) != (layout.Marker{}) {
		return strict.Refuse(strict.Corrupt, "the marker at 0x%x is not that of the end of the stream", at)
	}
	return nil
}

// checkFooter returns the footer in the sector b, which was read at the offset
// at, if it is equal to the header but for the offsets that it may fill in.
func checkFooter(head layout.Header, b []byte, at uint64) (layout.Header, error) {
	foot := layout.Decode(b)
	want := head
	want.GDOffset = foot.GDOffset
	if head.RGDOffset == layout.AtEnd {
		want.RGDOffset = foot.RGDOffset
	}
	if foot != want {
		return head, strict.Refuse(strict.Corrupt, "the footer at 0x%x does not say the same as the header", at)
	}
	if foot.GDOffset == layout.AtEnd || foot.GDOffset == 0 {
		return head, strict.Refuse(strict.Corrupt, "the footer at 0x%x does not say where the grain directory is", at)
	}
	return foot, nil
}

// inside refuses n bytes at a sector unless they lie inside the file.
func (w *walker) inside(sector, n uint64, what string) error {
	return w.f.Inside(min(sector, 1<<54)*layout.Sector, n, what)
}

// directory calls do for each entry of the grain directory at a sector.
func (w *walker) directory(sector uint64, what string, do func(i uint64, e uint32) error) error {
	n := w.h.Tables()
	buf := make([]byte, min(window, n*4))
	for i := uint64(0); i < n; {
		part := buf[:min(window, (n-i)*4)]
		if err := w.f.Read(part, sector*layout.Sector+i*4, what); err != nil {
			return err
		}
		for ; len(part) > 0; part, i = part[4:], i+1 {
			if err := do(i, binary.LittleEndian.Uint32(part)); err != nil {
				return err
			}
		}
	}
	return nil
}

// pass marks everything in the file once.
func (w *walker) pass() error {
	if err := w.m.Mark(0, layout.Sector, "the header"); err != nil {
		return err
	}
	if err := w.m.Mark(layout.Sector, w.h.DescSize*layout.Sector, "the descriptor"); err != nil {
		return err
	}
	if w.atEnd {
		if err := w.m.Mark(w.f.Size-layout.FooterBytes, layout.FooterBytes, "the footer"); err != nil {
			return err
		}
	}
	if err := w.markDirectory(w.h.GDOffset, "the grain directory"); err != nil {
		return err
	}
	if redundant(&w.h) {
		if err := w.inside(w.h.RGDOffset, uint64(len(w.gd))*4, "the redundant grain directory"); err != nil {
			return err
		}
		if err := w.markDirectory(w.h.RGDOffset, "the redundant grain directory"); err != nil {
			return err
		}
	}
	if err := w.tables(); err != nil {
		return err
	}
	if !redundant(&w.h) {
		return nil
	}
	return w.redundantTables()
}

// markDirectory marks a grain directory and, in a stream, looks at its marker.
func (w *walker) markDirectory(sector uint64, what string) error {
	if err := w.marker(sector, layout.MarkDirectory, what); err != nil {
		return err
	}
	return w.m.Mark(sector*layout.Sector, uint64(len(w.gd))*4, what)
}

// marker refuses metadata at a sector of a stream whose own tables say that no
// marker is before it.
func (w *walker) marker(sector uint64, typ uint32, what string) error {
	if !w.atEnd || !w.m.First() {
		return nil
	}
	if err := w.f.Read(w.head[:], (max(sector, 1)-1)*layout.Sector, "the marker of "+what); err != nil {
		return err
	}
	return checkMarker(layout.DecodeMarker(w.head[:]), typ, sector, what)
}

func checkMarker(m layout.Marker, typ uint32, sector uint64, what string) error {
	if m.Size != 0 || m.Type != typ {
		return strict.Refuse(strict.Corrupt, "%s at 0x%x has no marker before it (size %d, type %d)", what, sector*layout.Sector, m.Size, m.Type)
	}
	return nil
}

// tables walks the grain tables.
func (w *walker) tables() error {
	var raw [layout.TableBytes]byte
	for t, e := range w.gd {
		if err := w.step(); err != nil {
			return err
		}
		if e == 0 {
			continue
		}
		if err := w.table(uint64(e), raw[:], "a grain table"); err != nil {
			return err
		}
		if err := w.entries(uint64(t), &raw); err != nil {
			return err
		}
	}
	return w.ctx.Err()
}

// step tells from time to time that one more table was walked.
func (w *walker) step() error {
	if w.steps++; w.steps%256 == 0 {
		return w.lim.Tell(w.ctx, w.steps, w.total)
	}
	return nil
}

// table marks the grain table at a sector and reads it.
func (w *walker) table(sector uint64, raw []byte, what string) error {
	if err := w.inside(sector, layout.TableBytes, what); err != nil {
		return err
	}
	if err := w.marker(sector, layout.MarkTable, what); err != nil {
		return err
	}
	if err := w.m.Mark(sector*layout.Sector, layout.TableBytes, what); err != nil {
		return err
	}
	return w.f.Read(raw, sector*layout.Sector, what)
}

// entries judges the entries of grain table t. Many tables of a disk that was
// made with all of them are empty.
func (w *walker) entries(t uint64, raw *[layout.TableBytes]byte) error {
	if *raw == ([layout.TableBytes]byte{}) {
		return nil
	}
	for i := range uint64(layout.TableEntries) {
		e := binary.LittleEndian.Uint32(raw[i*4:])
		if e == 0 || e == 1 && w.h.Flags&layout.FlagZeroGrain != 0 {
			continue
		}
		lba := (t*layout.TableEntries + i) * w.h.Grain
		if lba >= w.h.Capacity {
			return strict.Refuse(strict.Corrupt, "entry %d of the grain table at 0x%x is for sector %d, past the disk's %d", i, uint64(w.gd[t])*layout.Sector, lba, w.h.Capacity)
		}
		n, err := w.grain(e, lba)
		if err != nil {
			return err
		}
		if err := w.m.Mark(uint64(e)*layout.Sector, n, "a grain"); err != nil {
			return err
		}
		if w.m.First() {
			w.grains++
		}
	}
	return nil
}

// grain returns how many bytes the grain of guest sector lba at sector e takes.
func (w *walker) grain(e uint32, lba uint64) (uint64, error) {
	if w.h.Flags&layout.FlagCompress == 0 {
		n := min(w.h.Grain, w.h.Capacity-lba) * layout.Sector
		return n, w.inside(uint64(e), n, "a grain")
	}
	head := w.head[:layout.MarkerHead]
	if err := w.f.Read(head, uint64(e)*layout.Sector, "the marker of a grain"); err != nil {
		return 0, err
	}
	m := layout.DecodeGrain(head)
	if err := checkGrain(&w.h, m, lba, uint64(e)*layout.Sector); err != nil {
		return 0, err
	}
	n := layout.MarkerHead + uint64(m.Size)
	return n, w.inside(uint64(e), n, "a compressed grain")
}

// checkGrain refuses the marker at the offset at of the grain of guest sector
// lba, if it is another's or its size is none that deflate needs.
func checkGrain(h *layout.Header, m layout.Marker, lba, at uint64) error {
	switch {
	case m.Value != lba:
		return strict.Refuse(strict.Corrupt, "the marker at 0x%x is that of sector %d, not of sector %d, whose grain table points to it", at, m.Value, lba)
	case m.Size == 0:
		return strict.Refuse(strict.Corrupt, "the marker at 0x%x has no compressed bytes for sector %d", at, lba)
	case uint64(m.Size) > maxPacked(h):
		return strict.Refuse(strict.Limit, "the marker at 0x%x has %d compressed bytes for a grain of %d", at, m.Size, h.GrainBytes())
	}
	return nil
}

// maxPacked is the most bytes that a compressed grain may take.
func maxPacked(h *layout.Header) uint64 { return 2 * h.GrainBytes() }

// redundantTables marks the redundant grain tables. They must say the same as
// the first ones: after a clean shutdown nothing explains a difference, and
// which of the two is right nobody can tell.
func (w *walker) redundantTables() error {
	var raw, first [layout.TableBytes]byte
	return w.directory(w.h.RGDOffset, "the redundant grain directory", func(t uint64, e uint32) error {
		if err := w.step(); err != nil {
			return err
		}
		if (e == 0) != (w.gd[t] == 0) {
			return strict.Refuse(strict.Corrupt, "entry %d of the redundant grain directory at 0x%x does not fit the grain directory's", t, w.h.RGDOffset*layout.Sector)
		}
		if e == 0 {
			return nil
		}
		if err := w.table(uint64(e), raw[:], "a redundant grain table"); err != nil || !w.m.First() {
			return err
		}
		if err := w.f.Read(first[:], uint64(w.gd[t])*layout.Sector, "a grain table"); err != nil {
			return err
		}
		if raw != first {
			return strict.Refuse(strict.Corrupt, "the redundant grain table at 0x%x does not say the same as that at 0x%x", uint64(e)*layout.Sector, uint64(w.gd[t])*layout.Sector)
		}
		return nil
	})
}
