package signature

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash"
	"strings"

	"golang.org/x/crypto/blake2b"

	"github.com/tarn-storage/tarn/errs"
)

// The formats are those of minisign's manual, "Signature format" and "Public
// key format"; signify's are the same without a trusted comment.
const (
	untrusted = "untrusted comment:"
	trusted   = "trusted comment: "

	legacy    = "Ed" // over the bytes themselves
	prehashed = "ED" // over their BLAKE2b-512
)

type minisign struct {
	key     ed25519.PublicKey
	id      string
	sig     []byte
	comment string
	global  []byte // over sig and comment; nil for signify

	digest hash.Hash    // prehashed
	whole  bytes.Buffer // legacy
}

func openMinisign(key, sig []byte) (scheme, error) {
	k, err := decode(lastLine(key), 2+8+ed25519.PublicKeySize)
	if err != nil || string(k[:2]) != legacy {
		return nil, fail(errs.Invalid, "the signature is one of minisign or signify, and the signing key is not").
			WithHint("the key is the file that ends in .pub")
	}
	lines := strings.Split(strings.TrimSuffix(strings.ReplaceAll(string(sig), "\r\n", "\n"), "\n"), "\n")
	bad := fail(errs.Invalid, "the signature is not complete: it has not the lines that minisign or signify write")
	if len(lines) != 2 && len(lines) != 4 {
		return nil, bad
	}
	s, err := decode(lines[1], 2+8+ed25519.SignatureSize)
	if err != nil {
		return nil, bad
	}
	m := &minisign{key: k[10:], id: keyID(k[2:10]), sig: s[10:]}
	switch algorithm := string(s[:2]); {
	case algorithm == prehashed && len(lines) == 4:
		m.digest, err = blake2b.New512(nil)
	case algorithm != legacy:
		return nil, bad
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(k[2:10], s[2:10]) {
		return nil, refuse("the signature was made by the key %s, not by the signing key %s", keyID(s[2:10]), m.id)
	}
	if len(lines) == 4 {
		var ok bool
		if m.comment, ok = strings.CutPrefix(lines[2], trusted); !ok {
			return nil, bad
		}
		if m.global, err = decode(lines[3], ed25519.SignatureSize); err != nil {
			return nil, bad
		}
	}
	return m, nil
}

// lastLine is the line of a key file that is no comment; a bare key is one,
// too.
func lastLine(b []byte) string {
	b = bytes.TrimSpace(b)
	return strings.TrimSpace(string(b[bytes.LastIndexByte(b, '\n')+1:]))
}

func decode(line string, size int) ([]byte, error) {
	b, err := base64.StdEncoding.Strict().DecodeString(line)
	if err == nil && len(b) != size {
		err = fmt.Errorf("%d bytes instead of %d", len(b), size)
	}
	return b, err
}

// keyID prints a key's number as minisign does.
func keyID(b []byte) string { return fmt.Sprintf("%X", binary.LittleEndian.Uint64(b)) }

func (m *minisign) exact() string {
	if m.digest == nil {
		return "the signature is of minisign's legacy kind or of signify, which cover no image that is read once"
	}
	return ""
}

func (m *minisign) Write(b []byte) (int, error) {
	if m.digest != nil {
		return m.digest.Write(b)
	}
	return m.whole.Write(b)
}

func (m *minisign) verify() (Signer, error) {
	message := m.whole.Bytes()
	if m.digest != nil {
		message = m.digest.Sum(nil)
	}
	if !ed25519.Verify(m.key, message, m.sig) {
		return Signer{}, refuse("the bytes are not those that the key %s has signed", m.id).
			WithHint("fetch the image and its signature again")
	}
	if m.global != nil && !ed25519.Verify(m.key, append(bytes.Clone(m.sig), m.comment...), m.global) {
		return Signer{}, refuse("the signature's trusted comment is not the one that the key %s has signed", m.id)
	}
	return Signer{Scheme: "minisign", KeyID: m.id, Comment: printable(m.comment)}, nil
}
