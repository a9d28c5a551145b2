// Package qcow2 reads, creates and writes qcow2 disks whose structure a record
// states. It refuses to learn anything from a file: a header that differs from
// the record is corrupt, and no name that a file carries is ever returned or
// followed. Files that somebody else claims to be qcow2 belong to package
// inspect. The format is that of QEMU's docs/interop/qcow2.txt.
package qcow2

import (
	"errors"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// MaxVirtualSize is the largest disk that this package makes or grows.
const MaxVirtualSize = 64 << 40

// Reader gives the guest-visible bytes of one qcow2 layer. It is a
// diskfmt.Mapper and safe for concurrent use. Ranges that the layer does not
// hold are Extents of kind Backing when the record names a backing layer, and
// Zero when it names none. It keeps L1 (32 MiB at most), the offsets of the
// tables (8 bytes each) and 16 MiB of L2 entries in memory.
type Reader struct {
	l *layout.Reader
}

// Open returns a Reader over the container r of containerSize bytes, whose
// structure is what want says. Any difference between header and record is
// errs.Corrupt, naming both, and so is any table that is misaligned, outside
// the file or on top of other metadata. An error of r itself keeps its kind.
//
// Leaked clusters are tolerated. The dirty bit is not, although reading needs
// no refcounts: a volume of tarn never has lazy refcounts, so the bit says that
// something else wrote here. Internal snapshots are ignored: the active disk is
// what a reader sees.
func Open(r io.ReaderAt, containerSize int64, want diskfmt.Recorded) (*Reader, error) {
	l, err := open(r, containerSize, want)
	if err != nil {
		return nil, corrupt("qcow2.open", err)
	}
	return &Reader{l}, nil
}

// Size returns the virtual size in bytes.
func (r *Reader) Size() int64 { return int64(r.l.H.Size) }

// ReadAt reads guest bytes. Reading a range of kind Backing is an error.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.l.ReadAt(p, off)
	return n, corrupt("qcow2.read", err)
}

// Extent returns the extent at off, joined over clusters and tables of one kind.
func (r *Reader) Extent(off int64) (diskfmt.Extent, error) {
	e, err := r.l.Extent(off)
	return e, corrupt("qcow2.extent", err)
}

// Map returns the mapping at off: a Data mapping is contiguous in the container,
// and a compressed cluster is a mapping of its own.
func (r *Reader) Map(off int64) (diskfmt.Mapping, error) {
	m, err := r.l.Map(off)
	return m, corrupt("qcow2.map", err)
}

// corrupt turns a fault in the file into errs.Corrupt, and one of the call into
// its own kind; io.EOF stays bare, as io.ReaderAt demands.
func corrupt(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var f *layout.Fault
	if errors.As(err, &f) {
		kind := errs.Corrupt
		switch f.Class {
		case layout.ClassRange:
			kind = errs.Invalid
		case layout.ClassBelow:
			kind = errs.Internal
		}
		return errs.New(kind, op, "", "%w", f)
	}
	return errs.Wrap(err, op, "")
}

func open(r io.ReaderAt, size int64, want diskfmt.Recorded) (*layout.Reader, error) {
	if want.Format != diskfmt.Qcow2 {
		return nil, errs.New(errs.Internal, "qcow2.open", "", "the record says format %q, not qcow2", want.Format)
	}
	h, err := layout.ReadHeader(r, size)
	if err != nil {
		return nil, err
	}
	if err := compare(h, want); err != nil {
		return nil, err
	}
	if err := h.Check(uint64(size)); err != nil {
		return nil, err
	}
	l, err := layout.NewReader(r, uint64(size), h)
	if err != nil {
		return nil, err
	}
	l.Backed = want.BackingName != ""
	return l, nil
}

// compare finds the first difference between the header and the record.
func compare(h *layout.Header, want diskfmt.Recorded) error {
	differ := func(what string, header, record any) error {
		return layout.Faultf(layout.ClassCorrupt, "the header says %s %v, the record says %v", what, header, record)
	}
	switch name, format := string(h.BackingName), string(h.BackingFormat); {
	case h.Incompat&^uint64(layout.KnownIncompat) != 0:
		return differ("incompatible features", h.Incompat, "none that are unknown")
	case h.Incompat&layout.DataFile != 0 || h.HasDataFile || h.Autoclear&layout.AutoDataFileRaw != 0:
		return differ("external data file:", true, false)
	case h.Crypt != 0 || h.HasCrypto:
		return differ("encryption", h.Crypt, 0)
	case h.Size != uint64(want.VirtualSize):
		return differ("virtual size", h.Size, want.VirtualSize)
	case h.ClusterSize() != uint64(want.ClusterSize):
		return differ("cluster size", h.ClusterSize(), want.ClusterSize)
	case h.ExtendedL2() != want.ExtendedL2:
		return differ("extended L2 entries:", h.ExtendedL2(), want.ExtendedL2)
	case name != want.BackingName || h.BackingOffset != 0 && want.BackingName == "":
		return layout.Faultf(layout.ClassCorrupt, "the header says backing %.80q, the record says %q", name, want.BackingName)
	case format != string(want.BackingFmt):
		return layout.Faultf(layout.ClassCorrupt, "the header says backing format %.20q, the record says %q", format, want.BackingFmt)
	case h.Incompat&layout.CorruptMark != 0:
		return differ("marked as corrupt:", true, false)
	case h.Incompat&layout.Dirty != 0:
		return differ("refcounts dirty:", true, false)
	}
	return nil
}
