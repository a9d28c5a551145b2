package signature

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	openpgp "github.com/ProtonMail/go-crypto/openpgp/v2"

	"github.com/tarn-storage/tarn/errs"
)

const (
	armorBegin = "-----BEGIN PGP "
	keyBegin   = armorBegin + "PUBLIC KEY BLOCK-----"
	sigBegin   = armorBegin + "SIGNATURE-----"
	clearBegin = armorBegin + "SIGNED MESSAGE-----"
)

// pgp drives the library's own verification of a detached signature: the
// digests of its candidates are fed here, and it finds nothing more to read
// when it is asked for the verdict.
type pgp struct {
	details *openpgp.MessageDetails
	config  *packet.Config
}

func openPGP(key, sig []byte, now time.Time) (scheme, error) {
	keys, err := keyring(key)
	if err != nil {
		return nil, err
	}
	if i := bytes.Index(sig, []byte(sigBegin)); i >= 0 {
		block, err := armor.Decode(bytes.NewReader(sig[i:]))
		if err != nil {
			return nil, badSignature(err)
		}
		if sig, err = io.ReadAll(block.Body); err != nil {
			return nil, badSignature(err)
		}
	}
	// SHA-1 remains accepted where a key's owner binds names and subkeys to it:
	// keys of distributions that are still in use have nothing else, and the
	// key file is what the user trusts. Over data it never is.
	config := &packet.Config{Time: func() time.Time { return now }}
	details, err := openpgp.VerifyDetachedSignatureReader(keys, bytes.NewReader(nil), bytes.NewReader(sig), config)
	if err != nil {
		return nil, badSignature(err)
	}
	// Only signatures of documents count: those that bind names and subkeys to
	// a key are about other bytes.
	details.SignatureCandidates = slices.DeleteFunc(details.SignatureCandidates, func(c *openpgp.SignatureCandidate) bool {
		return c.SigType != packet.SigTypeBinary && c.SigType != packet.SigTypeText
	})
	if len(details.SignatureCandidates) == 0 {
		return nil, badSignature(pgperrors.ErrUnknownIssuer)
	}
	why := refuse("the signature was made by the key %016X, which is not in the signing key's file", details.SignatureCandidates[0].IssuerKeyId)
	for _, c := range details.SignatureCandidates {
		switch {
		case c.SignedByEntity == nil:
		case config.RejectMessageHashAlgorithm(c.HashAlgorithm):
			why = refuse("the signature uses %v, which is too weak to be believed", c.HashAlgorithm)
		default:
			return &pgp{details, config}, nil
		}
	}
	return nil, why
}

// Cleartext verifies a text of at most 1 MiB that carries its signature within,
// as some distributions publish their checksums, and returns the text. Anything
// before or behind it, which is not signed, is errs.Invalid. Other errors are
// those of Verify.
func Cleartext(key, signed []byte, now time.Time) ([]byte, Signer, error) {
	if len(signed) > maxSmall {
		return nil, Signer{}, errs.New(errs.Invalid, op, "", "the signed file has more than %d bytes", maxSmall)
	}
	block, rest := clearsign.Decode(signed)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 || !bytes.HasPrefix(signed, []byte(clearBegin)) {
		return nil, Signer{}, errs.New(errs.Invalid, op, "", "the file is not one text with its OpenPGP signature and nothing else")
	}
	sig, err := io.ReadAll(block.ArmoredSignature.Body)
	if err != nil {
		return nil, Signer{}, errs.Wrap(badSignature(err), op, "")
	}
	who, err := Verify(key, sig, block.Bytes, now)
	if err != nil {
		return nil, Signer{}, err
	}
	return block.Plaintext, who, nil
}

func badSignature(err error) error {
	if errors.Is(err, pgperrors.ErrUnknownIssuer) {
		err = errors.New("it has no signature of a kind that is believed")
	}
	return fail(errs.Invalid, "the signature is neither one of minisign nor a detached one of OpenPGP: %s", printable(err.Error()))
}

