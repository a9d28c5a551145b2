// Package inflate decompresses deflate data (RFC 1951) whose output has a known
// size: a cluster or a grain, whole in memory on both sides. It is about twice
// as fast as a stream decoder, because it has no window, no state to suspend and
// no reader. It refuses streams: what does not end within the output is an
// error. Incomplete codes other than one of a single bit, which no encoder
// writes, are errors, too.
package inflate

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"sync"
)

// Errors of a decoder. Nothing else is returned.
var (
	ErrCorrupt = errors.New("the deflate data is corrupt")
	ErrShort   = errors.New("the deflate data ends early")
	ErrSize    = errors.New("the deflate data does not have the expected size")
)

// Bits of the first look-up, and the sizes of the tables that complete codes of
// 288 and 32 symbols need with those (zlib's "enough" computes them).
const (
	literalBits = 11
	literalSize = 2342
	distBits    = 8
	distSize    = 402
	codeBits    = 7
	maxCode     = 15
)

// An entry of a table. Bits 0 to 5 say how many bits a symbol takes, its extra
// bits included; 8 to 13 how many of them are the code alone: six bits, because
// that is what a shift looks at. The upper half is the literal, or the base of a
// length or distance, or where a second table begins. An entry of 0 is a code
// that is not in use.
type entry = uint32

const (
	isLiteral  entry = 1 << 15
	isSpecial  entry = 1 << 14 // the end of the block, or a second table
	isEnd      entry = 1 << 7  // with isSpecial
	lowBits          = 0x3f
	codeShift        = 8
	codeMask         = 0x3f
	valueShift       = 16
)

// tables is what a block's codes decode with.
type tables struct {
	lit   [literalSize]entry
	dist  [distSize]entry
	code  [1 << codeBits]entry
	lens  [288 + 32]uint8
	fixed bool // lit and dist are those of RFC 1951, section 3.2.6
}

var pool = sync.Pool{New: func() any { return new(tables) }}

// Deflate decompresses src, which may have a tail that does not belong to it,
// into dst, which it fills exactly. It returns how many bytes of src it used.
// It is safe for concurrent use.
func Deflate(dst, src []byte) (int, error) {
	t := pool.Get().(*tables)
	defer pool.Put(t)
	r := reader{src: src}
	out := 0
	for last := false; !last; {
		r.refill()
		head := r.take(3)
		last = head&1 == 1
		var err error
		switch head >> 1 {
		case 0:
			out, err = r.stored(dst, out)
		case 1:
			t.setFixed()
			out, err = r.block(t, dst, out)
		case 2:
			if err = r.codes(t); err == nil {
				out, err = r.block(t, dst, out)
			}
		default:
			err = ErrCorrupt
		}
		if r.over() { // what comes of bits that are not there says nothing
			return 0, ErrShort
		}
		if err != nil {
			return 0, err
		}
	}
	if out != len(dst) {
		return 0, ErrSize
	}
	return r.used(), nil
}

// Zlib decompresses src, deflate data in the frame of RFC 1950 and perhaps a
// tail, into dst, which it fills exactly, and compares the checksum. It returns
// how many bytes of src it used.
func Zlib(dst, src []byte) (int, error) {
	if len(src) < 6 {
		return 0, ErrShort
	}
	if src[0]&0xf != 8 || src[0]>>4 > 7 || src[1]&0x20 != 0 || (uint(src[0])<<8|uint(src[1]))%31 != 0 {
		return 0, ErrCorrupt
	}
	n, err := Deflate(dst, src[2:])
	if err != nil {
		return 0, err
	}
	n += 2
	if len(src) < n+4 {
		return 0, ErrShort
	}
	if binary.BigEndian.Uint32(src[n:]) != checksum(dst) {
		return 0, ErrCorrupt
	}
	return n + 4, nil
}

// reader holds what was read of src: n bits in buf, the next one lowest. Bits
// beyond the end of src are zeroes, counted by past.
type reader struct {
	src  []byte
	pos  int
	past int
	buf  uint64
	n    uint
}

// refill has at least 56 bits read.
func (r *reader) refill() {
	if len(r.src)-r.pos >= 8 {
		r.buf |= binary.LittleEndian.Uint64(r.src[r.pos:]) << (r.n & 63)
		r.pos += int((63 - r.n) >> 3)
		r.n |= 56
		return
	}
	for r.n <= 56 {
		if r.pos < len(r.src) {
			r.buf |= uint64(r.src[r.pos]) << (r.n & 63)
			r.pos++
		} else {
			r.past++
		}
		r.n += 8
	}
}

// take returns the next bits, which are read already.
func (r *reader) take(bits uint) uint64 {
	v := r.buf & (1<<(bits&63) - 1)
	r.buf >>= bits & 63
	r.n -= bits
	return v
}

