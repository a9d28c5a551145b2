package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// special lists what is not reached unless it is allowed: the registries of
// special-purpose addresses of IANA (RFC 6890), with multicast and the
// reserved rest. Of IPv6, addresses outside of 2000::/3 are not public at all.
var special = []struct{ prefix, is string }{
	{"0.0.0.0/8", "unspecified"},
	{"10.0.0.0/8", "private"},
	{"100.64.0.0/10", "shared by carriers (CGNAT)"},
	{"127.0.0.0/8", "loopback"},
	{"169.254.169.254/32", "a cloud's metadata service"},
	{"169.254.0.0/16", "link-local"},
	{"172.16.0.0/12", "private"},
	{"192.0.0.0/24", "reserved for protocols"},
	{"192.0.2.0/24", "for documentation"},
	{"192.88.99.0/24", "a 6to4 relay"},
	{"192.168.0.0/16", "private"},
	{"198.18.0.0/15", "for benchmarks"},
	{"198.51.100.0/24", "for documentation"},
	{"203.0.113.0/24", "for documentation"},
	{"224.0.0.0/4", "multicast"},
	{"240.0.0.0/4", "reserved or broadcast"},
	{"::/128", "unspecified"},
	{"::1/128", "loopback"},
	{"fc00::/7", "private"},
	{"fe80::/10", "link-local"},
	{"ff00::/8", "multicast"},
	{"2001::/23", "reserved for protocols"},
	{"2001:db8::/32", "for documentation"},
	{"2002::/16", "6to4"},
	{"3fff::/20", "for documentation"},
}

type specialPrefix struct {
	netip.Prefix
	is string
}

var specialPrefixes = func() []specialPrefix {
	var out []specialPrefix
	for _, s := range special {
		out = append(out, specialPrefix{netip.MustParsePrefix(s.prefix), s.is})
	}
	return out
}()

var (
	wellKnownNAT64 = netip.MustParsePrefix("64:ff9b::/96")
	publicIPv6     = netip.MustParsePrefix("2000::/3")
)

// refused says why a must not be dialled, or nothing. An IPv4 address in IPv6
// clothes is judged as what it is.
func (c *Config) refused(a netip.Addr) string {
	a = a.Unmap()
	if a.Zone() != "" {
		return "bound to an interface"
	}
	allowed := contains(c.Allow, a)
	if inner, ok := c.inNAT64(a); ok {
		if !allowed {
			return "an IPv4 address behind NAT64"
		}
		if why := c.refused(inner); why != "" {
			return "NAT64 for " + inner.String() + ", which is " + why
		}
		return ""
	}
	if allowed {
		return ""
	}
	for _, s := range specialPrefixes {
		if s.Contains(a) {
			return s.is
		}
	}
	if a.Is6() && !publicIPv6.Contains(a) {
		return "not a public address"
	}
	return ""
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// inNAT64 returns the IPv4 address that a carries for a NAT64 gateway: the 32
// bits behind the prefix, with bits 64 to 71 left out (RFC 6052, section 2.2).
func (c *Config) inNAT64(a netip.Addr) (netip.Addr, bool) {
	for _, p := range append([]netip.Prefix{wellKnownNAT64}, c.NAT64...) {
		if !a.Is6() || !p.Contains(a) {
			continue
		}
		b, at := a.As16(), p.Bits()/8
		var v4 [4]byte
		for i := range v4 {
			if at == 8 && p.Bits() < 96 {
				at++
			}
			if at < len(b) {
				v4[i] = b[at]
			}
			at++
		}
		return netip.AddrFrom4(v4), true
	}
	return netip.Addr{}, false
}

// addresses resolves u's host and returns where to dial: all of its addresses,
// each of which was checked. One that is refused refuses the host.
func (c *Config) addresses(ctx context.Context, u *url.URL) ([]netip.AddrPort, error) {
	port := map[string]uint64{"https": 443, "http": 80}[u.Scheme]
	if p := u.Port(); p != "" {
		var err error
		if port, err = strconv.ParseUint(p, 10, 16); err != nil || port == 0 {
			return nil, fail(errs.Invalid, "%q is not a port", p)
		}
	}
	found, err := c.resolve(ctx, u.Hostname())
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range found {
		a = a.Unmap()
		if why := c.refused(a); why != "" {
			return nil, refuse("%s is at %s, which is %s, and is not contacted", u.Hostname(), a, why).
				WithHint("an administrator can allow the address in the daemon's configuration")
		}
		if u.Scheme != "https" && !contains(c.PlainHTTP, a) {
			return nil, refuse("%s is not spoken to without TLS", u.Host).
				WithHint("use https; an administrator can allow plain http to %s in the daemon's configuration", a)
		}
		out = append(out, netip.AddrPortFrom(a, uint16(port)))
	}
	return out, nil
}

func (c *Config) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	if numeric(host) {
		return nil, refuse("the host %s is neither a name nor an address as it is commonly written", host).
			WithHint("write the address as four decimal numbers with dots, or as IPv6 in brackets")
	}
	found, err := c.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil || len(found) == 0 {
		var dns *net.DNSError
		if err == nil || errors.As(err, &dns) && dns.IsNotFound {
			return nil, fail(errs.Unavailable, "the host %s has no address", host).WithHint("is the name right?")
		}
		return nil, fail(errs.Unavailable, "the address of %s cannot be found: %w", host, err)
	}
	return found, nil
}

// numeric reports whether host ends in a number. No name does, but inet_aton
// and some resolvers read 0x7f.1, 2130706433 or 127.1 as addresses.
func numeric(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	last := host[strings.LastIndexByte(host, '.')+1:]
	hex, ok := strings.CutPrefix(last, "0x")
	return last != "" && strings.Trim(last, "0123456789") == "" || ok && strings.Trim(hex, "0123456789abcdef") == ""
}

// connect dials the addresses of u, checked in the same call, until one
// answers, and speaks TLS under u's own name when u says https. It returns the
// connection to speak on and the one to close.
func (c *Config) connect(ctx context.Context, u *url.URL) (net.Conn, net.Conn, error) {
	to, err := c.addresses(ctx, u)
	if err != nil {
		return nil, nil, err
	}
	var raw net.Conn
	for _, a := range to {
		each, cancel := context.WithTimeout(ctx, c.Stall/time.Duration(len(to)))
		raw, err = c.dial(each, a)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		return nil, nil, fail(errs.Unavailable, "%s does not answer: %w", u.Host, err)
	}
	if u.Scheme != "https" {
		return raw, raw, nil
	}
	conn := tls.Client(raw, &tls.Config{ServerName: u.Hostname(), RootCAs: c.Roots, MinVersion: tls.VersionTLS12})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		var cert *tls.CertificateVerificationError
		if errors.As(err, &cert) {
			return nil, nil, refuse("the certificate of %s is not valid: %w", u.Host, cert.Err).
				WithHint("certificates are always verified; an administrator can name the authority to trust in the daemon's configuration")
		}
		return nil, nil, fail(errs.Unavailable, "%s does not speak TLS with us: %w", u.Host, err)
	}
	return conn, raw, nil
}
