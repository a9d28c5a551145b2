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

// Capabilities are what a driver declares of its technology. The conformance
// suite checks each claim, plans are made from them, and the documentation's
// table is generated from them. No caller compares a driver's name.
type Capabilities struct {
	Formats     []diskfmt.Format // containers tarn may write into volumes, raw first
	Clone       CloneKind
	Shrink      bool
	LiveGrow    bool
	HolesKnown  bool
	Snapshot    string // "none" until declared otherwise
	SizeUnit    int64  // sizes are rounded up to it, bytes
	MaxName     int    // bytes
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
