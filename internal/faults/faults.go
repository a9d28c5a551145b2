// Package faults is where every effect on the world passes: each write, sync,
// rename, link, unlink, ioctl, tool call and transaction runs inside Do, so
// that a test can count them, fail the n-th, or crash before or after it. It
// refuses to decide anything: without an injector Do costs one atomic load.
package faults

import (
	"errors"
	"sync/atomic"
)

// Kind is the sort of an effect.
type Kind string

// The kinds of effect.
const (
	Write  Kind = "write"
	Sync   Kind = "sync"
	Create Kind = "create" // a new file or directory
	Rename Kind = "rename"
	Link   Kind = "link"
	Unlink Kind = "unlink"
	Ioctl  Kind = "ioctl" // also fallocate, truncate and mode changes
	Tool   Kind = "tool"  // an external program or the confined worker
	Tx     Kind = "tx"    // a database transaction
)

// Effect names one effect: its kind and what it touches, for people to read.
type Effect struct {
	Kind Kind
	Name string
}

// ErrCrash is what every effect returns once an injector has crashed the
// process in simulation: from then on nothing may change the world.
var ErrCrash = errors.New("simulated crash")

// Injector decides the fate of effects. Before is called ahead of the act: a
// non-nil error is returned instead of acting. After is called behind an act
// that was performed, with its result, and returns the result to report.
// Injectors must be safe for concurrent use.
type Injector interface {
	Before(Effect) error
	After(Effect, error) error
}

type holder struct{ Injector }

var current atomic.Pointer[holder]

// Do performs act as one effect.
func Do(kind Kind, name string, act func() error) error {
	h := current.Load()
	if h == nil {
		return act()
	}
	e := Effect{kind, name}
	if err := h.Before(e); err != nil {
		return err
	}
	return h.After(e, act())
}

// Install makes i decide all effects of the process until the returned
// function is called. Only tests install injectors, one at a time.
func Install(i Injector) (remove func()) {
	if !current.CompareAndSwap(nil, &holder{i}) {
		panic("faults: an injector is already installed")
	}
	return func() { current.Store(nil) }
}
