package inspect_test

import (
	"bytes"
	"io"
	"runtime"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
)

// sparse is a large file of which only pieces are stored.
type sparse struct {
	size   int64
	pieces map[int64][]byte
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	for at, b := range s.pieces {
		if at < off+int64(n) && off < at+int64(len(b)) {
			copy(p[max(0, at-off):n], b[max(0, off-at):])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// The largest L1 table that is let in, each entry of which has an L2 table of
// its own, must not take more memory than promised.
func TestMemoryIsBounded(t *testing.T) {
	const entries, cluster = 1 << 20, 512
	head := bytes.Clone(sound(t, false)[:104+16])
	be.PutUint32(head[20:], 9)
	be.PutUint64(head[24:], entries*64*cluster)
	const refTable = 8 << 20
	be.PutUint64(head[48:], refTable)
	be.PutUint32(head[56:], 1<<14) // 8 MiB: the most
	const table = refTable + 8<<20
	be.PutUint32(head[36:], entries)
	be.PutUint64(head[40:], table)
	l1 := make([]byte, entries*8)
	const tables = table + entries*8
	for i := range uint64(entries) {
		be.PutUint64(l1[i*8:], copied|(tables+i*cluster))
	}
	f := sparse{tables + entries*cluster, map[int64][]byte{0: head, table: l1}}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := inspect.Inspect(t.Context(), f, f.size, inspect.Limits{})
	runtime.ReadMemStats(&after)
	if class(err) != "CORRUPT" {
		t.Errorf("an image without refcounts: got %v, want class CORRUPT", err)
	}
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(64<<20); got > most {
		t.Errorf("Inspect allocated %d bytes, want at most %d", got, most)
	}
}

// What is walked once for each window of a file counts against one bound, so
// that the holes of a file do not multiply the work on its tables.
func TestVisitsAreBoundedInAll(t *testing.T) {
	b := sound(t, false)
	const lim = 50_000 // three windows' worth of a table of L1, L2 and refcounts
	for size, want := range map[int64]string{int64(len(b)): "", 256 << 30: "", 4 << 40: "LIMIT", 1<<50 + 1: "LIMIT"} {
		_, err := inspect.Inspect(t.Context(), sparse{size, map[int64][]byte{0: b}}, size, inspect.Limits{Visits: lim})
		if class(err) != want {
			t.Errorf("a file of %d bytes: %v, want class %q", size, err, want)
		}
	}
	if _, err := inspect.Inspect(t.Context(), sparse{4 << 40, map[int64][]byte{0: b}}, 4<<40, inspect.Limits{}); err != nil {
		t.Errorf("by default a file of 4 TiB: %v", err)
	}
}
