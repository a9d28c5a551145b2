package dirdrv

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
)

// Create implements driver.Driver.
func (p *pool) Create(ctx context.Context, s driver.Spec) error {
	return p.stage(ctx, "volume.create", s, nil)
}

// stage makes a staged volume. fill, which may be nil, puts the content in
// before the size is set.
func (p *pool) stage(ctx context.Context, op string, s driver.Spec, fill func(f *os.File) error) error {
	id := string(s.ID)
	err := p.stageable(ctx, op, s)
	if err != nil {
		return err
	}
	if s.Size == 0 && fill == nil {
		err = p.makeEmpty(id)
	} else {
		err = p.make(id, s, fill)
	}
	if errors.Is(err, unix.EEXIST) {
		return failed(op, id, p.madeBefore(op, s))
	}
	return failed(op, id, err)
}

// stageable refuses what nothing can be made of, or now.
func (p *pool) stageable(ctx context.Context, op string, s driver.Spec) error {
	if err := checkID(op, s.ID); err != nil {
		return err
	}
	if s.Size < 0 {
		return errs.New(errs.Invalid, op, string(s.ID), "size %d", s.Size)
	}
	if err := ctx.Err(); err != nil {
		return failed(op, string(s.ID), err)
	}
	return failed(op, string(s.ID), p.present())
}

// makeEmpty makes a container that grows as it is written: it is complete once
// it is there, but for its owner, which madeBefore sees to as well.
func (p *pool) makeEmpty(id string) error {
	f, err := p.tmp.create(id)
	if err == nil {
		defer f.Close()
		err = p.chown(f, p.owner.UID, p.owner.GID)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		_ = p.tmp.remove(id)
	}
	return err
}

// make makes a volume that gets its name when it is complete, so that a
// half-made one is never taken for one that Create returned nil for. What has
// the name already stays, and the error is EEXIST.
func (p *pool) make(id string, s driver.Spec, fill func(f *os.File) error) error {
	part := id + partSuffix
	f, err := p.tmp.createAnew(part)
	if err == nil {
		defer f.Close()
		err = p.chown(f, p.owner.UID, p.owner.GID)
	}
	if err == nil && fill != nil {
		err = fill(f)
	}
	if err == nil && s.Size > 0 {
		err = faults.Do(faults.Ioctl, "truncate "+id, func() error { return f.Truncate(s.Size) })
	}
	if err == nil && s.Prealloc && s.Size > 0 {
		err = allocate(f, s.Size)
	}
	if err == nil {
		err = p.tmp.publish(part, p.tmp, id)
	}
	if err != nil {
		_ = p.tmp.remove(part)
	}
	return err
}

// madeBefore answers a Create of a volume that is staged already: an earlier
// one may have died between making it and giving it to its owner.
func (p *pool) madeBefore(op string, s driver.Spec) error {
	f, err := p.tmp.open(string(s.ID), unix.O_RDWR)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != s.Size {
		return errs.New(errs.Exists, op, string(s.ID), "the volume exists with %d bytes, not %d", info.Size(), s.Size)
	}
	return p.chown(f, p.owner.UID, p.owner.GID)
}

// allocate claims the file's first size bytes.
func allocate(f *os.File, size int64) error {
	return faults.Do(faults.Ioctl, "allocate "+filepath.Base(f.Name()), func() error {
		for {
			if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != unix.EINTR {
				return err
			}
		}
	})
}

// Publish implements driver.Driver. Three syncs: the volume, the sidecar, and
// the directory for both names.
func (p *pool) Publish(ctx context.Context, id disk.VolumeID, name string, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.publish"
	if err := errors.Join(checkID(op, id), checkName(op, name), checkRecord(op, name, sidecar)); err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	if err := ctx.Err(); err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	f, err := p.openVolume(p.tmp, string(id))
	if isNotExist(err) {
		return p.published(op, id, name)
	}
	if err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	defer f.Close()
	if immutable {
		err = p.freeze(f)
	}
	if err == nil {
		err = p.settle(f, id, sidecar)
	}
	if err == nil {
		err = p.name(op, id, name)
	}
	if err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	if err := p.root.sync(); err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	return p.describe(op, driver.Ref{ID: id, Name: name})
}

