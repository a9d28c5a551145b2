package api

import (
	"encoding/json"
	"time"
)

// Volume is one named, sized block of bytes in a pool.
type Volume struct {
	ID            string    `json:"id"`
	Pool          string    `json:"pool"`
	Name          string    `json:"name"`
	Kind          string    `json:"kind"`
	State         string    `json:"state"`
	Format        string    `json:"format"`
	VirtualSize   int64     `json:"virtual_size"`
	RequestedSize int64     `json:"requested_size"`
	AllocatedSize int64     `json:"allocated_size"`
	Committed     int64     `json:"committed"`
	Adopted       bool      `json:"adopted,omitempty"` // tarn did not make it
	Backing       *Backing  `json:"backing,omitempty"`
	Content       string    `json:"content,omitempty"`
	Path          string    `json:"path"`
	CreatedAt     time.Time `json:"created_at"`
	UpdatedAt     time.Time `json:"updated_at"`
}

// VolumeAdopt asks to take an object that tarn did not make into the records,
// where it lies. Format is what it is; nothing is guessed. Without an instance it
// becomes a base, which other volumes read from.
type VolumeAdopt struct {
	Pool     string `json:"pool"`
	Name     string `json:"name"`
	Format   string `json:"format"`
	Instance string `json:"instance,omitempty"`
	Role     string `json:"role,omitempty"` // in the instance; empty: data
}

// ForeignObject is what lies in a pool and was not made by tarn. Size is that of
// the container, and 0 of what cannot be a volume.
type ForeignObject struct {
	Pool      string `json:"pool"`
	Name      string `json:"name"`
	Size      int64  `json:"size"`
	Allocated int64  `json:"allocated_size"`
}

// Backing is the volume that another reads its unwritten blocks from.
type Backing struct {
	Volume  string `json:"volume"`
	Format  string `json:"format"`
	Content string `json:"content"`
}

// Instance is the owner of a set of disks.
type Instance struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Disks     []Disk    `json:"disks"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// InstanceCreate asks for an instance and its disks. ID may be given; else one
// is made. ConfigDrive is spooled input, see ConfigDrive.
type InstanceCreate struct {
	Name        string       `json:"name"`
	ID          string       `json:"id,omitempty"`
	Pool        string       `json:"pool,omitempty"` // for disks that name none
	Disks       []DiskSpec   `json:"disks"`
	ConfigDrive *ConfigDrive `json:"config_drive,omitempty"`
	IfAbsent    bool         `json:"if_absent,omitempty"`
}

// ConfigDrive asks for a config drive. Kind is "config-2" (OpenStack) or
// "cidata" (NoCloud). Files come with the call: they are spooled and never
// enter the journal or the database.
type ConfigDrive struct {
	Kind  string       `json:"kind"`
	Pool  string       `json:"pool,omitempty"`
	Bus   string       `json:"bus,omitempty"`
	Files []ConfigFile `json:"files"`
}

// ConfigFile is one file of a config drive, its path relative to the drive's
// root. A directory has Dir set and no Data.
type ConfigFile struct {
	Path string `json:"path"`
	Dir  bool   `json:"dir,omitempty"`
	Data []byte `json:"data,omitempty"`
}

// DiskSpec describes one disk to make. Image or Size or both are set for root
// and cdrom; Size for the others.
type DiskSpec struct {
	Role     string `json:"role"`
	Image    string `json:"image,omitempty"`
	Size     int64  `json:"size,omitempty"`
	FS       string `json:"fs,omitempty"`    // ephemeral and data: ext4, xfs, vfat
	Label    string `json:"label,omitempty"` // of the file system
	Pool     string `json:"pool,omitempty"`
	Bus      string `json:"bus,omitempty"`         // virtio
	Format   string `json:"disk_format,omitempty"` // the pool's
	Discard  string `json:"discard,omitempty"`     // unmap
	Cache    string `json:"cache,omitempty"`       // none
	Prealloc string `json:"prealloc,omitempty"`    // none
}

// DiskCreate asks for one more disk of an instance.
type DiskCreate struct {
	Instance string   `json:"instance"`
	Disk     DiskSpec `json:"disk"`
}

// Disk is what an instance has.
type Disk struct {
	ID         string          `json:"id"`
	Instance   string          `json:"instance"`
	Name       string          `json:"name"`
	Role       string          `json:"role"`
	Index      int             `json:"index"`
	Size       int64           `json:"size"`
	Format     string          `json:"format"`
	Pool       string          `json:"pool"`
	Volume     string          `json:"volume"`
	State      string          `json:"state"` // the volume's
	Path       string          `json:"path"`
	Serial     string          `json:"serial"`
	Bus        string          `json:"bus"`
	Device     string          `json:"device"`
	BootIndex  int             `json:"boot_index,omitempty"`
	ReadOnly   bool            `json:"read_only,omitempty"`
	Discard    string          `json:"discard"`
	Cache      string          `json:"cache"`
	Source     DiskSource      `json:"source"`
	Backing    *Backing        `json:"backing,omitempty"`
	DriverInfo json.RawMessage `json:"driver_info"`
	Attached   *Lease          `json:"attached"` // null when no host may write it
	CreatedAt  time.Time       `json:"created_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
}

// DiskSource says how a disk's first content was made.
type DiskSource struct {
	Kind    string `json:"kind"` // image, blank, filesystem, swap, config-2, cidata
	Image   string `json:"image,omitempty"`
	Content string `json:"content,omitempty"`
	FS      string `json:"fs,omitempty"`
	Label   string `json:"label,omitempty"`
}

// Lease says which host may write a disk.
type Lease struct {
	Host  string    `json:"host"`
	State string    `json:"state"` // held, unverified
	Since time.Time `json:"since"`
}

// DiskResize asks for another size: exactly one of Size and By is set.
type DiskResize struct {
	Size   int64 `json:"size,omitempty"`
	By     int64 `json:"by,omitempty"` // to grow by
	Shrink bool  `json:"shrink,omitempty"`
}

// Export asks for what a disk or an image holds, as one file in a format: raw,
// qcow2, vmdk (streamOptimized), vhd, vhdx or vdi.
type Export struct {
	Format      string `json:"format"`
	Compression string `json:"compression,omitempty"` // of qcow2, into a file only: zlib or zstd; none if empty
	Type        string `json:"type,omitempty"`        // of vhd: dynamic, the default, or fixed
}

// Attach asks for the right to write disks and for what a hypervisor needs to
// open them. As is "libvirt" or "qemu".
type Attach struct {
	As     string `json:"as"`
	Target string `json:"target,omitempty"` // device name, one disk only
}

// Detach gives that right up. Force drops it even while QEMU's locks are held.
type Detach struct {
	Force bool `json:"force,omitempty"`
}

// Attachment is what a hypervisor needs. Libvirt is one <disk> element per
// disk; QEMU is a list of arguments.
type Attachment struct {
	Libvirt []string `json:"libvirt,omitempty"`
	QEMU    []string `json:"qemu,omitempty"`
}

// ExportStatus is one line of the answer to an export into a descriptor. The
// last line has Done or Error set.
type ExportStatus struct {
	Progress Progress `json:"progress"`
	Done     bool     `json:"done,omitempty"`
	Error    *Error   `json:"error,omitempty"`
}
