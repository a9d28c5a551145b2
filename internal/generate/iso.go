package generate

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"slices"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// A config drive is an ISO 9660 file system (ECMA-119) with two directory
// trees over the same file contents: the primary one carries Rock Ridge
// (RRIP 1.09) names and modes, by which Linux sees exactly what was given, the
// supplementary one Joliet names for Windows. In order of sectors: the system
// area, left zero; three volume descriptors; each view's two path tables; each
// view's directories; the Rock Ridge continuation area; the files.

const (
	sector      = 2048
	firstSector = 16 // of the volume descriptors
	tablesAt    = firstSector + 3
)

// isoLimits: of the 32 bytes of a volume identifier Joliet has room for 16
// characters, and an empty drive has four path tables, two directories and a
// continuation area.
var isoLimits = limits{label: 16, ascii: true, min: (tablesAt + 7) * sector}

// The two views of the tree.
const (
	primary = iota
	joliet
)

// extent is a run of sectors.
type extent struct {
	at    uint32 // the first sector
	bytes uint32
}

func (e extent) sectors() uint32 { return (e.bytes + sector - 1) / sector }

// placed is a node in one view.
type placed struct {
	id     []byte  // its identifier
	number uint16  // of a directory, in the path table
	kids   []*node // by identifier
	extent         // of a directory's records
}

// volume is a config drive whose every sector is known.
type volume struct {
	root    *node
	label   string
	time    time.Time
	views   [2]view
	susp    continuation
	files   []*node
	sectors uint32
}

type view struct {
	dirs        []*node // in the path table's order
	little, big extent  // the path tables
}

// Size returns the bytes of the config drive that entries make: a multiple of
// 2048, which the disk must hold at least. Entries that no drive can hold are
// errs.Invalid.
func Size(entries []Entry) (int64, error) {
	v, err := layOut(entries, "", time.Time{})
	if err != nil {
		return 0, err
	}
	return int64(v.sectors) * sector, nil
}

// writeConfigDrive reads the spooled input and writes its drive.
func (r Request) writeConfigDrive(ctx context.Context, t Target, input io.Reader) error {
	if input == nil {
		return errs.New(errs.Internal, op, r.Input.ID, "the spooled input was not handed in")
	}
	entries, err := r.Input.read(input)
	if err != nil {
		return err
	}
	v, err := layOut(entries, r.Label, r.Time)
	if err != nil {
		return err
	}
	if need := int64(v.sectors) * sector; need > t.Size {
		return invalid("the config drive needs %d bytes, the disk has %d", need, t.Size)
	}
	return v.write(ctx, t.W)
}

// write writes all sectors but the system area and the padding, which are zero
// already.
func (v *volume) write(ctx context.Context, w io.WriterAt) error {
	meta := v.metadata()
	if _, err := w.WriteAt(meta, firstSector*sector); err != nil {
		return err
	}
	for _, f := range v.files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := w.WriteAt(f.content, int64(f.sector)*sector); err != nil {
			return err
		}
	}
	return nil
}

// layOut gives everything on the drive its place.
func layOut(entries []Entry, label string, at time.Time) (*volume, error) {
	root, err := newTree(entries)
	if err != nil {
		return nil, err
	}
	v := &volume{root: root, label: label, time: isoTime(at)}
	next := uint32(tablesAt)
	place := func(e *extent, size int) {
		e.at, e.bytes = next, uint32(size)
		next += e.sectors()
	}
	for i := range v.views {
		w := &v.views[i]
		w.dirs = number(root, i)
		size := len(v.pathTable(i, binary.LittleEndian))
		place(&w.little, size)
		place(&w.big, size)
	}
	for i := range v.views {
		for _, d := range v.views[i].dirs {
			place(&d.views[i].extent, len(v.directory(d, i)))
		}
	}
	// The lengths are known now, and so is what the continuation area holds.
	v.susp.at = next
	next += v.susp.sectors()
	v.placeFiles(root, &next)
	v.sectors = next
	return v, nil
}

func (v *volume) placeFiles(d *node, next *uint32) {
	for _, n := range d.kids {
		if n.dir {
			v.placeFiles(n, next)
			continue
		}
		if len(n.content) == 0 {
			continue // an empty file has no extent
		}
		n.sector = *next
		*next += extent{bytes: uint32(len(n.content))}.sectors()
		v.files = append(v.files, n)
	}
}

// number names the nodes of a view, sorts them and numbers the directories:
// breadth first, which is the path table's order (ECMA-119, 6.9.1).
func number(root *node, view int) []*node {
	root.views[view].id = []byte{0}
	dirs := []*node{root}
	for i := 0; i < len(dirs); i++ {
		d := dirs[i]
		d.views[view].number = uint16(i + 1)
		identify(d.kids, view)
		kids := slices.Clone(d.kids)
		slices.SortFunc(kids, func(a, b *node) int { return bytes.Compare(a.views[view].id, b.views[view].id) })
		d.views[view].kids = kids
		for _, n := range kids {
			if n.dir {
				dirs = append(dirs, n)
			}
		}
	}
	return dirs
}

// metadata returns the sectors from the first descriptor to the files.
func (v *volume) metadata() []byte {
	end := v.susp.at + v.susp.sectors()
	b := make([]byte, (end-firstSector)*sector)
	put := func(at uint32, p []byte) { copy(b[(at-firstSector)*sector:], p) }
	put(firstSector, v.descriptor(primary))
	put(firstSector+1, v.descriptor(joliet))
	put(firstSector+2, []byte("\xffCD001\x01"))
	v.susp.reset()
	for i, w := range v.views {
		put(w.little.at, v.pathTable(i, binary.LittleEndian))
		put(w.big.at, v.pathTable(i, binary.BigEndian))
		for _, d := range w.dirs {
			put(d.views[i].at, v.directory(d, i))
		}
	}
	put(v.susp.at, v.susp.data)
	return b
}

// isoTime brings t into what a directory record can hold: whole seconds of the
// years from 1900 to 2155. The zero time is the beginning of 1970.
func isoTime(t time.Time) time.Time {
	if t.IsZero() {
		return time.Unix(0, 0).UTC()
	}
	first, last := time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2155, 12, 31, 23, 59, 59, 0, time.UTC)
	switch {
	case t.Before(first):
		return first
	case t.After(last):
		return last
	}
	return t.UTC().Truncate(time.Second)
}
