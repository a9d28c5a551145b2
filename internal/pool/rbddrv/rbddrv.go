// Package rbddrv keeps volumes as RBD images of a Ceph pool, or of a namespace
// in one. Control is the rbd program, data the NBD export of a
// qemu-storage-daemon for each open volume. What the driver makes for itself has
// names that begin with ".tarn.": the image that carries the pool's marker, and
// what is staged or set aside. Sidecars are image metadata with the image's own
// id inside, because a clone gets a copy of its parent's. It refuses to touch
// images without a sidecar (they are foreign) and to look into a volume.
//
// Ceph tells who has an image open (watchers, of which QEMU is one even where it
// only reads), and the driver takes each for a writer; it has no way to keep a
// QEMU that comes later from opening an image too. Then the image's exclusive lock
// goes to and fro between writers, and only the lease on a volume keeps them apart.
package rbddrv

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const (
	ours       = ".tarn."      // begins the name of every image that is the driver's own
	poolName   = ".tarn.pool"  // carries the marker; whoever serves the pool has it open
	stagedName = ".tarn.s."    // and the volume's id
	partName   = ".tarn.n."    // and the id: of a staged volume that is not complete yet
	newName    = ".tarn.p."    // and the pool's id: of a pool whose marker is not complete yet
	asideName  = ".tarn.a."    // and the image's id
	markerKey  = "tarn.marker" // of image metadata
	sidecarKey = "tarn.sidecar"
	baseSnap   = "tarn.base" // the snapshot of a base that clones are made of
	snapPrefix = "tarn.s."   // and the snapshot's id

	sizeUnit  = 4096
	maxName   = 200
	maxSize   = 256_000_000 << 22 // what an object map can hold of objects of 4 MiB
	maxRecord = 64 << 10          // bytes of a sidecar or marker: as base64 it is one word of argv
)

// Type is the Ceph RBD pool.
var Type = driver.Type{
	Name:         "rbd",
	Capabilities: capabilities,
	Needs:        []disk.SourceField{disk.FieldCephPool},
	Takes:        []disk.SourceField{disk.FieldCephConf, disk.FieldCephUser, disk.FieldSecretFile},
	Prepare:      prepare,
	Marker:       marker,
	Open:         open,
	Remove:       remove,
	Hangs:        true,
	Opens:        10 * time.Second,
	Silence:      20 * time.Second, // until a cluster notices that an OSD is dead (osd_heartbeat_grace)
}

var capabilities = driver.Capabilities{
	Formats:     []diskfmt.Format{diskfmt.Raw},
	Clone:       driver.CloneNative,
	Shrink:      true,
	HeldBases:   true,
	HolesKnown:  true,
	Snapshot:    driver.SnapshotNative,
	GrowFrozen:  true,
	SizeUnit:    sizeUnit,
	MaxName:     maxName,
	Description: "images of a Ceph pool; disks are copy-on-write clones of a base's snapshot",
}

// pool is an open RBD pool.
type pool struct {
	*tool
	id     disk.PoolID
	served *device // the marker's image, open for as long as the pool is served

	naming sync.Mutex // held while a volume gets its name

	lost atomic.Bool // the pool may be another's by now, which is for good

	mu   sync.Mutex
	fsid string // of the cluster, once it was asked
}

var (
	_ driver.Driver      = (*pool)(nil)
	_ driver.Cloner      = (*pool)(nil)
	_ driver.Snapshotter = (*pool)(nil)
	_ driver.Attacher    = (*pool)(nil)
	_ driver.Prober      = (*pool)(nil)
	_ driver.Physical    = (*pool)(nil)
	_ driver.Pulse       = (*pool)(nil)
	_ driver.Leftovers   = (*pool)(nil)
)

// Attachment implements driver.Attacher.
func (p *pool) Attachment(r driver.Ref) driver.Attachment {
	return driver.Attachment{Type: "network", Network: &driver.Network{
		Protocol: "rbd", Pool: p.where(), Image: r.Name, Conf: p.conf, User: p.user, KeyFile: p.keyFile,
	}}
}

// Close implements driver.Driver.
func (p *pool) Close() error {
	return failed("pool.close", p.where(), p.served.Close())
}

