// Package blockstest makes sources and sinks for the tests of writers. It
// refuses to know a format, and is for tests only.
package blockstest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
)

// Disk is a sparse source: pieces of data, each an extent, between zeroes.
type Disk struct {
	Bytes  int64
	Pieces []diskfmt.Extent
	Kind   diskfmt.ExtentKind // of what is in no piece; 0 means Zero
}

// Scattered makes a disk with n pieces of data, and one more at its end.
func Scattered(size int64, n int) Disk {
	rng := rand.New(rand.NewPCG(uint64(size), uint64(n)))
	d := Disk{Bytes: size}
	for range n {
		off := rng.Int64N(size) / 512 * 512
		d.Pieces = append(d.Pieces, diskfmt.Extent{Offset: off, Length: min(int64(1+rng.IntN(100))*512, size-off)})
	}
	d.Pieces = append(d.Pieces, diskfmt.Extent{Offset: size - 512, Length: 512})
	return d
}

// Size returns the virtual size.
func (d Disk) Size() int64 { return d.Bytes }

// Extent returns the piece at off, or what lies before the next one.
func (d Disk) Extent(off int64) (diskfmt.Extent, error) {
	kind := d.Kind
	if kind == 0 {
		kind = diskfmt.Zero
	}
	e := diskfmt.Extent{Offset: off, Length: d.Bytes - off, Kind: kind}
	for _, p := range d.Pieces {
		switch {
		case off >= p.Offset && off < p.End():
			return diskfmt.Extent{Offset: off, Length: p.End() - off, Kind: diskfmt.Data}, nil
		case p.Offset > off && p.Offset < e.End():
			e.Length = p.Offset - off
		}
	}
	return e, nil
}

// ReadAt reads the pieces, no byte of which is zero for long, and zeroes.
func (d Disk) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), d.Bytes-off))
	clear(p[:n])
	for _, x := range d.Pieces {
		for at := max(off, x.Offset); at < min(off+int64(n), x.End()); at++ {
			p[at-off] = byte(at>>9)*7 + 1
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Plain is a source that is all data.
type Plain struct{ *bytes.Reader }

// Extent returns all that follows.
func (p Plain) Extent(off int64) (diskfmt.Extent, error) {
	return diskfmt.Extent{Offset: off, Length: p.Size() - off, Kind: diskfmt.Data}, nil
}

// All reads a whole disk.
func All(t testing.TB, r diskfmt.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// errFull is what a failing writer returns.
var errFull = errors.New("no space")

// failing is a writer whose n-th call fails.
type failing struct{ n int }

func (f *failing) Write(p []byte) (int, error) {
	if f.n--; f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

// Failures runs write with writers whose first, second ... call fails, until one
// succeeds, and fails unless write returns each failure. It wants at least least
// of them.
func Failures(t *testing.T, least int, write func(io.Writer) error) {
	t.Helper()
	for n := 0; ; n++ {
		err := write(&failing{n})
		if err == nil {
			if n < least {
				t.Errorf("%d calls of Write, want at least %d", n, least)
			}
			return
		}
		if !errors.Is(err, errFull) {
			t.Fatalf("call %d fails: got %v", n, err)
		}
	}
}

// Progress returns a progress function, and one that fails unless the last
// report was of the whole disk and none went back.
func Progress(t *testing.T, size int64) (report func(done, total int64), end func()) {
	last := int64(0)
	return func(done, total int64) {
			if done < last || total != size {
				t.Errorf("progress %d of %d after %d, of %d bytes", done, total, last, size)
			}
			last = done
		}, func() {
			t.Helper()
			if last != size {
				t.Errorf("progress ended at %d of %d", last, size)
			}
		}
}
