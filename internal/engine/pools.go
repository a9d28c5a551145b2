package engine

import (
	"context"
	"errors"
	"math"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// Pools lists pools with their space.
func (e *Engine) Pools(ctx context.Context, p api.Page) (api.List[api.Pool], error) {
	var next string
	rows, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (rows []disk.Pool, err error) {
		rows, next, err = tx.Pools.List(ctx, pageQuery(p))
		return rows, err
	})
	e.askPools(ctx, rows)
	return listed(ctx, rows, next, err, e.poolView)
}

// Pool shows one pool.
func (e *Engine) Pool(ctx context.Context, ref string) (api.Pool, error) {
	r, err := e.poolByRef(ctx, ref)
	if err != nil {
		return api.Pool{}, err
	}
	return e.poolView(ctx, r)
}

func (e *Engine) poolByRef(ctx context.Context, ref string) (disk.Pool, error) {
	return query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return findPool(ctx, tx, ref) })
}

func poolSubject(p disk.Pool) journal.Subject {
	return journal.Subject{Type: "pool", ID: string(p.ID), Name: p.Name}
}

// poolArgs is what the steps of a pool's making and start know.
type poolArgs struct {
	Pool       disk.PoolID   `json:"pool"`
	Overcommit int64         `json:"overcommit,omitempty"` // 0 keeps the domain's
	Reserve    *disk.Reserve `json:"reserve,omitempty"`    // nil keeps the domain's
	KeepData   bool          `json:"keep_data,omitempty"`
	Overwrite  bool          `json:"overwrite,omitempty"` // what building finds
	Defined    bool          `json:"defined,omitempty"`   // on record before: undo leaves it there
}

// setDomain gives d the settings that were asked for.
func (a poolArgs) setDomain(d *disk.Domain) {
	if a.Overcommit != 0 {
		d.Overcommit = a.Overcommit
	}
	if a.Reserve != nil {
		d.Reserve = *a.Reserve
	}
}

// The settings of a capacity domain that nobody set.
const (
	defaultOvercommit = 1000 // thousandths
	defaultReserve    = 50   // permille
)

// PoolCreate sets storage aside as a pool. With IfAbsent a pool of that name and
// with those settings is as good.
func (e *Engine) PoolCreate(ctx context.Context, o api.Options, r api.PoolCreate) (api.Outcome, error) {
	if out, err := e.seen(ctx, o, "pool.create", r); out != nil || err != nil {
		return answer(out, err)
	}
	out, err := e.poolCreate(ctx, o, r)
	if err != nil && r.IfAbsent {
		return e.ifAbsent(ctx, o, "pool.create", r.Name, r, err, samePool(r))
	}
	return out, err
}

func (e *Engine) poolCreate(ctx context.Context, o api.Options, r api.PoolCreate) (api.Outcome, error) {
	p, a, err := e.orderPool(r)
	if err != nil {
		return api.Outcome{}, err
	}
	d := newDraft("pool.create", poolSubject(p))
	d.request, d.resources = r, placesOf(p)
	if r.Build {
		a.Overwrite = r.Overwrite
		d.steps = []journal.Step{journal.NewStep(stepPoolBuild, a)}
		d.notes = []string{buildNote(p, a)}
	}
	if r.Define {
		d.steps = []journal.Step{journal.NewStep(stepPoolDefine, a)}
		d.notes = []string{"records pool " + p.Name + " at " + p.Where()}
	} else {
		d.steps = append(d.steps, journal.NewStep(stepPoolPrepare, a))
		d.notes = append(d.notes, "sets "+p.Where()+" aside as pool "+p.Name)
	}
	d.intent = func(ctx context.Context, tx *store.Tx) error { return insertPool(ctx, tx, p) }
	return e.submitApart(ctx, o, d, p)
}

