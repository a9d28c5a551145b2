package engine

import (
	"context"
	"errors"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// Images lists images with their bases.
func (e *Engine) Images(ctx context.Context, p api.Page) (api.List[api.Image], error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.List[api.Image], error) {
		rows, next, err := tx.Images.List(ctx, pageQuery(p))
		return listed(ctx, rows, next, err, e.view(tx).image)
	})
}

// Image shows one image.
func (e *Engine) Image(ctx context.Context, ref string) (api.Image, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.Image, error) {
		i, err := findImage(ctx, tx, ref)
		if err != nil {
			return api.Image{}, err
		}
		return e.view(tx).image(ctx, i)
	})
}

func imageSubject(i disk.Image) journal.Subject {
	return journal.Subject{Type: "image", ID: string(i.ID), Name: i.Name}
}

// ImageRename gives an image another name, in the records and in the sidecars
// of its bases.
func (e *Engine) ImageRename(ctx context.Context, o api.Options, ref, name string) (api.Outcome, error) {
	if err := disk.CheckName("image", name); err != nil {
		return api.Outcome{}, err
	}
	request := renamed{ref, name}
	if out, err := e.seen(ctx, o, "image.rename", request); out != nil || err != nil {
		return answer(out, err)
	}
	i, bases, err := e.imageBases(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("image.rename", imageSubject(i))
	d.request, d.resources = request, []string{"image:" + string(i.ID)}
	d.steps = []journal.Step{sidecarStep(bases)}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		i, err := tx.Images.Get(ctx, i.ID)
		if err != nil {
			return err
		}
		if err := settled(ctx, tx, i); err != nil {
			return err
		}
		i.Name, i.UpdatedAt = name, e.now()
		i.Generation++
		if err := tx.Images.Update(ctx, i); err != nil {
			return err
		}
		return touchVolumes(ctx, tx, bases)
	}
	return e.submit(ctx, o, d)
}

// settled returns errs.Busy while a base of image i is being made or deleted:
// its sidecar names the image and could not follow.
func settled(ctx context.Context, tx *store.Tx, i disk.Image) error {
	bases, err := basesOf(ctx, tx, i.Content)
	for _, b := range bases {
		if b.State == disk.VolumeCreating || b.State == disk.VolumeDeleting {
			return errs.New(errs.Busy, "image", i.Name, "a base of image %s is %s", i.Name, b.State).WithHint("wait for its operation: tarn operation list")
		}
	}
	return err
}

// imageBases finds a ready image and its bases, whose pools must be active.
func (e *Engine) imageBases(ctx context.Context, ref string) (disk.Image, []disk.Volume, error) {
	i, bases, err := e.readyImage(ctx, ref)
	if err == nil {
		err = e.needPools(ctx, bases)
	}
	return i, bases, err
}

// readyImage finds a ready image and its bases.
func (e *Engine) readyImage(ctx context.Context, ref string) (i disk.Image, bases []disk.Volume, err error) {
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if i, err = findImage(ctx, tx, ref); err != nil {
			return err
		}
		bases, err = basesOf(ctx, tx, i.Content)
		return err
	})
	if err != nil {
		return i, nil, err
	}
	if i.State != disk.ImageReady {
		return i, nil, errs.New(errs.Busy, "image", i.Name, "image %s is %s", i.Name, i.State).WithHint("wait for its operation or cancel it: tarn operation list")
	}
	return i, bases, nil
}

// ImageDelete forgets an image. Bases that disks read from stay until the last
// of them is gone; the others go with the image's last name.
func (e *Engine) ImageDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "image.delete", named{ref}); out != nil || err != nil {
		return answer(out, err)
	}
	for {
		out, err := e.imageDelete(ctx, o, ref)
		if !errors.Is(err, errMoved) || ctx.Err() != nil {
			return out, err
		}
	}
}

// errMoved says that what a plan was made from changed before it was recorded.
var errMoved = errors.New("the plan's premise changed")

