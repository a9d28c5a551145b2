package engine

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// importArgs is what all steps of an import know.
type importArgs struct {
	Image  disk.ImageID  `json:"image"`
	Volume disk.VolumeID `json:"volume"`
	Pool   disk.PoolID   `json:"pool"`
	Domain disk.DomainID `json:"domain"`
	Format string        `json:"format"`
	SHA256 string        `json:"sha256,omitempty"`
}

// source is an import's input while its operation lives.
type source struct {
	src     ingest.Source
	session *ingest.Session
	done    *converted
	end     context.CancelFunc
}

// sessions holds the sources of running imports: descriptors and workers, which
// die with the daemon. Its zero value is ready.
type sessions struct {
	mu sync.Mutex
	of map[journal.ID]*source
}

func (s *sessions) put(id journal.ID, src ingest.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == nil {
		s.of = map[journal.ID]*source{}
	}
	s.of[id] = &source{src: src}
}

func (s *sessions) get(id journal.ID) (*source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if src, ok := s.of[id]; ok {
		return src, nil
	}
	return nil, errs.New(errs.Cancelled, "image.import", string(id), "the source was lost with a restart of the daemon").WithHint("import it again")
}

// drop forgets an import's source. It waits for nothing: the end of an operation
// is recorded in a transaction, long after its worker has ended.
func (s *sessions) drop(id journal.ID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.of, id)
}

// close ends the source's worker, if it has one. Closing again does nothing.
func (s *source) close() {
	if s.session != nil {
		s.session.Close()
		s.end()
	}
}

// lost is a handler that cannot go on after a restart: what it reads from died
// with the daemon.
type lost struct{ simple }

// Resumable reports false.
func (lost) Resumable(*journal.Call) bool { return false }

// imageJudge has the gate judge a source's header and, on its word, records the
// base and promises its space: step image.judge/v1.
func (e *Engine) imageJudge() journal.Handler[*store.Tx] {
	return lost{simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			h, err := e.judge(ctx, c, a)
			if err != nil {
				return err
			}
			if _, err := e.measure(ctx, a.Domain); err != nil {
				return err
			}
			return c.SetOutput(h)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a importArgs
			var h ingest.Header
			if err := errors.Join(c.Args(&a), c.Output(&h)); err != nil {
				return err
			}
			return e.expectBase(ctx, tx, a, h, c.Op.ID)
		},
		undo: func(_ context.Context, c *journal.Call) error {
			if s, err := e.imports.get(c.Op.ID); err == nil { // else the worker died with the daemon
				s.close()
			}
			return nil
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return errors.Join(tx.Volumes.Delete(ctx, a.Volume), tx.Images.Delete(ctx, a.Image))
		},
	}}
}

func (e *Engine) judge(ctx context.Context, c *journal.Call, a importArgs) (ingest.Header, error) {
	s, err := e.imports.get(c.Op.ID)
	if err != nil {
		return ingest.Header{}, err
	}
	if s.session == nil {
		room, err := e.headroom(ctx, a.Domain)
		if err != nil {
			return ingest.Header{}, err
		}
		room -= room / 16 // others write as well until it is promised
		if a.Format == string(diskfmt.Qcow2) {
			room /= 4 // the rest is for what the kept part of the stream expands to
		}
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		claim := ingest.Claim{Format: a.Format, SHA256: a.SHA256, MaxUnannounced: max(room, 1)}
		stop := context.AfterFunc(ctx, end) // a cancelled step ends the worker; a finished one hands it on
		session, err := ingest.Open(life, e.cfg.Ingest, s.src, claim)
		stop()
		if err != nil {
			end()
			return ingest.Header{}, err
		}
		s.session, s.end = session, end
	}
	return s.session.Header(), nil
}

// expectBase records the base that is about to be written.
func (e *Engine) expectBase(ctx context.Context, tx *store.Tx, a importArgs, h ingest.Header, op journal.ID) error {
	i, err := tx.Images.Get(ctx, a.Image)
	if err != nil {
		return err
	}
	p, err := e.pools.must(a.Pool)
	if err != nil {
		return err
	}
	size := h.VirtualSize
	if size < 0 {
		size = h.MaxData // a stream that does not say; known when it ends
	}
	need := plan.Need{Commit: h.MaxData, Write: h.MaxData + h.MaxSpool}
	if err := admit(ctx, tx, a.Domain, e.space.last(a.Domain), need); err != nil {
		return errs.Wrap(err, "image.import", i.Name)
	}
	now := e.now()
	if err := tx.Volumes.Insert(ctx, disk.Volume{
		ID: a.Volume, PoolID: a.Pool, Name: "import_" + string(a.Volume), Kind: disk.KindBase, State: disk.VolumeCreating, Format: diskfmt.Raw,
		VirtualSize: disk.RoundUp(size, p.Caps.SizeUnit), RequestedSize: size, ContentSize: size, Committed: need.Commit, Writing: need.Write,
		CreatedBy: disk.OperationID(op), CreatedAt: now, UpdatedAt: now,
	}); err != nil {
		return err
	}
	i.VirtualSize = size
	return tx.Images.Update(ctx, i)
}

