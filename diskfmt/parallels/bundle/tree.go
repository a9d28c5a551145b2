package bundle

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

const (
	maxDepth = 32
	maxNodes = 16 << 10
)

// node is an element.
type node struct {
	name     string
	version  string // the root's attribute
	text     string // without the white space around it
	children []*node
}

// readTree reads the elements of a document. Directives (a DTD is one),
// processing instructions but the declaration, entities but the five of XML, and
// other encodings than UTF-8 are refused.
func readTree(b []byte) (*node, error) {
	switch {
	case len(b) == 0:
		return nil, strict.Refuse(strict.Empty, "the file is empty")
	case len(b) > MaxSize:
		return nil, strict.Refuse(strict.Limit, "the file has %d bytes; %d is the most", len(b), MaxSize)
	case !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0:
		return nil, strict.Refuse(strict.UnsafeXML, "the file is not UTF-8 text")
	}
	dec := xml.NewDecoder(bytes.NewReader(b)) // strict, and without a CharsetReader UTF-8 only
	r := reader{stack: []*node{{}}}
	for {
		at := dec.InputOffset()
		tok, err := dec.RawToken()
		if err == io.EOF {
			return r.finish()
		}
		if err != nil {
			return nil, strict.Refuse(strict.UnsafeXML, "at byte %d: no plain, well-formed XML", at)
		}
		if err := r.take(tok, at); err != nil {
			return nil, err
		}
	}
}

// reader builds the tree. The bottom of its stack is the document.
type reader struct {
	stack []*node
	nodes int
}

func (r *reader) top() *node { return r.stack[len(r.stack)-1] }

// take adds the token at a byte of the file.
func (r *reader) take(tok xml.Token, at int64) error {
	switch t := tok.(type) {
	case xml.StartElement:
		return r.open(t, at)
	case xml.EndElement:
		if len(r.stack) == 1 || t.Name.Space != "" || t.Name.Local != r.top().name {
			return strict.Refuse(strict.UnsafeXML, "at byte %d: an element ends that is not open", at)
		}
		r.top().text = strings.TrimSpace(r.top().text)
		r.stack = r.stack[:len(r.stack)-1]
	case xml.CharData:
		if len(bytes.TrimSpace(t)) == 0 {
			return nil
		}
		if len(r.stack) == 1 {
			return strict.Refuse(strict.UnsafeXML, "at byte %d: text outside of elements", at)
		}
		if r.top().text != "" {
			return strict.Refuse(strict.UnsafeXML, "at byte %d: text in pieces", at)
		}
		r.top().text = string(t)
	case xml.ProcInst:
		if t.Target != "xml" || at != 0 {
			return strict.Refuse(strict.UnsafeXML, "at byte %d: a processing instruction", at)
		}
	case xml.Directive:
		return strict.Refuse(strict.UnsafeXML, "at byte %d: a directive, such as a DTD", at)
	}
	return nil
}

func (r *reader) open(t xml.StartElement, at int64) error {
	if r.nodes++; r.nodes > maxNodes {
		return strict.Refuse(strict.Limit, "at byte %d: more than %d elements", at, maxNodes)
	}
	if len(r.stack) > maxDepth {
		return strict.Refuse(strict.UnsafeXML, "at byte %d: elements in each other more than %d deep", at, maxDepth)
	}
	if t.Name.Space != "" {
		return strict.Refuse(strict.UnsafeXML, "at byte %d: an element of another namespace", at)
	}
	n := &node{name: t.Name.Local}
	for _, a := range t.Attr {
		if a.Name.Space == "xmlns" || a.Name.Local == "xmlns" || n.version != "" {
			return strict.Refuse(strict.UnsafeXML, "at byte %d: another namespace, or two attributes Version", at)
		}
		if len(r.stack) == 1 && a.Name.Local == "Version" {
			n.version = a.Value
		}
	}
	if len(r.stack) == 1 && len(r.top().children) > 0 {
		return strict.Refuse(strict.UnsafeXML, "at byte %d: a second outermost element", at)
	}
	r.top().children = append(r.top().children, n)
	r.stack = append(r.stack, n)
	return nil
}

func (r *reader) finish() (*node, error) {
	if len(r.stack) > 1 || len(r.top().children) == 0 {
		return nil, strict.Refuse(strict.UnsafeXML, "the file ends before its XML does")
	}
	return r.top().children[0], nil
}

// all returns the children called name.
func (n *node) all(name string) []*node {
	var found []*node
	for _, c := range n.children {
		if c.name == name {
			found = append(found, c)
		}
	}
	return found
}

// only returns the child called name, of which there must be one.
func (n *node) only(name string) (*node, error) {
	found := n.all(name)
	if len(found) != 1 {
		return nil, strict.Refuse(strict.Corrupt, "there are %d elements %s where one belongs", len(found), name)
	}
	return found[0], nil
}
