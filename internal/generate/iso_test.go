package generate

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/tarn-storage/tarn/errs"
)

// drive writes entries the way a disk gets them: spooled, then generated.
func drive(t *testing.T, label string, entries []Entry) Target {
	t.Helper()
	var spool bytes.Buffer
	if err := WriteSpool(&spool, entries); err != nil {
		t.Fatal(err)
	}
	size, err := Size(entries)
	if err != nil {
		t.Fatal(err)
	}
	d := disk(t, (size+4095)/4096*4096)
	if err := configDrive(label, spool.Bytes()).Run(t.Context(), d, &spool); err != nil {
		t.Fatal(err)
	}
	return d
}

func configDrive(label string, spool []byte) Request {
	sum := sha256.Sum256(spool)
	return Request{Kind: ConfigDrive, Label: label, Time: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC),
		Input: &Input{ID: "spool-1", SHA256: hex.EncodeToString(sum[:]), Size: int64(len(spool))}}
}

// openStack is a tree with everything that is hard to name.
func openStack() []Entry {
	entries := []Entry{
		{Path: "openstack", Dir: true, Mode: 0o750},
		{Path: "openstack/latest/meta_data.json", Content: []byte(`{"uuid":"x"}`), Mode: 0o640},
		{Path: "openstack/latest/user_data", Content: []byte("#!/bin/sh\n"), Mode: 0o755},
		{Path: "openstack/latest/empty"},
		{Path: "openstack/content/0000", Content: bytes.Repeat([]byte("0123456789abcdef"), 200_000)},
		{Path: "openstack/content/0001", Content: bytes.Repeat([]byte{1}, sector)},
		{Path: "openstack/content/0002", Content: bytes.Repeat([]byte{2}, sector+1)},
		{Path: "ec2", Dir: true},
		{Path: "1/2/3/4/5/6/7/eight", Content: []byte("deep")},
		{Path: "names/a b", Content: []byte("space")},
		{Path: "names/A B", Content: []byte("other case")},
		{Path: "names/.hidden", Content: []byte("dot")},
		{Path: "names/no.ext.end.", Content: []byte("dots")},
		{Path: "names/x;1", Content: []byte("version")},
		{Path: "names/*?:\\", Content: []byte("joliet forbids")},
		{Path: "names/ünïcödé-日本-😀", Content: []byte("unicode")},
		{Path: "names/-rf", Content: []byte("dash")},
	}
	for _, n := range []int{120, 150, 170, 200, 249, 250, 251, MaxName} {
		entries = append(entries, Entry{Path: "long/" + strings.Repeat("n", n), Content: fmt.Append(nil, n)})
	}
	for i := range 300 { // more than one sector of records, colliding short names
		entries = append(entries, Entry{Path: fmt.Sprintf("many/file-number-%d.json", i), Content: fmt.Append(nil, i)})
		entries = append(entries, Entry{Path: fmt.Sprintf("many/%s%03d", strings.Repeat("j", 70), i), Content: fmt.Append(nil, i)})
	}
	return entries
}

// tree is what a guest sees: mode and content by path.
type tree map[string]string

func wanted(entries []Entry) tree {
	root, err := newTree(entries)
	if err != nil {
		panic(err)
	}
	w := tree{}
	var walk func(path string, n *node)
	walk = func(path string, n *node) {
		for _, k := range n.kids {
			w[path+k.name] = fmt.Sprintf("%v %o %x", k.dir, k.mode, sha256.Sum256(k.content))
			walk(path+k.name+"/", k)
		}
	}
	walk("", root)
	return w
}

func mounted(t *testing.T, at string) tree {
	t.Helper()
	got := tree{}
	err := fs.WalkDir(os.DirFS(at), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		var b []byte
		if !d.IsDir() {
			if b, err = os.ReadFile(filepath.Join(at, path)); err != nil {
				return err
			}
			if want := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC); !fi.ModTime().Equal(want) {
				t.Errorf("%s: time %v, want %v", path, fi.ModTime(), want)
			}
		}
		got[path] = fmt.Sprintf("%v %o %x", d.IsDir(), fi.Mode().Perm(), sha256.Sum256(b))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func compare(t *testing.T, got, want tree) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] != want[p] {
			t.Errorf("%q: got %q, want %q", p, got[p], want[p])
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q was never given", p)
		}
	}
}

