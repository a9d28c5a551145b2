package engine

import (
	"context"
	"errors"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// foreignNamed is how many foreign objects of a pool a note names.
const foreignNamed = 3

// checkStrays looks for objects in pools that no record knows: foreign ones,
// which are noted, orphans, lone sidecars, and what making a volume left.
func (c *checkup) checkStrays(ctx context.Context) error {
	for _, id := range sortedKeys(c.pools) {
		p, ok := c.open(id)
		if !ok {
			continue
		}
		for _, check := range []func(context.Context, disk.Pool, *pool.Pool) error{c.checkObjects, c.checkSidecars, c.checkStaged} {
			err := check(ctx, c.pools[id], p)
			if _, open := c.open(id); !open {
				break // stopped meanwhile
			}
			if err != nil {
				if err := c.leaveOut(ctx, c.pools[id], err); err != nil {
					return err
				}
				break
			}
		}
	}
	return nil
}

// unknown returns those of names that no volume of pool r has.
func (c *checkup) unknown(ctx context.Context, r disk.Pool, names []string) (out []string, err error) {
	err = c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		out = nil
		if _, err := tx.Pools.Get(ctx, r.ID); err != nil {
			return ignore(errs.NotFound, err) // given up meanwhile: nothing of it is expected
		}
		for _, name := range names {
			n, err := tx.Volumes.Count(ctx, store.Eq("pool_id", r.ID), store.Eq("name", name))
			if err != nil {
				return err
			}
			if n == 0 {
				out = append(out, name)
			}
		}
		return nil
	})
	return out, err
}

func ignore(kind errs.Kind, err error) error {
	if errors.Is(err, kind) {
		return nil
	}
	return err
}

// inBatches calls do with at most doctorPage names at a time.
func inBatches(names []string, do func([]string) error) error {
	for len(names) > 0 {
		n := min(len(names), doctorPage)
		if err := do(names[:n]); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

func (c *checkup) checkObjects(ctx context.Context, r disk.Pool, p *pool.Pool) error {
	var names, foreign []string
	var orphans []orphan
	for obj, err := range p.List(ctx) {
		if err != nil {
			return err
		}
		names = append(names, obj.Name)
	}
	c.there = names
	err := inBatches(names, func(batch []string) error {
		strays, err := c.unknown(ctx, r, batch)
		for _, name := range strays {
			if err == nil {
				_, err = p.Sidecar(ctx, name)
			}
			if hasNoSidecar(err) {
				foreign, err = append(foreign, name), nil
			} else if err == nil {
				orphans = append(orphans, c.e.readOrphan(ctx, p, r, name))
			}
		}
		return err
	})
	lowestFirst(orphans, func(o orphan) disk.Volume { return o.sidecar.Volume })
	for _, o := range orphans {
		if err == nil {
			err = c.checkOrphan(ctx, r, p, o)
		}
	}
	if n := len(foreign); n > 0 {
		more := ""
		if n > foreignNamed {
			more = ", ..."
		}
		c.note("pool %s holds %d objects that tarn did not make and leaves alone: %s%s", r.Name, n, strings.Join(foreign[:min(n, foreignNamed)], ", "), more)
	}
	return err
}

// hasNoSidecar reports whether err, of asking for an object's sidecar, says that
// there is none, or that the object's name leaves no room for one.
func hasNoSidecar(err error) bool {
	return errors.Is(err, errs.NotFound) || errors.Is(err, errs.Invalid)
}

// checkOrphan looks at an object that carries tarn's sidecar and has no record.
// It can be taken into the records as pool import would do it, if nothing on
// record contradicts it: that happens when an older copy of the database was
// put back. Else it stays as it is.
func (c *checkup) checkOrphan(ctx context.Context, r disk.Pool, p *pool.Pool, o orphan) error {
	s, err := o.sidecar, o.err
	if _, gone := p.Describe(ctx, driver.Ref{Name: o.name}); errors.Is(gone, errs.NotFound) {
		return nil // deleted meanwhile
	}
	still, uerr := c.unknown(ctx, r, []string{o.name})
	if uerr != nil || len(still) == 0 {
		return uerr
	}
	object := r.Name + "/" + o.name
	f := found("I1", object, "%s carries tarn's sidecar and has no record", object).
		advise("it was left as it is; move it out of the pool if it is not needed")
	if err == nil {
		err = c.e.adoptable(ctx, p, s)
	}
	if err != nil {
		f.detail += ": " + message(err)
	} else {
		f = f.repair("takes it into the records, as its sidecar tells them", func(ctx context.Context) (string, error) {
			err := c.e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return c.e.recordSidecar(ctx, tx, s) })
			return "took it into the records, as its sidecar tells them", err
		})
	}
	c.add(ctx, f)
	return nil
}

// orphan is an object with tarn's sidecar and without a record.
type orphan struct {
	name    string
	sidecar disk.Sidecar
	err     error // why the sidecar does not tell of the object
}

// readOrphan reads the sidecar of the object that has name, and completes it
// with what the driver sees.
func (e *Engine) readOrphan(ctx context.Context, p *pool.Pool, r disk.Pool, name string) orphan {
	o := orphan{name: name}
	data, err := p.Sidecar(ctx, name)
	if err == nil {
		o.sidecar, err = e.readSidecar(ctx, p, driver.Record{Name: name, Data: data})
	}
	if err == nil && o.sidecar.Volume.PoolID != r.ID {
		err = errs.New(errs.Conflict, "doctor", name, "its sidecar was written in another pool (%s)", o.sidecar.Volume.PoolID)
	}
	o.err = err
	return o
}

