package ova

import (
	"bytes"
	"encoding/xml"
	"io"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// maxDepth of the description's elements.
const maxDepth = 32

// namespaces of OVF 1 and 2.
var namespaces = []string{"http://schemas.dmtf.org/ovf/envelope/1", "http://schemas.dmtf.org/ovf/envelope/2"}

// formats are the disk formats by a part of the URI that names them (DSP0243,
// section 9.1, and what VMware, VirtualBox, oVirt and Hyper-V tools write).
var formats = []struct{ uri, format string }{
	{"vmdk.html", "vmdk"}, {"qcow-image-format", "qcow2"}, {"qcow2", "qcow2"}, {"vhd", "vhd"}, {"/raw", "raw"},
}

// file is the one that holds the disk.
type file struct {
	name string
	size int64
}

// description is what is read of an envelope.
type description struct {
	files map[string]file // by id
	packed,
	chunked map[string]bool // files that are compressed, or cut into pieces
	disks []xml.StartElement
}

// describe reads the description: exactly one disk in exactly one file.
func describe(text []byte) (Disk, file, error) {
	d, err := read(text)
	if err != nil {
		return Disk{}, file{}, err
	}
	if len(d.disks) != 1 {
		return Disk{}, file{}, strict.Refuse(strict.Feature, "the description has %d disks, not one", len(d.disks)).
			WithHint("unpack the archive and import each disk")
	}
	e := d.disks[0]
	if attr(e, "parentRef") != "" {
		return Disk{}, file{}, strict.Refuse(strict.External, "the disk in the description is a change to another one")
	}
	ref := attr(e, "fileRef")
	f, ok := d.files[ref]
	switch {
	case ref == "":
		return Disk{}, file{}, strict.Refuse(strict.Empty, "the disk in the description has no file: it is empty")
	case !ok:
		return Disk{}, file{}, strict.Refuse(strict.Corrupt, "the disk in the description refers to a file that the description does not list")
	case d.packed[ref] || d.chunked[ref]:
		return Disk{}, file{}, strict.Refuse(strict.Feature, "the disk's file is compressed or cut into pieces").WithHint("unpack the archive and import the disk")
	case !safeName.MatchString(f.name):
		return Disk{}, file{}, strict.Refuse(strict.External, "the disk's file is not named by a plain file name")
	}
	disk := Disk{}
	for _, k := range formats {
		if strings.Contains(strings.ToLower(attr(e, "format")), k.uri) {
			disk.Format = k.format
			break
		}
	}
	if disk.Format == "" {
		return Disk{}, file{}, strict.Refuse(strict.Format, "the description gives the disk a format that is not known").
			WithHint("unpack the archive and import the disk with its --format")
	}
	return disk, f, nil
}

// read takes the files and disks from the envelope.
func read(text []byte) (description, error) {
	d := description{files: map[string]file{}, packed: map[string]bool{}, chunked: map[string]bool{}}
	x := xml.NewDecoder(bytes.NewReader(text))
	x.Strict = true
	var path []string
	for {
		tok, err := x.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return d, strict.Refuse(strict.UnsafeXML, "the description is no XML: %s at byte %d", kindOf(err), x.InputOffset())
		}
		switch tok := tok.(type) {
		case xml.Directive:
			return d, strict.Refuse(strict.UnsafeXML, "the description has a document type or another directive at byte %d", x.InputOffset())
		case xml.StartElement:
			if path = append(path, tok.Name.Local); len(path) > maxDepth {
				return d, strict.Refuse(strict.UnsafeXML, "the description nests more than %d elements at byte %d", maxDepth, x.InputOffset())
			}
			if err := d.element(path, tok); err != nil {
				return d, err
			}
		case xml.EndElement:
			if len(path) == 0 || path[len(path)-1] != tok.Name.Local {
				return d, strict.Refuse(strict.UnsafeXML, "the description closes another element than the last at byte %d", x.InputOffset())
			}
			path = path[:len(path)-1]
		}
	}
	if len(path) != 0 {
		return d, strict.Refuse(strict.Truncated, "the description ends inside an element")
	}
	return d, nil
}

func kindOf(err error) string {
	if e, ok := err.(*xml.SyntaxError); ok && e.Msg == "unexpected EOF" {
		return "it ends early"
	}
	return "its syntax is wrong"
}

func (d *description) element(path []string, e xml.StartElement) error {
	switch strings.Join(path, "/") {
	case "Envelope":
		for _, a := range e.Attr {
			for _, n := range namespaces {
				if a.Value == n {
					return nil
				}
			}
		}
		return strict.Refuse(strict.Version, "the description is of no version of OVF that is known")
	case "Envelope/References/File":
		id := attr(e, "id")
		if _, twice := d.files[id]; twice || id == "" || len(d.files) == maxMembers {
			return strict.Refuse(strict.Corrupt, "the description lists a file without an id of its own, or more than %d", maxMembers)
		}
		f := file{name: attr(e, "href")}
		if s := attr(e, "size"); s != "" {
			n, err := strconv.ParseInt(s, 10, 64)
			if err != nil || n < 0 {
				return strict.Refuse(strict.Corrupt, "the description gives a file a size that is no number")
			}
			f.size = n
		}
		d.files[id] = f
		d.packed[id] = attr(e, "compression") != "" && attr(e, "compression") != "identity"
		d.chunked[id] = attr(e, "chunkSize") != ""
	case "Envelope/DiskSection/Disk":
		if len(d.disks) <= maxMembers {
			d.disks = append(d.disks, e.Copy())
		}
	}
	return nil
}

// attr returns an attribute, whatever its prefix.
func attr(e xml.StartElement, name string) string {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}
