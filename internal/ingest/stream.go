package ingest

import (
	"io"

	"github.com/tarn-storage/tarn/internal/sniff"
)

// stream is a source without end but its own: it counts what passes, refuses
// what differs from the size announced or exceeds what was reserved, and keeps
// the last bytes.
type stream struct {
	head []byte // read before
	r    io.Reader
	n    int64
	size int64 // announced; -1 unknown
	max  int64 // of a size not announced
	last []byte
}

// whole returns the stream from its first byte.
func (im *intake) whole() *stream {
	return &stream{head: im.head, r: im.src, size: im.Size, max: im.MaxData}
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := 0, error(nil)
	if len(s.head) > 0 {
		n = copy(p, s.head)
		s.head = s.head[n:]
	} else {
		n, err = s.r.Read(p)
	}
	s.n += int64(n)
	s.last = append(s.last, p[max(0, n-sniff.TailSize):n]...)
	s.last = s.last[max(0, len(s.last)-sniff.TailSize):]
	switch {
	case s.size >= 0 && s.n > s.size:
		return 0, refuse(ClassCorrupt, "the stream goes on behind the %d bytes that were announced", s.size)
	case s.size < 0 && s.n > s.max:
		return 0, refuse(ClassQuota, "the stream has more than the %d bytes reserved for it", s.max).
			WithHint("make room in the pool, or import from a file, whose size is known")
	case err == io.EOF && s.size >= 0 && s.n < s.size:
		return 0, errShort(s.n, s.size)
	}
	return n, err
}
