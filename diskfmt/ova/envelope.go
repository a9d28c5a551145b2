package ova

import (
	"bytes"
	"encoding/xml"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// maxDepth of the description's elements.
const maxDepth = 32

// namespaces of OVF 1 and 2.
var namespaces = []string{"http://schemas.dmtf.org/ovf/envelope/1", "http://schemas.dmtf.org/ovf/envelope/2"}

// known are the elements that are read, by the names on the way to them, with
// their attributes. Each of the outer three may come once.
var known = map[string][]string{
	"Envelope":                  nil,
	"Envelope/References":       nil,
	"Envelope/DiskSection":      nil,
	"Envelope/References/File":  {"id", "href", "size", "compression", "chunkSize"},
	"Envelope/DiskSection/Disk": {"fileRef", "parentRef", "format", "capacity", "capacityAllocationUnits"},
}

// file is one that the description lists.
type file struct {
	name   string
	size   int64
	packed bool // compressed, or cut into pieces
}

// envelope is what is read of a description.
type envelope struct {
	files map[string]file // by id
	disks []attributes
}

// attributes are the known ones of an element.
type attributes map[string]string

// read takes the files and disks from a description. Every reader must find the
// same in it: what XML or its namespaces forbid is refused, and also what a
// reader who does not look at namespaces would take for something else.
func read(text []byte) (envelope, error) {
	r := reader{envelope: envelope{files: map[string]file{}}, seen: map[string]bool{}}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // Windows writes a byte order mark
	x := xml.NewDecoder(bytes.NewReader(text))
	var encoded error
	x.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) {
		encoded = strict.Refuse(strict.UnsafeXML, "the description is declared to be in another encoding than UTF-8").
			WithHint("unpack the archive and import the disk")
		return r, nil
	}
	for {
		at := x.InputOffset()
		tok, err := x.Token()
		switch {
		case err == io.EOF && !r.seen["Envelope"]:
			return envelope{}, strict.Refuse(strict.UnsafeXML, "the description is no XML: it has no element")
		case err == io.EOF:
			return r.envelope, nil
		case encoded != nil:
			return envelope{}, encoded
		case err != nil:
			return envelope{}, malformed(err, x.InputOffset())
		}
		if err := r.take(tok, at); err != nil {
			return envelope{}, err
		}
	}
}

func malformed(err error, at int64) error {
	if e, ok := err.(*xml.SyntaxError); ok && e.Msg == "unexpected EOF" {
		return strict.Refuse(strict.Truncated, "the description ends at byte %d, before its XML does", at)
	}
	return strict.Refuse(strict.UnsafeXML, "the description is no XML: its syntax is wrong at byte %d", at)
}

// reader reads a description token by token.
type reader struct {
	envelope
	space string          // the envelope's
	path  []string        // of the open elements
	seen  map[string]bool // of those that may come once
}

// take reads the token at a byte of the description.
func (r *reader) take(tok xml.Token, at int64) error {
	switch tok := tok.(type) {
	case xml.Directive:
		return strict.Refuse(strict.UnsafeXML, "the description has a document type or another directive at byte %d", at)
	case xml.ProcInst:
		if tok.Target == "xml" && at != 0 {
			return strict.Refuse(strict.UnsafeXML, "the description has an XML declaration at byte %d, not at its beginning", at)
		}
	case xml.CharData:
		if len(r.path) == 0 && len(bytes.TrimSpace(tok)) > 0 {
			return strict.Refuse(strict.UnsafeXML, "the description has text outside of its elements at byte %d", at)
		}
	case xml.StartElement:
		return r.open(tok, at)
	case xml.EndElement:
		r.path = r.path[:len(r.path)-1]
	}
	return nil
}

func (r *reader) open(e xml.StartElement, at int64) error {
	if len(r.path) == 0 && r.seen["Envelope"] {
		return strict.Refuse(strict.UnsafeXML, "the description has a second outermost element at byte %d", at)
	}
	r.path = append(r.path, e.Name.Local)
	path := strings.Join(r.path, "/")
	names, ok := known[path]
	switch {
	case len(r.path) > maxDepth:
		return strict.Refuse(strict.UnsafeXML, "the description nests more than %d elements at byte %d", maxDepth, at)
	case path == "Envelope" && slices.Contains(namespaces, e.Name.Space):
		r.space = e.Name.Space
	case len(r.path) == 1:
		return strict.Refuse(strict.Version, "the description is of no version of OVF that is known")
	case ok && e.Name.Space != r.space && e.Name.Space != "":
		return strict.Refuse(strict.UnsafeXML, "the description has an element %s of another namespace at byte %d", e.Name.Local, at)
	}
	if ok && names == nil {
		if r.seen[path] {
			return strict.Refuse(strict.UnsafeXML, "the description has a second %s at byte %d", e.Name.Local, at)
		}
		r.seen[path] = true
	}
	a, err := r.attributes(e, names, at)
	switch {
	case err != nil:
		return err
	case path == "Envelope/References/File":
		return r.file(a)
	case path == "Envelope/DiskSection/Disk" && len(r.disks) <= maxMembers:
		r.disks = append(r.disks, a)
	}
	return nil
}

// attributes returns those of names that e has, with OVF's prefix or none. No
// attribute may come twice, and none of names under two prefixes.
func (r *reader) attributes(e xml.StartElement, names []string, at int64) (attributes, error) {
	all, mine, found := map[xml.Name]bool{}, map[string]bool{}, attributes{}
	for _, a := range e.Attr {
		wanted := slices.Contains(names, a.Name.Local) && a.Name.Space != "xmlns"
		if all[a.Name] || wanted && mine[a.Name.Local] {
			return nil, strict.Refuse(strict.UnsafeXML, "the description has an element with two attributes %s at byte %d", a.Name.Local, at)
		}
		all[a.Name] = true
		if wanted {
			mine[a.Name.Local] = true
			if a.Name.Space == r.space || a.Name.Space == "" {
				found[a.Name.Local] = a.Value
			}
		}
	}
	return found, nil
}

func (r *reader) file(a attributes) error {
	if _, twice := r.files[a["id"]]; twice || a["id"] == "" || len(r.files) == maxMembers {
		return strict.Refuse(strict.Corrupt, "the description lists a file without an id of its own, or more than %d", maxMembers)
	}
	f := file{name: a["href"], packed: a["compression"] != "" && a["compression"] != "identity" || a["chunkSize"] != ""}
	if s := a["size"]; s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return strict.Refuse(strict.Corrupt, "the description gives a file a size that is no number")
		}
		f.size = n
	}
	r.files[a["id"]] = f
	return nil
}
