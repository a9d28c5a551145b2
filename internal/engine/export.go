package engine

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/volio"
)

// Sink is where an export goes: a regular file, whose holes are kept, or a
// stream. Both stay the caller's.
type Sink struct {
	File   *os.File
	Stream io.Writer
}

// DiskExport writes what a disk holds, the whole chain as one, to s in a
// format. The disk must not be in use; nobody can start to use it meanwhile.
func (e *Engine) DiskExport(ctx context.Context, ref string, x api.DiskExport, s Sink, progress func(done, total int64)) error {
	format, err := diskfmt.ParseFormat(x.Format)
	if err != nil {
		return errs.New(errs.Invalid, "disk.export", ref, "%w", err)
	}
	r, err := e.diskByRef(ctx, ref)
	if err != nil {
		return err
	}
	name := r.instance.Name + "/" + r.disk.Name
	if err := usable(r.volume, "disk.export", name); err != nil {
		return err
	}
	if err := e.notInUse(ctx, []disk.Volume{r.volume}); err != nil {
		return err
	}
	p, err := e.pool(r.pool)
	if err != nil {
		return err
	}
	chain, err := e.chain(ctx, r.volume)
	if err != nil {
		return err
	}
	defer e.exports.take(r.volume.ID)()
	defer e.reading.take(r.pool.ID)()
	in, err := p.OpenChain(ctx, chain, driver.Read)
	if err != nil {
		return err
	}
	out, err := sinkOf(s)
	if err == nil {
		err = e.notLeased(ctx, r.volume) // granted before the locks that keep others away were taken
	}
	if err == nil {
		err = volio.Export(ctx, in, out, format, progress)
	}
	if err == nil && s.File != nil {
		err = out.Device.(*blkio.File).Sync()
	}
	return errs.Wrap(errors.Join(err, in.Close()), "disk.export", name)
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
	return volio.Sink{Device: f}, f.Truncate(0)
}
