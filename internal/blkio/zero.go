package blkio

import "encoding/binary"

// IsZero reports whether all of p is zero.
func IsZero(p []byte) bool { return zeroPrefix(p) == len(p) }

// zeroPrefix returns a length not greater than that of p's longest zero prefix
// and equal to len(p) when all of it is zero. It looks at 64 bytes at a time.
func zeroPrefix(p []byte) int {
	n := 0
	for ; len(p)-n >= 64; n += 64 {
		b := p[n : n+64 : n+64]
		if binary.NativeEndian.Uint64(b[0:])|binary.NativeEndian.Uint64(b[8:])|
			binary.NativeEndian.Uint64(b[16:])|binary.NativeEndian.Uint64(b[24:])|
			binary.NativeEndian.Uint64(b[32:])|binary.NativeEndian.Uint64(b[40:])|
			binary.NativeEndian.Uint64(b[48:])|binary.NativeEndian.Uint64(b[56:]) != 0 {
			return n
		}
	}
	for ; n < len(p); n++ {
		if p[n] != 0 {
			return n
		}
	}
	return n
}

const (
	scanBlock = 4 << 10  // zeroes are looked for in blocks of a file system's usual size
	minHole   = 64 << 10 // a shorter run of zeroes is not worth an extent of its own
)

// DataRuns calls data for each run of p worth writing, in order, and zero for
// each run of at least 64 KiB of zero blocks between them; together they cover
// p. off is p's place in the container. At p's ends a shorter run is zero too:
// it may go on in the neighbouring buffer, so call it with buffers of megabytes.
func DataRuns(p []byte, off int64, data func(p []byte, off int64) error, zero func(off, n int64) error) error {
	return dataRuns(p, off, true, data, zero)
}

// MoreDataRuns is DataRuns where data stands right before p: a short run of
// zeroes at p's start is data, too.
func MoreDataRuns(p []byte, off int64, data func(p []byte, off int64) error, zero func(off, n int64) error) error {
	return dataRuns(p, off, false, data, zero)
}

func dataRuns(p []byte, off int64, first bool, data func(p []byte, off int64) error, zero func(off, n int64) error) error {
	start := 0 // of the data not yet handed out
	for i := 0; i < len(p); {
		run := zeroBlocks(p[i:])
		if edge := run > 0 && (i == 0 && first || i+run == len(p)); run < minHole && !edge {
			i += max(run, min(scanBlock, len(p)-i))
			continue
		}
		if i > start {
			if err := data(p[start:i], off+int64(start)); err != nil {
				return err
			}
		}
		if err := zero(off+int64(i), int64(run)); err != nil {
			return err
		}
		i += run
		start = i
	}
	if start < len(p) {
		return data(p[start:], off+int64(start))
	}
	return nil
}

// zeroBlocks returns the length of the zero blocks that p begins with.
func zeroBlocks(p []byte) int {
	n := zeroPrefix(p)
	if n == len(p) {
		return n
	}
	return n &^ (scanBlock - 1)
}