// orderPool validates a request for a pool.
func (e *Engine) orderPool(r api.PoolCreate) (disk.Pool, poolArgs, error) {
	now := e.now()
	p := disk.Pool{ID: disk.PoolID(newID()), Name: r.Name, Driver: r.Driver, HostID: e.cfg.Host.ID, State: disk.PoolCreating,
		DiskFormat: disk.FormatPolicy(or(r.DiskFormat, string(disk.FormatAuto))), CreatedAt: now, UpdatedAt: now}
	p.DomainID = disk.DomainID(p.ID) // until the storage says which domain it is in
	a := poolArgs{Pool: p.ID}
	if err := disk.CheckName("pool", r.Name); err != nil {
		return p, a, err
	}
	t, err := e.driverType(r.Driver)
	if err != nil {
		return p, a, err
	}
	if p.Path, p.Source, err = orderSource(t, r.Path, r.Source); err != nil {
		return p, a, err
	}
	if err := checkBuilding(t, r); err != nil {
		return p, a, err
	}
	if err := checkPolicy(p.DiskFormat, t.Capabilities); err != nil {
		return p, a, err
	}
	if p.ImageFormats, err = parseImageFormats(r.ImageFormats); err != nil {
		return p, a, err
	}
	if p.Owner, err = parseOwner(r.Owner); err != nil {
		return p, a, err
	}
	if r.Overcommit != nil {
		if a.Overcommit, err = parseOvercommit(*r.Overcommit); err != nil {
			return p, a, err
		}
	}
	if r.Reserve != "" {
		res, err := parseReserve(r.Reserve)
		if err != nil {
			return p, a, err
		}
		a.Reserve = &res
	}
	return p, a, nil
}

func checkPolicy(f disk.FormatPolicy, c disk.Capabilities) error {
	if err := plan.CheckChoice("disk format", string(f), "auto", "raw", "qcow2"); err != nil {
		return err
	}
	for _, have := range c.Formats {
		if f == disk.FormatAuto || string(have) == string(f) {
			return nil
		}
	}
	return errs.New(errs.Unsupported, "pool.create", string(f), "pools of this driver hold no disks of format %s", f)
}

// parseImageFormats reads what may be imported into a pool; none is every
// format.
func parseImageFormats(names []string) ([]diskfmt.Format, error) {
	var formats []diskfmt.Format
	for _, name := range names {
		f, err := diskfmt.ParseImageFormat(name)
		if err != nil {
			return nil, errs.New(errs.Invalid, "pool.image_formats", name, "%w", err)
		}
		if !slices.Contains(formats, f) {
			formats = append(formats, f)
		}
	}
	return formats, nil
}

func parseOvercommit(f float64) (int64, error) {
	if math.IsNaN(f) || f < 1 || f > 1000 {
		return 0, errs.New(errs.Invalid, "pool.overcommit", strconv.FormatFloat(f, 'g', -1, 64), "overcommit must lie between 1 and 1000")
	}
	return int64(math.Round(f * 1000)), nil
}

// parseReserve reads a share ("5%") or a size ("10G").
func parseReserve(s string) (disk.Reserve, error) {
	if share, ok := strings.CutSuffix(s, "%"); ok {
		f, err := strconv.ParseFloat(share, 64)
		if err != nil || math.IsNaN(f) || f < 0 || f > 90 {
			return disk.Reserve{}, errs.New(errs.Invalid, "pool.reserve", s, "a reserve is a share from 0%% to 90%%, or a size")
		}
		return disk.Reserve{Permille: int64(math.Round(f * 10))}, nil
	}
	n, err := disk.ParseSize(s)
	return disk.Reserve{Bytes: n}, err
}