// over reports whether bits beyond the end were used.
func (r *reader) over() bool { return uint(r.past)*8 > r.n }

// used returns how many whole bytes of src were used.
func (r *reader) used() int { return r.pos + r.past - int(r.n/8) }

// stored copies a block that is not compressed (RFC 1951, section 3.2.4).
func (r *reader) stored(dst []byte, out int) (int, error) {
	pos := r.used()
	if len(r.src)-pos < 4 {
		return 0, ErrShort
	}
	size := binary.LittleEndian.Uint16(r.src[pos:])
	if size != ^binary.LittleEndian.Uint16(r.src[pos+2:]) {
		return 0, ErrCorrupt
	}
	pos += 4
	if len(r.src)-pos < int(size) {
		return 0, ErrShort
	}
	if len(dst)-out < int(size) {
		return 0, ErrSize
	}
	copy(dst[out:], r.src[pos:pos+int(size)])
	*r = reader{src: r.src, pos: pos + int(size)}
	return out + int(size), nil
}

// codeOrder is the order in which the lengths of the code lengths' codes come
// (RFC 1951, section 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// codes reads the codes of a block (RFC 1951, section 3.2.7).
func (r *reader) codes(t *tables) error {
	t.fixed = false
	r.refill()
	literals, dists, n := int(r.take(5))+257, int(r.take(5))+1, int(r.take(4))+4
	if literals > 286 || dists > 30 {
		return ErrCorrupt
	}
	lens := t.lens[:]
	clear(lens[:19])
	for i := range n {
		if i == 14 {
			r.refill()
		}
		lens[codeOrder[i]] = uint8(r.take(3))
	}
	if !build(t.code[:], codeBits, lens[:19], lengthEntries[:]) {
		return ErrCorrupt
	}
	total := literals + dists
	for i := 0; i < total; {
		r.refill()
		e := t.code[r.buf&(1<<codeBits-1)]
		if e == 0 {
			return ErrCorrupt
		}
		r.take(uint(e & lowBits))
		sym := uint8(e >> valueShift)
		if sym < 16 {
			lens[i] = sym
			i++
			continue
		}
		var value uint8
		var repeat int
		switch sym {
		case 16:
			if i == 0 {
				return ErrCorrupt
			}
			value, repeat = lens[i-1], 3+int(r.take(2))
		case 17:
			repeat = 3 + int(r.take(3))
		default:
			repeat = 11 + int(r.take(7))
		}
		if repeat > total-i {
			return ErrCorrupt
		}
		for range repeat {
			lens[i] = value
			i++
		}
		if r.over() {
			return ErrShort
		}
	}
	if lens[256] == 0 || !build(t.lit[:], literalBits, lens[:literals], literalEntries[:]) || !build(t.dist[:], distBits, lens[literals:total], distEntries[:]) {
		return ErrCorrupt
	}
	return nil
}

// The entries of the symbols, without the lengths of their codes: of lengths of
// codes, of literals and lengths, and of distances (RFC 1951, section 3.2.5).
var lengthEntries, literalEntries, distEntries = func() (code [19]entry, lit [288]entry, dist [32]entry) {
	for i := range code {
		code[i] = entry(i)<<valueShift | isLiteral
	}
	for i := range 256 {
		lit[i] = entry(i)<<valueShift | isLiteral
	}
	lit[256] = isSpecial | isEnd
	base := entry(3)
	for i := range 28 {
		extra := entry(max(0, i/4-1))
		lit[257+i] = base<<valueShift | extra
		base += 1 << extra
	}
	lit[285] = 258 << valueShift
	base = 1
	for i := range 30 {
		extra := entry(max(0, i/2-1))
		dist[i] = base<<valueShift | extra
		base += 1 << extra
	}
	return code, lit, dist // 286, 287, 30 and 31 never occur: 0
}()

func (t *tables) setFixed() {
	if t.fixed {
		return
	}
	for i := range 288 {
		switch {
		case i < 144:
			t.lens[i] = 8
		case i < 256:
			t.lens[i] = 9
		case i < 280:
			t.lens[i] = 7
		default:
			t.lens[i] = 8
		}
	}
	for i := range 32 {
		t.lens[288+i] = 5
	}
	t.fixed = build(t.lit[:], literalBits, t.lens[:288], literalEntries[:]) && build(t.dist[:], distBits, t.lens[288:], distEntries[:])
}

