package inspect_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/errs"
)

type memFile struct{ b []byte }

func (m *memFile) WriteAt(p []byte, off int64) (int, error) {
	if need := off + int64(len(p)); need > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, need-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func classed(err error) bool {
	var e *errs.Error
	return errors.As(err, &e) && e.Kind == errs.Unsafe && e.Class != "" && e.Message != ""
}

// FuzzInspect: whatever the bytes, the untrusted door answers without panicking
// or allocating without bound, and every refusal has a class. What it accepts
// refers to nothing outside and is readable from end to end; only the contents
// of a compressed cluster may still turn out to be broken.
func FuzzInspect(f *testing.F) {
	for _, o := range []qcow2.CreateOptions{
		{VirtualSize: 64 << 10, ClusterSize: 512}, {VirtualSize: 1 << 20, ClusterSize: 16384, ExtendedL2: true},
		{VirtualSize: 8 << 10, ClusterSize: 512, BackingName: "b", BackingFormat: diskfmt.Raw},
	} {
		m := &memFile{}
		if err := qcow2.Create(m, o); err != nil {
			f.Fatal(err)
		}
		f.Add(m.b)
	}
	f.Fuzz(func(t *testing.T, img []byte) {
		in := bytes.NewReader(img)
		_, fast := inspect.Header(in, int64(len(img)), inspect.Limits{})
		s, rep, err := inspect.Open(context.Background(), in, int64(len(img)), inspect.Limits{})
		if fast != nil && err == nil {
			t.Fatalf("the header was refused (%v), the image accepted", fast)
		}
		if err != nil {
			if !classed(err) {
				t.Fatalf("%v has no class", err)
			}
			return
		}
		if rep.Backing || rep.DataFile || rep.Encryption != 0 || s.Size() != rep.VirtualSize {
			t.Fatalf("accepted %+v", rep)
		}
		p := make([]byte, 64<<10)
		steps := 0
		for off := int64(0); off < s.Size() && steps < 2000; steps++ {
			m, err := s.Map(off)
			if err != nil || m.Offset != off || m.Length <= 0 || m.End() > s.Size() || m.Kind == diskfmt.Backing {
				t.Fatalf("Map(%d) = %+v, %v in a disk of %d bytes", off, m, err, s.Size())
			}
			_, err = s.ReadAt(p[:min(m.Length, int64(len(p)))], off)
			if err != nil && err != io.EOF && !(m.Compressed && classed(err)) {
				t.Fatalf("ReadAt(%d) in %+v: %v", off, m, err)
			}
			off = m.End()
		}
	})
}