// published answers a Publish that finds nothing staged: it is a repeat, or
// there is nothing to publish. The earlier call may have died before its sync.
func (p *pool) published(op string, id disk.VolumeID, name string) (driver.Object, error) {
	o, err := p.describe(op, driver.Ref{ID: id, Name: name})
	if errors.Is(err, errs.NotFound) {
		return o, errs.New(errs.NotFound, op, name, "no volume %s is staged and none has the name", id)
	}
	if errors.Is(err, errs.Unsafe) {
		return o, errs.New(errs.Exists, op, name, "something that is no volume has the name: %w", err)
	}
	if err != nil {
		return o, err
	}
	ours, err := p.root.exists(name + sidecarSuffix)
	if err == nil && !ours {
		err = errs.New(errs.Exists, op, name, "a foreign file has the name")
	}
	if err == nil {
		err = p.root.sync()
	}
	return o, failed(op, name, err)
}

// settle makes the volume's bytes durable and stages its sidecar, durable too. A
// device that has nothing else to do syncs both at once, which takes little
// longer than one; where many publish, it has enough to do. A volume whose sync
// failed is removed: nobody can know what is in it, and a repeated sync would
// succeed over the loss.
func (p *pool) settle(f *os.File, id disk.VolumeID, sidecar []byte) error {
	staged := string(id) + sidecarSuffix
	sync := func() error { return p.syncVolume(f, id) }
	lost := make(chan error, 1)
	defer p.settling.Add(-1)
	if p.settling.Add(1) == 1 {
		go func() { lost <- sync() }()
	} else {
		lost <- sync()
	}
	err := p.tmp.writeFile(staged, sidecar)
	if e := <-lost; e != nil {
		_ = p.drop(p.tmp, string(id))
		err = errs.New(blkio.KindOf(e), "volume.sync", string(id), "syncing failed and the volume is lost: %w", e)
	}
	if err != nil {
		_ = p.tmp.remove(staged)
	}
	return err
}

// freeze makes f a base: QEMU's group can read it, nobody can write it.
func (p *pool) freeze(f *os.File) error {
	if p.folders != nil {
		return p.guardFiles(f, true)
	}
	if err := p.chown(f, 0, p.owner.GID); err != nil {
		return err
	}
	return faults.Do(faults.Ioctl, "chmod "+filepath.Base(f.Name()), func() error { return f.Chmod(0o440) })
}

// name gives the staged sidecar its name, then the volume, so that at no moment
// a volume is without a sidecar.
func (p *pool) name(op string, id disk.VolumeID, name string) error {
	staged := string(id) + sidecarSuffix
	p.naming.Lock()
	defer p.naming.Unlock()
	err := p.free(op, name)
	if err == nil { // a sidecar without a volume is crash residue
		err = p.tmp.rename(staged, p.root, name+sidecarSuffix)
	}
	if err != nil {
		_ = p.tmp.remove(staged)
		return err
	}
	if err := p.tmp.publish(string(id), p.root, name); err != nil {
		if staged, serr := p.tmp.exists(string(id)); staged && serr == nil {
			_ = p.root.remove(name + sidecarSuffix)
		}
		return err
	}
	return nil
}

// free returns errs.Exists if anything has the name.
func (p *pool) free(op, name string) error {
	there, err := p.root.exists(name)
	if err == nil && there {
		err = errs.New(errs.Exists, op, name, "another volume or file has the name")
	}
	return err
}

// Open implements driver.Driver.
func (p *pool) Open(ctx context.Context, r driver.Ref, m driver.Mode) (driver.Device, error) {
	const op = "volume.open"
	if err := ctx.Err(); err != nil {
		return nil, failed(op, subject(r), err)
	}
	if (m == driver.Staged) != (r.Name == "") {
		return nil, errs.New(errs.Invalid, op, subject(r), "mode %d is not for this volume's stage", m)
	}
	d, err := p.device(op, r, m)
	if err != nil {
		return nil, err // not a nil *blkio.File in an interface
	}
	return d, nil
}

