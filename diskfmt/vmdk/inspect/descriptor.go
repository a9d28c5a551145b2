package inspect

import (
	"bytes"
	"slices"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// The create types that are read.
const (
	monolithicSparse = "monolithicSparse"
	streamOptimized  = "streamOptimized"
)

// references are keys that name another file or another disk, in lower case.
// Some readers find the anywhere ones wherever they stand, also in a comment.
var (
	anywhere   = []string{"parentfilenamehint", "changetrackpath"}
	references = []string{"nativeparenthint", "nativeparentcid", "objectparenturi", "sidecars", "digestfilename"}
)

// headerKeys and diskKeys are all the keys that may stand in a descriptor, in
// lower case, diskKeys behind "ddb.": VMware compares keys so.
var (
	headerKeys = []string{"version", "encoding", "cid", "parentcid", "isnativesnapshot", "createtype"}
	diskKeys   = []string{
		"adaptertype", "comment", "deletable", "encoding", "geometry.cylinders", "geometry.heads", "geometry.sectors",
		"geometry.bioscylinders", "geometry.biosheads", "geometry.biossectors", "longcontentid",
		"thinprovisioned", "toolsinstalltype", "toolsversion", "uuid", "uuid.image", "uuid.modification", "uuid.parent",
		"uuid.parentmodification", "virtualhwversion",
	}
)

// descriptor is what an embedded descriptor says.
type descriptor struct {
	createType string
	sectors    uint64 // of its one extent
	keys       map[string]string
	extents    int
}

// parseDescriptor judges the text of an embedded descriptor ("The Descriptor
// File"). It is stricter than the specification, which allows encodings: the
// text is printable ASCII, for nothing in it is used but numbers, and readers
// have been told different things by bytes that they take differently. Of all
// keys only known ones are allowed, once each.
func parseDescriptor(b []byte) (*descriptor, error) {
	text, pad, _ := bytes.Cut(b, []byte{0})
	if i := strayByte(text, pad); i >= 0 {
		return nil, strict.Refuse(strict.Corrupt, "the descriptor has bytes behind its end, %d behind its start", len(text)+1+i)
	}
	low := strings.ToLower(string(text))
	for _, key := range anywhere {
		if i := strings.Index(low, key); i >= 0 {
			return nil, strict.Refuse(strict.External, "the descriptor names another file or disk (%s, %d bytes behind its start)", key, i).
				WithHint("merge the disk with its parents and export it as one file")
		}
	}
	d := &descriptor{keys: map[string]string{}}
	n := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		n++
		if err := d.line(strings.TrimSuffix(line, "\r"), n); err != nil {
			return nil, err
		}
	}
	return d, d.check()
}

// strayByte returns the place in pad, which follows the text and its NUL, of the
// first byte that must not be there, or -1. QEMU writes a new CID without its
// leading zeroes, so that the text may become shorter, and leaves the last bytes
// of the longer text where they are. They say nothing that the text does not.
func strayByte(text, pad []byte) int {
	const digits = 8 // of a CID; the text has one at least
	tail := text[max(0, len(text)-digits):]
	for i, c := range pad {
		if c != 0 && (i >= digits-2 || bytes.IndexByte(tail, c) < 0) {
			return i
		}
	}
	return -1
}

func (d *descriptor) line(line string, n int) error {
	for _, c := range []byte(line) {
		if c != '\t' && (c < ' ' || c > '~') {
			return strict.Refuse(strict.Corrupt, "line %d of the descriptor has the byte 0x%02x, which is not printable ASCII", n, c).
				WithHint("give the disk a plain name and export it again")
		}
	}
	line = strings.Trim(line, " \t")
	if line == "" || line[0] == '#' {
		return nil
	}
	if f := strings.Fields(line); slices.Contains([]string{"rw", "rdonly", "noaccess"}, strings.ToLower(f[0])) {
		return d.extent(line, n)
	}
	key, value, ok := strings.Cut(line, "=")
	key, value = strings.ToLower(strings.Trim(key, " \t")), strings.Trim(value, " \t")
	if !ok {
		return strict.Refuse(strict.Corrupt, "line %d of the descriptor (%s) is neither a setting nor an extent", n, strict.Quote([]byte(line)))
	}
	if strings.HasPrefix(value, `"`) {
		if len(value) < 2 || !strings.HasSuffix(value, `"`) {
			return strict.Refuse(strict.Corrupt, "line %d of the descriptor has a value without an end", n)
		}
		value = value[1 : len(value)-1]
	}
	if strings.Contains(value, `"`) {
		return strict.Refuse(strict.Corrupt, "line %d of the descriptor has a quote inside a value", n)
	}
	return d.setting(key, value, n)
}