// keyring reads public keys, in armor (several blocks are read) or not.
func keyring(b []byte) (openpgp.EntityList, error) {
	var all openpgp.EntityList
	blocks := bytes.Split(b, []byte(keyBegin))
	armored := len(blocks) > 1
	if armored {
		blocks = blocks[1:]
	}
	for _, block := range blocks {
		read := openpgp.ReadKeyRing
		if armored {
			read, block = openpgp.ReadArmoredKeyRing, append([]byte(keyBegin), block...)
		}
		keys, err := read(bytes.NewReader(block))
		if err != nil {
			return nil, fail(errs.Invalid, "the signing key is neither one of minisign nor a public key of OpenPGP: %s", printable(err.Error())).
				WithHint("gpg --export KEY writes one")
		}
		all = append(all, keys...)
	}
	for _, k := range all {
		if k.PrivateKey != nil {
			return nil, fail(errs.Invalid, "the signing key is a secret key, which belongs nowhere but with its owner").
				WithHint("gpg --export KEY writes the public key")
		}
	}
	return all, nil
}

func (p *pgp) exact() string {
	for _, c := range p.details.SignatureCandidates {
		if c.SignedByEntity != nil && c.SigType != packet.SigTypeBinary {
			return "the signature is one of a text, which holds for files with other line ends, too"
		}
	}
	return ""
}

func (p *pgp) Write(b []byte) (int, error) {
	for _, c := range p.details.SignatureCandidates {
		if c.SignedByEntity != nil && c.SignatureError == nil {
			_, _ = c.WrappedHash.Write(b) // a digest takes everything
		}
	}
	return len(b), nil
}

func (p *pgp) verify() (Signer, error) {
	if _, err := io.Copy(io.Discard, p.details.UnverifiedBody); err != nil {
		return Signer{}, badSignature(err)
	}
	who, err := p.signer(), p.details.SignatureError
	if c := p.details.SelectedCandidate; c != nil && c.SignedByEntity != nil {
		// The library checks the key as of the time of the signature, which
		// whoever has an old key can set, and names no reason.
		if key := p.good(c.SignedByEntity, c.IssuerKeyId); key != nil && (err == nil || c.SignedBy == nil) {
			err = key
		}
	}
	switch {
	case err == nil:
		return who, nil
	case errors.Is(err, pgperrors.ErrKeyRevoked):
		return Signer{}, refuse("the key %s, which made the signature, is revoked", who.KeyID).WithHint("get the signer's present key, and an image signed with it")
	case errors.Is(err, pgperrors.ErrKeyExpired):
		return Signer{}, refuse("the key %s, which made the signature, has expired or is not valid yet", who.KeyID).WithHint("get the signer's key again: its time may have been extended")
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return Signer{}, refuse("the signature of the key %s has expired or is from the future", who.KeyID)
	}
	return Signer{}, refuse("the bytes are not those that the key %s has signed (%s)", who.KeyID, printable(err.Error())).
		WithHint("fetch the image and its signature again")
}

// good checks a key as of now.
func (p *pgp) good(key *openpgp.Entity, id uint64) error {
	now := p.config.Now()
	if _, err := key.VerifyPrimaryKey(now, p.config); err != nil {
		return err
	}
	for _, sub := range key.Subkeys {
		if sub.PublicKey.KeyId == id {
			_, err := sub.Verify(now, p.config)
			return err
		}
	}
	return nil
}

// signer is the candidate that the verdict is about.
func (p *pgp) signer() Signer {
	who := Signer{Scheme: "openpgp"}
	c := p.details.SelectedCandidate
	if c == nil {
		return who
	}
	who.KeyID = fmt.Sprintf("%016X", c.IssuerKeyId)
	if c.CorrespondingSig != nil {
		who.Time = c.CorrespondingSig.CreationTime
	}
	if c.SignedByEntity != nil {
		if _, id := c.SignedByEntity.PrimaryIdentity(who.Time, p.config); id != nil {
			who.Name = printable(id.Name)
		}
	}
	return who
}
