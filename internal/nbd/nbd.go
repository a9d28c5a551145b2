// Package nbd is a client of the NBD protocol (fixed newstyle negotiation,
// structured replies, the metadata context base:allocation) over a connection
// that the caller made. It refuses to dial, to go on with a server that breaks
// the protocol, and to wait for ever for one that does not answer: after either
// every call fails.
//
// The protocol is doc/proto.md of the NetworkBlockDevice/nbd project; names
// here are its names.
package nbd

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

const (
	maxRequest = 4 << 20 // bytes of one read or write; longer ones are split
	inFlight   = 64      // requests at once on one connection
)

// Client is one connection in its transmission phase. Its methods are safe for
// concurrent use; requests of several callers are in flight together.
type Client struct {
	conn     net.Conn
	export   string
	patience time.Duration
	hello    hello
	slots    chan struct{}

	writing sync.Mutex // held for one request's bytes

	mu      sync.Mutex
	pending map[uint64]*request
	cookie  uint64
	broken  error // set once: nothing more can be asked
	left    bool  // by Close
	ended   chan struct{}
}

// request is one command until its last reply has come.
type request struct {
	kind   uint16
	offset uint64
	length uint32
	data   []byte // where a read's bytes go
	seen   ranges // which of them have come
	status []Extent
	err    error // the server's
	done   chan error
}

// Extent is a run of an export as base:allocation describes it.
type Extent struct {
	Length int64
	Hole   bool // takes no space
	Zero   bool // reads as zeroes
}

// Config says how to open an export.
type Config struct {
	Export string
	// Patience is how long the server may leave requests without any reply; then
	// the connection is given up. It must be positive.
	Patience time.Duration
	// Opening is how long negotiating may take; 0 is Patience.
	Opening time.Duration
}

// New negotiates for an export on conn, which is the client's from then on. An
// export that does not exist is errs.NotFound, a server that breaks the protocol
// errs.Unavailable.
func New(conn net.Conn, c Config) (*Client, error) {
	if err := conn.SetDeadline(time.Now().Add(cmp.Or(c.Opening, c.Patience))); err != nil {
		conn.Close()
		return nil, errs.New(errs.Unavailable, "nbd.open", c.Export, "%w", err)
	}
	h, err := negotiate(conn, c.Export)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		return nil, failed("nbd.open", c.Export, err)
	}
	n := &Client{conn: conn, export: c.Export, patience: c.Patience, hello: h, slots: make(chan struct{}, inFlight),
		pending: map[uint64]*request{}, ended: make(chan struct{})}
	go n.receive()
	return n, nil
}

// Size returns the export's size in bytes.
func (n *Client) Size() int64 { return int64(n.hello.size) }

// ReadOnly reports whether the server takes no writes.
func (n *Client) ReadOnly() bool { return n.hello.flags&flagReadOnly != 0 }

// ReadAt implements io.ReaderAt.
func (n *Client) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errs.New(errs.Invalid, "nbd.read", n.export, "offset %d", off)
	}
	short := error(nil)
	if rest := n.Size() - off; int64(len(p)) > rest {
		p, short = p[:max(rest, 0)], io.EOF
	}
	if err := n.each(off, int64(len(p)), maxRequest, func(at, length int64) *request {
		return &request{kind: cmdRead, offset: uint64(at), length: uint32(length), data: p[at-off : at-off+length]}
	}, nil); err != nil {
		return 0, failed("nbd.read", n.export, err)
	}
	return len(p), short
}

// WriteAt implements io.WriterAt. After an error any part of p may have been
// written.
func (n *Client) WriteAt(p []byte, off int64) (int, error) {
	return n.write(p, off, 0)
}

// WriteDurable is WriteAt that returns when the bytes survive power loss.
func (n *Client) WriteDurable(p []byte, off int64) (int, error) {
	if n.hello.flags&flagSendFUA != 0 {
		return n.write(p, off, cmdFlagFUA)
	}
	c, err := n.write(p, off, 0)
	if err == nil {
		err = n.Flush()
	}
	return c, err
}

func (n *Client) write(p []byte, off int64, flags uint16) (int, error) {
	if err := n.inside(off, int64(len(p))); err != nil {
		return 0, failed("nbd.write", n.export, err)
	}
	err := n.each(off, int64(len(p)), maxRequest, func(at, length int64) *request {
		return &request{kind: cmdWrite | flags<<commandBits, offset: uint64(at), length: uint32(length)}
	}, func(at, length int64) []byte { return p[at-off : at-off+length] })
	if err != nil {
		return 0, failed("nbd.write", n.export, err)
	}
	return len(p), nil
}

