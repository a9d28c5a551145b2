package inspect_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
)

// FuzzInspect: whatever the bytes, the untrusted door answers without panicking
// or allocating without bound, and every refusal has a class. What it accepts is
// readable from end to end; only the contents of a compressed grain may still
// turn out to be broken. What the reader of streams accepts, the reader of files
// accepts too, with the same content.
func FuzzInspect(f *testing.F) {
	f.Add(sparse()[:sparseG2+grain])
	f.Add(stream(f))
	f.Fuzz(func(t *testing.T, img []byte) {
		in := bytes.NewReader(img)
		_, fast := inspect.Header(in, int64(len(img)), strict.Limits{})
		s, rep, err := open(t, img)
		if fast != nil && err == nil {
			t.Fatalf("the header was refused (%v), the image accepted", fast)
		}
		disk, streamErr := drain(t, in)
		if streamErr != nil && !classed(streamErr) {
			t.Fatalf("as a stream: %v has no class", streamErr)
		}
		if err != nil {
			if !classed(err) {
				t.Fatalf("%v has no class", err)
			}
			if streamErr == nil {
				t.Fatalf("the stream was accepted, the file refused: %v", err)
			}
			return
		}
		if s.Size() != rep.VirtualSize || rep.DataBytes > rep.VirtualSize {
			t.Fatalf("accepted %+v", rep)
		}
		p := make([]byte, 1<<20)
		steps := 0
		for off := int64(0); off < s.Size() && steps < 2000; steps++ {
			m, err := s.Map(off)
			if err != nil || m.Offset != off || m.Length <= 0 || m.End() > s.Size() || m.Kind == diskfmt.Backing {
				t.Fatalf("Map(%d) = %+v, %v in a disk of %d bytes", off, m, err, s.Size())
			}
			if m.Kind == diskfmt.Data && (m.HostOffset < 0 || m.HostLength <= 0 || m.HostOffset+m.HostLength > int64(len(img))) {
				t.Fatalf("Map(%d) = %+v in a file of %d bytes", off, m, len(img))
			}
			q := p[:min(m.Length, int64(len(p)))]
			n, err := s.ReadAt(q, off)
			if err != nil && err != io.EOF && !(m.Compressed && classed(err)) || n < len(q) && err == nil {
				t.Fatalf("ReadAt(%d) in %+v: %d, %v", off, m, n, err)
			}
			if streamErr == nil && off < int64(len(disk)) && !bytes.Equal(q[:min(n, len(disk)-int(off))], disk[off:min(int(off)+n, len(disk))]) {
				t.Fatalf("the bytes at %d differ between file and stream", off)
			}
			off = m.End()
		}
	})
}
