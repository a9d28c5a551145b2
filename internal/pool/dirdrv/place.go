package dirdrv

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// poolMode lets QEMU's user reach a volume whose name it was told, and nobody
// list the pool.
const poolMode = 0o711

// isMarkerOf reports whether the marker is that of pool id. Its bytes are the
// pool package's, but a marker carries its pool's id as text and no other's.
func isMarkerOf(marker []byte, id disk.PoolID) bool {
	return id != "" && bytes.Contains(marker, []byte(id))
}

// openPlace opens the directory at path after checking that it can be
// trusted with volumes.
func openPlace(op, path string) (*dir, error) {
	if !filepath.IsAbs(path) {
		return nil, errs.New(errs.Invalid, op, path, "the path of a pool must be absolute")
	}
	path = filepath.Clean(path)
	info, err := os.Lstat(path)
	switch {
	case isNotExist(err):
		return nil, errs.New(errs.Unavailable, op, path, "there is no directory %s: its file system is not mounted?", path)
	case impossible(err):
		return nil, errs.New(errs.Invalid, op, path, "no directory can be there: %w", err)
	case err != nil:
		return nil, failed(op, path, err)
	case info.Mode()&os.ModeSymlink != 0:
		return nil, errs.New(errs.Unsafe, op, path, "%s is a symlink, which could come to point elsewhere", path).WithHint("name the directory it leads to")
	case !info.IsDir():
		return nil, errs.New(errs.Invalid, op, path, "%s is not a directory", path)
	}
	d, err := openDir(path)
	if err != nil {
		return nil, failed(op, path, err)
	}
	if err := checkTrust(op, path, d); err != nil {
		_ = d.close()
		return nil, err
	}
	return d, nil
}

