package ingest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
)

// The worker's descriptors.
const (
	sourceFD  = 3
	controlFD = 4
)

// maxMessage bounds every message in both directions. Control is a
// SOCK_SEQPACKET socket: the kernel keeps messages apart and a longer one is an
// error, so that neither side allocates what the other says.
const maxMessage = 32 << 10

// maxFiles per message: output and spool.
const maxPassed = 2

// judge is the first request: what the source is claimed to be.
type judge struct {
	Format      string `json:"format"`
	Compression string `json:"compression,omitempty"`
	Stream      bool   `json:"stream"`
	Size        int64  `json:"size"` // of the file, or what a stream announces; -1 unknown
	MaxVirtual  int64  `json:"max_virtual"`
	MaxData     int64  `json:"max_data"` // of what does not announce its size
	Threads     int    `json:"threads"`
	Described   bool   `json:"described,omitempty"` // a description comes with the message
	Adopt       bool   `json:"adopt,omitempty"`
	Held        bool   `json:"held,omitempty"` // the daemon learns of it when the file is written, or it is read once
}

// convert is the second request. Output comes with the message unless Dry; the
// spool behind it when Spool.
type convert struct {
	Dry   bool `json:"dry"`
	Spool bool `json:"spool"`
}

// request is one message to the worker: exactly one member is set.
type request struct {
	Judge   *judge   `json:"judge,omitempty"`
	Convert *convert `json:"convert,omitempty"`
}

// reply is one message from the worker: exactly one member is set.
type reply struct {
	Layers   *Layers  `json:"layers,omitempty"`
	Header   *Header  `json:"header,omitempty"`
	Progress *advance `json:"progress,omitempty"`
	Result   *Result  `json:"result,omitempty"`
	Failure  *failure `json:"failure,omitempty"`
}

// advance is how far the worker is, in bytes hashed and converted.
type advance struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
}

// failure is an error on its way through the socket.
type failure struct {
	Kind    errs.Kind `json:"kind"`
	Class   string    `json:"class,omitempty"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
}

// What a worker may say at most.
const (
	maxFailureText   = 2 << 10
	maxClassLength   = 32
	maxFeatures      = 32
	maxFeatureLength = 64
	maxBacking       = 1023 // as qcow2 itself
)

// failureOf packs an error. Texts that quote an image may hold anything; they
// are cut here and cleaned on the other side.
func failureOf(err error) *failure {
	f := &failure{Kind: errs.KindOf(blkio.Error("", "", err)), Message: err.Error()}
	var e *errs.Error
	if errors.As(err, &e) {
		f.Class, f.Message, f.Hint = e.Class, e.Message, e.Hint
	}
	f.Message, f.Hint = cut(f.Message, maxFailureText), cut(f.Hint, maxFailureText)
	return f
}

// error unpacks a failure that a worker, perhaps no longer tarn's own code,
// has sent.
func (f *failure) error() *errs.Error {
	kind := f.Kind
	if !slices.Contains(errs.Kinds(), kind) {
		kind = errs.Internal
	}
	e := errs.New(kind, "", "", "%s", clean(f.Message, maxFailureText))
	e.Class = clean(f.Class, maxClassLength)
	e.Hint = clean(f.Hint, maxFailureText)
	return e
}

// clean makes s a line of printable text of at most n bytes.
func clean(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, cut(s, n))
}

// cut returns at most the first n bytes of s, as valid UTF-8.
func cut(s string, n int) string { return strings.ToValidUTF8(s[:min(len(s), n)], "?") }

// receive reads one request and the descriptors that came with it from the
// control socket.
func receive() (request, []descriptor, error) {
	var q request
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxPassed))
	n, oobn, flags, err := recvmsg(controlFD, buf, oob)
	switch {
	case err != nil:
		return q, nil, err
	case n == 0:
		return q, nil, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		return q, nil, errors.New("a control message is too long")
	}
	if err := json.Unmarshal(buf[:n], &q); err != nil {
		return q, nil, fmt.Errorf("control message: %w", err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return q, nil, err
	}
	var passed []descriptor
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return q, nil, err
		}
		for _, fd := range fds {
			passed = append(passed, descriptor(fd))
		}
	}
	return q, passed, nil
}

func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, err error) {
	for {
		n, oobn, flags, _, err = unix.Recvmsg(fd, p, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			return n, oobn, flags, err
		}
	}
}

// send writes one reply to the control socket.
func send(r reply) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = descriptor(controlFD).Write(b)
	return err
}
