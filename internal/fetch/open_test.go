package fetch

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

const (
	hostA, addrA = "images.example", "93.184.216.34"
	hostB, addrB = "mirror.example", "2606:2800:220:1::1"
)

func TestOpen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		want := content(3 << 20)
		w.serve(hostA, addrA, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/chunked" {
				rw.(http.Flusher).Flush()
			} else {
				rw.Header().Set("Content-Length", fmt.Sprint(len(want)))
			}
			http.SetCookie(rw, &http.Cookie{Name: "a", Value: "b"})
			rw.Write(want)
		})
		for _, c := range []struct {
			url, name string
			size      int64
		}{
			{"https://user:s3cret@images.example/disk.raw?sig=s3cret#s3cret", "https://images.example/disk.raw", int64(len(want))},
			{"https://images.example:443/chunked", "https://images.example:443/chunked", -1},
		} {
			s, err := Open(t.Context(), w.config(), c.url)
			if err != nil {
				t.Fatalf("%s: %v", c.url, err)
			}
			got, err := io.ReadAll(s)
			if err != nil || !bytes.Equal(got, want) || s.Size() != c.size || s.Name() != c.name {
				t.Errorf("%s: %d bytes (as sent: %v), size %d, name %q, %v; want %d bytes, size %d, name %q",
					c.url, len(got), bytes.Equal(got, want), s.Size(), s.Name(), err, len(want), c.size, c.name)
			}
			if n, err := s.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("%s: Read behind the end gives %d, %v", c.url, n, err)
			}
			s.Close()
		}
		first, second := w.seen[0], w.seen[1]
		if u, p, ok := (&http.Request{Header: first.header}).BasicAuth(); !ok || u != "user" || p != "s3cret" || first.path != "/disk.raw?sig=s3cret" {
			t.Errorf("the server saw user %q, password %q, path %q", u, p, first.path)
		}
		if first.header.Get("Accept-Encoding") != "identity" || second.header.Get("Cookie") != "" || second.header.Get("Authorization") != "" {
			t.Errorf("the server saw the headers %v, then %v", first.header, second.header)
		}
	})
}

// TestRefusedURLs asks for what must be refused before anything is dialled.
func TestRefusedURLs(t *testing.T) {
	for _, c := range []struct {
		url  string
		kind errs.Kind
		text string
	}{
		{"http://u:t0ken@images.example/?s3cret", errs.Unsafe, "https only"},
		{"ftp://images.example/", errs.Unsafe, "https only"},
		{"file:///etc/shadow", errs.Invalid, "scheme and a host"},
		{"https:images.example/s3cret", errs.Invalid, "scheme and a host"},
		{"https://", errs.Invalid, "scheme and a host"},
		{"https://u:s3cret@ho st/%zz", errs.Invalid, "not a valid URL"},
		{"https://\u212aelvin.example/", errs.Invalid, "characters"},
		{"https://images.example:70000/", errs.Invalid, "not a port"},
		{"https://images.example:0/", errs.Invalid, "not a port"},
		{"https://nowhere.example/", errs.Unavailable, "no address"},
		{"https://127.0.0.1/", errs.Unsafe, "loopback"},
		{"https://169.254.169.254/latest/meta-data/", errs.Unsafe, "metadata"},
		{"https://[::ffff:7f00:1]/", errs.Unsafe, "127.0.0.1, which is loopback"},
		{"https://[::ffff:127.0.0.1]/", errs.Unsafe, "loopback"},
		{"https://[::1]/", errs.Unsafe, "loopback"},
		{"https://[fe80::1%25eth0]/", errs.Unsafe, "bound to an interface"},
		{"https://[64:ff9b::7f00:1]/", errs.Unsafe, "NAT64"},
		{"https://0x7f.1/", errs.Unsafe, "neither a name nor an address"},
		{"https://0x7f000001/", errs.Unsafe, "neither a name nor an address"},
		{"https://2130706433/", errs.Unsafe, "neither a name nor an address"},
		{"https://017700000001/", errs.Unsafe, "neither a name nor an address"},
		{"https://0177.0.0.1/", errs.Unsafe, "neither a name nor an address"},
		{"https://127.1/", errs.Unsafe, "neither a name nor an address"},
		{"https://127.0.0.1./", errs.Unsafe, "neither a name nor an address"},
		{"https://0x/", errs.Unsafe, "neither a name nor an address"},
		{"https://inside.example/", errs.Unsafe, "10.1.2.3, which is private"},
		{"https://both.example/", errs.Unsafe, "10.1.2.3, which is private"},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.names["inside.example"] = []string{"10.1.2.3"}
			w.names["both.example"] = []string{addrA, "::ffff:10.1.2.3"}
			_, err := Open(t.Context(), w.config(), c.url)
			check(t, c.url, err, c.kind, classOf[c.kind], c.text)
			if len(w.dialled) > 0 {
				t.Errorf("%s: %v was dialled", c.url, w.dialled)
			}
		})
	}
}

