package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// Source is where an image's bytes come from: File, a regular file opened for
// reading, which is passed to the daemon as a descriptor over the unix socket
// and streamed otherwise; or Stream, of Size bytes or -1 for unknown.
type Source struct {
	File   *os.File
	Stream io.Reader
	Size   int64
}

// transfer returns an HTTP client for one upload or download on a connection
// of its own. With f its first byte carries f's descriptor.
func (c *Client) transfer(f *os.File) *http.Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := c.dial(ctx)
		if err != nil {
			return nil, err
		}
		u, ok := conn.(*net.UnixConn)
		switch {
		case f == nil && ok:
			return &listening{UnixConn: u}, nil
		case f == nil:
			return conn, nil
		case !ok:
			_ = conn.Close()
			return nil, errs.New(errs.Internal, "client.request", "", "descriptors need a unix socket")
		}
		return &passing{UnixConn: u, file: f}, nil
	}
	return &http.Client{Transport: &http.Transport{
		DialContext: dial, DialTLSContext: dial, DisableKeepAlives: true, ExpectContinueTimeout: time.Minute,
	}}
}

// listening is a connection whose peer may answer and hang up before it has read
// all: what it no longer reads is dropped, so that its answer is what counts and
// not that writing failed. Without an answer reading fails.
type listening struct{ *net.UnixConn }

// Write writes as a net.Conn does.
func (l *listening) Write(b []byte) (int, error) {
	n, err := l.UnixConn.Write(b)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return len(b), nil
	}
	return n, err
}

// passing is a connection whose first write carries a descriptor.
type passing struct {
	*net.UnixConn
	once sync.Once
	file *os.File
}

// Write writes as a net.Conn does.
func (p *passing) Write(b []byte) (n int, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	p.once.Do(func() { n, err = p.writeFirst(b) })
	if err != nil || n == len(b) {
		return n, err
	}
	m, err := p.UnixConn.Write(b[n:])
	return n + m, err
}

func (p *passing) writeFirst(b []byte) (n int, err error) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	ctlErr := raw.Control(func(fd uintptr) {
		n, _, err = p.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	})
	if ctlErr != nil {
		return 0, ctlErr
	}
	return n, err
}

// upload performs r with details and the bytes of src behind them.
func upload[T any](ctx context.Context, c *Client, r request, details []byte, src Source) (T, error) {
	h, r, err := c.attachSource(r, details, src)
	if err != nil {
		var zero T
		return zero, err
	}
	defer h.CloseIdleConnections()
	resp, err := c.send(ctx, h, r)
	if err != nil {
		var zero T
		return zero, err
	}
	defer resp.Body.Close()
	return decode[T](resp.Body)
}

func (c *Client) attachSource(r request, details []byte, src Source) (*http.Client, request, error) {
	if src.File != nil && c.unix {
		r.header.Set(api.DescriptorHeader, "1")
		if details != nil {
			r.stream, r.size = bytes.NewReader(details), int64(len(details))
		}
		return c.transfer(src.File), r, nil
	}
	stream, size := src.Stream, src.Size
	switch {
	case src.File != nil:
		fi, err := src.File.Stat()
		if err != nil {
			return nil, r, errs.Wrap(err, "image.import", src.File.Name())
		}
		stream, size = io.NewSectionReader(src.File, 0, fi.Size()), fi.Size()
	case stream == nil: // the daemon fetches the bytes
		stream, size = http.NoBody, 0
	}
	if r.stream, r.size = io.MultiReader(bytes.NewReader(details), stream), size; size >= 0 {
		r.size += int64(len(details))
	}
	return c.transfer(nil), r, nil
}

// imageRequest is a request about an image's bytes. What does not fit a URL, or
// may be secret, goes before the bytes.
func imageRequest(path []string, q url.Values, d api.ImageDetails) (request, []byte, error) {
	q = set(q, "compression", d.Compression)
	q = set(q, "sha512", d.SHA512)
	if d.MaxVirtualSize != 0 {
		q = set(q, "max_virtual_size", strconv.FormatInt(d.MaxVirtualSize, 10))
	}
	d.Compression, d.SHA512, d.MaxVirtualSize = "", "", 0
	r := request{method: http.MethodPost, path: path, query: q, header: http.Header{}}
	text, err := json.Marshal(d)
	if err != nil || string(text) == "{}" {
		return r, nil, errs.Wrap(err, "client.request", "")
	}
	r.header.Set(api.DetailsHeader, strconv.Itoa(len(text)))
	return r, text, nil
}

// ImageImport imports an image. From a File over the unix socket, or from a URL,
// it returns while the operation goes on; from a stream it returns at its end.
func (c *Client) ImageImport(ctx context.Context, o api.Options, i api.ImageImport, src Source) (api.Outcome, error) {
	q := set(nil, "name", i.Name)
	q = set(q, "format", i.Format)
	q = set(q, "sha256", i.SHA256)
	q = set(q, "pool", i.Pool)
	q = set(q, "source", i.Source)
	if i.IfAbsent {
		q = set(q, "if_absent", "true")
	}
	if i.MinDisk != 0 {
		q = set(q, "min_disk", strconv.FormatInt(i.MinDisk, 10))
	}
	r, details, err := imageRequest([]string{"images"}, q, i.ImageDetails)
	if err != nil {
		return api.Outcome{}, err
	}
	return upload[api.Outcome](ctx, c, r.with(o), details, src)
}

// ImageInspect asks what the gate says of bytes.
func (c *Client) ImageInspect(ctx context.Context, i api.ImageInspect, src Source) (api.Verdict, error) {
	q := set(nil, "format", i.Format)
	q = set(q, "sha256", i.SHA256)
	q = set(q, "source", i.Source)
	r, details, err := imageRequest([]string{"images", "inspect"}, q, i.ImageDetails)
	if err != nil {
		return api.Verdict{}, err
	}
	return upload[api.Verdict](ctx, c, r, details, src)
}
