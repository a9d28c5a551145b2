package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/store"
)

// finding is one broken invariant. Its mend, where there is one, is safe to run
// unasked by a person who knows more; it tells in words what it did. Where there
// is none, advice says what a person can do.
type finding struct {
	invariant, object, detail string
	advice                    string
	would                     string // what mend does: "marks the volume lost"
	mend                      func(ctx context.Context) (string, error)
}

func found(invariant, object, format string, args ...any) finding {
	return finding{invariant: invariant, object: object, detail: fmt.Sprintf(format, args...)}
}

// advise says what a person can do.
func (f finding) advise(format string, args ...any) finding {
	f.advice = fmt.Sprintf(format, args...)
	return f
}

// repair says what mend would do.
func (f finding) repair(would string, mend func(ctx context.Context) (string, error)) finding {
	f.would, f.mend = would, mend
	return f
}

// checkup is one run of Doctor.
type checkup struct {
	e      *Engine
	mend   bool
	only   disk.PoolID // empty: all
	pools  map[disk.PoolID]disk.Pool
	hosts  map[disk.HostID]bool
	report api.Report

	guests   guestView
	there    []string     // the objects of the pool that checkStrays is at
	inUse    atomic.Int64 // volumes that were not looked into because somebody has them
	leases   int          // unverified ones
	excluded map[disk.VolumeState]int
}

// Doctor compares records and storage with the invariants. Each problem is
// explained in a sentence; with r.Repair what is safe is repaired and what is
// not is taken out of use, never deleted. What an operation is at work on is not
// looked at, and a problem is reported only if it was there between two equal
// looks at the records.
func (e *Engine) Doctor(ctx context.Context, r api.Doctor) (api.Report, error) {
	c := &checkup{e: e, mend: r.Repair, report: api.Report{Problems: []api.Problem{}}, excluded: map[disk.VolumeState]int{},
		pools: map[disk.PoolID]disk.Pool{}, hosts: map[disk.HostID]bool{}, guests: newGuestView()}
	if err := c.begin(ctx, r.Pool); err != nil {
		return c.report, err
	}
	checks := []func(context.Context) error{c.checkPools, c.checkGuestView, c.checkVolumes, c.checkStrays, c.checkDomains}
	if c.only == "" {
		checks = append(checks, c.checkReferences, c.checkImages, c.checkOperations, c.checkConfinement)
	}
	for _, check := range checks {
		if err := check(ctx); err != nil {
			return c.report, errs.Wrap(err, "doctor", r.Pool)
		}
	}
	c.noteVolumes()
	return c.report, nil
}

func (c *checkup) begin(ctx context.Context, ref string) error {
	return c.e.store.View(ctx, func(ctx context.Context, tx *store.Tx) error {
		if ref != "" {
			p, err := findPool(ctx, tx, ref)
			if err != nil {
				return err
			}
			c.only, c.pools[p.ID] = p.ID, p
		} else {
			pools, _, err := tx.Pools.List(ctx, store.Query{})
			if err != nil {
				return err
			}
			for _, p := range pools {
				c.pools[p.ID] = p
			}
		}
		hosts, _, err := tx.Hosts.List(ctx, store.Query{})
		for _, h := range hosts {
			c.hosts[h.ID] = true
		}
		return err
	})
}

// add reports a problem, repaired if that was asked for and is safe.
func (c *checkup) add(ctx context.Context, fs ...finding) {
	for _, f := range fs {
		p := api.Problem{Invariant: f.invariant, Object: f.object, Detail: f.detail, Repair: f.advice}
		switch {
		case f.mend != nil && c.mend:
			did, err := f.mend(ctx)
			if err != nil {
				did = "not repaired: " + err.Error()
			}
			p.Repair, p.Repaired = did, err == nil
		case f.mend != nil:
			p.Repair = "tarn doctor --repair " + f.would
		}
		c.report.Problems = append(c.report.Problems, p)
	}
}

