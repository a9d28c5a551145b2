// Package driver is the contract between pools and the technologies that hold
// their volumes. It is written for those who implement a driver; those who use
// pools want package pool. It refuses to know records' meaning: sidecars and
// markers are opaque bytes here, and a volume's format is a label.
//
// # Life of a volume
//
// A volume is made in two steps. Create makes a staged volume: it reads as
// zeroes, can be opened and written under its id, and does not appear in List.
// Publish makes what was written durable, puts the first sidecar beside it and
// gives it its name, in that order, so that after a crash a name without its
// complete bytes or a volume without a sidecar cannot be seen. Staged volumes
// that no operation owns any more are removed by Delete with their id. They are
// not durable: after power loss one may be gone, or lack what was written.
//
// Every call may be repeated. Context cancellation is honoured before the
// first effect of a call; a call that must be atomic is completed.
//
// Effects on the world pass through package faults.
package driver

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/internal/disk"
)

// Ref names a volume to its driver. Name is empty while it is staged.
// BackendID, when not empty, must be the object's own id: a driver that finds
// another object under the name returns errs.Corrupt.
type Ref struct {
	ID        disk.VolumeID
	Name      string
	BackendID string
}

// RecordSize is what every driver can keep as one sidecar or marker, in bytes;
// one that cannot keep a larger one returns errs.Invalid.
const RecordSize = 16 << 10

// Spec describes a volume to create. Size is the size of the container in
// bytes, a multiple of Capabilities.SizeUnit: the guest's size for raw, 0 for a
// container that grows as it is written (qcow2 on file technologies), which is
// errs.Unsupported where Capabilities do not say Grows.
type Spec struct {
	ID       disk.VolumeID
	Size     int64
	Prealloc bool // claim all of Size now; errs.NoSpace if it is not there
}

// Object is what a driver can see of a volume without reading its bytes.
type Object struct {
	Name      string
	BackendID string
	Size      int64 // container, bytes
	Allocated int64 // physical bytes, shared ones counted in full
}

// Mode says what a device is opened for.
type Mode int

// The modes. Base opens without locks what nobody writes: immutable content, or
// a volume of which the caller knows that. Read and Write take
// the locks that keep a second writer away (I8) and return errs.Busy while
// anybody, QEMU included, holds conflicting ones. Staged opens a volume that
// only its operation knows, for writing, without locks.
const (
	Base Mode = iota + 1
	Read
	Write
	Staged
)

// Device is an open container: its bytes, not the guest's. Devices are safe
// for concurrent use.
type Device interface {
	io.ReaderAt
	io.WriterAt
	io.Closer

	// Size returns the container's current size in bytes.
	Size() int64

	// Extent returns the longest run that begins at off and is either Data or
	// Zero as far as the technology knows; unknown is Data.
	Extent(off int64) (diskfmt.Extent, error)

	// Zero makes [off, off+n) read as zeroes and releases its space where the
	// technology can.
	Zero(off, n int64) error

	// Truncate sets the container's size where Capabilities say Grows, and
	// writing past the end grows it there; elsewhere both are errors, Truncate
	// errs.Unsupported.
	Truncate(size int64) error

	// Sync makes everything written so far survive power loss. After an error
	// the device is unusable: it is never retried.
	Sync() error
}

// Usage is what a technology says of the space behind a pool, in bytes. Free
// is what an unprivileged writer may still take.
type Usage struct {
	Identity string // of the capacity domain, e.g. "fs:UUID"
	Storage  string // of the pool's own storage in it, e.g. "fs:UUID/ino:N"
	Capacity int64
	Free     int64

	// How full the data and the metadata of a thin pool are, and from which share
	// of its metadata on nothing new is made in it; 0 elsewhere.
	DataPercent, MetadataPercent, MetadataMark float64

	// Ailing says, in words for people, what is wrong with storage that answers all
	// the same, Full with the numbers why nothing new is made in it although there
	// is space; "" where that is not so.
	Ailing, Full string
}

// Record is one sidecar found in a pool: the name of the volume it lies beside
// and its bytes as PutSidecar got them.
type Record struct {
	Name string
	Data []byte
}

