package ingest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/sniff"
)

// maxThreads bounds the converting goroutines, and with them the buffers.
const maxThreads = 16

// progressEvery is the shortest time between two progress messages.
const progressEvery = 100 * time.Millisecond

// WorkerMain is the whole life of the confined worker: the daemon's binary
// started with the single argument "worker". It confines itself, says so, and
// serves one image. It never returns.
func WorkerMain() {
	runtime.GOMAXPROCS(min(runtime.GOMAXPROCS(0), maxThreads))
	layers, err := confine()
	if err != nil {
		err = errs.New(errs.Unavailable, "", "", "%w", err)
	} else if err = send(reply{Layers: &layers}); err == nil {
		err = serve()
	}
	if err != nil && !errors.Is(err, io.EOF) { // the end of the socket is the daemon's end
		_ = send(reply{Failure: failureOf(err)})
	}
	os.Exit(0)
}

// serve answers the two requests of one image.
func serve() error {
	q, passed, err := receive()
	if err != nil {
		return err
	}
	if q.Judge == nil {
		return errors.New("the first request is not a claim")
	}
	im := &intake{judge: *q.Judge, src: sourceFD}
	if im.Described {
		if len(passed) != 1 {
			return errors.New("no description came")
		}
		if err := im.readDescription(passed[0]); err != nil {
			return err
		}
	}
	im.Threads = max(1, min(im.Threads, maxThreads))
	ctx := context.Background() // the worker's life is its request's
	var header Header
	err = im.watched(func() (err error) {
		header, err = im.open(ctx)
		return err
	})
	if err != nil {
		return err
	}
	if err := send(reply{Header: &header}); err != nil {
		return err
	}
	q, passed, err = receive()
	if err != nil {
		return err
	}
	if q.Convert == nil {
		return errors.New("the second request is not a conversion")
	}
	if err := im.assign(*q.Convert, passed); err != nil {
		return err
	}
	var result Result
	err = im.watched(func() (err error) {
		result, err = im.convert(ctx)
		return err
	})
	if err != nil {
		return err
	}
	return send(reply{Result: &result})
}

// intake is one image on its way in.
type intake struct {
	judge
	src   descriptor
	start stamp          // of a file
	disk  diskfmt.Reader // the guest's bytes, once the source is seekable
	base  int64          // where the disk's file begins in the source
	dst   *descriptor    // nil when there is no output
	spool *descriptor
	count counter

	head    []byte  // what was read of the content so far
	content *stream // what comes in turn: a stream, or what a packed source holds
	packed  *packed // between the source and content, nil when nothing is packed
	size    int64   // virtual, as the header of a qcow2 stream says

	promised int64 // bytes that a conversion writes at most, as the verdict says

	description *bundle.Description
	manifest    func(context.Context) error // compares an archive's disk with it
}

// inTurn reports whether the content is read from first to last.
func (im *intake) inTurn() bool { return im.Stream || im.Compression != "" }

// open judges what can be judged before anything is written.
func (im *intake) open(ctx context.Context) (Header, error) {
	h, err := im.judged(ctx)
	h.Format, im.promised = diskfmt.Format(im.Format), h.MaxData
	return h, err
}

func (im *intake) judged(ctx context.Context) (h Header, err error) {
	if im.Stream {
		return im.openStream()
	}
	if im.start, err = im.src.stamp(); err != nil {
		return h, err
	}
	if im.start.size != im.Size {
		return h, errChanged()
	}
	if im.Compression != "" {
		return im.openStream()
	}
	im.disk, h, err = im.openFile(ctx, diskfmt.Format(im.Format), im.src, im.Size)
	return h, err
}

// readDescription reads and judges the description behind d.
func (im *intake) readDescription(d descriptor) error {
	b := make([]byte, bundle.MaxSize+1)
	n, err := d.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	return im.describe(b[:n])
}

