package cli

import (
	"errors"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// parseSize reads a disk's size. what names the argument in errors.
func parseSize(what, s string) (int64, error) {
	n, err := disk.ParseSize(s)
	if err == nil {
		err = disk.CheckSize(n)
	}
	return n, about(what, err)
}

// about names the argument that an error is about.
func about(what string, err error) error {
	var e *errs.Error
	if err == nil || !errors.As(err, &e) {
		return err
	}
	return &errs.Error{Kind: errs.Invalid, Op: "cli", Message: what + ": " + e.Message, Hint: e.Hint, Err: err}
}

// parseResize reads SIZE or +SIZE: the new size, or by how much to grow.
func parseResize(s string) (size, by int64, err error) {
	if more, ok := strings.CutPrefix(s, "+"); ok {
		by, err = parseSize("SIZE", more)
		return 0, by, err
	}
	size, err = parseSize("SIZE", s)
	return size, 0, err
}

// parseReserve reads a reserve, a percentage or a size, and returns it as the
// daemon takes it: "5%" or bytes.
func parseReserve(s string) (string, error) {
	if share, ok := strings.CutSuffix(s, "%"); ok {
		f, err := strconv.ParseFloat(share, 64)
		if err != nil || !(f >= 0 && f <= 90) {
			return "", usage("--reserve: %q is not a percentage from 0%% to 90%%", s)
		}
		return s, nil
	}
	n, err := disk.ParseSize(s)
	if err != nil {
		return "", about("--reserve", err)
	}
	return strconv.FormatInt(n, 10), nil
}

// ratio is the flag --overcommit: how many times every byte may be promised.
type ratio struct{ value **float64 }

// String returns the present value.
func (r ratio) String() string {
	if r.value == nil || *r.value == nil {
		return ""
	}
	return strconv.FormatFloat(**r.value, 'f', -1, 64)
}

// Set accepts what the daemon does.
func (r ratio) Set(s string) error {
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 1 && f <= 1000) {
		return errors.New("must be a number from 1 to 1000")
	}
	*r.value = &f
	return nil
}

// Type is what help calls the value.
func (r ratio) Type() string { return "float" }

// sizeLike matches what people write when they mean a size, so that "20GB" is
// told what is wrong with it instead of being taken for an image.
var sizeLike = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^[+-]?[0-9]+([.,][0-9]+)?\s*([KMGTPE]i?)?B?$`)
})