// build fills a table with the canonical code whose lengths are given. It
// reports false for codes that are over-subscribed or incomplete, but for one of
// a single bit, and none at all.
func build(table []entry, primary uint, lens []uint8, entries []entry) bool {
	var count, next, first [maxCode + 2]int // per length: codes left, the next code, where its symbols begin
	for _, l := range lens {
		count[l]++
	}
	used := len(lens) - count[0]
	count[0] = 0
	left := 1
	for l := 1; l <= maxCode; l++ {
		if left = left<<1 - count[l]; left < 0 {
			return false
		}
		next[l+1] = (next[l] + count[l]) << 1
		first[l+1] = first[l] + count[l]
	}
	if left > 0 {
		if used > 1 || used == 1 && count[1] == 0 {
			return false
		}
		clear(table[:1<<primary])
	}
	var sorted [288]uint16
	at := first
	for sym, l := range lens {
		if l != 0 {
			sorted[at[l]] = uint16(sym)
			at[l]++
		}
	}
	var sub, subBits uint // the second table of prefix
	prefix, free := ^uint(0), uint(1)<<primary
	for l := uint(1); l <= maxCode; l++ {
		if l <= primary { // twice the places: a shorter code has each that ends in it
			copy(table[1<<(l-1):1<<l], table[:1<<(l-1)])
		}
		for i := range at[l] - first[l] {
			sym := sorted[first[l]+i]
			rev, e := uint(bits.Reverse16(uint16(next[l]+i))>>(16-l)), entries[sym]
			if l <= primary {
				table[rev] = complete(e, l)
				continue
			}
			if p := rev & (1<<primary - 1); p != prefix {
				prefix, sub = p, free
				for subBits = l - primary; subBits+primary < maxCode && codesUnder(&count, l, subBits+primary, i) < 1<<subBits; {
					subBits++
				}
				if free += 1 << subBits; free > uint(len(table)) {
					return false
				}
				table[p] = entry(sub)<<valueShift | isSpecial | entry(subBits)<<codeShift | entry(primary)
			}
			fill(table[sub:sub+(1<<subBits)], rev>>primary, l-primary, complete(e, l-primary))
		}
	}
	return true
}

// codesUnder returns how much of a second table's space, in codes of length to,
// the symbols take that come next: those of length l from the i-th on, and all
// that are longer.
func codesUnder(count *[maxCode + 2]int, l, to uint, i int) int {
	space := count[l] - i
	for l++; l <= to; l++ {
		space = space<<1 + count[l]
	}
	return space
}

// complete adds the length of a code to a symbol's entry. A symbol that never
// occurs has none.
func complete(e entry, l uint) entry {
	if e == 0 {
		return 0
	}
	return e + entry(l)<<codeShift + entry(l)
}

// fill stores e wherever the low bits of the index are those of the code.
func fill(table []entry, code, l uint, e entry) {
	for i := code; i < uint(len(table)); i += 1 << l {
		table[i] = e
	}
}

// Where block may run: as far from the ends as one round may reach. It reads
// src twice, the second time seven bytes on at most, eight bytes at once; it
// writes three literals and the longest match, in words whose last may reach
// past it and of which two are written for the shortest.
const (
	marginIn  = 7 + 8
	marginOut = 3 + 258 + 16
)

