package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// script is a server that greets properly unless it is given other bytes, and
// then answers the first request with what it is told.
type script struct {
	greeting []byte
	answer   func(cookie uint64) []byte
}

func be(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch v := p.(type) {
		case []byte:
			b = append(b, v...)
		case string:
			b = append(b, v...)
		default:
			b, _ = binary.Append(b, binary.BigEndian, v)
		}
	}
	return b
}

func optionReply(option, kind uint32, data []byte) []byte {
	return be(uint64(replyMagic), option, kind, uint32(len(data)), data)
}

func chunkOf(flags, kind uint16, cookie uint64, data []byte) []byte {
	return be(uint32(chunkMagic), flags, kind, cookie, uint32(len(data)), data)
}

// proper is all that a good server of a 1 MiB export sends before requests.
func proper() []byte {
	return be(uint64(serverMagic), uint64(optionMagic), uint16(fixedNewstyle|noZeroes),
		optionReply(optStructured, repAck, nil),
		optionReply(optSetMetaContext, repMetaContext, be(uint32(7), allocation)), optionReply(optSetMetaContext, repAck, nil),
		optionReply(optGo, repInfo, be(uint16(infoExport), uint64(1<<20), uint16(flagHasFlags|flagSendFlush|flagSendWriteZeroes))),
		optionReply(optGo, repInfo, be(uint16(infoBlockSize), uint32(1), uint32(4096), uint32(32<<20))), optionReply(optGo, repAck, nil))
}

// run serves one connection: it says the greeting whatever the client asks for
// and, where there is an answer, gives it to the first request and hangs up.
func (s script) run(conn net.Conn) {
	defer conn.Close()
	said := make(chan struct{})
	go func() {
		_, _ = conn.Write(s.greeting)
		if s.answer == nil {
			conn.Close()
		}
		close(said)
	}()
	if s.answer == nil {
		_, _ = io.Copy(io.Discard, conn)
		return
	}
	w := &wire{rw: conn}
	w.u32()
	for range 3 { // options
		w.bytes(12)
		w.bytes(w.u32())
	}
	<-said
	w.bytes(8)
	cookie := w.u64()
	w.bytes(12)
	w.send(s.answer(cookie))
}

// talk has a client meet s; ask is called when the handshake went well.
func talk(t *testing.T, s script, ask func(c *Client) error) error {
	t.Helper()
	ours, theirs := net.Pipe()
	ended := make(chan struct{})
	go func() { s.run(theirs); close(ended) }()
	c, err := New(ours, Config{Export: "e", Patience: 20 * time.Second})
	if err == nil {
		err = ask(c)
		_ = c.Close()
	}
	ours.Close()
	<-ended
	return err
}

func read(c *Client) error { _, err := c.ReadAt(make([]byte, 100), 50); return err }