// assign takes the descriptors of a conversion.
func (im *intake) assign(c convert, passed []descriptor) error {
	want := 0
	if !c.Dry {
		want++
	}
	if c.Spool {
		want++
	}
	if len(passed) != want {
		return errs.New(errs.Internal, "", "", "%d descriptors came, not %d", len(passed), want)
	}
	if !c.Dry {
		im.dst = &passed[0]
	}
	if c.Spool {
		im.spool = &passed[want-1]
	}
	return nil
}

// watched runs work and tells its progress where there is any.
func (im *intake) watched(work func() error) error {
	im.count.done.Store(0)
	im.count.total.Store(0)
	stop := make(chan struct{})
	stopped := make(chan error)
	go func() { stopped <- im.report(stop) }()
	err := work()
	close(stop)
	if reported := <-stopped; err == nil {
		err = reported
	}
	return err
}

func (im *intake) report(stop chan struct{}) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	type seen struct{ done, walked int64 }
	last := seen{-1, 0}
	for {
		select {
		case <-stop:
			return nil
		case <-tick.C:
			now := seen{im.count.done.Load(), im.count.walked.Load()}
			if now == last {
				continue
			}
			last = now
			if err := send(reply{Progress: &advance{Done: now.done, Total: im.count.total.Load()}}); err != nil {
				return err
			}
		}
	}
}

func (im *intake) convert(ctx context.Context) (Result, error) {
	if !im.inTurn() {
		return im.convertFile(ctx)
	}
	var r Result
	var err error
	if format := im.stored(diskfmt.Format(im.Format)); format == diskfmt.Raw || doors[format].inTurn {
		r, err = im.convertStream(ctx)
	} else {
		r, err = im.convertSpooled(ctx)
	}
	if !im.Stream {
		err = im.unchanged(err)
	}
	return r, err
}

// unchanged refuses a file that was written while it was read. What else seems
// to be wrong with its bytes says nothing then. The time of change, which also
// the loss of a name sets, counts where nothing better keeps watch.
func (im *intake) unchanged(refusal error) error {
	if refusal != nil && strict.ClassOf(refusal) == "" {
		return refusal
	}
	now, err := im.src.stamp()
	if im.Held {
		now.ctime = im.start.ctime
	}
	if err == nil && now != im.start {
		err = errChanged()
	}
	if err == nil {
		err = refusal
	}
	return err
}

// convertFile converts a seekable source. What is stored as it is and in the
// guest's order is read once, for both digests.
func (im *intake) convertFile(ctx context.Context) (Result, error) {
	c := newConversion(im.Threads, im.dst, &im.count)
	c.from(im.disk)
	raw, ok := im.disk.(rawFile)
	c.flat = ok && raw.file == file(im.src)
	im.count.total.Store(im.disk.Size())
	c.digest, c.base = newSourceDigest(im.src, im.Size), im.base
	if !c.flat {
		im.count.total.Add(im.Size)
		c.digest.count = &im.count
	}
	done, err := im.run(ctx, c, c.chunks)
	if err = im.unchanged(err); err != nil {
		return Result{}, err
	}
	return done.result(c.digest.h.Sum(nil)), nil
}

// run runs a conversion and, beside it, the comparison with a manifest.
func (im *intake) run(ctx context.Context, c *conversion, produce func(context.Context) error) (converted, error) {
	if im.manifest == nil {
		return c.run(ctx, im.Threads, produce)
	}
	var done converted
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return im.manifest(ctx) })
	g.Go(func() (err error) {
		done, err = c.run(ctx, im.Threads, produce)
		return err
	})
	return done, g.Wait()
}

