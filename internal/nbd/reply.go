package nbd

import (
	"encoding/binary"
	"io"
	"slices"
)

// replies reads replies until the connection fails or the server breaks the
// protocol.
func (n *Client) replies() error {
	w := &wire{rw: n.conn}
	for {
		magic := w.u32()
		switch {
		case w.err != nil:
			return w.err
		case magic == chunkMagic:
			n.chunk(w)
		case magic == simpleMagic:
			n.simple(w)
		default:
			return broken("a reply begins with %#x", magic)
		}
		if w.err != nil {
			return w.err
		}
	}
}

// simple takes a reply without structure, which no read or status can have.
func (n *Client) simple(w *wire) {
	number, cookie := w.u32(), w.u64()
	if w.err != nil {
		return
	}
	r, err := n.asked(cookie)
	if err == nil && (r.command() == cmdRead || r.command() == cmdBlockStatus) {
		err = broken("a simple reply to command %d", r.command())
	}
	if err != nil {
		w.err = err
		return
	}
	if number != 0 {
		r.err = remote(number, "")
	}
	n.finish(cookie, r)
}

// chunk takes one chunk of a structured reply.
func (n *Client) chunk(w *wire) {
	flags, kind, cookie, length := w.u16(), w.u16(), w.u64(), w.u32()
	if w.err != nil {
		return
	}
	r, err := n.asked(cookie)
	if err != nil {
		w.err = err
		return
	}
	switch {
	case kind == chunkNone && length == 0 && flags&chunkDone != 0:
	case kind == chunkData && r.command() == cmdRead && length > 8:
		r.takeData(w, length)
	case kind == chunkHole && r.command() == cmdRead && length == 12:
		r.takeHole(w)
	case kind == chunkStatus && r.command() == cmdBlockStatus && length >= 12 && length%8 == 4 && length <= 4+8*maxExtents:
		r.takeStatus(w, length, n.hello.context)
	case (kind == chunkError || kind == chunkErrorOffset) && length >= 6 && length <= maxString+14:
		r.takeError(w, kind, length)
	default:
		w.err = broken("chunk %d of %d bytes to command %d", kind, length, r.command())
	}
	if w.err != nil || flags&chunkDone == 0 {
		return
	}
	if r.err == nil && !r.complete() {
		w.err = broken("the reply to command %d of bytes %d+%d leaves some out", r.command(), r.offset, r.length)
		return
	}
	n.finish(cookie, r)
}

func (r *request) command() uint16 { return r.kind & (1<<commandBits - 1) }

// complete reports whether everything asked for has come.
func (r *request) complete() bool {
	switch r.command() {
	case cmdRead:
		return r.seen.covers(uint32(len(r.data)))
	case cmdBlockStatus:
		return len(r.status) > 0
	}
	return true
}

// part returns the bytes of r that a chunk of a read is for.
func (r *request) part(w *wire, offset uint64, length uint32) []byte {
	if w.err != nil {
		return nil
	}
	if offset < r.offset || length == 0 || length > r.length || offset-r.offset > uint64(r.length-length) {
		w.err = broken("bytes %d+%d, asked for were %d+%d", offset, length, r.offset, r.length)
		return nil
	}
	at := uint32(offset - r.offset)
	if !r.seen.add(at, at+length) {
		w.err = broken("bytes %d+%d come twice or in too many pieces", offset, length)
		return nil
	}
	return r.data[at : at+length]
}

func (r *request) takeData(w *wire, length uint32) {
	if p := r.part(w, w.u64(), length-8); p != nil {
		_, w.err = io.ReadFull(w.rw, p)
	}
}

func (r *request) takeHole(w *wire) {
	offset, length := w.u64(), w.u32()
	clear(r.part(w, offset, length))
}

// takeStatus takes the extents of base:allocation in. The last may go past what
// was asked for and is cut.
func (r *request) takeStatus(w *wire, length, context uint32) {
	data := w.bytes(length)
	switch {
	case w.err != nil:
		return
	case binary.BigEndian.Uint32(data) != context:
		w.err = broken("a status of context %d", binary.BigEndian.Uint32(data))
		return
	case r.status != nil:
		w.err = broken("a status comes twice")
		return
	}
	left := int64(r.length)
	for data = data[4:]; len(data) > 0; data = data[8:] {
		run, flags := int64(binary.BigEndian.Uint32(data)), binary.BigEndian.Uint32(data[4:])
		if run == 0 || left == 0 || run > left && len(data) > 8 {
			w.err = broken("an extent of %d bytes where %d are left", run, left)
			return
		}
		run = min(run, left)
		left -= run
		r.status = append(r.status, Extent{Length: run, Hole: flags&stateHole != 0, Zero: flags&stateZero != 0})
	}
}

func (r *request) takeError(w *wire, kind uint16, length uint32) {
	number, size := w.u32(), uint32(w.u16())
	want := 6 + size
	if kind == chunkErrorOffset {
		want += 8
	}
	if w.err == nil && (want != length || number == 0) {
		w.err = broken("error %d with %d of %d bytes", number, size, length)
	}
	if w.err != nil {
		return
	}
	message := w.bytes(size)
	if kind == chunkErrorOffset {
		w.u64()
	}
	if r.err == nil {
		r.err = remote(number, printable(message))
	}
}

// printable keeps what a server says from being more than words.
func printable(b []byte) string {
	return string(slices.DeleteFunc(b, func(c byte) bool { return c < ' ' || c > '~' }))
}

// ranges is a set of byte ranges, sorted, none touching another.
type ranges [][2]uint32

// maxRanges bounds how many pieces a read may be in at one moment, so that
// keeping them sorted stays cheap.
const maxRanges = 4096

// add puts [from, to) in; it returns false if any of it is there already or the
// set gets too large.
func (s *ranges) add(from, to uint32) bool {
	i, found := slices.BinarySearchFunc(*s, from, func(r [2]uint32, at uint32) int { return int(int64(r[0]) - int64(at)) })
	if found || i > 0 && (*s)[i-1][1] > from || i < len(*s) && (*s)[i][0] < to {
		return false
	}
	before, after := i > 0 && (*s)[i-1][1] == from, i < len(*s) && (*s)[i][0] == to
	switch {
	case before && after:
		(*s)[i-1][1] = (*s)[i][1]
		*s = slices.Delete(*s, i, i+1)
	case before:
		(*s)[i-1][1] = to
	case after:
		(*s)[i][0] = from
	default:
		*s = slices.Insert(*s, i, [2]uint32{from, to})
	}
	return len(*s) <= maxRanges
}

// covers reports whether the set is all of [0, n).
func (s ranges) covers(n uint32) bool {
	return n == 0 || len(s) == 1 && s[0] == [2]uint32{0, n}
}
