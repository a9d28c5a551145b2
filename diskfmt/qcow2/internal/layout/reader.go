package layout

import (
	"encoding/binary"
	"io"
	"math/bits"
	"sync"

	"github.com/tarn-storage/tarn/diskfmt"
)

const (
	maxSlice   = 64 << 10
	scanTables = 16 // slices one Scan may load before it answers with what it has
)

// Reader maps and reads the active layer of a checked header. It is safe for
// concurrent use as long as nobody changes its tables; a writer that does
// holds its own lock.
type Reader struct {
	H      *Header
	File   io.ReaderAt
	Size   uint64 // of the container
	L1     []uint64
	Meta   *Meta
	Backed bool // unallocated ranges belong to a layer below

	l1Shift   uint32
	sliceSize uint64
	entry     uint64 // bytes of an L2 entry
	cache     tableCache
	plain     clusterCache
	scratch   sync.Pool // *[]byte for compressed input
	dirty     []*slice  // what a writer has changed
}

// NewReader reads and checks L1 and the part of the refcount table that covers
// the file, so that later no table and no data can lie on metadata. The header
// must have passed Check.
func NewReader(r io.ReaderAt, size uint64, h *Header) (*Reader, error) {
	rd := &Reader{H: h, File: r, Size: size, l1Shift: h.ClusterBits + h.L2Bits(), entry: 8}
	if h.ExtendedL2() {
		rd.entry = 16
	}
	rd.sliceSize = min(h.ClusterSize(), maxSlice)
	rd.cache.max = int(CacheBytes / rd.sliceSize)
	rd.plain.max = int(min(16, max(2, (4<<20)>>h.ClusterBits)))
	rd.scratch.New = func() any { b := make([]byte, h.ClusterSize()+512); return &b }
	var err error
	if rd.L1, err = ReadTable(r, h.L1Offset, uint64(h.L1Size)); err != nil {
		return nil, err
	}
	rd.Meta = NewMeta(h)
	covered := h.BlockRefs() << h.ClusterBits
	n := min((size+covered-1)/covered, uint64(h.RefTableCluster)<<(h.ClusterBits-3))
	refs, err := ReadTable(r, h.RefTableOffset, n)
	if err != nil {
		return nil, err
	}
	clusters := make([]uint64, 0, inUse(rd.L1)+inUse(refs))
	for i, e := range rd.L1 {
		if e == 0 {
			continue
		}
		if err := h.CheckTableEntry(e, L1Reserved, size); err != nil {
			return nil, Faultf(ClassOf(err), "L1 table entry %d: %v", i, err)
		}
		if e&OffsetMask == 0 {
			return nil, Faultf(ClassCorrupt, "L1 table entry %d: 0x%016x has flags but no offset", i, e)
		}
		clusters = append(clusters, e&OffsetMask)
	}
	for i, e := range refs {
		if e == 0 {
			continue
		}
		if err := h.CheckTableEntry(e, RefReserved, size); err != nil {
			return nil, Faultf(ClassOf(err), "refcount table entry %d: %v", i, err)
		}
		clusters = append(clusters, e&OffsetMask)
	}
	if err := rd.Meta.Seal(clusters); err != nil {
		return nil, err
	}
	return rd, nil
}

func inUse(table []uint64) int {
	n := 0
	for _, e := range table {
		if e != 0 {
			n++
		}
	}
	return n
}

// ClassOf returns the class of a Fault, or "" for another error.
func ClassOf(err error) string {
	if f, ok := err.(*Fault); ok {
		return f.Class
	}
	return ""
}

// Run is a range of guest bytes of one kind. Host, HostLength, Compressed and
// Copied say where Data lies.
type Run struct {
	Kind       diskfmt.ExtentKind
	Length     uint64
	Host       uint64
	HostLength uint64
	Compressed bool
	Copied     bool // the cluster's refcount is one: it may be written in place
}

