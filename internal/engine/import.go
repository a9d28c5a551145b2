package engine

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/signature"
	"github.com/tarn-storage/tarn/internal/store"
)

// importArgs is what all steps of an import know.
type importArgs struct {
	Image  disk.ImageID  `json:"image"`
	Volume disk.VolumeID `json:"volume"`
	Pool   disk.PoolID   `json:"pool"`
	Domain disk.DomainID `json:"domain"`
	Heal   disk.VolumeID `json:"heal,omitempty"` // the base that is made again, of an image that is there
	claim
}

// imageJudge has the gate judge a source's header and, on its word, records the
// base and promises its space: step image.judge/v1.
func (e *Engine) imageJudge() journal.Handler[*store.Tx] {
	return fetched{simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			h, err := e.judge(ctx, c, a, 0)
			if err == nil && a.Heal != "" {
				err = e.stillThere(ctx, a, h.Header)
			}
			if err != nil {
				return errs.Wrap(err, "image.import", c.Op.Subject.Name)
			}
			if _, err := e.measure(ctx, a.Domain); err != nil {
				return err
			}
			return c.SetOutput(h)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a importArgs
			var h judged
			if err := errors.Join(c.Args(&a), c.Output(&h)); err != nil {
				return err
			}
			return e.expectBase(ctx, tx, a, h.Header, c.Op.ID)
		},
		undo: func(_ context.Context, c *journal.Call) error {
			if s, err := e.imports.get(c); err == nil { // else the worker died with the daemon
				s.close()
			}
			return nil
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			if a.Heal != "" {
				return tx.Volumes.Delete(ctx, a.Volume)
			}
			return errors.Join(tx.Volumes.Delete(ctx, a.Volume), tx.Images.Delete(ctx, a.Image))
		},
	}}
}

// judged is the gate's verdict on a header, and how many bytes a stream could
// have that did not announce its size.
type judged struct {
	ingest.Header
	Unannounced int64 `json:"unannounced,omitempty"`
}

// judge opens the source and its session unless they are. What a stream may have
// without announcing its size is what there is room for, or unannounced.
func (e *Engine) judge(ctx context.Context, c *journal.Call, a importArgs, unannounced int64) (judged, error) {
	s, err := e.imports.get(c)
	if err != nil {
		return judged{}, err
	}
	if unannounced == 0 {
		room, err := e.importRoom(ctx, a)
		if err != nil {
			return judged{}, err
		}
		room -= room / 16 // others write as well until it is promised
		if expands(a.claim) {
			room /= 4 // the rest is for what the kept part of the stream expands to
		}
		unannounced = max(room&^(disk.SizeUnit-1), disk.SizeUnit) // whole sectors, as of every disk
	}
	if s.session == nil {
		life, end := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, end) // a cancelled step ends the worker; a finished one hands it on
		defer stop()
		o, err := e.open(life, s.details, a.claim, s.given)
		if err != nil {
			end()
			return judged{}, err
		}
		session, err := ingest.Open(life, e.cfg.Ingest, o.src, o.gate(a.claim, unannounced))
		if err != nil {
			o.close()
			end()
			return judged{}, o.because(err)
		}
		s.origin, s.session, s.end = o, session, end
	}
	return judged{s.session.Header(), unannounced}, nil
}

// importRoom returns how much the pool of an import has room for, and scratch
// where the pool's volumes do not grow.
func (e *Engine) importRoom(ctx context.Context, a importArgs) (int64, error) {
	n, err := e.headroom(ctx, a.Domain)
	if err != nil {
		return 0, err
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil || p.Caps.Grows {
		return n, err
	}
	left, err := e.scratchLeft()
	return min(n, left), err
}

// expands reports whether an image may hold more than its bytes, or a stream of
// it is kept before it is converted.
func expands(c claim) bool {
	switch diskfmt.Format(c.Format) {
	case diskfmt.Raw, diskfmt.ISO:
		return c.Compression != ""
	}
	return true
}

// rejudge has the gate judge once more what it judged before a restart, and
// clears away what had been written by then.
func (e *Engine) rejudge(ctx context.Context, c *journal.Call, a importArgs) error {
	var was judged
	for _, step := range c.Op.Steps {
		if step.Kind == stepImageJudge {
			first := journal.Call{Op: c.Op, Step: &step}
			if err := first.Output(&was); err != nil {
				return err
			}
		}
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return err
	}
	if err := errors.Join(p.Driver.Delete(ctx, driver.Ref{ID: spoolID(a.Volume)}), p.Discard(ctx, a.Volume)); err != nil {
		return err
	}
	h, err := e.judge(ctx, c, a, was.Unannounced)
	if err != nil {
		return err
	}
	if h.VirtualSize != was.VirtualSize || h.MaxData > was.MaxData || h.MaxSpool > was.MaxSpool {
		return errs.New(errs.Conflict, "", "", "the image changed at its source while the daemon was down").WithHint("import it again")
	}
	return nil
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
	}); err != nil || a.Heal != "" {
		return err
	}
	i.VirtualSize = size
	return tx.Images.Update(ctx, i)
}

