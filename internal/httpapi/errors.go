package httpapi

import (
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// statuses is the one table from kinds to HTTP statuses.
var statuses = map[errs.Kind]int{
	errs.Internal:    http.StatusInternalServerError,
	errs.Invalid:     http.StatusBadRequest,
	errs.NotFound:    http.StatusNotFound,
	errs.Exists:      http.StatusConflict,
	errs.Conflict:    http.StatusConflict,
	errs.Unsafe:      http.StatusUnprocessableEntity,
	errs.NoSpace:     http.StatusInsufficientStorage,
	errs.Quota:       http.StatusForbidden,
	errs.Busy:        http.StatusLocked,
	errs.Unavailable: http.StatusServiceUnavailable,
	errs.Cancelled:   http.StatusConflict,
	errs.Corrupt:     http.StatusInternalServerError,
	errs.Unsupported: http.StatusNotImplemented,
	errs.Version:     http.StatusNotImplemented,
}

// Failure is the body of every answer that is no success, with its status.
type Failure struct {
	api.ErrorBody
	status int
}

// Error renders the failure as its error does.
func (f *Failure) Error() string { return f.ErrorBody.Error.Message }

// GetStatus returns the HTTP status.
func (f *Failure) GetStatus() int { return f.status }

// fail turns any error into the one shape.
func fail(err error) *Failure {
	e := api.ErrorOf(err)
	status, ok := statuses[e.Kind]
	if !ok {
		status = http.StatusInternalServerError
	}
	return &Failure{ErrorBody: api.ErrorBody{Error: e}, status: status}
}

// huma makes its own errors (validation, body limits, unknown content types)
// through one process-wide variable; there is no setting per API.
func init() {
	huma.NewError = func(status int, msg string, causes ...error) huma.StatusError {
		return humaError(status, msg, causes)
	}
}

// humaError shapes an error that huma reports: what an engine returned, or
// what is wrong with a request.
func humaError(status int, msg string, causes []error) *Failure {
	if status == http.StatusInternalServerError && len(causes) == 1 {
		var f *Failure
		if errors.As(causes[0], &f) {
			return f
		}
		return fail(causes[0])
	}
	details := make([]string, 0, len(causes))
	for _, c := range causes {
		var d huma.ErrorDetailer
		if !errors.As(c, &d) {
			if c != nil {
				details = append(details, c.Error())
			}
			continue
		}
		detail := d.ErrorDetail()
		details = append(details, strings.TrimPrefix(detail.Location+": "+detail.Message, ": "))
	}
	if len(details) > 0 {
		msg = strings.Join(details, "; ")
	}
	kind := errs.Invalid
	if status >= http.StatusInternalServerError {
		kind = errs.Internal
	}
	f := fail(errs.New(kind, "api.request", "", "%s", msg))
	if status != http.StatusUnprocessableEntity && status != 0 {
		f.status = status // 413, 415 and such say more than 400
	}
	return f
}