func TestConfigDriveMountedByLinux(t *testing.T) {
	needRoot(t)
	entries := openStack()
	d := drive(t, LabelOpenStack, entries)
	compare(t, mounted(t, mount(t, d, "iso9660", "ro")), wanted(entries))
}

func TestConfigDriveMountedWithoutRockRidge(t *testing.T) {
	needRoot(t)
	entries := NoCloud([]byte("#cloud-config\n"), MetaData("id", "web1"), []byte("version: 2\n"))
	d := drive(t, LabelNoCloud, entries)
	at := mount(t, d, "iso9660", "ro,norock,iocharset=utf8") // what is left is Joliet
	for _, e := range entries {
		if b, err := os.ReadFile(filepath.Join(at, e.Path)); err != nil || !bytes.Equal(b, e.Content) {
			t.Errorf("%s through Joliet: %q, %v, want %q", e.Path, b, err, e.Content)
		}
	}
}

func TestConfigDriveByIsoinfo(t *testing.T) {
	need(t, "isoinfo", "blkid")
	entries := openStack()
	d := drive(t, LabelOpenStack, entries)
	if got := probe(t, d, "LABEL") + " " + probe(t, d, "TYPE"); got != "config-2 iso9660" {
		t.Errorf("blkid: got %q, want %q", got, "config-2 iso9660")
	}
	head := tool(t, "isoinfo", "-d", "-i", d.File.Name())
	for _, want := range []string{"Volume id: config-2", "Rock Ridge signatures version 1 found", "Joliet with UCS level 3 found", "Logical block size is: 2048"} {
		if !strings.Contains(head, want) {
			t.Errorf("isoinfo -d lacks %q:\n%s", want, head)
		}
	}
	want := wanted(entries)
	for view, args := range map[string][]string{"Rock Ridge": {"-R"}, "Joliet": {"-J"}, "short names": nil} {
		seen := map[string]bool{}
		for line := range strings.Lines(tool(t, "isoinfo", append(args, "-f", "-i", d.File.Name())...)) {
			path := strings.TrimPrefix(strings.TrimSuffix(line, "\n"), "/")
			folded := strings.ToLower(path)
			if view == "Rock Ridge" {
				folded = path
			}
			if _, ok := want[path]; seen[folded] || view == "Rock Ridge" && !ok {
				t.Errorf("%s: isoinfo lists %q, which is a repetition or was never given", view, path)
			}
			seen[folded] = true
		}
		if len(seen) != len(want) {
			t.Errorf("%s: isoinfo lists %d paths, want %d", view, len(seen), len(want))
		}
	}
	for i, e := range entries {
		if !e.Dir && (i < 40 || i%50 == 0) {
			if got := tool(t, "isoinfo", "-R", "-i", d.File.Name(), "-x", "/"+e.Path); got != string(e.Content) {
				t.Errorf("isoinfo -x %s: %d bytes that differ from the %d given", e.Path, len(got), len(e.Content))
			}
		}
	}
	list := tool(t, "isoinfo", "-R", "-l", "-i", d.File.Name())
	for _, row := range []string{
		`drwxr-x---   4    0    0 +2048 Feb  3 2026 .* openstack \n`,
		`-rw-r-----   1    0    0 +12 Feb  3 2026 .* meta_data.json \n`,
		`-rwxr-xr-x   1    0    0 +10 Feb  3 2026 .* user_data \n`,
		`-r--r--r--   1    0    0 +0 Feb  3 2026 .* empty \n`,
	} {
		if !regexp.MustCompile(row).MatchString(list) {
			t.Errorf("isoinfo -l shows no line like %q", row)
		}
	}
	short := regexp.MustCompile(`^(/[A-Z0-9_]{1,8})*(/[A-Z0-9_]{1,8}\.[A-Z0-9_]{0,3};1)?\n$`)
	for line := range strings.Lines(tool(t, "isoinfo", "-f", "-i", d.File.Name())) {
		if !short.MatchString(line) {
			t.Errorf("%q is no name of level 1", line)
		}
	}
}

