// Package journal runs operations: journalled pieces of work made of
// idempotent steps, with progress, cancel, undo and resume. It knows no storage
// and no SQL engine: a Runner is generic over the transaction T of whatever
// store keeps its rows. It refuses to run a step whose kind it does not know.
package journal

import (
	"context"
	"encoding/json"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// ID identifies an operation: UUIDv7 text.
type ID string

// State is the state of an operation.
type State string

// The states of an operation.
const (
	Queued        State = "queued"
	Running       State = "running"
	Undoing       State = "undoing"
	Done          State = "done"
	Failed        State = "failed"
	Cancelled     State = "cancelled"
	NeedsOperator State = "needs_operator" // undo failed too often; a person must decide
)

// Final reports whether an operation in state s will never run again by itself.
func (s State) Final() bool {
	return s == Done || s == Failed || s == Cancelled || s == NeedsOperator
}

// StepState is the state of one step.
type StepState string

// The states of a step.
const (
	StepPending StepState = "pending"
	StepDone    StepState = "done"
	StepUndone  StepState = "undone"
)

// Step is one journalled step: a named, versioned kind and its arguments.
type Step struct {
	Kind   string          `json:"kind"` // "volume.create/v1"
	Args   json.RawMessage `json:"args,omitempty"`
	State  StepState       `json:"state"`
	Cursor json.RawMessage `json:"cursor,omitempty"` // where a long Act may resume
	Output json.RawMessage `json:"output,omitempty"` // what Act found, for later steps
}

// NewStep returns a pending step of the given kind with args as JSON.
func NewStep(kind string, args any) Step {
	b, err := json.Marshal(args)
	if err != nil {
		panic("journal: step arguments are plain data: " + err.Error())
	}
	return Step{Kind: kind, Args: b, State: StepPending}
}

// Subject names what an operation works on.
type Subject struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Progress is how far an operation has come. Rate is units per second.
type Progress struct {
	Done       int64  `json:"done"`
	Total      int64  `json:"total"`
	Unit       string `json:"unit"` // bytes, steps
	Rate       int64  `json:"rate"`
	ETASeconds int64  `json:"eta_seconds"`
}

// Failure is why an operation failed, in the error vocabulary's words.
type Failure struct {
	Kind    errs.Kind `json:"kind"`
	Class   string    `json:"class,omitempty"`
	Op      string    `json:"op,omitempty"`
	Subject string    `json:"subject,omitempty"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
}

// Operation is one journal row.
type Operation struct {
	ID        ID              `json:"id"`
	Kind      string          `json:"kind"` // "disk.resize"
	State     State           `json:"state"`
	Subject   Subject         `json:"subject"`
	Key       string          `json:"key,omitempty"` // the caller's request id
	Request   json.RawMessage `json:"request,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	Resources []string        `json:"resources,omitempty"` // held exclusively until the operation ends
	Steps     []Step          `json:"steps"`
	Progress  Progress        `json:"progress"`
	Error     *Failure        `json:"error,omitempty"`
	Cancel    bool            `json:"cancel,omitempty"` // asked for
	Attempts  int             `json:"attempts,omitempty"`
	Owner     string          `json:"owner"` // the host that runs it
	Fence     int64           `json:"fence"` // of the daemon run that owns it; every write carries it
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// Call is what a handler is given: the operation, the step at hand, and ways
// to report. A handler decodes its arguments with Args.
type Call struct {
	Op   *Operation
	Step *Step

	handed   any
	progress func(done, total int64, unit string)
	save     func(ctx context.Context, cursor any) error
	idle     func(wait func() error) error
}

// Handler performs one kind of step. All methods are repeatable: a crash may
// come before or after any of them and the method is then called again. A Call
// is the handler's own copy: of what it changes there only the step's output and
// the operation's result are kept.
//
// Act changes the world outside of any transaction. It checks ctx before its
// first effect and between units of work that may stand alone.
//
// Commit writes the database effect of a performed Act; the runner adds the
// done-mark to the same transaction. If it returns Again, Act is repeated.
//
// Undo takes back what Act did or half did, deleting only what this operation
// made (I9). It is called also for a step whose Act never ran.
//
// UndoCommit writes the database effect of a performed Undo; the undone-mark
// joins the same transaction.
type Handler[T any] interface {
	Act(ctx context.Context, c *Call) error
	Commit(ctx context.Context, tx T, c *Call) error
	Undo(ctx context.Context, c *Call) error
	UndoCommit(ctx context.Context, tx T, c *Call) error
}

// Irreversible may be implemented by a Handler whose Act cannot be taken back.
// Once such a step is begun nothing at or before it is undone: when it fails
// the operation ends failed (or cancelled) and what the handler did stays for a
// repeated request; when a later step fails, undo stops above it. A done
// irreversible step makes Cancel refuse.
type Irreversible interface{ Irreversible() bool }

// Resumer may be implemented by a Handler whose Act may depend on something
// that a restart takes away, as a descriptor or a stream. An unfinished
// operation of which any step still to do is not Resumable is undone at start
// instead of resumed.
type Resumer interface{ Resumable(c *Call) bool }

// Again is returned by a Commit whose premise vanished meanwhile: the runner
// calls Act again, a bounded number of times.
const Again = again("the step's premise changed; trying again")

type again string

func (a again) Error() string { return string(a) }

// Rows is what a runner needs of the store that keeps operations.
type Rows[T any] interface {
	// Update runs fn in one durable transaction: when it returns nil the
	// writes survive power loss. It may run fn more than once.
	Update(ctx context.Context, fn func(ctx context.Context, tx T) error) error
	// View runs fn in one read transaction.
	View(ctx context.Context, fn func(ctx context.Context, tx T) error) error
	// InsertOperation adds a row and takes its Resources; errs.Busy names the
	// operation that holds one. A row with the same Key and Kind is returned
	// instead of inserting: found is true then, and a different Request is
	// errs.Conflict.
	InsertOperation(ctx context.Context, tx T, op Operation) (existing Operation, found bool, err error)
	// UpdateOperation writes op where id and fence match, else errs.Conflict.
	// In a final state it releases the Resources.
	UpdateOperation(ctx context.Context, tx T, op Operation) error
	// Operation returns one row, or errs.NotFound.
	Operation(ctx context.Context, tx T, id ID) (Operation, error)
	// Unfinished returns the rows of owner that are in no final state, oldest
	// first, after moving them to fence.
	TakeUnfinished(ctx context.Context, tx T, owner string, fence int64) ([]Operation, error)
}

// Args decodes the step's arguments into v.
func (c *Call) Args(v any) error {
	if err := json.Unmarshal(c.Step.Args, v); err != nil {
		return errs.New(errs.Corrupt, c.Step.Kind, string(c.Op.ID), "step arguments do not decode: %w", err)
	}
	return nil
}

// Hand gives v to the Commit that follows, as it is: it is not persisted.
func (c *Call) Hand(v any) { c.handed = v }

// Handed returns what Act gave to Commit.
func (c *Call) Handed() any { return c.handed }

// SetOutput keeps v for Commit and for later steps; it is persisted with the
// step's done-mark.
func (c *Call) SetOutput(v any) error {
	b, err := json.Marshal(v)
	c.Step.Output = b
	return err
}

// Output decodes what Act kept into v.
func (c *Call) Output(v any) error {
	if len(c.Step.Output) == 0 {
		return errs.New(errs.Internal, c.Step.Kind, string(c.Op.ID), "the step has no output")
	}
	return json.Unmarshal(c.Step.Output, v)
}

// SetResult sets what the operation answers when it is done; it is persisted
// with the step's done-mark.
func (c *Call) SetResult(v any) error {
	b, err := json.Marshal(v)
	c.Op.Result = b
	return err
}

// Progress reports how much of the step is done; it is cheap and may be called
// often.
func (c *Call) Progress(done, total int64, unit string) {
	if c.progress != nil {
		c.progress(done, total, unit)
	}
}

// SaveCursor persists where Act could resume after a crash. It costs a
// transaction.
func (c *Call) SaveCursor(ctx context.Context, cursor any) error { return c.save(ctx, cursor) }

// Idle runs wait, during which the step does no work of its own: it gives up
// the place it works in, so that the operations it waits for can never be kept
// out by those that wait for them.
func (c *Call) Idle(ctx context.Context, wait func(ctx context.Context) error) error {
	if c.idle == nil {
		return wait(ctx)
	}
	return c.idle(func() error { return wait(ctx) })
}
