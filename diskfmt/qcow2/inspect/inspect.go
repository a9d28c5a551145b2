// Package inspect judges files that somebody claims to be qcow2, and reads
// those that it found harmless. It refuses everything that is not exactly a
// self-contained qcow2 image: it opens no name that a file carries, returns none
// unless Limits ask for layers, and takes no record. Only ingest may use it; volumes are opened by package
// qcow2. The format is that of QEMU's docs/interop/qcow2.txt.
package inspect

import (
	"context"
	"encoding/binary"
	"errors"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// Bounds that hold whatever Limits say. They keep the metadata in memory under
// 64 MiB: 8 MiB of L1, 16 MiB of table offsets, 16 MiB of cluster states and
// 16 MiB of compressed ranges.
const (
	maxL1Entries  = 1 << 20
	maxContainer  = 1 << 50
	defaultSize   = 64 << 40
	maxBitmaps    = 65535
	maxBitmapDir  = 64 << 20
	maxVisits     = 1 << 32 // of one window
	allVisits     = 1 << 40 // of all: four times what a full disk of 64 TiB takes
	maxSnapExtra  = 1024
	maxSnapName   = 1023
	maxWindows    = 4096
	windowCells   = 4 << 20
	windowRanges  = 2 << 20
	smallestCells = 1 << 12
)

// Limits bounds what is accepted. Zero values mean the defaults.
type Limits struct {
	VirtualSize int64                   // bytes; default 64 TiB
	Snapshots   int                     // internal snapshots; default 65536
	Visits      uint64                  // entries of tables, looked at once per window of the file; default 1 Ti
	Progress    func(done, total int64) // called from time to time with table entries

	// Layered accepts a file that reads from another, and Report says what the
	// header calls that: for a caller that knows what it must be.
	Layered bool
}

// Report is what a file claims to be. It carries a name only where Limits say
// Layered. After an error it holds what was learnt until then.
type Report struct {
	Version       int
	VirtualSize   int64
	ClusterSize   int64
	RefcountBits  int
	ExtendedL2    bool
	LazyRefcounts bool
	Compression   string // "zlib" or "zstd": the type of compressed clusters, if there are any
	Backing       bool   // a backing reference is present
	DataFile      bool   // an external data file is referred to
	Encryption    int    // crypt_method: 0 none, 1 AES, 2 LUKS
	Snapshots     int    // internal snapshots; a Source leaves them out
	Bitmaps       int    // persistent bitmaps; a Source leaves them out

	DataClusters       int64 // of the active disk, set by the full walk
	CompressedClusters int64
	LeakedClusters     int64 // counted as in use, but nothing refers to them

	BackingName, BackingFormat string // with Layered, as the header says them
}

// refuse turns a Fault into errs.Unsafe with its class; io.EOF stays bare.
func refuse(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	var f *layout.Fault
	if errors.As(err, &f) {
		if f.Class == layout.ClassRange {
			return errs.New(errs.Invalid, op, "", "%w", f)
		}
		return errs.New(errs.Unsafe, op, "", "%w", f).WithClass(f.Class)
	}
	return errs.Wrap(err, op, "")
}

// Header reads the header of a file of size bytes and gives the fast verdict:
// one or two small reads. The error is errs.Unsafe with one of the classes
// EMPTY, FORMAT_MISMATCH, UNSUPPORTED_VERSION, UNSUPPORTED_FEATURE,
// EXTERNAL_REFERENCE, TRUNCATED, CORRUPT, OVERLAP, LIMIT, QUOTA and DIRTY.
func Header(r io.ReaderAt, size int64, lim Limits) (Report, error) {
	_, rep, err := header(r, size, lim)
	return rep, refuse("qcow2.inspect", err)
}

// Inspect gives the full verdict: Header's, and then a walk over every table of
// the file, which checks each reserved bit, that each reference lies inside the
// file, that nothing lies on anything else (two compressed clusters may share a
// sector, never a byte) and that no refcount is lower than the references
// found. Leaked clusters are counted, not refused. Time is linear in the
// tables; ctx ends the walk.
func Inspect(ctx context.Context, r io.ReaderAt, size int64, lim Limits) (Report, error) {
	_, rep, err := full(ctx, r, size, lim)
	return rep, refuse("qcow2.inspect", err)
}

func header(r io.ReaderAt, size int64, lim Limits) (*layout.Header, Report, error) {
	h, err := layout.ReadHeader(r, size)
	if err != nil {
		return nil, Report{}, err
	}
	rep := report(h)
	if err := judge(h, size, lim); err != nil {
		return nil, rep, err
	}
	if lim.Layered {
		rep.BackingName, rep.BackingFormat = string(h.BackingName), string(h.BackingFormat)
	}
	return h, rep, h.Check(uint64(size))
}

func report(h *layout.Header) Report {
	rep := Report{
		Version: int(h.Version), VirtualSize: int64(min(h.Size, 1<<63-1)), ClusterSize: int64(h.ClusterSize()),
		RefcountBits: 1 << h.RefcountOrder, ExtendedL2: h.ExtendedL2(), LazyRefcounts: h.Compat&layout.LazyRefcounts != 0,
		Compression: "zlib", Backing: h.BackingOffset != 0 || h.HasBackingFmt,
		DataFile:   h.Incompat&layout.DataFile != 0 || h.HasDataFile || h.Autoclear&layout.AutoDataFileRaw != 0,
		Encryption: int(h.Crypt), Snapshots: int(h.Snapshots),
	}
	if h.Compression == layout.Zstd {
		rep.Compression = "zstd"
	}
	if len(h.Bitmaps) >= 4 {
		rep.Bitmaps = int(binary.BigEndian.Uint32(h.Bitmaps))
	}
	return rep
}

// judge refuses features. What points outside the file comes first, so that it
// is named whatever else is wrong.
func judge(h *layout.Header, size int64, lim Limits) error {
	maxSize, maxSnap := uint64(lim.VirtualSize), uint64(lim.Snapshots)
	if maxSize == 0 {
		maxSize = defaultSize
	}
	if maxSnap == 0 {
		maxSnap = layout.MaxSnapshots
	}
	switch {
	case h.Incompat&layout.DataFile != 0:
		return layout.Faultf(layout.ClassExternal, "the header at 0x48 says that the data is in another file")
	case h.HasDataFile:
		return layout.Faultf(layout.ClassExternal, "the header has an extension that names another data file")
	case h.BackingOffset != 0 && !lim.Layered:
		return layout.Faultf(layout.ClassExternal, "the header at 0x8 names a backing file")
	case h.HasBackingFmt && (h.BackingOffset == 0 || !lim.Layered):
		return layout.Faultf(layout.ClassExternal, "the header has an extension that gives a backing file's format")
	case h.Autoclear&layout.AutoDataFileRaw != 0:
		return layout.Faultf(layout.ClassCorrupt, "the autoclear features 0x%x at 0x58 speak of a data file that is not there", h.Autoclear)
	case h.Incompat&^uint64(layout.KnownIncompat) != 0:
		return layout.Faultf(layout.ClassFeature, "the incompatible features 0x%x at 0x48 have unknown bits", h.Incompat)
	case h.Crypt != 0 || h.HasCrypto:
		return layout.Faultf(layout.ClassFeature, "the image is encrypted (method %d at 0x20)", h.Crypt)
	case h.Incompat&layout.CorruptMark != 0:
		return layout.Faultf(layout.ClassCorrupt, "the image is marked as corrupt by bit 1 at 0x48")
	case h.Incompat&layout.Dirty != 0:
		return layout.Faultf(layout.ClassDirty, "the image was not closed: its refcounts are marked as dirty by bit 0 at 0x48")
	case h.Size == 0:
		return layout.Faultf(layout.ClassEmpty, "the virtual size is 0")
	case h.Size > maxSize:
		return layout.Faultf(layout.ClassQuota, "the virtual size is %d bytes; %d is the most", h.Size, maxSize)
	case h.L1Size > maxL1Entries:
		return layout.Faultf(layout.ClassLimit, "the L1 table has %d entries; %d is the most", h.L1Size, maxL1Entries)
	case uint64(h.Snapshots) > maxSnap:
		return layout.Faultf(layout.ClassLimit, "%d internal snapshots; %d is the most", h.Snapshots, maxSnap)
	}
	return nil
}

func full(ctx context.Context, r io.ReaderAt, size int64, lim Limits) (*layout.Reader, Report, error) {
	h, rep, err := header(r, size, lim)
	if err != nil {
		return nil, rep, err
	}
	if size > maxContainer {
		return nil, rep, layout.Faultf(layout.ClassLimit, "the file has %d bytes; %d is the most", size, int64(maxContainer))
	}
	l, err := layout.NewReader(r, uint64(size), h)
	if err != nil {
		return nil, rep, err
	}
	most := lim.Visits
	if most == 0 {
		most = allVisits
	}
	w := &walker{ctx: ctx, r: r, h: h, l1: l.L1, size: uint64(size), most: most, progress: lim.Progress, rep: &rep}
	err = w.run()
	return l, rep, err
}

// Source reads a file that Inspect has accepted. It is a diskfmt.Mapper, safe
// for concurrent use. There is no layer below, so unallocated ranges are Zero.
// It keeps every check while it reads, should the file change under it. Map
// gives compressed clusters one by one: to use several cores call ReadAt of
// whole ones from several goroutines.
type Source struct {
	l *layout.Reader
}

// Open inspects the file of size bytes and returns a Source of its active disk.
// The errors are those of Inspect.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim Limits) (*Source, Report, error) {
	l, rep, err := full(ctx, r, size, lim)
	if err != nil {
		return nil, rep, refuse("qcow2.inspect", err)
	}
	return &Source{l}, rep, nil
}

