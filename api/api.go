// Package api holds the wire types of tarn's HTTP API, version 1. The same
// types are what "tarn -o json" prints. It refuses to hold behaviour beyond
// reading and writing itself as JSON.
//
// Sizes are bytes. Times are RFC 3339 in UTC. Fields are only ever added.
package api

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// List is one page of a collection. Next, when not empty, is the value of the
// "after" parameter that continues it.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// Page asks for one page of a collection. A zero Limit is the server's default
// of 1000; -1 is everything.
type Page struct {
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
}

// Error is the one shape of an error at every layer.
type Error struct {
	Kind    errs.Kind `json:"kind"`
	Class   string    `json:"class,omitempty"`
	Op      string    `json:"op,omitempty"`
	Subject string    `json:"subject,omitempty"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
}

// ErrorBody is what a failed call answers and what "-o json" prints on stderr.
type ErrorBody struct {
	Error Error `json:"error"`
}

// Subject names the object an operation or event is about.
type Subject struct {
	Type string `json:"type"` // pool, image, volume, instance, disk
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Pool is storage set aside by an administrator.
type Pool struct {
	ID           string    `json:"id"`
	Name         string    `json:"name"`
	Driver       string    `json:"driver"`
	State        string    `json:"state"`
	Path         string    `json:"path"`
	Owner        string    `json:"owner"` // USER:GROUP
	Identity     string    `json:"identity"`
	Domain       string    `json:"domain"`      // identity of the capacity domain
	Capacity     int64     `json:"capacity"`    // of the domain
	Provisioned  int64     `json:"provisioned"` // sum of this pool's virtual sizes
	Committed    int64     `json:"committed"`   // what the domain's volumes may come to need
	Allocated    int64     `json:"allocated"`   // measured, this pool; information only
	Foreign      int64     `json:"foreign"`     // used in the domain by others than tarn
	ForeignAt    time.Time `json:"foreign_at,omitzero"`
	Reserved     int64     `json:"reserved"`  // never promised
	Available    int64     `json:"available"` // what a new volume may still be promised
	Overcommit   float64   `json:"overcommit"`
	DiskFormat   string    `json:"disk_format"`
	ImageFormats []string  `json:"image_formats"`         // what may be imported; none is every format
	SharesWith   []string  `json:"shares_with,omitempty"` // other pools of the domain
	CreatedAt    time.Time `json:"created_at"`
	UpdatedAt    time.Time `json:"updated_at"`
}

// PoolCreate asks for a new pool.
type PoolCreate struct {
	Name         string   `json:"name"`
	Driver       string   `json:"driver"`
	Path         string   `json:"path,omitempty"`
	DiskFormat   string   `json:"disk_format,omitempty"`   // auto
	ImageFormats []string `json:"image_formats,omitempty"` // what may be imported; none is every format
	Owner        string   `json:"owner,omitempty"`         // the daemon's own user
	Overcommit   *float64 `json:"overcommit,omitempty"`    // keep the domain's, at first 1.0
	Reserve      string   `json:"reserve,omitempty"`       // keep the domain's, at first "5%"
	IfAbsent     bool     `json:"if_absent,omitempty"`
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

// PoolImport asks to take a self-describing pool into the records.
type PoolImport struct {
	Driver string `json:"driver"`
	Path   string `json:"path,omitempty"`
}

// Image is immutable content delivered by an image source.
type Image struct {
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	State        string       `json:"state"`
	Format       string       `json:"format"`
	VirtualSize  int64        `json:"virtual_size"`
	MinDisk      int64        `json:"min_disk"`
	SourceSHA256 string       `json:"source_sha256"`
	Content      string       `json:"content"`
	Verified     []string     `json:"verified,omitempty"` // checksums that the bytes had to have: sha256:HEX, sha512:HEX
	Signed       *ImageSigned `json:"signed,omitempty"`
	Bases        []ImageBase  `json:"bases"`
	CreatedAt    time.Time    `json:"created_at"`
	UpdatedAt    time.Time    `json:"updated_at"`
}

// ImageBase is one pool's copy of an image.
type ImageBase struct {
	Volume string `json:"volume"`
	Pool   string `json:"pool"`
	State  string `json:"state"`
	Format string `json:"format"`
}

// ImageImport asks to import the bytes that come with the call.
type ImageImport struct {
	Name    string `json:"name"`
	Format  string `json:"format"`
	SHA256  string `json:"sha256,omitempty"`
	MinDisk int64  `json:"min_disk,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Source  string `json:"source,omitempty"` // how the user named it, for messages

	IfAbsent bool `json:"if_absent,omitempty"`
	ImageDetails
}