// Scan returns the longest run that begins at off, ends by end and can be told
// from a bounded number of tables. With byHost a Data run is contiguous in the
// container, a compressed cluster stands alone, and Copied is uniform.
func (r *Reader) Scan(off, end uint64, byHost bool) (Run, error) {
	var out Run
	var seg Run // the contiguous part of a Data run that is not yet checked
	for pos, loads := off, 0; pos < end; {
		i := pos >> r.l1Shift
		if i >= uint64(len(r.L1)) || r.L1[i] == 0 {
			next := min((i+1)<<r.l1Shift, end)
			u := Run{Kind: r.unallocated(), Length: next - pos}
			if !out.absorb(u, byHost) {
				break
			}
			pos = next
			continue
		}
		if loads++; loads > scanTables && out.Length > 0 {
			break
		}
		s, err := r.slice(r.L1[i]&OffsetMask, pos)
		if err != nil {
			return Run{}, err
		}
		next, more, err := r.scanSlice(s, pos, end, byHost, &out, &seg)
		if err != nil {
			return Run{}, err
		}
		if pos = next; !more {
			break
		}
	}
	return out, r.checkSegment(seg)
}

// scanSlice extends out by the entries of s from pos on. more is false when the
// run ended inside the slice.
func (r *Reader) scanSlice(s *slice, pos, end uint64, byHost bool, out, seg *Run) (next uint64, more bool, err error) {
	cluster := r.H.ClusterSize()
	per := r.sliceSize / r.entry
	for idx := pos >> r.H.ClusterBits & (per - 1); idx < per && pos < end; {
		u, err := r.unit(s.buf[idx*r.entry:], pos)
		if err != nil {
			return 0, false, Faultf(ClassOf(err), "L2 table entry at 0x%x (guest offset 0x%x): %v", s.off+idx*r.entry, pos, err)
		}
		u.Length = min(u.Length, end-pos)
		if u.Kind == diskfmt.Data && !u.Compressed {
			u.HostLength = u.Length
		}
		if !out.absorb(u, byHost) {
			return pos, false, nil
		}
		if u.Kind == diskfmt.Data && !u.Compressed {
			if seg.Length > 0 && seg.Host+seg.Length == u.Host {
				seg.Length += u.Length
			} else {
				if err := r.checkSegment(*seg); err != nil {
					return 0, false, err
				}
				*seg = u
			}
		}
		if pos += u.Length; pos&(cluster-1) == 0 {
			idx++
		}
	}
	return pos, true, nil
}

// absorb appends u to out if the two are one run, and reports whether it did.
func (out *Run) absorb(u Run, byHost bool) bool {
	if out.Length == 0 {
		*out = u
		return true
	}
	if out.Kind != u.Kind {
		return false
	}
	if byHost && u.Kind == diskfmt.Data {
		if u.Compressed || out.Compressed || out.Copied != u.Copied || out.Host+out.Length != u.Host {
			return false
		}
		out.HostLength += u.Length
	}
	out.Length += u.Length
	return true
}

func (r *Reader) checkSegment(s Run) error {
	if s.Length == 0 {
		return nil
	}
	return r.CheckHost(s.Host, s.Length)
}

// CheckHost refuses a range for data that is not inside the file or lies on
// metadata.
func (r *Reader) CheckHost(host, length uint64) error {
	if host > r.Size || length > r.Size-host {
		return Faultf(ClassTruncated, "data at 0x%x (%d bytes) reaches past the end of the file (%d bytes)", host, length, r.Size)
	}
	if what, hit := r.Meta.Hit(host, length); hit {
		return Faultf(ClassOverlap, "data at 0x%x (%d bytes) overlaps %s", host, length, what)
	}
	return nil
}

func (r *Reader) unallocated() diskfmt.ExtentKind {
	if r.Backed {
		return diskfmt.Backing
	}
	return diskfmt.Zero
}

