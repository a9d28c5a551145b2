package volio

import (
	"context"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

// Target is an open container to export into. What it held is given up.
type Target interface {
	blkio.Target
	Size() int64
	Truncate(size int64) error
}

// Sink is where an export goes: exactly one member is set.
type Sink struct {
	Device Target    // holes are kept
	Stream io.Writer // gets every byte in order
}

// piece is how much is read and written at once.
const piece = 4 << 20

// Export writes what r holds to s as a container of the given format: the
// whole disk without a backing layer. r must not change meanwhile. progress is
// told how many of the container's bytes are done and may be nil. Nothing is
// synced.
func Export(ctx context.Context, r diskfmt.Reader, s Sink, format diskfmt.Format, progress func(done, total int64)) error {
	const op = "volume.export"
	switch format {
	case diskfmt.Raw:
		if s.Device != nil {
			if err := resize(s.Device, r.Size()); err != nil {
				return errs.Wrap(err, op, "")
			}
			return errs.Wrap(blkio.Copy(ctx, s.Device, r, of(r.Size(), progress)), op, "")
		}
		o := &output{ctx: ctx, sink: s, total: r.Size(), progress: progress}
		return errs.Wrap(o.copy(r, 0, r.Size()), op, "")
	case diskfmt.Qcow2:
		return errs.Wrap(exportQcow2(ctx, r, s, progress), op, "")
	}
	return errs.New(errs.Unsupported, op, "", "format %q cannot be written", format)
}

// resize makes d size bytes long where it is not.
func resize(d Target, size int64) error {
	if d.Size() == size {
		return nil
	}
	return d.Truncate(size)
}

// output is a container that is written front to back.
type output struct {
	ctx      context.Context
	sink     Sink
	pos      int64
	total    int64
	progress func(done, total int64)
	buf      []byte
}

// Write appends p. On a device, which reads as zeroes, runs of zeroes are left
// out.
func (o *output) Write(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	var err error
	if o.sink.Device == nil {
		_, err = o.sink.Stream.Write(p)
	} else {
		err = blkio.DataRuns(p, o.pos, func(p []byte, off int64) error {
			_, err := o.sink.Device.WriteAt(p, off)
			return err
		}, func(int64, int64) error { return nil })
	}
	if err != nil {
		return 0, err
	}
	o.pos += int64(len(p))
	if o.progress != nil {
		o.progress(o.pos, o.total)
	}
	return len(p), nil
}

// copy appends n bytes of r from off, those past its end as zeroes.
func (o *output) copy(r diskfmt.Reader, off, n int64) error {
	if o.buf == nil {
		o.buf = make([]byte, piece)
	}
	for n > 0 {
		p := o.buf[:min(n, int64(len(o.buf)))]
		inside := max(0, min(int64(len(p)), r.Size()-off))
		if got, err := r.ReadAt(p[:inside], off); int64(got) < inside {
			return short(err, off)
		}
		clear(p[inside:])
		if _, err := o.Write(p); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}
