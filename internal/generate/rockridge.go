package generate

// Rock Ridge's identity (RRIP 1.09, 4.3), in the root's first record.
const (
	erID     = "RRIP_1991A"
	erText   = "THE ROCK RIDGE INTERCHANGE PROTOCOL PROVIDES SUPPORT FOR POSIX FILE SYSTEM SEMANTICS"
	erSource = "PLEASE CONTACT DISC PUBLISHER FOR SPECIFICATION SOURCE.  SEE PUBLISHER IDENTIFIER IN PRIMARY VOLUME DESCRIPTOR FOR CONTACT INFORMATION."
)

// systemUse returns the Rock Ridge entries of n that lie in its record with
// the given identifier, at most room bytes; what does not fit goes to the
// continuation area.
func (v *volume) systemUse(n *node, id []byte, room int) []byte {
	var b, rest []byte
	switch {
	case id[0] > 1:
		rest = nameEntries(n.name)
	case id[0] == 0 && n == v.root: // the first record of all
		b = append(b, 'S', 'P', 7, 1, 0xbe, 0xef, 0)
		rest = append(rest, 'E', 'R', byte(8+len(erID)+len(erText)+len(erSource)), 1,
			byte(len(erID)), byte(len(erText)), byte(len(erSource)), 1)
		rest = append(rest, erID+erText+erSource...)
	}
	b = append(b, posixEntry(n)...)
	if len(b)+len(rest) <= room {
		return append(b, rest...)
	}
	where := v.susp.add(rest)
	b = append(b, 'C', 'E', 28, 1)
	b = both32(b, v.susp.at+where/sector)
	b = both32(b, where%sector)
	return both32(b, uint32(len(rest)))
}

// posixEntry is PX: mode, links, owner and group, which are root's.
func posixEntry(n *node) []byte {
	mode, links := 0o100000|n.mode, uint32(1)
	if n.dir {
		mode, links = 0o040000|n.mode, 2
		for _, k := range n.kids {
			if k.dir {
				links++
			}
		}
	}
	b := []byte{'P', 'X', 36, 1}
	for _, x := range []uint32{mode, links, 0, 0} {
		b = both32(b, x)
	}
	return b
}

// nameEntries is NM, in two parts where one is too short for the name.
func nameEntries(name string) (b []byte) {
	const most = 250
	for len(name) > most {
		b = append(b, 'N', 'M', 5+most, 1, 1) // to be continued
		b, name = append(b, name[:most]...), name[most:]
	}
	b = append(b, 'N', 'M', byte(5+len(name)), 1, 0)
	return append(b, name...)
}

// continuation is the area for entries that do not fit their records. What is
// added in the same order lands at the same place.
type continuation struct {
	at   uint32 // its first sector
	data []byte
}

// add returns the offset of p in the area. Linux reads no piece that crosses
// a sector.
func (c *continuation) add(p []byte) (offset uint32) {
	if used := len(c.data) % sector; used+len(p) > sector {
		c.data = append(c.data, make([]byte, sector-used)...)
	}
	offset = uint32(len(c.data))
	c.data = append(c.data, p...)
	return offset
}

func (c *continuation) reset() { c.data = nil }

func (c *continuation) sectors() uint32 { return extent{bytes: uint32(len(c.data))}.sectors() }
