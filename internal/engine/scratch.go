package engine

import (
	"cmp"
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// nameless makes files in dir that have no name and go when they are closed.
func nameless(dir string) func() (*os.File, error) {
	return func() (*os.File, error) { return os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600) }
}

// rooms is what those who write scratch may still take where it lies. Its zero
// value is ready.
type rooms struct {
	mu  sync.Mutex
	all map[*room]bool
}

// room is what one import may write into scratch.
type room struct {
	most  int64
	files []*os.File // that are open for it
}

// left returns how many bytes are still to be written.
func (r *room) left() int64 {
	n := r.most
	for _, f := range r.files {
		var st unix.Stat_t
		if unix.Fstat(int(f.Fd()), &st) == nil {
			n -= st.Blocks * 512
		}
	}
	return max(0, n)
}

// scratchRoom returns room for most bytes of scratch, which giveUp ends. Where
// they do not fit it is errs.NoSpace.
func (e *Engine) scratchRoom(most int64) (*room, error) {
	e.rooms.mu.Lock()
	defer e.rooms.mu.Unlock()
	free, err := e.scratchFree()
	if err != nil {
		return nil, err
	}
	if dir := e.scratchDir(); most > free {
		return nil, errs.New(errs.NoSpace, "scratch.create", dir, "up to %s are kept in %s until the image is complete, where %s are free for it",
			disk.FormatSize(most), dir, disk.FormatSize(free)).WithHint("free space there, or import into a pool of files and copy it: tarn cache add")
	}
	r := &room{most: most}
	if e.rooms.all == nil {
		e.rooms.all = map[*room]bool{}
	}
	e.rooms.all[r] = true
	return r, nil
}

// scratchLeft returns how many bytes of scratch there is room for.
func (e *Engine) scratchLeft() (int64, error) {
	e.rooms.mu.Lock()
	defer e.rooms.mu.Unlock()
	return e.scratchFree()
}

// scratchFree is scratchLeft for who has locked the rooms: what is free but for
// the ballast and for what others may still write.
func (e *Engine) scratchFree() (int64, error) {
	dir := e.scratchDir()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, blkio.Error("scratch.create", dir, err)
	}
	free := int64(st.Bavail) * st.Bsize
	if e.cfg.Ballast != nil {
		free -= e.cfg.Ballast.Missing()
	}
	for r := range e.rooms.all {
		free -= r.left()
	}
	return max(0, free), nil
}

// add counts what is written into f as r's.
func (s *rooms) add(r *room, f *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.files = append(r.files, f)
}

// giveUp ends r, whose files are closed afterwards.
func (s *rooms) giveUp(r *room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, r)
}

// scratchDir is where scratch lies.
func (e *Engine) scratchDir() string { return cmp.Or(e.cfg.StateDir, os.TempDir()) }

// scratch opens an empty file where streams are kept that are judged, for what a
// program writes by descriptor while the volumes of the pool have none, or do not
// grow. It has no name: nothing of it outlives the process.
func (e *Engine) scratch() (*blkio.File, error) {
	f, err := e.cfg.Ingest.Spool()
	if err != nil {
		return nil, blkio.Error("scratch.create", "", err)
	}
	return blkio.NewFile(f)
}

// target is what the worker writes an image's content into: a staged volume
// itself, or scratch that is copied into one when its size is known.
type target struct {
	p    *pool.Pool
	id   disk.VolumeID
	dev  driver.Device // the staged volume; nil as long as there is none
	file *os.File      // what the worker writes
	from *blkio.File   // the scratch
}

// openTarget makes the target for volume id, of which size is known, or 0. Where
// p's volumes do not grow it takes of in.
func (e *Engine) openTarget(ctx context.Context, p *pool.Pool, id disk.VolumeID, size int64, in *room) (*target, error) {
	t := &target{p: p, id: id}
	if !p.Caps.Grows {
		f, err := e.scratch()
		if err != nil {
			return nil, err
		}
		t.from, t.file = f, f.Descriptor()
		if err := f.Truncate(size); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		e.rooms.add(in, t.file)
		return t, nil
	}
	if err := p.Driver.Create(ctx, driver.Spec{ID: id, Size: size}); err != nil {
		return nil, err
	}
	var err error
	if t.dev, t.file, err = openDescriptor(ctx, p, id); err != nil {
		return nil, err
	}
	return t, nil
}

// finish gives the volume its size and makes its bytes durable.
func (t *target) finish(ctx context.Context, size int64) (err error) {
	if t.from == nil {
		if err := t.dev.Truncate(size); err != nil {
			return err
		}
		// The worker began write-back. Only a descriptor as old as the first write
		// is sure to learn of one that failed.
		return t.dev.Sync()
	}
	if err := t.p.Driver.Create(ctx, driver.Spec{ID: t.id, Size: size}); err != nil {
		return err
	}
	if t.dev, err = t.p.Driver.Open(ctx, driver.Ref{ID: t.id}, driver.Staged); err != nil {
		return err
	}
	if err := fromScratch(ctx, t.dev, t.from); err != nil {
		return err
	}
	return t.dev.Sync()
}

func (t *target) close() error {
	var err error
	if t.dev != nil {
		err = t.dev.Close()
	}
	if t.from != nil {
		err = errors.Join(err, t.from.Close())
	}
	return err
}

// fromScratch copies what a program wrote, whose file may have grown behind
// from's back, into a device that reads as zeroes.
func fromScratch(ctx context.Context, dev driver.Device, from *blkio.File) error {
	info, err := from.Descriptor().Stat()
	if err != nil {
		return blkio.Error("scratch.read", "", err)
	}
	if info.Size() > dev.Size() {
		return errs.New(errs.Internal, "scratch.read", "", "%d bytes were written for a volume of %d", info.Size(), dev.Size())
	}
	if err := from.Truncate(info.Size()); err != nil {
		return err
	}
	return blkio.Copy(ctx, dev, from, func(int64) {})
}