// parseOwner reads USER:GROUP, names or numbers; empty means the daemon's own.
func parseOwner(s string) (disk.Owner, error) {
	if s == "" {
		return disk.Owner{UID: os.Geteuid(), GID: os.Getegid()}, nil
	}
	bad := func(what, name string) error {
		return errs.New(errs.Invalid, "pool.owner", s, "this host knows no %s %q", what, name).WithHint("write USER:GROUP, for example libvirt-qemu:libvirt-qemu")
	}
	name, group, _ := strings.Cut(s, ":")
	u, err := user.Lookup(name)
	if err != nil {
		if u, err = user.LookupId(name); err != nil {
			return disk.Owner{}, bad("user", name)
		}
	}
	gid := u.Gid
	if group != "" {
		g, err := user.LookupGroup(group)
		if err != nil {
			if g, err = user.LookupGroupId(group); err != nil {
				return disk.Owner{}, bad("group", group)
			}
		}
		gid = g.Gid
	}
	o := disk.Owner{}
	o.UID, err = strconv.Atoi(u.Uid)
	if err == nil {
		o.GID, err = strconv.Atoi(gid)
	}
	if err != nil {
		return o, bad("user", name)
	}
	if euid := os.Geteuid(); euid != 0 && o.UID != euid {
		return o, errs.New(errs.Invalid, "pool.owner", s, "a daemon that does not run as root can own disks only as itself").WithHint("leave --owner out")
	}
	return o, nil
}

// insertPool records a pool that is being made, in a domain of its own until
// its storage tells the real one.
func insertPool(ctx context.Context, tx *store.Tx, p disk.Pool) error {
	d := disk.Domain{ID: p.DomainID, Identity: unsettled(p.ID), Overcommit: defaultOvercommit, Reserve: disk.Reserve{Permille: defaultReserve}, CreatedAt: p.CreatedAt, UpdatedAt: p.CreatedAt}
	if err := tx.Domains.Insert(ctx, d); err != nil {
		return err
	}
	return tx.Pools.Insert(ctx, p)
}

// prepared is what a pool's storage says of itself.
type prepared struct {
	Identity string `json:"identity"` // of the capacity domain
}

// poolPrepare marks storage as a pool and opens it: step pool.prepare/v1.
func (e *Engine) poolPrepare() journal.Handler[*store.Tx] {
	return simple{
		act: func(ctx context.Context, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			out, err := e.preparePool(ctx, a)
			if err != nil {
				return errs.Wrap(err, "pool.create", c.Op.Subject.Name)
			}
			return c.SetOutput(out)
		},
		commit: func(ctx context.Context, tx *store.Tx, c *journal.Call) error {
			var a poolArgs
			var out prepared
			if err := errors.Join(c.Args(&a), c.Output(&out)); err != nil {
				return err
			}
			m, err := e.settle(ctx, tx, a, out.Identity)
			if err != nil {
				return err
			}
			return e.emit(ctx, tx, "pool.active", poolSubject(m.Pool), c.Op.ID)
		},
		undo: func(ctx context.Context, c *journal.Call) error {
			var a poolArgs
			if err := c.Args(&a); err != nil {
				return err
			}
			return e.unpreparePool(ctx, a)
		},
		undoCommit: undoMaking,
	}
}

// preparePool writes the marker twice: first to claim the storage, then, when
// the storage has told its domain, with what will be recorded.
func (e *Engine) preparePool(ctx context.Context, a poolArgs) (prepared, error) {
	m, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Marker, error) { return markerOf(ctx, tx, a.Pool) })
	if err != nil {
		return prepared{}, err
	}
	t, err := e.driverType(m.Pool.Driver)
	if err != nil {
		return prepared{}, err
	}
	data, err := pool.SealMarker(m)
	if err != nil {
		return prepared{}, err
	}
	if err := t.Prepare(ctx, pool.Config(m.Pool), data); err != nil {
		return prepared{}, err
	}
	p, err := e.pools.reopen(ctx, t, m.Pool)
	if err != nil {
		return prepared{}, err
	}
	u, err := p.Stat(ctx)
	if err == nil {
		var settled disk.Marker
		settled, err = e.previewSettled(ctx, a, u.Identity)
		if err == nil {
			err = errors.Join(p.WriteMarker(ctx, settled), e.tellDomain(ctx, a, settled))
		}
	}
	if err != nil {
		return prepared{}, errors.Join(err, p.Close())
	}
	e.pools.put(a.Pool, p)
	return prepared{Identity: u.Identity}, nil
}

