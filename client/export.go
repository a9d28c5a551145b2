package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// export is a call that writes bytes: "disks" or "images", and one of them.
type export struct {
	op   string // of errors
	noun string
	ref  string
	api.Export
}

func (x export) request() request {
	q := set(nil, "format", x.Format)
	q = set(q, "compression", x.Compression)
	q = set(q, "type", x.Type)
	return request{method: http.MethodPost, path: []string{x.noun, x.ref, "export"}, query: q, header: http.Header{}}
}

// DiskExport writes a disk into f, a regular file opened for writing, and
// calls progress, which may be nil. Over the unix socket the daemon writes
// through f's descriptor and keeps holes; over TCP the bytes are streamed. The
// caller syncs f.
func (c *Client) DiskExport(ctx context.Context, ref string, x api.Export, f *os.File, progress func(api.Progress)) error {
	return c.exportFile(ctx, export{"disk.export", "disks", ref, x}, f, progress)
}

// DiskExportStream writes a disk's bytes to w. An error after the first byte
// means that what w got is not the disk.
func (c *Client) DiskExportStream(ctx context.Context, ref string, x api.Export, w io.Writer) error {
	return c.exportStream(ctx, export{"disk.export", "disks", ref, x}, w)
}

// ImageExport writes an image's content into f, as DiskExport does.
func (c *Client) ImageExport(ctx context.Context, ref string, x api.Export, f *os.File, progress func(api.Progress)) error {
	return c.exportFile(ctx, export{"image.export", "images", ref, x}, f, progress)
}

// ImageExportStream writes an image's content to w, as DiskExportStream does.
func (c *Client) ImageExportStream(ctx context.Context, ref string, x api.Export, w io.Writer) error {
	return c.exportStream(ctx, export{"image.export", "images", ref, x}, w)
}

func (c *Client) exportFile(ctx context.Context, x export, f *os.File, progress func(api.Progress)) error {
	if !c.unix {
		return c.exportStream(ctx, x, f)
	}
	r := x.request()
	r.header.Set(api.DescriptorHeader, "1")
	h := c.transfer(f)
	defer h.CloseIdleConnections()
	resp, err := c.send(ctx, h, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(bufio.NewReader(resp.Body))
	for {
		var s api.ExportStatus
		if err := lines.Decode(&s); err != nil {
			return transportError(err)
		}
		if progress != nil {
			progress(s.Progress)
		}
		if s.Done || s.Error != nil {
			return s.Error.Err()
		}
	}
}

func (c *Client) exportStream(ctx context.Context, x export, w io.Writer) error {
	r := x.request()
	r.header.Set("TE", "trailers")
	h := c.transfer(nil)
	defer h.CloseIdleConnections()
	resp, err := c.send(ctx, h, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sink := &writer{w: w}
	if _, err := io.Copy(sink, resp.Body); err != nil {
		if sink.err != nil {
			return errs.New(errs.KindOf(sink.err), x.op, x.ref, "the bytes cannot be written: %w", sink.err)
		}
		return transportError(err)
	}
	if text := resp.Trailer.Get(api.ErrorTrailer); text != "" {
		var body api.ErrorBody
		if err := json.Unmarshal([]byte(text), &body); err != nil {
			return errs.New(errs.Internal, x.op, x.ref, "the export broke off")
		}
		return body.Error.Err()
	}
	return nil
}

// writer tells a failure to write from a failure to read.
type writer struct {
	w   io.Writer
	err error
}

func (s *writer) Write(b []byte) (int, error) {
	n, err := s.w.Write(b)
	s.err = err
	return n, err
}
