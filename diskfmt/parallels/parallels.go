// Package parallels reads, creates, writes and repairs Parallels expandable
// images, as ploop's root.hds is one, whose structure a record states. It
// refuses to learn anything from a file: a header that differs from the record
// is corrupt. It refuses images of any other make than its own and QEMU's
// writing in them: version 2 with the magic that counts clusters, clusters of a
// power of two, no format extension. Files that somebody else claims to be such
// images belong to package inspect. The format is that of QEMU's
// docs/interop/parallels.rst.
package parallels

import (
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// MaxVirtualSize is the largest disk that this package makes, grows or opens:
// its BAT takes 64 MiB of memory with clusters of DefaultClusterSize.
const MaxVirtualSize = 16 << 40

// Reader gives the guest-visible bytes of one image. It is safe for concurrent
// use. Ranges that the image does not hold are Extents of kind Backing when the
// record names a backing layer, which only a folder's description knows, and
// Zero when it names none. It keeps the BAT in memory.
type Reader struct {
	img image
}

// Open returns a Reader over the closed image r of containerSize bytes, whose
// structure is what want says. Any difference between header and record is
// errs.Corrupt, naming both, and so are a BAT entry outside of the file's
// clusters, one that names another entry's cluster, and the mark of a writer
// that did not close the image. Clusters that no entry names are tolerated.
func Open(r io.ReaderAt, containerSize int64, want diskfmt.Recorded) (*Reader, error) {
	const op = "parallels.open"
	img, err := load(r, containerSize, want)
	if err == nil && img.h.InUse == layout.InUse {
		err = corrupt("the header says that a program has the image open, or did not close it")
	}
	if err == nil {
		_, err = img.used(containerSize)
	}
	if err != nil {
		return nil, errs.Wrap(err, op, "")
	}
	return &Reader{img}, nil
}

// OpenLive is Open for an image that somebody may be writing: the entries are
// judged when they are read. What it reads is what was there at some time since.
func OpenLive(r io.ReaderAt, containerSize int64, want diskfmt.Recorded) (*Reader, error) {
	img, err := load(r, containerSize, want)
	if err != nil {
		return nil, errs.Wrap(err, "parallels.open", "")
	}
	return &Reader{img}, nil
}

// Abandoned reports whether the image carries the mark of a program that has it
// open, or was killed. It looks at nothing else.
func Abandoned(r io.ReaderAt) (bool, error) {
	h, err := readHeader(r)
	return h.InUse == layout.InUse, errs.Wrap(err, "parallels.open", "")
}

// Size returns the virtual size in bytes.
func (r *Reader) Size() int64 { return r.img.size() }

// ReadAt reads guest bytes. Reading a range of kind Backing is an error.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) { return r.img.readAt(p, off, nil) }

// Extent returns the extent at off, joined over clusters of one kind.
func (r *Reader) Extent(off int64) (diskfmt.Extent, error) { return r.img.extent(off) }

func corrupt(format string, args ...any) error {
	return errs.New(errs.Corrupt, "", "", format, args...)
}

// image is a header with its BAT in memory. A BAT entry is the number of a
// cluster of the file, 0 for none.
type image struct {
	r      io.ReaderAt
	h      layout.Header
	bat    []uint32
	backed bool // what is not stored here belongs to the layer below
}

func (m *image) size() int64    { return int64(m.h.Sectors) * layout.SectorSize }
func (m *image) cluster() int64 { return int64(m.h.Cluster()) }

// first returns the number of the file's first cluster of data.
func (m *image) first() uint32 { return uint32(m.h.Data() / m.h.Cluster()) }

func readHeader(r io.ReaderAt) (layout.Header, error) {
	b := make([]byte, layout.HeaderSize)
	if n, err := r.ReadAt(b, 0); n < len(b) {
		if err == nil || err == io.EOF {
			err = corrupt("the file ends in its header")
		}
		return layout.Header{}, err
	}
	return layout.Parse(b), nil
}

// load reads header and BAT and holds the header against the record.
func load(r io.ReaderAt, size int64, want diskfmt.Recorded) (image, error) {
	if want.Format != diskfmt.Ploop {
		return image{}, errs.New(errs.Internal, "", "", "the record says format %q, not ploop", want.Format)
	}
	h, err := readHeader(r)
	if err == nil {
		err = compare(&h, want)
	}
	if err == nil && int64(h.Data()) > size {
		err = corrupt("the file has %d bytes and its data begins at %d", size, h.Data())
	}
	if err != nil {
		return image{}, err
	}
	m := image{r: r, h: h, bat: make([]uint32, h.Entries), backed: want.BackingName != ""}
	b := make([]byte, min(1<<20, len(m.bat)*layout.EntrySize))
	for i := 0; i < len(m.bat); {
		part := b[:min(len(b), (len(m.bat)-i)*layout.EntrySize)]
		if n, err := r.ReadAt(part, entryAt(i)); n < len(part) {
			return image{}, short(err, "the BAT")
		}
		for ; len(part) > 0; part, i = part[layout.EntrySize:], i+1 {
			m.bat[i] = binary.LittleEndian.Uint32(part)
		}
	}
	return m, nil
}

// entryAt returns where entry i of the BAT lies.
func entryAt(i int) int64 { return layout.HeaderSize + int64(i)*layout.EntrySize }

// short is the error of a read that did not get all.
func short(err error, what string) error {
	if err == nil || err == io.EOF {
		return corrupt("the file ends in %s", what)
	}
	return err
}

// compare finds the first difference between the header and the record.
func compare(h *layout.Header, want diskfmt.Recorded) error {
	differ := func(what string, header, record any) error {
		return corrupt("the header says %s %v, the record says %v", what, header, record)
	}
	c := uint64(want.ClusterSize)
	if c < minCluster || c > maxCluster || c&(c-1) != 0 || want.VirtualSize < 0 || want.VirtualSize > MaxVirtualSize {
		return errs.New(errs.Internal, "", "", "the record says %d bytes in clusters of %d", want.VirtualSize, c)
	}
	switch entries := (uint64(want.VirtualSize) + c - 1) / c; {
	case h.Magic != layout.MagicExt:
		return corrupt("the header's magic is %q, not %q", h.Magic, layout.MagicExt)
	case h.Version != layout.Version:
		return differ("version", h.Version, layout.Version)
	case h.Sectors > MaxVirtualSize/layout.SectorSize || int64(h.Sectors)*layout.SectorSize != want.VirtualSize:
		return differ("a disk of sectors", h.Sectors, want.VirtualSize/layout.SectorSize)
	case h.Cluster() != c:
		return differ("cluster size", h.Cluster(), c)
	case uint64(h.Entries) != entries:
		return differ("BAT entries", h.Entries, entries)
	case h.InUse != layout.InUse && h.InUse != layout.Closed && h.InUse != layout.ClosedOld:
		return corrupt("0x%x at 0x2c does not say whether the image was closed", h.InUse)
	case h.Flags&^layout.FlagEmpty != 0 || h.Extension != 0:
		return corrupt("the header says flags 0x%x and an extension at sector %d, the record knows none", h.Flags, h.Extension)
	case h.Data() < h.TableEnd() || h.Data()%c != 0:
		return corrupt("the data at 0x%x does not begin at a cluster behind the BAT, which ends at 0x%x", h.Data(), h.TableEnd())
	}
	return nil
}

// used returns which clusters of a file of size bytes the BAT names, each once
// and whole.
func (m *image) used(size int64) (bitmap, error) {
	first, end := uint64(m.first()), uint64(size)/m.h.Cluster()
	used := newBitmap(end)
	for i, e := range m.bat {
		switch c := uint64(e); {
		case e == 0:
		case c < first || c >= end:
			return nil, corrupt("BAT entry %d names cluster %d, data are the clusters %d to %d", i, e, first, end)
		case used.has(e):
			return nil, corrupt("BAT entry %d names cluster %d, which another one names as well", i, e)
		default:
			used.set(e)
		}
	}
	return used, nil
}

// bitmap is a set of cluster numbers.
type bitmap []uint64

func newBitmap(n uint64) bitmap    { return make(bitmap, (n+63)/64) }
func (b bitmap) has(c uint32) bool { return b[c/64]&(1<<(c%64)) != 0 }
func (b bitmap) set(c uint32)      { b[c/64] |= 1 << (c % 64) }
func (m *image) at(e uint32) int64 { return int64(e) * m.cluster() }
func (m *image) kind(i int64) diskfmt.ExtentKind {
	switch {
	case m.bat[i] != 0:
		return diskfmt.Data
	case m.backed:
		return diskfmt.Backing
	}
	return diskfmt.Zero
}

func (m *image) extent(off int64) (diskfmt.Extent, error) {
	if off < 0 || off >= m.size() {
		return diskfmt.Extent{}, errs.New(errs.Invalid, "parallels.extent", "", "offset %d is outside of %d bytes", off, m.size())
	}
	i := off / m.cluster()
	kind, end := m.kind(i), i+1
	for end < int64(len(m.bat)) && m.kind(end) == kind {
		end++
	}
	return diskfmt.Extent{Offset: off, Length: min(end*m.cluster(), m.size()) - off, Kind: kind}, nil
}

// readAt reads guest bytes, those that are not stored here from below.
func (m *image) readAt(p []byte, off int64, below diskfmt.Reader) (int, error) {
	const op = "parallels.read"
	if off < 0 {
		return 0, errs.New(errs.Invalid, op, "", "negative offset %d", off)
	}
	done := 0
	for done < len(p) {
		pos := off + int64(done)
		if pos >= m.size() {
			return done, io.EOF
		}
		i, in := pos/m.cluster(), pos%m.cluster()
		part := p[done:min(int64(len(p)), int64(done)+m.cluster()-in, int64(done)+m.size()-pos)]
		switch m.kind(i) {
		case diskfmt.Zero:
			clear(part)
		case diskfmt.Backing:
			if below == nil {
				return done, errs.New(errs.Internal, op, "", "the bytes at %d belong to the layer below", pos)
			}
			clear(part)
			if have := part[:max(0, min(int64(len(part)), below.Size()-pos))]; len(have) > 0 {
				if n, err := below.ReadAt(have, pos); n < len(have) {
					return done + n, errs.Wrap(short(err, "the layer below"), op, "")
				}
			}
		default:
			if e := m.bat[i]; e < m.first() {
				return done, errs.Wrap(corrupt("BAT entry %d names cluster %d, the data begin at %d", i, e, m.first()), op, "")
			}
			if n, err := m.r.ReadAt(part, m.at(m.bat[i])+in); n < len(part) {
				return done + n, errs.Wrap(short(err, "a cluster"), op, "")
			}
		}
		done += len(part)
	}
	return done, nil
}
