// Package doortest holds what the tests of strict doors share: rows of spoiled
// images, and the reading of an accepted one by every way at once. It refuses to
// know a format, and is for tests only.
package doortest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// Open is a format's strict door, and Header its fast verdict.
type (
	Open[S diskfmt.Mapper] = func(context.Context, io.ReaderAt, int64, strict.Limits) (S, strict.Report, error)
	Header                 = func(io.ReaderAt, int64, strict.Limits) (strict.Report, error)
)

// Change makes a hostile image of a sound one. It may write into its argument.
type Change func([]byte) []byte

// Row is one hostile image.
type Row = struct {
	Name  string
	Spoil Change
	Class string
	Says  string // a part of the message
}

// Refuses runs rows, each with an image of its own.
func Refuses[S diskfmt.Mapper](t *testing.T, open Open[S], sound func() []byte, rows []Row) {
	t.Helper()
	for _, row := range rows {
		img := row.Spoil(sound())
		_, _, err := open(t.Context(), bytes.NewReader(img), int64(len(img)), strict.Limits{})
		if !errors.Is(err, errs.Unsafe) || strict.ClassOf(err) != row.Class || !strings.Contains(err.Error(), row.Says) {
			t.Errorf("%s: got %v (class %q), want class %s and %q", row.Name, err, strict.ClassOf(err), row.Class, row.Says)
		}
	}
}

// Truncations opens every prefix of img whose length is in lengths and fails
// unless each is refused with a class.
func Truncations[S diskfmt.Mapper](t *testing.T, open Open[S], img []byte, lengths ...int) {
	t.Helper()
	for _, n := range lengths {
		_, _, err := open(t.Context(), bytes.NewReader(img[:n]), int64(n), strict.Limits{})
		if c := strict.ClassOf(err); !errors.Is(err, errs.Unsafe) || c != strict.Truncated && c != strict.Empty && c != strict.Mismatch {
			t.Errorf("the first %d of %d bytes: got %v, want TRUNCATED, EMPTY or FORMAT_MISMATCH", n, len(img), err)
		}
	}
}

// Contents reads a whole disk by its mappings. It fails unless the mappings are
// in order, Data or Zero and inside file, and unless the bytes that lie in the
// container are what ReadAt says.
func Contents(t testing.TB, m diskfmt.Mapper, file []byte) []byte {
	t.Helper()
	out := make([]byte, m.Size())
	for off := int64(0); off < m.Size(); {
		mp, err := m.Map(off)
		e, err2 := m.Extent(off)
		if err != nil || err2 != nil || mp.Offset != off || mp.Length <= 0 || mp.End() > m.Size() || e.Kind != mp.Kind || e.Length < mp.Length {
			t.Fatalf("Map(%d) = %+v, %v; Extent %+v, %v; the disk has %d bytes", off, mp, err, e, err2, m.Size())
		}
		p := out[off:mp.End()]
		if n, err := m.ReadAt(p, off); n != len(p) || err != nil && err != io.EOF {
			t.Fatalf("ReadAt(%d bytes at %d) = %d, %v", len(p), off, n, err)
		}
		switch mp.Kind {
		case diskfmt.Zero:
			if bytes.Count(p, []byte{0}) != len(p) {
				t.Fatalf("the Zero mapping %+v reads as something else", mp)
			}
		case diskfmt.Data:
			if mp.HostLength != mp.Length || !bytes.Equal(p, file[mp.HostOffset:mp.HostOffset+mp.HostLength]) {
				t.Fatalf("the mapping %+v is not what the file has there", mp)
			}
		default:
			t.Fatalf("Map(%d) = %+v", off, mp)
		}
		off = mp.End()
	}
	return out
}

