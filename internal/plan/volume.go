// Package plan decides: from records, capabilities and a request it makes what
// an operation will do, or a typed conflict. It refuses to read a clock, a disk or a
// database, so that a dry run is the plan, printed.
package plan

import (
	"strconv"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// Method says how a volume gets its first content.
type Method string

// The methods.
const (
	Blank    Method = "blank"    // reads as zeroes
	Generate Method = "generate" // a generator writes it
	Clone    Method = "clone"    // the technology clones the base
	Overlay  Method = "overlay"  // a format with a backing link to the base
	Copy     Method = "copy"     // every byte of the base
)

const (
	// ClusterSize is the cluster size of the qcow2 volumes tarn makes, bytes.
	ClusterSize = 64 << 10
	// MaxReflinkExtents is the number of extents of a base above which the
	// policy auto prefers an overlay: cloning costs O(extents), 20,000 of them
	// 0.3 to 0.9 s, and clones of one base wait for each other.
	MaxReflinkExtents = 2000
)

// VolumeRequest is what the plan of one volume depends on.
type VolumeRequest struct {
	Caps      disk.Capabilities
	Policy    disk.FormatPolicy // the pool's
	Want      disk.FormatPolicy // the request's; empty: the pool's
	Size      int64             // bytes asked for; 0 with a base: the base's
	Prealloc  bool
	Base      *disk.Volume // the image's base in this pool, or nil
	Generates bool         // a generator writes the first content
}

// VolumePlan is how one volume will be made. Sizes are bytes.
type VolumePlan struct {
	Method        Method
	Format        diskfmt.Format
	ClusterSize   int64
	VirtualSize   int64
	RequestedSize int64
	Committed     int64 // what the volume may come to need
	Writing       int64 // what making it will write
}

// Volume plans one volume. Its errors are errs.Invalid for a size that cannot
// be, errs.Conflict for an image that does not fit the size asked, and
// errs.Unsupported for a format the pool's technology cannot hold.
func Volume(r VolumeRequest) (VolumePlan, error) {
	size := r.Size
	if r.Base != nil {
		if size == 0 {
			size = r.Base.ContentSize
		}
		if err := FitsImage(size, r.Base.ContentSize); err != nil {
			return VolumePlan{}, err
		}
	}
	if err := disk.CheckSize(size); err != nil {
		return VolumePlan{}, err
	}
	p := VolumePlan{RequestedSize: size, VirtualSize: disk.RoundUp(size, max(r.Caps.SizeUnit, disk.Sector))}
	var err error
	if p.Format, p.Method, err = method(r); err != nil {
		return VolumePlan{}, err
	}
	if r.Prealloc {
		if p.Format != diskfmt.Raw {
			return VolumePlan{}, errs.New(errs.Invalid, "disk.create", "", "space can be claimed in advance for raw disks only; this one would be %s", p.Format).
				WithHint("add disk-format=raw, or leave prealloc out")
		}
		if p.Method == Clone {
			p.Method = Copy
		}
	}
	p.Committed = p.VirtualSize
	if p.Format == diskfmt.Qcow2 {
		p.ClusterSize = ClusterSize
		p.Committed += Qcow2Metadata(p.VirtualSize)
	}
	p.Writing = writing(r, p)
	return p, nil
}

// FitsImage refuses a disk smaller than the image it is to hold.
func FitsImage(size, image int64) error {
	if size >= image {
		return nil
	}
	return errs.New(errs.Conflict, "disk.create", "", "the image needs %s (%d bytes); %s were asked for",
		disk.FormatSize(image), image, disk.FormatSize(size)).WithHint("ask for at least %d, or leave the size out", image)
}

func method(r VolumeRequest) (diskfmt.Format, Method, error) {
	want := r.Want
	if want == "" {
		want = r.Policy
	}
	if want == "" {
		want = disk.FormatAuto
	}
	if want != disk.FormatAuto && !r.Caps.Holds(diskfmt.Format(want)) {
		return "", "", errs.New(errs.Unsupported, "disk.create", "", "this pool cannot hold disks of format %s", want).
			WithHint("leave the format out")
	}
	clones := r.Caps.Clone == disk.CloneNative || r.Caps.Clone == disk.CloneReflink
	switch {
	case r.Base == nil:
		f := diskfmt.Raw
		if want == disk.FormatQcow2 {
			f = diskfmt.Qcow2
		}
		if r.Generates {
			return f, Generate, nil
		}
		return f, Blank, nil
	case want == disk.FormatQcow2:
		return diskfmt.Qcow2, Overlay, nil
	case want == disk.FormatRaw && clones:
		return diskfmt.Raw, Clone, nil
	case want == disk.FormatRaw:
		return diskfmt.Raw, Copy, nil
	case r.Caps.Clone == disk.CloneNative, clones && r.Base.Extents <= MaxReflinkExtents:
		return diskfmt.Raw, Clone, nil
	case r.Caps.Holds(diskfmt.Qcow2):
		return diskfmt.Qcow2, Overlay, nil
	case clones:
		return diskfmt.Raw, Clone, nil
	}
	return diskfmt.Raw, Copy, nil
}

// writing estimates, never too low, the bytes that making the volume writes.
func writing(r VolumeRequest, p VolumePlan) int64 {
	n := int64(256 << 10) // sidecar, directory, first metadata
	switch {
	case r.Prealloc:
		return n + p.Committed
	case p.Method == Copy:
		n += r.Base.Allocated
	case p.Method == Generate:
		n += min(p.VirtualSize, 96<<20+p.VirtualSize/256)
	}
	if p.Format == diskfmt.Qcow2 {
		n += p.VirtualSize / ClusterSize / (ClusterSize / 8) * 8
		if p.Method == Generate {
			n *= 2 // made raw first, then converted
		}
	}
	return n
}

// Qcow2Metadata returns the most bytes that the metadata of a qcow2 volume of
// size guest bytes can take: L1 and L2 tables of 8-byte entries, refcounts of
// 16 bits for every cluster, and the header.
func Qcow2Metadata(size int64) int64 {
	clusters := disk.RoundUp(size, ClusterSize) / ClusterSize
	l2 := disk.RoundUp(clusters*8, ClusterSize)
	l1 := disk.RoundUp(l2/ClusterSize*8, ClusterSize)
	meta := ClusterSize + l1 + l2
	refs := disk.RoundUp((clusters+meta/ClusterSize)*2, ClusterSize)
	table := disk.RoundUp(refs/ClusterSize*8, ClusterSize)
	return meta + refs + table
}

// CheckResize decides whether a disk of role and format may go from size from
// to size to.
func CheckResize(role disk.Role, format diskfmt.Format, from, to int64, shrink, blank bool, caps disk.Capabilities) error {
	if err := disk.CheckSize(to); err != nil {
		return err
	}
	if to >= from {
		if role == disk.RoleConfig || role == disk.RoleCdrom {
			return errs.New(errs.Unsafe, "disk.resize", "", "a %s disk is read-only and keeps its size", role)
		}
		return nil
	}
	refuse := func(format string, args ...any) error {
		return errs.New(errs.Unsafe, "disk.resize", "", "shrinking from %s to %s "+format,
			append([]any{disk.FormatSize(from), disk.FormatSize(to)}, args...)...)
	}
	switch {
	case !shrink:
		return errs.New(errs.Unsafe, "disk.resize", "", "shrinking from %s to %s would cut off what lies behind %d bytes",
			disk.FormatSize(from), disk.FormatSize(to), to).WithHint("say --shrink if that is meant")
	case role != disk.RoleSwap && !(role == disk.RoleData && blank):
		return refuse("is allowed for swap and blank data disks only; this is %s", strconv.Quote(string(role)))
	case !caps.Shrink:
		return refuse("is not possible in this pool")
	case format != diskfmt.Raw:
		return refuse("is possible for raw disks only; this one is %s", format)
	}
	return nil
}
