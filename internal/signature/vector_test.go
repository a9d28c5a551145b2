package signature

import (
	"path/filepath"
	"testing"
	"time"
)

// vectors are signatures that minisign 0.11 and GnuPG 2.2 made of
// testdata/SHA256SUMS, so that a test needs no tools.
var vectors = []struct {
	key, sig, id string
	once         bool // covers an image that is read once
}{
	{"m.pub", "hashed.minisig", "B676D43BDAD91F40", true},
	{"m.pub", "legacy.minisig", "B676D43BDAD91F40", false},
	{"key.asc", "SHA256SUMS.asc", "", true},
	{"key.asc", "SHA256SUMS.gpg", "", true},
}

var vectorTime = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)

func TestVectors(t *testing.T) {
	at := func(name string) []byte { return read(t, filepath.Join("testdata", name)) }
	sums := at("SHA256SUMS")
	for _, v := range vectors {
		who, err := Verify(at(v.key), at(v.sig), sums, vectorTime)
		if err != nil || v.id != "" && who.KeyID != v.id || v.id == "" && who.Name != "Images <images@example.org>" {
			t.Errorf("%s: got %+v, %v", v.sig, who, err)
		}
		if again, err := stream(at(v.key), at(v.sig), sums, vectorTime); v.once && (err != nil || again != who) || !v.once && err == nil {
			t.Errorf("%s, read once: got %+v, %v", v.sig, again, err)
		}
		for i := range sums {
			if who, err := Verify(at(v.key), at(v.sig), changed(sums, i), vectorTime); err == nil {
				t.Fatalf("%s: byte %d is changed, and %+v signed it", v.sig, i, who)
			}
		}
	}
	plain, who, err := Cleartext(at("key.asc"), at("CHECKSUM"), vectorTime)
	if err != nil || who.Scheme != "openpgp" {
		t.Errorf("CHECKSUM: %+v, %v", who, err)
	}
	got, err := ParseSums(plain)
	if d := got["disk.img"]; err != nil || d.Hex != a256 {
		t.Errorf("CHECKSUM names %v, %v", got, err)
	}
}
