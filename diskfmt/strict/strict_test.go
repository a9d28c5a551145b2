package strict_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

func TestLimits(t *testing.T) {
	for _, row := range []struct {
		limit int64
		size  uint64
		want  string
	}{
		{0, 0, strict.Empty}, {0, 1, ""}, {0, 64 << 40, ""}, {0, 64<<40 + 1, strict.Quota}, {0, 1<<64 - 1, strict.Quota},
		{4096, 4096, ""}, {4096, 4097, strict.Quota}, {1 << 62, 65 << 40, ""},
	} {
		err := strict.Limits{VirtualSize: row.limit}.Check(row.size)
		if got := strict.ClassOf(err); got != row.want || (err == nil) != (row.want == "") {
			t.Errorf("limit %d, size %d: got %v, want class %q", row.limit, row.size, err, row.want)
		}
	}
}

func TestTell(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var got int64
	l := strict.Limits{Progress: func(done, total int64) { got = done*1000 + total }}
	if err := l.Tell(ctx, 3, 7); err != nil || got != 3007 {
		t.Errorf("Tell(3, 7) = %v after %d, want 3007", err, got)
	}
	cancel()
	if err := (strict.Limits{}).Tell(ctx, 1, 2); !errors.Is(err, context.Canceled) {
		t.Errorf("after cancel: got %v, want %v", err, context.Canceled)
	}
}

func TestFile(t *testing.T) {
	f := strict.File{R: strings.NewReader("0123456789"), Size: 10}
	if b, err := f.Bytes(2, 8, "the tail"); err != nil || string(b) != "23456789" {
		t.Errorf("Bytes(2, 8) = %q, %v", b, err)
	}
	for _, row := range []struct{ off, n uint64 }{{0, 11}, {10, 1}, {11, 0}, {1<<64 - 1, 1}, {1, 1<<64 - 1}} {
		if err := f.Inside(row.off, row.n, "it"); strict.ClassOf(err) != strict.Truncated {
			t.Errorf("Inside(%d, %d) = %v, want TRUNCATED", row.off, row.n, err)
		}
	}
	shrunk := strict.File{R: strings.NewReader("0123"), Size: 10}
	if err := shrunk.Read(make([]byte, 6), 0, "the header"); strict.ClassOf(err) != strict.Truncated || !strings.Contains(err.Error(), "the header at 0x0") {
		t.Errorf("a file that shrank: got %v, want TRUNCATED of the header", err)
	}
	broken := strict.File{R: failing{}, Size: 10}
	if err := broken.Read(make([]byte, 6), 0, "the header"); !errors.Is(err, errBroken) || strict.ClassOf(err) != "" {
		t.Errorf("a failing disk: got %v, want the failure itself", err)
	}
	if err := strict.Refuse(strict.Dirty, "x"); errs.KindOf(err) != errs.Unsafe {
		t.Errorf("a refusal is %v, want unsafe", errs.KindOf(err))
	}
}

var errBroken = errors.New("I/O error")

type failing struct{}

func (failing) ReadAt([]byte, int64) (int, error) { return 0, errBroken }

func TestMap(t *testing.T) {
	type span struct{ off, n uint64 }
	for _, row := range []struct {
		name  string
		size  uint64
		spans []span
		want  string
	}{
		{"apart", 8192, []span{{0, 512}, {512, 512}, {4096, 4096}, {1024, 0}}, ""},
		{"the same", 8192, []span{{512, 512}, {512, 512}}, strict.Overlap},
		{"a byte", 8192, []span{{0, 513}, {1023, 1}}, strict.Overlap},
		{"the last unit", 8192, []span{{0, 8192}, {7680, 512}}, strict.Overlap},
		{"behind the first pass", 1 << 40, []span{{1 << 39, 4096}, {1<<39 + 2048, 512}}, strict.Overlap},
		{"across a border", 1 << 40, []span{{512*(128<<20) - 512, 1024}, {512 * (128 << 20), 512}}, strict.Overlap},
		{"apart in every pass", 1 << 38, []span{{0, 512}, {512 * (128 << 20), 512}, {1<<38 - 512, 512}}, ""},
	} {
		m, passes := strict.NewMap(row.size, 512), int64(0)
		var err error
		for err == nil && m.Next() {
			if m.First() != (passes == 0) {
				t.Errorf("%s: pass %d: First() = %v", row.name, passes, m.First())
			}
			passes++
			for _, s := range row.spans {
				if err == nil {
					err = m.Mark(s.off, s.n, "it")
				}
			}
		}
		if strict.ClassOf(err) != row.want {
			t.Errorf("%s: got %v, want class %q", row.name, err, row.want)
		}
		if row.want == "" && passes != m.Passes() {
			t.Errorf("%s: %d passes, announced %d", row.name, passes, m.Passes())
		}
	}
}

func TestQuote(t *testing.T) {
	if got := strict.Quote(bytes.Repeat([]byte{0x1b}, 100)); got != strings.Repeat("1b", 32) {
		t.Errorf("got %q", got)
	}
}