// ImageDetails is what else may be said of an image's bytes. URL has the daemon
// fetch them, https://... or glance://..., with the credentials of the
// configured Cloud; then none come with the call. A signature is over the
// checksums when there are any, else over the bytes; checksums without one may
// carry it within.
type ImageDetails struct {
	Compression    string `json:"compression,omitempty"` // gzip, xz, zstd, bzip2
	SHA512         string `json:"sha512,omitempty"`
	MaxVirtualSize int64  `json:"max_virtual_size,omitempty"` // 0 is 64 TiB
	URL            string `json:"url,omitempty"`
	Cloud          string `json:"cloud,omitempty"`
	Description    []byte `json:"description,omitempty"` // a ploop image's DiskDescriptor.xml
	File           string `json:"file,omitempty"`        // the bytes' name in the checksums
	Checksums      []byte `json:"checksums,omitempty"`   // as a SHA256SUMS
	ChecksumsURL   string `json:"checksums_url,omitempty"`
	Signature      []byte `json:"signature,omitempty"`
	SigningKey     []byte `json:"signing_key,omitempty"`
}

// Unchanged is the result of an operation that had nothing to do: what was asked
// for was so already.
type Unchanged struct {
	Unchanged bool `json:"unchanged"`
}

// ImageSigned says who signed an image: the result of an import whose signature
// was verified. Name and comment are the signer's own words.
type ImageSigned struct {
	Over    string    `json:"over"`   // image, checksums
	Scheme  string    `json:"scheme"` // minisign, openpgp
	KeyID   string    `json:"key_id"`
	Name    string    `json:"name,omitempty"`
	Comment string    `json:"comment,omitempty"`
	Time    time.Time `json:"time,omitzero"`
}

// ImageInspect asks for the gate's verdict on the bytes that come with the call.
type ImageInspect struct {
	Format string `json:"format"`
	SHA256 string `json:"sha256,omitempty"`
	Source string `json:"source,omitempty"`
	ImageDetails
}

// Verdict is what the gate says of an image.
type Verdict struct {
	Verdict      string   `json:"verdict"` // accept, reject
	Error        string   `json:"error,omitempty"`
	Detail       string   `json:"detail,omitempty"`
	Hint         string   `json:"hint,omitempty"`
	Format       string   `json:"format"`
	VirtualSize  int64    `json:"virtual_size"`
	Features     []string `json:"features"`
	SourceSHA256 string   `json:"source_sha256,omitempty"`
	Content      string   `json:"content,omitempty"`
}

// CacheEntry is one base.
type CacheEntry struct {
	Volume      string    `json:"volume"`
	Pool        string    `json:"pool"`
	Images      []string  `json:"images"`
	Content     string    `json:"content"`
	Format      string    `json:"format"`
	State       string    `json:"state"`
	VirtualSize int64     `json:"virtual_size"`
	Allocated   int64     `json:"allocated"`
	Extents     int64     `json:"extents"`
	References  int       `json:"references"` // volumes that read from it
	CreatedAt   time.Time `json:"created_at"`
	UpdatedAt   time.Time `json:"updated_at"` // last use
}

// CacheAdd asks to put an image's base into a pool.
type CacheAdd struct {
	Image string `json:"image"`
	Pool  string `json:"pool"`
}

// CachePrune asks to remove bases that nothing refers to. OlderThan is a Go
// duration since the last use.
type CachePrune struct {
	OlderThan string `json:"older_than,omitempty"`
	Pool      string `json:"pool,omitempty"`
}

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
	Backing       *Backing  `json:"backing,omitempty"`
	Content       string    `json:"content,omitempty"`
	Path          string    `json:"path"`
	CreatedAt     time.Time `json:"created_at"`
	UpdatedAt     time.Time `json:"updated_at"`
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

// Rename gives an object another name.
type Rename struct {
	Name string `json:"name"`
}