// converted is what image.convert/v1 found.
type converted struct {
	ingest.Result
}

// imageConvert has the worker write the base: step image.convert/v1. The
// content and so the base's name are known afterwards; if the pool has that
// content already, the image will share it.
func (e *Engine) imageConvert() journal.Handler[*store.Tx] {
	return lost{simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			s, err := e.imports.get(c.Op.ID)
			if err != nil {
				return err
			}
			if s.done != nil { // nameBase found another import of the same content
				return errors.Join(e.awaitTwin(ctx, c, a, *s.done), c.SetOutput(s.done))
			}
			done, err := e.convert(ctx, c, s.session, a)
			s.close()
			if err != nil {
				return errs.Wrap(err, "image.import", c.Op.Subject.Name)
			}
			s.done = &done
			return c.SetOutput(done)
		},
		commit: e.nameBase,
		undo: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			p, err := e.poolOf(ctx, a.Pool)
			if err != nil {
				return err
			}
			return errors.Join(p.Driver.Delete(ctx, driver.Ref{ID: spoolID(a.Volume)}), p.Discard(ctx, a.Volume))
		},
	}}
}

func (e *Engine) convert(ctx context.Context, c *journal.Call, s *ingest.Session, a importArgs) (out converted, err error) {
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return out, err
	}
	if err := p.Driver.Create(ctx, driver.Spec{ID: a.Volume, Size: max(0, s.Header().VirtualSize)}); err != nil {
		return out, err
	}
	dev, file, err := openDescriptor(ctx, p, a.Volume)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, dev.Close()) }()
	var kept []driver.Device
	defer func() {
		for _, d := range kept {
			d.Close()
		}
	}()
	spool := func() (*os.File, error) {
		if err := p.Driver.Create(ctx, driver.Spec{ID: spoolID(a.Volume)}); err != nil {
			return nil, err
		}
		d, f, err := openDescriptor(ctx, p, spoolID(a.Volume))
		kept = append(kept, d)
		return f, err
	}
	out.Result, err = s.Convert(ctx, file, spool, func(done, total int64) { c.Progress(done, total, "bytes") })
	if err != nil {
		return out, err
	}
	if err := p.Driver.Delete(ctx, driver.Ref{ID: spoolID(a.Volume)}); err != nil {
		return out, err
	}
	if err := dev.Truncate(disk.RoundUp(out.VirtualSize, p.Caps.SizeUnit)); err != nil {
		return out, err
	}
	// The worker began write-back. Only a descriptor as old as the first write
	// is sure to learn of one that failed.
	return out, dev.Sync()
}

// openDescriptor opens a staged volume that the worker can write.
func openDescriptor(ctx context.Context, p *pool.Pool, id disk.VolumeID) (driver.Device, *os.File, error) {
	dev, err := p.Driver.Open(ctx, driver.Ref{ID: id}, driver.Staged)
	if err != nil {
		return nil, nil, err
	}
	d, ok := dev.(describer)
	if !ok {
		return nil, nil, errors.Join(errs.New(errs.Unsupported, "image.import", string(id), "the pool's volumes have no descriptor"), dev.Close())
	}
	return dev, d.Descriptor(), nil
}

// nameBase records what a conversion found, or that the pool has it already.
func (e *Engine) nameBase(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	var a importArgs
	var r converted
	if err := errors.Join(c.Args(&a), c.Output(&r)); err != nil {
		return err
	}
	i, err := tx.Images.Get(ctx, a.Image)
	if err != nil {
		return err
	}
	v, err := tx.Volumes.Get(ctx, a.Volume)
	if err != nil {
		return err
	}
	twin, err := baseIn(ctx, tx, a.Pool, r.Content)
	switch {
	case err == nil && twin.State == disk.VolumeReady: // the image will share it
	case err == nil && twin.State == disk.VolumeCreating:
		return journal.Again // Act waits for the other import of the same content
	case err == nil:
		return errs.New(errs.Busy, "image.import", i.Name, "the pool's base %s with the same content is %s", twin.Name, twin.State).
			WithHint("tarn doctor says why, and --repair clears it")
	case !errors.Is(err, errs.NotFound):
		return err
	default:
		v.Name, v.Content = BaseName(r.Content, diskfmt.Raw), r.Content
	}
	p, err := e.pools.must(a.Pool)
	if err != nil {
		return err
	}
	v.ContentSize, v.RequestedSize, v.VirtualSize = r.VirtualSize, r.VirtualSize, disk.RoundUp(r.VirtualSize, p.Caps.SizeUnit)
	v.Committed, v.Writing, v.Extents = r.Written, 0, r.Extents
	if err := tx.Volumes.Update(ctx, v); err != nil {
		return err
	}
	i.Content, i.SourceSHA256, i.VirtualSize, i.UpdatedAt = r.Content, r.SourceSHA256, r.VirtualSize, e.now()
	return tx.Images.Update(ctx, i)
}