// Zero makes [off, off+length) read as zeroes and lets the server release its
// space. A server that cannot is sent the zeroes.
func (n *Client) Zero(off, length int64) error {
	if err := n.inside(off, length); err != nil {
		return failed("nbd.zero", n.export, err)
	}
	if n.hello.flags&flagSendWriteZeroes == 0 {
		zeroes := make([]byte, min(length, maxRequest))
		for length > 0 {
			part := min(length, maxRequest)
			if _, err := n.WriteAt(zeroes[:part], off); err != nil {
				return err
			}
			off, length = off+part, length-part
		}
		return nil
	}
	return failed("nbd.zero", n.export, n.each(off, length, maxSpan, plain(cmdWriteZeroes), nil))
}

// Trim tells the server that the bytes of [off, off+length) are of no use any
// more. They may read as anything afterwards; a server that does not know the
// command is not asked.
func (n *Client) Trim(off, length int64) error {
	if err := n.inside(off, length); err != nil || n.hello.flags&flagSendTrim == 0 {
		return failed("nbd.trim", n.export, err)
	}
	return failed("nbd.trim", n.export, n.each(off, length, maxSpan, plain(cmdTrim), nil))
}

// Flush makes everything survive power loss that was written before it was
// called.
func (n *Client) Flush() error {
	if n.hello.flags&flagSendFlush == 0 {
		return nil
	}
	return failed("nbd.flush", n.export, n.do(&request{kind: cmdFlush}, nil))
}

// Status returns extents that begin at off, one behind the other, at least one,
// and not past off+length. Where the server does not tell, all is data.
func (n *Client) Status(off, length int64) ([]Extent, error) {
	if err := n.inside(off, length); err != nil || length == 0 {
		return nil, failed("nbd.status", n.export, err)
	}
	length = min(length, maxSpan)
	if !n.hello.allocation {
		return []Extent{{Length: length}}, nil
	}
	r := &request{kind: cmdBlockStatus, offset: uint64(off), length: uint32(length)}
	if err := n.do(r, nil); err != nil {
		return nil, failed("nbd.status", n.export, err)
	}
	return r.status, nil
}

// maxSpan bounds requests without a payload; it is a multiple of every block
// size there is.
const maxSpan = 1 << 30

func plain(kind uint16) func(at, length int64) *request {
	return func(at, length int64) *request {
		return &request{kind: kind, offset: uint64(at), length: uint32(length)}
	}
}

// Close says goodbye and ends the connection. It does not flush.
func (n *Client) Close() error {
	n.mu.Lock()
	n.left = true
	n.mu.Unlock()
	n.writing.Lock()
	_ = n.conn.SetWriteDeadline(time.Now().Add(time.Second)) // goodbye is a courtesy
	_, _ = n.conn.Write(header(cmdDisc, 0, 0, 0))
	n.writing.Unlock()
	err := n.conn.Close()
	<-n.ended
	if errors.Is(err, net.ErrClosed) { // the server was faster
		err = nil
	}
	return failed("nbd.close", n.export, err)
}

// inside refuses a range that is not in the export.
func (n *Client) inside(off, length int64) error {
	if off < 0 || length < 0 || off > n.Size()-length {
		return errs.New(errs.Invalid, "nbd", n.export, "bytes %d+%d are outside of %d", off, length, n.Size())
	}
	return nil
}

// each splits [off, off+length) into requests of at most most bytes, has them
// all under way, and returns the first error.
func (n *Client) each(off, length, most int64, make func(at, length int64) *request, payload func(at, length int64) []byte) error {
	var first error
	var sent []*request
	if b := int64(n.hello.maxBlock); b > 0 && most == maxRequest {
		most = min(most, b)
	}
	for at := off; at < off+length && first == nil; {
		part := min(most, off+length-at)
		r := make(at, part)
		var body []byte
		if payload != nil {
			body = payload(at, part)
		}
		if first = n.send(r, body); first == nil {
			sent = append(sent, r)
		}
		at += part
	}
	for _, r := range sent {
		if err := <-r.done; first == nil {
			first = err
		}
	}
	return first
}

func (n *Client) do(r *request, payload []byte) error {
	if err := n.send(r, payload); err != nil {
		return err
	}
	return <-r.done
}

