package strict

import (
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
)

// ReadMapped reads guest bytes, for op, of a disk of size bytes that lies in the
// file: mapping says where from an offset inside the disk, at which it begins, and
// how far; what is not there is zero.
func (f File) ReadMapped(op string, p []byte, off, size int64, mapping func(off int64) (diskfmt.Mapping, error)) (int, error) {
	if off < 0 {
		return 0, errs.New(errs.Invalid, op, "", "negative offset %d", off)
	}
	n := 0
	for n < len(p) && off < size {
		m, err := mapping(off)
		if err != nil {
			return n, errs.Wrap(err, op, "")
		}
		dst := p[n:min(int64(len(p)), int64(n)+m.Length)]
		if m.Kind == diskfmt.Zero {
			clear(dst)
		} else if err := f.Read(dst, uint64(m.HostOffset), "the data"); err != nil {
			return n, errs.Wrap(err, op, "")
		}
		n += len(dst)
		off += int64(len(dst))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
