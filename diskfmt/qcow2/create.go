package qcow2

import (
	"encoding/binary"
	"errors"
	"io"
	"math/bits"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// DefaultClusterSize is the cluster size that a zero CreateOptions asks for.
const DefaultClusterSize = 64 << 10

// CreateOptions says what to create.
type CreateOptions struct {
	VirtualSize   int64 // bytes; a multiple of 512, at most MaxVirtualSize
	ClusterSize   int64 // bytes; 0 means DefaultClusterSize
	BackingName   string
	BackingFormat diskfmt.Format // required with, and only with, BackingName
	ExtendedL2    bool           // needs clusters of 16 KiB or more
}

func (o CreateOptions) cluster() int64 {
	if o.ClusterSize == 0 {
		return DefaultClusterSize
	}
	return o.ClusterSize
}

func (o CreateOptions) validate() error {
	bad := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "qcow2.create", "", format, args...)
	}
	c := o.cluster()
	switch {
	case o.VirtualSize <= 0 || o.VirtualSize%512 != 0 || o.VirtualSize > MaxVirtualSize:
		return bad("virtual size %d is not a positive multiple of 512 up to %d", o.VirtualSize, int64(MaxVirtualSize))
	case c < 1<<layout.MinBits || c > 1<<layout.MaxBits || c&(c-1) != 0:
		return bad("cluster size %d is not a power of two from 512 to 2097152", c)
	case o.ExtendedL2 && c < 16<<10:
		return bad("extended L2 entries need clusters of 16 KiB or more, not %d", c)
	case (o.BackingName == "") != (o.BackingFormat == ""):
		return bad("backing name %q and backing format %q must be given together", o.BackingName, o.BackingFormat)
	case strings.ContainsRune(o.BackingName, 0):
		return bad("the backing name %q has a zero byte", o.BackingName)
	case len(o.BackingName) > layout.MaxBacking || o.BackingName != "" && int64(layout.HeaderLength+24+len(o.BackingFormat)+8+len(o.BackingName)) > c:
		return bad("the backing name has %d bytes, too many for a header of one cluster", len(o.BackingName))
	}
	return nil
}

// plan is where everything of a new image lies.
type plan struct {
	h      layout.Header
	blocks uint64 // refcount blocks
	bfirst uint64 // host offset of the first of them
	end    uint64 // in use up to here
}

// newPlan lays out header, refcount table, refcount blocks and L1 in that
// order, each at a cluster's start.
func newPlan(o CreateOptions) (plan, error) {
	if err := o.validate(); err != nil {
		return plan{}, err
	}
	p := plan{h: layout.Header{
		Version: 3, ClusterBits: uint32(bits.TrailingZeros64(uint64(o.cluster()))), Size: uint64(o.VirtualSize),
		RefcountOrder: 4, Length: layout.HeaderLength,
		BackingName: []byte(o.BackingName), BackingFormat: []byte(o.BackingFormat),
	}}
	if o.ExtendedL2 {
		p.h.Incompat |= layout.ExtendedL2Bit
	}
	need := p.h.L1Needed(p.h.Size)
	if need*8 > layout.MaxL1Bytes {
		return plan{}, errs.New(errs.Invalid, "qcow2.create", "", "a disk of %d bytes needs clusters larger than %d bytes",
			o.VirtualSize, o.cluster()).WithHint("clusters of 64 KiB suffice for every size")
	}
	p.h.L1Size = uint32(need)
	cluster := p.h.ClusterSize()
	up := func(n uint64) uint64 { return (n + cluster - 1) / cluster }
	l1 := up(need * 8)
	table := uint64(0)
	for table != up(p.blocks*8) || p.blocks*p.h.BlockRefs() < 1+table+p.blocks+l1 {
		table = max(1, up(p.blocks*8))
		p.blocks = (1 + table + p.blocks + l1 + p.h.BlockRefs() - 1) / p.h.BlockRefs()
	}
	p.h.RefTableOffset, p.h.RefTableCluster = cluster, uint32(table)
	p.bfirst = cluster * (1 + table)
	p.h.L1Offset = p.bfirst + p.blocks*cluster
	p.end = p.h.L1Offset + l1*cluster
	return p, nil
}

// Create writes an empty version 3 image or overlay to w. The container must be
// empty and read as zeroes beyond its end; its size is then that of the metadata
// whatever the backing holds. Only what is not zero is written, three pieces of
// some bytes, so that a new overlay makes a device write three blocks and not
// three clusters. Nothing is synced.
func Create(w io.WriterAt, o CreateOptions) error {
	p, err := newPlan(o)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	table := make([]byte, 0, p.blocks*8)
	for i := range p.blocks {
		table = be.AppendUint64(table, p.bfirst+i<<p.h.ClusterBits)
	}
	refs := make([]byte, 0, p.end>>p.h.ClusterBits*2)
	for range p.end >> p.h.ClusterBits {
		refs = be.AppendUint16(refs, 1)
	}
	_, err = w.WriteAt(appendHeader(nil, &p.h), 0)
	if err == nil {
		_, err = w.WriteAt(table, int64(p.h.RefTableOffset))
	}
	if err == nil {
		_, err = w.WriteAt(refs, int64(p.bfirst))
	}
	if err == nil {
		err = extend(w, int64(p.h.L1Offset)+int64(p.h.L1Size)*8)
	}
	return errs.Wrap(err, "qcow2.create", "")
}

// extend makes a container size bytes long that is shorter.
func extend(w io.WriterAt, size int64) error {
	if t, ok := w.(interface{ Truncate(size int64) error }); ok {
		if err := t.Truncate(size); !errors.Is(err, errs.Unsupported) {
			return err
		}
	}
	_, err := w.WriteAt([]byte{0}, size-1)
	return err
}

// appendHeader appends the first bytes of a version 3 image: header, backing
// format extension, end of extensions, backing name.
func appendHeader(b []byte, h *layout.Header) []byte {
	be := binary.BigEndian
	var backing, backingLen uint64
	if len(h.BackingName) > 0 {
		padded := (len(h.BackingFormat) + 7) &^ 7
		backing, backingLen = uint64(layout.HeaderLength+8+padded+8), uint64(len(h.BackingName))
	}
	b = be.AppendUint32(b, layout.Magic)
	b = be.AppendUint32(b, h.Version)
	b = be.AppendUint64(b, backing)
	b = be.AppendUint32(b, uint32(backingLen))
	b = be.AppendUint32(b, h.ClusterBits)
	b = be.AppendUint64(b, h.Size)
	b = be.AppendUint32(b, 0) // encryption
	b = be.AppendUint32(b, h.L1Size)
	b = be.AppendUint64(b, h.L1Offset)
	b = be.AppendUint64(b, h.RefTableOffset)
	b = be.AppendUint32(b, h.RefTableCluster)
	b = be.AppendUint32(b, 0) // snapshots
	b = be.AppendUint64(b, 0)
	b = be.AppendUint64(b, h.Incompat)
	b = be.AppendUint64(b, h.Compat)
	b = be.AppendUint64(b, h.Autoclear)
	b = be.AppendUint32(b, h.RefcountOrder)
	b = be.AppendUint32(b, h.Length)
	b = be.AppendUint64(b, uint64(h.Compression)<<56)
	if backing != 0 {
		b = be.AppendUint32(b, layout.ExtBackingFormat)
		b = be.AppendUint32(b, uint32(len(h.BackingFormat)))
		b = append(b, h.BackingFormat...)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
	}
	b = be.AppendUint64(b, 0) // end of extensions
	return append(b, h.BackingName...)
}
