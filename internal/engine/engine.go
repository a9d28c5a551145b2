// Package engine is what tarn does: it resolves requests against the records,
// lets package plan decide, and runs the outcome as journalled operations on
// pools. Adapters call it and decide nothing; it refuses to know any transport.
package engine

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/fetch"
	"github.com/tarn-storage/tarn/internal/ingest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/store"
)

// Config is what an engine is made of. Store, Host and Types are required.
type Config struct {
	Store       *store.Store
	Host        Host
	Types       []driver.Type
	Ingest      ingest.Config
	DefaultPool string // the pool of requests that name none
	Fetch       fetch.Config
	Clouds      map[string]fetch.Cloud // whose Glance may be asked with credentials
	Formats     []diskfmt.Format       // that images may have; nil: every one the gate reads
	Clock       func() time.Time
	Log         *slog.Logger
	Workers     int // operations that run at once
	Version     string
	StateDir    string // no pool may lie in it, nor it in a pool
	// KeepOperations is for how long operations that ended, with their request
	// ids, and events are kept; 0: for ever. They are pruned at the start and at
	// every Tick, or with none every hour.
	KeepOperations time.Duration
	Tick           <-chan time.Time
	// Ballast is the state directory's: the store gives it up when it has no
	// room. Restore takes it again; Missing is how many bytes of it are not there.
	Ballast interface {
		Restore() error
		Missing() int64
	}
}

func (c *Config) ensureDefaults() {
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Tick == nil {
		c.Tick = time.Tick(pruneEvery)
	}
	if c.Workers == 0 {
		c.Workers = 64
	}
	if c.Ingest.Spool == nil {
		c.Ingest.Spool = nameless(cmp.Or(c.StateDir, os.TempDir()))
	}
}

// Engine is safe for concurrent use.
type Engine struct {
	cfg     Config
	store   *store.Store
	runner  *journal.Runner[*store.Tx]
	types   map[string]driver.Type
	pools   started
	space   gauges
	imports sessions
	configs spools
	rooms   rooms
	health  health
	exports holds[disk.VolumeID] // volumes that are read without an operation
	reading holds[disk.PoolID]   // pools that exports and copies read from

	describing turns[disk.VolumeID] // of those who write one volume's sidecar
	planned    plans

	background sync.WaitGroup
	life       context.Context // of what runs in the background
	stop       context.CancelFunc
}

// New starts an engine on the records of c.Store: it opens the pools that were
// active, releases the leases that this host held in an earlier boot, and
// finishes or undoes every operation that the last run left. Nothing is served
// before it returns.
func New(ctx context.Context, c Config) (*Engine, error) {
	c.ensureDefaults()
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	e := &Engine{cfg: c, store: c.Store, types: map[string]driver.Type{}, life: life, stop: stop}
	e.health.stir = make(chan struct{}, 1)
	for _, t := range c.Types {
		e.types[t.Name] = pool.Bound(t)
	}
	e.runner = journal.NewRunner(c.Store, journal.Options[*store.Tx]{
		Owner: string(c.Host.ID), Handlers: e.handlers(), Clock: c.Clock,
		NewID: func() journal.ID { return journal.ID(newID()) }, Workers: c.Workers, Log: c.Log, OnFinal: e.operationChanged,
		Await: pool.Await,
	})
	if err := e.begin(ctx); err != nil {
		stop()
		e.pools.closeAll()
		return nil, err
	}
	return e, nil
}

func (e *Engine) begin(ctx context.Context) error {
	if err := e.registerHost(ctx); err != nil {
		return err
	}
	recovered := make(chan struct{})
	if err := e.openPools(ctx, recovered); err != nil {
		return err
	}
	if err := e.runner.Recover(ctx); err != nil {
		return err
	}
	if err := e.releaseOldLeases(ctx, false); err != nil {
		return err
	}
	close(recovered)
	e.background.Go(func() { e.restoreBallast(e.life) })
	e.background.Go(e.watchPools)
	if e.cfg.KeepOperations > 0 {
		e.background.Go(func() { e.pruneOld(e.cfg.Tick) })
	}
	return nil
}

// Close stops taking requests, leaves running operations to the next start and
// releases the pools. The store stays open.
func (e *Engine) Close(ctx context.Context) error {
	e.stop()
	err := e.runner.Close(ctx)
	e.background.Wait()
	e.pools.closeAll()
	return err
}

// now is the time of records: microseconds in UTC, as every store keeps them.
func (e *Engine) now() time.Time { return e.cfg.Clock().UTC().Truncate(time.Microsecond) }

// newID returns a new UUIDv7.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

// registerHost records this host and the boot it is in, where that is news.
func (e *Engine) registerHost(ctx context.Context) error {
	now := e.now()
	h := disk.Host{ID: e.cfg.Host.ID, Name: e.cfg.Host.Name, BootID: e.cfg.Host.BootID, CreatedAt: now, UpdatedAt: now}
	have, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (disk.Host, error) { return tx.Hosts.Get(ctx, h.ID) })
	switch {
	case errors.Is(err, errs.NotFound):
		return e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Insert(ctx, h) })
	case err != nil:
		return err
	case have.BootID == h.BootID && have.Name == h.Name:
		return nil
	}
	h.CreatedAt = have.CreatedAt
	return e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error { return tx.Hosts.Update(ctx, h) })
}
