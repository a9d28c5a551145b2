// Package httpapi serves the engine as a versioned JSON API over HTTP, with
// its OpenAPI description, events and metrics. It decodes, calls the engine
// and encodes; it refuses to decide anything, and it opens no path that a
// caller names: files come as descriptors or as streams.
package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// Limits of requests. Uploads have no size limit: the engine reserves their
// space before it reads them.
const (
	maxBody        = 1 << 20
	maxConfigDrive = 96 << 20 // 64 MiB of files as base64, with room for names
	maxHeader      = 64 << 10
	headerTimeout  = 10 * time.Second
	bodyTimeout    = 30 * time.Second
	driveTimeout   = 5 * time.Minute // a config drive's body
	idleTimeout    = 2 * time.Minute
	writeTimeout   = time.Minute      // of one write that makes no progress
	uploadTimeout  = 10 * time.Minute // of one read that makes no progress
	maxWait        = time.Hour
)

// Config is what a Server needs.
type Config struct {
	Engine Engine
	Log    *slog.Logger
	Clock  func() time.Time
}

// Server is the API on one engine.
type Server struct {
	engine  Engine
	log     *slog.Logger
	clock   func() time.Time
	api     huma.API
	mux     *routes
	metrics *metrics
	http    *http.Server

	serving context.Context // ends when streams and long polls must end
	stop    context.CancelFunc
}

// unmarshalText is json.Unmarshal that refuses what is not UTF-8, which JSON has
// to be: decoded, a name would be another name.
func unmarshalText(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errors.New("the body is not valid UTF-8")
	}
	return json.Unmarshal(data, v)
}

// New returns a Server that is not serving yet.
func New(c Config) (*Server, error) {
	s := &Server{engine: c.Engine, log: c.Log, clock: c.Clock, mux: &routes{ServeMux: http.NewServeMux()}}
	s.serving, s.stop = context.WithCancel(context.Background())
	s.metrics = newMetrics(c.Engine, c.Log)
	s.api = humago.New(s.mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:       "tarn",
				Version:     "1",
				Description: "Disks of virtual machines in storage pools. Sizes are bytes, times RFC 3339 in UTC. Fields are only ever added.",
			},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)},
		},
		Formats:                      map[string]huma.Format{"application/json": {Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshalText}},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	})
	s.routePools()
	s.routeImages()
	s.routeCache()
	s.routeInstances()
	s.routeDisks()
	s.routeOperations()
	s.routeSystem()
	if err := s.routeDescription(); err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	s.http = &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		Protocols:         protocols,
	}
	return s, nil
}

// routes is a mux that knows what it serves.
type routes struct {
	*http.ServeMux
	patterns []string
}

// HandleFunc registers as a ServeMux does.
func (r *routes) HandleFunc(pattern string, f func(http.ResponseWriter, *http.Request)) {
	r.patterns = append(r.patterns, pattern)
	r.ServeMux.HandleFunc(pattern, f)
}

// Handler returns the whole API.
func (s *Server) Handler() http.Handler {
	return s.observe(guardDescriptor(http.HandlerFunc(s.route)))
}

// Serve answers on l until Shutdown; it returns nil then. A unix socket's
// listener should be a Listener, a TCP one must speak TLS.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// Shutdown ends streams and long polls, lets other calls finish until ctx
// ends, and cuts what is left then.
func (s *Server) Shutdown(ctx context.Context) {
	s.stop()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
}

// untilStop returns a context that also ends at Shutdown.
func (s *Server) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	forget := context.AfterFunc(s.serving, cancel)
	return ctx, func() {
		forget()
		cancel()
	}
}

// route gives unknown paths and methods the one shape of errors.
func (s *Server) route(w http.ResponseWriter, r *http.Request) {
	h, pattern := s.mux.Handler(r)
	if pattern != "" {
		s.mux.ServeHTTP(w, r)
		return
	}
	lost := &lostResponse{header: http.Header{}}
	h.ServeHTTP(lost, r)
	if lost.status == http.StatusMethodNotAllowed {
		allow := lost.header.Get("Allow")
		w.Header().Set("Allow", allow)
		f := fail(errs.New(errs.Invalid, "api.request", r.URL.Path, "the method %s is not allowed here", r.Method).
			WithHint("allowed: %s", allow))
		f.status = http.StatusMethodNotAllowed
		writeFailure(w, f)
		return
	}
	writeFailure(w, fail(errs.New(errs.NotFound, "api.request", r.URL.Path, "the API has no such path").
		WithHint("GET /v1/openapi.json lists all")))
}

// lostResponse learns what the mux would answer, without its text.
type lostResponse struct {
	header http.Header
	status int
}

func (l *lostResponse) Header() http.Header         { return l.header }
func (l *lostResponse) WriteHeader(status int)      { l.status = status }
func (l *lostResponse) Write(b []byte) (int, error) { return len(b), nil }

func writeFailure(w http.ResponseWriter, f *Failure) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	_ = json.NewEncoder(w).Encode(f.ErrorBody) // the client may be gone; nothing is left to tell it
}

// routeDescription serves the OpenAPI description of all routes before it.
func (s *Server) routeDescription() error {
	text, err := describe(s)
	if err != nil {
		return err
	}
	s.mux.HandleFunc("GET /v1/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(text)
	})
	return nil
}

// page makes an engine's page of a request's parameters.
func (p Paging) page() api.Page { return api.Page{After: p.After, Limit: p.Limit} }
