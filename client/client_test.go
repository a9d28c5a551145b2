package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// serve answers with h on a unix socket and returns its path.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return path
}

// open returns a client of the socket at path.
func open(t *testing.T, path string) *Client {
	t.Helper()
	c := New(Search{Socket: path})
	t.Cleanup(c.Close)
	return c
}

func TestErrorsAreRebuilt(t *testing.T) {
	for _, kind := range errs.Kinds() {
		want := errs.New(kind, "pool.show", "fast", "what was wrong").WithHint("what to do").WithClass("CLASS")
		c := open(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusTeapot) // the kind is in the body, not in the status
			json.NewEncoder(w).Encode(api.ErrorBody{Error: api.ErrorOf(want)})
		}))
		_, err := c.Pool(t.Context(), "fast")
		var got *errs.Error
		if !errors.As(err, &got) || !errors.Is(err, kind) {
			t.Errorf("%s: got %v", kind, err)
			continue
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-sent +got):\n%s", kind, diff)
		}
	}
}

func TestWhatIsNotTarn(t *testing.T) {
	for _, row := range []struct {
		name string
		h    http.HandlerFunc
		want errs.Kind
	}{
		{"another server", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "<html>", http.StatusBadGateway) }, errs.Unavailable},
		{"no JSON", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }, errs.Internal},
		{"cut off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, errs.Unavailable},
		{"half an answer", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"id":`)
		}, errs.Unavailable},
	} {
		if _, err := open(t, serve(t, row.h)).Pool(t.Context(), "x"); !errors.Is(err, row.want) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}

func TestSearch(t *testing.T) {
	here := serve(t, func(http.ResponseWriter, *http.Request) {})
	dir := t.TempDir()
	runtime := filepath.Join(dir, "run")
	if err := os.MkdirAll(filepath.Join(runtime, "tarn"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		search Search
		want   []string
	}{
		{"flag", Search{Socket: "/a", Env: "/b", RuntimeDir: "/c"}, []string{"/a"}},
		{"variable", Search{Env: "/b", RuntimeDir: "/c"}, []string{"/b"}},
		{"session", Search{RuntimeDir: "/c"}, []string{"/c/tarn/tarn.sock", SystemSocket}},
		{"system", Search{}, []string{SystemSocket}},
	} {
		if diff := cmp.Diff(row.want, row.search.Paths()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
	_, err := Search{Socket: filepath.Join(dir, "missing")}.Dial(t.Context())
	if !errors.Is(err, errs.Unavailable) || !strings.Contains(err.Error(), filepath.Join(dir, "missing")+" (no such file)") {
		t.Errorf("a missing socket: got %v, want errs.Unavailable with the place and the reason", err)
	}
	var e *errs.Error
	if errors.As(err, &e); e == nil || !strings.Contains(e.Hint, "tarnd") {
		t.Errorf("the error does not say how to start a daemon: %+v", e)
	}
	// Both usual places are tried, and the first that answers is taken.
	if err := os.Symlink(here, filepath.Join(runtime, "tarn", "tarn.sock")); err != nil {
		t.Fatal(err)
	}
	c, err := Search{RuntimeDir: runtime}.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// TestNames sends names that a URL could swallow.
func TestNames(t *testing.T) {
	c := open(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(api.Disk{Name: r.URL.EscapedPath()})
	}))
	for ref, want := range map[string]string{
		"web1/root": "/v1/disks/web1%2Froot", "..": "/v1/disks/%2E%2E", "a b?c#d%": "/v1/disks/a%20b%3Fc%23d%25", "größe": "/v1/disks/gr%C3%B6%C3%9Fe",
	} {
		if d, err := c.Disk(t.Context(), ref); err != nil || d.Name != want {
			t.Errorf("%q: got %q, %v, want %q", ref, d.Name, err, want)
		}
	}
	if _, err := c.Disk(t.Context(), ""); !errors.Is(err, errs.Invalid) {
		t.Errorf("an empty name: got %v, want errs.Invalid", err)
	}
}

func TestOptionsTravel(t *testing.T) {
	c := open(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(api.RequestIDHeader) != "k1" || r.URL.Query().Get("dry_run") != "true" || r.URL.Query().Get("wait") != "60" || r.URL.Query().Get("keep_data") != "true" {
			w.WriteHeader(http.StatusBadRequest)
		}
		json.NewEncoder(w).Encode(api.Outcome{Plan: &api.Plan{Kind: r.Method}})
	}))
	out, err := c.PoolDelete(t.Context(), api.Options{RequestID: "k1", DryRun: true, Wait: time.Minute}, "p", true)
	if err != nil || out.Plan == nil || out.Plan.Kind != http.MethodDelete {
		t.Errorf("got %+v, %v, want the plan of a DELETE with all options", out, err)
	}
}

// TestEarlyRefusalOfAStream must deliver the daemon's reason although the
// daemon never reads the bytes.
func TestEarlyRefusalOfAStream(t *testing.T) {
	c := open(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusConflict)
		json.NewEncoder(w).Encode(api.ErrorBody{Error: api.Error{Kind: errs.Exists, Message: "taken"}})
	}))
	endless, stop := io.Pipe()
	defer stop.Close()
	_, err := c.ImageImport(t.Context(), api.Options{}, api.ImageImport{Name: "a", Format: "raw"}, Source{Stream: endless, Size: -1})
	if !errors.Is(err, errs.Exists) {
		t.Errorf("got %v, want errs.Exists", err)
	}
}

// TestStreamedExportThatFails must not look like a whole disk.
func TestStreamedExportThatFails(t *testing.T) {
	for _, row := range []struct {
		name string
		fail func(http.ResponseWriter)
		want errs.Kind
	}{
		{"trailer", func(w http.ResponseWriter) {
			w.Header().Set(api.ErrorTrailer, `{"error":{"kind":"corrupt","message":"a cluster"}}`)
		}, errs.Corrupt},
		{"broken connection", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, errs.Unavailable},
	} {
		c := open(t, serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", api.ErrorTrailer)
			io.WriteString(w, strings.Repeat("x", 1<<20))
			row.fail(w)
		}))
		var b strings.Builder
		if err := c.DiskExportStream(t.Context(), "d", api.Export{Format: "raw"}, &b); !errors.Is(err, row.want) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}

func TestCancel(t *testing.T) {
	reached := make(chan struct{})
	c := open(t, serve(t, func(_ http.ResponseWriter, r *http.Request) {
		close(reached)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-reached
		cancel()
	}()
	if _, err := c.Version(ctx); !errors.Is(err, errs.Cancelled) {
		t.Errorf("got %v, want errs.Cancelled", err)
	}
}

func TestRemoteRefusals(t *testing.T) {
	for _, r := range []Remote{
		{URL: "http://h:1"}, {URL: "https://"}, {URL: "https://h:1/path"}, {URL: "https://h:1", Cert: "/nonexistent"},
	} {
		if _, err := NewRemote(r); !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: got %v, want errs.Invalid", r, err)
		}
	}
}
