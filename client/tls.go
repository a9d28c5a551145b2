package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// Remote is a daemon reached over TCP, where both sides show certificates.
type Remote struct {
	URL  string // https://HOST:PORT
	Cert string // file of our certificate, PEM
	Key  string // file of its key, PEM
	CA   string // file of the certificates that may sign the daemon's, PEM
}

// NewRemote returns a Client for r. It reads the files and connects nowhere.
func NewRemote(r Remote) (*Client, error) {
	const op = "client.connect"
	u, err := url.Parse(r.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Path != "" && u.Path != "/" {
		return nil, errs.New(errs.Invalid, op, r.URL, "the address of a daemon looks like https://HOST:PORT")
	}
	cert, err := tls.LoadX509KeyPair(r.Cert, r.Key)
	if err != nil {
		return nil, errs.New(errs.Invalid, op, r.Cert, "the client certificate cannot be used: %w", err)
	}
	pem, err := os.ReadFile(r.CA)
	if err != nil {
		return nil, errs.New(errs.Invalid, op, r.CA, "the file of certificate authorities cannot be read: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Invalid, op, r.CA, "the file holds no PEM certificate")
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: roots}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: conf}
	dial := func(ctx context.Context, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, "tcp", addr)
		if err != nil && ctx.Err() == nil {
			return nil, errs.New(errs.Unavailable, op, r.URL, "the daemon cannot be reached: %w", err)
		}
		return c, err
	}
	c := &Client{base: "https://" + u.Host}
	c.dial = func(ctx context.Context) (net.Conn, error) { return dial(ctx, u.Host) }
	c.http = &http.Client{Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, _, addr string) (net.Conn, error) { return dial(ctx, addr) },
	}}
	return c, nil
}