func TestRedirects(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		target := "body"
		redirect := func(rw http.ResponseWriter, r *http.Request) {
			to := r.URL.Query().Get("to")
			if n, ok := strings.CutPrefix(r.URL.Path, "/chain/"); ok && n != "0" {
				to = "/chain/" + string(n[0]-1)
			}
			if to == "" {
				io.WriteString(rw, target)
				return
			}
			rw.Header().Set("Location", to)
			rw.WriteHeader(http.StatusFound)
		}
		w.serve(hostA, addrA, redirect)
		w.serve(hostB, addrB, redirect)
		w.serve("rebind.example", "93.184.216.35", redirect)
		w.names["local.example"] = []string{"127.0.0.1"}
		for _, c := range []struct {
			what, url string
			kind      errs.Kind // empty: followed
			text      string
		}{
			{"three", "https://u:s3cret@images.example/chain/3", "", ""},
			{"four", "https://u:s3cret@images.example/chain/4", errs.Unsafe, "more than 3 redirects"},
			{"second host", "https://u:s3cret@images.example/?to=https://x:y@mirror.example/", "", ""},
			{"there and back", "https://u:s3cret@images.example/?to=https://mirror.example/?to=https://images.example/", "", ""},
			{"to loopback", "https://images.example/?to=https://127.0.0.1/s3cret?s3cret", errs.Unsafe, "loopback"},
			{"to a name of loopback", "https://images.example/?to=https://local.example/", errs.Unsafe, "loopback"},
			{"to the metadata service", "https://images.example/?to=https://169.254.169.254/", errs.Unsafe, "metadata"},
			{"to an odd spelling", "https://images.example/?to=https://0x7f.1/", errs.Unsafe, "neither"},
			{"to http", "https://images.example/?to=http://mirror.example/%3Fs3cret", errs.Unsafe, "to https only"},
			{"to a file", "https://images.example/?to=file:///etc/shadow", errs.Unsafe, `begins with "file:"`},
			{"to nothing", "https://images.example/?to=%25zz", errs.Unavailable, "no URL"},
		} {
			w.dialled, w.seen = nil, nil
			got, err := fetchAll(t.Context(), w.config(), c.url)
			if c.kind != "" {
				check(t, c.what, err, c.kind, classOf[c.kind], c.text)
			} else if err != nil || string(got) != target {
				t.Errorf("%s: %q, %v", c.what, got, err)
			}
			left := false
			for _, s := range w.seen {
				left = left || s.host != hostA
				if s.header.Get("Referer") != "" || left && s.header.Get("Authorization") != "" {
					t.Errorf("%s: %s saw the headers %v", c.what, s.host, s.header)
				}
			}
			for _, d := range w.dialled {
				if a := netip.MustParseAddrPort(d).Addr().String(); a != addrA && a != addrB {
					t.Errorf("%s: %s was dialled", c.what, d)
				}
			}
		}
	})
}

// TestRebinding has a name change to loopback between two questions: what was
// checked is what is dialled, and the next question is checked anew.
func TestRebinding(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve(hostA, addrA, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Location", "https://images.example/again")
			rw.WriteHeader(http.StatusFound)
		})
		w.flip[hostA] = []string{"127.0.0.1"}
		_, err := Open(t.Context(), w.config(), "https://images.example/")
		check(t, "rebinding", err, errs.Unsafe, classExternal, "loopback")
		if fmt.Sprint(w.dialled) != "["+addrA+":443]" {
			t.Errorf("dialled %v, want %s alone", w.dialled, addrA)
		}
	})
}

