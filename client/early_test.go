package client_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
)

// zeroes never ends.
type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// TestEarlyAnswerToAStream has a server answer and hang up while the client is
// still sending: the answer is what the caller gets.
func TestEarlyAnswerToAStream(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers := []string{`{"error":{"kind":"no_space","message":"full"}}`, ""}
	go func() {
		for i := 0; ; i++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(conn)
			if _, err := http.ReadRequest(r); err == nil {
				_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
				_, _ = io.CopyN(io.Discard, r, 100_000)
			}
			if body := answers[i%2]; body != "" {
				resp := http.Response{StatusCode: http.StatusInsufficientStorage, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"application/json"}},
					Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Close: true}
				_ = resp.Write(conn)
			}
			conn.Close()
		}
	}()
	c := client.New(client.Search{Socket: l.Addr().String()})
	defer c.Close()
	for range 20 {
		for _, want := range []errs.Kind{errs.NoSpace, errs.Unavailable} {
			_, err := c.ImageImport(t.Context(), api.Options{}, api.ImageImport{Name: "x", Format: "raw"}, client.Source{Stream: zeroes{}, Size: -1})
			if !errors.Is(err, want) {
				t.Fatalf("got %v, want kind %s", err, want)
			}
		}
	}
}