// Driver serves one started pool. Methods return *errs.Error.
type Driver interface {
	// Create makes a staged volume of s.Size bytes that reads as zeroes. If it
	// exists with that size Create returns nil; with another, errs.Exists. One
	// more than MaxVolumes is errs.NoSpace, here or from Publish.
	Create(ctx context.Context, s Spec) error

	// Publish syncs the staged volume id, stores sidecar and names it. A nil
	// return means that all three survive power loss. immutable makes it a
	// base: nobody but an administrator can write it afterwards. Publishing a
	// volume that already has that name returns its Object; if another volume
	// or a foreign object has the name, errs.Exists. Where nothing is staged
	// under id, tarn's volume of that name is taken for the one published: names
	// are unique among records. If syncing the volume fails its bytes are lost
	// and it is removed, so that a repeat is errs.NotFound, never a false success.
	Publish(ctx context.Context, id disk.VolumeID, name string, immutable bool, sidecar []byte) (Object, error)

	// Open opens a volume. A missing one is errs.NotFound.
	Open(ctx context.Context, r Ref, m Mode) (Device, error)

	// Describe looks at a published volume; errs.NotFound if it is not there.
	Describe(ctx context.Context, r Ref) (Object, error)

	// Resize sets the container's size durably. What a shrink cut off and a
	// grow brings back reads as zeroes. The locks of Write apply.
	Resize(ctx context.Context, r Ref, size int64) error

	// Delete removes the volume, staged or published, and its sidecar,
	// durably. Deleting a missing volume is not an error. While the staged form
	// of r.ID still exists r.Name was never taken by it: then only the staged
	// volume and a sidecar without a volume are removed, whatever object has
	// that name. A foreign object (without a sidecar) is left alone unless
	// r.BackendID is its own. A base that has clones is errs.Conflict where
	// Capabilities say HeldBases; elsewhere the clones keep what they read.
	Delete(ctx context.Context, r Ref) error

	// List yields every published object in the pool, foreign ones included;
	// of what cannot be a volume (a directory, a symlink) the name alone. It says
	// what Describe says, but that Allocated may be Size where measuring every
	// object would take long.
	List(ctx context.Context) iter.Seq2[Object, error]

	// Stat returns the usage of the space behind the pool. It is errs.Unavailable
	// when the storage that was opened is not where it was, and so is Create. Where
	// nothing is left of it, so are Open, List, Sidecars and the marker's Sidecar;
	// Delete and Describe find nothing there.
	Stat(ctx context.Context) (Usage, error)

	// PutSidecar replaces the sidecar of a published volume, or with an empty
	// name the pool's marker, atomically and durably.
	PutSidecar(ctx context.Context, name string, data []byte) error

	// Sidecar returns the sidecar of the volume that has name, or with an empty
	// name the marker; errs.NotFound if there is none.
	Sidecar(ctx context.Context, name string) ([]byte, error)

	// Sidecars yields the sidecar of every volume that has one, and those whose
	// volume is gone or was about to be published: Describe tells.
	Sidecars(ctx context.Context) iter.Seq2[Record, error]

	// Close releases the pool; open devices stay usable.
	Close() error
}

// Cloner is implemented by drivers that can make a volume from a base without
// copying its bytes. Clone makes a staged volume of s.Size bytes (not less than
// the base) whose first bytes are the base's and the rest zeroes. A technology
// that finds it cannot after all returns errs.Unsupported and leaves nothing.
type Cloner interface {
	Clone(ctx context.Context, s Spec, base Ref) error
}

// Attacher is implemented by drivers whose volumes QEMU can open by itself.
type Attacher interface {
	Attachment(r Ref) Attachment
}

// Attachment says how QEMU reaches a volume's container.
type Attachment struct {
	Type string // "file", "block", "network"
	Path string // of a file or block device

	Network *Network

	// Format is what QEMU must read the container as, where that is the
	// technology's own: its devices give the guest's bytes, whatever the volume's
	// format. Empty: the volume's format.
	Format diskfmt.Format
}

// Layered is implemented by drivers with containers that QEMU must be told the
// layers of. What a killed program left undone in them is mended first, unless
// somebody uses the volume.
type Layered interface {
	// Layers returns how QEMU reaches each layer of the volume, the top first.
	Layers(ctx context.Context, r Ref) ([]Attachment, error)
}

// Network is a container that QEMU reaches by a protocol of its own. Secrets are
// named, never held.
type Network struct {
	Protocol string   // "rbd"
	Pool     string   // the Ceph pool
	Image    string   // in it
	Hosts    []string // monitors, "HOST:PORT"; none: those of Conf
	Conf     string   // path of the client's configuration
	User     string   // without "client."
	KeyFile  string   // path of the user's key
}

