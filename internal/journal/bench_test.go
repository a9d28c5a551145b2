package journal_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/internal/journal"
)

// step is a handler whose parts a test replaces. It logs what is called.
type step struct {
	name       string
	log        *calls
	act, undo  func(ctx context.Context, c *journal.Call) error
	commit     func(c *journal.Call) error
	undoCommit func(c *journal.Call) error
}

type calls struct {
	mu  sync.Mutex
	all []string
}

func (l *calls) add(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

func (l *calls) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.all, " ")
}

func (s *step) Act(ctx context.Context, c *journal.Call) error {
	s.log.add(s.name)
	if s.act != nil {
		return s.act(ctx, c)
	}
	return nil
}

func (s *step) Commit(_ context.Context, t *tx, c *journal.Call) error {
	if s.commit != nil {
		if err := s.commit(c); err != nil {
			return err
		}
	}
	s.log.add(s.name + "!")
	t.Records[string(c.Op.ID)+s.name] = "ready"
	return nil
}

func (s *step) Undo(ctx context.Context, c *journal.Call) error {
	s.log.add("-" + s.name)
	if s.undo != nil {
		return s.undo(ctx, c)
	}
	return nil
}

func (s *step) UndoCommit(_ context.Context, t *tx, c *journal.Call) error {
	s.log.add("-" + s.name + "!")
	delete(t.Records, string(c.Op.ID)+s.name)
	if s.undoCommit != nil {
		return s.undoCommit(c)
	}
	return nil
}

type irreversible struct{ *step }

func (irreversible) Irreversible() bool { return true }

type unresumable struct{ *step }

func (unresumable) Resumable(*journal.Call) bool { return false }

// bench is a runner over a store with steps a, b and c, of which tests replace
// some.
type bench struct {
	*journal.Runner[*tx]
	rows     *files
	log      *calls
	a, b, c  *step
	handlers map[string]journal.Handler[*tx]
	states   []journal.State // as OnFinal saw them
	o        journal.Options[*tx]
}

func newBench(t *testing.T, rows *files) *bench {
	t.Helper()
	b := &bench{rows: rows, log: &calls{}}
	b.a, b.b, b.c = &step{name: "a", log: b.log}, &step{name: "b", log: b.log}, &step{name: "c", log: b.log}
	b.handlers = map[string]journal.Handler[*tx]{"a/v1": b.a, "b/v1": b.b, "c/v1": b.c}
	b.o = journal.Options[*tx]{Owner: "host", Handlers: b.handlers,
		OnFinal: func(_ context.Context, _ *tx, op *journal.Operation) error {
			b.states = append(b.states, op.State) // one operation at a time
			return nil
		}}
	b.Runner = journal.NewRunner(rows, b.o)
	return b
}

func (b *bench) submit(t *testing.T, steps ...string) journal.ID {
	t.Helper()
	op := journal.Operation{Kind: "test", Subject: journal.Subject{Name: "thing"}}
	for _, s := range steps {
		op.Steps = append(op.Steps, journal.NewStep(s+"/v1", nil))
	}
	op, _, err := b.Submit(t.Context(), op, nil)
	if err != nil {
		t.Fatal(err)
	}
	return op.ID
}

func (b *bench) wait(t *testing.T, id journal.ID) journal.Operation {
	t.Helper()
	op, err := b.Wait(t.Context(), id, time.Hour)
	if err != nil {
		t.Fatalf("waiting for %s: %v", id, err)
	}
	row, err := b.Get(t.Context(), id)
	if err != nil || row.State != op.State {
		t.Errorf("the row says %s, %v; Wait said %s", row.State, err, op.State)
	}
	return op
}

func (b *bench) close(t *testing.T) {
	t.Helper()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func expect(t *testing.T, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: got %s, want %s", what, g, w)
	}
}
