package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// progress is what must come between two breaks for a download to count as one
// that advances.
const progress = 1 << 20

const maxDoublings = 5 // of the wait before a download is continued

// object is what a stream reads.
type object struct {
	url  *url.URL
	name string
	size int64 // as known beforehand; -1 unknown

	// immutable says that the URL names one content for ever, so that no
	// version is asked for.
	immutable bool

	// private returns the header for the object's own origin. again asks for a
	// new one, because the server refused the last.
	private func(ctx context.Context, again bool) (http.Header, error)
}

// Stream is a remote object, read once from its first byte to its last. It is
// not safe for concurrent use, except Close.
type Stream struct {
	cfg    Config
	obj    object
	ctx    context.Context // the stream's life
	cancel context.CancelFunc

	rep       *reply
	off       int64
	end       int64 // of this reply; -1 unknown
	size      int64 // -1 unknown; a part may tell it
	announced int64
	version   version
	held      error // came with the last bytes

	tries int
	mark  int64 // where the last break was
	err   error
}

// version is what If-Range and a part's header say about the object.
type version struct{ etag, modified string }

func openStream(ctx context.Context, cfg Config, obj object) (*Stream, error) {
	s := &Stream{cfg: cfg, obj: obj, size: obj.size}
	s.ctx, s.cancel = context.WithCancel(ctx)
	if err := s.first(); err != nil {
		s.cancel()
		return nil, err
	}
	s.announced = s.size
	return s, nil
}

// Size is how many bytes the server announced, -1 when it did not.
func (s *Stream) Size() int64 { return s.announced }

// Name is the object's address for messages, without anything secret.
func (s *Stream) Name() string { return s.obj.name }

// Close ends the download. A Read that waits fails.
func (s *Stream) Close() error {
	s.cancel()
	return nil
}

// Read reads on, over breaks of the connection, and fails for good with an
// *errs.Error that names the object.
func (s *Stream) Read(p []byte) (int, error) {
	if s.err != nil || len(p) == 0 {
		return 0, s.err
	}
	for {
		n, err := 0, s.held
		if err == nil {
			n, err = s.rep.Read(p)
			s.off += int64(n)
		}
		if s.end >= 0 && s.off > s.end {
			err = errMore(s.end)
		} else if n > 0 {
			s.held = err
			return n, nil
		}
		s.held = nil
		if err == nil {
			continue
		}
		if err = s.after(err); err != nil {
			s.rep.Close()
			s.cancel()
			s.err = err
			if err != io.EOF {
				s.err = errs.Wrap(err, op, s.obj.name)
			}
			return 0, s.err
		}
	}
}

func errMore(n int64) error {
	return fail(errs.Unsafe, "the server sends more than the %d bytes that it announced", n).WithClass(classCorrupt)
}

// after decides how to go on when a reply ended with err: nil is a new reply.
func (s *Stream) after(err error) error {
	var e *errs.Error
	switch {
	case s.ctx.Err() != nil:
		return fail(errs.Cancelled, "the download was stopped: %w", context.Cause(s.ctx))
	case errors.As(err, &e):
		return err
	case errors.Is(err, errStalled):
		return fail(errs.Unavailable, "%s stalled at %s: less than %d bytes per second for %v", s.rep.from, s.place(), s.cfg.MinRate, s.cfg.Stall).
			WithHint("try again, or from another server")
	case s.off == s.size || err == io.EOF && s.size < 0:
		if err == io.EOF && s.rep.more() {
			return errMore(s.off)
		}
		return io.EOF
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return s.resume(err)
}

func (s *Stream) place() string {
	if s.size < 0 {
		return fmt.Sprintf("byte %d", s.off)
	}
	return fmt.Sprintf("byte %d of %d", s.off, s.size)
}

// first gets the object from its start.
func (s *Stream) first() error {
	rep, err := s.get(nil)
	if err != nil {
		return err
	}
	s.rep = rep
	if err := s.whole(); err != nil {
		rep.Close()
		return err
	}
	return nil
}

// whole checks the first answer and notes what it announces.
func (s *Stream) whole() error {
	if s.rep.StatusCode != http.StatusOK {
		return s.rep.status()
	}
	if err := s.identity(s.rep); err != nil {
		return err
	}
	n := s.rep.ContentLength
	if s.size >= 0 && n >= 0 && n != s.size {
		return fail(errs.Unsafe, "%s announces %d bytes, and the image has %d by its record", s.rep.from, n, s.size).WithClass(classCorrupt)
	}
	if s.size < 0 {
		s.size = n
	}
	s.end = s.size
	s.version = versionOf(s.rep.Header)
	return nil
}

// versionOf takes what can prove that a later part belongs to the same bytes
// (RFC 9110, section 8.8.2.2): a strong ETag, else a time of change at least a
// second before the answer.
func versionOf(h http.Header) version {
	if etag := h.Get("ETag"); strings.HasPrefix(etag, `"`) {
		return version{etag: etag}
	}
	modified, err := http.ParseTime(h.Get("Last-Modified"))
	if err != nil {
		return version{}
	}
	if at, err := http.ParseTime(h.Get("Date")); err == nil && at.Sub(modified) >= time.Second {
		return version{modified: h.Get("Last-Modified")}
	}
	return version{}
}

// same reports whether a part's header names version v. It must name an ETag
// again that the whole had (RFC 9110, section 15.3.7), but need not a time.
func (v version) same(h http.Header) bool {
	if v.etag != "" {
		return h.Get("ETag") == v.etag
	}
	got := h.Get("Last-Modified")
	return got == "" || v.modified == "" || got == v.modified
}

func (v version) ifRange() string {
	if v.etag != "" {
		return v.etag
	}
	return v.modified
}

func (s *Stream) identity(rep *reply) error {
	if enc := rep.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return refuse("%s sends the object in an encoding (Content-Encoding: %q), which was not asked for", rep.from, enc).
			WithHint("an image that is compressed by itself is named by its own URL and imported with --compression")
	}
	return nil
}

