package api

import (
	"encoding/json"
	"time"
)

// Operation is one journalled piece of work.
type Operation struct {
	ID        string          `json:"id"`
	Kind      string          `json:"kind"`
	State     string          `json:"state"`
	Subject   Subject         `json:"subject"`
	Key       string          `json:"request_id,omitempty"`
	Progress  Progress        `json:"progress"`
	Steps     []Step          `json:"steps"`
	Result    json.RawMessage `json:"result,omitempty"`
	Error     *Error          `json:"error,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	UpdatedAt time.Time       `json:"updated_at"`
}

// Final reports whether the operation has ended.
func (o Operation) Final() bool {
	switch o.State {
	case "done", "failed", "cancelled", "needs_operator":
		return true
	}
	return false
}

// Step is one step of an operation or of a plan.
type Step struct {
	Kind   string          `json:"kind"`
	State  string          `json:"state"`
	Detail json.RawMessage `json:"detail,omitempty"`
}

// Progress is how far an operation has come; Rate is units a second.
type Progress struct {
	Done       int64  `json:"done"`
	Total      int64  `json:"total"`
	Unit       string `json:"unit"`
	Rate       int64  `json:"rate"`
	ETASeconds int64  `json:"eta_seconds"`
}

// Plan is what a change would do: the answer of a dry run.
type Plan struct {
	Kind    string   `json:"kind"`
	Subject Subject  `json:"subject"`
	Steps   []Step   `json:"steps"`
	Notes   []string `json:"notes,omitempty"` // for people: sizes, space, what is destroyed
}

// Doctor asks for a check of the invariants.
type Doctor struct {
	Repair bool   `json:"repair,omitempty"`
	Pool   string `json:"pool,omitempty"`
}

// Scrub asks for the bases of a pool, or of all, to be read and compared with
// what was imported, at up to Rate bytes a second (0: 64 MiB). Corrupt ones are
// taken out of use, and with Repair made again. The operation's result is a Report.
type Scrub struct {
	Pool   string `json:"pool,omitempty"`
	Rate   int64  `json:"rate,omitempty"`
	Repair bool   `json:"repair,omitempty"`
}

// Report is the result of a check.
type Report struct {
	Problems []Problem `json:"problems"`
	Notes    []string  `json:"notes,omitempty"` // not problems: foreign files, missing landlock
}

// Problem is one broken invariant.
type Problem struct {
	Invariant string   `json:"invariant"` // I1 ... I14
	Object    string   `json:"object"`
	Detail    string   `json:"detail"`
	Disks     []string `json:"disks,omitempty"`    // those that a corrupt base concerns
	Repair    string   `json:"repair"`             // what was or can be done
	Repaired  bool     `json:"repaired,omitempty"` // it was: nothing is left to do
}

// Event is one change. IDs rise; a reader resumes after the last it saw.
type Event struct {
	ID      int64     `json:"id"`
	Time    time.Time `json:"time"`
	Type    string    `json:"type"` // "volume.ready", "operation.done"
	Subject Subject   `json:"subject"`
	Op      string    `json:"operation,omitempty"`
}

// Options are what every changing call takes besides its request. A call
// repeated with the same RequestID returns the first call's operation. A call
// over HTTP answers when its operation has ended, or after Wait; one that is cut
// while it waits goes on, and its RequestID finds it again.
type Options struct {
	RequestID string
	DryRun    bool
	Wait      time.Duration // in seconds; 0 answers at once
}

// Outcome is the answer of a changing call: a Plan for a dry run, else the
// Operation.
type Outcome struct {
	Operation *Operation `json:"operation,omitempty"`
	Plan      *Plan      `json:"plan,omitempty"`
}
