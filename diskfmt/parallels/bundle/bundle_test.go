package bundle_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

const (
	top  = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"
	old  = "{12345678-9abc-def1-2345-6789abcdef12}"
	none = "{00000000-0000-0000-0000-000000000000}"
)

// sound is what ploop writes, with some of Parallels Desktop's additions.
const sound = `<?xml version="1.0" encoding="UTF-8"?>
<Parallels_disk_image Version="1.0">
  <Disk_Parameters>
    <Disk_size>20971520</Disk_size>
    <Cylinders>40960</Cylinders>
    <Heads>16</Heads>
    <Sectors>32</Sectors>
    <Padding>0</Padding>
    <Encryption><Engine>` + none + `</Engine><Data></Data></Encryption>
    <Name>root &amp; all</Name>
    <Miscellaneous><CompatLevel unit="x">level2</CompatLevel></Miscellaneous>
  </Disk_Parameters>
  <StorageData>
    <Storage>
      <Start>0</Start>
      <End>20971520</End>
      <Blocksize>2048</Blocksize>
      <Image>
        <GUID>` + top + `</GUID>
        <Type>Compressed</Type>
        <File>root.hds</File>
      </Image>
    </Storage>
  </StorageData>
  <Snapshots>
    <TopGUID>` + top + `</TopGUID>
    <Shot>
      <GUID>` + top + `</GUID>
      <ParentGUID>` + none + `</ParentGUID>
    </Shot>
  </Snapshots>
</Parallels_disk_image>
`

// edit replaces the only place of pairs of texts.
func edit(t testing.TB, pairs ...string) string {
	t.Helper()
	s := sound
	for i := 0; i < len(pairs); i += 2 {
		if strings.Count(s, pairs[i]) != 1 {
			t.Fatalf("%q is there %d times", pairs[i], strings.Count(s, pairs[i]))
		}
		s = strings.Replace(s, pairs[i], pairs[i+1], 1)
	}
	return s
}

func TestSound(t *testing.T) {
	want := bundle.Description{Sectors: 20971520, BlockSize: 1 << 20, File: "root.hds"}
	plain := want
	plain.Plain = true
	odd := want
	odd.File = "harddisk.hdd.0." + top + ".hds"
	snaps := sound[strings.Index(sound, "  <Snapshots>"):strings.Index(sound, "</Parallels_disk_image>")]
	for _, row := range []struct {
		name, text string
		want       bundle.Description
	}{
		{"ploop's", sound, want},
		{"raw", edit(t, "Compressed", "Plain"), plain},
		{"Parallels Desktop's name", edit(t, "root.hds", odd.File), odd},
		{"no version", edit(t, ` Version="1.0"`, ""), want},
		{"no declaration", edit(t, `<?xml version="1.0" encoding="UTF-8"?>`, ""), want},
		{"a comment and CDATA", edit(t, "<Start>0", "<!-- <!DOCTYPE --><Start>0", "root.hds", "<![CDATA[root.hds]]>"), want},
		{"no top GUID", edit(t, "<TopGUID>"+top+"</TopGUID>", ""), want},
		{"no snapshots", edit(t, snaps, ""), want},
		{"upper-case GUID", edit(t, "<TopGUID>"+top, "<TopGUID>"+strings.ToUpper(top)), want},
	} {
		got, err := bundle.Parse([]byte(row.text))
		if err != nil || got != row.want {
			t.Errorf("%s: got %+v, %v; want %+v", row.name, got, err, row.want)
		}
	}
	if want.Size() != 10<<30 {
		t.Errorf("Size() = %d, want 10 GiB", want.Size())
	}
}

