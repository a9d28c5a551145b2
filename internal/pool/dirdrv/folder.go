package dirdrv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Pool is an open directory pool. A technology that keeps each volume as a folder
// in place of a file embeds one that OpenFolders returned, and does itself what
// looks into a volume: Create, Clone, Open, Resize, Probe, Attachment and the
// snapshots. What it takes from here treats a volume as one object.
type Pool = pool

// Folders is what a Pool must know of volumes that are folders. Their files are
// all directly in them.
type Folders interface {
	// Size returns the size of the volume's device in bytes.
	Size(f *Folder) (int64, error)

	// Writable returns the names of the files that QEMU writes when it uses the
	// volume. The others are for it to read.
	Writable(f *Folder) ([]string, error)

	// Deletable returns errs.Conflict if the volume must not be deleted.
	Deletable(f *Folder) error
}

// FolderType makes the type of a technology with such volumes: its pools are
// places as a directory pool's are.
func FolderType(name string, c driver.Capabilities, open func(context.Context, driver.Config) (driver.Driver, driver.Capabilities, error)) driver.Type {
	return driver.Type{
		Name: name, Capabilities: c, Needs: []disk.SourceField{disk.FieldPath}, Prepare: prepare, Marker: marker, Open: open,
		Remove: func(ctx context.Context, c driver.Config) error { return remove(ctx, c, true) },
	}
}

// OpenFolders opens the pool at c, as Type.Open does. The capabilities are caps
// with the kind of clone that the file system can.
func OpenFolders(ctx context.Context, c driver.Config, caps driver.Capabilities, folders Folders) (*Pool, driver.Capabilities, error) {
	p, err := start(ctx, c, caps, folders)
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	return p, p.caps, nil
}

// anyFolders is for a pool that only removes what is staged.
type anyFolders struct{ Folders }

// folderMode lets QEMU's user reach the files.
const folderMode = 0o711

// Folder is a volume's folder, open until Close. Its methods follow no symlink
// and have their effects through package faults.
type Folder struct {
	d *dir
	p *pool
}

// Folder opens the volume r. A missing one is errs.NotFound, another object
// under its name errs.Corrupt.
func (p *pool) Folder(ctx context.Context, op string, r driver.Ref) (*Folder, error) {
	if err := ctx.Err(); err != nil {
		return nil, failed(op, subject(r), err)
	}
	at, name, err := p.place(op, r)
	if err != nil {
		return nil, err
	}
	f, err := p.openVolume(at, name)
	if err != nil {
		return nil, missing(op, r, p.absent(err))
	}
	if err := p.checkIdentity(op, r, f); err != nil {
		f.Close()
		return nil, failed(op, subject(r), err)
	}
	return &Folder{&dir{f: f}, p}, nil
}

// Path returns where the file name of the published volume r is for others.
func (p *pool) Path(r driver.Ref, name string) string { return filepath.Join(p.path, r.Name, name) }

// Stage makes a staged volume of s, which fill puts into an empty folder.
func (p *pool) Stage(ctx context.Context, op string, s driver.Spec, fill func(*Folder) error) error {
	id := string(s.ID)
	if err := p.stageable(ctx, op, s); err != nil {
		return err
	}
	err := p.makeFolder(id, fill)
	if errors.Is(err, unix.EEXIST) {
		err = p.sameSize(op, s)
	}
	return failed(op, id, err)
}

func (p *pool) makeFolder(id string, fill func(*Folder) error) error {
	part := id + partSuffix
	err := p.drop(p.tmp, part)
	if err == nil {
		err = faults.Do(faults.Create, "mkdir "+part, func() error {
			return p.tmp.use(func(fd int) error { return unix.Mkdirat(fd, part, folderMode) })
		})
	}
	if err == nil {
		err = p.fillFolder(part, fill)
	}
	if err == nil {
		err = p.tmp.publish(part, p.tmp, id)
	}
	if err != nil {
		_ = p.drop(p.tmp, part)
	}
	return err
}

func (p *pool) fillFolder(name string, fill func(*Folder) error) error {
	d, err := p.tmp.sub(name)
	if err != nil {
		return err
	}
	defer d.close()
	err = faults.Do(faults.Ioctl, "chmod "+name, func() error { return d.f.Chmod(folderMode) }) // against the umask
	if err == nil {
		err = fill(&Folder{d, p})
	}
	return err
}