// block decodes a block's symbols into dst from out on (RFC 1951, section
// 3.2.3), as libdeflate does: up to three literals or a match in a round. It
// runs where neither end is near and leaves the rest to rest.
//
// What is next is looked up before more bits are read, so that neither waits for
// the other. Of 56 bits or more three literals of the first table leave 23, a
// literal of the second after two 19, a length after two 14; of 56 again a
// distance leaves 28. A length needs none but its own, the look-up of a distance
// 8 and that of a literal 11.
func (r *reader) block(t *tables, dst []byte, out int) (int, error) {
	lastIn, lastOut := len(r.src)-marginIn, len(dst)-marginOut
	if lastIn < 0 || lastOut < 0 || r.pos > lastIn || out > lastOut {
		return r.rest(t, dst, out)
	}
	src, dst := r.src[:len(r.src):len(r.src)], dst[:len(dst):len(dst)] // one register less for each
	pos, buf, n := more(src, r.pos, r.buf, uint32(r.n))
	e, saved := t.lit[buf&(1<<literalBits-1)], uint64(0)
	for uint(pos) <= uint(lastIn) && uint(out) <= uint(lastOut) { // as uint: of use for the checks of bounds below
		if e&isLiteral != 0 {
			buf >>= e & lowBits
			n -= e
			dst[out] = byte(e >> valueShift)
			out++
			e = t.lit[buf&(1<<literalBits-1)]
			if e&isLiteral != 0 {
				buf >>= e & lowBits
				n -= e
				dst[out] = byte(e >> valueShift)
				out++
				e = t.lit[buf&(1<<literalBits-1)]
				if e&isLiteral != 0 {
					buf >>= e & lowBits
					n -= e
					dst[out] = byte(e >> valueShift)
					out++
					e = t.lit[buf&(1<<literalBits-1)]
					pos, buf, n = more(src, pos, buf, n)
					continue
				}
			}
		}
		saved = buf
		buf >>= e & lowBits
		n -= e
		if e&isSpecial != 0 {
			if e&isEnd != 0 {
				r.pos, r.buf, r.n = pos, buf, uint(n&63)
				return out, nil
			}
			i := uint64(e>>valueShift) + buf&(1<<(e>>codeShift&codeMask)-1)
			if i >= literalSize {
				return 0, ErrCorrupt
			}
			e = t.lit[i]
			saved = buf
			buf >>= e & lowBits
			n -= e
			if e&isSpecial != 0 {
				r.pos, r.buf, r.n = pos, buf, uint(n&63)
				return out, nil
			}
			if e&isLiteral != 0 {
				dst[out] = byte(e >> valueShift)
				out++
				e = t.lit[buf&(1<<literalBits-1)]
				pos, buf, n = more(src, pos, buf, n)
				continue
			}
		}
		if e == 0 {
			return 0, ErrCorrupt
		}
		length := int(e>>valueShift) + int(saved&(1<<(e&lowBits)-1)>>(e>>codeShift&codeMask))
		e = t.dist[buf&(1<<distBits-1)]
		pos, buf, n = more(src, pos, buf, n)
		if e&isSpecial != 0 {
			buf >>= e & lowBits
			n -= e
			i := uint64(e>>valueShift) + buf&(1<<(e>>codeShift&codeMask)-1)
			if i >= distSize {
				return 0, ErrCorrupt
			}
			e = t.dist[i]
		}
		distance := int(e>>valueShift) + int(buf&(1<<(e&lowBits)-1)>>(e>>codeShift&codeMask))
		buf >>= e & lowBits
		n -= e
		if e == 0 || distance > out {
			return 0, ErrCorrupt
		}
		e = t.lit[buf&(1<<literalBits-1)]
		pos, buf, n = more(src, pos, buf, n)

		from, at := out-distance, out
		out += length
		if distance < 8 {
			repeat(dst, at, out, distance)
			continue
		}
		to, of := (*[16]byte)(dst[at:at+16:at+16]), (*[16]byte)(dst[from:from+16:from+16])
		binary.LittleEndian.PutUint64(to[:8], binary.LittleEndian.Uint64(of[:8]))
		binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(of[8:]))
		for at, from = at+16, from+16; at < out; at, from = at+8, from+8 {
			put(dst, at, load(dst, from))
		}
	}
	r.pos, r.buf, r.n = pos, buf, uint(n&63)
	return r.rest(t, dst, out)
}

// more has at least 56 bits in buf, as refill. Of n only the low six bits count.
func more(src []byte, pos int, buf uint64, n uint32) (int, uint64, uint32) {
	return pos + int(^n>>3&7), buf | load(src, pos)<<(n&63), n | 56
}

// repeat copies a match that overlaps itself within a word.
func repeat(dst []byte, at, end, distance int) {
	if distance == 1 {
		for word := uint64(dst[at-1]) * 0x0101010101010101; at < end; at += 8 {
			put(dst, at, word)
		}
	}
	for ; at < end; at++ {
		dst[at] = dst[at-distance]
	}
}

// load and put name the eight bytes with both ends: that costs one check.
func load(p []byte, i int) uint64 { return binary.LittleEndian.Uint64(p[i : i+8 : i+8]) }

func put(p []byte, i int, v uint64) { binary.LittleEndian.PutUint64(p[i:i+8:i+8], v) }

// rest decodes what block leaves, symbol by symbol.
func (r *reader) rest(t *tables, dst []byte, out int) (int, error) {
	for {
		r.refill()
		e, value := r.symbol(t.lit[:], literalBits)
		switch {
		case r.over():
			return 0, ErrShort
		case e == 0:
			return 0, ErrCorrupt
		case e&isSpecial != 0:
			return out, nil
		case e&isLiteral != 0:
			if out == len(dst) {
				return 0, ErrSize
			}
			dst[out] = byte(value)
			out++
			continue
		}
		length := value
		r.refill()
		e, distance := r.symbol(t.dist[:], distBits)
		switch {
		case r.over():
			return 0, ErrShort
		case e == 0 || distance > out:
			return 0, ErrCorrupt
		case length > len(dst)-out:
			return 0, ErrSize
		}
		for end := out + length; out < end; out++ {
			dst[out] = dst[out-distance]
		}
	}
}

// symbol returns the next symbol's entry and its value, extra bits included. It
// takes at most 28 bits.
func (r *reader) symbol(table []entry, primary uint) (entry, int) {
	e := table[r.buf&(1<<primary-1)]
	if e&(isSpecial|isEnd) == isSpecial {
		r.take(uint(e & lowBits))
		e = table[uint64(e>>valueShift)+r.buf&(1<<(e>>codeShift&codeMask)-1)]
	}
	extra := r.take(uint(e&lowBits)) >> (e >> codeShift & codeMask)
	return e, int(e>>valueShift) + int(extra)
}
