package ingest

import (
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
	q, _, err := receive()
	if err != nil {
		return err
	}
	if q.Judge == nil {
		return errors.New("the first request is not a claim")
	}
	im := &intake{judge: *q.Judge, src: sourceFD}
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
	q, passed, err := receive()
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
	head  []byte         // what was read of a stream so far
	dst   *descriptor    // nil when there is no output
	spool *descriptor
	size  int64 // virtual, as the header of a stream says
	count counter
}

// open judges what can be judged before anything is written.
func (im *intake) open(ctx context.Context) (Header, error) {
	if im.Stream {
		return im.openStream()
	}
	var err error
	if im.start, err = im.src.stamp(); err != nil {
		return Header{}, err
	}
	if im.start.size != im.Size {
		return Header{}, errChanged()
	}
	return im.openSeekable(ctx, im.src, im.Size)
}

// openSeekable judges size bytes of d and makes a reader of them.
func (im *intake) openSeekable(ctx context.Context, d descriptor, size int64) (Header, error) {
	if size == 0 {
		return Header{}, errEmpty()
	}
	head, tail, err := ends(d, size)
	if err != nil {
		return Header{}, err
	}
	if err := checkLooks(diskfmt.Format(im.Format), head, tail, size); err != nil {
		return Header{}, err
	}
	if im.Format == string(diskfmt.Qcow2) {
		src, h, err := im.openQcow2(ctx, d, size)
		im.disk = src
		return h, err
	}
	if size > im.MaxVirtual {
		return Header{}, errTooLarge(size, im.MaxVirtual)
	}
	im.disk = rawFile{d, size}
	h := Header{Format: diskfmt.Raw, VirtualSize: size, Features: []string{}}
	h.MaxData, err = dataBytes(im.disk)
	return h, err
}

// openStream judges a stream by its first bytes.
func (im *intake) openStream() (Header, error) {
	im.head = make([]byte, sniff.HeadSize)
	if im.Format == string(diskfmt.Qcow2) {
		im.head = make([]byte, maxHeader)
	}
	n, err := io.ReadFull(im.src, im.head)
	im.head = im.head[:n]
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		if im.Size < 0 {
			im.Size = int64(n)
		}
		if im.Size == 0 {
			return Header{}, errEmpty()
		}
		if int64(n) < im.Size {
			return Header{}, errShort(int64(n), im.Size)
		}
	case err != nil:
		return Header{}, err
	}
	if err := checkLooks(diskfmt.Format(im.Format), im.head[:min(n, sniff.HeadSize)], nil, 0); err != nil {
		return Header{}, err
	}
	spool := im.Size // the most that the stream may have
	if spool < 0 {
		spool = im.MaxData
	}
	if im.Format == string(diskfmt.Qcow2) {
		h, err := im.judgeQcow2(im.head, spool)
		h.MaxSpool, im.size = spool, h.VirtualSize
		return h, err
	}
	if im.Size > im.MaxVirtual {
		return Header{}, errTooLarge(im.Size, im.MaxVirtual)
	}
	return Header{Format: diskfmt.Raw, VirtualSize: im.Size, MaxData: spool, Features: []string{}}, nil
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
	switch {
	case !im.Stream:
		return im.convertFile(ctx)
	case im.Format == string(diskfmt.Raw):
		return im.convertStream(ctx)
	default:
		return im.convertSpooled(ctx)
	}
}

// convertFile converts a seekable source. What is stored as it is and in the
// guest's order is read once, for both digests.
func (im *intake) convertFile(ctx context.Context) (Result, error) {
	c := newConversion(im.Threads, im.dst, &im.count)
	c.source = im.disk
	im.count.total.Store(im.disk.Size())
	c.digest = newSourceDigest(im.src, im.Size)
	if im.Format != string(diskfmt.Raw) {
		im.count.total.Add(im.Size)
		c.digest.count = &im.count
	}
	done, err := c.run(ctx, im.Threads, c.chunks)
	if err != nil {
		return Result{}, err
	}
	if now, err := im.src.stamp(); err != nil {
		return Result{}, err
	} else if now != im.start {
		return Result{}, errChanged()
	}
	return done.result(c.digest.h.Sum(nil)), nil
}

// convertStream converts a raw stream as it comes.
func (im *intake) convertStream(ctx context.Context) (Result, error) {
	c := newConversion(im.Threads, im.dst, &im.count)
	c.digest = newSourceDigest(im.src, 0)
	im.count.total.Store(max(0, im.Size))
	r := im.whole()
	done, err := c.run(ctx, im.Threads, func(ctx context.Context) error { return c.sequential(ctx, r) })
	if err != nil {
		return Result{}, err
	}
	if err := checkLooks(diskfmt.Raw, im.head, r.last, r.n); err != nil {
		return Result{}, err
	}
	return done.result(c.digest.h.Sum(nil)), nil
}

// convertSpooled converts a qcow2 stream: what can be placed as it comes is,
// the rest is kept in the spool up to the stream's end, because only then its
// tables are complete and can be judged.
func (im *intake) convertSpooled(ctx context.Context) (Result, error) {
	if im.spool == nil {
		return Result{}, errs.New(errs.Internal, "", "", "there is nothing to spool the stream in")
	}
	if im.Size >= 0 {
		im.count.total.Store(im.Size + im.size)
	}
	r := im.whole()
	a := newAssembler(im.head, im.size, im.dst, *im.spool)
	sum, err := im.takeApart(ctx, r, a)
	if err != nil {
		return Result{}, err
	}
	if err := checkLooks(diskfmt.Qcow2, im.head[:min(len(im.head), sniff.HeadSize)], r.last, r.n); err != nil {
		return Result{}, err
	}
	src, h, err := im.openQcow2(ctx, *im.spool, r.n)
	if err != nil {
		return Result{}, err
	}
	im.count.total.Store(r.n + h.VirtualSize)
	c := newConversion(im.Threads, im.dst, &im.count)
	c.source = src
	if a.direct.count > 0 {
		if c.source, err = newAssembled(src, a, *im.dst); err != nil {
			return Result{}, err
		}
	}
	done, err := c.run(ctx, im.Threads, c.chunks)
	return done.result(sum), err
}

// takeApart has a place the stream and returns its SHA-256, which is computed
// beside the writing.
func (im *intake) takeApart(ctx context.Context, r io.Reader, a *assembler) ([]byte, error) {
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
			if err := a.place(b[:n], off); err != nil {
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