// sameSize answers a Create of a volume that is staged already.
func (p *pool) sameSize(op string, s driver.Spec) error {
	f, err := p.openVolume(p.tmp, string(s.ID))
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := p.folders.Size(&Folder{&dir{f: f}, p})
	if err == nil && size != s.Size {
		err = errs.New(errs.Exists, op, string(s.ID), "the volume exists with %d bytes, not %d", size, s.Size)
	}
	return err
}

// Close closes the folder.
func (f *Folder) Close() error { return f.d.f.Close() }

// Open opens the file name.
func (f *Folder) Open(name string, flags int) (*os.File, error) { return f.d.open(name, flags) }

// Create makes the file name, in place of one that has the name, which QEMU is
// to write.
func (f *Folder) Create(name string) (*os.File, error) {
	file, err := f.d.createAnew(name)
	if err == nil {
		err = f.p.chown(file, f.p.owner.UID, f.p.owner.GID)
	}
	if err != nil {
		if file != nil {
			file.Close()
			_ = f.d.remove(name)
		}
		return nil, err
	}
	return file, nil
}

// Write makes the file name, which QEMU is to read, with data: for a volume that
// is being made. Nothing is synced.
func (f *Folder) Write(name string, data []byte) error {
	file, err := f.d.createAnew(name)
	if err != nil {
		return err
	}
	defer file.Close()
	err = faults.Do(faults.Write, "write "+name, func() error { _, err := file.Write(data); return err })
	if err != nil {
		return err
	}
	return f.guard(name, false)
}

// Read returns the bytes of the file name, of 1 MiB at most.
func (f *Folder) Read(name string) ([]byte, error) { return f.d.readFile(name) }

// Replace makes data the content of the file name, whole or not at all, durably.
func (f *Folder) Replace(name string, data []byte) error {
	part := name + partSuffix
	if err := f.d.writeFile(part, data); err != nil {
		return err
	}
	err := f.guard(part, false)
	if err == nil {
		err = f.d.rename(part, f.d, name)
	}
	if err != nil {
		_ = f.d.remove(part)
		return err
	}
	return f.Sync()
}

// Remove removes the file name, if it is there.
func (f *Folder) Remove(name string) error { return f.d.remove(name) }

// Sync makes the folder's entries survive power loss.
func (f *Folder) Sync() error { return f.d.sync() }