// here refuses work when the pool is known not to be this driver's any more.
func (p *pool) here(ctx context.Context, op, subject string) error {
	if err := ctx.Err(); err != nil {
		return failed(op, subject, err)
	}
	if p.served.ended() {
		p.lost.Store(true)
	}
	if p.lost.Load() {
		return errs.New(errs.Unavailable, op, subject, "this tarnd does not hold the pool %s any more: "+
			"the program that held it has ended, or the cluster has shut it out", p.where()).
			WithHint("see that no other tarnd serves the pool and that \"ceph osd blocklist ls\" does not name this host; then tarn pool stop, and tarn pool start")
	}
	return nil
}

// Alive implements driver.Pulse: the holder of the pool reads from an OSD.
func (p *pool) Alive(ctx context.Context) error {
	const op = "pool.alive"
	err := p.here(ctx, op, p.where())
	if err == nil && p.served.peek() != nil {
		if err = p.here(ctx, op, p.where()); err == nil {
			err = errs.New(errs.Unavailable, op, p.where(), "the Ceph pool %s cannot be read", p.where()).
				WithHint("\"ceph health detail\" says what the cluster lacks")
		}
	}
	return err
}

// serving proves before a change that the pool is still this driver's: who takes
// it over shuts the holder out of the cluster first, and then it cannot even read.
// A read that fails may have other reasons; the pool is lost if Ceph does not list
// the holder either.
func (p *pool) serving(ctx context.Context, op, subject string) error {
	if err := p.here(ctx, op, subject); err != nil {
		return err
	}
	if p.served.look() == nil {
		return nil
	}
	there, err := p.holds(ctx, op)
	if err == nil && !there {
		p.lost.Store(true)
		err = p.here(ctx, op, subject)
	}
	return failed(op, subject, p.absent(ctx, err))
}

// holds reports whether Ceph lists the holder of the pool as such.
func (p *pool) holds(ctx context.Context, op string) (bool, error) {
	w, err := p.watchers(ctx, op, poolName)
	return slices.ContainsFunc(w, func(c watcher) bool { return c.Client == p.served.client }), err
}

// imageOf returns the name of r's image.
func imageOf(op string, r driver.Ref) (string, error) {
	if r.Name == "" {
		return stagedName + string(r.ID), checkID(op, string(r.ID))
	}
	return r.Name, checkName(op, r.Name)
}

func subject(r driver.Ref) string {
	if r.Name == "" {
		return string(r.ID)
	}
	return r.Name
}

// checkID refuses what is no id of a volume or snapshot.
func checkID(op, id string) error {
	ok := len(id) > 0 && len(id) <= 64 && id[0] != '.'
	for _, c := range []byte(id) {
		ok = ok && (c == '-' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	if !ok {
		return errs.New(errs.Invalid, op, id, "%q is no id", id)
	}
	return nil
}

// checkName refuses names that the driver keeps for itself or rbd cannot be
// given: "/" and "@" divide its own words.
func checkName(op, name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "/@\x00"):
		return errs.New(errs.Invalid, op, name, "%q is no name of an RBD image", name)
	case len(name) > maxName:
		return errs.New(errs.Invalid, op, name, "the name has %d bytes, at most %d fit", len(name), maxName)
	case name[0] == '.':
		return errs.New(errs.Invalid, op, name, "names of volumes do not begin with a dot")
	}
	return nil
}

func checkRecord(op, subject string, data []byte) error {
	if len(data) > maxRecord {
		return errs.New(errs.Invalid, op, subject, "%d bytes, at most %d are a record", len(data), maxRecord)
	}
	return nil
}

// absent returns err, or the storage's absence if that is why something is
// missing.
func (p *pool) absent(ctx context.Context, err error) error {
	if !errors.Is(err, errs.NotFound) {
		return err
	}
	if _, gone := p.info(ctx, poolName); errors.Is(gone, errs.NotFound) {
		return errs.New(errs.Unavailable, "pool", p.where(), "the Ceph pool %s, or tarn's mark in it, is gone", p.where()).
			WithHint("bring it back, then tarn pool stop and tarn pool start")
	}
	return err
}

// failed gives err op and subject.
func failed(op, subject string, err error) error { return blkio.Error(op, subject, err) }
