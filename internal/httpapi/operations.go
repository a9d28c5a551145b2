package httpapi

import (
	"context"
	"time"

	"github.com/tarn-storage/tarn/api"
)

type operationList struct {
	Paging
	State string `query:"state" enum:"queued,running,undoing,done,failed,cancelled,needs_operator" doc:"Only operations in this state."`
}

type operationShow struct {
	Ref
	Wait int `query:"wait" minimum:"0" maximum:"3600" doc:"Seconds to wait for the operation to end."`
}

func (s *Server) routeOperations() {
	e := s.engine
	query(s, call("operation-list", "GET", "/v1/operations", "List operations"),
		func(ctx context.Context, in *operationList) (api.List[api.Operation], error) {
			return e.Operations(ctx, in.State, in.page())
		})
	query(s, call("operation-show", "GET", "/v1/operations/{ref}", "Show an operation, at its end if asked to wait"),
		func(ctx context.Context, in *operationShow) (api.Operation, error) {
			if in.Wait > 0 {
				return s.wait(ctx, in.Ref.Ref, time.Duration(in.Wait)*time.Second)
			}
			return e.Operation(ctx, in.Ref.Ref)
		})
	query(s, call("operation-cancel", "POST", "/v1/operations/{ref}/cancel", "Ask an operation to stop and undo itself"),
		func(ctx context.Context, in *Ref) (api.Operation, error) { return e.OperationCancel(ctx, in.Ref) })
}