// Snapshotter is implemented by drivers that keep points in time of a published
// volume. A snapshot belongs to its volume and is named by an id of tarn's; it
// is read-only, survives power loss once Snapshot has returned, and keeps the
// container's size of its moment. Snapshots are neither volumes nor objects:
// List does not show them. Delete of a volume that has some is errs.Conflict,
// so is Resize where Capabilities do not say GrowFrozen. Where Open says that
// the pool keeps no snapshots, Snapshot is errs.Unsupported.
type Snapshotter interface {
	// Snapshot keeps what the volume's container holds now. The locks of Read
	// apply: errs.Busy while anybody writes. If the snapshot is there it stays
	// as it is.
	Snapshot(ctx context.Context, r Ref, id disk.SnapshotID) error

	// DeleteSnapshot removes a snapshot; a missing one is not an error.
	DeleteSnapshot(ctx context.Context, r Ref, id disk.SnapshotID) error

	// Snapshots yields the ids of the volume's snapshots, in any order; a missing
	// volume is errs.NotFound.
	Snapshots(ctx context.Context, r Ref) iter.Seq2[disk.SnapshotID, error]

	// OpenSnapshot opens a snapshot for reading; writing it is an error. A
	// missing one is errs.NotFound, one that its technology could not keep (its
	// area overflowed) errs.Corrupt.
	OpenSnapshot(ctx context.Context, r Ref, id disk.SnapshotID) (Device, error)
}

// Stopper is implemented by drivers that set their storage going when a pool
// opens (a mount, an activation), so that Close, which a restart of the daemon
// is, leaves it as it is for the guests that use it. Stop, called instead of
// Close, undoes it: errs.Busy while anybody uses the storage, and then the pool
// is as open as before.
type Stopper interface {
	Stop(ctx context.Context) error
}

// Prober is implemented by drivers that can tell whether somebody holds a
// volume open for writing, or relies on nobody writing it: nil if nobody,
// errs.Busy, naming the holder where it can be seen, otherwise. Devices open in
// mode Read or Write count. It reads locks, never bytes.
type Prober interface {
	Probe(ctx context.Context, r Ref) error
}

// Pulse is implemented by drivers of storage that Hangs whose Stat takes longer
// than a moment. Alive returns when the storage has answered a question that
// needs what reading a volume needs: within milliseconds of storage that is well,
// not at all while it hangs. An error is the reason why the pool does not serve.
type Pulse interface {
	Alive(ctx context.Context) error
}

// Physical is implemented by drivers that can measure how many physical bytes
// all of the pool's own objects occupy, shared ones once. It may take seconds.
type Physical interface {
	Physical(ctx context.Context) (int64, error)
}

// Ballast is implemented by drivers that keep space back so that deletes work
// on a full pool. Release gives it up; Restore takes it again if there is room.
type Ballast interface {
	ReleaseBallast(ctx context.Context) error
	RestoreBallast(ctx context.Context) error
}

// Leftovers is implemented by drivers that can list what is staged, so that
// what no operation owns any more can be found. Staged yields the ids.
// SetAside moves a staged volume, or with a name a published object, its sidecar
// and its snapshots, to a place in the pool where nothing finds them but a
// person: it deletes nothing, and what is not there is not an error.
type Leftovers interface {
	Staged(ctx context.Context) iter.Seq2[disk.VolumeID, error]
	SetAside(ctx context.Context, r Ref) error
}

// Protector is implemented by drivers whose volumes have owners and
// permissions of their own. Exposure says in words how those of a published
// volume differ from what Publish gives it, "" if they do not; Protect restores
// them.
type Protector interface {
	Exposure(ctx context.Context, r Ref, immutable bool) (string, error)
	Protect(ctx context.Context, r Ref, immutable bool) error
}

