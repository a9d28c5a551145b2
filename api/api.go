// Package api holds the wire types of tarn's HTTP API, version 1. The same
// types are what "tarn -o json" prints. It refuses to hold behaviour beyond
// reading and writing itself as JSON.
//
// Sizes are bytes. Times are RFC 3339 in UTC. Fields are only ever added.
package api

import (
	"errors"

	"github.com/tarn-storage/tarn/errs"
)

// List is one page of a collection. Next, when not empty, is the value of the
// "after" parameter that continues it.
type List[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next,omitempty"`
}

// Page asks for one page of a collection. A zero Limit is the server's default
// of 1000; -1 is everything.
type Page struct {
	After string `json:"after,omitempty"`
	Limit int    `json:"limit,omitempty"`
}

// Error is the one shape of an error at every layer.
type Error struct {
	Kind    errs.Kind `json:"kind"`
	Class   string    `json:"class,omitempty"`
	Op      string    `json:"op,omitempty"`
	Subject string    `json:"subject,omitempty"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
}

// ErrorBody is what a failed call answers and what "-o json" prints on stderr.
type ErrorBody struct {
	Error Error `json:"error"`
}

// Subject names the object an operation or event is about.
type Subject struct {
	Type string `json:"type"` // pool, image, volume, instance, disk
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Rename gives an object another name.
type Rename struct {
	Name string `json:"name"`
}

// Version says what runs.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	API     string `json:"api"`
	Schema  int    `json:"schema,omitempty"`
}

// Headers of requests. RequestIDHeader carries Options.RequestID;
// DescriptorHeader says that the body is the file descriptor that came with
// the request's first byte, which only the unix socket can carry;
// OperationHeader of an answer names its operation.
const (
	RequestIDHeader  = "Tarn-Request-Id"
	DescriptorHeader = "Tarn-Descriptor"
	OperationHeader  = "Tarn-Operation"
	DetailsHeader    = "Tarn-Details" // so many bytes before the image's are ImageDetails in JSON
	ErrorTrailer     = "Tarn-Error"   // of a streamed export that failed half-way: an ErrorBody
)

// ErrorOf returns err as it goes over the wire.
func ErrorOf(err error) Error {
	var e *errs.Error
	if !errors.As(err, &e) {
		return Error{Kind: errs.KindOf(err), Message: err.Error()}
	}
	return Error{Kind: e.Kind, Class: e.Class, Op: e.Op, Subject: e.Subject, Message: e.Message, Hint: e.Hint}
}

// Err returns the error that e describes, or nil for no error.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	return &errs.Error{Op: e.Op, Subject: e.Subject, Kind: e.Kind, Class: e.Class, Message: e.Message, Hint: e.Hint}
}
