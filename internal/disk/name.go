package disk

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/tarn-storage/tarn/errs"
)

// Limits on what a user may ask for.
const (
	MaxSize  = 64 << 40 // bytes of one disk
	MaxName  = 255      // bytes of a name
	Sector   = 512      // smallest size anybody can use
	SizeUnit = 4096     // file volumes are rounded up to it, for 4Kn hosts
)

// IsID reports whether s has the form of an id: 36 lower-case hexadecimal digits
// and, in the places of a UUID, dashes.
func IsID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (s[i] == '-') || !dash && !within(s[i], 'a', 'f') && !within(s[i], '0', '9') {
			return false
		}
	}
	return true
}

// IsSerial reports whether s has the form of a disk's serial: 20 lower-case
// letters and digits.
func IsSerial(s string) bool {
	for i := range len(s) {
		if !within(s[i], 'a', 'z') && !within(s[i], '0', '9') {
			return false
		}
	}
	return len(s) == 20
}

func within(c, first, last byte) bool { return first <= c && c <= last }

// CheckName returns an error that says why name cannot name an object of the
// given type ("pool"). A name is 1-255 bytes of UTF-8 in normal form C without
// control, replacement or bidirectional-format characters, without "/", ",", ":" and a
// leading dash, not "." or "..", and must not read as a size, id or serial, so
// that every command line has one meaning.
func CheckName(typ, name string) error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, typ+".name", strconv.Quote(name), format, args...).
			WithHint("use letters, digits, dots, dashes and underscores")
	}
	switch {
	case name == "":
		return bad("a %s needs a name", typ)
	case len(name) > MaxName:
		return bad("the name is %d bytes long; at most %d are allowed", len(name), MaxName)
	case !utf8.ValidString(name):
		return bad("the name is not valid UTF-8")
	case !norm.NFC.IsNormalString(name):
		return bad("the name is not in Unicode normal form C")
	case name == "." || name == "..":
		return bad("%q is not a name", name)
	case name[0] == '-':
		return bad("a name cannot begin with a dash")
	case strings.TrimSpace(name) != name:
		return bad("a name cannot begin or end with a space")
	}
	for _, r := range name {
		if r == utf8.RuneError {
			return bad("a name cannot contain %U, which stands for bytes that were no UTF-8", r)
		}
		if strings.ContainsRune("/,:", r) {
			return bad("a name cannot contain %q", r)
		}
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' {
			return bad("a name cannot contain the invisible character %U", r)
		}
	}
	if _, err := ParseSize(name); err == nil {
		return bad("the name reads as a size")
	}
	if IsID(strings.ToLower(name)) {
		return bad("the name reads as an id")
	}
	if IsSerial(name) {
		return bad("the name reads as a disk's serial (20 lower-case letters and digits)")
	}
	return nil
}

// sizeParts takes a size apart: digits, a fraction with its point or none, the
// letters of a unit or none.
func sizeParts(s string) (whole, fraction, unit string, ok bool) {
	digits := func(s string) int {
		return len(s) - len(strings.TrimLeft(s, "0123456789"))
	}
	n := digits(s)
	whole, unit = s[:n], s[n:]
	if rest, point := strings.CutPrefix(unit, "."); point {
		n = digits(rest)
		fraction, unit = unit[:n+1], rest[n:]
	}
	letters := strings.IndexFunc(unit, func(r rune) bool { return r > unicode.MaxASCII || !unicode.IsLetter(r) }) < 0
	return whole, fraction, unit, whole != "" && fraction != "." && letters
}

// ParseSize reads a size as people write it: a bare number is bytes; K, M, G,
// T with or without "iB" are powers of 1024. "20GB" is refused, because it
// means something else to half of its readers.
func ParseSize(s string) (int64, error) {
	whole, fraction, unit, ok := sizeParts(s)
	if !ok {
		return 0, errs.New(errs.Invalid, "size", strconv.Quote(s), "%q is not a size", s).
			WithHint("write bytes or use K, M, G, T (powers of 1024), for example 20G")
	}
	unit = strings.ToUpper(unit)
	if len(unit) == 2 && strings.HasSuffix(unit, "B") && strings.Contains("KMGTPE", unit[:1]) {
		return 0, errs.New(errs.Invalid, "size", s, "%q is ambiguous: GB is 10^9 to some and 2^30 to others", s).
			WithHint("write %s%s%s for 1024-based units", whole, fraction, unit[:1])
	}
	shift, ok := map[string]uint{"": 0, "B": 0, "K": 10, "KIB": 10, "M": 20, "MIB": 20, "G": 30, "GIB": 30, "T": 40, "TIB": 40}[unit]
	if !ok || fraction != "" && shift == 0 {
		return 0, errs.New(errs.Invalid, "size", s, "%q is not a size", s).
			WithHint("write bytes or use K, M, G, T (powers of 1024), for example 20G")
	}
	f, err := strconv.ParseFloat(whole+fraction, 64)
	if err != nil || f*float64(uint64(1)<<shift) > math.MaxInt64/2 {
		return 0, errs.New(errs.Invalid, "size", s, "%s is larger than tarn can hold", s).WithHint("the most is 64T")
	}
	if fraction == "" {
		n, err := strconv.ParseInt(whole, 10, 64)
		if err != nil {
			return 0, errs.New(errs.Invalid, "size", s, "%s is larger than tarn can hold", s).WithHint("the most is 64T")
		}
		return n << shift, nil
	}
	return int64(f * float64(uint64(1)<<shift)), nil
}

// CheckSize returns an error unless n bytes may be the size of a disk.
func CheckSize(n int64) error {
	switch {
	case n <= 0:
		return errs.New(errs.Invalid, "size", "", "a disk of %d bytes cannot be made", n).WithHint("give a size above 0, for example 20G")
	case n > MaxSize:
		return errs.New(errs.Invalid, "size", "", "%s is over the limit of 64 TiB", FormatSize(n)).WithHint("the most is 64T")
	}
	return nil
}

// RoundUp returns n rounded up to a multiple of unit.
func RoundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// FormatSize writes n bytes for people: "20 GiB", "1.5 TiB".
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-n)
	}
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%s %s", strings.TrimSuffix(strconv.FormatFloat(math.Floor(f*10)/10, 'f', 1, 64), ".0"), units[i])
}