// adoptable returns why the orphan that s describes cannot be taken into the
// records, or nil. The attempt itself is the test, and is taken back.
func (e *Engine) adoptable(ctx context.Context, p *pool.Pool, s disk.Sidecar) error {
	if s.Volume.State != disk.VolumeReady {
		return errs.New(errs.Conflict, "doctor", s.Volume.Name, "its sidecar says %s", s.Volume.State)
	}
	if _, err := diskfmt.ParseFormat(string(s.Volume.Format)); err != nil {
		return errs.New(errs.Version, "doctor", s.Volume.Name, "%w", err)
	}
	obj, err := p.Describe(ctx, pool.Ref(s.Volume))
	if err != nil {
		return err
	}
	if err := p.Examine(ctx, s.Volume, obj); err != nil {
		return err
	}
	err = e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if err := e.recordSidecar(ctx, tx, s); err != nil {
			return err
		}
		return errRehearsed
	})
	if err == errRehearsed {
		return nil
	}
	return err
}

// checkSidecars looks for sidecars that lie beside nothing and belong to no
// record.
func (c *checkup) checkSidecars(ctx context.Context, r disk.Pool, p *pool.Pool) error {
	beside := make(map[string]bool, len(c.there))
	for _, name := range c.there {
		beside[name] = true
	}
	var lone []string
	for rec, err := range p.Sidecars(ctx) {
		if rec.Name == "" && err != nil {
			return err
		}
		if beside[rec.Name] {
			continue
		}
		if _, err := p.Describe(ctx, driver.Ref{Name: rec.Name}); errors.Is(err, errs.NotFound) {
			lone = append(lone, rec.Name)
		}
	}
	return inBatches(lone, func(batch []string) error {
		strays, err := c.unknown(ctx, r, batch)
		if err != nil {
			return err
		}
		for _, name := range strays {
			data, err := p.Sidecar(ctx, name)
			if errors.Is(err, errs.NotFound) || err == nil && !pool.IsSidecar(data) {
				continue // deleted meanwhile, or somebody else's file
			}
			object := r.Name + "/" + name
			f := found("I14", object, "the sidecar of %s lies there without its volume and without a record", object).
				advise("it tells what the volume was; move it out of the pool if it is not needed")
			if l, ok := p.Driver.(driver.Leftovers); ok {
				f = f.repair("sets it aside", func(ctx context.Context) (string, error) {
					return "set it aside in the pool's quarantine; nothing was deleted", l.SetAside(ctx, driver.Ref{Name: name})
				})
			}
			c.add(ctx, f)
		}
		return nil
	})
}

// checkStaged looks for staged volumes that no unfinished operation owns.
func (c *checkup) checkStaged(ctx context.Context, r disk.Pool, p *pool.Pool) error {
	l, ok := p.Driver.(driver.Leftovers)
	if !ok {
		return nil
	}
	before, err := staged(ctx, l)
	if err != nil || len(before) == 0 {
		return err
	}
	// Whoever makes something was on record before it was there.
	w, err := query(ctx, c.e, underway)
	if err != nil {
		return err
	}
	now, err := staged(ctx, l)
	if err != nil {
		return err
	}
	for id := range before {
		if now[id] && !w.ids[string(made(id))] {
			if err := c.addStaged(ctx, r, p, l, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func staged(ctx context.Context, l driver.Leftovers) (map[disk.VolumeID]bool, error) {
	ids := map[disk.VolumeID]bool{}
	for id, err := range l.Staged(ctx) {
		if err != nil {
			return nil, err
		}
		ids[id] = true
	}
	return ids, nil
}

// made returns the volume in whose making id was staged: raw content and spooled
// input have its id with a suffix.
func made(id disk.VolumeID) disk.VolumeID {
	volume, _, _ := strings.Cut(string(id), ".")
	return disk.VolumeID(volume)
}

func (c *checkup) addStaged(ctx context.Context, r disk.Pool, p *pool.Pool, l driver.Leftovers, id disk.VolumeID) error {
	object := r.Name + "/" + string(id)
	f := found("I1", object, "%s was staged in pool %s, and no operation is making it", id, r.Name)
	op, err := c.maker(ctx, made(id))
	if err != nil {
		return err
	}
	if op != "" {
		c.add(ctx, f.repair("removes it: operation "+string(op)+" made it and has ended", func(ctx context.Context) (string, error) {
			return "removed it: operation " + string(op) + " had made it and has ended", p.Driver.Delete(ctx, driver.Ref{ID: id})
		}))
		return nil
	}
	c.add(ctx, f.repair("sets it aside", func(ctx context.Context) (string, error) {
		return "set it aside in the pool's quarantine, because no operation on record made it; nothing was deleted", l.SetAside(ctx, driver.Ref{ID: id})
	}))
	return nil
}

// maker returns the ended operation that worked on volume id, or "".
func (c *checkup) maker(ctx context.Context, id disk.VolumeID) (journal.ID, error) {
	for after := ""; ; {
		ops, err := query(ctx, c.e, func(ctx context.Context, tx *store.Tx) (ops []journal.Operation, err error) {
			ops, after, err = tx.Operations.List(ctx, store.Query{After: after, Limit: doctorPage})
			return ops, err
		})
		if err != nil {
			return "", err
		}
		for _, op := range ops {
			if op.State.Final() && namedBy(op)[string(id)] {
				return op.ID, nil
			}
		}
		if after == "" {
			return "", nil
		}
	}
}
