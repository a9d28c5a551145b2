package engine

import (
	"context"
	"errors"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// A base that does not hold its content, or is gone, is healed: made again under
// its record, from bytes that were verified, so that what reads from it reads
// what was imported (I6). The old object stays until the new bytes are complete
// and is kept aside then. Nothing that reads from it may be in use meanwhile: the
// record is not ready, so that no disk over it is attached or exported, and what
// has one already is refused.

// maxSource is how long a URL or a name of an image's source may be to be kept.
const maxSource = 1024

// imageSource is what is kept of where an image comes from: a public URL, or
// what the bytes that came with the call were called.
func imageSource(name string, d api.ImageDetails, c claim) *disk.ImageSource {
	s := disk.ImageSource{URL: d.URL, Compression: c.Compression}
	switch {
	case d.URL != "" && len(d.URL) <= maxSource && len(d.Description) == 0:
		s.Cloud = d.Cloud
	case name == "" || name == ingest.Stdin || len(name) > maxSource:
		return nil
	default:
		s.URL, s.Name = "", name
	}
	return &s
}

// healable reports whether b is out of use, tarn made it, and its record says which
// content it is to have.
func healable(b disk.Volume) bool {
	_, sum, _ := strings.Cut(b.Content, ":")
	return !b.Adopted && (around{volume: b}).out() && len(sum) >= 32 && b.Name == BaseName(b.Content, b.Format)
}

// way is one way to get a base's content again.
type way struct {
	id, from string // of what it comes from, for requests and for people
	draft    func(ctx context.Context) (draft, error)
}

// healed is what a copy of a base, as the heal of another, is asked for with.
type healed struct {
	Base disk.VolumeID `json:"base"`
	From disk.VolumeID `json:"from"`
}

// ways returns how base b can be had again: copies in other pools first.
func (e *Engine) ways(ctx context.Context, b disk.Volume) ([]way, error) {
	if !healable(b) {
		return nil, nil
	}
	var out []way
	err := e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		out = nil
		at, err := tx.Pools.Get(ctx, b.PoolID)
		if err != nil {
			return err
		}
		images, _, err := tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", b.Content), store.Eq("state", disk.ImageReady)}})
		if err != nil {
			return err
		}
		i := disk.Image{Name: b.Name, Content: b.Content} // only disks know it by now
		if len(images) > 0 {
			i = images[0]
		}
		bases, err := basesOf(ctx, tx, b.Content)
		if err != nil {
			return err
		}
		for _, from := range bases {
			if _, open := e.pools.get(from.PoolID); !open || from.State != disk.VolumeReady {
				continue
			}
			p, err := tx.Pools.Get(ctx, from.PoolID)
			if err != nil {
				return err
			}
			out = append(out, way{string(from.ID), "pool " + p.Name, func(ctx context.Context) (draft, error) {
				d, err := e.draftCopy(ctx, i, at, from, b, b.Pinned)
				d.request = healed{b.ID, from.ID}
				return d, err
			}})
		}
		for _, i := range images {
			if i.Source != nil && i.Source.URL != "" {
				out = append(out, way{string(i.ID), i.Source.URL, func(ctx context.Context) (draft, error) { return e.draftFetch(ctx, i, at, b) }})
			}
		}
		return nil
	})
	return out, err
}

// draftFetch drafts the operation that has image i fetched again, through the
// gate, to heal base b in pool p. What comes must be what was imported.
func (e *Engine) draftFetch(ctx context.Context, i disk.Image, p disk.Pool, b disk.Volume) (draft, error) {
	d := newDraft("cache.heal", imageSubject(i))
	opened, err := e.pool(p)
	if err == nil {
		err = vacant(ctx, opened, p, b)
	}
	if err != nil {
		return d, err
	}
	r := api.ImageImport{Name: i.Name, Format: string(i.Format), SHA256: i.SourceSHA256, Pool: string(p.ID),
		ImageDetails: api.ImageDetails{URL: i.Source.URL, Cloud: i.Source.Cloud, Compression: i.Source.Compression}}
	c, err := e.claim(ctx, r.Format, r.SHA256, r.ImageDetails, p)
	if err != nil {
		return d, err
	}
	a := importArgs{Image: i.ID, Volume: disk.VolumeID(newID()), Pool: p.ID, Domain: p.DomainID, Heal: b.ID, claim: c}
	d.request, d.resources = r, []string{"image:" + string(i.ID), "base:" + string(p.ID) + ":" + b.Content}
	d.steps = []journal.Step{journal.NewStep(stepImageJudge, a), journal.NewStep(stepImageConvert, a), journal.NewStep(stepBasePublish, a),
		journal.NewStep(stepImageReady, a), journal.NewStep(stepSidecars, sidecarArgs{Volumes: []disk.VolumeID{b.ID}})}
	return d, nil
}

