package signature

import (
	"encoding/hex"
	"path"
	"regexp"
	"strings"

	"github.com/tarn-storage/tarn/errs"
)

// Digest is what a publisher says an image's bytes have.
type Digest struct {
	Algo string // sha256 or sha512
	Hex  string // in lower-case digits
}

// Sums are the digests in a file of checksums, by the file names in it.
type Sums map[string]Digest

// digestAlgos are the digests that are taken, by their number of digits.
var digestAlgos = map[int]string{64: "sha256", 128: "sha512"}

var (
	// coreutils' sha256sum: DIGEST, a space, a space or asterisk, NAME; before
	// it a backslash when NAME is escaped.
	gnuLine = regexp.MustCompile(`^(\\?)([0-9A-Fa-f]{32,128}) [ *](.+)$`)
	// BSD's sha256, and sha256sum --tag.
	bsdLine = regexp.MustCompile(`^(\\?)([A-Za-z0-9/-]+) ?\((.+)\) = ([0-9A-Fa-f]+)$`)
)

// ParseSums reads a file of checksums of at most 1 MiB, as sha256sum,
// sha512sum and BSD's tools write it (SHA256SUMS, SHA512SUMS, CHECKSUM).
// Comments, empty lines and digests of other kinds are left out; any other line
// is errs.Invalid with its number, and so are two digests for one file. Of a
// SHA-256 and a SHA-512 for one file, the SHA-512 counts.
func ParseSums(b []byte) (Sums, error) {
	bad := func(format string, args ...any) (Sums, error) {
		return nil, errs.New(errs.Invalid, "sums.parse", "", format, args...)
	}
	if len(b) > maxSmall {
		return bad("the file of checksums has more than %d bytes", maxSmall)
	}
	sums := Sums{}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, d, ok := parseLine(line)
		if !ok {
			return bad("line %d is not a checksum and a file name", i+1)
		}
		if d.Algo == "" {
			continue
		}
		old, twice := sums[name]
		if twice && old.Algo == d.Algo && old != d {
			return bad("line %d gives %q another %s than a line before", i+1, printable(name), d.Algo)
		}
		if !twice || d.Algo == "sha512" {
			sums[name] = d
		}
	}
	if len(sums) == 0 {
		return bad("the file has no SHA-256 or SHA-512 of any file")
	}
	return sums, nil
}

// parseLine parses one line. A digest of a kind that is not taken has no Algo.
func parseLine(line string) (string, Digest, bool) {
	escaped, name, digits, algo := "", "", "", ""
	if m := bsdLine.FindStringSubmatch(line); m != nil {
		escaped, name, digits = m[1], m[3], m[4]
		algo = strings.ToLower(strings.ReplaceAll(m[2], "-", ""))
		if want := digestAlgos[len(digits)]; (algo == "sha256" || algo == "sha512") && algo != want {
			return "", Digest{}, false
		}
	} else if m := gnuLine.FindStringSubmatch(line); m != nil {
		escaped, digits, name = m[1], m[2], m[3]
		algo = digestAlgos[len(digits)]
	} else {
		return "", Digest{}, false
	}
	if escaped != "" {
		name = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r").Replace(name)
	}
	name = strings.TrimPrefix(name, "./")
	if _, err := hex.DecodeString(digits); err != nil || name == "" {
		return "", Digest{}, false
	}
	if algo != "sha256" && algo != "sha512" {
		algo = ""
	}
	return name, Digest{algo, strings.ToLower(digits)}, true
}

// Find returns the digest of the file name, or, when no line has that name, of
// the one path that ends in it. errs.NotFound when there is none or several.
func (s Sums) Find(name string) (Digest, error) {
	if d, ok := s[name]; ok {
		return d, nil
	}
	var found []Digest
	for p, d := range s {
		if path.Base(p) == name {
			found = append(found, d)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Digest{}, errs.New(errs.NotFound, "sums.find", printable(name), "the file of checksums does not have this file name, but %d others", len(s)).
			WithHint("the name is the last part of the source's path; give the digest itself with --sha256 when the publisher names the file otherwise")
	}
	return Digest{}, errs.New(errs.NotFound, "sums.find", printable(name), "the file of checksums has this file name in %d folders", len(found)).
		WithHint("give the digest itself with --sha256")
}
