package pool

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Bound returns t with every call of a technology that Hangs bounded: it runs on
// one of a few workers that each storage has, and while the storage does not
// answer it is errs.Unavailable after a while and the worker stays where it is.
// No other call begins before such workers are through, so that repeats find what
// the late ones did. A technology that does not hang is returned as it is.
func Bound(t driver.Type) driver.Type { return bound(t, defaultBounds) }

func bound(t driver.Type, b bounds) driver.Type {
	if !t.Hangs {
		return t
	}
	if t.Silence > 0 {
		b.silence = t.Silence
	}
	k := &keeper{bounds: b, gates: map[string]*gate{}}
	in := t
	t.Prepare = func(ctx context.Context, c driver.Config, marker []byte) error {
		return k.start(ctx, "pool.prepare", c, func() error { return in.Prepare(ctx, c, marker) })
	}
	if in.Build != nil {
		t.Build = func(ctx context.Context, c driver.Config, overwrite bool) error {
			return k.start(ctx, "pool.build", c, func() error { return in.Build(ctx, c, overwrite) })
		}
	}
	t.Remove = func(ctx context.Context, c driver.Config) error {
		return k.start(ctx, "pool.remove", c, func() error { return in.Remove(ctx, c) })
	}
	t.Marker = func(ctx context.Context, c driver.Config) ([]byte, error) {
		g := k.gate(c)
		return through(ctx, g, "pool.marker", g.opening, func() ([]byte, error) { return in.Marker(ctx, c) }, nil)
	}
	t.Open = func(ctx context.Context, c driver.Config) (driver.Driver, driver.Capabilities, error) {
		return k.open(ctx, in, c)
	}
	return t
}

// keeper has the gate of each storage, open or not: workers that hang in one
// that was given up still count when it is opened again.
type keeper struct {
	bounds
	mu    sync.Mutex
	gates map[string]*gate
}

func (k *keeper) gate(c driver.Config) *gate {
	where := disk.Pool{Path: c.Path, Source: c.Source}.Where()
	k.mu.Lock()
	defer k.mu.Unlock()
	g := k.gates[where]
	if g == nil {
		g = newGate(where, k.bounds)
		k.gates[where] = g
	}
	return g
}

func (k *keeper) start(ctx context.Context, op string, c driver.Config, do func() error) error {
	g := k.gate(c)
	_, err := through(ctx, g, op, g.opening, func() (struct{}, error) { return struct{}{}, do() }, nil)
	return err
}

// opened is what Open of a technology returns.
type opened struct {
	driver.Driver
	caps driver.Capabilities
}

func (k *keeper) open(ctx context.Context, t driver.Type, c driver.Config) (driver.Driver, driver.Capabilities, error) {
	g := k.gate(c)
	o, err := through(ctx, g, "pool.open", g.opening, func() (opened, error) {
		d, caps, err := t.Open(ctx, c)
		if p, ok := d.(driver.Pulse); ok && err == nil {
			g.serve(pulse(p), d.Stat)
			_, _ = g.keep(d.Stat(ctx)) // who looks shall know
		}
		return opened{d, caps}, err
	}, func(o opened, err error) {
		if err == nil {
			g.serve(nil, nil)
			_ = o.Close()
		}
	})
	if err != nil {
		return nil, driver.Capabilities{}, err
	}
	if _, apart := o.Driver.(driver.Pulse); !apart {
		g.serve(o.Stat, nil)
	}
	b := &bounded{g, o.Driver, context.WithoutCancel(ctx)}
	if s, ok := o.Driver.(driver.Stopper); ok {
		return &stoppable{b, s}, o.caps, nil
	}
	return b, o.caps, nil
}

// pulse asks p, which measures nothing.
func pulse(p driver.Pulse) measuring {
	return func(ctx context.Context) (driver.Usage, error) { return driver.Usage{}, p.Alive(ctx) }
}

// serve makes alive what tells whether the storage answers, and stat what measures
// it if alive does not; nil: nothing does.
func (g *gate) serve(alive, stat measuring) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alive, g.stat = alive, stat
	g.last, g.lastErr, g.at = driver.Usage{}, nil, time.Time{}
}

// bounded is an open pool behind a gate. What its technology does not implement
// of the optional interfaces does nothing, as where it is not there.
type bounded struct {
	g    *gate
	in   driver.Driver
	life context.Context // for what has none of its own
}

var (
	_ driver.Driver      = (*bounded)(nil)
	_ glancer            = (*stoppable)(nil)
	_ driver.Cloner      = (*bounded)(nil)
	_ driver.Attacher    = (*bounded)(nil)
	_ driver.Snapshotter = (*bounded)(nil)
	_ driver.Prober      = (*bounded)(nil)
	_ driver.Physical    = (*bounded)(nil)
	_ driver.Ballast     = (*bounded)(nil)
	_ driver.Leftovers   = (*bounded)(nil)
	_ driver.Protector   = (*bounded)(nil)
	_ driver.Adopter     = (*bounded)(nil)
)

