// Package unpack decompresses the wrappers in which images are published. It
// refuses to guess which one a file has, to read on behind the end of one that
// is damaged, and to take more memory than the formats' usual settings need.
package unpack

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/therootcompany/xz"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// How far a compressed stream may refer back, in bytes: as far as "xz -9" and
// "zstd --long=27" do.
const (
	maxDictionary = 64 << 20
	maxWindow     = 128 << 20
)

// Names returns the wrappers that there are, in the order in which help shows
// them.
func Names() []string { return []string{"gzip", "xz", "zstd", "bzip2"} }

// Known reports whether name is a wrapper's.
func Known(name string) bool { return slices.Contains(Names(), name) }

// NewReader returns a reader of what r holds in the wrapper name. Several
// wrapped streams one behind the other are read as one, as the tools do; anything
// else behind the end is CORRUPT. The reader's errors are errs.Unsafe with a
// class, but for those of r. Close ends its goroutines, but not r.
func NewReader(name string, r io.Reader) (io.ReadCloser, error) {
	in := &source{r: bufio.NewReaderSize(r, 1<<20)}
	if _, err := in.r.Peek(1); err == io.EOF {
		return nil, strict.Refuse(strict.Empty, "the file has no bytes")
	} else if err != nil {
		return nil, err
	}
	out := &reader{name: name, in: in}
	var err error
	switch name {
	case "gzip":
		out.r, err = gzip.NewReader(in)
	case "xz":
		out.r, err = xz.NewReader(in, maxDictionary)
	case "zstd":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(in, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true)); err == nil {
			out.r, out.end = d, d.Close
		}
	case "bzip2":
		out.r = bzip2.NewReader(in)
	default:
		return nil, strict.Refuse(strict.Format, "%q is not a compression tarn knows; use gzip, xz, zstd or bzip2", name)
	}
	if err != nil {
		return nil, out.refusal(err)
	}
	return out, nil
}

// errMagic is bzip2's word for bytes of another kind.
var errMagic = bzip2.StructuralError("bad magic value")

// source remembers the error of what is read, so that it can be told from the
// decompressor's, and how far that was.
type source struct {
	r   *bufio.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil {
		s.err = err
	}
	return n, err
}

// ReadByte saves bzip2 and gzip a buffer of their own.
func (s *source) ReadByte() (byte, error) {
	b, err := s.r.ReadByte()
	if err != nil {
		s.err = err
		return 0, err
	}
	s.n++
	return b, nil
}

type reader struct {
	name  string
	in    *source
	r     io.Reader
	end   func()
	began bool  // something came
	err   error // for good
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		err = r.refusal(err)
	}
	r.err, r.began = err, r.began || n > 0
	return n, err
}

func (r *reader) Close() error {
	if r.end != nil {
		r.end()
	}
	return nil
}

const again = "compress the image again with the tool's defaults"

// refusal says of which class a decompressor's error is.
func (r *reader) refusal(err error) error {
	if at := r.in.err; at != nil && at != io.EOF {
		return at
	}
	switch {
	case errors.Is(err, xz.ErrMemlimit), errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		most := int64(maxDictionary)
		if r.name == "zstd" {
			most = maxWindow
		}
		return strict.Refuse(strict.Limit, "the %s data refers back further than %d MiB, before byte %d", r.name, most>>20, r.in.n).
			WithHint(again)
	case errors.Is(err, xz.ErrOptions), errors.Is(err, xz.ErrUnsupportedCheck):
		return strict.Refuse(strict.Feature, "the xz data has a filter or a check that is not supported, before byte %d: %v", r.in.n, err).WithHint(again)
	case errors.Is(err, xz.ErrFormat), errors.Is(err, gzip.ErrHeader), errors.Is(err, zstd.ErrMagicMismatch), errors.Is(err, errMagic):
		if r.began {
			return strict.Refuse(strict.Corrupt, "the %s data has other bytes behind its end, before byte %d: %v", r.name, r.in.n, err).WithHint("fetch the image again")
		}
		return strict.Refuse(strict.Mismatch, "the bytes are not %s: %v", r.name, err).WithHint("say --compression as the file is compressed, or none")
	case r.in.err == io.EOF && !errors.Is(err, xz.ErrData):
		return strict.Refuse(strict.Truncated, "the %s data ends early, after %d bytes: %v", r.name, r.in.n, err).WithHint("fetch the image again")
	}
	return strict.Refuse(strict.Corrupt, "the %s data is damaged before byte %d: %v", r.name, r.in.n, err).WithHint("fetch the image again")
}
