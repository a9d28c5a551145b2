package store

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"syscall"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
)

// Tx is one transaction. It is valid until the function that was given it
// returns; later use is errs.Internal. Statements of an Update run to their end
// even when ctx is cancelled, because the transaction is all or nothing.
type Tx struct {
	Hosts      Table[disk.HostID, disk.Host]
	Domains    Table[disk.DomainID, disk.Domain]
	Pools      Table[disk.PoolID, disk.Pool]
	Images     Table[disk.ImageID, disk.Image]
	Volumes    Table[disk.VolumeID, disk.Volume]
	Instances  Table[disk.InstanceID, disk.Instance]
	Disks      Table[disk.DiskID, disk.Disk]
	Leases     Table[disk.VolumeID, disk.Lease]
	Operations Table[journal.ID, journal.Operation] // written by the journal's methods only

	mu     sync.Mutex
	conn   *conn
	engine *Engine
	write  bool
	ended  bool
	events bool // an event was emitted
	dirty  bool // something was written

	before pending // of the transactions that share the commit and came before
	adds   pending // of this one

	// spoiled is the failure of a statement outside of a savepoint where that
	// makes the engine turn the later commit into a silent rollback.
	spoiled error
}

func newTx(c *conn, e *Engine, write bool) *Tx {
	tx := &Tx{conn: c, engine: e, write: write}
	tx.Hosts = Table[disk.HostID, disk.Host]{tx, hosts}
	tx.Domains = Table[disk.DomainID, disk.Domain]{tx, domains}
	tx.Pools = Table[disk.PoolID, disk.Pool]{tx, pools}
	tx.Images = Table[disk.ImageID, disk.Image]{tx, images}
	tx.Volumes = Table[disk.VolumeID, disk.Volume]{tx, volumes}
	tx.Instances = Table[disk.InstanceID, disk.Instance]{tx, instances}
	tx.Disks = Table[disk.DiskID, disk.Disk]{tx, disks}
	tx.Leases = Table[disk.VolumeID, disk.Lease]{tx, leases}
	tx.Operations = Table[journal.ID, journal.Operation]{tx, operations}
	return tx
}

// end makes every later use of tx fail.
func (tx *Tx) end() {
	tx.mu.Lock()
	tx.ended = true
	tx.mu.Unlock()
}

// enter takes tx for one statement and returns the context to run it with; the
// caller unlocks tx.mu when err is nil.
func (tx *Tx) enter(ctx context.Context, write bool) (context.Context, error) {
	tx.mu.Lock()
	var err error
	switch {
	case tx.ended:
		err = errs.New(errs.Internal, "store.tx", "", "the transaction was used after it had ended")
	case write && !tx.write:
		err = errs.New(errs.Internal, "store.tx", "", "a read transaction cannot write")
	case tx.conn.fatal != nil:
		err = tx.conn.fatal
	case tx.spoiled != nil:
		err = tx.spoiled
	case !tx.write:
		err = ctx.Err()
	}
	if err != nil {
		tx.mu.Unlock()
		return nil, err
	}
	if tx.write || !tx.engine.Cancels {
		ctx = context.WithoutCancel(ctx)
	}
	return ctx, nil
}

// exec runs one writing statement and returns how many rows it changed. When it
// fails, what the transaction did before stands.
func (tx *Tx) exec(ctx context.Context, text string, args ...any) (n int64, err error) {
	ctx, err = tx.enter(ctx, true)
	if err != nil {
		return 0, err
	}
	defer tx.mu.Unlock()
	run := func() error {
		n, err = tx.conn.exec(ctx, text, args...)
		return err
	}
	if tx.engine.Savepoints {
		err = tx.conn.savepoint(ctx, "statement", run)
	} else {
		err = run()
	}
	tx.dirty = tx.dirty || err == nil
	return n, tx.note(err)
}

// query runs one reading statement and calls each for every row, whose values
// are good until each returns.
func (tx *Tx) query(ctx context.Context, text string, args []any, each func(row []driver.Value) error) (err error) {
	run, err := tx.enter(ctx, false)
	if err != nil {
		return err
	}
	defer tx.mu.Unlock()
	n := 0
	err = tx.conn.query(run, text, args, func(row []driver.Value) error {
		if n++; n%1000 == 0 && !tx.write && ctx.Err() != nil {
			return ctx.Err()
		}
		return each(row)
	})
	if err != nil && tx.engine.Savepoints {
		tx.spoiled = err
	}
	return tx.note(err)
}

// row scans the first row of a query and reports whether there was one.
func (tx *Tx) row(ctx context.Context, text string, args []any, into ...any) (found bool, err error) {
	err = tx.query(ctx, text, args, func(row []driver.Value) error {
		if found {
			return nil
		}
		found = true
		return scan(row, into...)
	})
	return found, tx.failed("store.read", "", err)
}

// note remembers an error after which the transaction cannot go on.
func (tx *Tx) note(err error) error {
	if err == nil {
		return nil
	}
	switch tx.engine.class(err) {
	case Full, Failed, Lost, Damaged:
		tx.conn.fatal = err
	}
	return err
}

// failed turns a database error into one of the vocabulary; nil stays nil.
func (tx *Tx) failed(op, subject string, err error) error {
	return tx.engine.failed(op, subject, err)
}

// classify returns what an error means; nil and one of the vocabulary are Other.
func (e *Engine) classify(err error) Problem {
	switch {
	case err == nil, errors.As(err, new(*errs.Error)):
		return Problem{}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return Problem{Class: Full}
	case errors.Is(err, syscall.EIO):
		return Problem{Class: Failed}
	}
	return e.Classify(err)
}

func (e *Engine) class(err error) Class { return e.classify(err).Class }

func (e *Engine) failed(op, subject string, err error) error {
	if err == nil || errors.As(err, new(*errs.Error)) {
		return err
	}
	switch e.class(err) {
	case Full:
		return errs.New(errs.NoSpace, op, subject, "no space is left for the database: %w", err).
			WithHint("free some space on the file system of the state directory")
	case Failed:
		return errs.New(errs.Unavailable, op, subject, "the database could not be written: %w", err).
			WithHint("check the device and the kernel's log, then restart the daemon")
	case Lost:
		return errs.New(errs.Unavailable, op, subject, "the database does not answer: %w", err)
	case Damaged:
		return errs.New(errs.Corrupt, op, subject, "the database is damaged: %w", err)
	case Check:
		return errs.New(errs.Internal, op, subject, "the schema refuses the record: %w", err)
	}
	return errs.Wrap(err, op, subject)
}

// savepoint runs fn so that its statements are undone when it fails.
func (c *conn) savepoint(ctx context.Context, name string, fn func() error) error {
	if err := c.all(ctx, "SAVEPOINT "+name); err != nil {
		return err
	}
	if err := fn(); err != nil {
		if back := c.all(ctx, "ROLLBACK TO SAVEPOINT "+name, "RELEASE SAVEPOINT "+name); back != nil {
			c.fatal = cmp.Or(c.fatal, back) // never the function's own error: others would be told it
		}
		return err
	}
	return c.all(ctx, "RELEASE SAVEPOINT "+name)
}
