// Package store keeps tarn's records in SQL: one implementation over drivers of
// database/sql and one SQL text for two engines, SQLite and PostgreSQL. Every
// Update is one durable transaction; transactions that wait are committed
// together. It refuses to decide anything about the records: the schema guards
// the invariants that SQL can express, the engine above plans.
package store

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
)

var _ journal.Rows[*Tx] = (*Store)(nil)

// Store keeps the records. Its methods are safe for concurrent use.
type Store struct {
	engine  Engine
	version int

	queue   chan *request
	done    chan struct{}
	gate    sync.RWMutex // held for reading while a request is put into the queue
	closed  bool
	readers chan *conn // free readers; nil stands for one that is not connected

	writer  *conn
	current *batch
	broken  atomic.Pointer[errs.Error]

	watch   sync.Mutex
	changed chan struct{}
}

// request is one waiting Update.
type request struct {
	ctx      context.Context
	fn       func(context.Context, *Tx) error
	state    atomic.Int32
	done     chan struct{}
	err      error
	panicked any
	events   bool
}

// The states of a request: whoever moves it from waiting decides its fate.
const (
	waiting int32 = iota
	started
	abandoned
)

// Open migrates the schema of the engine's database and returns its store. The
// store owns the engine from then on, also when Open fails.
func Open(ctx context.Context, e Engine) (*Store, error) {
	s := &Store{
		engine: e, queue: make(chan *request, maxBatch), done: make(chan struct{}),
		readers: make(chan *conn, e.Readers), changed: make(chan struct{}),
	}
	for range e.Readers {
		s.readers <- nil
	}
	var err error
	if s.writer, err = connect(ctx, e.Writer, &s.engine); err == nil {
		s.version, err = migrate(ctx, s.writer, &s.engine)
	}
	if err != nil {
		return nil, errors.Join(e.failed("store.open", "", err), s.release())
	}
	go s.run()
	return s, nil
}

// SchemaVersion returns the version of the schema in the database.
func (s *Store) SchemaVersion() int { return s.version }

// nested marks the context of a running Update.
type nested struct{}

// Update runs fn in one durable transaction: when it returns nil, what fn wrote
// survives power loss; when fn returns an error, nothing of it remains and
// Update returns that error. fn may run more than once and must have no effect
// but through tx; it runs while every other Update waits, so it must not wait
// for anything. A ctx that ends before fn has started makes Update return; later
// the transaction completes. A panic of fn is undone and raised again here.
func (s *Store) Update(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	if ctx.Value(nested{}) == s {
		return errs.New(errs.Internal, "store.update", "", "a transaction was begun inside of another")
	}
	r := &request{ctx: ctx, fn: fn, done: make(chan struct{})}
	if err := s.submit(r); err != nil {
		return err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		if r.state.CompareAndSwap(waiting, abandoned) {
			return ctx.Err()
		}
		<-r.done
	}
	if r.panicked != nil {
		panic(r.panicked)
	}
	return r.err
}

func (s *Store) submit(r *request) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	if s.closed {
		return errs.New(errs.Unavailable, "store.update", "", "the store is closed")
	}
	if broken := s.broken.Load(); broken != nil {
		return broken
	}
	if err := r.ctx.Err(); err != nil {
		return err
	}
	select {
	case s.queue <- r:
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}

// View runs fn in one read transaction: all it reads is of one moment. There are
// only so many at a time, so fn must not begin another one.
func (s *Store) View(ctx context.Context, fn func(ctx context.Context, tx *Tx) error) error {
	c, err := s.reader(ctx)
	if err != nil {
		return s.engine.failed("store.view", "", err)
	}
	defer func() { s.readers <- c }()
	tx := newTx(c, &s.engine, false)
	defer func() {
		tx.end()
		if err := c.all(context.WithoutCancel(ctx), "ROLLBACK"); err != nil || c.fatal != nil {
			_ = c.Close()
			c = nil
		}
	}()
	return fn(ctx, tx)
}

// reader takes a connection on which a read transaction has begun.
func (s *Store) reader(ctx context.Context) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var c *conn
	select {
	case got, ok := <-s.readers:
		if !ok {
			return nil, errs.New(errs.Unavailable, "store.view", "", "the store is closed")
		}
		c = got
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begin := context.WithoutCancel(ctx)
	if c != nil {
		if c.all(begin, s.engine.BeginRead...) == nil {
			return c, nil
		}
		_ = c.Close() // an idle connection may have been cut: a new one decides
	}
	c, err := connect(ctx, s.engine.Reader, &s.engine)
	if err == nil {
		if err = c.all(begin, s.engine.BeginRead...); err == nil {
			return c, nil
		}
		_ = c.Close()
	}
	s.readers <- nil
	return nil, err
}

// Notify returns a channel that is closed by the next commit that adds events.
// A follower takes the channel first and reads the events then.
func (s *Store) Notify() <-chan struct{} {
	s.watch.Lock()
	defer s.watch.Unlock()
	return s.changed
}

func (s *Store) notify() {
	s.watch.Lock()
	defer s.watch.Unlock()
	close(s.changed)
	s.changed = make(chan struct{})
}

// Close waits for running transactions and closes the database. Later calls of
// any method return errs.Unavailable; a second Close does nothing.
func (s *Store) Close() error {
	s.gate.Lock()
	if s.closed {
		s.gate.Unlock()
		return nil
	}
	s.closed = true
	close(s.queue)
	s.gate.Unlock()
	<-s.done
	return s.release()
}

// release waits for the readers and gives everything back.
func (s *Store) release() error {
	for range s.engine.Readers {
		if c := <-s.readers; c != nil {
			_ = c.Close()
		}
	}
	close(s.readers)
	if s.writer != nil {
		_ = s.writer.Close()
	}
	if s.engine.Close != nil {
		return s.engine.Close()
	}
	return nil
}

// call runs the request's function within tx and keeps what came of it.
func (r *request) call(s *Store, tx *Tx) {
	returned := false
	defer func() {
		tx.end()
		if returned {
			return
		}
		r.err = errs.New(errs.Internal, "store.update", "", "the transaction did not return")
		if p := recover(); p != nil {
			r.panicked = fmt.Sprintf("%v\n\nin a transaction:\n%s", p, debug.Stack())
		}
	}()
	r.err = r.fn(context.WithValue(context.WithoutCancel(r.ctx), nested{}, s), tx)
	if r.err == nil {
		r.err = s.engine.failed("store.update", "", tx.spoiled)
	}
	r.events = r.err == nil && tx.events
	returned = true
}