// stillThere refuses what a source has now if its size is not the image's.
func (e *Engine) stillThere(ctx context.Context, a importArgs, h ingest.Header) error {
	i, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Image, error) { return tx.Images.Get(ctx, a.Image) })
	if err == nil && h.VirtualSize >= 0 && h.VirtualSize != i.VirtualSize {
		err = errs.New(errs.Conflict, "", "", "another image is there by now: it has %d bytes, not %d", h.VirtualSize, i.VirtualSize)
	}
	return err
}

// vacant refuses to make base b again where something else has its name.
func vacant(ctx context.Context, at *pool.Pool, p disk.Pool, b disk.Volume) error {
	r := pool.Ref(b)
	if b.State == disk.VolumeLost {
		r.BackendID = ""
	}
	_, err := at.Describe(ctx, r)
	switch {
	case err == nil && b.State == disk.VolumeLost:
		return errs.New(errs.Corrupt, "cache.add", b.Name, "%s is recorded as lost, and a file of its name is in pool %s", b.Name, p.Name).
			WithHint("tarn doctor says whether it is the one; else move it out of the pool")
	case errors.Is(err, errs.NotFound):
		return nil
	}
	return err
}

// heal has a base that is out of use made again, by the first way that leads
// there, and says from where. It waits for the operation, which goes on when
// the caller does not.
func (e *Engine) heal(ctx context.Context, c *journal.Call, b disk.Volume) (string, error) {
	if err := e.unread(ctx, b); err != nil {
		return "", err
	}
	ways, err := e.ways(ctx, b)
	if err != nil {
		return "", err
	}
	var why []string
	for _, w := range ways {
		err := e.healBy(ctx, c, b, w)
		if err == nil || ctx.Err() != nil || errors.Is(err, errs.Busy) {
			return w.from, err
		}
		why = append(why, "from "+w.from+": "+message(err))
	}
	if why == nil {
		why = []string{"no other active pool has the content, and it is not known where it can be fetched"}
	}
	return "", errs.New(errs.Corrupt, "cache.heal", b.Name, "%s", strings.Join(why, "; ")).WithHint("%s", e.advice(ctx, b))
}

// healBy submits what w drafts and waits for it. The base's request in one scrub
// is the same after a restart.
func (e *Engine) healBy(ctx context.Context, c *journal.Call, b disk.Volume, w way) error {
	d, err := w.draft(ctx)
	if err != nil {
		return err
	}
	d.kind = "cache.heal"
	out, err := e.submit(ctx, api.Options{RequestID: string(c.Op.ID) + ":" + string(b.ID) + ":" + w.id}, d)
	if err != nil {
		return err
	}
	return e.joined(e.await(ctx, c, journal.ID(out.Operation.ID)))
}

// advice says what a person can do about a base that cannot be had again.
func (e *Engine) advice(ctx context.Context, b disk.Volume) string {
	text := "importing the same bytes under another name into that pool makes it again"
	_ = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error { // what cannot be read is left out
		images, _, err := tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", b.Content), store.Eq("state", disk.ImageReady)}, Limit: 1})
		if err != nil || len(images) == 0 {
			return err
		}
		i := images[0]
		p, err := tx.Pools.Get(ctx, b.PoolID)
		if err != nil {
			return err
		}
		flags := ""
		if s := i.Source; s != nil {
			if s.Name != "" {
				text += "; they came from " + s.Name
			}
			if s.Compression != "" {
				flags = " --compression " + s.Compression
			}
		}
		text += ": tarn image import NAME FILE --format " + string(i.Format) + flags + " --sha256 " + i.SourceSHA256 + " --pool " + p.Name
		return nil
	})
	return text
}

// reader is a volume that reads from another, by itself or through others, and
// what people call it.
type reader struct {
	disk.Volume
	name string
}

// readers returns what reads from base b.
func readers(ctx context.Context, tx *store.Tx, b disk.VolumeID) ([]reader, error) {
	var out []reader
	for todo := []disk.VolumeID{b}; len(todo) > 0; todo = todo[1:] {
		vols, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("backing_id", todo[0])}})
		if err != nil {
			return nil, err
		}
		for _, v := range vols {
			name := v.Name
			if r, err := recordsOf(ctx, tx, v.ID); err == nil {
				name = diskSubject(r).Name
			} else if !errors.Is(err, errs.NotFound) { // not a disk's
				return nil, err
			}
			out, todo = append(out, reader{v, name}), append(todo, v.ID)
		}
	}
	return out, nil
}

// unread returns errs.Busy while anything that reads from base b is in use, or is
// being made of it. A base that is lost has no bytes that anybody could see
// change.
func (e *Engine) unread(ctx context.Context, b disk.Volume) error {
	if b.State == disk.VolumeLost {
		return nil
	}
	vols, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) ([]reader, error) { return readers(ctx, tx, b.ID) })
	if err != nil {
		return err
	}
	var users []string
	for _, v := range vols {
		err := e.notInUse(ctx, "cache.heal", []disk.Volume{v.Volume})
		switch {
		case errors.Is(err, errs.Busy), v.State == disk.VolumeCreating:
			users = append(users, v.name)
		case err != nil && !errors.Is(err, errs.Corrupt): // another file has the disk's name: nobody has the disk
			return err
		}
	}
	if e.exports.count(b.ID) > 0 {
		users = append(users, "an export")
	}
	return inUse(b, users)
}