func (p *pool) device(op string, r driver.Ref, m driver.Mode) (*blkio.File, error) {
	at, name, err := p.place(op, r)
	if err != nil {
		return nil, err
	}
	flags := unix.O_RDONLY
	if m == driver.Write || m == driver.Staged {
		flags = unix.O_RDWR
	}
	f, err := at.open(name, flags)
	if err != nil {
		return nil, missing(op, r, p.absent(err))
	}
	d, err := blkio.NewFile(f)
	if err != nil {
		f.Close()
		return nil, failed(op, subject(r), err)
	}
	if err = p.checkIdentity(op, r, f); err == nil {
		err = imagelock.Take(f, m)
	}
	if err != nil {
		_ = d.Close() // with the locks that were got
		return nil, failed(op, subject(r), err)
	}
	return d, nil
}

func (p *pool) checkIdentity(op string, r driver.Ref, f *os.File) error {
	if r.BackendID == "" {
		return nil
	}
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return err
	}
	return sameObject(op, r, st)
}

// sameObject refuses another file under the volume's name.
func sameObject(op string, r driver.Ref, st unix.Statx_t) error {
	got := backendID(st)
	if inode, _, told := strings.Cut(got, "."); told && inode == r.BackendID {
		return nil // NFS told no times of birth when it was recorded
	}
	if r.BackendID != "" && got != r.BackendID {
		return errs.New(errs.Corrupt, op, subject(r), "another file has the volume's name: it is %s, the record says %s", got, r.BackendID).
			WithHint("see what it is, and move it out of the pool if it is not needed there")
	}
	return nil
}

// missing words a failed lookup.
func missing(op string, r driver.Ref, err error) error {
	if isNotExist(err) {
		return errs.New(errs.NotFound, op, subject(r), "the volume is not in the pool: %w", err)
	}
	return failed(op, subject(r), err)
}

func subject(r driver.Ref) string {
	if r.Name == "" {
		return string(r.ID)
	}
	return r.Name
}

// Describe implements driver.Driver.
func (p *pool) Describe(ctx context.Context, r driver.Ref) (driver.Object, error) {
	if err := ctx.Err(); err != nil {
		return driver.Object{}, failed("volume.describe", subject(r), err)
	}
	return p.describe("volume.describe", r)
}

func (p *pool) describe(op string, r driver.Ref) (driver.Object, error) {
	if err := checkName(op, r.Name); err != nil {
		return driver.Object{}, err
	}
	st, err := p.root.stat(r.Name)
	if err != nil {
		return driver.Object{}, missing(op, r, err)
	}
	if !p.isVolume(st) {
		return driver.Object{}, errs.New(errs.Unsafe, op, r.Name, "is not a regular file, or folder, as volumes are here")
	}
	return p.object(r.Name, st), sameObject(op, r, st)
}

func (p *pool) object(name string, st unix.Statx_t) driver.Object {
	if !p.isVolume(st) {
		return driver.Object{Name: name}
	}
	o := driver.Object{Name: name, BackendID: backendID(st), Size: int64(st.Size), Allocated: int64(st.Blocks) * 512}
	if p.folders != nil {
		return p.folderObject(o)
	}
	return o
}

// Resize implements driver.Driver.
func (p *pool) Resize(ctx context.Context, r driver.Ref, size int64) error {
	const op = "volume.resize"
	if err := ctx.Err(); err != nil {
		return failed(op, subject(r), err)
	}
	if size < 0 {
		return errs.New(errs.Invalid, op, subject(r), "size %d", size)
	}
	mode := driver.Write
	if r.Name == "" {
		mode = driver.Staged
	}
	d, err := p.device(op, r, mode)
	if err != nil {
		return err
	}
	defer d.Close()
	if d.Size() != size {
		if err := d.Truncate(size); err != nil {
			return failed(op, subject(r), err)
		}
	}
	return failed(op, subject(r), d.Sync())
}

