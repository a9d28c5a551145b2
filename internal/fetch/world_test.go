package fetch

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// world is an internet of its own in which time runs as fast as nothing
// happens: names, addresses, and real HTTP servers with TLS behind pipes. It
// notes every name that was asked for and every address that was dialled.
type world struct {
	t     *testing.T
	roots *x509.CertPool
	ca    *x509.Certificate
	key   *ecdsa.PrivateKey

	mu      sync.Mutex
	names   map[string][]string // what a name resolves to
	flip    map[string][]string // what it resolves to after the first time
	servers map[string]*pipes   // by address and port
	started []*pipes
	dialled []string
	seen    []seen
}

// seen is one request as a server had it.
type seen struct {
	host   string
	path   string
	header http.Header
}

// inWorld runs f in a world that ends with it.
func inWorld(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, names: map[string][]string{}, flip: map[string][]string{}, servers: map[string]*pipes{}}
		w.ca, w.key = certificate(t, nil, nil, "test authority", time.Hour)
		w.roots = x509.NewCertPool()
		w.roots.AddCert(w.ca)
		defer func() {
			for _, p := range w.started {
				p.server.Close()
			}
		}()
		f(t, w)
	})
}

func (w *world) config() Config {
	return Config{Roots: w.roots, Resolver: w, dial: w.dial}
}

// LookupNetIP answers from the world's names.
func (w *world) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list, ok := w.names[strings.ToLower(host)]
	if !ok {
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	if next, ok := w.flip[host]; ok {
		w.names[host] = next
	}
	var out []netip.Addr
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out, nil
}

func (w *world) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	w.mu.Lock()
	w.dialled = append(w.dialled, to.String())
	p := w.servers[to.String()]
	w.mu.Unlock()
	if p == nil {
		return nil, syscall.ECONNREFUSED
	}
	client, server := wire()
	select {
	case p.conns <- server:
		return client, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-p.closed:
		return nil, syscall.ECONNREFUSED
	}
}

// serve starts a server for host, a name with one address, on port 443.
func (w *world) serve(host, address string, h http.HandlerFunc) {
	w.t.Helper()
	cert, key := certificate(w.t, w.ca, w.key, host, time.Hour)
	w.names[host] = []string{address}
	w.serveWith(netip.AddrPortFrom(netip.MustParseAddr(address), 443), &tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}, h)
}

func (w *world) serveWith(at netip.AddrPort, cert *tls.Certificate, h http.HandlerFunc) {
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	p.server = &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.seen = append(w.seen, seen{r.Host, r.URL.RequestURI(), r.Header.Clone()})
		w.mu.Unlock()
		h(rw, r)
	})}
	w.servers[at.String()] = p
	w.started = append(w.started, p)
	if cert == nil {
		go p.server.Serve(p) // ends with the world
		return
	}
	go p.server.Serve(tls.NewListener(p, &tls.Config{Certificates: []tls.Certificate{*cert}})) // ends with the world
}

// wire is a connection that holds some of what the server has sent, as the
// kernel's buffers do.
func wire() (client, server net.Conn) {
	client, near := net.Pipe()
	far, server := net.Pipe()
	held := make(chan []byte, 8)
	go func() { // from the server
		defer close(held)
		for {
			b := make([]byte, 16<<10)
			n, err := far.Read(b)
			if err != nil {
				return
			}
			held <- b[:n]
		}
	}()
	go func() {
		for b := range held {
			if _, err := near.Write(b); err != nil {
				far.Close() // and the rest is lost
			}
		}
		near.Close()
	}()
	go func() { // to the server
		io.Copy(far, near) // either end may close
		far.Close()
	}()
	return client, server
}

// pipes is a listener that gets its connections from the world's dial.
type pipes struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

// certificate makes one for a name or an address, signed by ca or itself.
func certificate(t *testing.T, ca *x509.Certificate, signer *ecdsa.PrivateKey, host string, valid time.Duration) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: host},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(valid),
		DNSNames: []string{host}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA: ca == nil, BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		c.DNSNames, c.IPAddresses = nil, []net.IP{ip}
	}
	if ca == nil {
		ca, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out, key
}

// secrets must be in no error of any test here.
var secrets = []string{"s3cret", "t0ken"}

// classOf has the classes of refusals to go somewhere.
var classOf = map[errs.Kind]string{errs.Unsafe: classExternal}

// check compares err with a kind, a class and a part of its text, and looks
// for secrets in it.
func check(t *testing.T, what string, err error, kind errs.Kind, class, text string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) {
		t.Errorf("%s: got %v, want an error of kind %s", what, err, kind)
		return
	}
	if e.Kind != kind || e.Class != class || !strings.Contains(e.Error(), text) {
		t.Errorf("%s: got %s %q %q, want %s %q with %q", what, e.Kind, e.Class, e.Error(), kind, class, text)
	}
	for _, s := range secrets {
		if strings.Contains(e.Error()+e.Hint, s) {
			t.Errorf("%s: the error has a secret in it: %q, hint %q", what, e.Error(), e.Hint)
		}
	}
}

// fetchAll opens and reads source.
func fetchAll(ctx context.Context, cfg Config, source string) ([]byte, error) {
	s, err := Open(ctx, cfg, source)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return io.ReadAll(s)
}

// content is n bytes, no two stretches of which are the same.
func content(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8*7 ^ i>>16*13)
	}
	return b
}

// real is a server on the loopback interface.
type real struct {
	url    string
	config Config
}

func realServer(t *testing.T, h http.HandlerFunc) real {
	t.Helper()
	srv := httptest.NewUnstartedServer(h)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	return real{srv.URL, Config{Roots: roots, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}}
}

// underlying is the connection below TLS.
func underlying(c net.Conn) net.Conn { return c.(*tls.Conn).NetConn() }
