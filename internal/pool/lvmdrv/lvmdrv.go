// Package lvmdrv keeps volumes as logical volumes of LVM: thick ones of a volume
// group (driver "logical") or thin ones of a thin pool ("lvmthin"). A volume's
// name is its logical volume's; names that begin with ".tarn-" are the pool's
// own: what is staged, snapshots, and the records volume, which keeps sidecars
// and marker because LVM's tags are too small for them. It refuses to touch a
// logical volume that has no record and to look into one.
package lvmdrv

import (
	"context"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// The names of the pool's own logical volumes.
const (
	ownPrefix    = ".tarn-"
	stagedPrefix = ownPrefix + "new-"
	partPrefix   = ownPrefix + "part-" // staged, and not yet what Create promises
	snapPrefix   = ownPrefix + "snap-"
	asidePrefix  = ownPrefix + "aside-"
)

const (
	sizeUnit = 4 << 20 // LVM's own extent; smaller ones divide it
	maxName  = 100
	maxDM    = 127 - len("-real") // of a device-mapper name, with what LVM puts behind it

	// perVolume is what a volume takes of the group's metadata, with its tag and
	// a snapshot; LVM keeps the last two versions in one area.
	perVolume = 1 << 10
)

var logicalCapabilities = driver.Capabilities{
	Formats:     []diskfmt.Format{diskfmt.Raw},
	Clone:       driver.CloneCopy,
	Shrink:      true,
	Thick:       true,
	PlainNames:  true,
	Snapshot:    driver.SnapshotCOW,
	SizeUnit:    sizeUnit,
	MaxName:     maxName,
	MaxVolumes:  500,
	Description: "logical volumes of an LVM volume group, zeroed when they are made; more than 500 need a group made with a larger --metadatasize",
}

var thinCapabilities = driver.Capabilities{
	Formats:     []diskfmt.Format{diskfmt.Raw},
	Clone:       driver.CloneNative,
	Shrink:      true,
	PlainNames:  true,
	Snapshot:    driver.SnapshotNative,
	GrowFrozen:  true,
	SizeUnit:    sizeUnit,
	MaxName:     maxName,
	MaxVolumes:  500,
	Description: "thin logical volumes of an LVM thin pool; clones and snapshots share its blocks; more than 500 need a group made with a larger --metadatasize",
}

// Logical is the volume group, Thin the thin pool as a pool.
var (
	Logical = newType("logical", logicalCapabilities, disk.FieldVolumeGroup)
	Thin    = newType("lvmthin", thinCapabilities, disk.FieldVolumeGroup, disk.FieldThinPool)
)

func newType(name string, caps driver.Capabilities, needs ...disk.SourceField) driver.Type {
	t := technology{name: name, caps: caps, thin: len(needs) == 2}
	var takes []disk.SourceField
	if !t.thin {
		takes = append(takes, disk.FieldWipe)
	}
	return driver.Type{Name: name, Capabilities: caps, Needs: needs, Takes: takes, Prepare: t.prepare, Marker: t.marker, Open: t.open, Remove: t.remove}
}

// technology is one of the two types.
type technology struct {
	name string
	caps driver.Capabilities
	thin bool
}

// pool is an open pool.
type pool struct {
	*source
	caps  driver.Capabilities
	recs  *records
	owner disk.Owner

	naming chan struct{} // full from looking for a name to taking it
}

// lockNames returns when nobody else looks for a name or takes one, or with ctx's
// error: whoever does may wait for LVM.
func (p *pool) lockNames(ctx context.Context) (unlock func(), err error) {
	select {
	case p.naming <- struct{}{}:
		return func() { <-p.naming }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

var (
	_ driver.Driver      = (*pool)(nil)
	_ driver.Attacher    = (*pool)(nil)
	_ driver.Prober      = (*pool)(nil)
	_ driver.Physical    = (*pool)(nil)
	_ driver.Snapshotter = (*pool)(nil)
	_ driver.Leftovers   = (*pool)(nil)
	_ driver.Cloner      = (*pool)(nil)
)

func (t technology) open(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	const op = "pool.open"
	s, lvs, err := t.find(ctx, op, c)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	p := &pool{source: s, caps: t.caps, owner: c.Owner, naming: make(chan struct{}, 1)}
	if err := p.start(ctx, op, c, lvs); err != nil {
		return nil, driver.Capabilities{}, failed(op, s.String(), err)
	}
	return p, p.caps, nil
}

// start takes the pool: its records, and what a restart of the host may have
// left inactive.
func (p *pool) start(ctx context.Context, op string, c driver.Config, lvs map[string]lv) error {
	rec, there := lvs[p.recordsName()]
	if !there {
		return errs.New(errs.Unavailable, op, p.String(), "%s has no records of tarn's: it is no pool, or not this one", p)
	}
	if err := p.activate(ctx, rec); err != nil {
		return err
	}
	recs, err := openRecords(p.node(p.recordsName()))
	if err != nil {
		return err
	}
	err = p.mine(op, c, recs)
	if err == nil {
		err = recs.claim(op, p.String())
	}
	if err == nil {
		err = recs.load() // nobody else changes it from now on
	}
	own := p.own(lvs, recs)
	if err == nil {
		err = p.activate(ctx, own...)
	}
	for _, v := range own {
		if err == nil && v.name[0] != '.' {
			err = p.give(v.name)
		}
	}
	if err != nil {
		_ = recs.close()
		return err
	}
	p.recs = recs
	p.caps.MaxVolumes = min(recs.volumes(), int(p.group.mdaSize/2/perVolume))
	return nil
}

// mine refuses the records of another pool.
func (s *source) mine(op string, c driver.Config, recs *records) error {
	m, err := recs.marker()
	if errors.Is(err, errs.NotFound) {
		return errs.New(errs.Unavailable, op, s.String(), "%s has no marker of tarn's", s)
	}
	if err == nil && !isMarkerOf(m, c.ID) {
		err = errs.New(errs.Conflict, op, s.String(), "%s is another pool's", s).
			WithHint("take it over with \"tarn pool import\", or choose another volume group or thin pool")
	}
	return err
}

func isMarkerOf(marker []byte, id disk.PoolID) bool {
	return id != "" && strings.Contains(string(marker), string(id))
}

// own returns the logical volumes that the pool has made and not set aside.
func (p *pool) own(lvs map[string]lv, recs *records) (own []lv) {
	for name, v := range lvs {
		if v.pool == p.thinPool && (isStaged(name) || strings.HasPrefix(name, snapPrefix) || recs.has(name, v.uuid)) {
			own = append(own, v)
		}
	}
	return own
}

// give makes the pool's owner that of a volume's device, which QEMU may open
// then. Bases stay root's. The kernel forgets it with the device: it is done again
// when the pool is opened and where a volume is activated.
func (p *pool) give(name string) error {
	m, _, err := p.look(name)
	if err != nil || readOnly(m.dev) {
		return err
	}
	var st unix.Stat_t
	if err = unix.Stat(p.node(name), &st); err != nil || int(st.Uid) == p.owner.UID {
		return err
	}
	return faults.Do(faults.Ioctl, "chown "+p.node(name), func() error { return os.Chown(p.node(name), p.owner.UID, -1) })
}

func isStaged(name string) bool {
	return strings.HasPrefix(name, stagedPrefix) || strings.HasPrefix(name, partPrefix)
}

// Close implements driver.Driver.
func (p *pool) Close() error { return failed("pool.close", p.String(), p.recs.close()) }

// Attachment implements driver.Attacher.
func (p *pool) Attachment(r driver.Ref) driver.Attachment {
	return driver.Attachment{Type: "block", Path: "/dev/" + p.vg + "/" + r.Name}
}

// lvName returns the name of r's logical volume.
func (p *pool) lvName(op string, r driver.Ref) (string, error) {
	if r.Name == "" {
		return stagedPrefix + string(r.ID), p.checkID(op, string(r.ID))
	}
	return r.Name, p.checkName(op, r.Name)
}

// checkID refuses what could not be part of a name.
func (p *pool) checkID(op, id string) error {
	if id == "" || len(id) > 64 || id[0] == '.' || !plain(id) {
		return errs.New(errs.Invalid, op, id, "%q is no id", id)
	}
	return p.checkLength(op, snapPrefix+id+"-"+strings.Repeat("x", ownerLen))
}

// reserved are the words that LVM keeps for itself: prefixes, and parts of
// names (LVM2, lib/misc/lvm-string.c: apply_lvname_restrictions).
var (
	reservedPrefixes = []string{"snapshot", "pvmove"}
	reservedParts    = []string{"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_pmspare",
		"_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_imeta", "_iorig"}
)

// checkName refuses names that no logical volume can have, or that the pool
// keeps for itself.
func (p *pool) checkName(op, name string) error {
	if name == "" || !plain(name) || name[0] == '-' {
		return errs.New(errs.Invalid, op, name, "%q is no name for a logical volume", name).
			WithHint("LVM takes letters, digits and . _ -")
	}
	if name[0] == '.' {
		return errs.New(errs.Invalid, op, name, "names of volumes do not begin with a dot")
	}
	if len(name) > maxName {
		return errs.New(errs.Invalid, op, name, "the name has %d bytes, at most %d fit", len(name), maxName)
	}
	for _, w := range reservedPrefixes {
		if strings.HasPrefix(name, w) {
			return errs.New(errs.Invalid, op, name, "LVM keeps names that begin with %s for itself", w)
		}
	}
	for _, w := range reservedParts {
		if strings.Contains(name, w) {
			return errs.New(errs.Invalid, op, name, "LVM keeps names with %s for itself", w)
		}
	}
	return p.checkLength(op, name)
}

// checkLength refuses a name that is too long for device-mapper, which doubles
// each dash and puts the group's name before it.
func (p *pool) checkLength(op, name string) error {
	if n := len(dmName(p.vg, name)); n > maxDM {
		return errs.New(errs.Invalid, op, name, "with its volume group the name takes %d bytes of device-mapper's %d", n, maxDM)
	}
	return nil
}

func plain(s string) bool {
	for _, c := range []byte(s) {
		if !(c == '-' || c == '.' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
			return false
		}
	}
	return true
}

func subject(r driver.Ref) string {
	if r.Name == "" {
		return string(r.ID)
	}
	return r.Name
}

// failed gives err op and subject.
func failed(op, subject string, err error) error { return blkio.Error(op, subject, err) }

func isNotExist(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENXIO)
}
