package httpapi

import (
	"context"
	"net/http"
	"reflect"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tarn-storage/tarn/api"
)

// Ref is the parameter of a path that names one object.
type Ref struct {
	Ref string `path:"ref" doc:"Name or id; a disk also by serial or INSTANCE/ROLE, escaped as one path segment."`
}

// Paging are the parameters of every list.
type Paging struct {
	After string `query:"after" pattern:"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$" doc:"The value of next in the page before."`
	Limit int    `query:"limit" minimum:"-1" doc:"At most so many items; 0 is 1000, -1 is everything."`
}

// Change are the parameters of every changing call.
type Change struct {
	RequestID string `header:"Tarn-Request-Id" maxLength:"255" doc:"A repeat with the same key answers with the first call's operation."`
	DryRun    bool   `query:"dry_run" doc:"Answer with the plan and change nothing."`
	Wait      int    `query:"wait" minimum:"0" maximum:"3600" doc:"Seconds to wait for the operation to end."`
}

// Resolve lifts the deadline of the body once it was read: the call itself may
// take longer.
func (c *Change) Resolve(ctx huma.Context) []error {
	_ = ctx.SetReadDeadline(time.Time{})
	return nil
}

func (c *Change) options() api.Options {
	return api.Options{RequestID: c.RequestID, DryRun: c.DryRun, Wait: time.Duration(c.Wait) * time.Second}
}

// The inputs of changing calls by what they carry.
type (
	changeRef struct {
		Change
		Ref
	}
	changeBody[B any] struct {
		Change
		Body B
	}
	changeRefBody[B any] struct {
		Change
		Ref
		Body B
	}
	refBody[B any] struct {
		Ref
		Body B
	}
	showAs struct {
		Ref
		As string `query:"as" required:"true" enum:"libvirt,qemu" doc:"Whose form to answer in."`
	}
)

// reply is an answer of 200 with a body.
type reply[B any] struct{ Body B }

// changed is the answer of a changing call: 200 when it has ended or was a dry
// run, 202 while its operation goes on.
type changed struct {
	Status    int
	Operation string `header:"Tarn-Operation" doc:"The operation's id."`
	Body      api.Outcome
}

// call describes one operation of the API.
func call(id, method, path, summary string, more ...func(*huma.Operation)) huma.Operation {
	op := huma.Operation{OperationID: id, Method: method, Path: path, Summary: summary, MaxBodyBytes: maxBody, BodyReadTimeout: bodyTimeout}
	for _, f := range more {
		f(&op)
	}
	return op
}

// query registers a call that changes nothing.
func query[I, B any](s *Server, op huma.Operation, f func(context.Context, *I) (B, error)) {
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*reply[B], error) {
		b, err := f(ctx, in)
		if err != nil {
			return nil, fail(err)
		}
		return &reply[B]{b}, nil
	})
}

// change registers a call that answers with an outcome.
func change[I any, P interface {
	*I
	options() api.Options
}](s *Server, op huma.Operation, f func(context.Context, api.Options, *I) (api.Outcome, error)) {
	op.DefaultStatus = http.StatusOK
	op.Responses = map[string]*huma.Response{
		"202":     s.response("Accepted: the operation goes on", typeOf[api.Outcome]()),
		"default": s.response("Error", typeOf[Failure]()),
	}
	huma.Register(s.api, op, func(ctx context.Context, in *I) (*changed, error) {
		o := P(in).options()
		out, err := f(ctx, o, in)
		if err != nil {
			return nil, fail(err)
		}
		return s.settle(ctx, out, o.Wait)
	})
}

// response describes an answer in JSON.
func (s *Server) response(description string, body reflect.Type) *huma.Response {
	schema := s.api.OpenAPI().Components.Schemas.Schema(body, true, "")
	return &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {Schema: schema}}}
}

// settle waits as long as the caller asked for and makes the answer.
func (s *Server) settle(ctx context.Context, out api.Outcome, wait time.Duration) (*changed, error) {
	if out.Operation == nil {
		return &changed{Status: http.StatusOK, Body: out}, nil
	}
	op := *out.Operation
	if wait > 0 && !op.Final() {
		var err error
		if op, err = s.wait(ctx, op.ID, wait); err != nil {
			return nil, fail(err)
		}
	}
	status := http.StatusOK
	if !op.Final() {
		status = http.StatusAccepted
	}
	return &changed{Status: status, Operation: op.ID, Body: api.Outcome{Operation: &op}}, nil
}

// wait returns the operation as it is when it ends, the time is over or the
// server stops, whichever is first.
func (s *Server) wait(ctx context.Context, id string, d time.Duration) (api.Operation, error) {
	waiting, cancel := s.untilStop(ctx)
	defer cancel()
	op, err := s.engine.OperationWait(waiting, id, d)
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return s.engine.Operation(ctx, id)
	}
	return op, err
}