func unsupported(op, subject, what string) error {
	return errs.New(errs.Unsupported, op, subject, "the pool's technology %s", what)
}

// glance is Stat for who only looks.
func (b *bounded) glance(ctx context.Context) (driver.Usage, error) { return b.g.glance(ctx) }

func (b *bounded) Create(ctx context.Context, s driver.Spec) error {
	return b.g.act(ctx, "volume.create", func() error { return b.in.Create(ctx, s) })
}

func (b *bounded) Publish(ctx context.Context, id disk.VolumeID, name string, immutable bool, sidecar []byte) (driver.Object, error) {
	return through(ctx, b.g, "volume.publish", b.g.deadline, func() (driver.Object, error) {
		return b.in.Publish(ctx, id, name, immutable, sidecar)
	}, nil)
}

func (b *bounded) Open(ctx context.Context, r driver.Ref, m driver.Mode) (driver.Device, error) {
	return b.device(ctx, "volume.open", func() (driver.Device, error) { return b.in.Open(ctx, r, m) })
}

func (b *bounded) Describe(ctx context.Context, r driver.Ref) (driver.Object, error) {
	return through(ctx, b.g, "volume.describe", b.g.deadline, func() (driver.Object, error) { return b.in.Describe(ctx, r) }, nil)
}

func (b *bounded) Resize(ctx context.Context, r driver.Ref, size int64) error {
	return b.g.act(ctx, "volume.resize", func() error { return b.in.Resize(ctx, r, size) })
}

func (b *bounded) Delete(ctx context.Context, r driver.Ref) error {
	return b.g.act(ctx, "volume.delete", func() error { return b.in.Delete(ctx, r) })
}

func (b *bounded) List(ctx context.Context) iter.Seq2[driver.Object, error] {
	return each(ctx, b.g, "pool.list", b.in.List(ctx))
}

func (b *bounded) Stat(ctx context.Context) (driver.Usage, error) {
	return through(ctx, b.g, "pool.stat", b.g.deadline, func() (driver.Usage, error) { return b.g.keep(b.in.Stat(ctx)) }, nil)
}

func (b *bounded) PutSidecar(ctx context.Context, name string, data []byte) error {
	return b.g.act(ctx, "volume.put_sidecar", func() error { return b.in.PutSidecar(ctx, name, data) })
}

func (b *bounded) Sidecar(ctx context.Context, name string) ([]byte, error) {
	return through(ctx, b.g, "volume.sidecar", b.g.deadline, func() ([]byte, error) { return b.in.Sidecar(ctx, name) }, nil)
}

func (b *bounded) Sidecars(ctx context.Context) iter.Seq2[driver.Record, error] {
	return each(ctx, b.g, "pool.sidecars", b.in.Sidecars(ctx))
}

// Close implements driver.Driver. It is waited for no longer than a daemon that
// stops can: storage that does not answer is released when it does, or by the end
// of the process.
func (b *bounded) Close() error {
	defer b.g.serve(nil, nil)
	return b.g.aside(b.life, "pool.close", b.g.patience/2, b.in.Close)
}

// stoppable is a bounded pool that opening has set going.
type stoppable struct {
	*bounded
	in driver.Stopper
}

// Stop implements driver.Stopper. Once it has returned the call that it leaves
// stops nothing any more, unless it had begun to.
func (s *stoppable) Stop(ctx context.Context) error {
	ctx, gone := context.WithCancel(ctx)
	defer gone()
	err := s.g.act(ctx, "pool.stop", func() error { return s.in.Stop(ctx) })
	if err == nil {
		s.g.serve(nil, nil)
	}
	return err
}

// Clone implements driver.Cloner.
func (b *bounded) Clone(ctx context.Context, s driver.Spec, base driver.Ref) error {
	const op = "volume.clone"
	c, ok := b.in.(driver.Cloner)
	if !ok {
		return unsupported(op, string(s.ID), "cannot clone")
	}
	return b.g.act(ctx, op, func() error { return c.Clone(ctx, s, base) })
}

// Attachment implements driver.Attacher. It touches no storage.
func (b *bounded) Attachment(r driver.Ref) driver.Attachment {
	if a, ok := b.in.(driver.Attacher); ok {
		return a.Attachment(r)
	}
	return driver.Attachment{}
}

// Snapshot implements driver.Snapshotter.
func (b *bounded) Snapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	const op = "snapshot.create"
	s, ok := b.in.(driver.Snapshotter)
	if !ok {
		return unsupported(op, r.Name, "keeps no snapshots")
	}
	return b.g.act(ctx, op, func() error { return s.Snapshot(ctx, r, id) })
}

// DeleteSnapshot implements driver.Snapshotter.
func (b *bounded) DeleteSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) error {
	s, ok := b.in.(driver.Snapshotter)
	if !ok {
		return nil
	}
	return b.g.act(ctx, "snapshot.delete", func() error { return s.DeleteSnapshot(ctx, r, id) })
}

