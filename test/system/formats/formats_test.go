// Package formats_test brings hostile images of every format and wrapper to the
// shipped gate: each is refused alike by inspection and by import, says what is
// wrong and where, leaves nothing behind, and makes nobody open what it names.
package formats_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/canary"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// row is one hostile image.
type row struct {
	name  string
	file  []byte
	class string
	says  string // part of the message
	flags string // beside --format
	files map[string][]byte
}

// world is a daemon with one pool, and what no image may make anybody touch: a
// file, and a port on which somebody listens.
type world struct {
	t      *testing.T
	d      *tarntest.Daemon
	dir    string
	canary *canary.Canary
	port   net.Listener
	before string // what the pool held
	seen   map[string]int
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, dir: t.TempDir(), canary: canary.New(t), seen: map[string]int{}}
	w.d = tarntest.Start(t, filepath.Join(w.dir, "state"))
	w.d.Must("pool", "create", "main", "--driver", "dir", "--path", filepath.Join(w.dir, "pool"))
	var err error
	if w.port, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.port.Close() })
	w.before = w.pool()
	return w
}

// url leads to the port.
func (w *world) url(scheme string) string { return scheme + "://" + w.port.Addr().String() + "/canary" }

// pool lists the files of the pool.
func (w *world) pool() string {
	w.t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(w.dir, "pool"), func(path string, e os.DirEntry, err error) error {
		fmt.Fprintln(&all, path)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return all.String()
}

// place is a number in a message: an offset, a line, an entry, a size.
var place = regexp.MustCompile(`0x[0-9a-f]+|\d`)

// refuse brings one image of a format to the gate.
func (w *world) refuse(format string, r row) {
	w.t.Helper()
	path := filepath.Join(w.dir, "image")
	defer os.RemoveAll(path)
	if r.files == nil {
		if err := os.WriteFile(path, r.file, 0o644); err != nil {
			w.t.Fatal(err)
		}
	} else if err := os.Mkdir(path, 0o755); err != nil {
		w.t.Fatal(err)
	}
	for name, b := range r.files {
		if err := os.WriteFile(filepath.Join(path, name), b, 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	w.refusePath(format, path, r)
}

// refusePath has the gate judge what lies at path, twice.
func (w *world) refusePath(format, path string, r row) {
	w.t.Helper()
	flags := append(strings.Fields(r.flags), "--format", format, "-o", "json")
	inspected := w.d.Run(append([]string{"image", "inspect", path}, flags...)...)
	var v api.Verdict
	err := json.Unmarshal([]byte(inspected.Stdout), &v)
	if err != nil || inspected.Status != 5 || v.Verdict != "reject" || v.Error != r.class || !strings.Contains(v.Detail, r.says) {
		w.t.Errorf("%s, %s: want class %s and %q (%v) of %v", format, r.name, r.class, r.says, err, inspected)
	}
	text := format == "ova" || r.files != nil // the parts of a description have names, not offsets
	if !place.MatchString(v.Detail) && !text && !slices.Contains([]string{"EMPTY", "FORMAT_MISMATCH", "UNSUPPORTED_FORMAT", "EXTERNAL_REFERENCE"}, r.class) {
		w.t.Errorf("%s, %s: %q does not say where", format, r.name, v.Detail)
	}
	imported := w.d.Run(append([]string{"image", "import", "new", path}, flags...)...)
	var body api.ErrorBody
	err = json.Unmarshal([]byte(imported.Stderr), &body)
	same := body.Error.Message == v.Detail || r.class == "QUOTA" // an import holds what is packed against its reservation, too
	if err != nil || imported.Status != 5 || body.Error.Class != v.Error || !same {
		w.t.Errorf("%s, %s: inspection said %s, %q (%v), import says %v", format, r.name, v.Error, v.Detail, err, imported)
	}
	if r.files == nil {
		piped := w.d.RunInput(bytes.NewReader(r.file), append([]string{"image", "import", "new", "-"}, flags...)...)
		body = api.ErrorBody{}
		if err := json.Unmarshal([]byte(piped.Stderr), &body); err != nil || piped.Status != 5 || body.Error.Class != r.class {
			w.t.Errorf("%s, %s, as a stream: want class %s (%v) of %v", format, r.name, r.class, err, piped)
		}
	}
	if got := w.pool(); got != w.before {
		w.t.Fatalf("%s, %s: the pool has\n%swant\n%s", format, r.name, got, w.before)
	}
	if out := inspected.Stdout + inspected.Stderr + imported.Stdout + imported.Stderr; strings.Contains(out, strings.TrimSpace(string(w.canary.Content))) || strings.Contains(out, w.canary.Path) {
		w.t.Errorf("%s, %s: what the image names is in the output: %v %v", format, r.name, inspected, imported)
	}
	w.seen[r.class]++
}

// finish asks that nothing was opened, nobody connected, and nothing is left.
func (w *world) finish() {
	w.t.Helper()
	w.canary.AssertNeverOpened(w.t)
	own, err := net.Dial("tcp", w.port.Addr().String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer own.Close()
	if c, err := w.port.Accept(); err != nil || c.RemoteAddr().String() != own.LocalAddr().String() {
		w.t.Errorf("somebody connected before this test did itself: %v, %v", c, err)
	} else {
		c.Close()
	}
	if l := tarntest.Get[api.List[api.Image]](w.d, "image", "list"); len(l.Items) != 0 {
		w.t.Errorf("images are left: %+v", l.Items)
	}
	if l := tarntest.Get[api.List[api.Volume]](w.d, "volume", "list"); len(l.Items) != 0 {
		w.t.Errorf("volumes are left: %+v", l.Items)
	}
	w.d.AssertHealthy()
	w.d.AssertSettled()
}
