package inspect

import (
	"sync"

	"github.com/tarn-storage/tarn/diskfmt/inflate"
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
	direct := skip == 0 && len(p) == whole
	dst := p
	if !direct {
		buf, _ := grains.Get().(*[]byte)
		if buf == nil || len(*buf) < whole {
			b := make([]byte, whole)
			buf = &b
		}
		defer grains.Put(buf)
		dst = (*buf)[:whole]
	}
	_, err := inflate.Zlib(dst, packed)
	if err != nil && left < whole {
		_, err = inflate.Zlib(dst[:left], packed)
	}
	if err != nil {
		return strict.Refuse(strict.Corrupt, "the compressed grain at 0x%x does not give a grain of %d bytes: %v", at, left, err)
	}
	if !direct {
		copy(p, dst[skip:left])
	}
	return nil
}
