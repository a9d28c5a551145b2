// Package disk holds the records that tarn keeps, Host to Lease, and the state
// machines they move through. It refuses to perform I/O: stores persist the
// records, drivers act on what they say.
package disk

import (
	"encoding/json"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
)

// Identifiers are UUIDv7 text, except HostID (a keyed hash of the machine id in
// UUID form) and an InstanceID, which may be any UUID its owner chose.
type (
	HostID      string
	DomainID    string
	PoolID      string
	ImageID     string
	VolumeID    string
	DiskID      string
	InstanceID  string
	OperationID string
	SnapshotID  string
)

// Host is a machine that runs tarnd.
type Host struct {
	ID        HostID    `json:"id"`
	Name      string    `json:"name"`
	BootID    string    `json:"boot_id"` // the kernel's, of the boot last seen
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

// Domain is a capacity domain: the physical space behind one or more pools.
// Space is promised here, once (invariant I11).
type Domain struct {
	ID         DomainID  `json:"id"`
	Identity   string    `json:"identity"`   // what the driver says the space is, e.g. "fs:UUID"
	Overcommit int64     `json:"overcommit"` // thousandths: 1000 promises every byte once
	Reserve    Reserve   `json:"reserve"`
	CreatedAt  time.Time `json:"created_at"`
	UpdatedAt  time.Time `json:"updated_at"`
}

// Reserve is space that is never promised: Bytes, or a share of the capacity.
type Reserve struct {
	Permille int64 `json:"permille,omitempty"`
	Bytes    int64 `json:"bytes,omitempty"`
}

// Of returns the reserve of a domain of capacity bytes, in bytes.
func (r Reserve) Of(capacity int64) int64 {
	if r.Bytes > 0 {
		return r.Bytes
	}
	return capacity / 1000 * r.Permille
}

// PoolState is the state of a pool.
type PoolState string

// The states of a pool.
const (
	PoolCreating PoolState = "creating"
	PoolActive   PoolState = "active"
	PoolInactive PoolState = "inactive" // stopped by an administrator
	PoolDeleting PoolState = "deleting"
)

// FormatPolicy says which format new disks of a pool get.
type FormatPolicy string

// The policies. Auto lets the driver's capabilities decide: a reflink where it
// is cheap, else an overlay.
const (
	FormatAuto  FormatPolicy = "auto"
	FormatRaw   FormatPolicy = "raw"
	FormatQcow2 FormatPolicy = "qcow2"
)

// Owner is the user and group that own a pool's disks; -1 leaves an id as the
// daemon's own.
type Owner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// PoolSource is the storage behind a pool in the words of its technology, which says
// which of them it takes. The zero PoolSource is that of a pool whose path is the
// storage itself.
type PoolSource struct {
	Device     string `json:"device,omitempty"`      // fs: the block device
	FileSystem string `json:"file_system,omitempty"` // fs: what building makes, "ext4", "xfs" or "btrfs"
	Host       string `json:"host,omitempty"`        // netfs: the server
	Export     string `json:"export,omitempty"`      // netfs: what it exports

	CopyOnWrite string `json:"copy_on_write,omitempty"` // dir on btrfs: "off" has volumes written in place

	VolumeGroup string `json:"vg,omitempty"`        // logical, lvmthin
	ThinPool    string `json:"thin_pool,omitempty"` // lvmthin
	Wipe        string `json:"wipe,omitempty"`      // logical: "zero" has what is deleted overwritten

	CephPool   string `json:"rbd_pool,omitempty"`        // rbd: the Ceph pool
	CephConf   string `json:"ceph_conf,omitempty"`       // rbd: the cluster's configuration, a path
	CephUser   string `json:"rbd_user,omitempty"`        // rbd: without "client."
	SecretFile string `json:"rbd_secret_file,omitempty"` // rbd: a path to the user's key, never the key
}

// Pool is storage set aside by an administrator, served by one driver.
type Pool struct {
	ID           PoolID           `json:"id"`
	Name         string           `json:"name"`
	Driver       string           `json:"driver"`
	HostID       HostID           `json:"host_id,omitempty"` // empty: shared by hosts
	State        PoolState        `json:"state"`
	Path         string           `json:"path,omitempty"`
	Source       PoolSource       `json:"source,omitzero"`
	Owner        Owner            `json:"owner"`
	Identity     string           `json:"identity"` // of the storage itself, from the driver
	DomainID     DomainID         `json:"domain_id"`
	DiskFormat   FormatPolicy     `json:"disk_format"`
	ImageFormats []diskfmt.Format `json:"image_formats,omitempty"` // what may be imported into it; none is every format
	CreatedAt    time.Time        `json:"created_at"`
	UpdatedAt    time.Time        `json:"updated_at"`
}

// ImageState is the state of an image.
type ImageState string

// The states of an image.
const (
	ImageCreating ImageState = "creating"
	ImageReady    ImageState = "ready"
	ImageDeleting ImageState = "deleting"
)

// Image is immutable content that was delivered by an image source and judged
// by the gate. Its bytes live in bases.
type Image struct {
	ID           ImageID        `json:"id"`
	Name         string         `json:"name"`
	State        ImageState     `json:"state"`
	Format       diskfmt.Format `json:"format"`        // as delivered
	VirtualSize  int64          `json:"virtual_size"`  // bytes, as delivered
	MinDisk      int64          `json:"min_disk"`      // smallest root disk, bytes
	SourceSHA256 string         `json:"source_sha256"` // of the bytes as delivered, hex
	Content      string         `json:"content"`       // b3-4m:HEX
	Generation   int64          `json:"generation"`    // rises with every change: the newest description has the highest
	Proof        *Proof         `json:"proof,omitempty"`
	Source       *ImageSource   `json:"source,omitempty"`
	CreatedAt    time.Time      `json:"created_at"`
	UpdatedAt    time.Time      `json:"updated_at"`
}

// ImageSource is where an image's bytes came from, as far as that says how to get
// them again. It holds no secret: a URL with a user or a query is not kept.
type ImageSource struct {
	URL         string `json:"url,omitempty"`   // https or glance: they can be fetched again
	Cloud       string `json:"cloud,omitempty"` // whose credentials Glance is asked with, by name
	Name        string `json:"name,omitempty"`  // what the caller called the bytes that came with the call: for people, never opened
	Compression string `json:"compression,omitempty"`
}

// Proof is what an image's bytes, as delivered, were held against when it was
// imported.
type Proof struct {
	Checksums []string   `json:"checksums,omitempty"` // sha256:HEX, sha512:HEX
	Signature *Signature `json:"signature,omitempty"`
}

// What a signature was over.
const (
	OverImage     = "image"
	OverChecksums = "checksums"
)

// Signature says who signed an image.
type Signature struct {
	Over    string    `json:"over"`
	Scheme  string    `json:"scheme"` // minisign, openpgp
	KeyID   string    `json:"key_id"`
	Name    string    `json:"name,omitempty"`    // the signer's own word
	Comment string    `json:"comment,omitempty"` // the signer's own word
	Time    time.Time `json:"time,omitzero"`
}

// VolumeKind says what a volume is for.
type VolumeKind string

// The kinds of volume.
const (
	KindBase VolumeKind = "base" // one image's content, immutable
	KindDisk VolumeKind = "disk" // an instance's disk
)

// VolumeState is the state of a volume.
type VolumeState string

// The states of a volume. States that end in -ing are written before the act
// they name; after a restart they are crash residue.
const (
	VolumeCreating    VolumeState = "creating"
	VolumeReady       VolumeState = "ready"
	VolumeResizing    VolumeState = "resizing"
	VolumeDeleting    VolumeState = "deleting"
	VolumeCorrupt     VolumeState = "corrupt"
	VolumeLost        VolumeState = "lost"
	VolumeQuarantined VolumeState = "quarantined"
)

// Volume is one named, sized block of bytes in a pool with one recorded format.
// Sizes are bytes.
type Volume struct {
	ID            VolumeID       `json:"id"`
	PoolID        PoolID         `json:"pool_id"`
	Name          string         `json:"name"` // in the pool; for file pools the file's name
	Kind          VolumeKind     `json:"kind"`
	State         VolumeState    `json:"state"`
	Format        diskfmt.Format `json:"format"`
	VirtualSize   int64          `json:"virtual_size"`   // what the guest sees
	RequestedSize int64          `json:"requested_size"` // before rounding
	ClusterSize   int64          `json:"cluster_size,omitempty"`
	Backing       *Backing       `json:"backing,omitempty"`
	Content       string         `json:"content,omitempty"`      // bases: b3-4m:HEX
	ContentSize   int64          `json:"content_size,omitempty"` // bases: bytes that Content covers, before rounding
	Extents       int64          `json:"extents,omitempty"`      // bases: data extents counted at import
	Pinned        bool           `json:"pinned,omitempty"`       // bases: age does not remove it
	Adopted       bool           `json:"adopted,omitempty"`      // tarn did not make it: a base is no image's copy then
	Committed     int64          `json:"committed"`              // space it may come to need (I11)
	Writing       int64          `json:"writing,omitempty"`      // bytes its making will still write (I11 b)
	Allocated     int64          `json:"allocated"`              // measured, information only
	BackendID     string         `json:"backend_id,omitempty"`   // the technology's own id of the object
	Generation    int64          `json:"generation"`             // rises with every sidecar written
	CreatedBy     OperationID    `json:"created_by"`
	CreatedAt     time.Time      `json:"created_at"`
	UpdatedAt     time.Time      `json:"updated_at"`
}

// Backing is the volume that a volume's unwritten blocks read from.
type Backing struct {
	VolumeID VolumeID       `json:"volume"`
	Name     string         `json:"name"` // the backing string in the overlay's header
	Format   diskfmt.Format `json:"format"`
	Content  string         `json:"content"` // what it must hold (I6)
}

// Recorded returns what the record says of the volume's container, for the
// trusted door of its format.
func (v Volume) Recorded() diskfmt.Recorded {
	r := diskfmt.Recorded{Format: v.Format, VirtualSize: v.VirtualSize, ClusterSize: v.ClusterSize}
	if v.Backing != nil {
		r.BackingName, r.BackingFmt = v.Backing.Name, v.Backing.Format
	}
	return r
}

// Role says what a disk is to its instance.
type Role string

// The roles.
const (
	RoleRoot      Role = "root"
	RoleEphemeral Role = "ephemeral"
	RoleSwap      Role = "swap"
	RoleConfig    Role = "config"
	RoleData      Role = "data"
	RoleCdrom     Role = "cdrom"
	RoleRescue    Role = "rescue"
)

// Source says how a disk's first content was made.
type Source struct {
	Kind    string  `json:"kind"`               // image, blank, filesystem, swap, config-2, cidata
	ImageID ImageID `json:"image_id,omitempty"` // kind image
	Image   string  `json:"image,omitempty"`    // its name when the disk was made
	Content string  `json:"content,omitempty"`  // image content, or sha256:HEX of the config drive's input
	FS      string  `json:"fs,omitempty"`
	Label   string  `json:"label,omitempty"`
}

// Disk is what an instance has. Serial, Bus, Device and BootIndex are what the
// guest sees and never change by themselves (I7).
type Disk struct {
	ID         DiskID          `json:"id"`
	InstanceID InstanceID      `json:"instance_id"`
	Name       string          `json:"name"` // root, ephemeral0, swap, config, data1, cdrom0: unique in the instance
	Role       Role            `json:"role"`
	Index      int             `json:"index"`
	Size       int64           `json:"size"` // bytes the guest sees
	VolumeID   VolumeID        `json:"volume_id"`
	Serial     string          `json:"serial"` // 20 characters of [a-z0-9]
	Bus        string          `json:"bus"`    // virtio, scsi, sata
	Device     string          `json:"device"` // vda, sdb: the name asked of the guest
	BootIndex  int             `json:"boot_index,omitempty"`
	ReadOnly   bool            `json:"read_only,omitempty"`
	Discard    string          `json:"discard"` // unmap, ignore
	Cache      string          `json:"cache"`   // QEMU's cache mode
	Prealloc   string          `json:"prealloc,omitempty"`
	Source     Source          `json:"source"`
	DriverInfo json.RawMessage `json:"driver_info"` // opaque, versioned: {"v":1,...}
	CreatedAt  time.Time       `json:"created_at"`
	UpdatedAt  time.Time       `json:"updated_at"`
}

// Instance is the owner of a set of disks.
type Instance struct {
	ID         InstanceID `json:"id"`
	Name       string     `json:"name"`
	Generation int64      `json:"generation"` // as an image's
	CreatedAt  time.Time  `json:"created_at"`
	UpdatedAt  time.Time  `json:"updated_at"`
}

// LeaseState says how sure tarn is of a lease.
type LeaseState string

// The states of a lease. An unverified one was rebuilt from a sidecar: it
// blocks like a held one until QEMU's locks show no holder.
const (
	LeaseHeld       LeaseState = "held"
	LeaseUnverified LeaseState = "unverified"
)

// Lease is the right to write a volume, held by one host in one boot of it.
type Lease struct {
	VolumeID   VolumeID   `json:"volume_id"`
	HostID     HostID     `json:"host_id"`
	BootID     string     `json:"boot_id"`
	Generation int64      `json:"generation"` // fencing: rises with every grant
	State      LeaseState `json:"state"`
	CreatedAt  time.Time  `json:"created_at"`
}
