package fetch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

const (
	maxRedirects = 3
	maxHeader    = 64 << 10
	maxInterim   = 8
	lastWait     = time.Second // for what a server sends behind the announced end
)

// request is one question to a server. private is the part of the header that
// only the first origin may see; the user information of url is, too.
type request struct {
	method  string
	url     *url.URL
	private http.Header
	header  http.Header
	body    []byte
}

// ask sends r and follows redirects: three at most, of GET only, to https only,
// each on a connection of its own to an address checked anew.
func (c *Config) ask(ctx context.Context, r request) (*reply, error) {
	at, private := r.url, true
	for hop := 0; ; hop++ {
		private = private && origin(at) == origin(r.url)
		rep, err := c.exchange(ctx, r, at, private)
		if err != nil {
			return nil, err
		}
		if !rep.redirects() || r.method != http.MethodGet {
			return rep, nil
		}
		location := rep.Header.Get("Location")
		rep.Close()
		if hop == maxRedirects {
			return nil, refuse("there are more than %d redirects", maxRedirects).
				WithHint("use the URL where the object really is")
		}
		to, err := at.Parse(location)
		if err != nil || location == "" {
			return nil, fail(errs.Unavailable, "%s redirects to something that is no URL", at.Host)
		}
		if to.Scheme != "https" {
			return nil, refuse("%s redirects to an address that begins with %q, and redirects are followed to https only", at.Host, to.Scheme+":").
				WithHint("use the https URL where the object really is")
		}
		if to, err = parseURL(to.String()); err != nil {
			return nil, fail(errs.Unavailable, "%s redirects to something that is no URL", at.Host)
		}
		to.User = nil
		at = to
	}
}

// origin is what credentials belong to.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	return u.Scheme + "://" + strings.ToLower(u.Hostname()) + ":" + port
}

// reply is one answer on a connection of its own. Its Read counts how long the
// server is waited for; it fails with errStalled when that is too slow.
type reply struct {
	*http.Response
	from  string
	conn  net.Conn
	buf   *bufio.Reader
	close func()

	stall  time.Duration
	enough int64         // bytes within stall
	waited time.Duration // since enough bytes had come
	got    int64
}

func (r *reply) redirects() bool {
	switch r.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return true
	}
	return false
}

// Close ends the connection, which serves nothing else.
func (r *reply) Close() { r.close() }

// errStalled is a server that is too slow.
var errStalled = errors.New("stalled")

// Read reads the body.
func (r *reply) Read(p []byte) (int, error) {
	start := time.Now()
	if err := r.conn.SetReadDeadline(start.Add(r.stall - r.waited)); err != nil {
		return 0, err
	}
	n, err := r.Body.Read(p)
	r.waited += time.Since(start)
	r.got += int64(n)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return n, errStalled
	case r.got >= r.enough:
		r.waited, r.got = 0, 0
	case err == nil && r.waited >= r.stall:
		return n, errStalled
	}
	return n, err
}

// more reports whether the server sends anything behind the end of the body. A
// server that neither ends nor sends is left alone after a moment.
func (r *reply) more() bool {
	if err := r.conn.SetReadDeadline(time.Now().Add(lastWait)); err != nil {
		return false
	}
	b, _ := r.buf.Peek(1)
	return len(b) > 0
}

// exchange sends r to at on a new connection and reads the answer's header.
func (c *Config) exchange(ctx context.Context, r request, at *url.URL, private bool) (*reply, error) {
	head, cancel := context.WithTimeout(ctx, c.Stall)
	defer cancel()
	conn, raw, err := c.connect(head, at)
	if err != nil {
		return nil, c.late(ctx, head, at, err)
	}
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	rep := &reply{from: at.Host, conn: conn, stall: c.Stall, enough: int64(c.Stall.Seconds() * float64(c.MinRate)),
		close: func() { stop(); raw.Close() }}
	if err := rep.start(head, r, at, private); err != nil {
		rep.Close()
		return nil, c.late(ctx, head, at, err)
	}
	return rep, nil
}

// late tells a wait that was cut short from one that took too long.
func (c *Config) late(ctx, head context.Context, at *url.URL, err error) error {
	if d, ok := ctx.Deadline(); ok && !time.Now().Before(d) {
		return fail(errs.Cancelled, "cancelled: %w", context.DeadlineExceeded)
	}
	switch {
	case ctx.Err() != nil:
		return fail(errs.Cancelled, "cancelled: %w", context.Cause(ctx))
	case head.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
		return fail(errs.Unavailable, "%s gave no answer within %v", at.Host, c.Stall)
	}
	return err
}

// start sends the request and reads the header of the answer, which has
// maxHeader bytes at most, interim answers included.
func (r *reply) start(head context.Context, q request, at *url.URL, private bool) error {
	deadline, _ := head.Deadline()
	if err := r.conn.SetDeadline(deadline); err != nil {
		return err
	}
	req := q.to(at, private)
	if err := req.Write(r.conn); err != nil {
		return fail(errs.Unavailable, "%s broke the connection: %w", at.Host, err)
	}
	limited := &io.LimitedReader{R: r.conn, N: maxHeader}
	r.buf = bufio.NewReaderSize(limited, 32<<10)
	for range maxInterim {
		rep, err := http.ReadResponse(r.buf, req)
		switch {
		case err != nil && limited.N <= 0:
			return fail(errs.Unavailable, "%s answers with a header of more than %d bytes", at.Host, maxHeader)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return err
		case err != nil:
			return fail(errs.Unavailable, "%s gives no answer in HTTP: %w", at.Host, err)
		}
		if rep.StatusCode >= 200 {
			limited.N = math.MaxInt64
			r.Response = rep
			return r.conn.SetDeadline(time.Time{})
		}
	}
	return fail(errs.Unavailable, "%s answers without end that an answer is coming", at.Host)
}

// to is q as it goes to at.
func (q request) to(at *url.URL, private bool) *http.Request {
	req := &http.Request{Method: q.method, URL: at, Host: at.Host, Close: true,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}}
	req.Header.Set("User-Agent", "tarn")
	req.Header.Set("Accept-Encoding", "identity")
	for k, v := range q.header {
		req.Header[k] = v
	}
	if private {
		for k, v := range q.private {
			req.Header[k] = v
		}
		if u := q.url.User; u != nil {
			password, _ := u.Password()
			req.SetBasicAuth(u.Username(), password)
		}
	}
	if q.body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(q.body)), int64(len(q.body))
	}
	return req
}

// status is the error of an answer that is not the object. What the server
// says in words is left out: it may say anything.
func (r *reply) status() error {
	switch code := r.StatusCode; code {
	case http.StatusUnauthorized:
		return fail(errs.Invalid, "%s wants other credentials than it was given (status 401)", r.from).
			WithHint("check the user, password or token")
	case http.StatusForbidden:
		return fail(errs.Invalid, "%s forbids access with these credentials (status 403)", r.from)
	case http.StatusNotFound, http.StatusGone:
		return fail(errs.NotFound, "%s does not have it (status %d)", r.from, code)
	default:
		return fail(errs.Unavailable, "%s answers with status %d instead of the object", r.from, code)
	}
}
