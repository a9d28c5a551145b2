package lvmdrv

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// volume returns the path of a file that stands in for a records volume of n
// slots: what package records does to a device it does to a file.
func volume(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "records")
	if err := os.WriteFile(path, make([]byte, n*2*copySize), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t *testing.T, path string) *records {
	t.Helper()
	r, err := openRecords(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.close() })
	return r
}

func TestRecordsLastAcrossOpenings(t *testing.T) {
	path := volume(t, 4)
	r := open(t, path)
	if _, err := r.marker(); !errors.Is(err, errs.NotFound) {
		t.Errorf("a fresh volume's marker: %v, want not_found", err)
	}
	for i := range 5 { // more often than there are copies
		for _, err := range []error{r.putMarker(fmt.Appendf(nil, "marker %d", i)), r.put(record{Name: "a", ID: "1", Object: "x", Data: fmt.Appendf(nil, "%d", i)})} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	big := bytes.Repeat([]byte("b"), driver.RecordSize)
	if err := errors.Join(r.put(record{Name: "b", Data: big}), r.put(record{Name: "c"}), r.rename("c", "d"), r.remove("missing")); err != nil {
		t.Fatal(err)
	}
	if err := r.put(record{Name: "e"}); !errors.Is(err, errs.NoSpace) {
		t.Errorf("a fourth volume in four slots: %v, want no_space", err)
	}
	if err := r.put(record{Name: "b", Data: append(big, 'x')}); !errors.Is(err, errs.Invalid) {
		t.Errorf("too large a record: %v, want invalid", err)
	}
	if err := r.remove("d"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []*records{r, open(t, path)} {
		m, err := r.marker()
		if err != nil || string(m) != "marker 4" {
			t.Errorf("the marker is %q, %v", m, err)
		}
		a, _ := r.get("a")
		b, _ := r.get("b")
		if string(a.Data) != "4" || a.ID != "1" || !r.has("a", "x") || !bytes.Equal(b.Data, big) {
			t.Errorf("record a is %+v, b has %d bytes", a, len(b.Data))
		}
		if len(r.all()) != 2 || r.free() != 1 || r.volumes() != 3 {
			t.Errorf("%d records, %d of %d free", len(r.all()), r.free(), r.volumes())
		}
	}
}

// TestRecordsTornWrite damages each sector of the copy that was written last.
func TestRecordsTornWrite(t *testing.T) {
	path := volume(t, 2)
	r := open(t, path)
	for _, data := range []string{"first", "second"} {
		if err := r.put(record{Name: "a", Data: []byte(strings.Repeat(data, 1000))}); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := 2*copySize + copySize*r.slots[1].copy
	torn := 0
	for off := at; off < at+copySize; off += 512 {
		b := bytes.Clone(whole)
		clear(b[off : off+512])
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		rec, ok := open(t, path).get("a")
		got := string(rec.Data[:min(5, len(rec.Data))])
		if !ok || got != "first" && got != "secon" {
			t.Fatalf("with sector %d torn the record is %q, %v", (off-at)/512, got, ok)
		}
		if got == "first" {
			torn++
		}
	}
	if torn < 6 {
		t.Errorf("%d sectors of the copy matter, want those of 6,000 bytes", torn)
	}
	for c := range 2 {
		clear(whole[2*copySize+c*copySize:][:512])
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if rec, ok := open(t, path).get("a"); ok {
		t.Errorf("with both copies gone there is %+v", rec)
	}
}

func TestRecordsOfAnotherVersion(t *testing.T) {
	path := volume(t, 2)
	if err := open(t, path).put(record{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	b = bytes.Replace(b, []byte("tarn-records 1"), []byte("tarn-records 2"), 1)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := openRecords(path); !errors.Is(err, errs.Version) {
		t.Errorf("records of version 2: %v, %v; want newer_version", r, err)
	}
}

func TestRecordsAreServedOnce(t *testing.T) {
	path := volume(t, 2)
	first, second := open(t, path), open(t, path)
	if err := first.claim("op", "vg"); err != nil {
		t.Fatal(err)
	}
	if err := second.claim("op", "vg"); !errors.Is(err, errs.Busy) {
		t.Errorf("a second claim: %v, want busy", err)
	}
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	if err := second.claim("op", "vg"); err != nil {
		t.Errorf("a claim after the first is closed: %v", err)
	}
}

func FuzzDecode(f *testing.F) {
	whole, err := encode(record{Generation: 1, Name: "a", Data: []byte("data")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		rec, ok, err := decode(b)
		if !ok {
			return
		}
		again, eerr := encode(rec)
		if back, ok, _ := decode(again); err != nil || eerr == nil && (!ok || back.Name != rec.Name || !bytes.Equal(back.Data, rec.Data)) {
			t.Errorf("%+v, %v does not come back: %+v, %v", rec, err, back, eerr)
		}
	})
}

func TestNames(t *testing.T) {
	p := &pool{source: &source{vg: "v-g"}}
	for name, ok := range map[string]bool{
		"a": true, "A.b_c-9": true, "base_0123.raw": true, "lvol0": true,
		"": false, "-a": false, "a+b": false, "a b": false, "a/b": false, ".a": false, "snapshot1": false, "pvmove0": false, "x_tdata": false,
		strings.Repeat("n", 100): true, strings.Repeat("n", 101): false, strings.Repeat("-", 60): false, "a" + strings.Repeat("-", 60): false,
	} {
		if err := p.checkName("op", name); (err == nil) != ok || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, want it to be fine: %v", name, err, ok)
		}
	}
	if got := dmName("v-g", "a-b"); got != "v--g-a--b" {
		t.Errorf("device-mapper's name is %q", got)
	}
}

func TestSharedGroups(t *testing.T) {
	row := map[string]string{"vg_size": "1", "vg_free": "1", "vg_extent_size": "1", "vg_mda_size": "1"}
	for _, shared := range []struct{ field, value, want string }{
		{"vg_lock_type", "none", ""},
		{"vg_lock_type", "", ""},
		{"vg_lock_type", "sanlock", "sanlock"},
		{"vg_shared", "shared", "shared"},
		{"vg_clustered", "clustered", "clustered"},
	} {
		r := maps.Clone(row)
		r[shared.field] = shared.value
		g, err := groupOf(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := g.private("op", "vg"); errors.Is(err, errs.Unsupported) != (shared.want != "") || err != nil && !strings.Contains(err.Error(), shared.want) {
			t.Errorf("a group whose %s is %q: %v, want it refused: %v", shared.field, shared.value, err, shared.want != "")
		}
	}
}