func TestConfigDriveIsDeterministic(t *testing.T) {
	a, b := openStack(), openStack()
	slices.Reverse(b)
	var sums [][]byte
	for _, entries := range [][]Entry{a, b, a} {
		d := drive(t, LabelOpenStack, entries)
		all, err := os.ReadFile(d.File.Name())
		if err != nil {
			t.Fatal(err)
		}
		sums = append(sums, all)
	}
	if !bytes.Equal(sums[0], sums[1]) || !bytes.Equal(sums[0], sums[2]) {
		t.Error("the same entries made different drives")
	}
}

// TestConfigDriveFillsItsSize proves that Size tells the last byte written.
func TestConfigDriveFillsItsSize(t *testing.T) {
	for name, entries := range map[string][]Entry{
		"empty": nil,
		"one":   {{Path: "x", Content: []byte("x")}},
		"all":   openStack(),
		"most":  {{Path: "big", Content: make([]byte, MaxContent)}},
	} {
		size, err := Size(entries)
		if err != nil || size%sector != 0 || size < isoLimits.min {
			t.Errorf("%s: Size is %d, %v", name, size, err)
		}
		var spool bytes.Buffer
		if err := WriteSpool(&spool, entries); err != nil {
			t.Fatal(err)
		}
		if spool.Len() > MaxSpool {
			t.Errorf("%s: the spool has %d bytes, want at most %d", name, spool.Len(), MaxSpool)
		}
		r, w := configDrive("x", spool.Bytes()), &bounded{}
		if err := r.Run(t.Context(), Target{W: w, Size: size}, bytes.NewReader(spool.Bytes())); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if (w.end+sector-1)/sector*sector != size || w.start < firstSector*sector {
			t.Errorf("%s: wrote from %d to %d of %d bytes", name, w.start, w.end, size)
		}
		err = r.Run(t.Context(), Target{W: w, Size: size - sector}, bytes.NewReader(spool.Bytes()))
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: one sector less: got %v, want errs.Invalid", name, err)
		}
	}
}

// bounded remembers where writes began and ended.
type bounded struct{ start, end int64 }

func (b *bounded) WriteAt(p []byte, off int64) (int, error) {
	if b.end == 0 {
		b.start = off
	}
	b.start, b.end = min(b.start, off), max(b.end, off+int64(len(p)))
	return len(p), nil
}

func TestSpoolThatDiffersFromItsRecord(t *testing.T) {
	var spool bytes.Buffer
	if err := WriteSpool(&spool, openStack()); err != nil {
		t.Fatal(err)
	}
	r := configDrive("x", spool.Bytes())
	flipped := bytes.Clone(spool.Bytes())
	flipped[len(flipped)/2] ^= 1
	for name, b := range map[string][]byte{
		"changed": flipped,
		"cut":     spool.Bytes()[:spool.Len()-1],
		"longer":  append(bytes.Clone(spool.Bytes()), 0),
		"empty":   nil,
	} {
		w := &bounded{}
		if err := r.Run(t.Context(), Target{W: w, Size: 64 * mib}, bytes.NewReader(b)); !errors.Is(err, errs.Corrupt) || w.end != 0 {
			t.Errorf("%s: got %v, %d bytes written, want errs.Corrupt and none", name, err, w.end)
		}
	}
}

func TestSpoolRoundTrip(t *testing.T) {
	want := openStack()
	var spool bytes.Buffer
	if err := WriteSpool(&spool, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSpool(&spool)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, wanted(got), wanted(want))
}

