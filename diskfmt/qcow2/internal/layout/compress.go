package layout

import (
	"encoding/binary"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/tarn-storage/tarn/diskfmt/inflate"
)

var zstdDecoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderLowmem(true),
		zstd.WithDecodeAllCapLimit(true))
})

// zstdSlack is what the decoder wants behind its output to copy in words that
// may reach past a match's end: it is a quarter faster then, and the copy out of
// such a buffer costs little.
const zstdSlack = 16

var zstdBuffers sync.Pool // *[]byte

// Decompress fills dst, one whole cluster, from src, which may have a tail that
// does not belong to it. A stream that holds less or more than a cluster is a
// fault ("Compressed Clusters Descriptor": deflate without zlib header, or one
// zstd frame).
func Decompress(typ uint8, dst, src []byte) error {
	if typ == Zstd {
		return unzstd(dst, src)
	}
	if _, err := inflate.Deflate(dst, src); err != nil {
		return Faultf(ClassCorrupt, "a compressed cluster of %d bytes: %v", len(dst), err)
	}
	return nil
}

func unzstd(dst, src []byte) error {
	n, err := zstdFrame(src)
	if err != nil {
		return err
	}
	d, err := zstdDecoder()
	if err != nil {
		return err
	}
	buf, _ := zstdBuffers.Get().(*[]byte)
	if buf == nil || len(*buf) < len(dst)+zstdSlack {
		b := make([]byte, len(dst)+zstdSlack)
		buf = &b
	}
	defer zstdBuffers.Put(buf)
	out, err := d.DecodeAll(src[:n], (*buf)[:0:len(dst)+zstdSlack])
	if err != nil {
		return Faultf(ClassCorrupt, "the zstd frame: %v", err)
	}
	if len(out) != len(dst) {
		return Faultf(ClassCorrupt, "the zstd frame gives %d of %d bytes", len(out), len(dst))
	}
	copy(dst, out)
	return nil
}

// zstdFrame returns the length of the frame that src begins with, found by
// walking its block headers (RFC 8878, section 3.1.1).
func zstdFrame(src []byte) (int, error) {
	if len(src) < 6 || binary.LittleEndian.Uint32(src) != 0xfd2fb528 {
		return 0, Faultf(ClassCorrupt, "no zstd frame begins there")
	}
	desc := src[4]
	single := desc>>5&1 == 1
	pos := 5 + [4]int{0, 1, 2, 4}[desc&3]
	if single {
		pos += [4]int{1, 2, 4, 8}[desc>>6]
	} else {
		pos += 1 + [4]int{0, 2, 4, 8}[desc>>6]
	}
	for {
		if pos+3 > len(src) {
			return 0, Faultf(ClassCorrupt, "the zstd frame is cut off")
		}
		head := uint32(src[pos]) | uint32(src[pos+1])<<8 | uint32(src[pos+2])<<16
		n := int(head >> 3)
		if head>>1&3 == 1 {
			n = 1 // a run-length block stores one byte
		}
		pos += 3 + n
		if head&1 == 1 {
			break
		}
	}
	if desc>>2&1 == 1 {
		pos += 4
	}
	if pos > len(src) {
		return 0, Faultf(ClassCorrupt, "the zstd frame is cut off")
	}
	return pos, nil
}
