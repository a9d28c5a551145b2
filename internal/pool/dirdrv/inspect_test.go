package dirdrv_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
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

// TestLeftoversOfAnyName puts what is not tarn's into .tarn-tmp.
func TestLeftoversOfAnyName(t *testing.T) {
	d, c := newPool(t, t.TempDir())
	l := d.(driver.Leftovers)
	tmp, aside := filepath.Join(c.Path, ".tarn-tmp"), filepath.Join(c.Path, ".tarn-quarantine")
	junk := map[string]bool{ // what is yielded, and whether it is a directory
		".hid": false, "a photo": false, "dd": true, "ballast.new": false, ".new": false, ".tarn-pool.new": false, strings.Repeat("x", 255): false,
	}
	for name, isDir := range junk {
		err := os.WriteFile(filepath.Join(tmp, name), nil, 0o600)
		if isDir {
			err = errors.Join(os.Remove(filepath.Join(tmp, name)), os.Mkdir(filepath.Join(tmp, name), 0o700))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	found := map[string]bool{}
	for id, err := range l.Staged(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := junk[string(id)]; !ok {
			t.Errorf("Staged yields %q, which nobody put there", id)
		}
		found[string(id)] = true
	}
	for name := range junk {
		if !found[name] {
			t.Errorf("Staged does not yield %q", name)
		}
		if err := l.SetAside(t.Context(), driver.Ref{ID: disk.VolumeID(name)}); err != nil {
			t.Errorf("SetAside of %q: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(aside, name)); err != nil {
			t.Errorf("%q was set aside, but not kept: %v", name, err)
		}
	}
	for _, id := range []disk.VolumeID{"", ".", "..", "ballast", ".tarn-pool", "../disk"} {
		if err := l.SetAside(t.Context(), driver.Ref{ID: id}); !errors.Is(err, errs.Invalid) {
			t.Errorf("SetAside of %q = %v, want invalid", id, err)
		}
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
