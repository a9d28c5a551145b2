// Package signature verifies that an image, or the file of checksums that
// names its digest, was signed by a key that the user trusts: minisign and
// signify (Ed25519) and OpenPGP, each with the signature in a file of its own.
// It refuses to look for keys anywhere but in the bytes it is given, to trust a
// key that is expired or revoked today, and to believe SHA-1 or MD5.
package signature

import (
	"bytes"
	"strings"
	"time"
	"unicode"

	"github.com/tarn-storage/tarn/errs"
)

const (
	op = "signature.verify"

	// classChecksum is the gate's word for bytes that are not those that were
	// promised.
	classChecksum = "CHECKSUM"

	maxKey       = 4 << 20
	maxSignature = 64 << 10
	maxSmall     = 1 << 20
	maxName      = 255
)

// Signer is who signed.
type Signer struct {
	Scheme  string    // minisign or openpgp
	KeyID   string    // in hexadecimal digits, as the tools print it
	Name    string    // OpenPGP's user id, as its owner wrote it
	Comment string    // minisign's trusted comment
	Time    time.Time // OpenPGP's time of the signature
}

// Verifier verifies a signature over bytes that pass once: write them all, then
// ask Verify. It is not safe for concurrent use.
type Verifier struct {
	check scheme
}

// scheme is one kind of signature, with its key and the state of its digest.
type scheme interface {
	Write(b []byte) (int, error)
	verify() (Signer, error)

	// exact says why the signature cannot cover an image that passes once, or
	// nothing.
	exact() string
}

// New returns a Verifier of a signature over an image's bytes, by a key that is
// good at the time now. The key file may hold several keys of OpenPGP, in
// armor or not.
//
// Refused with errs.Unsupported are signatures that need all bytes at once, as
// minisign's legacy ones do, and those of texts, which hold for other line
// ends, too. Files that are no key or signature are errs.Invalid; a key that is
// not the signature's, expired or revoked, and a weak digest, are errs.Unsafe
// with the class CHECKSUM, from here or from Verify.
func New(key, sig []byte, now time.Time) (*Verifier, error) {
	s, err := open(key, sig, now)
	if err != nil {
		return nil, errs.Wrap(err, op, "")
	}
	if why := s.exact(); why != "" {
		return nil, errs.New(errs.Unsupported, op, "", "%s", why).
			WithHint("sign the image's checksums (SHA256SUMS) instead, or sign it with minisign -S or gpg --detach-sign")
	}
	return &Verifier{s}, nil
}

// Write takes the next bytes. It does not fail.
func (v *Verifier) Write(b []byte) (int, error) { return v.check.Write(b) }

// Verify says who signed the bytes that were written. Bytes that were not
// signed are errs.Unsafe with the class CHECKSUM.
func (v *Verifier) Verify() (Signer, error) {
	who, err := v.check.verify()
	return who, errs.Wrap(err, op, "")
}

// Verify verifies a signature over data of at most 1 MiB, as a file of
// checksums is, of every kind. Its errors are those of New and Verifier.Verify.
func Verify(key, sig, data []byte, now time.Time) (Signer, error) {
	if len(data) > maxSmall {
		return Signer{}, errs.New(errs.Invalid, op, "", "the signed file has more than %d bytes", maxSmall)
	}
	s, err := open(key, sig, now)
	if err != nil {
		return Signer{}, errs.Wrap(err, op, "")
	}
	_, _ = s.Write(data) // digests take everything
	who, err := s.verify()
	return who, errs.Wrap(err, op, "")
}

// open finds out by their first bytes which scheme key and signature are of.
func open(key, sig []byte, now time.Time) (scheme, error) {
	switch {
	case len(key) > maxKey:
		return nil, fail(errs.Invalid, "the signing key has more than %d bytes", maxKey)
	case len(sig) > maxSignature:
		return nil, fail(errs.Invalid, "the signature has more than %d bytes", maxSignature)
	case len(bytes.TrimSpace(sig)) == 0:
		return nil, fail(errs.Invalid, "the signature is empty")
	case len(bytes.TrimSpace(key)) == 0:
		return nil, fail(errs.Invalid, "the signing key is empty")
	case bytes.HasPrefix(sig, []byte(untrusted)):
		return openMinisign(key, sig)
	}
	return openPGP(key, sig, now)
}

// fail is an error without op, which the border adds.
func fail(kind errs.Kind, format string, args ...any) *errs.Error {
	return errs.New(kind, "", "", format, args...)
}

// refuse is a signature that does not make the bytes trusted.
func refuse(format string, args ...any) *errs.Error {
	return fail(errs.Unsafe, format, args...).WithClass(classChecksum)
}

// printable makes what a stranger wrote a short line of text.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if r := []rune(s); len(r) > maxName {
		s = string(r[:maxName])
	}
	return s
}
