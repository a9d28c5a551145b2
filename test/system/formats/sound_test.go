package formats_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSoundImages imports an image of every format and in every wrapper, from a
// file and through a pipe, makes a disk of it and compares the disk's bytes with
// those that the image was made from.
func TestSoundImages(t *testing.T) {
	w := newWorld(t)
	for name, make := range w.formats() {
		sound, _ := make()
		content := disk()
		if name == "iso" || name == "luks" { // kept as they are
			content = sound
		}
		w.becomesDisk(name, sound, content, "--format", name)
	}
	for _, name := range []string{"gzip", "xz", "zstd", "bzip2"} {
		w.becomesDisk(name, packed(t, name, disk()), disk(), "--format", "raw", "--compression", name)
		vmdk := converted(t, "vmdk", "-o", "subformat=streamOptimized")
		w.becomesDisk("vmdk-"+name, packed(t, name, vmdk), disk(), "--format", "vmdk", "--compression", name)
	}
	w.d.AssertHealthy()
}

// becomesDisk imports file twice; both images have one content, so one base.
func (w *world) becomesDisk(name string, file, content []byte, claim ...string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "sound")
	if err := os.WriteFile(path, file, 0o644); err != nil {
		w.t.Fatal(err)
	}
	w.d.Must(append([]string{"image", "import", name, path}, claim...)...)
	if r := w.d.RunInput(bytes.NewReader(file), append([]string{"image", "import", name + "-piped", "-"}, claim...)...); r.Status != 0 {
		w.t.Errorf("%s through a pipe: %s", name, r)
	}
	w.d.Must("instance", "create", "vm-"+name, "--root", name)
	out := filepath.Join(w.t.TempDir(), "disk")
	w.d.Must("disk", "export", "vm-"+name+"/root", out, "--format", "raw")
	got := read(w.t, out)
	rest := got[min(len(content), len(got)):] // a format may round the size up
	if !bytes.HasPrefix(got, content) || len(bytes.Trim(rest, "\x00")) > 0 || len(rest) > 1<<20 {
		w.t.Errorf("%s: the disk reads %d bytes that differ from the %d of its source", name, len(got), len(content))
	}
	if images := w.d.Must("cache", "list").String(); !strings.Contains(images, name) {
		w.t.Errorf("%s has no base: %s", name, images)
	}
	w.d.Must("instance", "delete", "vm-"+name, "--yes")
}
