package httpapi

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// observe measures every request, writes one audit line for each that may
// change something, and turns a panic into an error of one request.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := s.clock()
		rec := &recorder{ResponseWriter: w, control: http.NewResponseController(w), clock: s.clock}
		defer func() {
			p := recover()
			if p != nil && p != any(http.ErrAbortHandler) && r.Context().Err() == nil {
				s.log.Error("panic", "path", r.URL.Path, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				if rec.status == 0 {
					writeFailure(rec, fail(errs.New(errs.Internal, "api.request", r.URL.Path, "the daemon failed; its log says more")))
					p = nil
				}
			}
			s.observed(r, rec, s.clock().Sub(start))
			if p != nil {
				panic(http.ErrAbortHandler)
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

func (s *Server) observed(r *http.Request, rec *recorder, took time.Duration) {
	route := r.Pattern
	if route == "" {
		route = "none"
	}
	s.metrics.request(route, rec.code(), took)
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return
	}
	attrs := []slog.Attr{
		slog.String("method", r.Method), slog.String("path", r.URL.EscapedPath()), slog.String("route", route),
		slog.Int("status", rec.code()), slog.Duration("took", took),
	}
	if q := r.URL.RawQuery; q != "" {
		attrs = append(attrs, slog.String("query", q))
	}
	if id := r.Header.Get(api.RequestIDHeader); id != "" {
		attrs = append(attrs, slog.String("request_id", id))
	}
	if id := rec.Header().Get(api.OperationHeader); id != "" {
		attrs = append(attrs, slog.String("operation", id))
	}
	s.log.LogAttrs(r.Context(), slog.LevelInfo, "call", append(attrs, caller(r))...)
}

// caller says who called: the peer's credentials, or its certificate's name.
func caller(r *http.Request) slog.Attr {
	if c := connOf(r.Context()); c != nil {
		return slog.Group("peer", "pid", c.peer.PID, "uid", c.peer.UID, "gid", c.peer.GID)
	}
	subject := ""
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		subject = r.TLS.PeerCertificates[0].Subject.String()
	}
	return slog.Group("peer", "address", r.RemoteAddr, "subject", subject)
}

// recorder remembers the status and gives each write its own deadline, so that
// an answer may be long but a client that does not read it is cut off.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	clock   func() time.Time
	status  int
	began   time.Time // the deadline's minute
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader notes the status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.extend()
	r.ResponseWriter.WriteHeader(status)
}

// Write writes with a fresh deadline.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	r.extend()
	return r.ResponseWriter.Write(b)
}

// extend sets the deadline of the next write, to the second.
func (r *recorder) extend() {
	now := r.clock()
	if now.Sub(r.began) < time.Second {
		return
	}
	r.began = now
	if err := r.control.SetWriteDeadline(now.Add(writeTimeout)); err != nil && !errors.Is(err, http.ErrNotSupported) {
		panic(http.ErrAbortHandler) // the connection is closed
	}
}

func (r *recorder) code() int {
	if r.status == 0 {
		return http.StatusOK
	}
	return r.status
}
