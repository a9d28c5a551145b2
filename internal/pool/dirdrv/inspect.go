package dirdrv

import (
	"context"
	"fmt"
	"iter"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// asideName is the directory at the pool's root that keeps what was set aside.
// Nothing in tarn removes it.
const asideName = ".tarn-quarantine"

var (
	_ driver.Leftovers = (*pool)(nil)
	_ driver.Protector = (*pool)(nil)
)

// Staged implements driver.Leftovers. It yields all that is in .tarn-tmp but
// the ballast and records on their way, under whatever name somebody put it.
func (p *pool) Staged(ctx context.Context) iter.Seq2[disk.VolumeID, error] {
	return func(yield func(disk.VolumeID, error) bool) {
		seen := map[string]bool{}
		err := p.tmp.each(ctx, func(name string) bool {
			id := strings.TrimSuffix(name, partSuffix)
			if isOwn(id) { // with the suffix it is none of tarn's own
				id = name
			}
			if strings.HasSuffix(name, sidecarSuffix) || seen[id] || isOwn(id) {
				return true
			}
			seen[id] = true
			return yield(disk.VolumeID(id), nil)
		})
		if err != nil {
			yield("", failed("pool.staged", p.path, p.absent(err)))
		}
	}
}

// isOwn reports whether tarn keeps something of its own under that name in
// .tarn-tmp, or nothing can have it.
func isOwn(name string) bool {
	return name == "" || name == ballastName || name == lockName || name == markerName
}

// SetAside implements driver.Leftovers. A name that was set aside before gets a
// number.
func (p *pool) SetAside(ctx context.Context, r driver.Ref) error {
	const op = "volume.set_aside"
	at, name, err := p.leftover(op, r)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return failed(op, subject(r), err)
	}
	suffixes := []string{"", sidecarSuffix} // as Delete: no volume without its sidecar
	if r.Name == "" {
		suffixes = []string{sidecarSuffix, partSuffix, ""}
	}
	aside, err := privateDir(p.root, asideName)
	if err != nil {
		return failed(op, subject(r), err)
	}
	defer aside.close()
	for _, suffix := range suffixes {
		if err == nil {
			err = moveAside(at, name+suffix, aside)
		}
	}
	if err == nil && r.Name != "" {
		err = p.snapsAside(ctx, r.ID, aside)
	}
	for _, d := range []*dir{aside, at} {
		if err == nil {
			err = d.sync()
		}
	}
	return failed(op, subject(r), err)
}

// snapsAside moves the snapshots of volume id, if it has an id.
func (p *pool) snapsAside(ctx context.Context, id disk.VolumeID, aside *dir) (err error) {
	if id == "" {
		return nil
	}
	var snaps []string
	if err = p.eachSnapshot(ctx, id, func(snap disk.SnapshotID) bool { snaps = append(snaps, snapFile(id, snap)); return true }); err != nil {
		return err
	}
	for _, name := range snaps {
		if err == nil {
			err = moveAside(p.snaps, name, aside)
		}
	}
	if err == nil && len(snaps) > 0 {
		err = p.snaps.sync()
	}
	return err
}

// leftover is place for all that Staged and List yield.
func (p *pool) leftover(op string, r driver.Ref) (*dir, string, error) {
	if r.Name != "" {
		return p.place(op, r)
	}
	name := string(r.ID)
	if isOwn(name) || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, "", errs.New(errs.Invalid, op, name, "%q is nothing that is staged", name)
	}
	return p.tmp, name, nil
}

// moveAside moves name, if it is there, to a name that is free.
func moveAside(at *dir, name string, aside *dir) error {
	there, err := at.exists(name)
	if err != nil || !there {
		return ignoring(unix.ENAMETOOLONG, err) // nothing has such a name
	}
	for n := 0; ; n++ {
		to := name
		if n > 0 {
			to = fmt.Sprintf("%s.%d", name, n)
		}
		err := at.publish(name, aside, to)
		if err != unix.EEXIST {
			return err
		}
	}
}

// guard is who may do what with a file.
type guard struct {
	mode     uint32
	uid, gid int // -1: whatever it is
}

// guardOf returns what Publish gives a volume.
func (p *pool) guardOf(immutable bool) guard {
	g := guard{0o600, p.owner.UID, p.owner.GID}
	if immutable {
		g = guard{0o440, 0, p.owner.GID}
	}
	if os.Geteuid() != 0 {
		g.uid, g.gid = -1, -1
	}
	return g
}

// Exposure implements driver.Protector.
func (p *pool) Exposure(ctx context.Context, r driver.Ref, immutable bool) (string, error) {
	const op = "volume.exposure"
	if _, err := p.Describe(ctx, r); err != nil {
		return "", err
	}
	if p.folders != nil {
		why, err := p.folderExposure(r, immutable)
		return why, failed(op, r.Name, err)
	}
	why, err := exposed("its", p.root, r.Name, p.guardOf(immutable))
	if err != nil {
		return "", missing(op, r, err)
	}
	return why, nil
}

// Protect implements driver.Protector.
func (p *pool) Protect(ctx context.Context, r driver.Ref, immutable bool) error {
	const op = "volume.protect"
	if _, err := p.Describe(ctx, r); err != nil {
		return err
	}
	f, err := p.openVolume(p.root, r.Name)
	if err != nil {
		return missing(op, r, err)
	}
	defer f.Close()
	err = p.checkIdentity(op, r, f)
	if err == nil && p.folders != nil {
		return failed(op, r.Name, p.guardFiles(f, immutable))
	}
	want := p.guardOf(immutable)
	if err == nil {
		err = p.chown(f, want.uid, want.gid)
	}
	if err == nil {
		err = faults.Do(faults.Ioctl, "chmod "+r.Name, func() error { return f.Chmod(os.FileMode(want.mode)) })
	}
	return failed(op, r.Name, err)
}