// converted is what image.convert/v1 found, and the record as it was of a base
// out of use of the same content, which is made again.
type converted struct {
	ingest.Result
	Signer *signature.Signer `json:"signer,omitempty"`
	Lost   *disk.Volume      `json:"lost,omitempty"`
}

// imageConvert has the worker write the base: step image.convert/v1. The
// content and so the base's name are known afterwards; if the pool has that
// content already, the image will share it.
func (e *Engine) imageConvert() journal.Handler[*store.Tx] {
	return fetched{simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a importArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			s, err := e.imports.get(c)
			if err != nil {
				return err
			}
			if s.done != nil { // nameBase found another import of the same content
				return errors.Join(e.awaitTwin(ctx, c, a, *s.done), c.SetOutput(s.done))
			}
			if s.session == nil {
				if err := e.rejudge(ctx, c, a); err != nil {
					return errs.Wrap(err, "image.import", c.Op.Subject.Name)
				}
			}
			done, err := e.convert(ctx, c, s, a)
			s.close()
			if err != nil {
				return errs.Wrap(err, "image.import", c.Op.Subject.Name)
			}
			s.done = &done
			return errors.Join(c.SetOutput(done), signed(c, a.proof(done)))
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
			if err := errors.Join(p.Driver.Delete(ctx, driver.Ref{ID: spoolID(a.Volume)}), p.Discard(ctx, a.Volume)); err != nil {
				return err
			}
			old, err := madeAgain(c)
			if err != nil || old == nil {
				return err
			}
			return e.takeBackBase(ctx, c, a.Volume, *old)
		},
		undoCommit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			old, err := madeAgain(c)
			if err != nil || old == nil {
				return err
			}
			return loseAgain(ctx, tx, *old, c.Handed() == true)
		},
	}}
}

func (e *Engine) convert(ctx context.Context, c *journal.Call, s *source, a importArgs) (out converted, err error) {
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return out, err
	}
	h := s.session.Header()
	var in *room
	if !p.Caps.Grows {
		if in, err = e.scratchRoom(h.MaxData + h.MaxSpool); err != nil {
			return out, err
		}
	}
	into, err := e.openTarget(ctx, p, a.Volume, max(0, h.VirtualSize), in)
	if err != nil {
		e.rooms.giveUp(in)
		return out, err
	}
	defer func() { err = errors.Join(err, into.close()) }()
	var kept []*target
	defer func() {
		for _, t := range kept {
			_ = t.close()
		}
	}()
	defer e.rooms.giveUp(in)
	spool := func() (*os.File, error) {
		t, err := e.openTarget(ctx, p, spoolID(a.Volume), 0, in)
		if err != nil {
			return nil, err
		}
		kept = append(kept, t)
		return t.file, nil
	}
	defer s.origin.begin(ctx)()
	out.Result, err = s.session.Convert(ctx, into.file, spool, func(done, total int64) { c.Progress(done, total, "bytes") })
	if err != nil {
		return out, s.origin.because(err)
	}
	if out.Signer, err = s.origin.verify(ctx, out.SourceSHA256); err != nil {
		return out, err
	}
	if err := p.Driver.Delete(ctx, driver.Ref{ID: spoolID(a.Volume)}); err != nil {
		return out, err
	}
	return out, into.finish(ctx, disk.RoundUp(out.VirtualSize, p.Caps.SizeUnit))
}

// proof says what the converted bytes were held against; nil when nothing was
// asked for.
func (a claim) proof(r converted) *disk.Proof {
	var p disk.Proof
	if a.SHA256 != "" {
		p.Checksums = append(p.Checksums, "sha256:"+a.SHA256)
	}
	if a.SHA512 != "" {
		p.Checksums = append(p.Checksums, "sha512:"+a.SHA512)
	}
	if s := r.Signer; s != nil {
		p.Signature = &disk.Signature{Over: disk.OverImage, Scheme: s.Scheme, KeyID: s.KeyID, Name: s.Name, Comment: s.Comment, Time: s.Time}
		if a.Signer != nil {
			p.Signature.Over = disk.OverChecksums
		}
	}
	if p.Checksums == nil && p.Signature == nil {
		return nil
	}
	return &p
}