// impossible reports whether err says that nothing is at a path, nor can be.
func impossible(err error) bool {
	for _, e := range []error{unix.EINVAL, unix.ENAMETOOLONG, unix.ENOTDIR, unix.ELOOP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// checkTrust refuses a directory whose entries somebody else could replace.
func checkTrust(op, path string, d *dir) error {
	var st unix.Stat_t
	if err := d.use(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return failed(op, path, err)
	}
	if uid := int(st.Uid); uid != 0 && uid != os.Geteuid() {
		return errs.New(errs.Unsafe, op, path, "the directory %s belongs to user %d, who could replace volumes", path, uid).
			WithHint("chown it to root or to the user that runs tarnd")
	}
	if st.Mode&unix.S_IWOTH != 0 && st.Mode&unix.S_ISVTX == 0 {
		return errs.New(errs.Unsafe, op, path, "everybody can write the directory %s", path).WithHint("chmod o-w %s", path)
	}
	if gid := int(st.Gid); st.Mode&unix.S_IWGRP != 0 && gid != 0 && gid != os.Getegid() {
		return errs.New(errs.Unsafe, op, path, "group %d can write the directory %s", gid, path).WithHint("chmod g-w %s", path)
	}
	return nil
}

// openPrivate opens the directory name of the pool at d, which nobody but root
// and the daemon may write: where everybody can make entries in the pool's
// directory, somebody else may have made this one.
func openPrivate(d *dir, name string) (*dir, error) {
	const op = "pool.open"
	path := filepath.Join(d.f.Name(), name)
	refused := func(format string, args ...any) error {
		return errs.New(errs.Unsafe, op, path, format, args...).
			WithHint("tarn did not make %s: see what it is and move it away", path)
	}
	s, err := d.sub(name)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, refused("its %s is not a directory", name)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	err = s.use(func(fd int) error { return unix.Fstat(fd, &st) })
	uid := int(st.Uid)
	switch {
	case err != nil:
	case uid != 0 && uid != os.Geteuid():
		err = refused("its %s belongs to user %d, who could replace volumes", name, uid)
	case st.Mode&(unix.S_IWGRP|unix.S_IWOTH) != 0:
		err = refused("others than its owner can write its %s", name)
	}
	if err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

// prepare implements driver.Type.Prepare. It makes the path's last component
// if it is missing.
func prepare(ctx context.Context, c driver.Config, marker []byte) error {
	const op = "pool.prepare"
	if err := ctx.Err(); err != nil {
		return failed(op, c.Path, err)
	}
	if !isMarkerOf(marker, c.ID) || len(marker) > maxRecord {
		return errs.New(errs.Internal, op, c.Path, "the marker (%d bytes) does not name pool %q", len(marker), c.ID)
	}
	if err := checkCOW(op, c); err != nil {
		return failed(op, c.Path, err)
	}
	if err := makePlace(op, c); err != nil {
		return failed(op, c.Path, err)
	}
	d, err := openPlace(op, c.Path)
	if err != nil {
		return err
	}
	defer d.close()
	return failed(op, c.Path, fill(op, d, c, marker))
}

// shadow is the name under which prepare makes a pool's directory and remove
// unmakes it, so that a directory at the path itself is always known to be
// tarn's, by the mark in it, or not.
func shadow(path string) string {
	dir, name := filepath.Split(filepath.Clean(path))
	return filepath.Join(dir, "."+name+".tarn-dir")
}

// makePlace makes the directory if there is nothing at its path.
func makePlace(op string, c driver.Config) error {
	path := filepath.Clean(c.Path)
	if !filepath.IsAbs(path) {
		return nil // openPlace says so
	}
	if _, err := os.Lstat(path); !isNotExist(err) {
		return nil
	}
	if _, err := os.Stat(filepath.Dir(path)); isNotExist(err) {
		return errs.New(errs.NotFound, op, path, "there is no directory %s to make it in", filepath.Dir(path))
	}
	if _, err := os.Lstat(shadow(path)); isNotExist(err) {
		if err := faults.Do(faults.Create, "mkdir "+path, func() error { return os.Mkdir(shadow(path), poolMode) }); err != nil {
			return err
		}
	}
	d, err := openPlace(op, shadow(path))
	if err != nil {
		return err
	}
	defer d.close()
	if err := faults.Do(faults.Ioctl, "chmod "+path, func() error { return d.f.Chmod(poolMode) }); err != nil { // against the umask
		return err
	}
	if there, err := d.exists(madeName); err != nil {
		return err
	} else if !there {
		f, err := d.create(madeName)
		if err != nil {
			return err
		}
		f.Close()
	}
	return faults.Do(faults.Rename, "rename to "+path, func() error {
		return unix.Renameat2(unix.AT_FDCWD, shadow(path), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	})
}

// fill puts marker and .tarn-tmp into d, the marker last: with it the pool is.
func fill(op string, d *dir, c driver.Config, marker []byte) error {
	old, err := d.readFile(markerName)
	if err == nil && !isMarkerOf(old, c.ID) {
		return errs.New(errs.Conflict, op, c.Path, "the directory %s is another pool's", c.Path).
			WithHint("take it over with \"tarn pool import\", or choose another directory")
	}
	if err != nil && !isNotExist(err) {
		return err
	}
	written := err == nil
	p := &pool{path: c.Path, owner: c.Owner, root: d}
	if err := p.openTmp(); err != nil {
		return err
	}
	defer p.tmp.close()
	if err := setCOW(p.tmp, c); err != nil {
		return err
	}
	if !written {
		if err := p.put(markerName, marker); err != nil {
			return err
		}
	}
	return syncParent(c.Path)
}

// syncParent makes the directory's own entry durable. A parent that the daemon
// may not read it cannot sync, nor can it have made anything there.
func syncParent(path string) error {
	f, err := os.Open(filepath.Dir(filepath.Clean(path)))
	if errors.Is(err, os.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return faults.Do(faults.Sync, "sync parent of "+path, f.Sync)
}

// marker implements driver.Type.Marker.
func marker(ctx context.Context, c driver.Config) ([]byte, error) {
	const op = "pool.marker"
	if err := ctx.Err(); err != nil {
		return nil, failed(op, c.Path, err)
	}
	d, err := openPlace(op, c.Path)
	if err != nil {
		return nil, err
	}
	defer d.close()
	data, err := d.readFile(markerName)
	if isNotExist(err) {
		return nil, errs.New(errs.NotFound, op, c.Path, "the directory is no pool: it has no %s", markerName)
	}
	return data, failed(op, c.Path, err)
}

// remove implements driver.Type.Remove. The marker goes last but for the
// directory itself, which goes only if prepare made it and nothing is in it.
func remove(ctx context.Context, c driver.Config, folders bool) error {
	const op = "pool.remove"
	if err := ctx.Err(); err != nil {
		return failed(op, c.Path, err)
	}
	d, err := openPlace(op, c.Path)
	if errors.Is(err, errs.Unavailable) {
		return failed(op, c.Path, dropShadow(op, c.Path))
	}
	if err != nil {
		return err
	}
	defer d.close()
	data, err := d.readFile(markerName)
	switch {
	case err == nil && !isMarkerOf(data, c.ID):
		return errs.New(errs.Conflict, op, c.Path, "the directory %s is another pool's", c.Path)
	case err == nil:
		err = empty(ctx, op, d, c, folders)
	case isNotExist(err):
		err = nil
	}
	if err == nil {
		err = unmake(ctx, op, d, c.Path)
	}
	return failed(op, c.Path, err)
}

// empty takes all that tarn made out of the pool at d, the marker last.
func empty(ctx context.Context, op string, d *dir, c driver.Config, folders bool) error {
	p := &pool{path: c.Path, root: d}
	for r, err := range p.Sidecars(ctx) {
		if err != nil {
			return err
		}
		if there, err := d.exists(r.Name); err != nil {
			return err
		} else if there {
			return errs.New(errs.Conflict, op, c.Path, "the pool holds the volume %s", r.Name)
		}
	}
	if there, err := d.exists(tmpName); err != nil {
		return err
	} else if there {
		if err := removeTmp(ctx, op, d, folders); err != nil {
			return err
		}
	}
	if err := removeSnaps(ctx, op, d); err != nil {
		return err
	}
	if err := d.remove(markerName); err != nil {
		return err
	}
	return d.sync()
}

// removeTmp takes .tarn-tmp away with what is staged in it, or leaves it whole
// if anything in it cannot be tarn's.
func removeTmp(ctx context.Context, op string, d *dir, folders bool) error {
	tmp, err := openPrivate(d, tmpName)
	if err != nil {
		return err
	}
	defer tmp.close()
	if err := claim(op, tmp); err != nil {
		return err
	}
	p := &pool{}
	if folders {
		p.folders = anyFolders{}
	}
	var names []string
	if err := tmp.each(ctx, func(name string) bool { names = append(names, name); return true }); err != nil {
		return err
	}
	for _, name := range names {
		st, err := tmp.stat(name)
		if err == nil && (!isRegular(st) && !(folders && p.isVolume(st)) || !madeInTmp(name)) {
			path := filepath.Join(d.f.Name(), tmpName, name)
			err = errs.New(errs.Conflict, op, path, "tarn did not make %s", path).WithHint("see what it is and move it away")
		}
		if ignoring(unix.ENOENT, err) != nil {
			return err
		}
	}
	for _, name := range names {
		if name == lockName {
			tmp.unlock() // NFS would keep an open file in the directory
		}
		if err := p.drop(tmp, name); err != nil {
			return err
		}
	}
	return faults.Do(faults.Unlink, "rmdir "+tmpName, func() error {
		return d.use(func(fd int) error { return unix.Unlinkat(fd, tmpName, unix.AT_REMOVEDIR) })
	})
}

// removeSnaps takes .tarn-snapshots away, unless a snapshot is in it.
func removeSnaps(ctx context.Context, op string, d *dir) error {
	if there, err := d.exists(snapsName); err != nil || !there {
		return err
	}
	snaps, err := openPrivate(d, snapsName)
	if err != nil {
		return err
	}
	defer snaps.close()
	var names []string
	if err := snaps.each(ctx, func(name string) bool { names = append(names, name); return true }); err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, partSuffix) {
			path := filepath.Join(d.f.Name(), snapsName, name)
			return errs.New(errs.Conflict, op, path, "the pool holds the snapshot %s, whose volume is gone", path).WithHint("move it away")
		}
	}
	for _, name := range names {
		if err := snaps.remove(name); err != nil {
			return err
		}
	}
	return faults.Do(faults.Unlink, "rmdir "+snapsName, func() error {
		return d.use(func(fd int) error { return unix.Unlinkat(fd, snapsName, unix.AT_REMOVEDIR) })
	})
}

// nfsRemoved begins the names under which NFS keeps removed files that are open.
const nfsRemoved = ".nfs"

// madeInTmp reports whether name is one that tarn gives a file in .tarn-tmp: a
// staged volume's, a record's or the ballast's.
func madeInTmp(name string) bool {
	return isOwn(name) || strings.HasPrefix(name, nfsRemoved) || strings.HasSuffix(name, sidecarSuffix) ||
		checkID("", disk.VolumeID(strings.TrimSuffix(name, partSuffix))) == nil
}

// unmake removes the directory if prepare made it, unless something is in it
// or on it.
func unmake(ctx context.Context, op string, d *dir, path string) error {
	if made, err := d.exists(madeName); err != nil || !made {
		return err
	}
	alone := true
	if err := d.each(ctx, func(name string) bool { alone = name == madeName; return alone }); err != nil {
		return err
	}
	if alone {
		err := faults.Do(faults.Rename, "rename from "+path, func() error { return os.Rename(path, shadow(path)) })
		if err == nil {
			return dropShadow(op, path)
		}
		if !errors.Is(err, unix.EBUSY) { // a file system is mounted here
			return err
		}
	}
	return d.remove(madeName)
}

// dropShadow removes what remains of a directory that prepare made.
func dropShadow(op, path string) error {
	if _, err := os.Lstat(shadow(path)); isNotExist(err) {
		return nil
	}
	d, err := openPlace(op, shadow(path))
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.remove(madeName); err != nil {
		return err
	}
	if err := faults.Do(faults.Unlink, "rmdir "+path, func() error { return unix.Rmdir(shadow(path)) }); err != nil {
		return err
	}
	return syncParent(path)
}