// Snapshots implements driver.Snapshotter.
func (b *bounded) Snapshots(ctx context.Context, r driver.Ref) iter.Seq2[disk.SnapshotID, error] {
	s, ok := b.in.(driver.Snapshotter)
	if !ok {
		return func(func(disk.SnapshotID, error) bool) {}
	}
	return each(ctx, b.g, "snapshot.list", s.Snapshots(ctx, r))
}

// OpenSnapshot implements driver.Snapshotter.
func (b *bounded) OpenSnapshot(ctx context.Context, r driver.Ref, id disk.SnapshotID) (driver.Device, error) {
	const op = "snapshot.open"
	s, ok := b.in.(driver.Snapshotter)
	if !ok {
		return nil, unsupported(op, r.Name, "keeps no snapshots")
	}
	return b.device(ctx, op, func() (driver.Device, error) { return s.OpenSnapshot(ctx, r, id) })
}

// Probe implements driver.Prober.
func (b *bounded) Probe(ctx context.Context, r driver.Ref) error {
	p, ok := b.in.(driver.Prober)
	if !ok {
		return nil
	}
	return b.g.act(ctx, "volume.probe", func() error { return p.Probe(ctx, r) })
}

// Physical implements driver.Physical.
func (b *bounded) Physical(ctx context.Context) (int64, error) {
	p, ok := b.in.(driver.Physical)
	if !ok {
		return 0, nil
	}
	return through(ctx, b.g, "pool.physical", b.g.deadline, func() (int64, error) { return p.Physical(ctx) }, nil)
}

// ReleaseBallast implements driver.Ballast.
func (b *bounded) ReleaseBallast(ctx context.Context) error {
	l, ok := b.in.(driver.Ballast)
	if !ok {
		return nil
	}
	return b.g.act(ctx, "pool.release_ballast", func() error { return l.ReleaseBallast(ctx) })
}

// RestoreBallast implements driver.Ballast.
func (b *bounded) RestoreBallast(ctx context.Context) error {
	l, ok := b.in.(driver.Ballast)
	if !ok {
		return nil
	}
	return b.g.act(ctx, "pool.restore_ballast", func() error { return l.RestoreBallast(ctx) })
}

// Staged implements driver.Leftovers.
func (b *bounded) Staged(ctx context.Context) iter.Seq2[disk.VolumeID, error] {
	l, ok := b.in.(driver.Leftovers)
	if !ok {
		return func(func(disk.VolumeID, error) bool) {}
	}
	return each(ctx, b.g, "pool.staged", l.Staged(ctx))
}

// SetAside implements driver.Leftovers.
func (b *bounded) SetAside(ctx context.Context, r driver.Ref) error {
	const op = "volume.set_aside"
	l, ok := b.in.(driver.Leftovers)
	if !ok {
		return unsupported(op, r.Name, "sets nothing aside")
	}
	return b.g.act(ctx, op, func() error { return l.SetAside(ctx, r) })
}

// Exposure implements driver.Protector.
func (b *bounded) Exposure(ctx context.Context, r driver.Ref, immutable bool) (string, error) {
	p, ok := b.in.(driver.Protector)
	if !ok {
		return "", nil
	}
	return through(ctx, b.g, "volume.exposure", b.g.deadline, func() (string, error) { return p.Exposure(ctx, r, immutable) }, nil)
}

// Protect implements driver.Protector.
func (b *bounded) Protect(ctx context.Context, r driver.Ref, immutable bool) error {
	p, ok := b.in.(driver.Protector)
	if !ok {
		return nil
	}
	return b.g.act(ctx, "volume.protect", func() error { return p.Protect(ctx, r, immutable) })
}

// Candidate implements driver.Adopter.
func (b *bounded) Candidate(ctx context.Context, name string) (*driver.Candidate, error) {
	const op = "volume.candidate"
	a, ok := b.in.(driver.Adopter)
	if !ok {
		return nil, unsupported(op, name, "adopts nothing")
	}
	var c *driver.Candidate
	d, err := b.device(ctx, op, func() (d driver.Device, err error) {
		if c, err = a.Candidate(ctx, name); err != nil {
			return nil, err
		}
		return c.Device, nil
	})
	if err != nil {
		return nil, err
	}
	c.Device = d
	return c, nil
}

// Adopt implements driver.Adopter.
func (b *bounded) Adopt(ctx context.Context, r driver.Ref, immutable bool, sidecar []byte) (driver.Object, error) {
	const op = "volume.adopt"
	a, ok := b.in.(driver.Adopter)
	if !ok {
		return driver.Object{}, unsupported(op, r.Name, "adopts nothing")
	}
	return through(ctx, b.g, op, b.g.deadline, func() (driver.Object, error) { return a.Adopt(ctx, r, immutable, sidecar) }, nil)
}

// Disown implements driver.Adopter.
func (b *bounded) Disown(ctx context.Context, r driver.Ref) error {
	a, ok := b.in.(driver.Adopter)
	if !ok {
		return nil
	}
	return b.g.act(ctx, "volume.disown", func() error { return a.Disown(ctx, r) })
}
