package unpack_test

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
	"github.com/tarn-storage/tarn/errs"
)

// FuzzNewReader reads up to 16 MiB of what any bytes hold in any wrapper: it
// ends, and it fails with a class.
func FuzzNewReader(f *testing.F) {
	for i, name := range unpack.Names() {
		f.Add(uint8(i), pack(f, name, content(100_000)))
		f.Add(uint8(i), pack(f, name, nil))
		f.Add(uint8(i), append(pack(f, name, []byte("one")), pack(f, name, []byte("two"))...))
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		names := unpack.Names()
		r, err := unpack.NewReader(names[int(which)%len(names)], bytes.NewReader(b))
		if err == nil {
			defer r.Close()
			_, err = io.Copy(io.Discard, io.LimitReader(r, 16<<20))
		}
		if err == nil {
			return
		}
		if !errors.Is(err, errs.Unsafe) || strict.ClassOf(err) == "" || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Fatalf("%q has no class, or bytes that a terminal should not see", err)
		}
	})
}
