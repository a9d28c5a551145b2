package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// scrubRate is how many bytes a second a scrub reads that was told no rate.
const scrubRate = 64 << 20

// scrubArgs is what base.scrub/v1 reads.
type scrubArgs struct {
	Pool disk.PoolID `json:"pool,omitempty"` // none: every one
	Rate int64       `json:"rate"`

	Repair bool `json:"repair,omitempty"`
}

// scrubbed is how far base.scrub/v1 has come.
type scrubbed struct {
	After   disk.VolumeID `json:"after,omitempty"` // bases up to it were read
	Done    int64         `json:"done,omitempty"`  // bytes
	Corrupt []corruptBase `json:"corrupt,omitempty"`
	Unread  []api.Problem `json:"unread,omitempty"`
	Away    int           `json:"away,omitempty"` // bases in pools that are not active
}

// corruptBase is a base that does not hold what its record says.
type corruptBase struct {
	Base      disk.VolumeID `json:"base"`
	BackendID string        `json:"backend_id"`
	Sum       string        `json:"sum,omitempty"`
	Why       string        `json:"why,omitempty"`  // where it could not be read to its end
	Gone      bool          `json:"gone,omitempty"` // it has no bytes
	Object    string        `json:"object"`         // as a person names it
}

// Scrub reads every base of a pool, or of all, and compares it with its content
// digest. A corrupt one is taken out of use at once, and with r.Repair made again:
// from another pool's copy, else from where its image came. The operation's result
// is a Report.
func (e *Engine) Scrub(ctx context.Context, o api.Options, r api.Scrub) (api.Outcome, error) {
	const op = "cache.scrub"
	if out, err := e.seen(ctx, o, op, r); out != nil || err != nil {
		return answer(out, err)
	}
	if r.Rate < 0 {
		return api.Outcome{}, errs.New(errs.Invalid, op, r.Pool, "a rate of %d bytes a second", r.Rate)
	}
	d := newDraft(op, journal.Subject{Type: "pool"})
	d.request, d.resources = r, []string{"scrub:bases"}
	a := scrubArgs{Rate: r.Rate, Repair: r.Repair}
	if r.Rate == 0 {
		a.Rate = scrubRate
	}
	if r.Pool != "" {
		p, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return findPool(ctx, tx, r.Pool) })
		if err == nil {
			_, err = e.pool(p)
		}
		if err != nil {
			return api.Outcome{}, err
		}
		d.subject, a.Pool = poolSubject(p), p.ID
	}
	bases, err := e.scrubbable(ctx, a.Pool, "")
	if err != nil {
		return api.Outcome{}, err
	}
	bases = slices.DeleteFunc(bases, func(b disk.Volume) bool { return b.State != disk.VolumeReady })
	d.notes = []string{fmt.Sprintf("reads %d bases (%s) at up to %s a second", len(bases), disk.FormatSize(contentBytes(bases)), disk.FormatSize(a.Rate))}
	d.steps = []journal.Step{journal.NewStep(stepBaseScrub, a)}
	return e.submit(ctx, o, d)
}

// scrubbable returns the bases of one pool, or of all, whose ids follow after: the
// ready ones, those out of use that can be healed, and those that were adopted,
// which a person may have restored. What a base reads from comes before it.
func (e *Engine) scrubbable(ctx context.Context, only disk.PoolID, after disk.VolumeID) ([]disk.Volume, error) {
	where := []store.Where{store.Eq("kind", disk.KindBase)}
	if only != "" {
		where = append(where, store.Eq("pool_id", only))
	}
	bases, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (v []disk.Volume, err error) {
		v, _, err = tx.Volumes.List(ctx, store.Query{Where: where, After: string(after)})
		return v, err
	})
	return slices.DeleteFunc(bases, func(b disk.Volume) bool {
		return b.Content == "" || b.State != disk.VolumeReady && !healable(b) && !(b.Adopted && (around{volume: b}).out())
	}), err
}

func contentBytes(bases []disk.Volume) (n int64) {
	for _, b := range bases {
		n += b.ContentSize
	}
	return n
}

// baseScrub reads bases, one after another: step base.scrub/v1. First all are
// read, then the corrupt ones are made again, so that no copy is made of a corrupt
// base that was not read yet.
func (e *Engine) baseScrub() journal.Handler[*store.Tx] {
	return simple{act: func(ctx context.Context, c *journal.Call) error {
		var a scrubArgs
		if err := c.Args(&a); err != nil {
			return err
		}
		var s scrubbed
		if len(c.Step.Cursor) > 0 {
			if err := json.Unmarshal(c.Step.Cursor, &s); err != nil {
				return errs.New(errs.Corrupt, c.Step.Kind, string(c.Op.ID), "the cursor does not decode: %w", err)
			}
		}
		if err := e.scrubBases(ctx, c, a, &s); err != nil {
			return errs.Wrap(err, "cache.scrub", c.Op.Subject.Name)
		}
		r := api.Report{Problems: append([]api.Problem{}, s.Unread...)}
		if s.Away > 0 {
			r.Notes = []string{fmt.Sprintf("%d bases were not read: their pools are not active", s.Away)}
		}
		for _, bad := range s.Corrupt {
			ps, err := e.settleBase(ctx, c, bad, a.Repair)
			if err != nil {
				return errs.Wrap(err, "cache.scrub", bad.Object)
			}
			r.Problems = append(r.Problems, ps...)
			c.Progress(s.Done, s.Done, "bytes") // what it waited for has told its own
		}
		return c.SetResult(r)
	}}
}

