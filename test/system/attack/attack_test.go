package attack_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/canary"
	"github.com/tarn-storage/tarn/test/system/storage"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// target is one attacked disk.
type target struct {
	ref    string // victim/data0
	owner  string // victim
	form   string // of the attack
	volume api.Volume
	size   int64  // of the disk, as recorded
	format string // as recorded
	bytes  []byte // what the attack left in the container
	deep   bool   // the damage is where opening does not look
}

// world is a daemon, a pool, and an instance whose disks were attacked.
type world struct {
	t       *testing.T
	d       *tarntest.Daemon
	canary  *canary.Canary
	store   *storage.Storage
	dir     string // holds other, and the pool that is a directory
	spared  string // a disk to delete
	outs    int
	targets []*target
	corrupt bool // overlays with damaged metadata, not raw disks
}

func newWorld(t *testing.T, tech storage.Technology) *world {
	w := &world{t: t, canary: canary.New(t), store: tech.New(t, 512<<20)}
	w.dir = filepath.Dir(w.store.Dir)
	if w.store.Dir == "" {
		w.dir = t.TempDir()
	}
	w.d = tarntest.Start(t, w.path("state"))
	w.d.Must(append([]string{"pool", "create", "main"}, w.store.Args...)...)
	image := append(tarntest.Pattern(1, 300_000), make([]byte, diskSize-300_000)...)
	w.d.Must("image", "import", "img", tarntest.WriteFile(t, "img", image), "--format", "raw")
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// disks reads all disks as tarn shows them.
func (w *world) disks() map[string]api.Disk {
	w.t.Helper()
	out := map[string]api.Disk{}
	for _, d := range tarntest.Get[api.List[api.Disk]](w.d, "disk", "list").Items {
		out[d.Instance+"/"+d.Name] = d
	}
	return out
}

// attack attaches a disk and rewrites its container as a guest would that has
// broken out of nothing yet but may write what it likes.
func (w *world) attack(ref, form string, rewrite func(path string, old []byte) []byte) {
	w.t.Helper()
	w.d.Must("disk", "attach", ref, "--as", "qemu")
	d, ok := w.disks()[ref]
	if !ok {
		w.t.Fatalf("there is no disk %s", ref)
	}
	v := tarntest.Get[api.Volume](w.d, "volume", "show", d.Volume)
	b := rewrite(v.Path, w.store.Read(w.t, v))
	w.store.Write(w.t, v, 0, b)
	w.d.Must("disk", "detach", ref)
	w.targets = append(w.targets, &target{ref: ref, owner: d.Instance, form: form, volume: v, size: d.Size, format: d.Format, bytes: b})
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

func TestHeaderOverRawDiskEverywhere(t *testing.T) {
	storage.Run(t, storage.Directories(), func(t *testing.T, tech storage.Technology) {
		t.Parallel()
		w := newWorld(t, tech)
		tried := forms
		if w.slow() {
			tried = []form{forms[0], forms[len(forms)-1]}
		}
		args := []string{"instance", "create", "victim", "--pool", "main", "--root", "img,disk-format=raw"}
		for range tried[1:] {
			args = append(args, "--data", "1M,disk-format=raw")
		}
		w.d.Must(args...)
		for i, f := range tried {
			ref := "victim/root"
			if i > 0 {
				ref = fmt.Sprintf("victim/data%d", i-1)
			}
			w.attack(ref, f.name, func(_ string, old []byte) []byte {
				copy(old, f.bytes(w.canary.Path))
				return old
			})
		}
		w.runAll()
	})
}

// slow reports whether each call takes its time, so that a sample must do.
func (w *world) slow() bool { return w.store.Dir == "" }

// runAll runs the whole table.
func (w *world) runAll() {
	w.t.Helper()
	for i, c := range commands {
		if c.args == "" {
			continue
		}
		if c.before != nil {
			c.before(w)
		}
		for _, target := range w.objects(c) {
			w.run(c, target)
		}
		if last := commands[i+1 : min(i+2, len(commands))]; !c.gone && (!w.slow() || i%10 == 0 || len(last) > 0 && last[0].gone) {
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

// objects returns what a command line is run for: every disk, one disk of every
// instance, or nothing in particular.
func (w *world) objects(c command) []*target {
	words := strings.Fields(c.args)
	has := func(s string) bool { return slices.Contains(words, s) }
	switch {
	case has("DISK"), has("VOLUME"), has("FILE"):
		return w.targets
	case has("VICTIM"):
		return slices.CompactFunc(slices.Clone(w.targets), func(a, b *target) bool { return a.owner == b.owner })
	}
	return []*target{nil}
}

func (w *world) leaks(text string) bool {
	return strings.Contains(text, strings.TrimSpace(string(w.canary.Content)))
}

// words returns a command line for target, and the file that it writes.
func (w *world) words(c command, target *target) (args []string, out string) {
	for _, a := range strings.Fields(c.args) {
		switch a {
		case "DISK":
			a = target.ref
		case "VICTIM":
			a = target.owner
		case "VOLUME":
			a = target.volume.ID
		case "FILE":
			a = w.file(target)
		case "OUT":
			w.outs++
			out = w.path(fmt.Sprintf("out%d", w.outs))
			a = out
		case "NEW":
			w.outs++
			a = fmt.Sprintf("stolen%d", w.outs)
		case "SOURCE":
			args = append(args, w.store.Args...)
			continue
		case "OTHER":
			a = w.path("other")
		case "SPARE":
			a = w.spared
		case "OP":
			a = tarntest.Get[api.List[api.Operation]](w.d, "operation", "list").Items[0].ID
		}
		args = append(args, a)
	}
	return args, out
}

// file returns the file that holds a target, or a copy where none does.
func (w *world) file(target *target) string {
	w.t.Helper()
	if w.store.Dir != "" {
		return target.volume.Path
	}
	copied := w.path("copy")
	if err := os.WriteFile(copied, w.store.Read(w.t, target.volume), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return copied
}

// run runs one command line and checks what it said.
func (w *world) run(c command, target *target) {
	w.t.Helper()
	args, out := w.words(c, target)
	want := c.status
	if w.corrupt {
		want = c.corrupt
	}
	if want == opened {
		want = 10
		if target.deep {
			want = c.status
		}
	}
	r := w.d.Run(args...)
	what := ""
	if target != nil {
		what = target.form
	}
	if target != nil && c.args == growing && r.Status == 0 && (target.deep || !w.corrupt) {
		want = 0
		unit := max(w.store.Unit, 1<<20)
		target.size = (target.size + 1<<20 + unit - 1) / unit * unit
		if w.corrupt { // the container is tarn's to change
			target.bytes = w.store.Read(w.t, target.volume)
		}
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
	} else if packed := strings.HasSuffix(c.args, "zstd") || strings.HasSuffix(c.args, "vmdk"); !packed && !bytes.Contains(got, target.bytes[:512]) {
		w.t.Errorf("%s: what %q wrote lacks the disk's first bytes", target.form, c.args)
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
	if c.args == started {
		w.startQEMU(r)
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
		if err := json.Unmarshal([]byte(arg), &node); err != nil || !slices.Contains([]string{"raw", "file", "host_device", w.store.Request.Driver}, node.Driver) {
			w.t.Errorf("-blockdev %s: %v, want a node of driver raw over one of the storage's", arg, err)
		}
	}
}

// startQEMU starts a QEMU with what an attach printed, without a guest, and has
// it read the disks. It may change a container, and mark it corrupt: the disks
// are afterwards what they were.
func (w *world) startQEMU(r tarntest.Result) {
	w.t.Helper()
	var a api.Attachment
	if err := json.Unmarshal([]byte(r.Stdout), &a); err != nil || len(a.QEMU) == 0 {
		w.t.Fatalf("no arguments for QEMU: %v in %v", err, r)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil && storage.InGuest() {
		return
	}
	qemu := exec.Command(tarntest.NeedTool(w.t, "qemu-system-x86_64"), append([]string{"-S", "-display", "none", "-nodefaults", "-accel", "tcg", "-qmp", "stdio"}, a.QEMU...)...)
	talk := `{"execute":"qmp_capabilities"}`
	for _, arg := range a.QEMU {
		if name, ok := strings.CutPrefix(arg, `{"backing":`); ok {
			_, name, _ = strings.Cut(name, `"node-name":"`)
			name, _, _ = strings.Cut(name, `"`)
			talk += fmt.Sprintf(`{"execute":"human-monitor-command","arguments":{"command-line":"qemu-io %s \"read 0 64k\""}}`, name)
		}
	}
	qemu.Stdin = strings.NewReader(talk + `{"execute":"quit"}`)
	if out, err := qemu.CombinedOutput(); err != nil {
		w.t.Errorf("QEMU does not start with what attach printed: %v\n%s\n%v", err, out, r)
	}
	for _, target := range w.targets {
		if w.corrupt {
			w.store.Write(w.t, target.volume, 0, target.bytes)
		}
	}
}

// checkTargets asks that no command but a resize changed a disk, and that every
// record still says what it said.
func (w *world) checkTargets(c command) {
	w.t.Helper()
	shown := map[string]api.Disk{} // by volume: an instance may have another name just now
	for _, d := range w.disks() {
		shown[d.Volume] = d
	}
	for _, target := range w.targets {
		got := w.store.Read(w.t, target.volume)
		if !bytes.HasPrefix(got, target.bytes) {
			w.t.Errorf("%s: the disk's bytes changed (%d bytes) by tarn %s", target.form, len(got), c.args)
			continue
		}
		if rest := got[len(target.bytes):]; !bytes.Equal(rest, make([]byte, len(rest))) {
			w.t.Errorf("%s: what tarn %s added does not read as zeroes", target.form, c.args)
		}
		d, ok := shown[target.volume.ID]
		if len(shown) == 0 {
			continue // no record just now: the database is lost or the pool was given up
		}
		if !ok || d.Format != target.format || d.Size != target.size || d.Path != target.volume.Path && d.Path != "" { // a stopped pool's have none
			w.t.Errorf("%s: after tarn %s the record says %s of %d bytes at %s, want %s of %d", target.form, c.args, d.Format, d.Size, d.Path, target.format, target.size)
		}
	}
}

// twinless removes what else keeps the pool from being given up.
func (w *world) twinless() { w.d.Must("instance", "delete", "twin", "--yes") }

// spare makes a disk to delete, so that a wrong deletion would show.
func (w *world) spare() {
	before := w.disks()
	w.d.Must("disk", "create", "victim", "--data", "1M,pool=main")
	for ref := range w.disks() {
		if _, old := before[ref]; !old {
			w.spared = ref
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
