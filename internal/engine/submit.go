package engine

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
)

// draft is an operation before it is submitted: what a dry run prints.
type draft struct {
	id        journal.ID
	kind      string
	subject   journal.Subject
	request   any
	resources []string
	steps     []journal.Step
	notes     []string
	result    any

	// intent writes the records that must exist before the first effect, and
	// decides for the last time, in the transaction that records the operation.
	intent func(ctx context.Context, tx *store.Tx) error
}

// newDraft begins an operation with a new id.
func newDraft(kind string, s journal.Subject) draft {
	return draft{id: journal.ID(newID()), kind: kind, subject: s}
}

// submit records d and starts it, or returns its plan. The request of o's id
// that was seen before gets the operation of that time.
func (e *Engine) submit(ctx context.Context, o api.Options, d draft) (api.Outcome, error) {
	if o.DryRun {
		return e.rehearse(ctx, d)
	}
	op := journal.Operation{ID: d.id, Kind: d.kind, State: journal.Queued, Subject: d.subject, Key: o.RequestID, Resources: d.resources, Steps: d.steps}
	var err error
	if op.Request, err = plainJSON(d.request); err != nil {
		return api.Outcome{}, err
	}
	if op.Result, err = plainJSON(d.result); err != nil {
		return api.Outcome{}, err
	}
	done, _, err := e.runner.Submit(ctx, op, func(ctx context.Context, tx *store.Tx) error {
		if d.intent != nil {
			if err := d.intent(ctx, tx); err != nil {
				return err
			}
		}
		return e.emit(ctx, tx, "operation.queued", d.subject, d.id)
	})
	if err != nil {
		return api.Outcome{}, err
	}
	v := operationView(done)
	return api.Outcome{Operation: &v}, nil
}

// named is a request that says no more than which object it is about.
type named struct {
	Ref string `json:"ref"`
}

// renamed is a request for another name.
type renamed struct {
	Ref  string `json:"ref"`
	Name string `json:"name"`
}

// seen returns the operation that an earlier call with o's request id started,
// or nil. The same id with another request is errs.Conflict. It is asked before
// anything else: the objects of a request that was already served may be gone.
func (e *Engine) seen(ctx context.Context, o api.Options, kind string, request any) (*api.Outcome, error) {
	if o.RequestID == "" || o.DryRun {
		return nil, nil
	}
	op, err := query(ctx, e, func(ctx context.Context, tx *store.Tx) (journal.Operation, error) {
		return tx.Operations.One(ctx, store.Eq("kind", kind), store.Eq("key", o.RequestID))
	})
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	body, err := plainJSON(request)
	if err != nil {
		return nil, err
	}
	if string(body) != string(op.Request) {
		return nil, errs.New(errs.Conflict, kind, o.RequestID, "request id %q was used for another request", o.RequestID).
			WithHint("that was operation %s; give every request an id of its own", op.ID)
	}
	v := operationView(e.runner.Overlay(op))
	return &api.Outcome{Operation: &v}, nil
}

// answer returns what seen found.
func answer(out *api.Outcome, err error) (api.Outcome, error) {
	if out == nil {
		return api.Outcome{}, err
	}
	return *out, err
}

// errRehearsed rolls a dry run's transaction back.
var errRehearsed = errs.New(errs.Cancelled, "plan", "", "a dry run changes nothing")

// rehearse checks d against the records and takes everything back.
func (e *Engine) rehearse(ctx context.Context, d draft) (api.Outcome, error) {
	err := e.store.Update(ctx, func(ctx context.Context, tx *store.Tx) error {
		if d.intent != nil {
			if err := d.intent(ctx, tx); err != nil {
				return err
			}
		}
		return errRehearsed
	})
	if err != errRehearsed {
		return api.Outcome{}, err
	}
	return api.Outcome{Plan: &api.Plan{Kind: d.kind, Subject: api.Subject(d.subject), Steps: stepsView(d.steps), Notes: d.notes}}, nil
}

// operationChanged runs in every transaction that moves an operation to another
// state: it tells followers, and lets go at the end of what only the operation
// needed.
func (e *Engine) operationChanged(ctx context.Context, tx *store.Tx, op *journal.Operation) error {
	if op.State.Final() {
		e.imports.drop(op.ID)
		e.configs.drop(op.ID)
		e.dropUnrecorded(ctx, tx, op)
		e.afterwards(op.Kind)
	}
	return e.emit(ctx, tx, "operation."+string(op.State), op.Subject, op.ID)
}

// afterwards does, beside the operations, what the end of one makes possible.
func (e *Engine) afterwards(kind string) {
	switch kind {
	case "disk.delete", "instance.delete", "image.delete", "cache.prune", "pool.delete":
		e.background.Go(func() { e.restoreBallast(e.life) })
	case "pool.start":
		e.background.Go(func() {
			err := errors.Join(e.releaseOldLeases(e.life, false), e.releaseOldLeases(e.life, true))
			if err != nil && e.life.Err() == nil {
				e.cfg.Log.Warn("leases of an earlier boot could not be released", "error", err)
			}
		})
	}
}

// emit records one event.
func (e *Engine) emit(ctx context.Context, tx *store.Tx, typ string, s journal.Subject, op journal.ID) error {
	return tx.Emit(ctx, store.Event{Time: e.now(), Type: typ, SubjectType: s.Type, SubjectID: s.ID, SubjectName: s.Name, OperationID: string(op)})
}

func plainJSON(v any) (json.RawMessage, error) {
	if v == nil {
		return nil, nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, errs.New(errs.Internal, "operation", "", "the request is not plain data: %w", err)
	}
	return b, nil
}

// simple is a handler whose parts may be left out. It is what most step kinds
// are made of.
type simple struct {
	act        func(ctx context.Context, c *journal.Call) error
	commit     func(ctx context.Context, tx *store.Tx, c *journal.Call) error
	undo       func(ctx context.Context, c *journal.Call) error
	undoCommit func(ctx context.Context, tx *store.Tx, c *journal.Call) error
	final      bool // what Act did cannot be taken back
}

func (s simple) Act(ctx context.Context, c *journal.Call) error {
	if s.act == nil {
		return nil
	}
	return s.act(ctx, c)
}

func (s simple) Commit(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	if s.commit == nil {
		return nil
	}
	return s.commit(ctx, tx, c)
}

func (s simple) Undo(ctx context.Context, c *journal.Call) error {
	if s.undo == nil {
		return nil
	}
	return s.undo(ctx, c)
}

func (s simple) UndoCommit(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	if s.undoCommit == nil {
		return nil
	}
	return s.undoCommit(ctx, tx, c)
}

// Irreversible tells the journal that a failure is not undone.
func (s simple) Irreversible() bool { return s.final }