// BaseName is the name of the base that holds content: what a pool's listing
// shows.
func BaseName(content string, f diskfmt.Format) string {
	_, hex, _ := strings.Cut(content, ":")
	return "base_" + hex[:32] + "." + string(f)
}

// awaitTwin waits for the operation that is making a base of the same content.
func (e *Engine) awaitTwin(ctx context.Context, c *journal.Call, a importArgs, r converted) error {
	twin, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) {
		return baseIn(ctx, tx, a.Pool, r.Content)
	})
	if errors.Is(err, errs.NotFound) || err == nil && twin.State == disk.VolumeReady {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = e.await(ctx, c, journal.ID(twin.CreatedBy))
	return err
}

// basePublish gives a written base its name and its sidecar: step
// base.publish/v1.
func (e *Engine) basePublish() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			v, err := e.publishBase(ctx, a)
			if err != nil {
				return errs.Wrap(err, "image.import", c.Op.Subject.Name)
			}
			return c.SetOutput(v)
		},
		undo: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return e.unpublishBase(ctx, a)
		},
	}
}

// imported is what the records say of an import's base and image.
type imported struct {
	volume disk.Volume
	image  disk.Image
	twin   *disk.Volume // holds the content already
	others []disk.Image // that share it
}

func (e *Engine) importRecords(ctx context.Context, a importArgs) (imported, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (r imported, err error) {
		if r.volume, err = tx.Volumes.Get(ctx, a.Volume); err != nil {
			return r, err
		}
		if r.image, err = tx.Images.Get(ctx, a.Image); err != nil {
			return r, err
		}
		if r.volume.Content == "" && r.image.Content != "" {
			twin, err := baseIn(ctx, tx, a.Pool, r.image.Content)
			if err != nil {
				return r, err
			}
			r.twin = &twin
		}
		r.others, _, err = tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", r.image.Content), store.Eq("state", disk.ImageReady)}})
		return r, err
	})
}

func (e *Engine) publishBase(ctx context.Context, a importArgs) (disk.Volume, error) {
	r, err := e.importRecords(ctx, a)
	if err != nil {
		return disk.Volume{}, err
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return disk.Volume{}, err
	}
	r.image.State = disk.ImageReady
	images := append(r.others, r.image)
	if r.twin == nil {
		return p.PublishStaged(ctx, disk.Sidecar{Volume: r.volume, Images: images})
	}
	return *r.twin, p.Discard(ctx, a.Volume)
}

// imageReady records that an import is done: step image.ready/v1. From then on
// others may rely on it, so that it is not taken back.
func (e *Engine) imageReady() journal.Handler[*store.Tx] {
	return simple{final: true, commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
		var a importArgs
		var v disk.Volume
		if err := c.Args(&a); err != nil {
			return err
		}
		for _, s := range c.Op.Steps {
			if s.Kind == stepBasePublish {
				published := journal.Call{Op: c.Op, Step: &s}
				if err := published.Output(&v); err != nil {
					return err
				}
			}
		}
		return e.baseReady(ctx, tx, a, v, c.Op.ID)
	}}
}

// baseReady records that an import is done.
func (e *Engine) baseReady(ctx context.Context, tx *store.Tx, a importArgs, v disk.Volume, op journal.ID) error {
	var err error
	if v.ID == a.Volume {
		err = tx.Volumes.Update(ctx, v)
	} else { // another import's base, whose sidecar follows
		err = tx.Volumes.Delete(ctx, a.Volume)
	}
	if err != nil {
		return err
	}
	i, err := tx.Images.Get(ctx, a.Image)
	if err != nil {
		return err
	}
	i.State = disk.ImageReady
	if err := tx.Images.Update(ctx, i); err != nil {
		return err
	}
	return e.emit(ctx, tx, "image.ready", imageSubject(i), op)
}

func (e *Engine) unpublishBase(ctx context.Context, a importArgs) error {
	r, err := e.importRecords(ctx, a)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.twin != nil {
		return nil
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return err
	}
	return p.Delete(ctx, r.volume)
}