// Delete implements driver.Driver. The volume goes before its sidecar, because
// a volume without one would be foreign and stay for ever.
func (p *pool) Delete(ctx context.Context, r driver.Ref) error {
	const op = "volume.delete"
	err := checkID(op, r.ID)
	if r.Name != "" && err == nil {
		err = checkName(op, r.Name)
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return failed(op, subject(r), err)
	}
	staged, err := p.tmp.exists(string(r.ID))
	if err == nil && r.Name != "" {
		if !staged {
			err = p.unfrozen(ctx, op, r)
		}
		if err == nil {
			err = p.unname(op, r, staged)
		}
		if err == nil {
			err = p.root.sync() // also when nothing was left: an earlier call may have died before it
		}
	}
	if err == nil && (staged || r.Name == "" || p.folders != nil) {
		err = p.unstage(r.ID)
	}
	return failed(op, subject(r), err)
}

// unname removes the published volume. Its blocks, which may be many, are freed
// when nobody waits for a name any more: at the last close.
func (p *pool) unname(op string, r driver.Ref, staged bool) error {
	f, err := p.unlink(op, r, staged)
	if f != nil {
		f.Close()
	}
	return err
}

// unlink removes the volume's names and returns it, still open. A volume that
// is still staged is not published: then only the sidecar of an interrupted
// Publish can be its own.
func (p *pool) unlink(op string, r driver.Ref, staged bool) (f *os.File, err error) {
	p.naming.Lock()
	defer p.naming.Unlock()
	st, err := p.root.stat(r.Name)
	there := err == nil
	if err := ignoring(unix.ENOENT, err); err != nil {
		return nil, err
	}
	sidecar, err := p.root.exists(r.Name + sidecarSuffix)
	if err != nil {
		return nil, err
	}
	if there {
		if staged || !p.isVolume(st) || r.BackendID == "" && !sidecar {
			return nil, nil // another's, or foreign
		}
		if err := sameObject(op, r, st); err != nil {
			return nil, err
		}
		if p.folders != nil {
			if err := p.takeAway(r); err != nil {
				return nil, err
			}
			return nil, p.root.remove(r.Name + sidecarSuffix)
		}
		if f, err = p.root.openat(r.Name, unix.O_PATH, 0); err != nil {
			return nil, err
		}
		if err := p.root.remove(r.Name); err != nil {
			return f, err
		}
	}
	return f, p.root.remove(r.Name + sidecarSuffix)
}

// unstage removes what is staged under id, the volume last: while it is there
// a repeated Delete knows that nothing was published. Where nothing is staged
// it costs no sync: every create begins with it.
func (p *pool) unstage(id disk.VolumeID) error {
	any := false
	for _, suffix := range []string{sidecarSuffix, partSuffix, ""} {
		there, err := p.tmp.exists(string(id) + suffix)
		if err == nil && there {
			any = true
			err = p.drop(p.tmp, string(id)+suffix)
		}
		if err != nil {
			return err
		}
	}
	if !any {
		return nil
	}
	return p.tmp.sync()
}

// List implements driver.Driver. It yields every entry that does not begin
// with a dot and is no sidecar. Of directories, symlinks and devices, which
// are foreign always, only the name is told.
func (p *pool) List(ctx context.Context) iter.Seq2[driver.Object, error] {
	return func(yield func(driver.Object, error) bool) {
		err := p.root.each(ctx, func(name string) bool {
			if name[0] == '.' || strings.HasSuffix(name, sidecarSuffix) {
				return true
			}
			st, err := p.root.stat(name)
			if isNotExist(err) {
				return true // deleted meanwhile
			}
			return yield(p.object(name, st), failed("pool.list", name, err))
		})
		if err != nil {
			yield(driver.Object{}, failed("pool.list", p.path, p.absent(err)))
		}
	}
}