func TestAllowed(t *testing.T) {
	own := Config{NAT64: []netip.Prefix{netip.MustParsePrefix("2a00:1:2:3::/64"), netip.MustParsePrefix("2a00:64::/96"), netip.MustParsePrefix("2a00:2::/32")}}
	with := func(allow ...string) Config {
		c := own
		for _, a := range allow {
			c.Allow = append(c.Allow, netip.MustParsePrefix(a))
		}
		return c
	}
	for _, c := range []struct {
		address string
		cfg     Config
		want    string // empty: may be dialled
	}{
		{"93.184.216.34", Config{}, ""},
		{"::ffff:93.184.216.34", Config{}, ""},
		{"2606:2800:220:1::1", Config{}, ""},
		{"0.0.0.0", Config{}, "unspecified"},
		{"10.0.0.1", Config{}, "private"},
		{"100.64.0.1", Config{}, "CGNAT"},
		{"100.128.0.1", Config{}, ""},
		{"127.0.0.1", Config{}, "loopback"},
		{"127.255.255.254", Config{}, "loopback"},
		{"169.254.1.1", Config{}, "link-local"},
		{"169.254.169.254", Config{}, "metadata"},
		{"172.31.255.255", Config{}, "private"},
		{"172.32.0.0", Config{}, ""},
		{"192.168.0.1", Config{}, "private"},
		{"198.19.0.1", Config{}, "benchmarks"},
		{"224.0.0.1", Config{}, "multicast"},
		{"239.1.1.1", Config{}, "multicast"},
		{"255.255.255.255", Config{}, "broadcast"},
		{"::", Config{}, "unspecified"},
		{"::1", Config{}, "loopback"},
		{"::7f00:1", Config{}, "not a public"},
		{"::ffff:7f00:1", Config{}, "loopback"},
		{"::ffff:169.254.169.254", Config{}, "metadata"},
		{"fd00:ec2::254", Config{}, "private"},
		{"fe80::1", Config{}, "link-local"},
		{"fec0::1", Config{}, "not a public"},
		{"ff02::1", Config{}, "multicast"},
		{"2001::1", Config{}, "protocols"},
		{"2001:db8::1", Config{}, "documentation"},
		{"2002:7f00:1::", Config{}, "6to4"},
		{"64:ff9b::5db8:d822", Config{}, "NAT64"},
		{"64:ff9b::7f00:1", Config{}, "NAT64"},
		{"64:ff9b:1::7f00:1", Config{}, "not a public"},
		{"64:ff9b::5db8:d822", with("64:ff9b::/96"), ""},
		{"64:ff9b::7f00:1", with("64:ff9b::/96"), "127.0.0.1, which is loopback"},
		{"64:ff9b::a9fe:a9fe", with("64:ff9b::/96"), "metadata"},
		{"64:ff9b::7f00:1", with("64:ff9b::/96", "127.0.0.0/8"), ""},
		{"2a00:64::a00:1", own, "NAT64"},
		{"2a00:64::a00:1", with("2a00:64::/96"), "10.0.0.1, which is private"},
		{"2a00:1:2:3:00a:0:100::", with("2a00:1:2:3::/64"), "10.0.0.1, which is private"},
		{"2a00:1:2:3:5d:b8d8:2200::", with("2a00:1:2:3::/64"), ""},
		{"2a00:2:a00:1::", with("2a00:2::/32"), "10.0.0.1, which is private"},
		{"127.0.0.1", with("127.0.0.1/32"), ""},
		{"::ffff:127.0.0.1", with("127.0.0.1/32"), ""},
		{"127.0.0.2", with("127.0.0.1/32"), "loopback"},
		{"10.1.2.3", with("10.1.0.0/16"), ""},
	} {
		got := c.cfg.refused(netip.MustParseAddr(c.address))
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s with %v: refused because %q, want %q", c.address, c.cfg.Allow, got, c.want)
		}
	}
}

// hijacked answers with what a broken server says and closes.
func hijacked(rw http.ResponseWriter, text string) {
	conn, _, err := rw.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	io.WriteString(conn, text)
	conn.Close()
}

