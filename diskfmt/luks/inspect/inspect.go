// Package inspect judges files that somebody claims to be encrypted disks with
// a LUKS header, of version 1 or 2, and hands on those whose header it found
// harmless. Their contents stay opaque: it refuses to decrypt anything, and it
// refuses headers that would make a program which opens the disk look at another
// file or device, work without bound, or take bytes for two things at once. It
// opens and returns no name and takes no record. Only ingest may use it.
package inspect

import (
	"context"
	"encoding/binary"
	"io"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/internal/whole"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// HeaderSize is how many of a file's first bytes Header needs, or all of a
// shorter file.
const HeaderSize = 4096

const (
	op         = "luks.inspect"
	magic      = "LUKS\xba\xbe"
	sectorSize = 512
	stripes    = 4000
	// maxIterations is the most rounds of PBKDF2: some seconds of one core. Who
	// opens such a disk would do them all for every key that he tries.
	maxIterations = 12_000_000
)

// Source reads a file that Open has accepted, as it is: the disk's bytes are the
// file's, header included. It is a diskfmt.Mapper, safe for concurrent use.
type Source struct{ *whole.Source }

// Header gives the fast verdict by the first HeaderSize bytes of a file of size
// bytes: all of Open's for LUKS1, and the binary header's for LUKS2. Errors are
// errs.Unsafe with one of the classes EMPTY, FORMAT_MISMATCH, CHECKSUM,
// UNSUPPORTED_VERSION, UNSUPPORTED_FEATURE, EXTERNAL_REFERENCE, DIRTY,
// TRUNCATED, CORRUPT, OVERLAP, LIMIT and QUOTA.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	f := strict.File{R: r, Size: uint64(size)}
	rep, _, err := header(f, lim)
	return rep, errs.Wrap(err, op, "")
}

// Open gives the full verdict. Of LUKS2 both headers must be sound and say the
// same: one that an interrupted update left behind is refused, although
// cryptsetup would repair it, because an import has no business to choose. A
// size that does not end at a sector is a file that was cut; beyond that nobody
// can tell, because the header does not say how long the disk is.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	f := strict.File{R: r, Size: uint64(size)}
	rep, b, err := header(f, lim)
	if err == nil && binary.BigEndian.Uint16(b[6:]) == 2 {
		err = open2(f, b, &rep)
	}
	if err == nil {
		err = lim.Tell(ctx, 1, 1)
	}
	if err != nil {
		return nil, rep, errs.Wrap(err, op, "")
	}
	rep.DataBytes = size
	return &Source{whole.NewSource(f, "luks")}, rep, nil
}

func header(f strict.File, lim strict.Limits) (rep strict.Report, b []byte, err error) {
	if f.Size == 0 {
		return rep, nil, strict.Refuse(strict.Empty, "the file is empty")
	}
	b = make([]byte, HeaderSize)
	if err := f.Read(b[:min(HeaderSize, f.Size)], 0, "the header"); err != nil {
		return rep, nil, err
	}
	if string(b[:len(magic)]) != magic {
		return rep, nil, strict.Refuse(strict.Mismatch, "the bytes %s at 0x0 are not LUKS's magic", strict.Quote(b[:len(magic)]))
	}
	rep.VirtualSize = int64(f.Size)
	if err := lim.Check(f.Size); err != nil {
		return rep, nil, err
	}
	if err := f.Inside(0, 8, "the header"); err != nil {
		return rep, nil, err
	}
	switch v := binary.BigEndian.Uint16(b[6:]); v {
	case 1:
		rep.Features = []string{"LUKS1"}
		return rep, b, judge1(f, b)
	case 2:
		rep.Features = []string{"LUKS2"}
		if err := f.Inside(0, binarySize, "the header"); err != nil {
			return rep, nil, err
		}
		return rep, b, judgeBinary(f, b, magic, 0)
	default:
		return rep, nil, strict.Refuse(strict.Version, "version %d at 0x6; 1 and 2 are known", v)
	}
}

// text returns the string in a field that must end in zeroes.
func text(b []byte, off, n int, what string) (string, error) {
	s, rest, found := strings.Cut(string(b[off:off+n]), "\x00")
	if !found || strings.Trim(rest, "\x00") != "" {
		return "", strict.Refuse(strict.Corrupt, "the %s at 0x%x does not end in zeroes", what, off)
	}
	return s, nil
}

// The algorithms that cryptsetup and QEMU write. cipher_null, which leaves the
// disk readable to anybody, and names in the kernel's own notation are not among
// them.
var (
	hashes  = []string{"sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "whirlpool", "sha3-256", "sha3-512", "blake2b-512", "blake2s-256"}
	ciphers = []string{"aes", "serpent", "twofish", "camellia", "cast5", "cast6", "xchacha12,aes", "xchacha20,aes"}
	modes   = []string{"xts", "cbc", "ctr", "ecb", "lrw", "adiantum"}
	ivs     = []string{"plain", "plain64", "plain64be", "benbi", "essiv"}
)

func oneOf(s string, list []string) bool {
	for _, l := range list {
		if s == l {
			return true
		}
	}
	return false
}

// knownHash refuses hashes that are not in the list.
func knownHash(s, what string) error {
	if !oneOf(s, hashes) {
		return strict.Refuse(strict.Feature, "the hash of %s is not known: %s (in hex)", what, strict.Quote([]byte(s)))
	}
	return nil
}

// knownCipher refuses ciphers, such as "aes-xts-plain64" or
// "aes-cbc-essiv:sha256", of parts that are not in the lists.
func knownCipher(s, what string) error {
	cipher, rest, _ := strings.Cut(s, "-")
	mode, iv, _ := strings.Cut(rest, "-")
	iv, hash, hashed := strings.Cut(iv, ":")
	if !oneOf(cipher, ciphers) || !oneOf(mode, modes) || !oneOf(iv, ivs) || hashed != (iv == "essiv") || hashed && !oneOf(hash, hashes) {
		return strict.Refuse(strict.Feature, "the cipher of %s is not known: %s (in hex)", what, strict.Quote([]byte(s)))
	}
	return nil
}

// span is a part of the file.
type span struct {
	off, n uint64
	what   string
}

// disjoint refuses spans that lie on each other. There are few.
func disjoint(spans []span) error {
	for i, a := range spans {
		for _, b := range spans[:i] {
			if a.off < b.off+b.n && b.off < a.off+a.n {
				return strict.Refuse(strict.Overlap, "%s at 0x%x (%d bytes) lies on %s at 0x%x (%d bytes)", a.what, a.off, a.n, b.what, b.off, b.n)
			}
		}
	}
	return nil
}
