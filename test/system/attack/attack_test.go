package attack_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/canary"
	"github.com/tarn-storage/tarn/test/system/fsloop"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// target is one attacked disk.
type target struct {
	ref    string // victim/data0
	form   string // of the attack
	path   string
	volume string
	size   int64  // of the disk, as recorded
	format string // as recorded
	bytes  []byte // what the attack left in the file
}

// world is a daemon, a pool, and an instance whose disks were attacked.
type world struct {
	t       *testing.T
	d       *tarntest.Daemon
	canary  *canary.Canary
	dir     string // holds pool and other
	outs    int
	targets []*target
	corrupt bool // overlays with damaged metadata, not raw disks
}

// places are where everything is tried: what can reflink, what cannot, and
// whatever a user without privileges has.
var places = []struct {
	name string
	dir  func(t *testing.T) string
}{
	{"xfs", func(t *testing.T) string { return fsloop.XFS(t, 512<<20).Dir }},
	{"ext4", func(t *testing.T) string { return fsloop.Ext4(t, 512<<20).Dir }},
	{"directory", func(t *testing.T) string { return t.TempDir() }},
}

func newWorld(t *testing.T, dir string) *world {
	w := &world{t: t, canary: canary.New(t), dir: dir}
	w.d = tarntest.Start(t, filepath.Join(dir, "state"))
	w.d.Must("pool", "create", "main", "--driver", "dir", "--path", w.path("pool"))
	image := append(tarntest.Pattern(1, 300_000), make([]byte, diskSize-300_000)...)
	w.d.Must("image", "import", "img", tarntest.WriteFile(t, "img", image), "--format", "raw")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// disks reads the victim's disks as tarn shows them.
func (w *world) disks() map[string]api.Disk {
	w.t.Helper()
	out := map[string]api.Disk{}
	for _, d := range tarntest.Get[api.List[api.Disk]](w.d, "disk", "list", "--instance", "victim").Items {
		out["victim/"+d.Name] = d
	}
	return out
}

// attack attaches the victim and rewrites the files of its disks as a guest
// would, in the order of their references.
func (w *world) attack(refs []string, names []string, rewrite func(i int, old []byte) []byte) {
	w.t.Helper()
	w.d.Must("instance", "attach", "victim", "--as", "qemu")
	for i, ref := range refs {
		d, ok := w.disks()[ref]
		if !ok {
			w.t.Fatalf("there is no disk %s", ref)
		}
		old, err := os.ReadFile(d.Path)
		if err != nil {
			w.t.Fatal(err)
		}
		b := rewrite(i, bytes.Clone(old))
		f, err := os.OpenFile(d.Path, os.O_WRONLY, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			w.t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			w.t.Fatal(err)
		}
		w.targets = append(w.targets, &target{ref: ref, form: names[i], path: d.Path, volume: d.Volume, size: d.Size, format: d.Format, bytes: b})
	}
	w.d.Must("instance", "detach", "victim")
}

// TestEveryCommandIsTried fails when the tree has a command that the table
// lacks, or the other way round.
func TestEveryCommandIsTried(t *testing.T) {
	var tried []string
	for _, c := range commands {
		if (c.args == "") == (c.why == "") {
			t.Errorf("%s: needs a command line, or the reason why it cannot touch a disk", c.path)
		}
		if c.args != "" && !strings.HasPrefix(c.args, c.path) {
			t.Errorf("%s: runs %q", c.path, c.args)
		}
		tried = append(tried, c.path)
	}
	known := leaves()
	for _, path := range known {
		if !slices.Contains(tried, path) {
			t.Errorf("tarn %s is not in the table of attacks", path)
		}
	}
	for _, path := range tried {
		if !slices.Contains(known, path) {
			t.Errorf("the table has tarn %s, which does not exist", path)
		}
	}
	if len(known) < 40 {
		t.Errorf("the tree has only %d commands: %v", len(known), known)
	}
}

func TestHeaderOverRawDisk(t *testing.T) {
	for _, place := range places {
		t.Run(place.name, func(t *testing.T) {
			w := newWorld(t, place.dir(t))
			args := []string{"instance", "create", "victim", "--pool", "main", "--root", "img,disk-format=raw"}
			refs, names := []string{"victim/root"}, []string{forms[0].name}
			for i, f := range forms[1:] {
				args = append(args, "--data", "1M,disk-format=raw")
				refs, names = append(refs, fmt.Sprintf("victim/data%d", i)), append(names, f.name)
			}
			w.d.Must(args...)
			w.attack(refs, names, func(i int, old []byte) []byte {
				copy(old, forms[i].bytes(w.canary.Path))
				return old
			})
			w.runAll()
		})
	}
}

// runAll runs the whole table.
func (w *world) runAll() {
	w.t.Helper()
	for _, c := range commands {
		if c.args == "" {
			continue
		}
		if c.before != nil {
			c.before(w)
		}
		if strings.Contains(c.args, "DISK") || strings.Contains(c.args, "VOLUME") || strings.Contains(c.args, "FILE") {
			for _, target := range w.targets {
				w.run(c, target)
			}
		} else {
			w.run(c, nil)
		}
		if !c.gone {
			w.checkTargets(c)
		}
		w.canary.AssertNeverOpened(w.t)
		if w.t.Failed() {
			w.t.Fatalf("after: tarn %s\ntarnd warned:\n%s", c.args, w.d.Warnings())
		}
	}
	if w.leaks(w.d.Log()) {
		w.t.Errorf("the daemon's log has the canary's content")
	}
}

func (w *world) leaks(text string) bool {
	return strings.Contains(text, strings.TrimSpace(string(w.canary.Content)))
}

// run runs one command line and checks what it said.
func (w *world) run(c command, target *target) {
	w.t.Helper()
	args := strings.Fields(c.args)
	out := ""
	for i, a := range args {
		switch a {
		case "DISK":
			args[i] = target.ref
		case "VOLUME":
			args[i] = target.volume
		case "FILE":
			args[i] = target.path
		case "OUT":
			w.outs++
			out = filepath.Join(w.dir, fmt.Sprintf("out%d", w.outs))
			args[i] = out
		case "POOL":
			args[i] = w.path("pool")
		case "OTHER":
			args[i] = w.path("other")
		case "OP":
			args[i] = tarntest.Get[api.List[api.Operation]](w.d, "operation", "list").Items[0].ID
		}
	}
	want := c.status
	if w.corrupt {
		want = c.corrupt
	}
	r := w.d.Run(args...)
	what := ""
	if target != nil {
		what = target.form
	}
	if want != anyStatus && r.Status != want {
		w.t.Errorf("%s: want exit status %d of %v", what, want, r)
	}
	if r.Status == 1 || r.Status < 0 {
		w.t.Errorf("%s: %v", what, r)
	}
	if w.leaks(r.Stdout + r.Stderr) {
		w.t.Errorf("%s: the canary's content is in the output of %v", what, r)
	}
	w.checkAttachment(c, r)
	if target == nil || r.Status != 0 || c.path != "disk export" {
		if left, err := os.Stat(out); err == nil && out != "" && r.Status != 0 {
			w.t.Errorf("%s: %s left %s of %d bytes behind", what, c.args, out, left.Size())
		}
		return
	}
	w.checkExport(c, *target, out, r.Stdout)
}

// checkExport compares what an export delivered with the disk's own bytes.
func (w *world) checkExport(c command, target target, out, stdout string) {
	w.t.Helper()
	got := []byte(stdout)
	if out != "" {
		var err error
		if got, err = os.ReadFile(out); err != nil {
			w.t.Fatal(err)
		}
		defer os.Remove(out)
	}
	if w.leaks(string(got)) {
		w.t.Errorf("%s: the canary's content is in the export", target.form)
	}
	if strings.HasSuffix(c.args, "raw") {
		if want := append(bytes.Clone(target.bytes), make([]byte, target.size-int64(len(target.bytes)))...); !bytes.Equal(got, want) {
			w.t.Errorf("%s: the export of %d bytes is not what the disk of %d bytes holds", target.form, len(got), len(want))
		}
	} else if !bytes.Contains(got, target.bytes[:512]) { // clusters are not compressed
		w.t.Errorf("%s: the export as qcow2 lacks the disk's first bytes", target.form)
	}
}

// checkAttachment asks that a hypervisor is told every node's driver, and no
// file but the pool's.
func (w *world) checkAttachment(c command, r tarntest.Result) {
	w.t.Helper()
	if !strings.Contains(c.args, "--as ") || r.Status != 0 {
		return
	}
	if strings.Contains(r.Stdout, w.canary.Path) {
		w.t.Errorf("the canary is in %v", r)
	}
	if w.corrupt {
		return
	}
	for _, format := range []string{"qcow2", "vmdk"} {
		if strings.Contains(r.Stdout, format) {
			w.t.Errorf("a raw disk is called %s in %v", format, r)
		}
	}
	var a api.Attachment
	if json.Unmarshal([]byte(r.Stdout), &a) != nil {
		return
	}
	for i, arg := range a.QEMU {
		var node struct{ Driver, Filename string }
		if i == 0 || a.QEMU[i-1] != "-blockdev" {
			continue
		}
		if err := json.Unmarshal([]byte(arg), &node); err != nil || node.Driver != "raw" && node.Driver != "file" {
			w.t.Errorf("-blockdev %s: %v, want a node of driver raw or file", arg, err)
		}
	}
}

// checkTargets asks that no command but a resize changed a disk, and that every
// record still says what it said.
func (w *world) checkTargets(c command) {
	w.t.Helper()
	var shown map[string]api.Disk
	if r := w.d.Run("disk", "list", "--instance", "victim", "-o", "json"); r.Status == 0 {
		shown = w.disks()
	}
	for _, target := range w.targets {
		if !w.corrupt && c.args == "disk resize DISK +1M" {
			target.size += 1 << 20
		}
		got, err := os.ReadFile(target.path)
		if err != nil || !bytes.HasPrefix(got, target.bytes) {
			w.t.Errorf("%s: the disk's bytes changed (%d bytes, %v) by tarn %s", target.form, len(got), err, c.args)
			continue
		}
		if rest := got[len(target.bytes):]; !bytes.Equal(rest, make([]byte, len(rest))) {
			w.t.Errorf("%s: what tarn %s added does not read as zeroes", target.form, c.args)
		}
		d, ok := shown[target.ref]
		if shown == nil {
			continue // no record just now: the database is lost or the pool was given up
		}
		if !ok || d.Format != target.format || d.Size != target.size || d.Path != target.path && d.Path != "" { // a stopped pool's have none
			w.t.Errorf("%s: after tarn %s the record says %s of %d bytes at %s, want %s of %d", target.form, c.args, d.Format, d.Size, d.Path, target.format, target.size)
		}
	}
}

// twinless removes what else keeps the pool from being given up.
func (w *world) twinless() { w.d.Must("instance", "delete", "twin", "--yes") }

// spare makes a disk to delete, so that a wrong deletion would show.
func (w *world) spare() {
	for n := 0; ; n++ {
		before := len(w.disks())
		w.d.Must("disk", "create", "victim", "--data", "1M,pool=main")
		if _, ok := w.disks()["victim/data9"]; ok {
			return
		}
		if n > 12 || len(w.disks()) != before+1 {
			w.t.Fatal("victim/data9 cannot be made")
		}
	}
}