// Operation is one journalled piece of work.
type Operation struct {
	ID        string          `json:"id"`
	Kind      string          `json:"kind"`
	State     string          `json:"state"`
	Subject   Subject         `json:"subject"`
	Key       string          `json:"request_id,omitempty"`
	Progress  Progress        `json:"progress"`
	Steps     []Step          `json:"steps"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *Error          `json:"error,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// Final reports whether the operation has ended.
func (o Operation) Final() bool {
	switch o.State {
	case "done", "failed", "cancelled", "needs_operator":
		return true
	}
	return false
}

// Step is one step of an operation or of a plan.
type Step struct {
	Kind   string          `json:"kind"`
	State  string          `json:"state"`
	Detail json.RawMessage `json:"detail,omitempty"`
}

// Progress is how far an operation has come; Rate is units a second.
type Progress struct {
	Done       int64  `json:"done"`
	Total      int64  `json:"total"`
	Unit       string `json:"unit"`
	Rate       int64  `json:"rate"`
	ETASeconds int64  `json:"eta_seconds"`
}

// Plan is what a change would do: the answer of a dry run.
type Plan struct {
	Kind    string   `json:"kind"`
	Subject Subject  `json:"subject"`
	Steps   []Step   `json:"steps"`
	Notes   []string `json:"notes,omitempty"` // for people: sizes, space, what is destroyed
}

// Doctor asks for a check of the invariants.
type Doctor struct {
	Repair bool   `json:"repair,omitempty"`
	Pool   string `json:"pool,omitempty"`
}

// Report is the result of a check.
type Report struct {
	Problems []Problem `json:"problems"`
	Notes    []string  `json:"notes,omitempty"` // not problems: foreign files, missing landlock
}

// Problem is one broken invariant.
type Problem struct {
	Invariant string `json:"invariant"` // I1 ... I14
	Object    string `json:"object"`
	Detail    string `json:"detail"`
	Repair    string `json:"repair"`             // what was or can be done
	Repaired  bool   `json:"repaired,omitempty"` // it was: nothing is left to do
}

// Event is one change. IDs rise; a reader resumes after the last it saw.
type Event struct {
	ID      int64     `json:"id"`
	Time    time.Time `json:"time"`
	Type    string    `json:"type"` // "volume.ready", "operation.done"
	Subject Subject   `json:"subject"`
	Op      string    `json:"operation,omitempty"`
}

// Version says what runs.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	API     string `json:"api"`
	Schema  int    `json:"schema,omitempty"`
}

// Options are what every changing call takes besides its request. A call
// repeated with the same RequestID returns the first call's operation. A call
// over HTTP answers when its operation has ended, or after Wait; one that is cut
// while it waits goes on, and its RequestID finds it again.
type Options struct {
	RequestID string
	DryRun    bool
	Wait      time.Duration // in seconds; 0 answers at once
}

// Outcome is the answer of a changing call: a Plan for a dry run, else the
// Operation.
type Outcome struct {
	Operation *Operation `json:"operation,omitempty"`
	Plan      *Plan      `json:"plan,omitempty"`
}

// Headers of requests. RequestIDHeader carries Options.RequestID;
// DescriptorHeader says that the body is the file descriptor that came with
// the request's first byte, which only the unix socket can carry;
// OperationHeader of an answer names its operation.
const (
	RequestIDHeader  = "Tarn-Request-Id"
	DescriptorHeader = "Tarn-Descriptor"
	OperationHeader  = "Tarn-Operation"
	DetailsHeader    = "Tarn-Details" // so many bytes before the image's are ImageDetails in JSON
	ErrorTrailer     = "Tarn-Error"   // of a streamed export that failed half-way: an ErrorBody
)

// ExportStatus is one line of the answer to an export into a descriptor. The
// last line has Done or Error set.
type ExportStatus struct {
	Progress Progress `json:"progress"`
	Done     bool     `json:"done,omitempty"`
	Error    *Error   `json:"error,omitempty"`
}

// ErrorOf returns err as it goes over the wire.
func ErrorOf(err error) Error {
	var e *errs.Error
	if !errors.As(err, &e) {
		return Error{Kind: errs.KindOf(err), Message: err.Error()}
	}
	return Error{Kind: e.Kind, Class: e.Class, Op: e.Op, Subject: e.Subject, Message: e.Message, Hint: e.Hint}
}

// Err returns the error that e describes, or nil for no error.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	return &errs.Error{Op: e.Op, Subject: e.Subject, Kind: e.Kind, Class: e.Class, Message: e.Message, Hint: e.Hint}
}
