package inspect_test

import (
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
)

// largest is a disk with the most grain tables there may be, all of them there
// and empty.
type largest struct{ head []byte }

const (
	tables    = 4 << 20
	dirAt     = 1 << 20
	tablesAt  = dirAt + tables*4
	largeSize = tablesAt + tables*layout.TableBytes
)

func (l largest) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(l.head)) {
		copy(p, l.head[off:])
	}
	if off >= dirAt && off < tablesAt {
		for i := 0; i+4 <= len(p); i += 4 {
			le.PutUint32(p[i:], uint32(tablesAt/sector+(off-dirAt+int64(i))/4*(layout.TableBytes/sector)))
		}
	}
	if off+int64(len(p)) > largeSize {
		return int(largeSize - off), io.EOF
	}
	return len(p), nil
}

func TestMemoryAndTimeAreBounded(t *testing.T) {
	const capacity = tables * layout.TableEntries * 8
	head := all(put64(0xc, capacity), put64(0x14, 8), put64(0x38, dirAt/sector), put32(8, 1), text("RW 321", "RW 17179869184"))(sparse()[:21*sector])
	f := largest{head}
	begin := time.Now()
	if _, err := inspect.Header(f, largeSize, strict.Limits{}); err != nil || time.Since(begin) > time.Second {
		t.Errorf("Header: %v, after %v", err, time.Since(begin))
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s, rep, err := inspect.Open(t.Context(), f, largeSize, strict.Limits{})
	runtime.ReadMemStats(&after)
	if err != nil || rep.VirtualSize != capacity*sector {
		t.Fatalf("Open = %+v, %v", rep, err)
	}
	if got, most := after.TotalAlloc-before.TotalAlloc, uint64(64<<20); got > most {
		t.Errorf("Open allocated %d bytes, want at most %d", got, most)
	}
	if _, _, err := inspect.Open(t.Context(), f, 7<<60, strict.Limits{}); strict.ClassOf(err) != strict.Limit {
		t.Errorf("in a file of 7 EiB: %v, want LIMIT", err)
	}
	if m, err := s.Map(0); err != nil || m.Length != layout.TableEntries*8*sector {
		t.Errorf("Map(0) = %+v, %v; want the first table's zeroes", m, err)
	}
}

// A descriptor of the largest size is judged quickly, whatever is in it.
func TestDescriptorsAreBounded(t *testing.T) {
	const sectors = inspect.HeaderSize/sector - 1
	for _, fill := range []string{"\n", "#", "a", "a=b\n", "ddb.fcd.%d=1\n", "\"=\"", " "} {
		b := make([]byte, inspect.HeaderSize+4096)
		copy(b, put64(0x24, sectors)(sparse()[:sector]))
		for i := sector; i+len(fill) <= inspect.HeaderSize; i += len(fill) {
			copy(b[i:], fill)
		}
		begin := time.Now()
		if _, _, err := open(t, b); !classed(err) || time.Since(begin) > time.Second {
			t.Errorf("a descriptor full of %q: %v after %v, want a refusal within a second", fill, err, time.Since(begin))
		}
	}
}

// twice is an empty disk with two directories and a table for each entry of both.
type twice struct{ head []byte }

const (
	pairs      = 4096
	firstDir   = 1 << 20
	secondDir  = 2 << 20
	firstTable = 4 << 20
	twiceSize  = firstTable + 2*pairs*layout.TableBytes
)

func (d twice) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	if off < int64(len(d.head)) {
		copy(p, d.head[off:])
	}
	for i, dir := range []int64{firstDir, secondDir} {
		for at := 0; off >= dir && off < dir+pairs*4 && at+4 <= len(p); at += 4 {
			n := int64(i)*pairs + (off-dir+int64(at))/4
			le.PutUint32(p[at:], uint32((firstTable+n*layout.TableBytes)/sector))
		}
	}
	return len(p), nil
}

// The walk over a redundant directory tells of itself as the first one's does.
func TestRedundantTablesAreTold(t *testing.T) {
	const capacity = pairs * layout.TableEntries * 8
	head := all(put64(0xc, capacity), put64(0x14, 8), put64(0x38, firstDir/sector), put64(0x30, secondDir/sector), text("RW 321", "RW 16777216"))(sparse()[:21*sector])
	var told int
	var last, of int64
	_, _, err := inspect.Open(t.Context(), twice{head}, twiceSize, strict.Limits{Progress: func(done, total int64) { told, last, of = told+1, done, total }})
	if err != nil || told < 2*pairs/256 || last != 2*pairs || of != 2*pairs {
		t.Errorf("told %d times, at last %d of %d, %v; want %d of %d tables", told, last, of, err, 2*pairs, 2*pairs)
	}
}
