package engine

import (
	"context"
	"errors"
	"io"
	"os"
	"runtime"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/volio"
)

// Sink is where an export goes: a regular file, whose holes are kept, or a
// stream. Both stay the caller's.
type Sink struct {
	File   *os.File
	Stream io.Writer
}

// exportOptions reads how an export is asked for.
func (e *Engine) exportOptions(x api.Export) (volio.Options, error) {
	o := volio.Options{Format: diskfmt.Format(x.Format), Compression: volio.Compression(x.Compression), Type: volio.Type(x.Type),
		Threads: runtime.GOMAXPROCS(0), Time: e.now()}
	return o, o.Validate()
}

// DiskExport writes what a disk holds, the whole chain as one, to s in a
// format. The disk must not be in use; nobody can start to use it meanwhile, but
// for other exports.
func (e *Engine) DiskExport(ctx context.Context, ref string, x api.Export, s Sink, progress func(done, total int64)) error {
	const op = "disk.export"
	o, err := e.exportOptions(x)
	if err != nil {
		return errs.Wrap(err, op, ref)
	}
	r, err := e.diskByRef(ctx, ref)
	if err != nil {
		return err
	}
	name := r.instance.Name + "/" + r.disk.Name
	if err := usable(r.volume, op, name); err != nil {
		return err
	}
	if err := e.notWritten(ctx, r.volume); err != nil {
		return e.ofDisk(ctx, err, op, r.volume)
	}
	p, err := e.pool(r.pool)
	if err != nil {
		return err
	}
	chain, err := e.soundChain(ctx, r.volume)
	if err != nil {
		return err
	}
	defer e.exports.take(r.volume.ID)()
	defer e.reading.take(r.pool.ID)()
	in, err := p.OpenChain(ctx, chain, driver.Read)
	if err != nil {
		return errs.Wrap(err, op, name)
	}
	err = e.notLeased(ctx, r.volume) // granted before the locks that keep others away were taken
	if err == nil {
		err = export(ctx, in, s, o, progress)
	}
	return errs.Wrap(errors.Join(err, in.Close()), op, name)
}

// notWritten returns errs.Busy while anybody holds v, which is a disk's, but for
// exports: their locks keep writers away from each other's.
func (e *Engine) notWritten(ctx context.Context, v disk.Volume) error {
	err := e.notLeased(ctx, v)
	if err != nil || e.exports.count(v.ID) > 0 {
		return err
	}
	err = e.unlocked(ctx, v)
	if errors.Is(err, errs.Busy) && e.exports.count(v.ID) > 0 { // one has begun
		return nil
	}
	return err
}

// ImageExport writes an image's content, as long as it was when it was
// imported, to s in a format. The base that it reads stays meanwhile.
func (e *Engine) ImageExport(ctx context.Context, ref string, x api.Export, s Sink, progress func(done, total int64)) error {
	const op = "image.export"
	o, err := e.exportOptions(x)
	if err != nil {
		return errs.Wrap(err, op, ref)
	}
	i, bases, err := e.readyImage(ctx, ref)
	if err != nil {
		return err
	}
	base, release, err := e.holdBase(ctx, i, bases)
	if err != nil {
		return err
	}
	defer release()
	p, err := e.poolOf(ctx, base.PoolID)
	if err != nil {
		return err
	}
	in, err := p.OpenChain(ctx, []disk.Volume{base}, driver.Base)
	if err != nil {
		return err
	}
	err = export(ctx, volio.Cut(in, base.ContentSize), s, o, progress)
	return errs.Wrap(errors.Join(err, in.Close()), op, i.Name)
}

// holdBase returns one of an image's bases that can be read. Until release is
// called nothing deletes it and its pool stays active.
func (e *Engine) holdBase(ctx context.Context, i disk.Image, bases []disk.Volume) (base disk.Volume, release func(), err error) {
	for _, b := range bases {
		volume, pool := e.exports.take(b.ID), e.reading.take(b.PoolID)
		release = func() { pool(); volume() }
		_, active := e.pools.get(b.PoolID)
		if !active {
			release()
			continue
		}
		// A base is marked for deletion by a transaction that sees who holds it,
		// so that in one of its own the hold is seen, or the mark.
		err = e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
			base, err = tx.Volumes.Get(ctx, b.ID)
			return err
		})
		if err == nil && base.State == disk.VolumeReady {
			return base, release, nil
		}
		release()
		if err != nil && !errors.Is(err, errs.NotFound) {
			return disk.Volume{}, nil, err
		}
	}
	return disk.Volume{}, nil, noBase(i)
}

// export writes in to s, and what a file got to its device.
func export(ctx context.Context, in diskfmt.Reader, s Sink, o volio.Options, progress func(done, total int64)) error {
	out, err := sinkOf(s)
	if err == nil {
		err = volio.Export(ctx, in, out, o, progress)
	}
	if f, ok := out.Device.(*blkio.File); ok && err == nil {
		err = f.Sync()
	}
	return err
}

func sinkOf(s Sink) (volio.Sink, error) {
	if s.File == nil {
		return volio.Sink{Stream: s.Stream}, nil
	}
	fi, err := s.File.Stat()
	if err != nil {
		return volio.Sink{}, err
	}
	if !fi.Mode().IsRegular() {
		return volio.Sink{Stream: s.File}, nil
	}
	f, err := blkio.NewFile(s.File)
	if err != nil {
		return volio.Sink{}, err
	}
	return volio.Sink{Device: f}, nil
}