// send registers r and writes it.
func (n *Client) send(r *request, payload []byte) error {
	if b := int64(n.hello.minBlock); b > 1 && (int64(r.offset)%b != 0 || int64(r.length)%b != 0) {
		return errs.New(errs.Invalid, "nbd", n.export, "bytes %d+%d are not whole blocks of %d", r.offset, r.length, b)
	}
	n.slots <- struct{}{}
	r.done = make(chan error, 1)
	n.mu.Lock()
	if n.broken != nil || n.left {
		err := n.broken
		n.mu.Unlock()
		<-n.slots
		if err == nil {
			err = net.ErrClosed
		}
		return err
	}
	n.cookie++
	cookie := n.cookie
	n.pending[cookie] = r
	n.expect()
	n.mu.Unlock()

	n.writing.Lock()
	defer n.writing.Unlock()
	_ = n.conn.SetWriteDeadline(time.Now().Add(n.patience)) // fails only when closed, and then so does the write
	parts := net.Buffers{header(r.kind, cookie, r.offset, r.length)}
	if len(payload) > 0 {
		parts = append(parts, payload)
	}
	if _, err := parts.WriteTo(n.conn); err != nil {
		n.conn.Close() // half a request is no protocol: receive fails all that is pending, this one too
	}
	return nil
}

// expect gives the server time until its next reply, for ever if it owes none.
// The caller holds mu.
func (n *Client) expect() {
	deadline := time.Time{}
	if len(n.pending) > 0 {
		deadline = time.Now().Add(n.patience)
	}
	_ = n.conn.SetReadDeadline(deadline) // fails only when closed, and then so does the read
}

// receive reads replies until the connection ends and fails what is pending then.
func (n *Client) receive() {
	defer close(n.ended)
	err := n.replies()
	n.conn.Close()
	n.mu.Lock()
	defer n.mu.Unlock()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	n.broken = errs.New(errs.Unavailable, "nbd", n.export, "the connection to the server is lost: %w", err)
	for cookie, r := range n.pending {
		delete(n.pending, cookie)
		<-n.slots
		r.done <- n.broken
	}
}

// finish answers a request whose last reply has come.
func (n *Client) finish(cookie uint64, r *request) {
	n.mu.Lock()
	delete(n.pending, cookie)
	n.expect()
	n.mu.Unlock()
	<-n.slots
	r.done <- r.err
}

// asked returns the pending request that a reply is for.
func (n *Client) asked(cookie uint64) (*request, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r, ok := n.pending[cookie]
	if !ok {
		return nil, broken("a reply to a request %d that was not made", cookie)
	}
	n.expect()
	return r, nil
}

// header renders a request's 28 bytes. The upper half of kind are its flags.
func header(kind uint16, cookie, offset uint64, length uint32) []byte {
	b := make([]byte, 0, 28)
	b = binary.BigEndian.AppendUint32(b, requestMagic)
	b = binary.BigEndian.AppendUint16(b, kind>>commandBits)
	b = binary.BigEndian.AppendUint16(b, kind&(1<<commandBits-1))
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, length)
}

// broken says how the server broke the protocol.
func broken(format string, args ...any) error {
	return fmt.Errorf("the server breaks the NBD protocol: "+format, args...)
}

// errnos are the protocol's own numbers of errors, which are Linux's.
var errnos = map[uint32]struct {
	errno syscall.Errno
	kind  errs.Kind
}{
	1: {syscall.EPERM, errs.Unavailable}, 5: {syscall.EIO, errs.Unavailable}, 12: {syscall.ENOMEM, errs.Unavailable},
	22: {syscall.EINVAL, errs.Invalid}, 28: {syscall.ENOSPC, errs.NoSpace}, 75: {syscall.EOVERFLOW, errs.Invalid},
	95: {syscall.EOPNOTSUPP, errs.Unsupported}, 108: {syscall.ESHUTDOWN, errs.Unavailable},
}

// remote is an error that the server reported.
func remote(number uint32, message string) error {
	e, ok := errnos[number]
	if !ok {
		e.errno, e.kind = syscall.EIO, errs.Unavailable
	}
	if message != "" {
		return errs.New(e.kind, "nbd", "", "%s: %w", message, e.errno)
	}
	return errs.New(e.kind, "nbd", "", "%w", e.errno)
}

func failed(op, export string, err error) error {
	if err == nil {
		return nil
	}
	var e *errs.Error
	if errors.As(err, &e) {
		return errs.Wrap(err, op, export)
	}
	return errs.New(errs.Unavailable, op, export, "%w", err)
}
