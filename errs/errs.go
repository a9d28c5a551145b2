// Package errs is the one error vocabulary of tarn: every error that crosses a
// package border is an *Error with a Kind for machines and op, subject, message
// and hint for people. It refuses to know any transport: adapters own the
// tables that turn a Kind into an HTTP status or an exit code.
package errs

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// Kind says what sort of failure happened. Kinds are append-only: their text is
// part of the wire format. A Kind is itself an error so that
// errors.Is(err, errs.NotFound) works through any chain.
type Kind string

// The kinds, each with the meaning that every adapter shares.
const (
	Internal    Kind = "internal"      // a bug in tarn, or a failure nothing below explains
	Invalid     Kind = "invalid"       // the request itself is wrong
	NotFound    Kind = "not_found"     // the named object does not exist
	Exists      Kind = "exists"        // the name or content is already there
	Conflict    Kind = "conflict"      // the request contradicts recorded state
	Unsafe      Kind = "unsafe"        // refused by a safety rule; Class may name it
	NoSpace     Kind = "no_space"      // the capacity domain cannot hold it
	Quota       Kind = "quota"         // a limit set by an administrator forbids it
	Busy        Kind = "busy"          // in use: a lease, a lock or a running operation
	Unavailable Kind = "unavailable"   // the backend or daemon does not answer
	Cancelled   Kind = "cancelled"     // stopped on request
	Corrupt     Kind = "corrupt"       // tarn's own data contradicts its record
	Unsupported Kind = "unsupported"   // this build or this driver cannot do it
	Version     Kind = "newer_version" // written by a newer tarn: refused untouched
)

// Kinds lists every Kind. Adapters test their tables against it.
func Kinds() []Kind {
	return []Kind{Internal, Invalid, NotFound, Exists, Conflict, Unsafe, NoSpace, Quota,
		Busy, Unavailable, Cancelled, Corrupt, Unsupported, Version}
}

// Error makes a Kind usable as a target of errors.Is.
func (k Kind) Error() string { return string(k) }

// Error is one failure. Op is the operation in dotted form ("volume.create"),
// Subject the object as a user names it, Message what was wrong, Hint what to
// do next. Class is set only by the image gate ("EXTERNAL_REFERENCE"). Err is
// the cause, kept for errors.Is and errors.As.
type Error struct {
	Op      string
	Subject string
	Kind    Kind
	Class   string
	Message string
	Hint    string
	Err     error
}

// New returns an *Error whose message is formatted from format and args. A
// single %w among the verbs sets the cause.
func New(kind Kind, op, subject, format string, args ...any) *Error {
	f := fmt.Errorf(format, args...)
	return &Error{Op: op, Subject: subject, Kind: kind, Message: f.Error(), Err: errors.Unwrap(f)}
}

// Wrap adds op and subject to err and keeps its kind, class, message and hint.
// A nil err stays nil.
func Wrap(err error, op, subject string) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		c := *e
		c.Op, c.Subject, c.Err = op, subject, err
		return &c
	}
	return &Error{Op: op, Subject: subject, Kind: KindOf(err), Message: err.Error(), Err: err}
}

// WithHint returns a copy of e that tells the user what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// WithClass returns a copy of e that names the gate's class of refusal.
func (e *Error) WithClass(class string) *Error {
	c := *e
	c.Class = class
	return &c
}

// Error renders "op subject: message", leaving out what is empty.
func (e *Error) Error() string {
	head := e.Op
	if e.Subject != "" {
		if head != "" {
			head += " "
		}
		head += e.Subject
	}
	if head == "" {
		return e.Message
	}
	return head + ": " + e.Message
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is e's Kind.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// KindOf returns the kind of err: that of the outermost *Error, else what the
// cause implies (a cancelled context, ENOSPC, EDQUOT), else Internal.
func KindOf(err error) Kind {
	var e *Error
	var k Kind
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return Cancelled
	case errors.Is(err, syscall.ENOSPC):
		return NoSpace
	case errors.Is(err, syscall.EDQUOT):
		return Quota
	}
	return Internal
}
