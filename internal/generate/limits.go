package generate

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	tib = int64(1) << 40
)

// limits is what a file system, or something like it, can hold.
type limits struct {
	label    int    // bytes
	ascii    bool   // whether a label must be printable ASCII
	refused  string // characters that a label cannot hold
	min, max int64  // bytes of the disk; max 0 is none
}

// check compares a label and a disk's size with l. name is what the message
// calls the thing.
func (l limits) check(name, label string, size int64) error {
	switch {
	case len(label) > l.label:
		return invalid("the label %q has %d bytes, %s holds %d", label, len(label), name, l.label).
			WithHint("choose a label of at most %d bytes", l.label)
	case !l.writable(label):
		return invalid("the label %q holds a character that %s cannot store", label, name).
			WithHint("use letters, digits, - and _")
	case size < l.min:
		return invalid("%d bytes are too small for %s, which needs %d", size, name, l.min).
			WithHint("ask for at least %s", human(l.min))
	case l.max > 0 && size > l.max:
		return invalid("%d bytes are too large for %s, which holds %d", size, name, l.max).
			WithHint("ask for at most %s", human(l.max))
	}
	return nil
}

func (l limits) writable(label string) bool {
	if !utf8.ValidString(label) || strings.TrimSpace(label) != label || strings.ContainsAny(label, l.refused) {
		return false
	}
	for _, r := range label {
		if !unicode.IsPrint(r) || l.ascii && r > unicode.MaxASCII {
			return false
		}
	}
	return true
}

// human writes a limit, which is a multiple of KiB, as the CLI takes it.
func human(n int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{tib, "TiB"}, {mib, "MiB"}} {
		if n%u.size == 0 {
			return strconv.FormatInt(n/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(n/kib, 10) + "KiB"
}