func (d *descriptor) setting(key, value string, n int) error {
	below, ddb := strings.CutPrefix(key, "ddb.")
	switch {
	case slices.Contains(references, below):
		return strict.Refuse(strict.External, "line %d of the descriptor refers to another file or disk", n)
	case ddb && (slices.Contains(diskKeys, below) || strings.HasPrefix(below, "fcd.")), slices.Contains(headerKeys, key):
	case key == "encryptionkeys" || key == "keysafe":
		return strict.Refuse(strict.Feature, "the disk is encrypted (line %d of the descriptor)", n)
	default:
		return strict.Refuse(strict.Feature, "line %d of the descriptor has a key that is not known (%s)", n, strict.Quote([]byte(key)))
	}
	if _, twice := d.keys[key]; twice {
		return strict.Refuse(strict.Corrupt, "line %d of the descriptor sets a key again", n)
	}
	d.keys[key] = value
	return nil
}

// extent judges a line like `RW 20480 SPARSE "disk.vmdk"`. The name may be any
// bare name, for a file is renamed freely; it is never used.
func (d *descriptor) extent(line string, n int) error {
	head, rest, quoted := strings.Cut(line, `"`)
	f := strings.Fields(head)
	if d.extents++; d.extents > 1 {
		return strict.Refuse(strict.External, "line %d of the descriptor has a second extent: the disk is spread over several files", n).
			WithHint("export the disk as one file, for example as streamOptimized")
	}
	if len(f) < 3 {
		return strict.Refuse(strict.Corrupt, "line %d of the descriptor is no complete extent", n)
	}
	sectors, err := strconv.ParseUint(f[1], 10, 64)
	typ := strings.ToUpper(f[2])
	name, after, closed := strings.Cut(rest, `"`)
	switch {
	case typ == "ZERO":
		return strict.Refuse(strict.Format, "line %d of the descriptor has an extent without a file", n)
	case typ != "SPARSE":
		return strict.Refuse(strict.External, "line %d of the descriptor has an extent of another type than SPARSE: its data is in another file", n)
	case strings.ContainsAny(name, `/\:`):
		return strict.Refuse(strict.External, "line %d of the descriptor has an extent in another place: a path of %d bytes", n, len(name))
	case err != nil || len(f) != 3 || !quoted || !closed || name == "" || strings.Trim(after, " \t") != "":
		return strict.Refuse(strict.Corrupt, "line %d of the descriptor is not an extent of the form RW SECTORS SPARSE \"NAME\"", n)
	case strings.ToUpper(f[0]) == "NOACCESS":
		return strict.Refuse(strict.Feature, "line %d of the descriptor has an extent that may not be read", n)
	}
	d.sectors = sectors
	return nil
}

// fileTypes are create types that keep the guest's data in other files.
var fileTypes = []string{
	"custom", "fulldevice", "partitioneddevice", "monolithicflat", "twogbmaxextentsparse", "twogbmaxextentflat",
	"2gbmaxextentsparse", "2gbmaxextentflat", "vmfs", "vmfssparse", "vmfsthin", "vmfsraw", "vmfsrdm", "vmfsrdmp",
	"vmfsrawdevicemap", "vmfspassthroughrawdevicemap", "vmfspreallocated", "vmfseagerzeroedthick", "sesparse", "vsansparse",
}

func (d *descriptor) check() error {
	d.createType = d.keys["createtype"]
	parent, hasParent := d.keys["parentcid"]
	cid, hasCID := d.keys["cid"]
	_, badCID := strconv.ParseUint(cid, 16, 32)
	nonzero := func(key string) bool { return strings.Trim(d.keys[key], "0-") != "" }
	switch {
	case hasParent && !strings.EqualFold(parent, "ffffffff"):
		return strict.Refuse(strict.External, "the descriptor's parentCID says that the disk has a parent").
			WithHint("merge the disk with its parents and export it as one file")
	case nonzero("ddb.uuid.parent"), nonzero("ddb.uuid.parentmodification"), strings.EqualFold(d.keys["isnativesnapshot"], "yes"):
		return strict.Refuse(strict.External, "the descriptor says that the disk is a snapshot of another")
	case slices.Contains(fileTypes, strings.ToLower(d.createType)):
		return strict.Refuse(strict.External, "the descriptor's createType keeps the data in another file").
			WithHint("export the disk as streamOptimized or monolithicSparse")
	case d.createType == "":
		return strict.Refuse(strict.Corrupt, "the descriptor has no createType")
	case d.createType != monolithicSparse && d.createType != streamOptimized:
		return strict.Refuse(strict.Format, "the descriptor's createType (%s) is neither monolithicSparse nor streamOptimized", strict.Quote([]byte(d.createType)))
	case !slices.Contains([]string{"1", "2", "3"}, d.keys["version"]):
		return strict.Refuse(strict.Version, "the descriptor's version (%s) is none of 1, 2 and 3", strict.Quote([]byte(d.keys["version"])))
	case !hasParent || !hasCID || badCID != nil:
		return strict.Refuse(strict.Corrupt, "the descriptor has no CID and parentCID of up to eight hexadecimal digits")
	case d.extents == 0:
		return strict.Refuse(strict.Corrupt, "the descriptor has no extent")
	}
	return nil
}