// signed keeps who signed the image as the operation's result.
func signed(c *journal.Call, p *disk.Proof) error {
	if p == nil || p.Signature == nil {
		return nil
	}
	return c.SetResult(api.ImageSigned(*p.Signature))
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
	if a.Heal != "" && r.Content != i.Content {
		return errs.New(errs.Corrupt, "image.import", i.Name, "the bytes are those that were imported and read as %s now, not as %s", r.Content, i.Content)
	}
	twin, err := baseIn(ctx, tx, a.Pool, r.Content)
	switch {
	case err == nil && twin.State == disk.VolumeReady: // the image will share it
	case err == nil && twin.State == disk.VolumeCreating:
		return journal.Again // Act waits for the other import of the same content
	case err == nil && healable(twin):
		r.Lost = &twin
	case err == nil && twin.State == disk.VolumeDeleting:
		return errs.New(errs.Busy, "image.import", i.Name, "the pool's base %s with the same content is just being deleted", twin.Name).WithHint("try again")
	case err == nil:
		return damaged("image.import", twin)
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
	if r.Lost != nil {
		v.Content, v.UpdatedAt = r.Content, e.now()
		if err := errors.Join(remake(ctx, tx, twin, v), c.SetOutput(r)); err != nil {
			return err
		}
	}
	if a.Heal != "" {
		return nil
	}
	i.Content, i.SourceSHA256, i.VirtualSize, i.Proof, i.UpdatedAt = r.Content, r.SourceSHA256, r.VirtualSize, a.proof(r), e.now()
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
			v, err := e.publishBase(ctx, a, c)
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
			return e.unpublishBase(ctx, a, c)
		},
	}
}

// imported is what the records say of an import's base and image.
type imported struct {
	volume disk.Volume
	image  disk.Image
	twin   *disk.Volume // holds the content already, or will again
	again  bool         // the twin was out of use and gets the import's bytes
	others []disk.Image // that share it
}

func (e *Engine) importRecords(ctx context.Context, a importArgs, op journal.ID) (imported, error) {
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
			r.twin, r.again = &twin, twin.CreatedBy == disk.OperationID(op)
		}
		r.others, _, err = tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", r.image.Content), store.Eq("state", disk.ImageReady)}})
		return r, err
	})
}

func (e *Engine) publishBase(ctx context.Context, a importArgs, c *journal.Call) (disk.Volume, error) {
	r, err := e.importRecords(ctx, a, c.Op.ID)
	if err != nil {
		return disk.Volume{}, err
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return disk.Volume{}, err
	}
	images := r.others
	if a.Heal == "" {
		r.image.State = disk.ImageReady
		images = append(images, r.image)
	}
	switch {
	case r.twin == nil:
		return p.PublishStaged(ctx, a.Volume, disk.Sidecar{Volume: r.volume, Images: images})
	case r.again:
		old, err := convertedInto(c)
		if err == nil {
			err = e.unread(ctx, old)
		}
		if err != nil {
			return disk.Volume{}, err
		}
		return p.PublishInstead(ctx, a.Volume, disk.Sidecar{Volume: *r.twin, Images: images}, old,
			func(done int64) { c.Progress(done, r.twin.ContentSize, "bytes") })
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
	if v.CreatedBy == disk.OperationID(op) { // else another import's base, whose sidecar follows
		err = tx.Volumes.Update(ctx, v)
	}
	if err == nil && v.ID != a.Volume {
		err = tx.Volumes.Delete(ctx, a.Volume)
	}
	if err != nil {
		return err
	}
	if a.Heal != "" {
		return e.emit(ctx, tx, "volume.ready", volumeSubject(v), op)
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

func (e *Engine) unpublishBase(ctx context.Context, a importArgs, c *journal.Call) error {
	r, err := e.importRecords(ctx, a, c.Op.ID)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if r.twin != nil {
		return nil // another's, or taken back with what was staged
	}
	p, err := e.poolOf(ctx, a.Pool)
	if err != nil {
		return err
	}
	return p.Delete(ctx, r.volume)
}