func (c *checkup) note(format string, args ...any) {
	c.report.Notes = append(c.report.Notes, fmt.Sprintf(format, args...))
}

func (c *checkup) noteVolumes() {
	if n := c.inUse.Load(); n > 0 {
		c.note("%d volumes are in use; their containers were not looked at", n)
	}
	if c.leases > 0 {
		c.note("%d leases were rebuilt from sidecars and are unverified: they block until QEMU's locks show no holder", c.leases)
	}
	for _, s := range []disk.VolumeState{disk.VolumeCorrupt, disk.VolumeLost, disk.VolumeQuarantined} {
		if n := c.excluded[s]; n > 0 {
			c.note("%d volumes are recorded as %s and cannot be used: tarn volume list shows them", n, s)
		}
	}
}

// work is what unfinished operations are at work on.
type work struct {
	operations map[disk.OperationID]bool
	ids        map[string]bool // of volumes, images, instances and pools
	pools      bool            // some pool is made, changed or given up
}

// touched decodes what step arguments may name.
type touched struct {
	Volume  string   `json:"volume"`
	Volumes []string `json:"volumes"`
	Images  []string `json:"images"`
	Pools   []string `json:"pools"`
}

// underway collects what unfinished operations work on. One that asks for an
// operator counts: it is reported itself, and explains what it left.
func underway(ctx context.Context, tx *store.Tx) (work, error) {
	ops, err := unfinished(ctx, tx)
	if err != nil {
		return work{}, err
	}
	stuck, _, err := tx.Operations.List(ctx, store.Query{Where: []store.Where{store.Eq("state", journal.NeedsOperator)}})
	return workOf(append(ops, stuck...)), err
}

// unfinished returns the operations that have not ended.
func unfinished(ctx context.Context, tx *store.Tx) (all []journal.Operation, err error) {
	for _, s := range []journal.State{journal.Queued, journal.Running, journal.Undoing} {
		ops, _, err := tx.Operations.List(ctx, store.Query{Where: []store.Where{store.Eq("state", s)}})
		if err != nil {
			return nil, err
		}
		all = append(all, ops...)
	}
	return all, nil
}

func workOf(ops []journal.Operation) work {
	w := work{operations: map[disk.OperationID]bool{}, ids: map[string]bool{}}
	for _, op := range ops {
		w.add(op)
	}
	return w
}

func (w *work) add(op journal.Operation) {
	w.operations[disk.OperationID(op.ID)] = true
	w.pools = w.pools || strings.HasPrefix(op.Kind, "pool.") && op.State != journal.NeedsOperator
	for _, r := range op.Resources {
		if _, id, ok := strings.Cut(r, ":"); ok {
			w.ids[id] = true
		}
	}
	for id := range namedBy(op) {
		w.ids[id] = true
	}
}

// namedBy returns the ids that the steps of op name.
func namedBy(op journal.Operation) map[string]bool {
	ids := map[string]bool{}
	for _, s := range op.Steps {
		var t touched
		step := journal.Call{Op: &op, Step: &s}
		if step.Args(&t) != nil {
			continue // another shape: it names none of these
		}
		for _, id := range slices.Concat([]string{t.Volume}, t.Volumes, t.Images, t.Pools) {
			ids[id] = true
		}
	}
	delete(ids, "")
	return ids
}

// open returns the pool if it is active and was found sound.
func (c *checkup) open(id disk.PoolID) (*pool.Pool, bool) {
	if r, ok := c.pools[id]; !ok || r.State != disk.PoolActive {
		return nil, false
	}
	return c.e.pools.get(id)
}

// checkConfinement notes what the kernel lacks for the confined worker (I3).
func (c *checkup) checkConfinement(ctx context.Context) error {
	l, err := ingest.Confinement(ctx, c.e.cfg.Ingest)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		c.note("nothing can be imported on this host, because the worker that reads images cannot be confined: %v", err)
	case l.Landlock == 0:
		c.note("the kernel has no landlock: the worker that reads images is confined by seccomp and its own user only")
	}
	return nil
}
