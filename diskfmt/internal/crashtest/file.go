// Package crashtest cuts the power under the writers of formats: it records what
// effects a run has on a container, and puts all, none or some of what was not
// synced on another one. It refuses to know a format, and is for tests only.
package crashtest

import (
	"bytes"
	"errors"
	"io"
)

// File is a container in memory.
type File struct{ B []byte }

// ReadAt implements io.ReaderAt.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.B)) {
		return 0, io.EOF
	}
	n := copy(p, f.B[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements io.WriterAt; behind the end the file grows.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	if end := off + int64(len(p)); end > int64(len(f.B)) {
		f.B = append(f.B, make([]byte, end-int64(len(f.B)))...)
	}
	return copy(f.B[off:], p), nil
}

// Truncate sets the size.
func (f *File) Truncate(n int64) error {
	if n < int64(len(f.B)) {
		f.B = f.B[:n:n]
	}
	f.B = append(f.B, make([]byte, n-int64(len(f.B)))...)
	return nil
}

// Zero makes bytes zero, as far as there are any.
func (f *File) Zero(off, n int64) error {
	size := int64(len(f.B))
	clear(f.B[min(off, size):min(off+n, size)])
	return nil
}

// Sync has nothing to do.
func (f *File) Sync() error { return nil }

// Kind is the kind of an effect.
type Kind byte

// The kinds of effects.
const (
	Write Kind = iota
	Truncate
	Zero
	Sync
)

// Event is one effect on a container.
type Event struct {
	Kind Kind
	Off  int64 // of Truncate the size
	Size int64 // of what Zero makes zero
	Data []byte
}

func (e Event) apply(f *File) {
	switch e.Kind {
	case Write:
		_, _ = f.WriteAt(e.Data, e.Off)
	case Truncate:
		_ = f.Truncate(e.Off)
	case Zero:
		_ = f.Zero(e.Off, e.Size)
	}
}

// Recorder is a container that logs its effects, and fails at one of them.
type Recorder struct {
	File
	Log  []Event
	Fail int // the effect that fails, from 1
}

var errBroken = errors.New("input/output error")

func (r *Recorder) do(e Event) error {
	r.Log = append(r.Log, e)
	if len(r.Log) == r.Fail {
		return errBroken
	}
	e.apply(&r.File)
	return nil
}

// WriteAt implements io.WriterAt.
func (r *Recorder) WriteAt(p []byte, off int64) (int, error) {
	return len(p), r.do(Event{Kind: Write, Off: off, Data: bytes.Clone(p)})
}

// Truncate sets the size.
func (r *Recorder) Truncate(n int64) error { return r.do(Event{Kind: Truncate, Off: n}) }

// Zero makes bytes zero, as far as there are any.
func (r *Recorder) Zero(off, n int64) error { return r.do(Event{Kind: Zero, Off: off, Size: n}) }

// Sync makes what was done so far survive a cut.
func (r *Recorder) Sync() error { return r.do(Event{Kind: Sync}) }
