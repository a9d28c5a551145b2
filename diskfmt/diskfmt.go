// Package diskfmt holds the words that every disk format shares: Format,
// Extent, Recorded and Reader. It refuses to open anything and to guess what
// bytes mean: a format is stated by a record or by a user, never detected here.
package diskfmt

import (
	"fmt"
	"io"
	"strings"
)

// Format names a disk format. The zero value is no format and is never valid.
type Format string

// The formats a volume of tarn may have.
const (
	Raw   Format = "raw"
	Qcow2 Format = "qcow2"
)

// The formats that an image may come in, beside those.
const (
	VMDK  Format = "vmdk"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
	VDI   Format = "vdi"
	Ploop Format = "ploop" // Parallels' disk image
	ISO   Format = "iso"
	LUKS  Format = "luks" // encrypted: opaque
	OVA   Format = "ova"  // an archive with one disk and a description that says its format
)

// ParseFormat returns the volume format named s, or an error that lists the
// choices.
func ParseFormat(s string) (Format, error) {
	return parse(s, "disk", Raw, Qcow2)
}

// ImageFormats returns what an image may be claimed to be.
func ImageFormats() []Format {
	return []Format{Raw, Qcow2, VMDK, VHD, VHDX, VDI, Ploop, ISO, LUKS, OVA}
}

// ParseImageFormat returns the image format named s, or an error that lists the
// choices.
func ParseImageFormat(s string) (Format, error) {
	return parse(s, "image", ImageFormats()...)
}

// ExportFormats returns what a disk or an image can be written as.
func ExportFormats() []Format { return []Format{Raw, Qcow2, VMDK, VHD, VHDX, VDI} }

// ParseExportFormat returns the format named s that can be written, or an error
// that lists the choices.
func ParseExportFormat(s string) (Format, error) {
	return parse(s, "export", ExportFormats()...)
}

func parse(s, of string, choices ...Format) (Format, error) {
	names := make([]string, len(choices))
	for i, f := range choices {
		if string(f) == s {
			return f, nil
		}
		names[i] = string(f)
	}
	last := len(names) - 1
	return "", fmt.Errorf("%q is no %s format of tarn; use %s or %s", s, of, strings.Join(names[:last], ", "), names[last])
}

// ExtentKind says where the bytes of an extent come from.
type ExtentKind uint8

// The kinds of extent.
const (
	Data    ExtentKind = iota + 1 // stored in this layer
	Zero                          // reads as zeroes, nothing stored
	Backing                       // not in this layer: read the layer below, or zeroes past its end
)

// String returns the kind's lower-case name.
func (k ExtentKind) String() string {
	switch k {
	case Data:
		return "data"
	case Zero:
		return "zero"
	case Backing:
		return "backing"
	}
	return fmt.Sprintf("ExtentKind(%d)", uint8(k))
}

// Extent is the guest-visible byte range [Offset, Offset+Length) of one kind.
type Extent struct {
	Offset int64
	Length int64
	Kind   ExtentKind
}

// End returns the first offset after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Recorded is what a volume's record says of its container. It is built only
// by package disk, from a record (tests: diskfmttest); the import-rule test
// holds this. Sizes are bytes.
type Recorded struct {
	Format      Format
	VirtualSize int64
	ClusterSize int64  // 0 for formats without clusters
	ExtendedL2  bool   // qcow2: 128-bit L2 entries with subclusters
	BackingName string // the exact backing string the header must carry, "" for none
	BackingFmt  Format // the exact backing format the header must carry
}

// Reader gives the guest-visible bytes of one layer. Readers are safe for
// concurrent use. They never follow a backing reference: ranges that the layer
// does not hold are Extents of kind Backing, and ReadAt of such a range is an
// error, so that a caller cannot read zeroes where another layer has data.
type Reader interface {
	io.ReaderAt

	// Size returns the virtual size in bytes.
	Size() int64

	// Extent returns the longest extent that the reader can cheaply tell that
	// begins at off (0 <= off < Size). Adjacent extents may have the same kind.
	Extent(off int64) (Extent, error)
}

// Mapping is an extent and the place in the container that holds its bytes.
type Mapping struct {
	Extent
	HostOffset int64 // Data: where the bytes begin in the container
	HostLength int64 // Data: how many container bytes hold them (fewer than Length when Compressed)
	Compressed bool  // Data: the extent is one compressed cluster; ReadAt decompresses it
}

// Mapper is a Reader that also tells where data lies, so that a caller can copy
// long runs container to container and hand compressed clusters to several
// goroutines, each calling ReadAt.
type Mapper interface {
	Reader

	// Map returns the longest mapping that begins at off and is contiguous in
	// the container.
	Map(off int64) (Mapping, error)
}