func TestHostile(t *testing.T) {
	image := func(id, file string) string {
		return "<Image><GUID>" + id + "</GUID><Type>Compressed</Type><File>" + file + "</File></Image>"
	}
	shot := func(id, parent string) string {
		return "<Shot><GUID>" + id + "</GUID><ParentGUID>" + parent + "</ParentGUID></Shot>"
	}
	deep := strings.Repeat("<a>", 31) + strings.Repeat("</a>", 31)
	for _, row := range []struct{ name, text, class, says string }{
		{"empty", "", strict.Empty, "empty"},
		{"too large", sound + strings.Repeat(" ", bundle.MaxSize), strict.Limit, "1048576"},
		{"no XML", "QFI\xfb", strict.UnsafeXML, "UTF-8"},
		{"plain text", "hello", strict.UnsafeXML, "outside"},
		{"a NUL", sound + "\x00", strict.UnsafeXML, "UTF-8"},
		{"UTF-16", edit(t, `"UTF-8"`, `"UTF-16"`), strict.UnsafeXML, "byte 0"},
		{"a DTD", edit(t, "<Parallels_disk_image ", "<!DOCTYPE a SYSTEM \"file:///etc/passwd\"><Parallels_disk_image "), strict.UnsafeXML, "DTD"},
		{"an entity", edit(t, "<Parallels_disk_image ", "<!DOCTYPE a [<!ENTITY x \"y\">]><Parallels_disk_image ", "root.hds", "&x;"), strict.UnsafeXML, "DTD"},
		{"an unknown entity", edit(t, "root.hds", "&x;"), strict.UnsafeXML, "well-formed"},
		{"a style sheet", edit(t, "<Parallels_disk_image ", "<?xml-stylesheet href=\"x\"?><Parallels_disk_image "), strict.UnsafeXML, "processing instruction"},
		{"a declaration in the middle", edit(t, "<Start>", "<?xml version=\"1.0\"?><Start>"), strict.UnsafeXML, "processing instruction"},
		{"an inclusion", edit(t, "<File>root.hds</File>", `<xi:include href="file:///etc/passwd"/>`), strict.UnsafeXML, "namespace"},
		{"a namespace", edit(t, ` Version="1.0"`, ` xmlns="x"`), strict.UnsafeXML, "namespace"},
		{"two versions", edit(t, ` Version="1.0"`, ` Version="1.0" Version="2.0"`), strict.UnsafeXML, "Version"},
		{"deep", edit(t, "<Padding>0</Padding>", deep), strict.UnsafeXML, "32 deep"},
		{"many elements", edit(t, "<Padding>0</Padding>", strings.Repeat("<a/>", 17<<10)), strict.Limit, "elements"},
		{"cut", sound[:len(sound)-30], strict.UnsafeXML, "well-formed"},
		{"cut behind an element", sound[:strings.Index(sound, "  <Snapshots>")], strict.UnsafeXML, "ends before"},
		{"crossed elements", edit(t, "</Start>", "</End>"), strict.UnsafeXML, "not open"},
		{"two documents", sound + "<a/>", strict.UnsafeXML, "second"},
		{"a file in pieces", edit(t, "root.hds", "root<!-- -->.hds"), strict.UnsafeXML, "pieces"},
		{"another document", "<a/>", strict.Mismatch, "Parallels_disk_image"},
		{"version 2", edit(t, `Version="1.0">`, `Version="2.0">`), strict.Version, "322e30"},
		{"no size", edit(t, "<Disk_size>20971520</Disk_size>", ""), strict.Corrupt, "Disk_size"},
		{"two sizes", edit(t, "<Cylinders>", "<Disk_size>1</Disk_size><Cylinders>"), strict.Corrupt, "2 elements Disk_size"},
		{"negative size", edit(t, "<Disk_size>20971520", "<Disk_size>-1"), strict.Corrupt, "not a number"},
		{"huge size", edit(t, "<Disk_size>20971520", "<Disk_size>9007199254740993"), strict.Limit, "Disk_size"},
		{"no sectors", edit(t, "<Disk_size>20971520", "<Disk_size>0"), strict.Empty, "no sectors"},
		{"encrypted", edit(t, "<Engine>"+none, "<Engine>"+old), strict.Feature, "encrypted"},
		{"a key", edit(t, "<Data></Data>", "<KeyId>k</KeyId>"), strict.Feature, "encrypted"},
		{"padded", edit(t, "<Padding>0", "<Padding>1"), strict.Feature, "padded"},
		{"two storages", edit(t, "</Storage>", "</Storage><Storage></Storage>"), strict.Feature, "2 storages"},
		{"no storage", edit(t, "<Storage>", "<Shed>", "</Storage>", "</Shed>"), strict.Corrupt, "0 elements Storage"},
		{"begins later", edit(t, "<Start>0", "<Start>1"), strict.Corrupt, "sectors 1 to"},
		{"ends early", edit(t, "<End>20971520", "<End>20971519"), strict.Corrupt, "20971519"},
		{"no block size", edit(t, "<Blocksize>2048", "<Blocksize>0"), strict.Corrupt, "Blocksize"},
		{"huge blocks", edit(t, "<Blocksize>2048", "<Blocksize>262145"), strict.Limit, "Blocksize"},
		{"another type", edit(t, "Compressed", "json:{}"), strict.Feature, "6a736f6e3a7b7d"},
		{"GUID without brackets", edit(t, "<GUID>"+top+"</GUID>\n        <Type>", "<GUID>"+top[1:]+"</GUID>\n        <Type>"), strict.Corrupt, "UUID"},
		{"a snapshot", edit(t, "</Image>", "</Image>"+image(old, "root.hds.old"), none+"</ParentGUID>\n    </Shot>", old+"</ParentGUID></Shot>"+shot(old, none)), strict.Feature, "snapshots"},
		{"an overlay of an image elsewhere", edit(t, "<ParentGUID>"+none, "<ParentGUID>"+old), strict.External, "not in this disk"},
		{"its own parent", edit(t, "<ParentGUID>"+none, "<ParentGUID>"+top), strict.Corrupt, "circle"},
		{"a circle", edit(t, "<ParentGUID>"+none, "<ParentGUID>"+old, "<TopGUID>", shot(old, top)+"<TopGUID>"), strict.Corrupt, "circle"},
		{"two images of one GUID", edit(t, "</Image>", "</Image>"+image(top, "x")), strict.Corrupt, "two images"},
		{"two states of one GUID", edit(t, "<TopGUID>", shot(top, none)+"<TopGUID>"), strict.Corrupt, "one GUID"},
		{"another top", edit(t, "<TopGUID>"+top, "<TopGUID>"+old), strict.Corrupt, "TopGUID"},
		{"the state of another image", edit(t, "<TopGUID>"+top+"</TopGUID>\n    <Shot>\n      <GUID>"+top, "<Shot><GUID>"+old), strict.Corrupt, "not that of its image"},
		{"many states", edit(t, "<TopGUID>", strings.Repeat(shot(old, none), 1025)+"<TopGUID>"), strict.Limit, "1026"},
	} {
		d, err := bundle.Parse([]byte(row.text))
		if !errors.Is(err, errs.Unsafe) || strict.ClassOf(err) != row.class || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%s: got %v (class %q), want class %s and %q", row.name, err, strict.ClassOf(err), row.class, row.says)
		}
		if d.File != "" {
			t.Errorf("%s: a refusal names the file %q", row.name, d.File)
		}
	}
}

