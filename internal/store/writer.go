package store

import (
	"context"
	"errors"
	"runtime"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// maxBatch is how many transactions are committed together at most.
const maxBatch = 256

// batch is the transactions that share one commit.
type batch struct {
	requests []*request
	ran      int     // how many of them were run in this attempt
	kept     int     // how many of those are part of the open transaction
	guarded  bool    // each is run behind a savepoint
	sums     pending // of those kept
}

// errAgain says that a function failed which had written, and that the functions
// before it, whose work was undone with its own, must be run again.
var errAgain = errors.New("the batch must be run again")

// run serves the queue until it is closed. It is the only goroutine that uses
// the writing connection. A function that ends the goroutine it runs on (as a
// test's FailNow does) fails its batch, and another goroutine goes on.
func (s *Store) run() {
	served := false
	defer func() {
		if served {
			close(s.done)
			return
		}
		if b := s.current; b != nil {
			s.rollback(b.requests[0].ctx)
			s.finish(b, errs.New(errs.Internal, "store.update", "", "a transaction ended the goroutine that commits"))
		}
		go s.run()
	}()
	for r := range s.queue {
		if r.state.CompareAndSwap(waiting, started) {
			s.commit(&batch{requests: []*request{r}})
		}
	}
	served = true
}

// commit runs a batch that begins with one request, lets those that wait join,
// and answers all of them. When the database is full and room could be made it
// tries once more.
func (s *Store) commit(b *batch) {
	s.current = b
	if broken := s.broken.Load(); broken != nil {
		s.finish(b, broken)
		return
	}
	err := s.attempt(b, true)
	if err != nil && s.makeRoom(err) {
		err = s.attempt(b, false)
	}
	if s.engine.class(err) == Failed {
		err = s.refuse(err)
	}
	s.finish(b, err)
}

// attempt runs the functions of a batch and commits. Its error is that of the
// transaction; what went wrong in one function only is in its request. Few
// functions fail after they have written, so at first nothing guards the others
// of the batch from that; when it happens the batch is run again, once, with a
// savepoint for each.
func (s *Store) attempt(b *batch, join bool) error {
	ctx := context.WithoutCancel(b.requests[0].ctx)
	b.guarded = false
	for {
		err := s.runBatch(ctx, b, join)
		if err == nil && b.kept > 0 {
			return s.commitOpen(ctx)
		}
		s.rollback(ctx)
		if !errors.Is(err, errAgain) {
			return err
		}
		b.guarded = true
	}
}

// runBatch runs the functions of a batch within one transaction, which it leaves
// open.
func (s *Store) runBatch(ctx context.Context, b *batch, join bool) error {
	b.ran, b.kept, b.sums = 0, 0, pending{}
	if err := s.begin(ctx); err != nil {
		return err
	}
	for b.ran < len(b.requests) || join && s.join(b) {
		r := b.requests[b.ran]
		b.ran++
		if r.panicked != nil {
			continue
		}
		if err := s.one(ctx, b, r); err != nil {
			return err
		}
	}
	return b.sums.store(ctx, s.writer)
}

// one runs one function so that its failure leaves nothing of it and the others
// of its batch alone. Its error means that the transaction is lost.
func (s *Store) one(ctx context.Context, b *batch, r *request) error {
	tx := newTx(s.writer, &s.engine, true)
	tx.before = b.sums
	call := func() error {
		r.call(s, tx)
		return r.err
	}
	if b.guarded && b.kept > 0 {
		err := s.writer.savepoint(ctx, "request", call)
		if r.err == nil && err != nil {
			return err
		}
		tx.dirty, tx.spoiled = false, nil
	} else {
		_ = call()
	}
	switch {
	case s.writer.fatal != nil:
		return s.writer.fatal
	case r.err == nil:
		b.kept++
		for id, sums := range tx.adds {
			b.sums.add(id, sums)
		}
	case !tx.dirty && tx.spoiled == nil:
	case b.kept == 0:
		s.rollback(ctx)
		return s.begin(ctx)
	default:
		return errAgain
	}
	return nil
}

// join adds a waiting request to the batch.
func (s *Store) join(b *batch) bool {
	if len(b.requests) > 1 && len(s.queue) == 0 {
		runtime.Gosched() // under load, those just answered are about to ask again
	}
	for len(b.requests) < maxBatch {
		select {
		case r, ok := <-s.queue:
			if !ok {
				return false
			}
			if r.state.CompareAndSwap(waiting, started) {
				b.requests = append(b.requests, r)
				return true
			}
		default:
			return false
		}
	}
	return false
}

// begin opens a transaction, on a new connection if the old one was cut while
// nothing depended on it.
func (s *Store) begin(ctx context.Context) error {
	if s.writer != nil {
		err := s.writer.all(ctx, s.engine.Begin...)
		if err == nil || s.engine.class(err) != Lost {
			return err
		}
		s.drop()
	}
	var err error
	if s.writer, err = connect(ctx, s.engine.Writer, &s.engine); err != nil {
		s.writer = nil
		return err
	}
	if err = s.writer.all(ctx, s.engine.Begin...); err != nil {
		s.drop()
	}
	return err
}

func (s *Store) drop() {
	_ = s.writer.Close()
	s.writer = nil
}

// commitOpen commits the open transaction as one effect.
func (s *Store) commitOpen(ctx context.Context) error {
	committed := false
	err := faults.Do(faults.Tx, "commit", func() error {
		err := s.writer.all(ctx, "COMMIT")
		committed = err == nil
		return err
	})
	if err == nil {
		return nil
	}
	if !committed {
		s.rollback(ctx)
	}
	return err
}

// refuse makes the store refuse every further write: after an I/O error the
// kernel may have forgotten what did not reach the device, so that a sync that
// is tried again would lie.
func (s *Store) refuse(err error) error {
	broken := errs.New(errs.Unavailable, "store.commit", "", "the database could not be written: %w", err).
		WithHint("check the device and the kernel's log, then restart the daemon")
	s.broken.Store(broken)
	return broken
}

// rollback ends the open transaction, which the engine may have ended already.
func (s *Store) rollback(ctx context.Context) {
	if s.writer == nil {
		return
	}
	if s.writer.all(context.WithoutCancel(ctx), "ROLLBACK") != nil {
		s.drop() // closing the connection ends whatever is open on it
		return
	}
	s.writer.fatal = nil
}

// makeRoom reports whether err says that the database is full and room was made.
func (s *Store) makeRoom(err error) bool {
	return s.engine.class(err) == Full && s.engine.OnFull != nil && s.engine.OnFull() == nil
}

// finish answers every request of the batch.
func (s *Store) finish(b *batch, err error) {
	s.current = nil
	err = s.engine.failed("store.commit", "", err)
	events := false
	for _, r := range b.requests {
		if r.err == nil {
			r.err = err
		}
		events = events || r.events && r.err == nil
	}
	if events {
		s.notify()
	}
	for _, r := range b.requests {
		close(r.done)
	}
}
