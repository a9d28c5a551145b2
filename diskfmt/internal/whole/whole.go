// Package whole reads files whose bytes are the disk, as those of discs and of
// encrypted disks are. It refuses to look at them.
package whole

import (
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// Source is a diskfmt.Mapper of all bytes of a file. It is safe for concurrent
// use. It knows no holes: all is one Data mapping at the place where the guest
// sees it. A file that has become shorter is TRUNCATED.
type Source struct {
	f  strict.File
	op string
}

// NewSource returns a Source of f. op names the format in errors: "iso".
func NewSource(f strict.File, op string) *Source { return &Source{f, op} }

// Size returns the virtual size in bytes: that of the file.
func (s *Source) Size() int64 { return int64(s.f.Size) }

// ReadAt reads guest bytes.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errs.New(errs.Invalid, s.op+".read", "", "negative offset %d", off)
	}
	if off >= s.Size() {
		return 0, io.EOF
	}
	q := p[:min(int64(len(p)), s.Size()-off)]
	if err := s.f.Read(q, uint64(off), "the data"); err != nil {
		return 0, errs.Wrap(err, s.op+".read", "")
	}
	if len(q) < len(p) {
		return len(q), io.EOF
	}
	return len(q), nil
}

// Extent returns what is left from off on.
func (s *Source) Extent(off int64) (diskfmt.Extent, error) {
	m, err := s.Map(off)
	return m.Extent, err
}

// Map returns what is left from off on.
func (s *Source) Map(off int64) (diskfmt.Mapping, error) {
	if off < 0 || off >= s.Size() {
		return diskfmt.Mapping{}, errs.New(errs.Invalid, s.op+".map", "", "offset %d is outside the disk of %d bytes", off, s.Size())
	}
	n := s.Size() - off
	return diskfmt.Mapping{Extent: diskfmt.Extent{Offset: off, Length: n, Kind: diskfmt.Data}, HostOffset: off, HostLength: n}, nil
}
