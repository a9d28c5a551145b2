package dirdrv

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/imagelock"
)

var _ driver.Adopter = (*pool)(nil)

// Candidate implements driver.Adopter.
func (p *pool) Candidate(ctx context.Context, name string) (*driver.Candidate, error) {
	const op = "volume.candidate"
	o, err := p.Foreign(ctx, op, name)
	if err != nil {
		return nil, err
	}
	d, err := p.device(op, driver.Ref{Name: name, BackendID: o.BackendID}, driver.Read)
	if err != nil {
		return nil, err
	}
	return &driver.Candidate{Device: d, Object: o}, nil
}

// Foreign describes the object that has name if it is foreign and could be
// adopted as it lies: see driver.Adopter.
func (p *pool) Foreign(ctx context.Context, op, name string) (driver.Object, error) {
	if err := ctx.Err(); err != nil {
		return driver.Object{}, failed(op, name, err)
	}
	o, err := p.describe(op, driver.Ref{Name: name})
	if err != nil {
		return o, err
	}
	ours, err := p.root.exists(name + sidecarSuffix)
	if err == nil && ours {
		err = errs.New(errs.Exists, op, name, "%s has a sidecar: it is a volume, or was one", name).WithHint("tarn doctor says what it is")
	}
	if err == nil {
		err = p.eachOf(name, p.unshared)
	}
	return o, failed(op, name, err)
}

// eachOf calls visit with the file name, or with every file of the folder name.
func (p *pool) eachOf(name string, visit func(in *dir, name string) error) error {
	if p.folders == nil {
		return visit(p.root, name)
	}
	d, err := p.root.sub(name)
	if err != nil {
		return err
	}
	defer d.close()
	folder := &Folder{d, p}
	names, err := folder.Names()
	for _, file := range names {
		if err == nil {
			err = visit(d, file)
		}
	}
	return err
}

// unshared refuses a file that others own, reach by another name, or use.
func (p *pool) unshared(in *dir, name string) error {
	f, err := in.open(name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	path := filepath.Join(in.f.Name(), name)
	switch uid := int(st.Uid); {
	case st.Nlink > 1:
		return errs.New(errs.Unsafe, "", "", "the file %s has %d names: who reaches it by another could change the volume", path, st.Nlink).
			WithHint("find the others with \"find -samefile %s\" and remove them", path)
	case uid != 0 && uid != os.Geteuid() && uid != p.owner.UID:
		return errs.New(errs.Unsafe, "", "", "the file %s belongs to user %d, who could change the volume", path, uid).
			WithHint("chown it to root, or to the pool's owner")
	}
	if err := imagelock.Take(f, driver.Read); err != nil { // also those of other hosts, where hosts share the file system
		return err
	}
	return unused(f)
}

// leased are the file systems whose files change through this kernel alone, so
// that it knows who has one open.
var leased = []int64{unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC}

// unused returns errs.Busy while somebody else has f open for writing, a loop
// device included: the kernel grants no lease for readers then. Where it knows
// nothing of that, whoever has f open counts.
func unused(f *os.File) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return err
	}
	who := "something, perhaps a loop device,"
	err := error(unix.EINVAL)
	if slices.Contains(leased, int64(fs.Type)) {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	}
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	}
	if holder := imagelock.Holder(f); holder != "" {
		who = holder
	} else if !errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return errs.New(errs.Busy, "volume.lock", filepath.Base(f.Name()), "%s has the file open", who).
		WithHint("stop the guest or the program that uses it")
}

// Adopt implements driver.Adopter: the sidecar first, so that it is tarn's from
// the moment it is changed.
func (p *pool) Adopt(ctx context.Context, r driver.Ref, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.adopt"
	err := errors.Join(checkName(op, r.Name), checkRecord(op, r.Name, sidecar))
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	f, err := p.openVolume(p.root, r.Name)
	if err != nil {
		return driver.Object{}, missing(op, r, p.absent(err))
	}
	defer f.Close()
	if err = p.checkIdentity(op, r, f); err == nil {
		err = p.mark(ctx, op, r.Name, sidecar)
	}
	if err == nil {
		err = p.Protect(ctx, r, immutable)
	}
	if err == nil {
		err = p.syncVolume(f, r.ID)
	}
	if err != nil {
		return driver.Object{}, failed(op, r.Name, err)
	}
	return p.describe(op, r)
}

// mark puts the sidecar beside an object that has one, or that is fit to get one.
func (p *pool) mark(ctx context.Context, op, name string, sidecar []byte) error {
	p.naming.Lock()
	defer p.naming.Unlock()
	ours, err := p.root.exists(name + sidecarSuffix)
	if err == nil && !ours {
		_, err = p.Foreign(ctx, op, name)
	}
	if err != nil {
		return err
	}
	return p.put(name+sidecarSuffix, sidecar)
}

// Disown implements driver.Adopter.
func (p *pool) Disown(ctx context.Context, r driver.Ref) error {
	const op = "volume.disown"
	err := checkName(op, r.Name)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = p.unfrozen(ctx, op, r)
	}
	if err != nil {
		return failed(op, r.Name, err)
	}
	p.naming.Lock()
	defer p.naming.Unlock()
	st, err := p.root.stat(r.Name)
	if err == nil {
		err = sameObject(op, r, st)
	}
	if err = ignoring(unix.ENOENT, err); err == nil {
		err = p.root.remove(r.Name + sidecarSuffix)
	}
	if err == nil {
		err = p.root.sync() // an earlier call may have died before it
	}
	return failed(op, r.Name, err)
}

// Object describes the folder as Describe does, but for the size of its device.
func (f *Folder) Object(name string) (driver.Object, error) {
	var st unix.Statx_t
	err := f.d.use(func(fd int) error {
		return unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	if err != nil {
		return driver.Object{}, err
	}
	return driver.Object{Name: name, BackendID: backendID(st), Allocated: f.allocated()}, nil
}
