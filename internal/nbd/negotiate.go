package nbd

import (
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/errs"
)

// hello is what the server said of the export.
type hello struct {
	size               uint64
	flags              uint16
	minBlock, maxBlock uint32 // 0 where it said nothing
	allocation         bool   // it tells base:allocation
	context            uint32 // under this number
}

// wire reads and writes big-endian numbers and remembers the first error.
type wire struct {
	rw  io.ReadWriter
	err error
}

func (w *wire) bytes(n uint32) []byte {
	b := make([]byte, n)
	if w.err == nil {
		_, w.err = io.ReadFull(w.rw, b)
	}
	return b
}
func (w *wire) u64() uint64 { return binary.BigEndian.Uint64(w.bytes(8)) }
func (w *wire) u32() uint32 { return binary.BigEndian.Uint32(w.bytes(4)) }
func (w *wire) u16() uint16 { return binary.BigEndian.Uint16(w.bytes(2)) }

func (w *wire) send(b []byte) {
	if w.err == nil {
		_, w.err = w.rw.Write(b)
	}
}

// option sends one option.
func (w *wire) option(option uint32, data []byte) {
	b := binary.BigEndian.AppendUint64(nil, optionMagic)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	w.send(append(b, data...))
}

// reply reads one reply to option.
func (w *wire) reply(option uint32) (kind uint32, data []byte) {
	magic, to, kind, length := w.u64(), w.u32(), w.u32(), w.u32()
	switch {
	case w.err != nil:
	case magic != replyMagic:
		w.err = broken("the reply to option %d begins with %#x", option, magic)
	case to != option:
		w.err = broken("a reply to option %d, asked was %d", to, option)
	case length > maxOption:
		w.err = broken("a reply of %d bytes to option %d", length, option)
	default:
		data = w.bytes(length)
	}
	return kind, data
}

// negotiate goes from the server's greeting to the transmission phase.
func negotiate(rw io.ReadWriter, export string) (hello, error) {
	var h hello
	w := &wire{rw: rw}
	if len(export) > maxString {
		return h, errs.New(errs.Invalid, "nbd", export[:64], "the name of the export has %d bytes, at most %d can be", len(export), maxString)
	}
	if m := w.u64(); w.err == nil && m != serverMagic {
		w.err = broken("it greets with %#x", m)
	}
	if m := w.u64(); w.err == nil && m != optionMagic {
		w.err = broken("it does not speak newstyle (%#x)", m)
	}
	flags := w.u16()
	if w.err == nil && flags&fixedNewstyle == 0 {
		w.err = broken("it does not speak fixed newstyle")
	}
	if w.err != nil {
		return h, w.err
	}
	w.send(binary.BigEndian.AppendUint32(nil, uint32(flags&(fixedNewstyle|noZeroes))))
	if err := w.structured(); err != nil {
		return h, err
	}
	w.metaContext(&h, export)
	w.enter(&h, export)
	return h, w.err
}

// structured asks for structured replies, without which a read that fails
// half-way cannot be told from one that ends the connection.
func (w *wire) structured() error {
	w.option(optStructured, nil)
	kind, data := w.reply(optStructured)
	if w.err == nil && (kind != repAck || len(data) != 0) {
		w.option(optAbort, nil)
		w.err = errs.New(errs.Unsupported, "nbd", "", "the server has no structured replies")
	}
	return w.err
}

// metaContext asks for base:allocation; a server may not have it.
func (w *wire) metaContext(h *hello, export string) {
	b := named(export)
	b = binary.BigEndian.AppendUint32(b, 1)
	w.option(optSetMetaContext, append(b, named(allocation)...))
	for w.err == nil {
		kind, data := w.reply(optSetMetaContext)
		switch {
		case w.err != nil:
		case kind == repMetaContext && !h.allocation && len(data) == 4+len(allocation) && string(data[4:]) == allocation:
			h.allocation, h.context = true, binary.BigEndian.Uint32(data)
		case kind == repAck && len(data) == 0, kind&repError != 0:
			return // what is wrong with the export is said again, to optGo
		default:
			w.err = broken("reply %d of %d bytes to the metadata context", kind, len(data))
		}
	}
}

// enter opens the export. The server may tell anything of it beforehand.
func (w *wire) enter(h *hello, export string) {
	b := append(named(export), 0, 1)
	w.option(optGo, binary.BigEndian.AppendUint16(b, infoBlockSize))
	told := false
	for w.err == nil {
		kind, data := w.reply(optGo)
		switch {
		case w.err != nil:
		case kind == repErrUnknown:
			w.err = errs.New(errs.NotFound, "nbd", export, "the server has no such export: %q", data[:min(len(data), 200)])
		case kind&repError != 0:
			w.err = errs.New(errs.Unavailable, "nbd", export, "the server refuses the export (%#x): %q", kind, data[:min(len(data), 200)])
		case kind == repAck && told && len(data) == 0:
			return
		case kind == repInfo && len(data) >= 2:
			told = w.info(h, binary.BigEndian.Uint16(data), data[2:]) || told
		default:
			w.err = broken("reply %d of %d bytes to go", kind, len(data))
		}
	}
}

// info takes one piece of information in; export says that it was the one that
// cannot be missing.
func (w *wire) info(h *hello, kind uint16, data []byte) (export bool) {
	switch {
	case kind == infoExport && len(data) == 10:
		h.size, h.flags = binary.BigEndian.Uint64(data), binary.BigEndian.Uint16(data[8:])
		if h.size > 1<<63-1 || h.flags&flagHasFlags == 0 {
			w.err = broken("an export of %d bytes with flags %#x", h.size, h.flags)
		}
		return true
	case kind == infoBlockSize && len(data) == 12:
		h.minBlock, h.maxBlock = binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[8:])
		if h.minBlock == 0 || h.minBlock > 64<<10 || h.minBlock&(h.minBlock-1) != 0 || h.maxBlock < h.minBlock || h.maxBlock%h.minBlock != 0 && h.maxBlock != 1<<32-1 {
			w.err = broken("blocks of %d to %d bytes", h.minBlock, h.maxBlock)
		}
	case kind == infoExport || kind == infoBlockSize:
		w.err = broken("information %d in %d bytes", kind, len(data))
	}
	return false
}

// named renders a string with its length before it.
func named(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}
