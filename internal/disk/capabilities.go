package disk

import "github.com/tarn-storage/tarn/diskfmt"

// CloneKind says how a volume can be made from a base.
type CloneKind string

// The kinds of clone.
const (
	CloneCopy    CloneKind = "copy"    // every byte
	CloneReflink CloneKind = "reflink" // O(extents of the base)
	CloneNative  CloneKind = "native"  // O(1) whatever the base
)

// SnapshotKind says how a point in time of a volume is kept.
type SnapshotKind string

// The kinds of snapshot.
const (
	SnapshotNone    SnapshotKind = "none"
	SnapshotReflink SnapshotKind = "reflink" // a file that shares extents
	SnapshotCOW     SnapshotKind = "cow"     // an area of its own, that can overflow
	SnapshotNative  SnapshotKind = "native"  // O(1), shares blocks
	SnapshotChain   SnapshotKind = "chain"   // a layer of files
)

// Capabilities are what a driver declares of its technology. The conformance
// suite checks each claim, plans are made from them, and the documentation's
// table is generated from them. No caller compares a driver's name.
type Capabilities struct {
	Formats     []diskfmt.Format // containers tarn may write into volumes, raw first
	Clone       CloneKind
	Shrink      bool
	LiveGrow    bool
	Grows       bool // containers of size 0 are possible and grow as they are written
	Thick       bool // a volume takes all of its space when it is made
	HeldBases   bool // a base that has clones cannot be deleted
	PlainNames  bool // names have letters, digits and "._-" of ASCII only, and no dash first
	HolesKnown  bool
	Snapshot    SnapshotKind
	GrowFrozen  bool  // a volume that has snapshots can grow
	SizeUnit    int64 // of every container's size, bytes: callers round up
	MaxName     int   // bytes
	MaxVolumes  int   // in one pool; 0: nothing but space bounds them
	Description string
}

// Holds reports whether volumes may contain format f.
func (c Capabilities) Holds(f diskfmt.Format) bool {
	for _, have := range c.Formats {
		if have == f {
			return true
		}
	}
	return false
}
