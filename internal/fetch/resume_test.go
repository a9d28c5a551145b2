package fetch

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// faulty is a server whose every answer sends only a part of the object before
// it breaks off.
type faulty struct {
	body    []byte
	etag    string
	breaks  []int                                           // bytes of each answer; beyond the list all is sent
	gentle  bool                                            // ends the answer in order, as if that were all
	chunked bool                                            // announces no length
	change  func(n int, rw http.ResponseWriter, from int64) // may write the header of answer n itself
	headers []http.Header
}

func (f *faulty) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	n := len(f.headers)
	f.headers = append(f.headers, r.Header.Clone())
	var from int64
	status := http.StatusOK
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		status = http.StatusPartialContent
		rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(f.body)-1, len(f.body)))
	}
	if f.etag != "" {
		rw.Header().Set("ETag", f.etag)
	}
	send := f.body[from:]
	if !f.chunked {
		rw.Header().Set("Content-Length", fmt.Sprint(len(send)))
	}
	if f.change != nil {
		f.change(n, rw, from)
	}
	if s := rw.Header().Get("Status"); s != "" {
		fmt.Sscan(s, &status)
	}
	rw.WriteHeader(status)
	if n < len(f.breaks) {
		send = send[:min(len(send), f.breaks[n])]
	}
	rw.Write(send)
	if n < len(f.breaks) {
		rw.(http.Flusher).Flush()
		if !f.gentle {
			panic(http.ErrAbortHandler)
		}
	}
}

