package generate

import (
	"encoding/binary"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
)

// both32 appends n in both byte orders (ECMA-119, 7.3.3).
func both32(b []byte, n uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, n), n)
}

func both16(b []byte, n uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, n), n)
}

// descriptor returns a view's volume descriptor (ECMA-119, 8.4 and 8.5).
func (v *volume) descriptor(view int) []byte {
	w := v.views[view]
	text := func(s string, n int) []byte { // padded with spaces
		if view == joliet {
			s = string(ucs2(s))
			return append([]byte(s), []byte(strings.Repeat("\x00 ", (n-len(s))/2) + "\x00")[:n-len(s)]...)
		}
		return []byte(s + strings.Repeat(" ", n-len(s)))
	}
	b := []byte{1 + byte(view), 'C', 'D', '0', '0', '1', 1, 0}
	b = append(b, text("LINUX", 32)...)
	b = append(b, text(v.label, 32)...)
	b = append(b, make([]byte, 8)...)
	b = both32(b, v.sectors)
	escapes := make([]byte, 32)
	if view == joliet {
		copy(escapes, "%/E") // UCS-2 level 3
	}
	b = append(b, escapes...)
	b = both16(b, 1) // volumes in the set
	b = both16(b, 1) // this one's number
	b = both16(b, sector)
	b = both32(b, w.little.bytes)
	b = binary.LittleEndian.AppendUint32(b, w.little.at)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.BigEndian.AppendUint32(b, w.big.at)
	b = binary.BigEndian.AppendUint32(b, 0)
	b = append(b, v.record(v.root, view, []byte{0}, false)...)
	for range 4 { // volume set, publisher, preparer, application
		b = append(b, text("", 128)...)
	}
	for range 3 { // copyright, abstract and bibliographic files
		b = append(b, text("", 37)...)
	}
	stamp := v.time.Format("20060102150405") + "00\x00"
	never := strings.Repeat("0", 16) + "\x00"
	b = append(b, stamp+stamp+never+never...) // created, modified, expires, effective
	return append(b, 1, 0)
}

// pathTable returns a view's path table (ECMA-119, 9.4).
func (v *volume) pathTable(view int, order binary.AppendByteOrder) (b []byte) {
	for _, d := range v.views[view].dirs {
		p := d.views[view]
		b = append(b, byte(len(p.id)), 0)
		b = order.AppendUint32(b, p.at)
		b = order.AppendUint16(b, d.parent.views[view].number)
		b = append(b, p.id...)
		if len(p.id)%2 == 1 {
			b = append(b, 0)
		}
	}
	return b
}

// directory returns the records of d in a view, whole sectors of them.
func (v *volume) directory(d *node, view int) (b []byte) {
	pad := func() { b = append(b, make([]byte, (sector-len(b)%sector)%sector)...) }
	add := func(r []byte) {
		if len(b)%sector+len(r) > sector { // a record lies in one sector
			pad()
		}
		b = append(b, r...)
	}
	rockRidge := view == primary
	add(v.record(d, view, []byte{0}, rockRidge))
	add(v.record(d.parent, view, []byte{1}, rockRidge))
	for _, n := range d.views[view].kids {
		add(v.record(n, view, n.views[view].id, rockRidge))
	}
	pad()
	return b
}

// record returns the directory record of n under an identifier (ECMA-119,
// 9.1): 0 is ".", 1 is "..".
func (v *volume) record(n *node, view int, id []byte, rockRidge bool) []byte {
	where, flags := extent{n.sector, uint32(len(n.content))}, byte(0)
	if n.dir {
		where, flags = n.views[view].extent, 2
	}
	b := []byte{0, 0}
	b = both32(b, where.at)
	b = both32(b, where.bytes)
	b = append(b, shortTime(v.time)...)
	b = append(b, flags, 0, 0)
	b = both16(b, 1)
	b = append(b, byte(len(id)))
	b = append(b, id...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	if rockRidge {
		b = append(b, v.systemUse(n, id, 254-len(b))...)
	}
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// shortTime is the date of a directory record, in UTC (ECMA-119, 9.1.5).
func shortTime(t time.Time) []byte {
	return []byte{byte(t.Year() - 1900), byte(t.Month()), byte(t.Day()), byte(t.Hour()), byte(t.Minute()), byte(t.Second()), 0}
}

// identify gives siblings their identifiers in a view, unique among them for
// readers that ignore case.
func identify(siblings []*node, view int) {
	name, encode := shortName, func(s string) []byte { return []byte(s) }
	if view == joliet {
		name, encode = jolietName, ucs2
	}
	used, next := map[string]bool{}, map[string]int{}
	for _, n := range siblings {
		id := name(n, 0)
		first := strings.ToLower(id)
		for i := next[first]; used[strings.ToLower(id)]; {
			i++
			id, next[first] = name(n, i), i
		}
		used[strings.ToLower(id)] = true
		n.views[view].id = encode(id)
	}
}

// shortName returns the identifier of n at interchange level 1, eight
// characters and an extension of three, the i-th of its kind.
func shortName(n *node, i int) string {
	base, ext := n.name, ""
	if dot := strings.LastIndexByte(base, '.'); dot > 0 && !n.dir {
		base, ext = base[:dot], base[dot+1:]
	}
	base, ext = dCharacters(base, 8), dCharacters(ext, 3)
	if i > 0 {
		tail := strconv.Itoa(i)
		base = base[:min(len(base), 8-len(tail))] + tail
	}
	if n.dir {
		return base
	}
	return base + "." + ext + ";1"
}

// dCharacters returns at most n of the characters that every reader of
// ISO 9660 knows (ECMA-119, 7.4.1).
func dCharacters(s string, n int) string {
	b := []byte(strings.ToUpper(s))
	b = b[:min(len(b), n)]
	for i, c := range b {
		if !(c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') {
			b[i] = '_'
		}
	}
	return string(b)
}

// jolietName returns the Joliet identifier of n, at most 64 characters of
// UCS-2, the i-th of its kind.
func jolietName(n *node, i int) string {
	units := utf16.Encode([]rune(n.name))
	for j, u := range units {
		if strings.ContainsRune(`*/:;?\`, rune(u)) {
			units[j] = '_'
		}
	}
	tail := ""
	if i > 0 {
		tail = "~" + strconv.Itoa(i)
	}
	id := string(utf16.Decode(units[:min(len(units), 64-len(tail))])) + tail
	if n.dir {
		return id
	}
	return id + ";1"
}

// ucs2 encodes s big-endian.
func ucs2(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return b
}