// unit decodes the L2 entry b for the guest offset pos: the run from pos to the
// end of the cluster, or of the subclusters that share a state.
func (r *Reader) unit(b []byte, pos uint64) (Run, error) {
	e := binary.BigEndian.Uint64(b)
	cluster := r.H.ClusterSize()
	rel := pos & (cluster - 1)
	if e&CompressFlag != 0 {
		if r.entry == 16 && binary.BigEndian.Uint64(b[8:]) != 0 {
			return Run{}, Faultf(ClassCorrupt, "the compressed entry 0x%016x has subclusters", e)
		}
		off, n, err := r.H.CheckCompressed(e, r.Size)
		if err != nil {
			return Run{}, err
		}
		if what, hit := r.Meta.Hit(off, n); hit {
			return Run{}, Faultf(ClassOverlap, "compressed data at 0x%x (%d bytes) overlaps %s", off, n, what)
		}
		return Run{Kind: diskfmt.Data, Length: cluster - rel, Host: off, HostLength: n, Compressed: true}, nil
	}
	if err := CheckStandard(r.H, e); err != nil {
		return Run{}, err
	}
	u := Run{Length: cluster - rel, Host: e&OffsetMask + rel, Copied: e&Copied != 0}
	switch {
	case r.entry == 16:
		sub, n, err := Subclusters(e, binary.BigEndian.Uint64(b[8:]), rel>>(r.H.ClusterBits-5))
		if err != nil {
			return Run{}, err
		}
		u.Kind = sub
		u.Length = n<<(r.H.ClusterBits-5) - rel&(cluster>>5-1)
	case e&ZeroFlag != 0:
		u.Kind = diskfmt.Zero
	case e&OffsetMask != 0:
		u.Kind = diskfmt.Data
	default:
		u.Kind = diskfmt.Backing
	}
	switch u.Kind {
	case diskfmt.Data:
		return u, nil
	case diskfmt.Backing:
		return Run{Kind: r.unallocated(), Length: u.Length}, nil
	}
	return Run{Kind: diskfmt.Zero, Length: u.Length}, nil
}

// CheckStandard judges an uncompressed L2 entry ("Standard Cluster Descriptor").
func CheckStandard(h *Header, e uint64) error {
	switch {
	case e&l2Reserved != 0:
		return Faultf(ClassCorrupt, "0x%016x has reserved bits", e)
	case e&OffsetMask&(h.ClusterSize()-1) != 0:
		return Faultf(ClassCorrupt, "0x%016x does not point to a cluster's start", e)
	case e&ZeroFlag != 0 && (h.Version == 2 || h.ExtendedL2()):
		return Faultf(ClassCorrupt, "0x%016x has the zero flag, which this image cannot have", e)
	case e&OffsetMask == 0 && e&Copied != 0:
		return Faultf(ClassCorrupt, "0x%016x has the COPIED flag but no offset", e)
	}
	return nil
}

// Subclusters decodes a subcluster bitmap ("Extended L2 Entries"): the kind of
// subcluster i and how many from i on share it.
func Subclusters(e, bitmap, i uint64) (diskfmt.ExtentKind, uint64, error) {
	alloc, zero := uint32(bitmap), uint32(bitmap>>32)
	if alloc&zero != 0 {
		return 0, 0, Faultf(ClassCorrupt, "the subcluster bitmap 0x%016x says allocated and zero at once", bitmap)
	}
	if alloc != 0 && e&OffsetMask == 0 {
		return 0, 0, Faultf(ClassCorrupt, "the subcluster bitmap 0x%016x has data, but 0x%016x has no offset", bitmap, e)
	}
	kind, set := diskfmt.Backing, ^(alloc | zero)
	switch {
	case alloc>>i&1 == 1:
		kind, set = diskfmt.Data, alloc
	case zero>>i&1 == 1:
		kind, set = diskfmt.Zero, zero
	}
	return kind, min(uint64(bits.TrailingZeros32(^(set >> i))), 32-i), nil
}

// StoredBytes returns how many bytes of a cluster, from its start, the
// subclusters marked as data take.
func StoredBytes(h *Header, bitmap uint64) uint64 {
	return uint64(bits.Len32(uint32(bitmap))) << (h.ClusterBits - 5)
}

// slice returns the part of the L2 table at table that maps guest offset pos.
func (r *Reader) slice(table, pos uint64) (*slice, error) {
	index := pos >> r.H.ClusterBits & (1<<r.H.L2Bits() - 1)
	off := table + index*r.entry&^(r.sliceSize-1)
	if s := r.cache.get(off); s != nil {
		return s, nil
	}
	s := &slice{off: off, buf: make([]byte, r.sliceSize)}
	if err := ReadFull(r.File, s.buf, off); err != nil {
		return nil, err
	}
	return r.cache.put(s), nil
}

