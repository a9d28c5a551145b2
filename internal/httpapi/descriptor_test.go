package httpapi

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
)

// serveDescriptors serves a handler behind the guard on a unix socket and
// returns the socket's path. The handler answers with what the descriptor
// holds, or with what went wrong.
func serveDescriptors(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: guardDescriptor(h), ConnContext: connContext}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(Listener{l}) }()
	t.Cleanup(func() {
		srv.Close()
		if err := <-done; err != http.ErrServerClosed {
			t.Errorf("Serve: %v", err)
		}
	})
	return path
}

// readBack answers with the content of the request's descriptor.
func readBack(w http.ResponseWriter, r *http.Request) {
	f, err := takeDescriptor(r.Context())
	if err != nil {
		writeFailure(w, fail(err))
		return
	}
	defer f.Close()
	_, _ = io.Copy(w, f)
}

// dial connects; the connection is closed with the test.
func dial(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// file makes a file with the given content, opened for reading.
func file(t *testing.T, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// send writes text with descriptors beside its first byte.
func send(t *testing.T, c *net.UnixConn, text string, files ...*os.File) {
	t.Helper()
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix([]byte(text), oob, nil); err != nil {
		t.Fatal(err)
	}
}

// answer reads one response.
func answer(t *testing.T, r *bufio.Reader) (status int, body string, closes bool) {
	t.Helper()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Close
}

const (
	withHeader    = "POST / HTTP/1.1\r\nHost: t\r\n" + api.DescriptorHeader + ": 1\r\nContent-Length: 0\r\n\r\n"
	withoutHeader = "POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0\r\n\r\n"
)

func TestDescriptorArrives(t *testing.T) {
	c := dial(t, serveDescriptors(t, readBack))
	send(t, c, withHeader, file(t, "content"))
	if status, body, closes := answer(t, bufio.NewReader(c)); status != 200 || body != "content" || !closes {
		t.Errorf("got %d %q, closes %v, want the file's content and a closed connection", status, body, closes)
	}
}

// TestDescriptorWithASlowClient sends the request byte by byte: the descriptor
// is that of the first.
func TestDescriptorWithASlowClient(t *testing.T) {
	c := dial(t, serveDescriptors(t, readBack))
	send(t, c, withHeader[:1], file(t, "slowly"))
	for _, b := range []byte(withHeader[1:]) {
		if _, err := c.Write([]byte{b}); err != nil {
			t.Fatal(err)
		}
	}
	if status, body, _ := answer(t, bufio.NewReader(c)); status != 200 || body != "slowly" {
		t.Errorf("got %d %q, want the file's content", status, body)
	}
}

func TestDescriptorRefusals(t *testing.T) {
	a, b, d := file(t, "a"), file(t, "b"), file(t, "d")
	for _, row := range []struct {
		name string
		send func(*net.UnixConn)
		want string
	}{
		{"header without descriptor", func(c *net.UnixConn) { send(t, c, withHeader) }, "disagree"},
		{"descriptor without header", func(c *net.UnixConn) { send(t, c, withoutHeader, a) }, "disagree"},
		{"two descriptors", func(c *net.UnixConn) { send(t, c, withHeader, a, b) }, "more than one"},
		{"more than there is room for", func(c *net.UnixConn) { send(t, c, withHeader, a, b, d, a, b, d) }, "more than one"},
		{"descriptor after the first read", func(c *net.UnixConn) {
			send(t, c, withHeader[:10])
			waitRead(t, c)
			send(t, c, withHeader[10:], a)
		}, "disagree"},
	} {
		c := dial(t, serveDescriptors(t, readBack))
		row.send(c)
		status, body, closes := answer(t, bufio.NewReader(c))
		if status != 400 || !strings.Contains(body, row.want) || !closes {
			t.Errorf("%s: got %d %s, closes %v, want 400 with %q and a closed connection", row.name, status, body, closes, row.want)
		}
	}
}

// waitRead returns once the other side has read all that was sent.
func waitRead(t *testing.T, c *net.UnixConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for left := 1; left > 0; {
		var ioErr error
		if err := raw.Control(func(fd uintptr) { left, ioErr = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }); err != nil || ioErr != nil {
			t.Fatal(err, ioErr)
		}
	}
}

// TestConnectionsWithoutDescriptorsAreReused keeps ordinary calls cheap.
func TestConnectionsWithoutDescriptorsAreReused(t *testing.T) {
	c := dial(t, serveDescriptors(t, func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, connOf(r.Context()).peer.UID) }))
	r := bufio.NewReader(c)
	for i := range 3 {
		send(t, c, withoutHeader)
		if status, body, closes := answer(t, r); status != 200 || body != fmt.Sprint(os.Getuid()) || closes {
			t.Errorf("call %d: got %d %q, closes %v, want our uid on a connection that stays", i, status, body, closes)
		}
	}
}

// TestNoDescriptorIsLeaked sends descriptors that are refused, not taken, or
// cut off, and counts what this process holds open.
func TestNoDescriptorIsLeaked(t *testing.T) {
	handled := make(chan struct{}, 1)
	path := serveDescriptors(t, func(http.ResponseWriter, *http.Request) { handled <- struct{}{} })
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, text := range []string{withHeader, withoutHeader, "POST / HT"} {
		for _, n := range []int{1, 2, 5} {
			c := dial(t, path)
			files := make([]*os.File, n)
			for i := range files {
				files[i] = w
			}
			send(t, c, text, files...)
			if text == "POST / HT" {
				waitRead(t, c)
				c.Close()
				continue
			}
			answer(t, bufio.NewReader(c))
			if n == 1 && text == withHeader {
				<-handled
			}
		}
	}
	w.Close()
	// The pipe ends once nobody holds its writing end any more.
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("got %q, %v, want the pipe's end", b, err)
	}
}

// TestDescriptorOverTCPIsRefused has no unix socket at all.
func TestDescriptorOverTCPIsRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: guardDescriptor(http.HandlerFunc(readBack)), ConnContext: connContext}
	go srv.Serve(l)
	defer srv.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, withHeader); err != nil {
		t.Fatal(err)
	}
	if status, body, _ := answer(t, bufio.NewReader(c)); status != 400 || !strings.Contains(body, "unix socket only") {
		t.Errorf("got %d %s, want 400", status, body)
	}
}
