// Package fetch opens remote image sources, HTTPS and Glance v2, as streams
// that continue by themselves when a connection breaks. It dials only
// addresses that it has checked, and never guesses: it follows three redirects
// at most and to https only, takes credentials to no second host, undoes no
// encoding, knows no proxy and no cookie, and refuses to write anything
// anywhere. What the bytes are, and whether their digest is the right one, is
// the caller's to judge.
package fetch

import (
	"context"
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

const op = "image.fetch"

// Classes of refusal in the gate's words.
const (
	classTruncated = "TRUNCATED"
	classCorrupt   = "CORRUPT"
	classExternal  = "EXTERNAL_REFERENCE"
)

// Config says what may be reached and how long is waited for it. The zero
// Config reaches public addresses and trusts the system's certificates.
type Config struct {
	// Allow lists what may be dialled although it is not a public address. An
	// address of NAT64 is dialled only when Allow has it and the IPv4 address
	// within it may be dialled, too.
	Allow []netip.Prefix

	// NAT64 lists prefixes of the network's own that carry IPv4 addresses, as
	// RFC 6052 has them, beside 64:ff9b::/96.
	NAT64 []netip.Prefix

	// PlainHTTP lists where Glance and Keystone may be spoken to without TLS,
	// when their URL says so. Images from https:// URLs never are.
	PlainHTTP []netip.Prefix

	// Roots are the certificates to trust; nil is the system's.
	Roots *x509.CertPool

	// Resolver turns names into addresses; nil is the system's.
	Resolver Resolver

	// Stall is how long a server may stay below MinRate bytes per second, or
	// take from the connection's start to the end of the header. Only time
	// spent waiting for the server counts. Zero is 60 s and 1024.
	Stall   time.Duration
	MinRate int64

	// Attempts is how often a broken download is continued without a MiB of
	// progress between, Backoff the first wait, doubled each time. Zero is 5
	// and 1 s.
	Attempts int
	Backoff  time.Duration

	// dial connects to a checked address; nil is the system's.
	dial func(ctx context.Context, to netip.AddrPort) (net.Conn, error)
}

// Resolver is the part of net.Resolver that is used.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

func (c Config) withDefaults() Config {
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Stall <= 0 {
		c.Stall = time.Minute
	}
	if c.MinRate <= 0 {
		c.MinRate = 1 << 10
	}
	if c.Attempts <= 0 {
		c.Attempts = 5
	}
	if c.Backoff <= 0 {
		c.Backoff = time.Second
	}
	if c.dial == nil {
		c.dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "tcp", to.String())
		}
	}
	return c
}

// Open opens the object at an https URL. Its user information, if any, goes to
// that host alone and into no message.
//
// The stream ends with io.EOF only when as many bytes came as the server
// announced. When the connection breaks the stream continues by range at the
// byte where it broke, provided that the server names a version of the object
// (a strong ETag or a Last-Modified that is old enough) and still has that
// version. It does not outlive ctx.
//
// Errors are errs.Invalid for a URL that cannot be, or credentials that the
// server refuses; errs.Unsafe with the class EXTERNAL_REFERENCE for an address,
// redirect, certificate or encoding that is refused, and with TRUNCATED and CORRUPT for a body
// shorter or longer than announced; errs.NotFound; errs.Conflict for an object
// that changed meanwhile; errs.Unavailable for a server that does not answer,
// stalls, or breaks off and cannot continue.
func Open(ctx context.Context, cfg Config, source string) (*Stream, error) {
	u, err := parseURL(source)
	if err != nil {
		return nil, errs.Wrap(err, op, "")
	}
	name := nameOf(u)
	if u.Scheme != "https" {
		return nil, errs.New(errs.Unsafe, op, name, "an image is fetched by https only, not by %q", u.Scheme).
			WithClass(classExternal).WithHint("use the https URL, or fetch the file by other means, compare its checksum and import the file")
	}
	s, err := openStream(ctx, cfg.withDefaults(), object{url: u, name: name, size: -1})
	return s, errs.Wrap(err, op, name)
}

// parseURL parses an absolute URL with a host. Its errors quote nothing,
// because anything may be a secret in a URL that cannot be parsed.
func parseURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return nil, errs.New(errs.Invalid, "", "", "the source is not a valid URL")
	case u.Scheme == "" || u.Hostname() == "" || u.Opaque != "":
		return nil, errs.New(errs.Invalid, "", "", "the source is not a URL with a scheme and a host").
			WithHint("write https://HOST/PATH or glance://HOST/IMAGE-ID")
	}
	for _, r := range u.Host {
		if r <= ' ' || r >= 0x7f {
			return nil, errs.New(errs.Invalid, "", "", "the host of the URL has characters that no host name has").
				WithHint("write an international name in its xn-- form")
		}
	}
	return u, nil
}

// join appends path elements to u; a u without a path has the root.
func join(u *url.URL, elem ...string) *url.URL {
	c := *u
	if c.Path == "" {
		c.Path = "/"
	}
	return c.JoinPath(elem...)
}

// nameOf is u for messages: without user information, query and fragment, any
// of which may be a secret.
func nameOf(u *url.URL) string {
	c := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	return c.String()
}

// fail is an error without op and subject, which the border adds.
func fail(kind errs.Kind, format string, args ...any) *errs.Error {
	return errs.New(kind, "", "", format, args...)
}

// refuse is a source that nothing is fetched from, without op and subject.
func refuse(format string, args ...any) *errs.Error {
	return fail(errs.Unsafe, format, args...).WithClass(classExternal)
}