// get asks for the object, once more with new credentials when the server no
// longer takes those it was given.
func (s *Stream) get(header http.Header) (*reply, error) {
	for again := false; ; again = true {
		r := request{method: http.MethodGet, url: s.obj.url, header: header}
		if s.obj.private != nil {
			var err error
			if r.private, err = s.obj.private(s.ctx, again); err != nil {
				return nil, err
			}
		}
		rep, err := s.cfg.ask(s.ctx, r)
		if err == nil && rep.StatusCode == http.StatusUnauthorized && s.obj.private != nil && !again {
			rep.Close()
			continue
		}
		return rep, err
	}
}

// resume continues the object at the byte where the connection broke.
func (s *Stream) resume(broke error) error {
	s.rep.Close()
	if !s.obj.immutable && s.version == (version{}) {
		return fail(s.kindOf(broke), "the connection broke at %s (%v), and the server names no version of the object (a strong ETag) to continue it by", s.place(), broke).
			WithClass(s.classOf(broke)).WithHint("try again, or fetch the file by other means and import the file")
	}
	if s.off-s.mark >= progress {
		s.tries = 0
	}
	s.mark = s.off
	for s.tries < s.cfg.Attempts {
		wait := s.cfg.Backoff << min(s.tries, maxDoublings)
		s.tries++
		select {
		case <-s.ctx.Done():
			return fail(errs.Cancelled, "the download was stopped: %w", context.Cause(s.ctx))
		case <-time.After(wait):
		}
		err := s.next()
		if err == nil {
			return nil
		}
		if errs.KindOf(err) != errs.Unavailable {
			return err
		}
		broke = err
	}
	return fail(s.kindOf(broke), "the download ended at %s: %v; it was continued %d times without advancing", s.place(), broke, s.cfg.Attempts).
		WithClass(s.classOf(broke)).WithHint("try again when the server is well, or from another server")
}

// A server that ends the object early gave a truncated object; one that cannot
// be reached is merely away.
func (s *Stream) kindOf(broke error) errs.Kind {
	if s.classOf(broke) != "" {
		return errs.Unsafe
	}
	return errs.Unavailable
}

func (s *Stream) classOf(broke error) string {
	if s.size >= 0 && errors.Is(broke, io.ErrUnexpectedEOF) {
		return classTruncated
	}
	return ""
}

// next gets the rest of the object.
func (s *Stream) next() error {
	header := http.Header{"Range": {fmt.Sprintf("bytes=%d-", s.off)}}
	if v := s.version.ifRange(); v != "" {
		header.Set("If-Range", v)
	}
	rep, err := s.get(header)
	if err != nil {
		return err
	}
	if err := s.part(rep); err != nil {
		rep.Close()
		return err
	}
	s.rep = rep
	return nil
}

// part checks that rep continues the same object where it broke.
func (s *Stream) part(rep *reply) error {
	changed := func(format string, args ...any) error {
		return fail(errs.Conflict, "the download broke at %s and cannot be continued: "+format, append([]any{s.place()}, args...)...).
			WithHint("start again")
	}
	switch {
	case rep.StatusCode == http.StatusOK && versionOf(rep.Header) == s.version:
		return changed("%s does not send parts", rep.from)
	case rep.StatusCode == http.StatusOK, rep.StatusCode == http.StatusPreconditionFailed, rep.StatusCode == http.StatusRequestedRangeNotSatisfiable:
		return changed("the object on %s has changed", rep.from)
	case rep.StatusCode != http.StatusPartialContent:
		return rep.status()
	}
	if err := s.identity(rep); err != nil {
		return err
	}
	start, last, total, ok := parseContentRange(rep.Header.Get("Content-Range"))
	switch {
	case !ok || start != s.off:
		return changed("%s was asked for the bytes from %d and sends others", rep.from, s.off)
	case s.version.etag != "" && rep.Header.Get("ETag") == "":
		return changed("%s does not say of which version its part is", rep.from)
	case total >= 0 && s.size >= 0 && total != s.size, !s.version.same(rep.Header):
		return changed("the object on %s has changed", rep.from)
	case total < 0 && s.size < 0:
		return changed("%s does not say how long the object is", rep.from)
	case s.size >= 0 && last >= s.size, rep.ContentLength >= 0 && rep.ContentLength != last-start+1:
		return changed("%s sends a part of another length than it says", rep.from)
	}
	if s.size < 0 {
		s.size = total
	}
	s.end = last + 1
	return nil
}

// parseContentRange parses "bytes FIRST-LAST/TOTAL"; total is -1 for "*".
func parseContentRange(s string) (first, last, total int64, ok bool) {
	s, unit := strings.CutPrefix(s, "bytes ")
	span, of, slash := strings.Cut(s, "/")
	a, b, dash := strings.Cut(span, "-")
	if !unit || !slash || !dash {
		return 0, 0, 0, false
	}
	number := func(s string) int64 {
		n, err := strconv.ParseUint(s, 10, 63)
		if err != nil {
			ok = false
			return 0
		}
		return int64(n)
	}
	ok, total = true, -1
	first, last = number(a), number(b)
	if of != "*" {
		total = number(of)
	}
	return first, last, total, ok && first <= last && (total < 0 || last < total)
}