// Size returns the virtual size in bytes.
func (s *Source) Size() int64 { return int64(s.l.H.Size) }

// Grain returns how many guest bytes are compressed as one, if any are: a read
// of less decompresses that many.
func (s *Source) Grain() int64 { return int64(s.l.H.ClusterSize()) }

// ReadAt reads guest bytes.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.l.ReadAt(p, off)
	return n, refuse("qcow2.read", err)
}

// ReadMapped is ReadAt, and tells seen of every mapping that it has read, in
// order: where the bytes lie in the file.
func (s *Source) ReadMapped(p []byte, off int64, seen func(diskfmt.Mapping)) (int, error) {
	n, err := s.l.ReadMapped(p, off, func(pos uint64, run layout.Run) { seen(run.Mapping(pos)) })
	return n, refuse("qcow2.read", err)
}

// Extent returns the extent at off: Data or Zero.
func (s *Source) Extent(off int64) (diskfmt.Extent, error) {
	e, err := s.l.Extent(off)
	return e, refuse("qcow2.extent", err)
}

// Map returns the mapping at off: a Data mapping is contiguous in the file, and
// a compressed cluster is a mapping of its own.
func (s *Source) Map(off int64) (diskfmt.Mapping, error) {
	m, err := s.l.Map(off)
	return m, refuse("qcow2.map", err)
}
