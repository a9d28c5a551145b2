package inspect

import (
	"bytes"
	"io"
	"sync"

	"github.com/klauspost/compress/zlib"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
)

// grains keeps the memory of decompressed grains of which only a part is asked.
var grains sync.Pool

// unpack decompresses the grain of guest sector lba, which is at the offset at,
// and fills p with its bytes from skip. A grain has all its bytes, or those that
// the disk has left: both are written for the last one.
func unpack(p []byte, skip int64, packed []byte, h *layout.Header, lba, at uint64) error {
	whole, left := int(h.GrainBytes()), int(min(h.Grain, h.Capacity-lba)*layout.Sector)
	dst := p
	if len(p) != whole || skip != 0 {
		buf, _ := grains.Get().(*[]byte)
		if buf == nil || len(*buf) < whole {
			b := make([]byte, whole)
			buf = &b
		}
		defer grains.Put(buf)
		dst = (*buf)[:whole]
	}
	n, err := inflate(dst, packed, at)
	if err != nil {
		return err
	}
	if n != whole && n != left {
		return strict.Refuse(strict.Corrupt, "the compressed grain at 0x%x has %d bytes, not %d", at, n, left)
	}
	if &dst[0] != &p[0] {
		copy(p, dst[skip:n])
	}
	return nil
}

// inflater is a decompressor with its input.
type inflater struct {
	in bytes.Reader
	z  io.ReadCloser
}

var inflaters = sync.Pool{New: func() any { return new(inflater) }}

// inflate decompresses a grain into dst and returns how many bytes it has. More
// than dst holds, a wrong checksum and an early end are CORRUPT. at is where the
// grain is in the file, for messages.
func inflate(dst, packed []byte, at uint64) (int, error) {
	f := inflaters.Get().(*inflater)
	defer inflaters.Put(f)
	f.in.Reset(packed)
	var err error
	if f.z == nil {
		f.z, err = zlib.NewReader(&f.in)
	} else {
		err = f.z.(zlib.Resetter).Reset(&f.in, nil)
	}
	n := 0
	for err == nil && n < len(dst) {
		var k int
		k, err = f.z.Read(dst[n:])
		n += k
	}
	if err == nil { // the checksum is compared at the end
		var one [1]byte
		var k int
		if k, err = f.z.Read(one[:]); k > 0 {
			return n, strict.Refuse(strict.Corrupt, "the compressed grain at 0x%x has more than %d bytes", at, len(dst))
		}
	}
	if err != io.EOF {
		return n, strict.Refuse(strict.Corrupt, "the compressed grain at 0x%x is broken: %v", at, err)
	}
	return n, nil
}
