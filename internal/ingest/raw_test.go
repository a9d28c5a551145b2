package ingest

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
)

// striped is a disk of size bytes in runs of length bytes, as tables give them:
// zeroes, and data in those that data names.
type striped struct {
	diskfmt.Reader
	size, length int64
	data         map[int64]bool
	asked        *int64
}

func (s striped) Size() int64 { return s.size }

func (s striped) Extent(off int64) (diskfmt.Extent, error) {
	*s.asked++
	e := diskfmt.Extent{Offset: off, Length: min(s.length, s.size-off), Kind: diskfmt.Zero}
	if s.data[off/s.length] {
		e.Kind = diskfmt.Data
	}
	return e, nil
}

// TestDataIsMeasured: what is promised for the data of a disk is no less than
// what is written, near to it, and found without a look at every table of an
// empty disk.
func TestDataIsMeasured(t *testing.T) {
	const size, run = int64(60 << 40), int64(2 * mib) // more runs than are looked at
	last := size/run - 1
	for name, row := range map[string]struct {
		data      map[int64]bool
		all       stored
		least     int64
		most      int64
		mostAsked int64
	}{
		"empty":              {nil, stored{0, 512}, 0, 0, 0},
		"begins with data":   {map[int64]bool{0: true}, stored{run, 512}, run, run, 1},
		"one piece":          {map[int64]bool{1000: true}, stored{run, 512}, run, run + minHole, 1001},
		"the end only":       {map[int64]bool{last: true}, stored{64 * kib, 64 * kib}, 64 * kib, mib, maxExtents},
		"of unknown content": {map[int64]bool{3: true}, anything, run, size - (maxExtents-1)*run, maxExtents},
	} {
		var im intake
		var asked int64
		got, err := im.dataBytes(t.Context(), striped{size: size, length: run, data: row.data, asked: &asked}, row.all)
		if err != nil || got < row.least || got > row.most {
			t.Errorf("%s: %d bytes, %v; want %d to %d", name, got, err, row.least, row.most)
		}
		if asked > row.mostAsked || im.count.walked.Load() != asked {
			t.Errorf("%s: %d extents were asked for and %d told, want at most %d", name, asked, im.count.walked.Load(), row.mostAsked)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var asked int64
	if _, err := new(intake).dataBytes(ctx, striped{size: size, length: run, asked: &asked}, anything); !errors.Is(err, context.Canceled) {
		t.Errorf("on an ended context: %v", err)
	}
}

// TestLargeEmptyDisks imports what qemu-img makes of the largest empty disks:
// nothing is promised for them.
func TestLargeEmptyDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long; TestFormats reads the same formats")
	}
	for format, args := range map[string][]string{
		"vhdx":  {"-f", "vhdx", "-o", "block_size=1M", "64T"},
		"vdi":   {"-f", "vdi", "2T"},
		"ploop": {"-f", "parallels", "2T"},
		"vmdk":  {"-f", "vmdk", "256G"},
	} {
		file := filepath.Join(t.TempDir(), "empty")
		tool(t, "qemu-img", append([]string{"create", "-q", args[0], args[1], file}, args[2:]...)...)
		s, err := Open(t.Context(), Config{}, Source{File: readable(t, file), Name: file}, Claim{Format: format})
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if h := s.Header(); h.MaxData != 0 {
			t.Errorf("%s: %d bytes are promised for an empty disk of %d", format, h.MaxData, h.VirtualSize)
		}
		s.Close()
	}
}
