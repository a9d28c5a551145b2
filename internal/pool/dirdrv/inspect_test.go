package dirdrv_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

func TestLeftovers(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	l := d.(driver.Leftovers)
	const id = disk.VolumeID("0198aaaa-0000-7000-8000-000000000001")
	for _, s := range []disk.VolumeID{id, id + ".raw"} {
		if err := d.Create(t.Context(), driver.Spec{ID: s, Size: 4096}); err != nil {
			t.Fatal(err)
		}
	}
	part := filepath.Join(c.Path, ".tarn-tmp", "half.new")
	if err := os.WriteFile(part, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	staged := func() (ids []disk.VolumeID) {
		for id, err := range l.Staged(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, id)
		}
		slices.Sort(ids)
		return ids
	}
	if got, want := staged(), []disk.VolumeID{id, id + ".raw", "half"}; !slices.Equal(got, want) {
		t.Errorf("staged are %v, want %v", got, want)
	}
	for range 2 { // what is not there is not an error
		for _, s := range []disk.VolumeID{id, id + ".raw", "half"} {
			if err := l.SetAside(t.Context(), driver.Ref{ID: s}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Create(t.Context(), driver.Spec{ID: id, Size: 4096}); err != nil {
		t.Fatal(err)
	}
	if err := l.SetAside(t.Context(), driver.Ref{ID: id}); err != nil {
		t.Fatal(err)
	}
	if got := staged(); len(got) != 0 {
		t.Errorf("staged are still %v", got)
	}
	for _, name := range []string{string(id), string(id) + ".1", string(id) + ".raw", "half.new"} {
		if _, err := os.Stat(filepath.Join(c.Path, ".tarn-quarantine", name)); err != nil {
			t.Errorf("set aside, but not kept: %v", err)
		}
	}
	for o, err := range d.List(t.Context()) {
		t.Errorf("the quarantine is listed: %v, %v", o, err)
	}
}

func TestProtection(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	p := d.(driver.Protector)
	for _, base := range []bool{false, true} {
		r := driver.Ref{ID: disk.VolumeID("0198aaaa-0000-7000-8000-00000000000" + map[bool]string{false: "1", true: "2"}[base])}
		if err := d.Create(t.Context(), driver.Spec{ID: r.ID, Size: 4096}); err != nil {
			t.Fatal(err)
		}
		r.Name = string(r.ID) + ".raw"
		obj, err := d.Publish(t.Context(), r.ID, r.Name, base, []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		r.BackendID = obj.BackendID
		exposure := func(when string, want bool) {
			t.Helper()
			got, err := p.Exposure(t.Context(), r, base)
			if err != nil || (got != "") != want {
				t.Errorf("base %v, %s: exposure is %q, %v; want one: %v", base, when, got, err, want)
			}
		}
		exposure("published", false)
		if err := os.Chmod(filepath.Join(c.Path, r.Name), 0o666); err != nil {
			t.Fatal(err)
		}
		exposure("after chmod", true)
		if os.Geteuid() == 0 {
			if err := p.Protect(t.Context(), r, base); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(filepath.Join(c.Path, r.Name), 1, 1); err != nil {
				t.Fatal(err)
			}
			exposure("after chown", true)
		}
		if err := p.Protect(t.Context(), r, base); err != nil {
			t.Fatal(err)
		}
		exposure("protected again", false)
	}
}
