// Package dirdrv keeps volumes as files of a directory, on any local file
// system: NAME, its sidecar NAME.tarn.json beside it, the marker .tarn-pool,
// below .tarn-snapshots what volumes held at points in time, and below .tarn-tmp
// what is staged, the ballast and files that are about to replace others. It
// refuses to follow a symlink, to touch files without a sidecar (they are
// foreign) and to look into a volume.
package dirdrv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

const (
	markerName    = ".tarn-pool"
	madeName      = ".tarn-made" // says that prepare made the directory itself
	tmpName       = ".tarn-tmp"
	ballastName   = "ballast"
	lockName      = "lock" // of who serves the pool, where hosts share the file system
	sidecarSuffix = ".tarn.json"
	partSuffix    = ".new" // of a staged volume that is not complete yet

	maxRecord = 1 << 20 // bytes of a sidecar or marker
	maxName   = 255 - len(sidecarSuffix)
	sizeUnit  = 4096
)

// Type is the directory pool.
var Type = driver.Type{
	Name:         "dir",
	Capabilities: capabilities,
	Needs:        []disk.SourceField{disk.FieldPath},
	Takes:        []disk.SourceField{disk.FieldCopyOnWrite},
	Prepare:      prepare,
	Marker:       marker,
	Open:         open,
	Remove:       func(ctx context.Context, c driver.Config) error { return remove(ctx, c, false) },
}

var capabilities = driver.Capabilities{
	Formats:     []diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2},
	Clone:       driver.CloneReflink,
	Shrink:      true,
	Grows:       true,
	SizeUnit:    sizeUnit,
	HolesKnown:  true,
	MaxName:     maxName,
	Snapshot:    driver.SnapshotReflink,
	GrowFrozen:  true,
	Description: "files of a directory; disks are reflinks where the file system shares extents (XFS, btrfs), overlays elsewhere",
}

// pool is an open directory pool.
type pool struct {
	path  string
	owner disk.Owner
	root  *dir
	tmp   *dir
	snaps *dir // nil where there are none
	ident identity
	caps  driver.Capabilities

	folders Folders // nil where volumes are files

	naming   sync.Mutex   // held from looking for a name to taking it
	settling atomic.Int32 // how many volumes are being made durable
}

var (
	_ driver.Driver   = (*pool)(nil)
	_ driver.Cloner   = (*pool)(nil)
	_ driver.Attacher = (*pool)(nil)
	_ driver.Prober   = (*pool)(nil)
	_ driver.Physical = (*pool)(nil)
	_ driver.Ballast  = (*pool)(nil)
)

func open(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	p, caps, err := Open(ctx, c)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	return p, caps, nil
}

// start opens the pool at c, whose volumes are files where folders is nil.
func start(ctx context.Context, c driver.Config, caps driver.Capabilities, folders Folders) (*pool, error) {
	if err := ctx.Err(); err != nil {
		return nil, failed("pool.open", c.Path, err)
	}
	p, err := openPool(c)
	if err != nil {
		return nil, err
	}
	p.caps, p.folders = caps, folders
	p.caps.Clone = p.tryClone()
	if folders == nil {
		if p.caps.Clone != driver.CloneReflink {
			p.caps.Snapshot = driver.SnapshotNone
		}
		err = p.openSnaps()
	}
	if err := errors.Join(err, setCOW(p.tmp, c), setCOW(p.snaps, c), p.RestoreBallast(ctx)); err != nil {
		_ = p.Close()
		return nil, failed("pool.open", c.Path, err)
	}
	return p, nil
}

func openPool(c driver.Config) (*pool, error) {
	const op = "pool.open"
	root, err := openPlace(op, c.Path)
	if err != nil {
		return nil, err
	}
	p := &pool{path: filepath.Clean(c.Path), owner: c.Owner, root: root}
	data, err := root.readFile(markerName)
	switch {
	case isNotExist(err):
		err = errs.New(errs.Unavailable, op, c.Path, "the directory has no %s: its file system is not mounted?", markerName)
	case err == nil && !isMarkerOf(data, c.ID):
		err = errs.New(errs.Conflict, op, c.Path, "the directory %s is another pool's", c.Path)
	case err == nil:
		err = p.openTmp()
	}
	if err == nil {
		err = claim(op, p.tmp)
	}
	if err == nil {
		p.ident, err = identify(root)
	}
	if err != nil {
		_ = p.Close()
		return nil, failed(op, c.Path, err)
	}
	return p, nil
}

