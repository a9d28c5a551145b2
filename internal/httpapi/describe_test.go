package httpapi

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// idle is a server whose engine is never called.
func idle(t *testing.T) *Server {
	t.Helper()
	s, err := New(Config{Log: slog.New(slog.DiscardHandler), Clock: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

type description struct {
	OpenAPI string `json:"openapi"`
	Paths   map[string]map[string]struct {
		OperationID string                     `json:"operationId"`
		Summary     string                     `json:"summary"`
		Responses   map[string]json.RawMessage `json:"responses"`
	} `json:"paths"`
}

func described(t *testing.T, s *Server) description {
	t.Helper()
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/openapi.json", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("openapi.json: got %d: %s", w.Code, w.Body)
	}
	var d description
	if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDescriptionAndHandlersAgree checks both ways: what is described is
// served, and what the mux serves is described.
func TestDescriptionAndHandlersAgree(t *testing.T) {
	s := idle(t)
	d := described(t, s)
	if !strings.HasPrefix(d.OpenAPI, "3.1") {
		t.Errorf("the description is OpenAPI %s, want 3.1", d.OpenAPI)
	}
	inDescription := []string{"GET /v1/openapi.json"} // does not describe itself
	for path, methods := range d.Paths {
		for method, op := range methods {
			pattern := strings.ToUpper(method) + " " + path
			inDescription = append(inDescription, pattern)
			if op.Summary == "" || op.OperationID == "" {
				t.Errorf("%s has no summary or id", pattern)
			}
			if _, ok := op.Responses["200"]; !ok {
				t.Errorf("%s has no answer of 200", pattern)
			}
			if _, ok := op.Responses["default"]; !ok {
				t.Errorf("%s does not describe its errors", pattern)
			}
		}
	}
	slices.Sort(inDescription)
	served := slices.Sorted(slices.Values(s.mux.patterns))
	if diff := cmp.Diff(inDescription, served); diff != "" {
		t.Errorf("description and mux differ (-description +mux):\n%s", diff)
	}
	if len(inDescription) < 40 {
		t.Errorf("only %d operations are described", len(inDescription))
	}
}

// TestExamplesAreValid sends every example through the validation that a
// request gets.
func TestExamplesAreValid(t *testing.T) {
	registry := idle(t).api.OpenAPI().Components.Schemas
	for name, example := range examples {
		schema := registry.Map()[name]
		if schema == nil {
			t.Errorf("%s: there is no such schema", name)
			continue
		}
		if len(schema.Examples) != 1 {
			t.Errorf("%s: the description has %d examples, want 1", name, len(schema.Examples))
		}
		text, err := json.Marshal(example)
		if err != nil {
			t.Fatal(err)
		}
		var plain any
		if err := json.Unmarshal(text, &plain); err != nil {
			t.Fatal(err)
		}
		var res huma.ValidateResult
		huma.Validate(registry, schema, huma.NewPathBuffer(nil, 0), huma.ModeWriteToServer, plain, &res)
		for _, err := range res.Errors {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEveryRequestBodyHasAnExample keeps the examples complete.
func TestEveryRequestBodyHasAnExample(t *testing.T) {
	for path, item := range idle(t).api.OpenAPI().Paths {
		for _, op := range []*huma.Operation{item.Post, item.Put, item.Patch, item.Delete} {
			if op == nil || op.RequestBody == nil || op.RequestBody.Content["application/json"] == nil {
				continue
			}
			ref := op.RequestBody.Content["application/json"].Schema.Ref
			if name := ref[strings.LastIndex(ref, "/")+1:]; examples[name] == nil {
				t.Errorf("%s %s: the body %s has no example", op.Method, path, name)
			}
		}
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	for _, k := range errs.Kinds() {
		if s := statuses[k]; s < 400 || s > 599 || http.StatusText(s) == "" {
			t.Errorf("kind %s has the status %d, want one of 4xx and 5xx", k, s)
		}
	}
	if len(statuses) != len(errs.Kinds()) {
		t.Errorf("the table has %d kinds, want the %d there are", len(statuses), len(errs.Kinds()))
	}
}

// TestErrorsHaveOneShape asks for what cannot be served.
func TestErrorsHaveOneShape(t *testing.T) {
	h := idle(t).Handler()
	shape := regexp.MustCompile(`^\{"error":\{"kind":"[a-z_]+",.*"message":".+"`)
	for _, row := range []struct {
		method, target, contentType, body string
		want                              int
		message                           string
	}{
		{"GET", "/", "", "", 404, "no such path"},
		{"GET", "/v1/nosuch", "", "", 404, "no such path"},
		{"PUT", "/v1/pools", "", "", 405, "PUT is not allowed"},
		{"POST", "/v1/pools/x", "", "", 405, "POST is not allowed"},
		{"POST", "/v1/pools", "application/json", "{", 400, "unexpected end"},
		{"POST", "/v1/pools", "application/json", `{"name":"a"}`, 400, "driver"},
		{"POST", "/v1/pools", "application/json", `{"name":"a","driver":"dir","colour":1}`, 400, "colour"},
		{"POST", "/v1/pools", "application/json", `{"name":1,"driver":"dir"}`, 400, "body.name"},
		{"POST", "/v1/pools", "text/plain", `x`, 415, "content type"},
		{"POST", "/v1/pools", "application/json", `"` + strings.Repeat("x", maxBody) + `"`, 413, "too large"},
		{"POST", "/v1/pools", "application/json", "", 400, "body is required"},
		{"GET", "/v1/pools?limit=x", "", "", 400, "query.limit"},
		{"GET", "/v1/pools?limit=-2", "", "", 400, "query.limit"},
		{"GET", "/v1/pools?after=zzz", "", "", 400, "query.after"},
		{"GET", "/v1/pools?colour=red", "", "", 400, "query.colour"},
		{"GET", "/v1/operations?state=lost", "", "", 400, "query.state"},
		{"GET", "/v1/disks/x/attachment?as=xen", "", "", 400, "query.as"},
		{"POST", "/v1/images?format=raw", "", "x", 400, "query.name"},
		{"GET", "/v1/events?after=-1", "", "", 400, "query.after"},
	} {
		r := httptest.NewRequest(row.method, row.target, strings.NewReader(row.body))
		if row.contentType != "" {
			r.Header.Set("Content-Type", row.contentType)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		name := row.method + " " + row.target + " " + row.body[:min(20, len(row.body))]
		if w.Code != row.want || !shape.Match(bytes.TrimSpace(w.Body.Bytes())) || !strings.Contains(w.Body.String(), row.message) {
			t.Errorf("%s: got %d %s, want %d with %q", name, w.Code, w.Body, row.want, row.message)
		}
		if got := w.Header().Get("Content-Type"); got != "application/json" {
			t.Errorf("%s: the content type is %q", name, got)
		}
	}
}

// TestPanicIsOneError calls an engine that is not there: the caller gets an
// error of the one shape and the server lives on.
func TestPanicIsOneError(t *testing.T) {
	h := idle(t).Handler()
	for range 2 {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v1/pools", nil))
		if w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), `"kind":"internal"`) || strings.Contains(w.Body.String(), "goroutine") {
			t.Errorf("got %d %s, want 500 without a stack", w.Code, w.Body)
		}
	}
}

// TestHeadersAreBounded sends more than any client needs.
func TestHeadersAreBounded(t *testing.T) {
	s := idle(t)
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() {
		s.Shutdown(t.Context())
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go func() { // the server stops reading at its bound
		_, _ = io.WriteString(c, "GET /v1/version HTTP/1.1\r\nHost: t\r\nX: "+strings.Repeat("x", 4*maxHeader)+"\r\n\r\n")
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("got %s, want 431", resp.Status)
	}
	if s.http.ReadHeaderTimeout == 0 || s.http.IdleTimeout == 0 {
		t.Error("a client may take for ever to send its headers, or stay for ever without a request")
	}
}

// TestStatusesOfOutcomes checks when a change is done and when it goes on.
func TestStatusesOfOutcomes(t *testing.T) {
	s := idle(t)
	for _, row := range []struct {
		name string
		out  api.Outcome
		want int
	}{
		{"plan", api.Outcome{Plan: &api.Plan{}}, 200},
		{"queued", api.Outcome{Operation: &api.Operation{ID: "o", State: "queued"}}, 202},
		{"running", api.Outcome{Operation: &api.Operation{ID: "o", State: "running"}}, 202},
		{"undoing", api.Outcome{Operation: &api.Operation{ID: "o", State: "undoing"}}, 202},
		{"done", api.Outcome{Operation: &api.Operation{ID: "o", State: "done"}}, 200},
		{"failed", api.Outcome{Operation: &api.Operation{ID: "o", State: "failed"}}, 200},
	} {
		got, err := s.settle(t.Context(), row.out, 0)
		if err != nil || got.Status != row.want {
			t.Errorf("%s: got %+v, %v, want the status %d", row.name, got, err, row.want)
		}
	}
}
