package api

import (
	"time"
)

// PoolSource is the storage behind a pool in the words of its driver, which says
// which of them, and of the path, it takes.
type PoolSource struct {
	Device      string `json:"device,omitempty"`          // a block device
	FileSystem  string `json:"file_system,omitempty"`     // on the device: ext4, xfs, btrfs
	Host        string `json:"host,omitempty"`            // a server
	Export      string `json:"export,omitempty"`          // what it exports
	CopyOnWrite string `json:"copy_on_write,omitempty"`   // "off": btrfs writes volumes in place
	VolumeGroup string `json:"vg,omitempty"`              // of LVM
	ThinPool    string `json:"thin_pool,omitempty"`       // in the volume group
	Wipe        string `json:"wipe,omitempty"`            // "zero": logical overwrites what is deleted
	CephPool    string `json:"rbd_pool,omitempty"`        // of a Ceph cluster
	CephConf    string `json:"ceph_conf,omitempty"`       // the cluster's configuration, a path
	CephUser    string `json:"rbd_user,omitempty"`        // without "client."
	SecretFile  string `json:"rbd_secret_file,omitempty"` // a path to the user's key, never the key
}

// Driver is one pool technology and what it declares of itself. Needs and Takes
// are the flags of pool create that it must and may be given.
type Driver struct {
	Name        string   `json:"name"`
	Description string   `json:"description"`
	Formats     []string `json:"formats"`     // what volumes may contain
	Clone       string   `json:"clone"`       // copy, reflink, native
	Snapshot    string   `json:"snapshot"`    // none, reflink, cow, native, chain
	Shrink      bool     `json:"shrink"`      // volumes can be made smaller
	LiveGrow    bool     `json:"live_grow"`   // and larger while a guest has them
	GrowFrozen  bool     `json:"grow_frozen"` // and larger while they have snapshots
	HolesKnown  bool     `json:"holes_known"`
	Thick       bool     `json:"thick"` // a volume takes all of its space when it is made
	Build       bool     `json:"build"` // storage can be made from raw material
	SizeUnit    int64    `json:"size_unit"`
	MaxName     int      `json:"max_name"`              // bytes
	MaxVolumes  int      `json:"max_volumes,omitempty"` // in one pool; 0: as many as there is space for
	Needs       []string `json:"needs"`
	Takes       []string `json:"takes"`
}

// Pool is storage set aside by an administrator. Its state is active, full when
// nothing new fits, degraded when its storage does not serve (for which Reason is
// the reason), or inactive; creating and deleting pass.
type Pool struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Driver      string     `json:"driver"`
	State       string     `json:"state"`
	Reason      string     `json:"reason,omitempty"`
	Path        string     `json:"path"`
	Source      PoolSource `json:"source,omitzero"`
	Owner       string     `json:"owner"` // USER:GROUP
	Identity    string     `json:"identity"`
	Domain      string     `json:"domain"`      // identity of the capacity domain
	Capacity    int64      `json:"capacity"`    // of the domain
	Provisioned int64      `json:"provisioned"` // sum of this pool's virtual sizes
	Committed   int64      `json:"committed"`   // what the domain's volumes may come to need
	Allocated   int64      `json:"allocated"`   // measured, this pool; information only
	Foreign     int64      `json:"foreign"`     // used in the domain by others than tarn
	ForeignAt   time.Time  `json:"foreign_at,omitzero"`
	Free        int64      `json:"free"`      // measured, in the domain
	Reserved    int64      `json:"reserved"`  // never promised
	Available   int64      `json:"available"` // what a new volume may still be promised

	// Of a thin pool.
	DataPercent     *float64 `json:"data_percent,omitempty"`
	MetadataPercent *float64 `json:"metadata_percent,omitempty"`

	// TimeToFull is how many seconds it takes, at the mean rate of the last ten
	// minutes, until what is free falls to the reserve or a thin pool's metadata
	// rises to its mark. Absent where neither approaches, it would take years, or
	// less than a minute is known.
	TimeToFull int64 `json:"time_to_full_seconds,omitempty"`

	Overcommit   float64   `json:"overcommit"`
	DiskFormat   string    `json:"disk_format"`
	ImageFormats []string  `json:"image_formats"`         // what may be imported; none is every format
	SharesWith   []string  `json:"shares_with,omitempty"` // other pools of the domain
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
}

// PoolCreate asks for a new pool. Define records it and leaves its storage
// alone, to be built and started later; Build makes the storage from raw
// material first, see PoolBuild.
type PoolCreate struct {
	Name         string     `json:"name"`
	Driver       string     `json:"driver"`
	Path         string     `json:"path,omitempty"`
	Source       PoolSource `json:"source,omitzero"`
	Define       bool       `json:"define,omitempty"`
	Build        bool       `json:"build,omitempty"`
	Overwrite    bool       `json:"overwrite,omitempty"`
	DiskFormat   string     `json:"disk_format,omitempty"`   // auto
	ImageFormats []string   `json:"image_formats,omitempty"` // what may be imported; none is every format
	Owner        string     `json:"owner,omitempty"`         // the daemon's own user
	Overcommit   *float64   `json:"overcommit,omitempty"`    // keep the domain's, at first 1.0
	Reserve      string     `json:"reserve,omitempty"`       // keep the domain's, at first "5%"
	IfAbsent     bool       `json:"if_absent,omitempty"`
}

// PoolSet changes a pool; nil leaves a field as it is, no image formats allow
// every one. Overcommit and Reserve are the domain's.
type PoolSet struct {
	Name         *string   `json:"name,omitempty"`
	DiskFormat   *string   `json:"disk_format,omitempty"`
	ImageFormats *[]string `json:"image_formats,omitempty"`
	Overcommit   *float64  `json:"overcommit,omitempty"`
	Reserve      *string   `json:"reserve,omitempty"`
}

// PoolBuild asks to make the storage of a pool that is not active from raw
// material: a file system on its device. What carries a signature of anybody's
// is refused without Overwrite.
type PoolBuild struct {
	Overwrite bool `json:"overwrite,omitempty"`
}

// PoolImport asks to take a self-describing pool into the records.
type PoolImport struct {
	Driver string     `json:"driver"`
	Path   string     `json:"path,omitempty"`
	Source PoolSource `json:"source,omitzero"`
}