// Walk fails unless opening img tells of entries, and ends with its context.
func Walk[S diskfmt.Mapper](t *testing.T, open Open[S], img []byte, entries int64) {
	t.Helper()
	told := int64(0)
	lim := strict.Limits{Progress: func(_, total int64) { told = total }}
	if _, _, err := open(t.Context(), bytes.NewReader(img), int64(len(img)), lim); err != nil || told != entries {
		t.Errorf("told of %d entries, %v; want %d", told, err, entries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := open(ctx, bytes.NewReader(img), int64(len(img)), strict.Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: got %v", err)
	}
}

// AtOnce reads a whole disk as Contents does, several times at once.
func AtOnce(t testing.TB, m diskfmt.Mapper, file []byte) {
	t.Helper()
	var wg sync.WaitGroup
	got := make([][]byte, 8)
	for i := range got {
		wg.Go(func() { got[i] = Contents(t, m, file) })
	}
	wg.Wait()
	for i := range got {
		if !bytes.Equal(got[i], got[0]) {
			t.Errorf("reader %d read other bytes than reader 0", i)
		}
	}
}

// Bounds fails unless m answers offsets outside the disk with errs.Invalid, and
// reads across its end as io.ReaderAt demands.
func Bounds(t *testing.T, m diskfmt.Mapper) {
	t.Helper()
	for _, off := range []int64{-1, m.Size(), 1 << 62} {
		if _, err := m.Extent(off); !errors.Is(err, errs.Invalid) {
			t.Errorf("Extent(%d): got %v, want %v", off, err, errs.Invalid)
		}
		if _, err := m.Map(off); !errors.Is(err, errs.Invalid) {
			t.Errorf("Map(%d): got %v, want %v", off, err, errs.Invalid)
		}
	}
	p := make([]byte, 1024)
	if n, err := m.ReadAt(p, m.Size()-512); n != 512 || err != io.EOF {
		t.Errorf("ReadAt across the end = %d, %v; want 512, EOF", n, err)
	}
	if n, err := m.ReadAt(p, m.Size()); n != 0 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v; want 0, EOF", n, err)
	}
	if _, err := m.ReadAt(p, -1); !errors.Is(err, errs.Invalid) {
		t.Errorf("ReadAt(-1): got %v, want %v", err, errs.Invalid)
	}
}

// Fuzz is the body of a fuzz target that judges img and up to 16 MiB of zeroes
// behind it: a refusal has a class, and what is accepted says nothing different
// by its first headerSize bytes and is readable from end to end.
func Fuzz[S diskfmt.Mapper](t *testing.T, img []byte, zeroes uint32, open Open[S], header Header, headerSize int64) {
	f := Sparse{int64(len(img)) + int64(zeroes%(16<<20)), map[int64][]byte{0: img}}
	_, fast := header(io.NewSectionReader(f, 0, headerSize), f.Size, strict.Limits{})
	m, rep, err := open(t.Context(), f, f.Size, strict.Limits{})
	if fast != nil && err == nil {
		t.Fatalf("the header was refused (%v), the image accepted", fast)
	}
	if err != nil {
		if strict.ClassOf(err) == "" || !errors.Is(err, errs.Unsafe) || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q has no class, or bytes that a terminal should not see", err)
		}
		return
	}
	if m.Size() != rep.VirtualSize || rep.VirtualSize <= 0 || rep.DataBytes < 0 || rep.DataBytes > rep.VirtualSize {
		t.Fatalf("accepted %+v, and the disk has %d bytes", rep, m.Size())
	}
	p := make([]byte, 64<<10)
	data := int64(0)
	for off, steps := int64(0), 0; off < m.Size() && steps < 2000; steps++ {
		mp, err := m.Map(off)
		if err != nil || mp.Offset != off || mp.Length <= 0 || mp.End() > m.Size() || mp.Kind != diskfmt.Data && mp.Kind != diskfmt.Zero {
			t.Fatalf("Map(%d) = %+v, %v in a disk of %d bytes", off, mp, err, m.Size())
		}
		if mp.Kind == diskfmt.Data {
			data += mp.Length
		}
		if _, err := m.ReadAt(p[:min(mp.Length, int64(len(p)))], off); err != nil && err != io.EOF {
			t.Fatalf("ReadAt(%d) in %+v: %v", off, mp, err)
		}
		off = mp.End()
	}
	if data > rep.DataBytes {
		t.Fatalf("%d bytes are stored, the report says at most %d", data, rep.DataBytes)
	}
}

// Sparse is a large file of which only pieces are stored.
type Sparse struct {
	Size   int64
	Pieces map[int64][]byte
}

// ReadAt reads the pieces, and zeroes between them.
func (s Sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.Size-off))
	clear(p[:n])
	for at, b := range s.Pieces {
		if at < off+int64(n) && off < at+int64(len(b)) {
			copy(p[max(0, at-off):n], b[max(0, off-at):])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Put replaces the bytes at off.
func Put(off int, s string) Change { return func(b []byte) []byte { copy(b[off:], s); return b } }

// LE32 replaces a little-endian number at off.
func LE32(off int, v uint32) Change {
	return Put(off, string(binary.LittleEndian.AppendUint32(nil, v)))
}

// LE64 replaces a little-endian number at off.
func LE64(off int, v uint64) Change {
	return Put(off, string(binary.LittleEndian.AppendUint64(nil, v)))
}

// BE16 replaces a big-endian number at off.
func BE16(off int, v uint16) Change {
	return Put(off, string(binary.BigEndian.AppendUint16(nil, v)))
}

// BE32 replaces a big-endian number at off.
func BE32(off int, v uint32) Change {
	return Put(off, string(binary.BigEndian.AppendUint32(nil, v)))
}

// BE64 replaces a big-endian number at off.
func BE64(off int, v uint64) Change {
	return Put(off, string(binary.BigEndian.AppendUint64(nil, v)))
}

// Cut keeps the first n bytes.
func Cut(n int) Change { return func(b []byte) []byte { return b[:n] } }

// All makes several changes, one after the other.
func All(cs ...Change) Change {
	return func(b []byte) []byte {
		for _, c := range cs {
			b = c(b)
		}
		return b
	}
}
