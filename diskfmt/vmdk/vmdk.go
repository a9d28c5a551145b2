// Package vmdk writes VMDK disks of the type streamOptimized, the form in which
// disks travel in OVA files: VMware, VirtualBox and QEMU read it. It refuses to
// read one, for which there is package inspect, and to write disks in several
// files. The format is that of VMware's "Virtual Disk Format 5.0", section
// "Stream-Optimized Compressed Sparse Extents".
package vmdk

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// The layout that VMware itself writes.
const (
	grain       = 128 // sectors
	grainBytes  = grain * layout.Sector
	overhead    = 128 // sectors before the first grain
	descSectors = 20
	maxSectors  = 1 << 32 // of a file: grain table entries have 32 bits
	maxTables   = 4 << 20 // 128 TiB
)

// Options say how a disk is written. The same options and bytes give the same
// file.
type Options struct {
	ID      [16]byte // the disk's identity, for CID, long content id and UUID; random bytes are best
	Adapter string   // ddb.adapterType: "lsilogic" (the default), "buslogic", "ide" or "legacyESX"
	Threads int      // cores that compress; 0 means 1
	Level   int      // of zlib, 1 to 9; 0 means 6
}

func (o *Options) complete() error {
	if o.Adapter == "" {
		o.Adapter = "lsilogic"
	}
	if o.Threads == 0 {
		o.Threads = 1
	}
	if o.Level == 0 {
		o.Level = 6
	}
	switch {
	case o.Adapter != "lsilogic" && o.Adapter != "buslogic" && o.Adapter != "ide" && o.Adapter != "legacyESX":
		return errs.New(errs.Invalid, "vmdk.write", "", "%q is no adapter type; use lsilogic, buslogic, ide or legacyESX", o.Adapter)
	case o.Threads < 0:
		return errs.New(errs.Invalid, "vmdk.write", "", "%d threads cannot work", o.Threads)
	case o.Level < 1 || o.Level > 9:
		return errs.New(errs.Invalid, "vmdk.write", "", "compression level %d is not between 1 and 9", o.Level)
	}
	return nil
}

// header returns the header of a stream with a disk of so many sectors. The
// version is the one that other writers of streams use; readers take any.
func header(sectors uint64) layout.Header {
	return layout.Header{
		Magic: layout.Magic, Version: 3, Flags: layout.FlagNewline | layout.FlagCompress | layout.FlagMarkers,
		Capacity: sectors, Grain: grain, DescOffset: 1, DescSize: descSectors, TableSize: layout.TableEntries,
		GDOffset: layout.AtEnd, Overhead: overhead, Newline: [4]byte([]byte(layout.Newline)), Compression: layout.Deflate,
	}
}

// descriptor returns the embedded descriptor. The extent's name is not that of
// any file: readers of a file with its descriptor inside do not look at it.
func descriptor(o *Options, sectors uint64) []byte {
	heads, track, most := uint64(255), uint64(63), uint64(65535)
	if o.Adapter == "ide" {
		heads, most = 16, 16383
	}
	cid := binary.BigEndian.Uint32(o.ID[12:])
	if cid >= 0xfffffffe { // "no parent" and "see the long id"
		cid = 0xfffffffd
	}
	id := hex.EncodeToString(o.ID[:])
	lines := []string{
		"# Disk DescriptorFile",
		"version=1",
		fmt.Sprintf("CID=%08x", cid),
		"parentCID=ffffffff",
		`createType="streamOptimized"`,
		"",
		"# Extent description",
		fmt.Sprintf(`RW %d SPARSE "disk.vmdk"`, sectors),
		"",
		"# The Disk Data Base",
		"#DDB",
		"",
		fmt.Sprintf(`ddb.longContentID = "%s%08x"`, id[:24], cid),
		`ddb.virtualHWVersion = "4"`,
		fmt.Sprintf(`ddb.geometry.cylinders = "%d"`, min((sectors-1)/(heads*track)+1, most)),
		fmt.Sprintf(`ddb.geometry.heads = "%d"`, heads),
		fmt.Sprintf(`ddb.geometry.sectors = "%d"`, track),
		fmt.Sprintf(`ddb.adapterType = "%s"`, o.Adapter),
		`ddb.toolsVersion = "2147483647"`, // unknown tools
		fmt.Sprintf(`ddb.uuid.image="%s-%s-%s-%s-%s"`, id[:8], id[8:12], id[12:16], id[16:20], id[20:]),
		"",
	}
	b := make([]byte, descSectors*layout.Sector)
	copy(b, strings.Join(lines, "\n"))
	return b
}