// ReadRun reads len(p) guest bytes from skip bytes into a Data run.
func (r *Reader) ReadRun(p []byte, run Run, pos uint64) error {
	if !run.Compressed {
		return ReadFull(r.File, p, run.Host)
	}
	rel := pos & (r.H.ClusterSize() - 1)
	if uint64(len(p)) == r.H.ClusterSize() {
		return r.decompress(p, run)
	}
	key := run.Host
	buf := r.plain.get(key)
	if buf == nil {
		buf = make([]byte, r.H.ClusterSize())
		if err := r.decompress(buf, run); err != nil {
			return err
		}
		r.plain.put(key, buf)
	}
	copy(p, buf[rel:])
	return nil
}

func (r *Reader) decompress(dst []byte, run Run) error {
	sp := r.scratch.Get().(*[]byte)
	defer r.scratch.Put(sp)
	src := (*sp)[:run.HostLength]
	if err := ReadFull(r.File, src, run.Host); err != nil {
		return err
	}
	if err := Decompress(r.H.Compression, dst, src); err != nil {
		return Faultf(ClassOf(err), "compressed cluster at 0x%x: %v", run.Host, err)
	}
	return nil
}

// ReadAt reads guest bytes as io.ReaderAt demands. A range that belongs to a
// layer below is a fault of ClassBelow: this layer cannot say what it reads as.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	return r.ReadMapped(p, off, func(uint64, Run) {})
}

// ReadMapped is ReadAt, and tells seen of every run that it has read, with its
// guest offset.
func (r *Reader) ReadMapped(p []byte, off int64, seen func(pos uint64, run Run)) (int, error) {
	size := r.H.Size
	if off < 0 {
		return 0, Faultf(ClassRange, "negative offset %d", off)
	}
	if uint64(off) >= size {
		return 0, io.EOF
	}
	pos, n := uint64(off), 0
	end := min(pos+uint64(len(p)), size)
	for pos < end {
		run, err := r.Scan(pos, end, true)
		if err != nil {
			return n, err
		}
		dst := p[n : n+int(run.Length)]
		switch run.Kind {
		case diskfmt.Data:
			if err := r.ReadRun(dst, run, pos); err != nil {
				return n, err
			}
		case diskfmt.Zero:
			clear(dst)
		default:
			return n, Faultf(ClassBelow, "the %d bytes at guest offset 0x%x belong to the layer below", run.Length, pos)
		}
		seen(pos, run)
		pos += run.Length
		n += int(run.Length)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent is diskfmt.Reader's Extent.
func (r *Reader) Extent(off int64) (diskfmt.Extent, error) {
	m, err := r.mapping(off, false)
	return m.Extent, err
}

// Map is diskfmt.Mapper's Map.
func (r *Reader) Map(off int64) (diskfmt.Mapping, error) { return r.mapping(off, true) }

func (r *Reader) mapping(off int64, byHost bool) (diskfmt.Mapping, error) {
	if off < 0 || uint64(off) >= r.H.Size {
		return diskfmt.Mapping{}, Faultf(ClassRange, "offset %d is outside the disk of %d bytes", off, r.H.Size)
	}
	run, err := r.Scan(uint64(off), r.H.Size, byHost)
	if err != nil {
		return diskfmt.Mapping{}, err
	}
	return run.Mapping(uint64(off)), nil
}

// Mapping returns the run at guest offset pos as diskfmt has it.
func (run Run) Mapping(pos uint64) diskfmt.Mapping {
	m := diskfmt.Mapping{Extent: diskfmt.Extent{Offset: int64(pos), Length: int64(run.Length), Kind: run.Kind}}
	if run.Kind == diskfmt.Data {
		m.HostOffset, m.HostLength, m.Compressed = int64(run.Host), int64(run.HostLength), run.Compressed
	}
	return m
}
