package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

// recordOf is the record that agrees with an image's header, so that a fuzzed
// image gets past the comparison with it.
func recordOf(img []byte) diskfmt.Recorded {
	if len(img) < 112 {
		return diskfmttest.Qcow2(1<<20, 65536)
	}
	be := binary.BigEndian
	want := diskfmttest.Qcow2(int64(be.Uint64(img[24:])), 1<<(be.Uint32(img[20:])&31))
	pos := uint64(72)
	if be.Uint32(img[4:]) == 3 {
		want.ExtendedL2 = be.Uint64(img[72:])&16 != 0
		pos = uint64(be.Uint32(img[100:]))
	}
	size := uint64(len(img))
	if off, n := be.Uint64(img[8:]), uint64(be.Uint32(img[16:])); off < size && n <= size-off {
		want.BackingName = string(img[off : off+n])
	}
	for pos+8 <= size {
		typ, n := be.Uint32(img[pos:]), uint64(be.Uint32(img[pos+4:]))
		if typ == 0 || n > size-pos-8 {
			break
		}
		if typ == 0xe2792aca {
			want.BackingFmt = diskfmt.Format(img[pos+8 : pos+8+n])
		}
		pos += 8 + (n+7)&^7
	}
	return want
}

// FuzzOpen: whatever the bytes, the trusted door answers without panicking or
// allocating without bound, every error is errs.Corrupt, extents advance, and
// what Extent calls Zero reads as zeroes.
func FuzzOpen(f *testing.F) {
	for _, s := range []shape{{size: 64 << 10, cluster: 512}, {size: 1 << 20, cluster: 16384, ext: true}, {size: 8 << 10, cluster: 512, backing: 4096}} {
		m := &memFile{}
		want := s.record()
		if err := qcow2.Create(m, qcow2.CreateOptions{VirtualSize: s.size, ClusterSize: s.cluster, ExtendedL2: s.ext,
			BackingName: want.BackingName, BackingFormat: want.BackingFmt}); err != nil {
			f.Fatal(err)
		}
		f.Add(m.B)
	}
	f.Fuzz(func(t *testing.T, img []byte) {
		r, err := qcow2.Open(bytes.NewReader(img), int64(len(img)), recordOf(img))
		if err != nil {
			if !errors.Is(err, errs.Corrupt) {
				t.Fatalf("Open: %v is %v, not corrupt", err, errs.KindOf(err))
			}
			return
		}
		p := make([]byte, 64<<10)
		steps := 0
		for off := int64(0); off < r.Size() && steps < 2000; steps++ {
			m, err := r.Map(off)
			if err != nil {
				if !errors.Is(err, errs.Corrupt) {
					t.Fatalf("Map(%d): %v is not corrupt", off, err)
				}
				off += 512
				continue
			}
			if m.Offset != off || m.Length <= 0 || m.End() > r.Size() ||
				m.Kind == diskfmt.Data && (m.HostOffset < 0 || m.HostLength <= 0 || m.HostOffset+m.HostLength > int64(len(img))) {
				t.Fatalf("Map(%d) = %+v in a disk of %d bytes and a file of %d", off, m, r.Size(), len(img))
			}
			n, err := r.ReadAt(p[:min(m.Length, int64(len(p)))], off)
			switch {
			case m.Kind == diskfmt.Backing && errors.Is(err, errs.Internal):
			case err != nil && err != io.EOF && !errors.Is(err, errs.Corrupt):
				t.Fatalf("ReadAt(%d): %v is not corrupt", off, err)
			case m.Kind == diskfmt.Backing && err == nil:
				t.Fatalf("ReadAt(%d) read the layer below", off)
			case m.Kind == diskfmt.Zero && (err != nil || len(bytes.Trim(p[:n], "\x00")) > 0):
				t.Fatalf("ReadAt(%d) of zeroes: %v", off, err)
			case m.Kind == diskfmt.Data && !m.Compressed && (err != nil || !bytes.Equal(p[:n], img[m.HostOffset:][:n])):
				t.Fatalf("ReadAt(%d) differs from %+v: %v", off, m, err)
			}
			off = m.End()
		}
	})
}

// FuzzWriter: any image that the writer opens can be written, grown, discarded
// and flushed without a panic, and every error is errs.Corrupt. If the image
// was consistent, what was written reads back, and it stays consistent. (In one
// that is not, two guest clusters may share their bytes.)
func FuzzWriter(f *testing.F) {
	m := &memFile{}
	if err := qcow2.Create(m, qcow2.CreateOptions{VirtualSize: 64 << 10, ClusterSize: 512}); err != nil {
		f.Fatal(err)
	}
	f.Add(m.B, []byte("\x00\x01\x10\x20 \x01\x02\x10\x03\x02\x00\x02"))
	f.Fuzz(func(t *testing.T, img, ops []byte) {
		want := recordOf(img)
		if want.VirtualSize > 1<<20 || want.VirtualSize <= 0 || want.BackingName != "" {
			return
		}
		file := inMemory(bytes.Clone(img))
		w, err := qcow2.OpenWriter(file, want, nil)
		if err != nil {
			return
		}
		_, unsound := inspect.Inspect(t.Context(), bytes.NewReader(img), int64(len(img)), inspect.Limits{})
		model := make([]byte, want.VirtualSize)
		if n, err := w.ReadAt(model, 0); err != nil || n != len(model) {
			return
		}
		for n := 0; len(ops) >= 4 && n < 64; n++ {
			off, length := int64(ops[1])<<8*int64(len(model))>>16, int64(ops[2])<<6
			if off+length > int64(len(model)) {
				length = int64(len(model)) - off
			}
			switch ops[0] % 4 {
			case 0:
				p := bytes.Repeat(ops[3:4], int(length))
				_, err = w.WriteAt(p, off)
				copy(model[off:], p)
			case 1:
				err = w.WriteZeroes(off, length)
				clear(model[off : off+length])
			case 2:
				err = w.Sync()
			case 3:
				size := (int64(len(model)) + length) &^ 511
				err = w.Grow(size)
				model = append(model, make([]byte, size-int64(len(model)))...)
			}
			if err != nil {
				if !errors.Is(err, errs.Corrupt) {
					t.Fatalf("operation %d: %v is %v, not corrupt", n, err, errs.KindOf(err))
				}
				return
			}
			ops = ops[4:]
		}
		if err := w.Close(); err != nil {
			return
		}
		if unsound != nil {
			return
		}
		if _, err := inspect.Inspect(t.Context(), file, int64(len(file.B)), inspect.Limits{}); err != nil {
			t.Fatalf("the image became inconsistent: %v", err)
		}
		want.VirtualSize = int64(len(model))
		r, err := qcow2.Open(file, int64(len(file.B)), want)
		if err != nil {
			t.Fatalf("opening again: %v", err)
		}
		got := make([]byte, len(model))
		if _, err := r.ReadAt(got, 0); err != nil {
			t.Fatalf("reading again: %v", err)
		}
		sameBytes(t, "opened again", got, model)
	})
}