func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		what   string
		answer http.HandlerFunc
		kind   errs.Kind
		class  string
		text   string
	}{
		{"401", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(401) }, errs.Invalid, "", "credentials"},
		{"403", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(403) }, errs.Invalid, "", "forbids"},
		{"404", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(404) }, errs.NotFound, "", "404"},
		{"204", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(204) }, errs.Unavailable, "", "204"},
		{"503", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(503) }, errs.Unavailable, "", "503"},
		{"part unasked", func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(206) }, errs.Unavailable, "", "206"},
		{"gzip", func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Content-Encoding", "gzip") }, errs.Unsafe, classExternal, `"gzip"`},
		{"big header", func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("A", strings.Repeat("b", 70<<10)) }, errs.Unavailable, "", "header of more than"},
		{"endless header", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, "HTTP/1.1 200 OK\r\n"+strings.Repeat("A: b\r\n", 1<<20))
		}, errs.Unavailable, "", "header of more than"},
		{"endless hints", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000))
		}, errs.Unavailable, "", "without end"},
		{"no http", func(rw http.ResponseWriter, _ *http.Request) { hijacked(rw, "220 smtp ready\r\n") }, errs.Unavailable, "", "no answer in HTTP"},
		{"two lengths", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde")
		}, errs.Unavailable, "", "no answer in HTTP"},
		{"silence", func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, errs.Unavailable, "", "no answer within 1m0s"},
		{"more than announced", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabcde")
		}, errs.Unsafe, classCorrupt, "more than the 4 bytes"},
		{"more than the last chunk", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\nHTTP/1.1 200 OK")
		}, errs.Unsafe, classCorrupt, "more than the 4 bytes"},
		{"fewer, no version", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: W/\"1\"\r\n\r\nabc")
		}, errs.Unsafe, classTruncated, "broke at byte 3 of 4"},
		{"chunk cut short", func(rw http.ResponseWriter, _ *http.Request) {
			hijacked(rw, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n")
		}, errs.Unavailable, "", "broke at byte 4"},
	} {
		inWorld(t, func(t *testing.T, w *world) {
			w.serve(hostA, addrA, c.answer)
			_, err := fetchAll(t.Context(), w.config(), "https://u:s3cret@images.example/?s3cret")
			check(t, c.what, err, c.kind, c.class, c.text)
		})
	}
}

func TestCertificates(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		ok := func(rw http.ResponseWriter, _ *http.Request) {}
		at := netip.AddrPortFrom(netip.MustParseAddr(addrA), 443)
		serve := func(name string, valid time.Duration, own bool) {
			ca, signer := w.ca, w.key
			if own {
				ca, signer = nil, nil
			}
			cert, key := certificate(t, ca, signer, name, valid)
			if old := w.servers[at.String()]; old != nil {
				old.server.Close()
			}
			w.serveWith(at, &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, ok)
		}
		w.names[hostA] = []string{addrA}
		for _, c := range []struct {
			what, name string
			valid      time.Duration
			own        bool
			url        string
			bad        bool
		}{
			{"good", hostA, time.Hour, false, "https://images.example/", false},
			{"good for the address", addrA, time.Hour, false, "https://" + addrA + "/", false},
			{"of another name", hostB, time.Hour, false, "https://images.example/", true},
			{"expired", hostA, -time.Hour, false, "https://images.example/", true},
			{"signed by nobody known", hostA, time.Hour, true, "https://images.example/", true},
		} {
			serve(c.name, c.valid, c.own)
			_, err := fetchAll(t.Context(), w.config(), c.url)
			if c.bad {
				check(t, c.what, err, errs.Unsafe, classExternal, "certificate of images.example is not valid")
			} else if err != nil {
				t.Errorf("%s: %v", c.what, err)
			}
		}
	})
}

// TestNextAddress has the first address of a name be dead.
func TestNextAddress(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve(hostA, addrA, func(rw http.ResponseWriter, _ *http.Request) { io.WriteString(rw, "here") })
		w.names[hostA] = []string{"2606:2800:220:1::2", addrA}
		got, err := fetchAll(t.Context(), w.config(), "https://images.example/")
		if err != nil || string(got) != "here" || len(w.dialled) != 2 {
			t.Errorf("got %q, %v after dialling %v", got, err, w.dialled)
		}
		w.names[hostA] = []string{"2606:2800:220:1::2"}
		_, err = Open(t.Context(), w.config(), "https://images.example/")
		check(t, "down", err, errs.Unavailable, "", "does not answer: connection refused")
	})
}

func TestCancel(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.serve(hostA, addrA, func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/header" {
				<-r.Context().Done()
				return
			}
			for b := content(64 << 10); r.Context().Err() == nil; { // without end
				if _, err := rw.Write(b); err != nil {
					return
				}
			}
		})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := Open(ctx, w.config(), "https://images.example/header")
		check(t, "while the header is awaited", err, errs.Cancelled, "", "cancelled")

		s, err := Open(t.Context(), w.config(), "https://images.example/endless")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, s, 10<<20); err != nil {
			t.Fatal(err)
		}
		s.Close()
		_, err = io.Copy(io.Discard, s)
		check(t, "after Close", err, errs.Cancelled, "", "stopped")
		if !errors.Is(err, context.Canceled) {
			t.Errorf("after Close: %v is not context.Canceled", err)
		}
	})
}