func TestFileIsOneSafeComponent(t *testing.T) {
	for _, name := range []string{"/etc/passwd", "../root.hds", "a/b", "..", ".", "...", "", " ", "root.hds\u202e", "a\\b", "json:{}", "nbd://x", "a b", "-rf", "root.hds&#10;", "&#x1b;[2J", strings.Repeat("a", 256)} {
		text := edit(t, "root.hds", name)
		if d, err := bundle.Parse([]byte(text)); name == "root.hds&#10;" {
			if err != nil || d.File != "root.hds" {
				t.Errorf("white space around the name: %+v, %v", d, err)
			}
		} else if c := strict.ClassOf(err); c != strict.External && c != strict.UnsafeXML {
			t.Errorf("the name %q: got %+v, %v; want EXTERNAL_REFERENCE", name, d, err)
		} else if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("the name %q is printed: %q", name, err.Error())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sound))
	f.Add([]byte(edit(f, "Compressed", "Plain")))
	f.Add([]byte(fmt.Sprintf("<Parallels_disk_image><Snapshots><Shot><GUID>%s</GUID></Shot></Snapshots></Parallels_disk_image>", top)))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := bundle.Parse(b)
		switch {
		case err != nil && (strict.ClassOf(err) == "" || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' })):
			t.Fatalf("%q has no class, or bytes that a terminal should not see", err)
		case err == nil && (d.Size() <= 0 || d.BlockSize <= 0 || d.File == "" || strings.ContainsAny(d.File, "/\\\x00\n") || strings.Trim(d.File, ".") == ""):
			t.Fatalf("accepted %+v", d)
		}
	})
}
