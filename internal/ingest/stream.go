package ingest

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"
	"math"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
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
	past error // refuses more than max
	last []byte
	far  sniff.Far
}

func (s *stream) Read(p []byte) (int, error) {
	n, err := 0, error(nil)
	if len(s.head) > 0 {
		n = copy(p, s.head)
		s.head = s.head[n:]
	} else {
		n, err = s.r.Read(p)
	}
	s.far.Pass(s.n, p[:n])
	s.n += int64(n)
	s.last = append(s.last, p[max(0, n-sniff.TailSize):n]...)
	s.last = s.last[max(0, len(s.last)-sniff.TailSize):]
	switch {
	case s.size >= 0 && s.n > s.size:
		return 0, strict.Refuse(strict.Corrupt, "the stream goes on behind the %d bytes that were announced", s.size)
	case s.size < 0 && s.n > s.max:
		return 0, s.past
	case err == io.EOF && s.size >= 0 && s.n < s.size:
		return 0, errShort(s.n, s.size)
	}
	return n, err
}

// packed is what a source delivers when that is compressed. It is read and
// hashed ahead of the decompressor, on another core.
type packed struct {
	sum      hash.Hash // complete after io.EOF
	unpacked io.ReadCloser

	free, ahead chan []byte
	now, rest   []byte // the buffer in use, and what of it was not read
	err         error  // once ahead is closed
}

// newPacked reads r as far ahead as it has buffers, to its end or an error.
func newPacked(r io.Reader) *packed {
	const buffers, size = 4, 512 << 10
	p := &packed{sum: sha256.New(), free: make(chan []byte, buffers), ahead: make(chan []byte, buffers)}
	for range buffers {
		p.free <- make([]byte, size)
	}
	go p.fetch(r)
	return p
}

func (p *packed) fetch(r io.Reader) {
	defer close(p.ahead)
	for b := range p.free {
		n, err := r.Read(b)
		p.sum.Write(b[:n])
		p.ahead <- b[:n]
		if err != nil {
			p.err = err
			return
		}
	}
}

func (p *packed) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.now != nil {
			p.free <- p.now[:cap(p.now)]
			p.now = nil
		}
		next, ok := <-p.ahead
		if !ok {
			return 0, p.err
		}
		p.now, p.rest = next, next
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// sequential reads a file of size bytes from its start.
type sequential struct {
	r         io.ReaderAt
	pos, size int64
}

func (s *sequential) Read(p []byte) (int, error) {
	n := min(int64(len(p)), s.size-s.pos)
	if n == 0 {
		return 0, io.EOF
	}
	got, err := s.r.ReadAt(p[:n], s.pos)
	s.pos += int64(got)
	if err == io.EOF {
		err = errChanged()
	}
	return got, err
}

// maxSector is the largest sector of a format, of which a file has whole ones.
const maxSector = 4096

// openStream judges what comes in turn, a stream or what a compressed file
// holds, by its first bytes.
func (im *intake) openStream() (Header, error) {
	format := im.stored(diskfmt.Format(im.Format))
	im.content = &stream{r: im.src, size: im.Size, max: im.MaxData, past: im.past()}
	if im.Compression != "" {
		if err := im.unpack(); err != nil {
			return Header{}, err
		}
	}
	im.head = make([]byte, max(sniff.HeadSize, doors[format].head))
	if format == diskfmt.Qcow2 {
		im.head = make([]byte, maxHeader)
	}
	n, err := io.ReadFull(im.content.r, im.head)
	im.head = im.head[:n]
	im.content.head = im.head
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		if im.content.size < 0 {
			im.content.size = int64(n)
		}
		if im.content.size == 0 {
			return Header{}, errEmpty()
		}
		if int64(n) < im.content.size {
			return Header{}, errShort(int64(n), im.content.size)
		}
	case err != nil:
		return Header{}, err
	}
	if err := checkLooks(format, im.head[:min(n, sniff.HeadSize)], nil, sniff.Far{}, 0); err != nil {
		return Header{}, err
	}
	h, err := im.judgeHead(format)
	return h, im.hinted(err)
}

// past refuses more than may come: what a pool has room for, or what the caller
// allows.
func (im *intake) past() error {
	if im.MaxData >= im.MaxVirtual {
		return strict.Refuse(strict.Quota, "the image has more than the %d bytes that are the most", im.MaxVirtual).WithHint("%s", hints[strict.Quota])
	}
	return strict.Refuse(strict.Quota, "the stream has more than the %d bytes reserved for it", im.MaxData).
		WithHint("make room in the pool, or import from a file, whose size is known")
}

// unpack puts the decompressor between what is delivered and the content.
func (im *intake) unpack() error {
	if !im.Stream {
		im.content.r = &sequential{r: im.src, size: im.Size}
	}
	im.packed = newPacked(im.content)
	r, err := unpack.NewReader(im.Compression, im.packed)
	im.packed.unpacked = r
	im.content = &stream{r: r, size: -1, max: im.MaxData, past: im.past()}
	return err
}

// judgeHead judges the first bytes of content that comes in turn. Its size is
// known, or it has at most as many bytes as are reserved. A header is held
// against a size that is not known with a long one that no door minds: what
// depends on the size is judged at the end.
func (im *intake) judgeHead(format diskfmt.Format) (Header, error) {
	size, most := im.content.size, im.content.size
	long, lim := size, im.limits()
	if size < 0 {
		most = im.MaxData
		long = most &^ (maxSector - 1)
		if doors[format].flat { // its virtual size is not known either
			lim.VirtualSize = math.MaxInt64
		}
	}
	h := Header{Format: format, VirtualSize: size, MaxData: most, MaxSpool: most, Features: []string{}}
	d := doors[format]
	switch {
	case format == diskfmt.Qcow2:
		h, err := im.judgeQcow2(im.head, long)
		h.MaxSpool, im.size = most, h.VirtualSize
		return h, err
	case format == diskfmt.Raw:
		h.MaxSpool = 0
	case d.header == nil: // the size is in the tables
		h.VirtualSize, h.MaxData = -1, im.MaxData
		return h, nil
	default:
		rep, err := d.header(bytes.NewReader(im.head), long, lim)
		if size < 0 && d.flat && im.MaxData >= im.MaxVirtual && strict.ClassOf(err) == strict.Truncated {
			err = im.past() // it says that it is longer than is allowed
		}
		if err != nil {
			return h, err
		}
		h.Features = append(h.Features, rep.Features...)
		if !d.flat {
			h.VirtualSize, h.MaxData = rep.VirtualSize, rep.VirtualSize
		}
		if d.inTurn {
			h.MaxSpool = 0
		}
	}
	if size >= 0 && d.flat || format == diskfmt.Raw && size >= 0 {
		return h, im.limits().Check(uint64(size))
	}
	return h, nil
}

// delivered returns the SHA-256 of the bytes as they came: that of the content,
// unless it was packed. The rest of what is packed is read first.
func (im *intake) delivered(content []byte) ([]byte, error) {
	if im.packed == nil {
		return content, nil
	}
	if err := im.packed.unpacked.Close(); err != nil {
		return nil, err
	}
	if _, err := io.Copy(io.Discard, im.packed); err != nil {
		return nil, err
	}
	return im.packed.sum.Sum(nil), nil
}