// inUse refuses to heal base b under its users, if there are any.
func inUse(b disk.Volume, users []string) error {
	if len(users) == 0 {
		return nil
	}
	return errs.New(errs.Busy, "cache.heal", b.Name, "%s is not replaced while what reads from it is in use: %s", b.Name, enumerate(users)).
		WithHint("stop their guests, tarn disk detach DISK, and run tarn doctor --scrub --repair again")
}

// enumerate lists names for a person.
func enumerate(names []string) string {
	const most = 8
	if n := len(names) - most; n > 0 {
		return strings.Join(names[:most], ", ") + " and " + itoa(n) + " more"
	}
	return strings.Join(names, ", ")
}

// remake has the base was, which is out of use, made again as v describes it: the
// identity, which others refer to, stays. From then on nobody is given what reads
// from it.
func remake(ctx context.Context, tx *store.Tx, was, v disk.Volume) error {
	now, err := tx.Volumes.Get(ctx, was.ID)
	if err != nil {
		return err
	}
	if now.State != was.State || now.BackendID != was.BackendID {
		return errs.New(errs.Busy, "cache.heal", now.Name, "base %s is %s by now", now.Name, now.State).WithHint("try again")
	}
	if was.State != disk.VolumeLost {
		if err := unleased(ctx, tx, was); err != nil {
			return err
		}
	}
	v.ID, v.Name, v.Generation, v.CreatedAt, v.Pinned = now.ID, now.Name, now.Generation, now.CreatedAt, now.Pinned || v.Pinned
	return tx.Volumes.Update(ctx, v)
}

// unleased is the part of unread that a transaction can see.
func unleased(ctx context.Context, tx *store.Tx, b disk.Volume) error {
	vols, err := readers(ctx, tx, b.ID)
	if err != nil {
		return err
	}
	var users []string
	for _, v := range vols {
		l, err := leaseOf(ctx, tx, v.ID)
		if err != nil {
			return err
		}
		if l != nil {
			users = append(users, v.name)
		}
	}
	return inUse(b, users)
}

// takeBackBase removes what was to take the place of old, and tells UndoCommit
// whether old is where it was.
func (e *Engine) takeBackBase(ctx context.Context, c *journal.Call, staged disk.VolumeID, old disk.Volume) error {
	p, err := e.poolOf(ctx, old.PoolID)
	if err != nil {
		return err
	}
	return e.makingRoom(ctx, p, func() error {
		kept, err := p.TakeBack(ctx, staged, old)
		c.Hand(kept)
		return err
	})
}

// loseAgain is the undoing of remake. A base whose old object was set aside has
// none.
func loseAgain(ctx context.Context, tx *store.Tx, was disk.Volume, kept bool) error {
	now, err := tx.Volumes.Get(ctx, was.ID)
	if err != nil {
		return err
	}
	if !kept {
		was.State = disk.VolumeLost
	}
	was.Generation = now.Generation
	return tx.Volumes.Update(ctx, was)
}

// madeAgain returns the base that an image.convert/v1 found to be made again, as
// it was, or nil.
func madeAgain(c *journal.Call) (*disk.Volume, error) {
	var r converted
	if len(c.Step.Output) == 0 {
		return nil, nil
	}
	err := c.Output(&r)
	return r.Lost, err
}

// convertedInto is madeAgain for the steps behind it, of an operation that has
// found one.
func convertedInto(c *journal.Call) (disk.Volume, error) {
	for _, s := range c.Op.Steps {
		if s.Kind != stepImageConvert {
			continue
		}
		old, err := madeAgain(&journal.Call{Op: c.Op, Step: &s})
		if err == nil && old != nil {
			return *old, nil
		}
	}
	return disk.Volume{}, errs.New(errs.Internal, c.Op.Kind, string(c.Op.ID), "the operation does not say which base it makes again")
}

// sound returns why what reads from base must not be used now, or nil.
func sound(op, name string, base disk.Volume) error {
	switch {
	case base.State == disk.VolumeReady:
		return nil
	case base.Adopted && (around{volume: base}).out():
		return errs.New(errs.Corrupt, op, name, "it reads from base %s, which is recorded as %s: that does not hold what was adopted", base.Name, base.State).
			WithHint("tarn doctor --scrub says what to do about it")
	case (around{volume: base}).out():
		return errs.New(errs.Corrupt, op, name, "it reads from base %s, which is recorded as %s: that does not hold what was imported", base.Name, base.State).
			WithHint("tarn doctor --scrub --repair makes it again")
	}
	return errs.New(errs.Busy, op, name, "it reads from base %s, which is %s", base.Name, base.State).WithHint("wait for its operation: tarn operation list")
}