func (e *Engine) imageDelete(ctx context.Context, o api.Options, ref string) (api.Outcome, error) {
	i, bases, err := e.imageBases(ctx, ref)
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("image.delete", imageSubject(i))
	d.request = named{ref}
	d.resources = []string{"image:" + string(i.ID)}
	var kept, gone []disk.Volume
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		kept, gone, err = e.partition(ctx, tx, i, bases)
		return err
	})
	if err != nil {
		return api.Outcome{}, err
	}
	for _, b := range gone {
		d.resources = append(d.resources, "volume:"+string(b.ID))
		d.steps = append(d.steps, journal.NewStep(stepVolumeDelete, volumeArgs{Volume: b.ID}))
		d.notes = append(d.notes, "deletes the unreferenced base "+b.Name+" ("+disk.FormatSize(b.Allocated)+")")
	}
	d.steps = append(d.steps, sidecarStep(kept)) // last: one that cannot be written keeps nothing from being deleted
	for _, b := range kept {
		d.notes = append(d.notes, "keeps base "+b.Name+", which is still needed")
	}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		if err := settled(ctx, tx, i); err != nil {
			return err
		}
		stay, _, err := e.partition(ctx, tx, i, bases)
		if err != nil {
			return err
		}
		if len(stay) != len(kept) {
			return errMoved
		}
		for _, b := range gone {
			if err := e.markBaseDeleting(ctx, tx, b); err != nil {
				return err
			}
		}
		if err := touchVolumes(ctx, tx, kept); err != nil {
			return err
		}
		return tx.Images.Delete(ctx, i.ID)
	}
	return e.submit(ctx, o, d)
}

// partition splits the bases of an image that goes away into those that stay,
// because a disk or an export reads from them or another image has the same
// content, and those that go.
func (e *Engine) partition(ctx context.Context, tx *store.Tx, i disk.Image, bases []disk.Volume) (kept, gone []disk.Volume, err error) {
	named, err := tx.Images.Count(ctx, store.Eq("content", i.Content))
	if err != nil {
		return nil, nil, err
	}
	users := e.baseUsers(tx)
	for _, b := range bases {
		refs, err := users.of(ctx, b)
		if err != nil {
			return nil, nil, err
		}
		if named > 1 || refs > 0 || e.exports.count(b.ID) > 0 {
			kept = append(kept, b)
		} else {
			gone = append(gone, b)
		}
	}
	return kept, gone, nil
}

// baseUsers counts the volumes that read from bases.
type baseUsers struct {
	e      *Engine
	tx     *store.Tx
	clones map[cloned]int // nil until it is asked for
}

// cloned is a content in a pool whose technology keeps a base that has clones,
// of which no record speaks.
type cloned struct {
	pool    disk.PoolID
	content string
}

func (e *Engine) baseUsers(tx *store.Tx) *baseUsers { return &baseUsers{e: e, tx: tx} }

// of counts those that read from base b: the volumes whose records say so, and
// in a pool that holds bases each disk with the base's content.
func (r *baseUsers) of(ctx context.Context, b disk.Volume) (int, error) {
	n, err := r.tx.Volumes.Count(ctx, store.Eq("backing_id", b.ID))
	if p, open := r.e.pools.get(b.PoolID); err != nil || !open || !p.Caps.HeldBases {
		return n, err
	}
	if r.clones == nil {
		if err := r.count(ctx); err != nil {
			return n, err
		}
	}
	return n + r.clones[cloned{b.PoolID, b.Content}], nil
}

func (r *baseUsers) count(ctx context.Context) error {
	disks, _, err := r.tx.Disks.List(ctx, store.Query{})
	if err != nil {
		return err
	}
	r.clones = map[cloned]int{}
	for _, d := range disks {
		if d.Source.Kind != "image" {
			continue
		}
		v, err := r.tx.Volumes.Get(ctx, d.VolumeID)
		if err != nil {
			return err
		}
		if v.Backing == nil {
			r.clones[cloned{v.PoolID, d.Source.Content}]++
		}
	}
	return nil
}

// markBaseDeleting moves a base that nothing refers to or reads, and that is
// still as it was read, to the state deleting.
func (e *Engine) markBaseDeleting(ctx context.Context, tx *store.Tx, was disk.Volume) error {
	id := was.ID
	b, err := tx.Volumes.Get(ctx, id)
	if err != nil {
		return err
	}
	if b.State != was.State {
		return errs.New(errs.Busy, "cache", b.Name, "%s is %s by now", b.Name, b.State).WithHint("try again")
	}
	refs, err := e.baseUsers(tx).of(ctx, b)
	if err != nil {
		return err
	}
	if refs > 0 {
		return errs.New(errs.Busy, "cache", b.Name, "%d volumes read from %s", refs, b.Name).WithHint("try again")
	}
	if e.exports.count(id) > 0 {
		return errs.New(errs.Busy, "cache", b.Name, "an export reads from %s", b.Name).WithHint("try again when it is done")
	}
	b.State = disk.VolumeDeleting
	return tx.Volumes.Update(ctx, b)
}

// Cache lists the bases of all pools.
func (e *Engine) Cache(ctx context.Context, p api.Page) (api.List[api.CacheEntry], error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (api.List[api.CacheEntry], error) {
		rows, next, err := tx.Volumes.List(ctx, pageQuery(p, store.Eq("kind", disk.KindBase), store.Eq("adopted", false)))
		v, users := e.view(tx), e.baseUsers(tx)
		return listed(ctx, rows, next, err, func(ctx context.Context, b disk.Volume) (api.CacheEntry, error) { return v.base(ctx, b, users) })
	})
}