func (e *Engine) scrubBases(ctx context.Context, c *journal.Call, a scrubArgs, s *scrubbed) error {
	bases, err := e.scrubbable(ctx, a.Pool, s.After)
	if err != nil {
		return err
	}
	total := s.Done + contentBytes(bases)
	limit := &throttle{rate: a.Rate, now: e.now}
	for _, b := range bases {
		var bad *corruptBase
		var err error
		if p, ok := e.pools.get(b.PoolID); ok {
			bad, err = e.scrubBase(ctx, p, b, limit, func(done int64) { c.Progress(s.Done+done, total, "bytes") })
		} else {
			s.Away++
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			s.Unread = append(s.Unread, api.Problem{Invariant: "I5", Object: b.Name, Detail: "base " + b.Name + " cannot be read: " + message(err),
				Repair: "see to the storage of its pool; what it holds is not known"})
		case bad != nil:
			s.Corrupt = append(s.Corrupt, *bad)
		}
		s.After, s.Done = b.ID, s.Done+b.ContentSize
		c.Progress(s.Done, total, "bytes")
		if err := c.SaveCursor(ctx, s); err != nil {
			return err
		}
		if bad != nil {
			if err := e.quarantine(ctx, *bad); err != nil {
				return err
			}
		}
	}
	return nil
}

// scrubBase reads one base. It returns nil if it holds what its record says, or
// reads from one that does not. One that is out of use already is not read, unless
// it was adopted.
func (e *Engine) scrubBase(ctx context.Context, p *pool.Pool, b disk.Volume, limit *throttle, progress func(done int64)) (*corruptBase, error) {
	record, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, b.PoolID) })
	if err != nil {
		return nil, err
	}
	bad := &corruptBase{Base: b.ID, BackendID: b.BackendID, Object: record.Name + "/" + b.Name}
	if b.State != disk.VolumeReady {
		bad.BackendID, bad.Why = "", fmt.Sprintf("is recorded as %s", b.State)
		if b.Adopted && b.State == disk.VolumeQuarantined {
			err = e.scrubRestored(ctx, p, b, bad, limit, progress)
		}
		return bad, err
	}
	chain, err := e.chain(ctx, b)
	if err == nil && !allReady(chain[1:]) {
		return nil, nil // it is named with what it reads from
	}
	if err == nil {
		bad.Sum, err = e.sumBase(ctx, p, chain, limit, progress)
	}
	switch {
	case errors.Is(err, errs.Corrupt) && ctx.Err() == nil:
		bad.Why = "is not what its record says: " + message(err)
		if _, err := p.Describe(ctx, pool.Ref(b)); errors.Is(err, errs.NotFound) {
			bad.Gone, bad.Why = true, "is on record, and its bytes are not in the pool"
		}
	case err != nil || bad.Sum == b.Content:
		return nil, err
	}
	return bad, nil
}

// sumBase returns the digest of what the first volume of a chain, a base, reads as.
func (e *Engine) sumBase(ctx context.Context, p *pool.Pool, chain []disk.Volume, limit *throttle, progress func(done int64)) (string, error) {
	defer e.reading.take(chain[0].PoolID)()
	in, err := p.OpenChain(ctx, chain, driver.Base)
	if err != nil {
		return "", err
	}
	defer in.Close()
	return blkio.SumSource(ctx, throttled{in, ctx, limit}, chain[0].ContentSize, progress)
}

// still returns the base if it is the one that was found corrupt: it may have
// been deleted meanwhile, or made again before a restart.
func (e *Engine) still(ctx context.Context, bad corruptBase) (b disk.Volume, same bool, err error) {
	b, err = query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Volume, error) { return tx.Volumes.Get(ctx, bad.Base) })
	if errors.Is(err, errs.NotFound) {
		return b, false, nil
	}
	return b, err == nil && (b.State != disk.VolumeReady || b.BackendID == bad.BackendID), err
}

// quarantine takes a corrupt base out of use.
func (e *Engine) quarantine(ctx context.Context, bad corruptBase) error {
	b, same, err := e.still(ctx, bad)
	if err != nil || !same || b.State != disk.VolumeReady {
		return err
	}
	if bad.Gone {
		return e.mark(ctx, b, disk.VolumeLost)
	}
	return e.mark(ctx, b, disk.VolumeQuarantined)
}