// Adopter is implemented by drivers that can take a foreign object for a volume
// where it lies, under the name it has and without copying a byte of it, and let
// it go again.
type Adopter interface {
	// Candidate opens a foreign object for reading, to be looked at before it is
	// adopted. It changes nothing. What has a sidecar is errs.Exists; what anybody
	// uses errs.Busy, naming the holder where it can be seen; what others own, or
	// reach by another name, or that is not of the kind that volumes have here
	// errs.Unsafe; what has snapshots or lies over another object errs.Conflict.
	Candidate(ctx context.Context, name string) (*Candidate, error)

	// Adopt puts sidecar beside the object of r, which Candidate would open or an
	// earlier call has adopted, and gives it the owner and the permissions that
	// Publish would. After a nil return the volume survives power loss, and
	// whatever was in it.
	Adopt(ctx context.Context, r Ref, immutable bool, sidecar []byte) (Object, error)

	// Disown takes the sidecar of r away, durably. The object keeps its name and
	// its bytes and is foreign. A volume that has snapshots is errs.Conflict, so
	// is a base with clones where Capabilities say HeldBases. Disowning what is
	// missing, or foreign, is not an error.
	Disown(ctx context.Context, r Ref) error
}

// Candidate is a foreign object, open. Until Close nobody can take the locks of
// Write; its size is the container's.
type Candidate struct {
	Device
	Object Object

	// Format is what the container is where that is the technology's own, whose
	// devices give the guest's bytes: Object has the guest's size then. Empty: the
	// container is the volume's.
	Format diskfmt.Format

	// Description is what lies beside the container and says what it is, where
	// the technology has that; it is judged together with it.
	Description []byte
}

// Config is what a pool is opened with. Path is where the pool's files are, or
// are mounted; technologies without files have none.
type Config struct {
	ID     disk.PoolID
	Path   string
	Source disk.PoolSource
	Owner  disk.Owner
}

// Capabilities are what a driver declares of its technology.
type Capabilities = disk.Capabilities

// The kinds of clone and of snapshot, as package disk defines them.
const (
	CloneCopy    = disk.CloneCopy
	CloneReflink = disk.CloneReflink
	CloneNative  = disk.CloneNative

	SnapshotNone    = disk.SnapshotNone
	SnapshotReflink = disk.SnapshotReflink
	SnapshotCOW     = disk.SnapshotCOW
	SnapshotNative  = disk.SnapshotNative
	SnapshotChain   = disk.SnapshotChain
)

// Type is one technology, as the explicit list of package all names it.
type Type struct {
	Name         string
	Capabilities Capabilities

	// Needs and Takes name what a pool of the technology must and what it may be
	// told of its storage: callers refuse the rest. The three paths among the
	// fields, and the device, are absolute.
	Needs, Takes []disk.SourceField

	// Hangs says that the storage may stop answering without any error, as a
	// server's that is gone. Callers bound every call then, and make the next one
	// only when those that hung are through. Opens is what Open takes of such
	// storage where that is more than a moment: a daemon that starts waits for that long.
	// Silence is how long storage that is well but busy may leave the smallest question
	// open; 0: two seconds.
	Hangs   bool
	Opens   time.Duration
	Silence time.Duration

	// Prepare makes the storage at c ready to be a pool and writes marker; it
	// refuses storage that is another pool's or not what c says, changing
	// nothing. Preparing what carries the same pool's marker is not an error.
	// Every marker contains its pool's id as text: by that drivers know it.
	// Storage that has to be set going first (a mount) is, as by Open.
	Prepare func(ctx context.Context, c Config, marker []byte) error
	// Build makes the storage at c from raw material (a file system on a device)
	// for Prepare to find; nil where there is nothing to build. Material that
	// carries a signature of anybody's is errs.Conflict, unless overwrite; what is
	// in use is errs.Busy even then.
	Build func(ctx context.Context, c Config, overwrite bool) error
	// Marker reads the marker of the storage at c: errs.NotFound without one. c
	// has no ID. Storage that has to be set going first is, and stays so if there
	// is a marker.
	Marker func(ctx context.Context, c Config) ([]byte, error)
	// Open starts the pool at c: errs.Unavailable without a marker, errs.Conflict
	// with another pool's. A pool is served once: until Close, or the end of the
	// process however it comes, every other Open of its storage, in this process
	// or another, is errs.Busy, naming the other where it can be seen. On storage
	// that several hosts reach the lock is one that all of them see. Opening again
	// after Close has no effect on the world. What Open says of cloning here may
	// be less than Capabilities declare (a directory on ext4 has no reflink).
	Open func(ctx context.Context, c Config) (Driver, Capabilities, error)
	// Remove takes the marker and everything else that Prepare and the driver
	// made away from a pool without volumes (errs.Conflict with some) that is not
	// open (errs.Busy while it is); foreign objects stay, and sidecars beside
	// nothing. Removing a pool that is gone is not an error.
	Remove func(ctx context.Context, c Config) error
}