// TestResume breaks downloads in all ways and continues them.
func TestResume(t *testing.T) {
	const mib = 1 << 20
	old := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat)
	set := func(key, value string, from int) func(int, http.ResponseWriter, int64) {
		return func(n int, rw http.ResponseWriter, _ int64) {
			if n >= from {
				rw.Header().Set(key, value)
			}
		}
	}
	for _, c := range []struct {
		what    string
		server  faulty
		kind    errs.Kind // empty: all bytes come
		class   string
		text    string
		answers int
	}{
		{"once", faulty{etag: `"1"`, breaks: []int{1000}}, "", "", "", 2},
		{"at the first byte", faulty{etag: `"1"`, breaks: []int{0, 0, 0}}, "", "", "", 4},
		{"at the last byte", faulty{etag: `"1"`, breaks: []int{3*mib - 1}}, "", "", "", 2},
		{"chunks without length", faulty{etag: `"1"`, breaks: []int{mib, 7}, chunked: true}, "", "", "", 3},
		{"by time of change", faulty{breaks: []int{1000}, change: set("Last-Modified", old, 0)}, "", "", "", 2},
		{"often, but advancing", faulty{etag: `"1"`, breaks: []int{mib, 100, 100, 100, mib, 100, 100, 100}}, "", "", "", 9},
		{"again and again", faulty{etag: `"1"`, breaks: []int{100, 100, 100, 100, 100, 100, 100}}, errs.Unsafe, classTruncated, "ended at byte 600 of 3145728", 6},
		{"weak version", faulty{etag: `W/"1"`, breaks: []int{1000}}, errs.Unsafe, classTruncated, "names no version", 1},
		{"no version", faulty{breaks: []int{1000}}, errs.Unsafe, classTruncated, "byte 1000 of 3145728", 1},
		{"changed just now", faulty{breaks: []int{1000}, change: func(_ int, rw http.ResponseWriter, _ int64) {
			rw.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		}}, errs.Unsafe, classTruncated, "names no version", 1},
		{"object changed", faulty{etag: `"1"`, breaks: []int{1000}, change: func(n int, rw http.ResponseWriter, _ int64) {
			if n > 0 {
				rw.Header().Set("ETag", `"2"`)
				rw.Header().Set("Status", "200")
			}
		}}, errs.Conflict, "", "has changed", 2},
		{"part of another version", faulty{etag: `"1"`, breaks: []int{1000}, change: set("ETag", `"2"`, 1)}, errs.Conflict, "", "has changed", 2},
		{"part of no version", faulty{etag: `"1"`, breaks: []int{1000}, change: set("ETag", "", 1)}, errs.Conflict, "", "of which version", 2},
		{"part of another size", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Range", "bytes 1000-3145727/3145729", 1)}, errs.Conflict, "", "has changed", 2},
		{"ranges ignored", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Status", "200", 1)}, errs.Conflict, "", "does not send parts", 2},
		{"range past the end", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Status", "416", 1)}, errs.Conflict, "", "has changed", 2},
		{"other bytes", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Range", "bytes 999-3145727/3145728", 1)}, errs.Conflict, "", "sends others", 2},
		{"no range said", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Range", "", 1)}, errs.Conflict, "", "sends others", 2},
		{"range backwards", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Range", "bytes 1000-5/3145728", 1)}, errs.Conflict, "", "sends others", 2},
		{"range of nonsense", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Range", "bytes 1000--1/-3", 1)}, errs.Conflict, "", "sends others", 2},
		{"range past the size", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Range", "bytes 1000-4000000/*", 1)}, errs.Conflict, "", "another length", 2},
		{"part longer than it says", faulty{etag: `"1"`, breaks: []int{1000}, chunked: true, change: set("Content-Range", "bytes 1000-1999/3145728", 1)}, errs.Unsafe, classCorrupt, "more than", 2},
		{"encoded part", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Content-Encoding", "gzip", 1)}, errs.Unsafe, classExternal, `"gzip"`, 2},
		{"gone meanwhile", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Status", "404", 1)}, errs.NotFound, "", "404", 2},
		{"busy for a while", faulty{etag: `"1"`, breaks: []int{1000}, change: func(n int, rw http.ResponseWriter, _ int64) {
			if n > 0 && n < 4 {
				rw.Header().Set("Status", "503")
			}
		}}, "", "", "", 5},
		{"busy for good", faulty{etag: `"1"`, breaks: []int{1000}, change: set("Status", "503", 1)}, errs.Unavailable, "", "ended at byte 1000 of 3145728", 6},
		{"length unknown for good", faulty{etag: `"1"`, breaks: []int{1000}, chunked: true, change: set("Content-Range", "bytes 1000-3145727/*", 1)}, errs.Conflict, "", "how long", 2},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			f := c.server
			f.body = content(3 * mib)
			w.serve(hostA, addrA, f.ServeHTTP)
			got, err := fetchAll(t.Context(), w.config(), "https://u:s3cret@images.example/?s3cret")
			if c.kind != "" {
				check(t, c.what, err, c.kind, c.class, c.text)
			} else if err != nil || !bytes.Equal(got, f.body) {
				t.Errorf("%s: %d bytes (as sent: %v), %v", c.what, len(got), bytes.Equal(got, f.body), err)
			}
			if len(f.headers) != c.answers {
				t.Errorf("%s: the server was asked %d times, want %d", c.what, len(f.headers), c.answers)
			}
			for i, h := range f.headers[1:] {
				if v := h.Get("If-Range"); v != f.etag && v != old || h.Get("Authorization") == "" {
					t.Errorf("%s: question %d has If-Range %q, Authorization %q", c.what, i+1, v, h.Get("Authorization"))
				}
			}
		})
	}
}

// TestResumeWaits shows that a server is given time, twice as much each time.
func TestResumeWaits(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := faulty{body: content(100), etag: `"1"`, breaks: []int{10, 0, 0, 0, 0, 0}}
		w.serve(hostA, addrA, f.ServeHTTP)
		start := time.Now()
		_, err := fetchAll(t.Context(), w.config(), "https://images.example/")
		check(t, "breaks", err, errs.Unsafe, classTruncated, "continued 5 times")
		if got, want := time.Since(start), (1+2+4+8+16)*time.Second; got != want {
			t.Errorf("the attempts took %v, want %v", got, want)
		}
	})
}

// TestResumeDown has the server go away in the middle, and its name turn to
// loopback.
func TestResumeDown(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		f := faulty{body: content(100), etag: `"1"`, breaks: []int{10}}
		w.serve(hostA, addrA, f.ServeHTTP)
		w.flip[hostA] = []string{"2606:2800:220:1::2"}
		_, err := fetchAll(t.Context(), w.config(), "https://images.example/")
		check(t, "down", err, errs.Unavailable, "", "connection refused")
	})
	inWorld(t, func(t *testing.T, w *world) {
		f := faulty{body: content(100), etag: `"1"`, breaks: []int{10}}
		w.serve(hostA, addrA, f.ServeHTTP)
		w.flip[hostA] = []string{"127.0.0.1"}
		_, err := fetchAll(t.Context(), w.config(), "https://images.example/")
		check(t, "rebinding", err, errs.Unsafe, classExternal, "loopback")
	})
}

// TestStall measures how long a slow server is borne with.
func TestStall(t *testing.T) {
	drip := func(n int, every time.Duration) http.HandlerFunc {
		return func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("ETag", `"1"`)
			for {
				if _, err := rw.Write(make([]byte, n)); err != nil {
					return
				}
				rw.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(every):
				}
			}
		}
	}
	for _, c := range []struct {
		what   string
		server http.HandlerFunc
		after  time.Duration // 0: it does not stall within 10 minutes
	}{
		{"a byte per second", drip(1, time.Second), time.Minute},
		{"1,000 bytes per second", drip(1000, time.Second), time.Minute},
		{"1,100 bytes per second", drip(1100, time.Second), 0},
		{"60 KiB every 50 s", drip(60<<10, 50*time.Second), 0},
		{"60 KiB every 70 s", drip(60<<10, 70*time.Second), time.Minute},
		{"nothing after the header", func(rw http.ResponseWriter, r *http.Request) {
			rw.(http.Flusher).Flush()
			<-r.Context().Done()
		}, time.Minute},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.serve(hostA, addrA, c.server)
			start := time.Now()
			s, err := Open(t.Context(), w.config(), "https://images.example/")
			if err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
			defer s.Close()
			for b := make([]byte, 64<<10); err == nil && time.Since(start) < 10*time.Minute; {
				_, err = s.Read(b)
			}
			took := time.Since(start)
			if c.after == 0 {
				if err != nil {
					t.Errorf("%s: %v after %v", c.what, err, took)
				}
				return
			}
			check(t, c.what, err, errs.Unavailable, "", "stalled at byte")
			if took != c.after {
				t.Errorf("%s: ended after %v, want %v", c.what, took, c.after)
			}
		})
	}
}

// TestSlowReader is no stall: it is not the server who is waited for.
func TestSlowReader(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		want := content(1 << 20)
		w.serve(hostA, addrA, func(rw http.ResponseWriter, _ *http.Request) { rw.Write(want) })
		s, err := Open(t.Context(), w.config(), "https://images.example/")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		var got bytes.Buffer
		for err == nil {
			time.Sleep(40 * time.Second)
			_, err = io.CopyN(&got, s, 16<<10)
		}
		if err != io.EOF || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%d bytes (as sent: %v), %v", got.Len(), bytes.Equal(got.Bytes(), want), err)
		}
	})
}

// TestReset is the same on a real network: connections that are reset.
func TestReset(t *testing.T) {
	inner := &faulty{body: content(5 << 20), etag: `"1"`}
	asked := 0
	srv := realServer(t, func(rw http.ResponseWriter, r *http.Request) {
		asked++
		if asked < 3 {
			conn, _, err := rw.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			from := 0
			head := "HTTP/1.1 200 OK\r\n"
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
				head = fmt.Sprintf("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n", from, len(inner.body)-1, len(inner.body))
			}
			fmt.Fprintf(conn, "%sETag: \"1\"\r\nContent-Length: %d\r\n\r\n", head, len(inner.body)-from)
			conn.Write(inner.body[from : from+1_500_000])
			underlying(conn).(*net.TCPConn).SetLinger(0)
			underlying(conn).Close()
			return
		}
		inner.ServeHTTP(rw, r)
	})
	cfg := srv.config
	cfg.Backoff = time.Millisecond
	got, err := fetchAll(t.Context(), cfg, srv.url+"/disk.raw")
	if err != nil || !bytes.Equal(got, inner.body) || asked < 3 {
		t.Errorf("%d bytes (as sent: %v) in %d answers, %v", len(got), bytes.Equal(got, inner.body), asked, err)
	}
	cfg.Allow = nil
	_, err = Open(t.Context(), cfg, srv.url)
	check(t, "loopback not allowed", err, errs.Unsafe, classExternal, "loopback")
	cfg = srv.config
	cfg.Roots = nil
	_, err = Open(t.Context(), cfg, srv.url)
	check(t, "unknown authority", err, errs.Unsafe, classExternal, "certificate")
	_, err = Open(t.Context(), srv.config, strings.Replace(srv.url, "https", "http", 1))
	check(t, "plain http", err, errs.Unsafe, classExternal, "https only")
}
