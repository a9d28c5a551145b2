package httpapi

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
)

// export is the request of an export.
type export struct {
	Ref
	Bytes
	Format      string `query:"format" required:"true" doc:"The format to write: raw, qcow2, vmdk, vhd, vhdx or vdi."`
	Compression string `query:"compression" doc:"zlib or zstd, of qcow2, which then needs a descriptor; by default it is not compressed."`
	Type        string `query:"type" doc:"Of vhd: dynamic, the default, or fixed."`
}

// exporter is the part of the engine that an export calls.
type exporter func(ctx context.Context, ref string, x api.Export, s engine.Sink, progress func(done, total int64)) error

func (x exporter) run(r *http.Request, in *export, s engine.Sink, progress func(done, total int64)) error {
	return x(r.Context(), in.Ref.Ref, api.Export{Format: in.Format, Compression: in.Compression, Type: in.Type}, s, progress)
}

func (s *Server) routeExport(id, path, summary string, x exporter) {
	op := call(id, "POST", path, summary)
	op.Description = "Without a descriptor the answer is the bytes; an export that fails half-way breaks the connection, " +
		"unless the request said \"TE: trailers\": then the trailer " + api.ErrorTrailer + " holds the error. " +
		"With a descriptor of a regular file the answer is lines of JSON, one status each, the last with done or error set."
	op.Responses = map[string]*huma.Response{"200": {
		Description: "The bytes, or the lines",
		Content: map[string]*huma.MediaType{
			"application/octet-stream": {Schema: &huma.Schema{Type: huma.TypeString, Format: "binary"}},
			"application/x-ndjson":     {Schema: s.api.OpenAPI().Components.Schemas.Schema(typeOf[api.ExportStatus](), true, "")},
		},
	}}
	huma.Register(s.api, op, func(_ context.Context, in *export) (*huma.StreamResponse, error) {
		return &huma.StreamResponse{Body: func(ctx huma.Context) {
			r, w := humago.Unwrap(ctx)
			if in.Descriptor == "" {
				s.exportStream(w, r, in, x)
			} else {
				s.exportFile(w, r, in, x)
			}
		}}, nil
	})
}

// exportStream answers with the bytes.
func (s *Server) exportStream(w http.ResponseWriter, r *http.Request, in *export, x exporter) {
	trailers := r.Header.Get("TE") == "trailers"
	w.Header().Set("Content-Type", "application/octet-stream")
	if trailers {
		w.Header().Set("Trailer", api.ErrorTrailer)
	}
	body := &countingWriter{w: w}
	err := x.run(r, in, engine.Sink{Stream: body}, func(int64, int64) {})
	switch {
	case err == nil:
	case body.n == 0:
		w.Header().Del("Trailer")
		writeFailure(w, fail(err))
	case trailers:
		text, _ := json.Marshal(fail(err).ErrorBody) // strings only: cannot fail
		w.Header().Set(api.ErrorTrailer, string(text))
	default:
		panic(http.ErrAbortHandler) // a short body must not look whole
	}
}

// countingWriter knows whether the answer has begun.
type countingWriter struct {
	w http.ResponseWriter
	n int64
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// exportFile writes into the descriptor that came with the request
// and answers with lines of progress.
func (s *Server) exportFile(w http.ResponseWriter, r *http.Request, in *export, x exporter) {
	f, err := takeDescriptor(r.Context())
	if err != nil {
		writeFailure(w, fail(err))
		return
	}
	defer f.Close() // the caller syncs: the file is his
	if err := checkSink(f); err != nil {
		writeFailure(w, fail(err))
		return
	}
	lines := &lines{w: w, start: s.clock(), clock: s.clock}
	err = x.run(r, in, engine.Sink{File: f}, lines.progress)
	_ = f.Close() // before the caller is told, who may unmount what the file lies on
	switch {
	case err == nil:
		lines.write(api.ExportStatus{Progress: lines.last, Done: true})
	case !lines.begun:
		writeFailure(w, fail(err))
	default:
		e := fail(err).ErrorBody.Error
		lines.write(api.ExportStatus{Progress: lines.last, Error: &e})
	}
}

func checkSink(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		return errs.Wrap(err, "export", f.Name())
	}
	if !fi.Mode().IsRegular() {
		return errs.New(errs.Unsafe, "export", "", "the descriptor to write into is no regular file").WithClass("NOT_REGULAR")
	}
	return nil
}

// lines answers with JSON lines, at most about five a second.
type lines struct {
	w     http.ResponseWriter
	clock func() time.Time
	start time.Time
	shown time.Time
	last  api.Progress
	begun bool
}

func (l *lines) progress(done, total int64) {
	now := l.clock()
	l.last = api.Progress{Done: done, Total: total, Unit: "bytes"}
	if d := now.Sub(l.start).Seconds(); d > 0 {
		l.last.Rate = int64(float64(done) / d)
	}
	if l.last.Rate > 0 {
		l.last.ETASeconds = (total - done) / l.last.Rate
	}
	if now.Sub(l.shown) < 200*time.Millisecond {
		return
	}
	l.shown = now
	l.write(api.ExportStatus{Progress: l.last})
}

func (l *lines) write(s api.ExportStatus) {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", "application/x-ndjson")
	}
	_ = json.NewEncoder(l.w).Encode(s) // a caller who is gone ends the request's context
	_ = http.NewResponseController(l.w).Flush()
}
