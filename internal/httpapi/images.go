package httpapi

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// Bytes marks a call whose body is bytes or a descriptor. The body is not
// read by the framework.
type Bytes struct {
	Descriptor string `header:"Tarn-Descriptor" enum:"1" doc:"The image is the descriptor that came with the first byte (unix socket only)."`
	Details    int64  `header:"Tarn-Details" minimum:"0" maximum:"2097152" doc:"How many bytes of JSON, of the schema ImageDetails, are before the image's."`

	r *http.Request
	w http.ResponseWriter
}

// Resolve keeps the request, whose body the engine reads.
func (b *Bytes) Resolve(ctx huma.Context) []error {
	b.r, b.w = humago.Unwrap(ctx)
	return nil
}

// details reads what stands before the image's bytes.
func (b *Bytes) details(s *Server) (d api.ImageDetails, err error) {
	if b.Details == 0 {
		return d, nil
	}
	control := http.NewResponseController(b.w)
	_ = control.SetReadDeadline(s.clock().Add(bodyTimeout))
	text := make([]byte, b.Details)
	if _, err := io.ReadFull(b.r.Body, text); err != nil {
		return d, errs.New(errs.Invalid, "api.details", "", "the body ends within its details: %w", err)
	}
	_ = control.SetReadDeadline(time.Time{})
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&d); err != nil {
		return d, errs.New(errs.Invalid, "api.details", "", "the details cannot be read: %w", err)
	}
	return d, nil
}

// source returns what the engine reads. A source of a descriptor has File set,
// which the caller of source closes.
func (b *Bytes) source(s *Server, name string) (ingest.Source, error) {
	if b.Descriptor == "" {
		b.w.Header().Set("Connection", "close") // its deadlines are the upload's alone
		size := b.r.ContentLength
		if size >= 0 {
			size -= b.Details
		}
		return ingest.Source{Stream: s.upload(b), Size: size, Name: name}, nil
	}
	f, err := takeDescriptor(b.r.Context())
	if err != nil {
		return ingest.Source{}, err
	}
	size := int64(-1)
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
		size = fi.Size()
	}
	return ingest.Source{File: f, Size: size, Name: name}, nil
}

// upload is a body of any length that must make progress.
func (s *Server) upload(b *Bytes) io.Reader {
	return &upload{body: b.r.Body, control: http.NewResponseController(b.w), clock: s.clock, count: s.metrics.imported}
}

type upload struct {
	body    io.Reader
	control *http.ResponseController
	clock   func() time.Time
	count   func(int64)
}

