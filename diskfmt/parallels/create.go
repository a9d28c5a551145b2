package parallels

import (
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt/parallels/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// DefaultClusterSize is the cluster size that a zero CreateOptions asks for; it
// is ploop's and QEMU's as well.
const DefaultClusterSize = 1 << 20

const (
	minCluster = 512
	maxCluster = 64 << 20
)

// CreateOptions says what to create.
type CreateOptions struct {
	VirtualSize int64 // bytes; a multiple of 512, at most MaxVirtualSize; 0 is a disk without sectors
	ClusterSize int64 // bytes, a power of two; 0 means DefaultClusterSize
	Stored      bool  // every cluster is stored from the beginning
}

// Create writes header and BAT of a new closed image of the returned size: the
// caller makes the container that long, which must have been empty and read as
// zeroes. Nothing is synced.
func Create(w io.WriterAt, o CreateOptions) (size int64, err error) {
	const op = "parallels.create"
	c := o.ClusterSize
	if c == 0 {
		c = DefaultClusterSize
	}
	switch {
	case o.VirtualSize < 0 || o.VirtualSize%layout.SectorSize != 0 || o.VirtualSize > MaxVirtualSize:
		return 0, errs.New(errs.Invalid, op, "", "virtual size %d is not a multiple of %d up to %d", o.VirtualSize, layout.SectorSize, int64(MaxVirtualSize))
	case c < minCluster || c > maxCluster || c&(c-1) != 0 || (o.VirtualSize+c-1)/c > maxEntries:
		return 0, errs.New(errs.Invalid, op, "", "cluster size %d is not a power of two from %d to %d, or gives too many clusters", c, minCluster, maxCluster)
	}
	h := layout.Header{
		Magic: layout.MagicExt, Version: layout.Version, Heads: 16, Tracks: uint32(c / layout.SectorSize),
		InUse: layout.Closed,
	}
	resize(&h, o.VirtualSize)
	h.Cylinders = uint32(min(h.Sectors/(uint64(h.Heads)*32), 1<<32-1))
	if _, err := w.WriteAt(h.Bytes(), 0); err != nil {
		return 0, errs.Wrap(err, op, "")
	}
	size = int64(h.Data())
	if !o.Stored || h.Entries == 0 {
		return size, nil
	}
	bat := make([]byte, 0, h.Entries*layout.EntrySize)
	for i := range h.Entries {
		bat = binary.LittleEndian.AppendUint32(bat, uint32(h.Data()/h.Cluster())+i)
	}
	_, err = w.WriteAt(bat, entryAt(0))
	return size + int64(h.Entries)*c, errs.Wrap(err, op, "")
}

// maxEntries bounds the BAT: 64 MiB.
const maxEntries = 16 << 20

// resize gives h another virtual size, and room for its BAT.
func resize(h *layout.Header, size int64) {
	c := h.Cluster()
	h.Sectors = uint64(size) / layout.SectorSize
	h.Entries = uint32((uint64(size) + c - 1) / c)
	first := (h.TableEnd() + c - 1) / c
	h.DataOffset = max(h.DataOffset, uint32(first*c/layout.SectorSize))
}
