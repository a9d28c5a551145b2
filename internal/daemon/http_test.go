package daemon

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

// caller speaks plain HTTP to the daemon's socket, as curl would.
func caller(t *testing.T, socket string) func(method, target, key string, body any) (int, http.Header, []byte) {
	t.Helper()
	h := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	t.Cleanup(h.CloseIdleConnections)
	return func(method, target, key string, body any) (int, http.Header, []byte) {
		t.Helper()
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(t.Context(), method, "http://tarn"+target, strings.NewReader(string(text)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		if key != "" {
			r.Header.Set(api.RequestIDHeader, key)
		}
		resp, err := h.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, resp.Header, b
	}
}

func outcome(t *testing.T, b []byte) api.Outcome {
	t.Helper()
	var out api.Outcome
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	return out
}

// TestStatusOfAChange checks 200 for what has ended and for a plan, and that a
// repeat with the same key is the same operation.
func TestStatusOfAChange(t *testing.T) {
	c := settings(t)
	start(t, c, quiet)
	call := caller(t, c.Socket)
	pool := api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p")}

	status, _, b := call("POST", "/v1/pools?dry_run=true", "", pool)
	if out := outcome(t, b); status != 200 || out.Plan == nil || out.Operation != nil {
		t.Errorf("a dry run: got %d %s, want 200 and a plan alone", status, b)
	}
	status, header, b := call("POST", "/v1/pools?wait=60", "k1", pool)
	first := outcome(t, b).Operation
	if status != 200 || first == nil || first.State != "done" || header.Get(api.OperationHeader) != first.ID {
		t.Fatalf("with wait: got %d %s, want 200 and the operation done", status, b)
	}
	status, _, b = call("POST", "/v1/pools", "k1", pool)
	if again := outcome(t, b).Operation; status != 200 || again == nil || again.ID != first.ID {
		t.Errorf("a repeat: got %d %s, want operation %s", status, b, first.ID)
	}
	status, _, b = call("POST", "/v1/pools?wait=60", "", pool)
	if status != 409 || !strings.Contains(string(b), `"kind":"exists"`) {
		t.Errorf("the same name: got %d %s, want 409", status, b)
	}
}

// TestABodyIsUTF8 sends names that JSON would decode as others.
func TestABodyIsUTF8(t *testing.T) {
	c := settings(t)
	start(t, c, quiet)
	call := caller(t, c.Socket)
	for _, name := range []string{"a\xffb", `a\ud800b`} {
		status, _, b := call("POST", "/v1/instances?wait=60", "", json.RawMessage(`{"name":"`+name+`"}`))
		if status != 400 || !strings.Contains(string(b), `"kind":"invalid"`) {
			t.Errorf("an instance named %q: got %d %s, want 400", name, status, b)
		}
	}
}

// TestMetrics looks at the figures after a streamed import, during which
// another call was answered.
func TestMetrics(t *testing.T) {
	c := settings(t)
	start(t, c, quiet)
	call := caller(t, c.Socket)
	if status, _, b := call("POST", "/v1/pools?wait=60", "", api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p")}); status != 200 {
		t.Fatalf("the pool: %d %s", status, b)
	}
	cl := client.New(client.Search{Socket: c.Socket})
	defer cl.Close()
	body, more := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := cl.ImageImport(t.Context(), api.Options{RequestID: "up"}, api.ImageImport{Name: "i", Format: "raw"}, client.Source{Stream: body, Size: -1})
		ended <- err
	}()
	if _, err := more.Write(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	status, _, b := call("POST", "/v1/images/inspect?format=raw", "", nil) // another call meanwhile
	if status != 200 {
		t.Errorf("inspect: got %d %s", status, b)
	}
	more.Close()
	if err := <-ended; err != nil {
		t.Errorf("the import: %v", err)
	}
	_, _, b = call("GET", "/metrics", "", nil)
	for _, want := range []string{
		`(?m)^tarn_import_bytes_total [1-9]`,
		`(?m)^tarn_pool_capacity_bytes\{domain="[^"]+",driver="dir",pool="p"\} [1-9]`,
		`(?m)^tarn_pool_committed_bytes\{`, `(?m)^tarn_pool_allocated_bytes\{`, `(?m)^tarn_pool_foreign_bytes\{`,
		`(?m)^tarn_pool_free_bytes\{`, `(?m)^tarn_pool_active\{pool="p"\} 1`, `(?m)^tarn_pool_state\{pool="p",state="active"\} 1`,
		`(?m)^tarn_pool_state\{pool="p",state="(degraded|full|inactive)"\} 0`,
		`(?m)^tarn_request_duration_seconds_count\{route="POST /v1/images",status="200"\} 1`,
	} {
		if !regexp.MustCompile(want).Match(b) {
			t.Errorf("the metrics have no line that matches %s", want)
		}
	}
}