// openTmp opens .tarn-tmp; somebody may have thought it rubbish.
func (p *pool) openTmp() (err error) {
	p.tmp, err = privateDir(p.root, tmpName)
	return err
}

// Close implements driver.Driver.
func (p *pool) Close() error {
	err := p.root.close()
	for _, d := range []*dir{p.tmp, p.snaps} {
		if d == nil {
			continue
		}
		if cerr := d.close(); err == nil {
			err = cerr
		}
	}
	return failed("pool.close", p.path, err)
}

// Attachment implements driver.Attacher.
func (p *pool) Attachment(r driver.Ref) driver.Attachment {
	return driver.Attachment{Type: "file", Path: filepath.Join(p.path, r.Name)}
}

// place returns where r lies.
func (p *pool) place(op string, r driver.Ref) (*dir, string, error) {
	if r.Name == "" {
		return p.tmp, string(r.ID), checkID(op, r.ID)
	}
	return p.root, r.Name, checkName(op, r.Name)
}

// checkID refuses what could be something else than a staged volume's name.
func checkID(op string, id disk.VolumeID) error {
	ok := len(id) > 0 && len(id) <= 64 && id[0] != '.' && id != ballastName && id != lockName
	for _, c := range []byte(id) {
		ok = ok && (c == '-' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z')
	}
	if !ok || strings.HasSuffix(string(id), sidecarSuffix) || strings.HasSuffix(string(id), partSuffix) {
		return errs.New(errs.Invalid, op, string(id), "%q is no volume id", id)
	}
	return nil
}

// checkName refuses names that the pool keeps for itself or no file can have.
func checkName(op, name string) error {
	switch {
	case name == "" || strings.ContainsAny(name, "/\x00"):
		return errs.New(errs.Invalid, op, name, "%q is no file name", name)
	case len(name) > maxName:
		return errs.New(errs.Invalid, op, name, "the name has %d bytes, at most %d fit", len(name), maxName)
	case name[0] == '.':
		return errs.New(errs.Invalid, op, name, "names of volumes do not begin with a dot")
	case strings.HasSuffix(name, sidecarSuffix):
		return errs.New(errs.Invalid, op, name, "names that end in %s are sidecars", sidecarSuffix)
	}
	return nil
}

// present returns errs.Unavailable if the pool's path does not lead to the
// directory that was opened: it was removed, moved away or covered. What is open
// works on, but nobody else would find a volume.
func (p *pool) present() error {
	var open, there unix.Stat_t
	err := p.root.use(func(fd int) error { return unix.Fstat(fd, &open) })
	if err == nil {
		err = unix.Lstat(p.path, &there)
	}
	if isNotExist(err) || err == nil && (open.Dev != there.Dev || open.Ino != there.Ino) {
		return errs.New(errs.Unavailable, "pool", p.path, "the pool's directory is not at %s any more", p.path).
			WithHint("bring it back, or mount its file system, then tarn pool stop and tarn pool start")
	}
	return err
}

// absent returns err, or the pool's absence if that is why something is missing.
func (p *pool) absent(err error) error {
	if isNotExist(err) {
		if gone := p.present(); gone != nil {
			return gone
		}
	}
	return err
}

// failed gives err op and subject.
func failed(op, subject string, err error) error { return blkio.Error(op, subject, err) }

func isNotExist(err error) bool { return errors.Is(err, os.ErrNotExist) }

// chown gives f to the owner of the pool, where the daemon may.
func (p *pool) chown(f *os.File, uid, gid int) error {
	if os.Geteuid() != 0 || uid < 0 && gid < 0 {
		return nil
	}
	return faults.Do(faults.Ioctl, "chown "+filepath.Base(f.Name()), func() error { return f.Chown(uid, gid) })
}

// privateDir opens the directory name in d and makes it if it is missing. One
// that was there already may be another user's work: see openPrivate.
func privateDir(d *dir, name string) (*dir, error) {
	there, err := d.exists(name)
	if err == nil && !there {
		err = faults.Do(faults.Create, "mkdir "+name, func() error {
			return d.use(func(fd int) error { return ignoring(unix.EEXIST, unix.Mkdirat(fd, name, 0o700)) })
		})
	}
	if err != nil {
		return nil, err
	}
	return openPrivate(d, name)
}