func (v *view) base(ctx context.Context, b disk.Volume, r *baseUsers) (api.CacheEntry, error) {
	out := api.CacheEntry{Volume: string(b.ID), Images: []string{}, Content: b.Content, Format: string(b.Format), State: string(b.State),
		VirtualSize: b.VirtualSize, Allocated: b.Allocated, Extents: b.Extents, Pinned: b.Pinned, CreatedAt: b.CreatedAt, UpdatedAt: b.UpdatedAt}
	p, err := v.pool(ctx, b.PoolID)
	if err != nil {
		return out, err
	}
	out.Pool = p.Name
	if b.Content != "" {
		images, _, err := v.tx.Images.List(ctx, store.Query{Where: []store.Where{store.Eq("content", b.Content)}})
		if err != nil {
			return out, err
		}
		for _, i := range images {
			out.Images = append(out.Images, i.Name)
		}
	}
	out.References, err = r.of(ctx, b)
	return out, err
}

// cached finds an image, a pool and the image's base there, which is empty if
// there is none.
func (e *Engine) cached(ctx context.Context, image, pool string) (i disk.Image, p disk.Pool, base disk.Volume, err error) {
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		if i, err = findImage(ctx, tx, image); err != nil {
			return err
		}
		if p, err = e.choosePool(ctx, tx, pool); err != nil {
			return err
		}
		base, err = baseIn(ctx, tx, p.ID, i.Content)
		return ignore(errs.NotFound, err)
	})
	return i, p, base, err
}

// CacheUnpin lets age decide about an image's base in a pool again.
func (e *Engine) CacheUnpin(ctx context.Context, o api.Options, r api.CacheUnpin) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "cache.unpin", r); out != nil || err != nil {
		return answer(out, err)
	}
	i, p, base, err := e.cached(ctx, r.Image, r.Pool)
	switch {
	case err != nil:
		return api.Outcome{}, err
	case base.ID == "":
		return api.Outcome{}, errs.New(errs.NotFound, "cache.unpin", i.Name, "pool %s has no base of image %s", p.Name, i.Name)
	}
	return e.pin(ctx, o, newDraft("cache.unpin", imageSubject(i)), base, false, r)
}

// pin records, and has the sidecar say, whether age may remove a base.
func (e *Engine) pin(ctx context.Context, o api.Options, d draft, base disk.Volume, pinned bool, request any) (api.Outcome, error) {
	if base.Pinned == pinned {
		return e.present(ctx, o, d.kind, d.subject, request)
	}
	if err := e.needPools(ctx, []disk.Volume{base}); err != nil {
		return api.Outcome{}, err
	}
	d.request, d.resources = request, []string{"volume:" + string(base.ID)}
	d.steps = []journal.Step{sidecarStep([]disk.Volume{base})}
	d.notes = []string{"pins " + base.Name}
	if !pinned {
		d.notes = []string{"lets age decide about " + base.Name}
	}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		now, err := tx.Volumes.Get(ctx, base.ID)
		if err != nil {
			return err
		}
		if now.State != base.State {
			return errs.New(errs.Busy, d.kind, now.Name, "%s is %s by now", now.Name, now.State).WithHint("try again")
		}
		now.Pinned = pinned
		now.Generation++
		return tx.Volumes.Update(ctx, now)
	}
	return e.submit(ctx, o, d)
}

// CacheAdd puts an image's base into a pool that has none yet, or has lost it.
// With r.Pin it stays there whatever its age.
func (e *Engine) CacheAdd(ctx context.Context, o api.Options, r api.CacheAdd) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "cache.add", r); out != nil || err != nil {
		return answer(out, err)
	}
	i, p, base, err := e.cached(ctx, r.Image, r.Pool)
	if err != nil {
		return api.Outcome{}, err
	}
	switch base.State {
	case disk.VolumeReady:
		return e.pin(ctx, o, newDraft("cache.add", imageSubject(i)), base, r.Pin || base.Pinned, r)
	case disk.VolumeCreating:
		if r.Pin {
			return api.Outcome{}, errs.New(errs.Busy, "cache.add", i.Name, "the base of image %s is just being made", i.Name).WithHint("pin it when it is there")
		}
		op, err := e.runner.Get(ctx, journal.ID(base.CreatedBy))
		v := operationView(op)
		return api.Outcome{Operation: &v}, err
	case disk.VolumeDeleting:
		return api.Outcome{}, errs.New(errs.Busy, "cache.add", i.Name, "the base of image %s is just being deleted", i.Name).WithHint("try again")
	case disk.VolumeCorrupt, disk.VolumeQuarantined:
		return api.Outcome{}, damaged("cache.add", base)
	}
	d, err := e.draftBase(ctx, i, p, base, r.Pin)
	if err != nil {
		return api.Outcome{}, err
	}
	d.request = r
	return e.submit(ctx, o, d)
}