// settleBase tells what became of a corrupt base, and has it healed if that was
// asked for; a repeat goes on where an earlier call ended. The second problem is
// that of the disks that were made from it, if there are any.
func (e *Engine) settleBase(ctx context.Context, c *journal.Call, bad corruptBase, repair bool) ([]api.Problem, error) {
	if err := e.quarantine(ctx, bad); err != nil {
		return nil, err
	}
	b, same, err := e.still(ctx, bad)
	if err == nil && b.State == disk.VolumeCreating { // somebody makes it again, or this scrub did before a restart
		if _, err = e.await(ctx, c, journal.ID(b.CreatedBy)); err == nil {
			b, same, err = e.still(ctx, bad)
		}
	}
	if err != nil {
		return nil, err
	}
	found := api.Problem{Invariant: "I5", Object: bad.Object, Detail: fmt.Sprintf("base %s reads as %s, which is not what was %s", bad.Object, bad.Sum, cameBy(b))}
	if bad.Why != "" {
		found.Detail = "base " + bad.Object + " " + bad.Why
	}
	over, of, err := e.dependants(ctx, bad.Base)
	if err != nil {
		return nil, err
	}
	if len(over) > 0 {
		found.Detail += "; what reads from it: " + enumerate(over)
		found.Disks = over
	}
	out := []api.Problem{found}
	if len(of) > 0 && bad.BackendID != "" && !bad.Gone { // found now: another run does not tell again
		out = append(out, api.Problem{Invariant: "I5", Object: bad.Object, Disks: of,
			Detail: "disks that were made from base " + bad.Object + " may hold what is wrong in it: " + enumerate(of),
			Repair: "compare them with a backup, or make them anew: healing the base does not change them"})
	}
	p := &out[0]
	switch {
	case !same:
		p.Repair, p.Repaired = "it was deleted or made again meanwhile", true
		return out, nil
	case b.Adopted:
		p.Repair, p.Repaired = e.settleAdopted(ctx, b, bad, repair)
		return out, ctx.Err()
	case !repair:
		p.Repair, err = e.prospect(ctx, b)
		return out, err
	}
	from, err := e.heal(ctx, c, b)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		p.Repair = "nobody can use it, and it could not be made again: " + message(err)
		var e *errs.Error
		if errors.As(err, &e) && e.Hint != "" {
			p.Repair += "; " + e.Hint
		}
		return out, nil
	}
	p.Repair, p.Repaired = "made it again from "+from, true
	if bad.BackendID != "" && !bad.Gone {
		p.Repair += "; the corrupt one is in the pool's quarantine"
	}
	return out, nil
}

// prospect says what can be done about base b, which is out of use.
func (e *Engine) prospect(ctx context.Context, b disk.Volume) (string, error) {
	ways, err := e.ways(ctx, b)
	if err != nil || len(ways) == 0 {
		return "nobody can use it; " + e.advice(ctx, b), err
	}
	return "nobody can use it; tarn doctor --scrub --repair makes it again from " + ways[0].from, nil
}

// dependants names the disks that read from a base, and those of its pool that
// were made from it and have what it held for their own.
func (e *Engine) dependants(ctx context.Context, id disk.VolumeID) (over, of []string, err error) {
	err = e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		over, of = nil, nil
		b, err := tx.Volumes.Get(ctx, id)
		if err != nil {
			return ignore(errs.NotFound, err)
		}
		reading, err := readers(ctx, tx, id)
		for _, v := range reading {
			over = append(over, v.name)
		}
		if err != nil || b.Adopted { // no disk is made from one
			return err
		}
		disks, _, err := tx.Volumes.List(ctx, store.Query{Where: []store.Where{store.Eq("pool_id", b.PoolID), store.Eq("kind", disk.KindDisk), store.Eq("backing_id", nil)}})
		for _, v := range disks {
			if err != nil {
				return err
			}
			var r diskRecords
			if r, err = recordsOf(ctx, tx, v.ID); err == nil && r.disk.Source.Kind == "image" && r.disk.Source.Content == b.Content {
				of = append(of, diskSubject(r).Name)
			}
			err = ignore(errs.NotFound, err) // doctor tells of it
		}
		return err
	})
	return over, of, err
}

// throttle lets rate bytes a second through.
type throttle struct {
	rate int64
	now  func() time.Time
	mu   sync.Mutex
	next time.Time
}

// wait waits until n more bytes may come.
func (t *throttle) wait(ctx context.Context, n int) error {
	t.mu.Lock()
	now := t.now()
	if t.next.Before(now) {
		t.next = now
	}
	due := t.next.Sub(now)
	t.next = t.next.Add(time.Duration(float64(n) / float64(t.rate) * float64(time.Second)))
	t.mu.Unlock()
	timer := time.NewTimer(due)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// throttled is a source that is read no faster than limit lets it be.
type throttled struct {
	blkio.Source
	ctx   context.Context
	limit *throttle
}

func (t throttled) ReadAt(p []byte, off int64) (int, error) {
	if err := t.limit.wait(t.ctx, len(p)); err != nil {
		return 0, err
	}
	return t.Source.ReadAt(p, off)
}