// Names returns what is in the folder, in order.
func (f *Folder) Names() (names []string, err error) {
	d, err := f.d.openat(".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err = d.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// Protect gives the file name what a volume's file that QEMU may write, or not,
// has.
func (f *Folder) Protect(name string, writable bool) error { return f.guard(name, writable) }

func (f *Folder) guard(name string, writable bool) error {
	file, err := f.d.open(name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer file.Close()
	g := f.p.guardOf(!writable)
	err = f.p.chown(file, g.uid, g.gid)
	if err == nil {
		err = faults.Do(faults.Ioctl, "chmod "+name, func() error { return file.Chmod(os.FileMode(g.mode)) })
	}
	return err
}

// Allocate claims the first size bytes of a file.
func Allocate(file *os.File, size int64) error { return allocate(file, size) }

// Reflink makes the new file dst share all bytes of src. Where the file system
// cannot it returns errs.Unsupported.
func Reflink(dst, src *os.File) error {
	info, err := src.Stat()
	if err == nil {
		err = reflink(dst, src, info.Size())
	}
	if cannotReflink(err) {
		return errs.New(errs.Unsupported, "", "", "the file system does not share extents between these files: %w", err)
	}
	return err
}

// isVolume reports whether st can be a volume's.
func (p *pool) isVolume(st unix.Statx_t) bool {
	if p.folders != nil {
		return st.Mode&unix.S_IFMT == unix.S_IFDIR
	}
	return isRegular(st)
}

// openVolume opens a volume's file, or its folder.
func (p *pool) openVolume(at *dir, name string) (*os.File, error) {
	if p.folders == nil {
		return at.open(name, unix.O_RDONLY)
	}
	d, err := at.sub(name)
	if err != nil {
		return nil, err
	}
	return d.f, nil
}

// drop removes name, with the files in it if it is a volume that is a folder.
func (p *pool) drop(at *dir, name string) error {
	st, err := at.stat(name)
	if p.folders == nil || err != nil || !p.isVolume(st) {
		return at.remove(name)
	}
	d, err := at.sub(name)
	if err != nil {
		return err
	}
	defer d.close()
	names, err := (&Folder{d, p}).Names()
	for _, file := range names {
		if err == nil {
			err = d.remove(file)
		}
	}
	if err != nil {
		return err
	}
	return faults.Do(faults.Unlink, "rmdir "+name, func() error {
		return at.use(func(fd int) error { return ignoring(unix.ENOENT, unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)) })
	})
}

// takeAway removes the published volume's folder from its name, to where unstage
// finds it.
func (p *pool) takeAway(r driver.Ref) error {
	f, err := p.openVolume(p.root, r.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := p.folders.Deletable(&Folder{&dir{f: f}, p}); err != nil {
		return err
	}
	part := string(r.ID) + partSuffix
	if err := p.drop(p.tmp, part); err != nil {
		return err
	}
	return p.root.rename(r.Name, p.tmp, part)
}

// eachFile calls visit with the files of the folder f and what they are to be.
func (p *pool) eachFile(f *os.File, immutable bool, visit func(in *dir, name string, g guard) error) error {
	folder := &Folder{&dir{f: f}, p}
	writable, err := p.folders.Writable(folder)
	if err != nil {
		return err
	}
	names, err := folder.Names()
	for _, name := range names {
		if err == nil {
			err = visit(folder.d, name, p.guardOf(immutable || !slices.Contains(writable, name)))
		}
	}
	return err
}

// syncVolume makes a volume's bytes survive power loss: a folder's entries too.
func (p *pool) syncVolume(f *os.File, id disk.VolumeID) error {
	sync := func(name string, f *os.File) error { return faults.Do(faults.Sync, "sync "+name, f.Sync) }
	if p.folders != nil {
		err := p.eachFile(f, false, func(in *dir, name string, _ guard) error {
			file, err := in.open(name, unix.O_RDONLY)
			if err != nil {
				return err
			}
			defer file.Close()
			return sync(name, file)
		})
		if err != nil {
			return err
		}
	}
	return sync(string(id), f)
}

// exposed says in words how the file name differs from g.
func exposed(what string, in *dir, name string, g guard) (string, error) {
	st, err := in.stat(name)
	if err != nil {
		return "", err
	}
	if mode := uint32(st.Mode) & 0o7777; mode != g.mode {
		return fmt.Sprintf("%s mode is %04o, not %04o", what, mode, g.mode), nil
	}
	if g.uid >= 0 && int(st.Uid) != g.uid || g.gid >= 0 && int(st.Gid) != g.gid {
		return fmt.Sprintf("%s owner is %d:%d, not %d:%d", what, st.Uid, st.Gid, g.uid, g.gid), nil
	}
	return "", nil
}

// folderExposure is Exposure of a volume that is a folder.
func (p *pool) folderExposure(r driver.Ref, immutable bool) (why string, err error) {
	f, err := p.openVolume(p.root, r.Name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	err = p.eachFile(f, immutable, func(in *dir, name string, g guard) error {
		said, err := exposed(name+"'s", in, name, g)
		if why == "" {
			why = said
		}
		return err
	})
	return why, err
}

// guardFiles gives every file of the folder f what it is to be.
func (p *pool) guardFiles(f *os.File, immutable bool) error {
	return p.eachFile(f, immutable, func(in *dir, name string, g guard) error {
		return (&Folder{in, p}).guard(name, g.mode&0o200 != 0)
	})
}

// measureFolder adds a volume's files to u.
func (p *pool) measureFolder(at place, u *union) error {
	d, err := at.in.sub(at.name)
	if err != nil {
		return ignoring(unix.ENOENT, err)
	}
	defer d.close()
	names, err := (&Folder{d, p}).Names()
	for _, name := range names {
		if err == nil {
			err = p.measure(place{d, name}, u)
		}
	}
	return err
}

// folderObject completes the object of a volume that is a folder: one that
// cannot be read is no volume.
func (p *pool) folderObject(o driver.Object) driver.Object {
	d, err := p.root.sub(o.Name)
	if err != nil {
		return driver.Object{Name: o.Name}
	}
	defer d.close()
	f := &Folder{d, p}
	if o.Size, err = p.folders.Size(f); err != nil {
		return driver.Object{Name: o.Name}
	}
	o.Allocated = f.allocated()
	return o
}

// allocated adds up what the folder's files occupy.
func (f *Folder) allocated() (n int64) {
	names, err := f.Names()
	for _, name := range names {
		if st, serr := f.d.stat(name); err == nil && serr == nil {
			n += int64(st.Blocks) * 512
		}
	}
	return n
}