// CachePrune removes bases that no disk reads from, never an image's last
// copy. Age decides only among the unreferenced.
func (e *Engine) CachePrune(ctx context.Context, o api.Options, r api.CachePrune) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "cache.prune", r); out != nil || err != nil {
		return answer(out, err)
	}
	age, err := pruneAge(r.OlderThan)
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("cache.prune", journal.Subject{Type: "pool"})
	d.request = r
	var victims []disk.Volume
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) (err error) {
		var only disk.Pool
		if r.Pool != "" {
			if only, err = findPool(ctx, tx, r.Pool); err != nil {
				return err
			}
			d.subject = poolSubject(only)
		}
		victims, err = e.prunable(ctx, tx, only.ID, age)
		return err
	})
	if err != nil {
		return api.Outcome{}, err
	}
	if err := e.needPools(ctx, victims); err != nil {
		return api.Outcome{}, err
	}
	for _, b := range victims {
		d.resources = append(d.resources, "volume:"+string(b.ID))
		d.steps = append(d.steps, journal.NewStep(stepVolumeDelete, volumeArgs{Volume: b.ID}))
		d.notes = append(d.notes, "deletes the unreferenced base "+b.Name+" ("+disk.FormatSize(b.Allocated)+")")
	}
	if len(victims) == 0 {
		return e.present(ctx, o, "cache.prune", d.subject, r)
	}
	d.intent = func(ctx context.Context, tx *store.Tx) error {
		for _, b := range victims {
			if err := e.markPruned(ctx, tx, b); err != nil {
				return err
			}
		}
		return nil
	}
	return e.submit(ctx, o, d)
}

func pruneAge(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	age, err := time.ParseDuration(s)
	if err != nil || age < 0 {
		return 0, errs.New(errs.Invalid, "cache.prune", s, "%q is not a length of time", s).WithHint("write for example 36h or 90m")
	}
	return age, nil
}

// prunable returns the bases that may go: of those without references that are
// old enough, all but one copy of each image's content. One that is out of use is
// no copy; it stays where there is none, because an import makes it again.
func (e *Engine) prunable(ctx context.Context, tx *store.Tx, only disk.PoolID, age time.Duration) ([]disk.Volume, error) {
	bases, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("kind", disk.KindBase), store.Eq("adopted", false)}})
	if err != nil {
		return nil, err
	}
	copies := map[string]int{}
	for _, b := range bases {
		copies[b.Content] += copyCount(b)
	}
	var out []disk.Volume
	users := e.baseUsers(tx)
	for _, b := range bases {
		if b.Pinned || copyCount(b) == 0 && !(around{volume: b}).out() {
			continue // or an operation is at work on it
		}
		if only != "" && b.PoolID != only || e.now().Sub(b.UpdatedAt) < age || e.exports.count(b.ID) > 0 {
			continue
		}
		refs, err := users.of(ctx, b)
		if err != nil {
			return nil, err
		}
		named, err := tx.Images.Count(ctx, store.Eq("content", b.Content))
		if err != nil {
			return nil, err
		}
		if refs > 0 || named > 0 && copies[b.Content]-copyCount(b) < 1 {
			continue
		}
		copies[b.Content] -= copyCount(b)
		out = append(out, b)
	}
	return out, nil
}

// copyCount counts base b as a copy of its content, if it is one.
func copyCount(b disk.Volume) int { return boolInt(b.State == disk.VolumeReady) }

// markPruned marks one base unless its image would be left without a copy.
func (e *Engine) markPruned(ctx context.Context, tx *store.Tx, b disk.Volume) error {
	named, err := tx.Images.Count(ctx, store.Eq("content", b.Content))
	if err != nil {
		return err
	}
	copies, err := tx.Volumes.Count(ctx, store.Eq("kind", disk.KindBase), store.Eq("content", b.Content), store.Eq("state", disk.VolumeReady), store.Eq("adopted", false))
	if err != nil {
		return err
	}
	if named > 0 && copies-copyCount(b) < 1 {
		return errs.New(errs.Busy, "cache.prune", b.Name, "%s has become the last copy of its image", b.Name).WithHint("try again")
	}
	now, err := tx.Volumes.Get(ctx, b.ID)
	if err != nil {
		return err
	}
	if now.Pinned {
		return errs.New(errs.Busy, "cache.prune", b.Name, "%s was pinned meanwhile", b.Name).WithHint("try again")
	}
	return e.markBaseDeleting(ctx, tx, b)
}