// Read reads as an io.Reader does. Behind the end of the body nothing is
// expected any more, so no deadline may end the call then.
func (u *upload) Read(p []byte) (int, error) {
	_ = u.control.SetReadDeadline(u.clock().Add(uploadTimeout))
	n, err := u.body.Read(p)
	u.count(int64(n))
	if err != nil {
		_ = u.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// Claimed are the parameters that say what an image's bytes are.
type Claimed struct {
	Format         string `query:"format" doc:"The format the bytes are in; it is never guessed. Only Glance's record can say it instead."`
	Compression    string `query:"compression" enum:"none,gzip,xz,zstd,bzip2" doc:"What the bytes are wrapped in; it is never guessed."`
	SHA256         string `query:"sha256" doc:"What the bytes' SHA-256 must be."`
	SHA512         string `query:"sha512" doc:"What the bytes' SHA-512 must be."`
	MaxVirtualSize int64  `query:"max_virtual_size" minimum:"0" doc:"Refuse an image that is larger, in bytes; 0 is 64 TiB."`
	Source         string `query:"source" doc:"What the user called the source, for messages."`
}

// more returns the details, of which the query may have some.
func (c *Claimed) more(s *Server, b *Bytes) (api.ImageDetails, error) {
	d, err := b.details(s)
	d.Compression, d.SHA512 = cmp.Or(c.Compression, d.Compression), cmp.Or(c.SHA512, d.SHA512)
	d.MaxVirtualSize = cmp.Or(c.MaxVirtualSize, d.MaxVirtualSize)
	return d, err
}

// open returns the details and what the engine reads, which is empty when it
// fetches the bytes.
func (c *Claimed) open(s *Server, b *Bytes) (api.ImageDetails, ingest.Source, error) {
	d, err := c.more(s, b)
	if err != nil || d.URL != "" {
		return d, ingest.Source{}, err
	}
	src, err := b.source(s, c.Source)
	return d, src, err
}

type imageImport struct {
	Change
	Bytes
	Claimed
	Name    string `query:"name" required:"true" doc:"The new image's name."`
	MinDisk int64  `query:"min_disk" minimum:"0" doc:"Smallest root disk in bytes."`
	Pool    string `query:"pool" doc:"Where the first base goes."`

	IfAbsent bool `query:"if_absent" doc:"An image of that name, imported with the same claims, is as good."`
}

type imageInspect struct {
	Bytes
	Claimed
}

// byteBody declares a body of bytes.
func byteBody(op *huma.Operation) {
	op.RequestBody = &huma.RequestBody{
		Description: "The image's bytes; empty when a descriptor comes instead, or the details have a URL. Details, if any, are before them.",
		Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
		},
	}
}

func (s *Server) routeImages() {
	e := s.engine
	query(s, call("image-list", "GET", "/v1/images", "List images"),
		func(ctx context.Context, in *Paging) (api.List[api.Image], error) { return e.Images(ctx, in.page()) })
	query(s, call("image-show", "GET", "/v1/images/{ref}", "Show an image"),
		func(ctx context.Context, in *Ref) (api.Image, error) { return e.Image(ctx, in.Ref) })
	change(s, call("image-import", "POST", "/v1/images", "Import an image from the body or a descriptor", byteBody), s.imageImport)
	query(s, call("image-inspect", "POST", "/v1/images/inspect", "Say what the gate thinks of the body", byteBody),
		func(ctx context.Context, in *imageInspect) (api.Verdict, error) {
			d, src, err := in.open(s, &in.Bytes)
			if err != nil {
				return api.Verdict{}, err
			}
			defer closeFile(src.File)
			return e.ImageInspect(ctx, api.ImageInspect{Format: in.Format, SHA256: in.SHA256, Source: in.Source, ImageDetails: d}, src)
		})
	change(s, call("image-rename", "PATCH", "/v1/images/{ref}", "Rename an image"),
		func(ctx context.Context, o api.Options, in *changeRefBody[api.Rename]) (api.Outcome, error) {
			return e.ImageRename(ctx, o, in.Ref.Ref, in.Body.Name)
		})
	change(s, call("image-delete", "DELETE", "/v1/images/{ref}", "Delete an image; referenced bases stay"),
		func(ctx context.Context, o api.Options, in *changeRef) (api.Outcome, error) {
			return e.ImageDelete(ctx, o, in.Ref.Ref)
		})
	s.routeExport("image-export", "/v1/images/{ref}/export", "Write an image's content to the answer or into a descriptor",
		func(ctx context.Context, ref string, x api.Export, to engine.Sink, progress func(done, total int64)) error {
			return e.ImageExport(ctx, ref, x, to, progress)
		})
}

// imageImport starts an import. One from a descriptor or a URL goes on behind
// the answer; a stream ends with the request, so its answer waits for the
// operation, whatever wait says.
func (s *Server) imageImport(ctx context.Context, o api.Options, in *imageImport) (api.Outcome, error) {
	d, src, err := in.open(s, &in.Bytes)
	if err != nil {
		return api.Outcome{}, err
	}
	out, err := s.engine.ImageImport(ctx, o, api.ImageImport{
		Name: in.Name, Format: in.Format, SHA256: in.SHA256, MinDisk: in.MinDisk, Pool: in.Pool, Source: in.Source, ImageDetails: d, IfAbsent: in.IfAbsent,
	}, src)
	if err != nil || d.URL != "" || out.Operation == nil || out.Operation.Final() {
		closeFile(src.File)
		return out, err
	}
	id := out.Operation.ID
	if src.File != nil {
		go func() {
			defer closeFile(src.File)
			if op, err := s.untilFinal(context.WithoutCancel(ctx), id); err == nil && op.State == "done" {
				s.metrics.imported(max(src.Size, 0))
			}
		}()
		return out, nil
	}
	op, err := s.untilFinal(ctx, id)
	if err != nil {
		return api.Outcome{}, err
	}
	return api.Outcome{Operation: &op}, nil
}

// untilFinal waits for the end of an operation, of ctx or of the server.
func (s *Server) untilFinal(ctx context.Context, id string) (api.Operation, error) {
	ctx, cancel := s.untilStop(ctx)
	defer cancel()
	for {
		op, err := s.engine.OperationWait(ctx, id, maxWait)
		if err != nil || op.Final() {
			return op, err
		}
		if ctx.Err() != nil {
			return op, errs.New(errs.Unavailable, "image.import", id, "the daemon is stopping")
		}
	}
}

func closeFile(f *os.File) {
	if f != nil {
		_ = f.Close() // opened for reading by another process: nothing to lose
	}
}
