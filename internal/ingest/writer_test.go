package ingest

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/internal/blkio"
)

// span is a write.
type span struct{ off, n int64 }

// sheet is an output in memory that remembers how it was written.
type sheet struct {
	b      []byte
	writes []span
}

func (s *sheet) WriteAt(p []byte, off int64) (int, error) {
	copy(s.b[off:], p)
	if n := len(s.writes); n > 0 && s.writes[n-1].off+s.writes[n-1].n == off {
		s.writes[n-1].n += int64(len(p))
	} else {
		s.writes = append(s.writes, span{off, int64(len(p))})
	}
	return len(p), nil
}

// TestWriterInParts shows that a chunk written part by part is written as one
// that is written at once: the same bytes, the same holes, the same counts.
func TestWriterInParts(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200 {
		chunk := make([]byte, blkio.ChunkSize-rnd.IntN(2)*rnd.IntN(blkio.ChunkSize))
		for at := 0; at < len(chunk); {
			n := min(len(chunk)-at, blockSize*(1+rnd.IntN(64)))
			if rnd.IntN(2) == 0 {
				chunk[at+rnd.IntN(n)] = 1
				chunk[at], chunk[at+n-1] = 1, 1
			}
			at += n
		}
		whole, parts := sheet{b: make([]byte, len(chunk))}, sheet{b: make([]byte, len(chunk))}
		w := writer{out: &whole}
		if err := w.write(chunk, true); err != nil {
			t.Fatal(err)
		}
		p := writer{out: &parts}
		for end := 0; end < len(chunk); {
			end = min(end+passSize, len(chunk))
			if err := p.write(chunk[:end], end == len(chunk)); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(parts.b, chunk) || !bytes.Equal(whole.b, chunk) {
			t.Fatalf("chunk %d: the output has other bytes", i)
		}
		if p.runs != w.runs || !slices.Equal(parts.writes, whole.writes) {
			t.Fatalf("chunk %d: in parts %+v %v, want %+v %v", i, p.runs, parts.writes, w.runs, whole.writes)
		}
	}
}