func TestProperServer(t *testing.T) {
	err := talk(t, script{proper(), func(cookie uint64) []byte {
		return be(chunkOf(0, chunkData, cookie, be(uint64(100), strings.Repeat("x", 50))), chunkOf(chunkDone, chunkHole, cookie, be(uint64(50), uint32(50))))
	}}, func(c *Client) error {
		p := []byte(strings.Repeat("-", 100))
		_, err := c.ReadAt(p, 50)
		if want := strings.Repeat("\x00", 50) + strings.Repeat("x", 50); string(p) != want {
			t.Errorf("got %q, want %q", p, want)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestHostileGreetings(t *testing.T) {
	ok := proper()
	changed := func(at int, b ...byte) []byte {
		g := append([]byte(nil), ok...)
		copy(g[at:], b)
		return g
	}
	go7 := func(info ...[]byte) []byte {
		return append(ok[:18+20+20+4+len(allocation)+20:18+20+20+4+len(allocation)+20], be2(info)...)
	}
	for name, greeting := range map[string][]byte{
		"nothing":               {},
		"another magic":         changed(0, 'X'),
		"oldstyle":              changed(8, 0, 0, 0x42, 2, 0x81, 0x86, 0x12, 0x53),
		"not fixed":             changed(16, 0, 2),
		"another reply magic":   changed(18, 1),
		"another option":        changed(26, 0, 0, 0, 9),
		"a huge reply":          changed(34, 0xff, 0xff, 0xff, 0xff),
		"cut":                   ok[:len(ok)-5],
		"no export information": go7(optionReply(optGo, repAck, nil)),
		"a negative size":       go7(optionReply(optGo, repInfo, be(uint16(infoExport), uint64(1<<63), uint16(1))), optionReply(optGo, repAck, nil)),
		"short information":     go7(optionReply(optGo, repInfo, be(uint16(infoExport), uint32(1)))),
		"odd blocks":            go7(optionReply(optGo, repInfo, be(uint16(infoBlockSize), uint32(3), uint32(3), uint32(9)))),
		"refused":               go7(optionReply(optGo, repError|2, []byte("policy"))),
	} {
		err := talk(t, script{greeting: greeting}, func(*Client) error { return nil })
		if !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v, want errs.Unavailable", name, err)
		}
	}
}

func be2(parts [][]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func TestHostileReplies(t *testing.T) {
	data := func(off uint64, n int) []byte { return be(off, strings.Repeat("x", n)) }
	for name, answer := range map[string]func(cookie uint64) []byte{
		"another magic":  func(c uint64) []byte { return be(uint32(1), make([]byte, 40)) },
		"another cookie": func(c uint64) []byte { return chunkOf(chunkDone, chunkData, c+1, data(50, 100)) },
		"a simple reply": func(c uint64) []byte { return be(uint32(simpleMagic), uint32(0), c, make([]byte, 100)) },
		"short":          func(c uint64) []byte { return chunkOf(chunkDone, chunkData, c, data(50, 99)) },
		"nothing":        func(c uint64) []byte { return chunkOf(chunkDone, chunkNone, c, nil) },
		"too long":       func(c uint64) []byte { return chunkOf(chunkDone, chunkData, c, data(50, 101)) },
		"before":         func(c uint64) []byte { return chunkOf(chunkDone, chunkData, c, data(49, 100)) },
		"behind":         func(c uint64) []byte { return chunkOf(chunkDone, chunkData, c, data(51, 100)) },
		"far behind":     func(c uint64) []byte { return chunkOf(chunkDone, chunkHole, c, be(^uint64(0), uint32(100))) },
		"a huge length":  func(c uint64) []byte { return be(uint32(chunkMagic), uint16(0), uint16(chunkData), c, ^uint32(0)) },
		"a huge hole":    func(c uint64) []byte { return chunkOf(chunkDone, chunkHole, c, be(uint64(50), ^uint32(0))) },
		"an empty hole":  func(c uint64) []byte { return chunkOf(chunkDone, chunkHole, c, be(uint64(50), uint32(0))) },
		"twice": func(c uint64) []byte {
			return be(chunkOf(0, chunkData, c, data(50, 60)), chunkOf(chunkDone, chunkData, c, data(100, 50)))
		},
		"an unknown chunk": func(c uint64) []byte { return chunkOf(chunkDone, 77, c, nil) },
		"a status to a read": func(c uint64) []byte {
			return chunkOf(chunkDone, chunkStatus, c, be(uint32(7), uint32(100), uint32(0)))
		},
		"error zero":     func(c uint64) []byte { return chunkOf(chunkDone, chunkError, c, be(uint32(0), uint16(0))) },
		"a long message": func(c uint64) []byte { return chunkOf(chunkDone, chunkError, c, be(uint32(5), uint16(60000))) },
		"the end":        func(c uint64) []byte { return nil },
	} {
		if err := talk(t, script{proper(), answer}, read); !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v, want errs.Unavailable", name, err)
		}
	}
}

func TestHostileStatus(t *testing.T) {
	for name, extents := range map[string][]byte{
		"an empty extent":  be(uint32(7), uint32(0), uint32(0)),
		"too many extents": be(uint32(7), uint32(100), uint32(0), uint32(1), uint32(0)),
		"another context":  be(uint32(8), uint32(100), uint32(0)),
		"half an extent":   be(uint32(7), uint32(100)),
		"none":             be(uint32(7)),
	} {
		err := talk(t, script{proper(), func(c uint64) []byte { return chunkOf(chunkDone, chunkStatus, c, extents) }},
			func(c *Client) error { _, err := c.Status(0, 100); return err })
		if !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v, want errs.Unavailable", name, err)
		}
	}
	err := talk(t, script{proper(), func(c uint64) []byte {
		return chunkOf(chunkDone, chunkStatus, c, be(uint32(7), uint32(1000), uint32(3)))
	}},
		func(c *Client) error {
			e, err := c.Status(0, 100)
			if len(e) != 1 || e[0] != (Extent{100, true, true}) {
				t.Errorf("a status past what was asked: %v, want it cut", e)
			}
			return err
		})
	if err != nil {
		t.Error(err)
	}
}

func TestRanges(t *testing.T) {
	var s ranges
	for _, step := range []struct {
		from, to uint32
		ok       bool
	}{{10, 20, true}, {30, 40, true}, {15, 16, false}, {0, 11, false}, {20, 30, true}, {39, 41, false}, {0, 10, true}, {0, 1, false}, {40, 50, true}} {
		if got := s.add(step.from, step.to); got != step.ok {
			t.Errorf("add %d to %d: %v, want %v (%v)", step.from, step.to, got, step.ok, s)
		}
	}
	if !s.covers(50) || s.covers(51) {
		t.Errorf("%v does not cover 50 alone", s)
	}
}

// FuzzReplies has a hostile server say anything, in the handshake or after it.
func FuzzReplies(f *testing.F) {
	f.Add(false, proper())
	f.Add(true, chunkOf(chunkDone, chunkData, 1, be(uint64(50), strings.Repeat("x", 100))))
	f.Add(true, chunkOf(chunkDone, chunkError, 1, be(uint32(5), uint16(3), "bad")))
	f.Add(true, be(uint32(simpleMagic), uint32(5), uint64(1)))
	f.Fuzz(func(t *testing.T, shaken bool, said []byte) {
		ours, theirs := net.Pipe()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		go func() {
			if shaken {
				said = append(proper(), said...)
			}
			_, _ = theirs.Write(said)
			theirs.Close()
		}()
		c, err := New(ours, Config{Export: "e", Patience: 5 * time.Second})
		if err != nil {
			return
		}
		_ = read(c)
		_, _ = c.Status(0, 100)
		_ = c.Flush()
		_ = c.Close()
	})
}