// archive makes a tar stream of headers alone.
func archive(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestReadSpoolRefuses(t *testing.T) {
	file := func(names ...string) (hs []tar.Header) {
		for _, n := range names {
			hs = append(hs, tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: 0o644})
		}
		return hs
	}
	rows := map[string][]tar.Header{
		"a symbolic link":     {{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc/shadow"}},
		"a hard link":         {{Typeflag: tar.TypeLink, Name: "x", Linkname: "y"}},
		"a device":            {{Typeflag: tar.TypeChar, Name: "x"}},
		"a FIFO":              {{Typeflag: tar.TypeFifo, Name: "x"}},
		"an absolute path":    file("/etc/x"),
		"a way up":            file("a/../../x"),
		"a leading dot":       file("./x"),
		"a double slash":      file("a//x"),
		"a duplicate":         file("x", "x"),
		"a file and folder":   append(file("x"), tar.Header{Typeflag: tar.TypeDir, Name: "x/"}),
		"a file with child":   file("x", "x/y"),
		"a child, then file":  file("x/y", "x"),
		"a long component":    file(strings.Repeat("n", MaxName+1)),
		"a deep path":         file("1/2/3/4/5/6/7/8/9"),
		"a deep directory":    {{Typeflag: tar.TypeDir, Name: "1/2/3/4/5/6/7/8/"}},
		"a control character": file("a\nb"),
		"bytes, not UTF-8":    file("a\xff"),
		"an empty name":       file(""),
		"too much content":    {{Typeflag: tar.TypeReg, Name: "a", Size: MaxContent}, {Typeflag: tar.TypeReg, Name: "b", Size: 1}},
	}
	var many []tar.Header
	for i := range MaxEntries + 1 {
		many = append(many, file(fmt.Sprint(i))...)
	}
	rows["too many entries"] = many
	rows["too many directories"] = nil
	for i := range MaxEntries/2 + 1 {
		rows["too many directories"] = append(rows["too many directories"], file(fmt.Sprintf("%d/x", i))...)
	}
	for name, headers := range rows {
		if entries, err := ReadSpool(archive(t, headers...)); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: got %d entries, %v, want errs.Invalid", name, len(entries), err)
		}
	}
	if _, err := ReadSpool(strings.NewReader(strings.Repeat("no tar ", 1000))); !errors.Is(err, errs.Invalid) {
		t.Errorf("no tar: got %v, want errs.Invalid", err)
	}
	cut := archive(t, tar.Header{Typeflag: tar.TypeReg, Name: "a", Size: 5000})
	cut.Truncate(2000)
	if _, err := ReadSpool(cut); !errors.Is(err, errs.Invalid) {
		t.Errorf("a cut archive: got %v, want errs.Invalid", err)
	}
	if err := WriteSpool(&bytes.Buffer{}, []Entry{{Path: "../x"}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("WriteSpool of a way up: got %v, want errs.Invalid", err)
	}
}

func FuzzReadSpool(f *testing.F) {
	var b bytes.Buffer
	if err := WriteSpool(&b, []Entry{{Path: "a/b", Content: []byte("x")}, {Path: "c", Dir: true}, {Path: strings.Repeat("é", 120)}}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, archive []byte) {
		entries, err := ReadSpool(bytes.NewReader(archive))
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteSpool(&again, entries); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		if _, err := Size(entries); err != nil {
			t.Fatalf("what was read has no size: %v", err)
		}
	})
}

func TestMetaData(t *testing.T) {
	const id = "01940000-0000-7000-8000-000000000001"
	if got, want := string(MetaData(id, "web1.example")), "instance-id: "+id+"\nlocal-hostname: web1.example\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for name, want := range map[string]string{
		"web1": "web1", "Web 1": "Web-1", "yes": "yes", "123": "123", "1e3": "1e3", "null": "null", "0x10": "0x10",
		"-a-": "a", "日本": "localhost", "a: b #c": "a-b-c", strings.Repeat("x", 100): strings.Repeat("x", 63), "2026-01-01": "2026-01-01",
	} {
		var got map[string]any
		if err := yaml.Unmarshal(MetaData(name, name), &got); err != nil || got["local-hostname"] != want || got["instance-id"] != name {
			t.Errorf("%q: got %#v, %v, want %q", name, got, err, want)
		}
	}
}

func TestISOTimes(t *testing.T) {
	for _, row := range []struct{ in, want time.Time }{
		{time.Time{}, time.Unix(0, 0)},
		{time.Date(1066, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)},
		{time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2155, 12, 31, 23, 59, 59, 0, time.UTC)},
		{time.Date(2026, 1, 1, 1, 0, 0, 7, time.FixedZone("", 3600)), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if got := isoTime(row.in); !got.Equal(row.want) {
			t.Errorf("%v: got %v, want %v", row.in, got, row.want)
		}
	}
}