// convertStream converts content as it comes that is the guest's own.
func (im *intake) convertStream(ctx context.Context) (Result, error) {
	c := newConversion(im.Threads, im.dst, &im.count)
	c.flat = true
	if im.packed == nil {
		c.digest = newSourceDigest(im.src, 0)
	}
	r := im.content
	im.count.total.Store(max(0, r.size))
	done, err := c.run(ctx, im.Threads, func(ctx context.Context) error { return c.sequential(ctx, r) })
	if err != nil {
		return Result{}, err
	}
	format := im.stored(diskfmt.Format(im.Format))
	if err := checkLooks(format, im.head, r.last, r.far, r.n); err != nil {
		return Result{}, err
	}
	err = im.limits().Check(uint64(r.n))
	if d := doors[format]; err == nil && d.header != nil { // now that its size is known
		_, err = d.header(bytes.NewReader(im.head), r.n, im.limits())
	}
	if err == nil && im.description != nil {
		err = im.checkDescription(rawFile{im.src, r.n})
	}
	if err != nil {
		return Result{}, im.hinted(err)
	}
	var sum []byte
	if c.digest != nil {
		sum = c.digest.h.Sum(nil)
	}
	if sum, err = im.delivered(sum); err != nil {
		return Result{}, err
	}
	return done.result(sum), nil
}

// convertSpooled converts content that only its end explains. It is kept in the
// spool up to there; of qcow2, what can be placed as it comes is.
func (im *intake) convertSpooled(ctx context.Context) (Result, error) {
	if im.spool == nil {
		return Result{}, errs.New(errs.Internal, "", "", "there is nothing to spool the stream in")
	}
	format, r := im.stored(diskfmt.Format(im.Format)), im.content
	if r.size >= 0 {
		im.count.total.Store(r.size + im.size)
	}
	var a *assembler
	place := func(b []byte, off int64) error {
		_, err := im.spool.WriteAt(b, off)
		return err
	}
	if format == diskfmt.Qcow2 {
		a = newAssembler(im.head, im.size, im.dst, *im.spool)
		place = a.place
	}
	sum, err := im.takeApart(ctx, r, place)
	if err == nil {
		sum, err = im.delivered(sum)
	}
	if err != nil {
		return Result{}, err
	}
	if err := checkLooks(format, im.head[:min(len(im.head), sniff.HeadSize)], r.last, r.far, r.n); err != nil {
		return Result{}, err
	}
	disk, h, err := im.openTables(ctx, format, *im.spool, r.n)
	if err != nil {
		return Result{}, err
	}
	if h.MaxData > im.promised {
		return Result{}, strict.Refuse(strict.Quota, "the image has up to %d bytes of data, more than the %d reserved for it", h.MaxData, im.promised).
			WithHint("make room in the pool, or import from a file, whose size is known")
	}
	im.count.total.Store(r.n + h.VirtualSize)
	c := newConversion(im.Threads, im.dst, &im.count)
	if a != nil && a.direct.count > 0 {
		if disk, err = newAssembled(disk.(*inspect.Source), a, *im.dst); err != nil {
			return Result{}, err
		}
	}
	c.from(disk)
	done, err := im.run(ctx, c, c.chunks)
	return done.result(sum), err
}

// takeApart has place keep the stream and returns its SHA-256, which is computed
// beside the writing.
func (im *intake) takeApart(ctx context.Context, r io.Reader, place func(b []byte, off int64) error) ([]byte, error) {
	h := sha256.New()
	free, full := make(chan []byte, 4), make(chan []byte, 4)
	for range cap(free) {
		free <- make([]byte, blkio.ChunkSize)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		for b := range full {
			h.Write(b)
			im.count.done.Add(int64(len(b)))
			free <- b[:cap(b)]
		}
		return nil
	})
	g.Go(func() error {
		defer close(full)
		for off := int64(0); ; {
			b := <-free
			n, err := io.ReadFull(r, b)
			if err := place(b[:n], off); err != nil {
				return err
			}
			off += int64(n)
			full <- b[:n]
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				return nil
			}
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
		}
	})
	err := g.Wait()
	return h.Sum(nil), err
}

func (c converted) result(sum []byte) Result {
	return Result{SourceSHA256: hex.EncodeToString(sum), Content: c.content, VirtualSize: c.size, Written: c.written, Extents: c.extents}
}