// tellDomain writes the settings that a new pool brings into its domain beside
// the domain's other pools.
func (e *Engine) tellDomain(ctx context.Context, a poolArgs, settled disk.Marker) error {
	if a.Overcommit == 0 && a.Reserve == nil {
		return nil
	}
	pools, err := e.domainPools(ctx, settled.Domain.ID)
	for _, r := range pools {
		if p, ok := e.pools.get(r.ID); ok && r.ID != a.Pool && err == nil {
			err = p.WriteMarker(ctx, disk.Marker{Pool: r, Domain: settled.Domain})
		}
	}
	return err
}

// previewSettled returns the marker that settle is going to record.
func (e *Engine) previewSettled(ctx context.Context, a poolArgs, identity string) (m disk.Marker, err error) {
	err = e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if m, err = e.settle(ctx, tx, a, identity); err != nil {
			return err
		}
		return errRehearsed
	})
	if err == errRehearsed {
		err = nil
	}
	return m, err
}

// settle puts a pool into the domain its storage is in, with the settings that
// were asked for, and makes it active. Settings are the domain's: they change
// for every pool in it.
func (e *Engine) settle(ctx context.Context, tx *store.Tx, a poolArgs, identity string) (m disk.Marker, err error) {
	if m.Pool, err = tx.Pools.Get(ctx, a.Pool); err != nil {
		return m, err
	}
	own := m.Pool.DomainID
	d, err := tx.Domains.One(ctx, store.Eq("identity", identity))
	switch {
	case err == nil:
		m.Pool.DomainID = d.ID
	case errors.Is(err, errs.NotFound):
		if d, err = tx.Domains.Get(ctx, own); err != nil {
			return m, err
		}
		d.Identity = identity
	default:
		return m, err
	}
	a.setDomain(&d)
	if err := tx.Domains.Update(ctx, d); err != nil {
		return m, err
	}
	m.Pool.Identity, m.Pool.State = identity+":"+m.Pool.Where(), disk.PoolActive
	if err := tx.Pools.Update(ctx, m.Pool); err != nil {
		return m, err
	}
	if own != d.ID {
		if err := tx.Domains.Delete(ctx, own); err != nil {
			return m, err
		}
	}
	m.Domain = d
	return m, nil
}

// unpreparePool takes back what preparing a pool made. Storage that is another
// pool's, or that can hold none, has nothing of it; nor has storage that cannot
// be reached, but for a marker where it was lost meanwhile: that is one of a pool
// nobody knows, which the next to use the storage is told of.
func (e *Engine) unpreparePool(ctx context.Context, a poolArgs) error {
	err := e.clearPool(ctx, a)
	switch errs.KindOf(err) {
	case errs.NotFound, errs.Conflict, errs.Invalid, errs.Unsafe, errs.Unavailable:
		return nil
	}
	return err
}

// clearPool closes a pool and removes what tarn made of its storage beside
// volumes.
func (e *Engine) clearPool(ctx context.Context, a poolArgs) error {
	r, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Pool, error) { return tx.Pools.Get(ctx, a.Pool) })
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	t, err := e.driverType(r.Driver)
	if err != nil {
		return err
	}
	if err := e.pools.drop(a.Pool); err != nil {
		return err
	}
	return t.Remove(ctx, pool.Config(r))
}

// forgetPool removes a pool's record, and its domain's with the last pool.
func forgetPool(ctx context.Context, tx *store.Tx, id disk.PoolID) error {
	p, err := tx.Pools.Get(ctx, id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := tx.Pools.Delete(ctx, id); err != nil {
		return err
	}
	left, err := tx.Pools.Count(ctx, store.Eq("domain_id", p.DomainID))
	if err != nil || left > 0 {
		return err
	}
	return tx.Domains.Delete(ctx, p.DomainID)
}
