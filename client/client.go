// Package client speaks tarn's HTTP API, over the daemon's unix socket or over
// TCP with mutual TLS. Its methods mirror the API's calls and return *errs.Error
// as the daemon made it. It refuses to retry, to cache and to start a daemon.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// maxAnswer bounds the JSON of one answer.
const maxAnswer = 256 << 20

// Client calls one daemon. It is safe for concurrent use.
type Client struct {
	dial func(context.Context) (net.Conn, error)
	base string // of every URL
	http *http.Client
	unix bool
}

// New returns a Client that finds the daemon's unix socket with s. Nothing is
// connected before the first call.
func New(s Search) *Client {
	c := &Client{dial: s.Dial, base: "http://tarn", unix: true}
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return s.Dial(ctx) },
	}}
	return c
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request describes one call.
type request struct {
	method string
	path   []string // segments below /v1, escaped here
	query  url.Values
	header http.Header
	body   any       // sent as JSON
	stream io.Reader // sent as it is; nil when body is set
	size   int64     // of stream, -1 unknown
}

// build makes an HTTP request of r.
func (c *Client) build(ctx context.Context, r request) (*http.Request, error) {
	u := c.base + "/v1"
	for _, s := range r.path {
		if s == "" {
			return nil, errs.New(errs.Invalid, "client.request", "", "the name of an object is empty")
		}
		if s == "." || s == ".." { // must reach the daemon, not be cleaned away
			s = strings.ReplaceAll(s, ".", "%2E")
		} else {
			s = url.PathEscape(s)
		}
		u += "/" + s
	}
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	body := r.stream
	if r.body != nil {
		if err := checkText(reflect.ValueOf(r.body)); err != nil {
			return nil, err
		}
		text, err := json.Marshal(r.body)
		if err != nil {
			return nil, errs.Wrap(err, "client.request", "")
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, body)
	if err != nil {
		return nil, errs.Wrap(err, "client.request", "")
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	} else if r.stream != nil {
		req.ContentLength = r.size
		req.Header.Set("Content-Type", "application/octet-stream")
		req.Header.Set("Expect", "100-continue") // an early refusal comes before the bytes
	}
	return req, nil
}

// send performs r with h. An answer that is no success becomes its error.
func (c *Client) send(ctx context.Context, h *http.Client, r request) (*http.Response, error) {
	req, err := c.build(ctx, r)
	if err != nil {
		return nil, err
	}
	resp, err := h.Do(req)
	if err != nil {
		return nil, transportError(err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, errorOf(resp)
}

// transportError keeps the kind of an error that never reached the daemon and
// calls the rest unavailable.
func transportError(err error) error {
	var e *errs.Error
	if errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return errs.Wrap(err, "client.request", "")
	}
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return errs.New(errs.Unavailable, "client.request", "", "the connection to the daemon broke: %w", err)
}

// errorOf rebuilds the error that an answer carries.
func errorOf(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return transportError(err)
	}
	var body api.ErrorBody
	if json.Unmarshal(text, &body) != nil || body.Error.Kind == "" {
		return errs.New(errs.Unavailable, "client.request", "", "what answers is not tarn's daemon: %s", resp.Status)
	}
	return body.Error.Err()
}

// call performs r and decodes the answer.
func call[T any](ctx context.Context, c *Client, r request) (T, error) {
	var out T
	resp, err := c.send(ctx, c.http, r)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	return decode[T](resp.Body)
}

func decode[T any](r io.Reader) (T, error) {
	var out T
	text, err := io.ReadAll(io.LimitReader(r, maxAnswer))
	if err != nil {
		return out, transportError(err)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return out, errs.New(errs.Internal, "client.request", "", "the daemon's answer cannot be read: %w", err)
	}
	return out, nil
}

// change performs a changing call.
func (c *Client) change(ctx context.Context, o api.Options, r request) (api.Outcome, error) {
	r = r.with(o)
	return call[api.Outcome](ctx, c, r)
}

// with adds the options of a changing call.
func (r request) with(o api.Options) request {
	if r.header == nil {
		r.header = http.Header{}
	}
	if o.RequestID != "" {
		r.header.Set(api.RequestIDHeader, o.RequestID)
	}
	if o.DryRun {
		r.query = set(r.query, "dry_run", "true")
	}
	if o.Wait > 0 {
		r.query = set(r.query, "wait", seconds(o.Wait))
	}
	return r
}

// set adds a parameter unless its value is empty.
func set(q url.Values, key, value string) url.Values {
	if value == "" {
		return q
	}
	if q == nil {
		q = url.Values{}
	}
	q.Set(key, value)
	return q
}

func pageQuery(p api.Page) url.Values {
	q := set(nil, "after", p.After)
	if p.Limit != 0 {
		q = set(q, "limit", strconv.Itoa(p.Limit))
	}
	return q
}

// list performs a list call.
func list[T any](ctx context.Context, c *Client, path string, p api.Page, filter ...string) (api.List[T], error) {
	q := pageQuery(p)
	for i := 0; i+1 < len(filter); i += 2 {
		q = set(q, filter[i], filter[i+1])
	}
	return call[api.List[T]](ctx, c, request{method: http.MethodGet, path: []string{path}, query: q})
}

// get performs a call that shows one object.
func get[T any](ctx context.Context, c *Client, path ...string) (T, error) {
	return call[T](ctx, c, request{method: http.MethodGet, path: path})
}

// seconds renders a time to wait, rounded up.
func seconds(d time.Duration) string {
	return fmt.Sprintf("%.0f", max(1, d.Seconds()))
}
