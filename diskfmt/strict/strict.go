// Package strict holds what the strict doors of all image formats share: the
// classes of refusal, the limits, reads that stay inside the file, and the
// check that nothing in a file lies on anything else. It refuses to know a
// format, and to return anything that a file carries as a name.
package strict

import (
	"context"
	"encoding/hex"
	"errors"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// The classes of a refusal by the gate.
const (
	Empty       = "EMPTY"               // no bytes, or a disk of none
	Mismatch    = "FORMAT_MISMATCH"     // not the claimed format, or a second one
	Format      = "UNSUPPORTED_FORMAT"  // a format, or a variant of one, that is never imported
	Version     = "UNSUPPORTED_VERSION" // a version of the format that is not known
	Feature     = "UNSUPPORTED_FEATURE" // a feature that is not known or not supported
	External    = "EXTERNAL_REFERENCE"  // refers to another file, or to a place that nothing is fetched from
	Truncated   = "TRUNCATED"           // something lies behind the end of the file
	Corrupt     = "CORRUPT"             // contradicts itself or the format
	Overlap     = "OVERLAP"             // two things lie on the same bytes
	Limit       = "LIMIT"               // more tables or state than are ever needed
	Quota       = "QUOTA"               // larger than the caller allows
	Dirty       = "DIRTY"               // not closed by its last writer
	Checksum    = "CHECKSUM"            // not the bytes that were promised
	NotRegular  = "NOT_REGULAR"         // no regular file
	UnsafeTar   = "UNSAFE_ARCHIVE"      // an archive with members that are not expected
	UnsafeXML   = "UNSAFE_XML"          // a description with forbidden parts
	DefaultSize = int64(64 << 40)       // bytes of the largest disk by default
)

// Limits bounds what is accepted. The zero value means the defaults.
type Limits struct {
	VirtualSize int64                   // bytes; 0 means DefaultSize
	Progress    func(done, total int64) // called from time to time while tables are walked; may be nil
}

// Report is what a strict door found.
type Report struct {
	VirtualSize int64
	Features    []string // for people: "version 3", "grains of 65536 bytes"
	DataBytes   int64    // no more guest bytes than these are stored; 0 before the full walk
}

// Source reads the guest's bytes of an image that was found harmless. It is
// safe for concurrent use. Nothing lies below, so that no extent is Backing, and
// it keeps every check while it reads, should the file change under it.
type Source interface{ diskfmt.Mapper }

// Refuse returns errs.Unsafe with a class.
func Refuse(class, format string, args ...any) *errs.Error {
	return errs.New(errs.Unsafe, "", "", format, args...).WithClass(class)
}

// ClassOf returns the class of a refusal, "" for other errors.
func ClassOf(err error) string {
	var e *errs.Error
	if errors.As(err, &e) {
		return e.Class
	}
	return ""
}

// Check refuses a virtual size of 0 and one beyond the limit, in bytes.
func (l Limits) Check(size uint64) error {
	most := l.VirtualSize
	if most == 0 {
		most = DefaultSize
	}
	switch {
	case size == 0:
		return Refuse(Empty, "the virtual size is 0")
	case size > uint64(most):
		return Refuse(Quota, "the virtual size is %d bytes; %d is the most", size, most).
			WithHint("allow it with --max-virtual-size if you trust the image")
	}
	return nil
}

// Tell reports progress, if somebody listens, and returns the context's error.
func (l Limits) Tell(ctx context.Context, done, total int64) error {
	if l.Progress != nil {
		l.Progress(done, total)
	}
	return ctx.Err()
}

// File is a file that is being judged: the Size bytes that R reads.
type File struct {
	R    io.ReaderAt
	Size uint64
}

// Inside refuses the n bytes at off of the structure called what unless they
// lie inside the file.
func (f File) Inside(off, n uint64, what string) error {
	if off > f.Size || n > f.Size-off {
		return Refuse(Truncated, "%s at 0x%x (%d bytes) reaches past the end of the file (%d bytes)", what, off, n, f.Size)
	}
	return nil
}

// Read fills p from off with a part of the structure called what. The end of
// the file, also one that came nearer since it was measured, is TRUNCATED.
func (f File) Read(p []byte, off uint64, what string) error {
	if err := f.Inside(off, uint64(len(p)), what); err != nil {
		return err
	}
	n, err := f.R.ReadAt(p, int64(off))
	switch {
	case n == len(p):
		return nil
	case err == io.EOF || err == nil:
		return Refuse(Truncated, "%s at 0x%x: the file ends %d bytes early", what, off, len(p)-n)
	}
	return err
}

// Bytes reads n bytes at off. n must be bounded by the caller.
func (f File) Bytes(off, n uint64, what string) ([]byte, error) {
	if err := f.Inside(off, n, what); err != nil {
		return nil, err
	}
	p := make([]byte, n)
	return p, f.Read(p, off, what)
}

// windowUnits is how many units a Map looks at in one pass: 64 MiB of bits
// would be too much of the worker's memory, 16 MiB cover 128 Mi units.
const windowUnits = 128 << 20

// Map notes what lies where in a file, in units of a power of two of bytes,
// and refuses what lies on anything else. Its memory is bounded: a file of more
// units than fit is walked in several passes, each of which marks everything
// and notes what lies in its window.
//
//	m := strict.NewMap(size, 512)
//	for m.Next() {
//		... m.Mark(off, n, "the table") for all that the file refers to
//	}
type Map struct {
	unit        uint64
	total       uint64 // units of the file
	first, past uint64 // the window, in units
	started     bool
	bits        []uint64
}

// NewMap returns a Map of a file of size bytes. unit is a power of two.
func NewMap(size, unit uint64) *Map {
	return &Map{unit: unit, total: (size + unit - 1) / unit}
}

// Passes returns how many passes there are, at least one.
func (m *Map) Passes() int64 { return int64(max(1, (m.total+windowUnits-1)/windowUnits)) }

// First reports whether this is the first pass: what is counted is counted then.
func (m *Map) First() bool { return m.first == 0 }

// Next begins a pass. It returns false when all are done.
func (m *Map) Next() bool {
	if m.started {
		m.first = m.past
	}
	if m.started && m.first >= m.total {
		return false
	}
	m.started = true
	m.past = min(m.first+windowUnits, m.total)
	if n := (m.past - m.first + 63) / 64; m.bits == nil {
		m.bits = make([]uint64, n)
	} else {
		clear(m.bits)
	}
	return true
}

// Mark notes that the structure called what takes n bytes at off, whole units.
// The bytes must be inside the file.
func (m *Map) Mark(off, n uint64, what string) error {
	if n == 0 {
		return nil
	}
	lo, hi := max(off/m.unit, m.first), min((off+n-1)/m.unit+1, m.past)
	for u := lo; u < hi; u++ {
		i := u - m.first
		if i%64 == 0 && hi-u >= 64 && m.bits[i/64] == 0 {
			m.bits[i/64] = ^uint64(0)
			u += 63
			continue
		}
		if m.bits[i/64]&(1<<(i%64)) != 0 {
			return Refuse(Overlap, "%s at 0x%x (%d bytes) lies on something else at 0x%x", what, off, n, u*m.unit)
		}
		m.bits[i/64] |= 1 << (i % 64)
	}
	return nil
}

// Quote shows at most 32 bytes of an image in a message, as hex: text of a
// hostile file never reaches a terminal.
func Quote(b []byte) string { return hex.EncodeToString(b[:min(len(b), 32)]) }
