package raw_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/diskfmttest"
	"github.com/tarn-storage/tarn/diskfmt/raw"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*raw.Reader)(nil)

type fixed []diskfmt.Extent

func (f fixed) NextExtent(off int64) (diskfmt.Extent, error) {
	for _, e := range f {
		if off >= e.Offset && off < e.End() {
			return diskfmt.Extent{Offset: off, Length: e.End() - off, Kind: e.Kind}, nil
		}
	}
	return diskfmt.Extent{}, nil
}

func TestOpenRefusesWhatTheRecordDoesNotSay(t *testing.T) {
	backed := diskfmttest.Raw(1024)
	backed.BackingName = "base"
	for _, c := range []struct {
		name string
		size int64
		want diskfmt.Recorded
		kind errs.Kind
	}{
		{"shorter", 512, diskfmttest.Raw(1024), errs.Corrupt},
		{"longer", 2048, diskfmttest.Raw(1024), errs.Corrupt},
		{"no size", 0, diskfmttest.Raw(0), errs.Corrupt},
		{"backed", 1024, backed, errs.Corrupt},
		{"not raw", 1024, diskfmttest.Qcow2(1024, 65536), errs.Internal},
	} {
		_, err := raw.Open(bytes.NewReader(make([]byte, c.size)), c.size, c.want, nil)
		if !errors.Is(err, c.kind) {
			t.Errorf("%s: got %v, want kind %v", c.name, err, c.kind)
		}
	}
}

func TestReadAtEndsAtTheRecordedSize(t *testing.T) {
	disk := []byte("0123456789abcdef")
	r, err := raw.Open(bytes.NewReader(append(disk, "beyond"...)), 16, diskfmttest.Raw(16), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		off  int64
		n    int
		want string
		err  error
	}{
		{0, 16, "0123456789abcdef", nil},
		{12, 4, "cdef", nil},
		{12, 8, "cdef", io.EOF},
		{16, 1, "", io.EOF},
	} {
		p := make([]byte, c.n)
		n, err := r.ReadAt(p, c.off)
		if string(p[:n]) != c.want || err != c.err {
			t.Errorf("ReadAt(%d bytes, %d) = %q, %v; want %q, %v", c.n, c.off, p[:n], err, c.want, c.err)
		}
	}
}

func TestMapFollowsTheExtentSource(t *testing.T) {
	src := fixed{{Offset: 0, Length: 4096, Kind: diskfmt.Data}, {Offset: 4096, Length: 1 << 20, Kind: diskfmt.Zero}}
	r, err := raw.Open(bytes.NewReader(make([]byte, 8192)), 8192, diskfmttest.Raw(8192), src)
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Map(1024)
	if want := (diskfmt.Mapping{Extent: diskfmt.Extent{Offset: 1024, Length: 3072, Kind: diskfmt.Data}, HostOffset: 1024, HostLength: 3072}); m != want || err != nil {
		t.Errorf("Map(1024) = %+v, %v; want %+v", m, err, want)
	}
	m, err = r.Map(4096)
	if want := (diskfmt.Mapping{Extent: diskfmt.Extent{Offset: 4096, Length: 4096, Kind: diskfmt.Zero}}); m != want || err != nil {
		t.Errorf("Map(4096) = %+v, %v; want %+v, cut at the disk's end", m, err, want)
	}
	if _, err := r.Extent(8192); !errors.Is(err, errs.Invalid) {
		t.Errorf("Extent at the end: got %v, want %v", err, errs.Invalid)
	}
	broken, err := raw.Open(bytes.NewReader(make([]byte, 8192)), 8192, diskfmttest.Raw(8192), fixed(nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := broken.Extent(0); !errors.Is(err, errs.Internal) {
		t.Errorf("a source that answers nothing: got %v, want %v", err, errs.Internal)
	}
}
