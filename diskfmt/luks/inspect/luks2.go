package inspect

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/tarn-storage/tarn/diskfmt/strict"
)

// The binary header of LUKS2 ("LUKS2 On-Disk Format Specification", section 2.1).
const (
	secondMagic = "SKUL\xba\xbe"
	binarySize  = 4096
	leastHeader = 16 << 10 // with its JSON area
	mostHeader  = 4 << 20
	sumAt       = 448
	sumSize     = 64
)

// Bounds of what the JSON says. The memory is cryptsetup's own most; with the
// passes it bounds the time that one key takes.
const (
	maxSlots   = 32
	maxKey     = 512     // bytes
	maxMemory  = 1 << 20 // KiB
	maxWork    = 1 << 30 // KiB times passes
	maxThreads = 64
)

// judgeBinary judges the binary header b that lies at off.
func judgeBinary(f strict.File, b []byte, magic string, off uint64) error {
	if string(b[:len(magic)]) != magic || binary.BigEndian.Uint16(b[6:]) != 2 {
		return strict.Refuse(strict.Corrupt, "there is no second LUKS2 header at 0x%x", off).
			WithHint("cryptsetup repair restores a damaged header")
	}
	size, at := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[256:])
	switch {
	case size > mostHeader:
		return strict.Refuse(strict.Limit, "a header of %d bytes at 0x%x; %d is the most", size, off+8, mostHeader)
	case size < leastHeader || size&(size-1) != 0:
		return strict.Refuse(strict.Corrupt, "a header of %d bytes at 0x%x, which is no size of one", size, off+8)
	case at != off:
		return strict.Refuse(strict.Corrupt, "the header at 0x%x says that it lies at 0x%x", off, at)
	}
	for _, field := range []struct {
		off, n int
		what   string
	}{{24, 48, "label"}, {168, 40, "UUID"}, {208, 48, "subsystem"}} {
		if _, err := text(b, field.off, field.n, field.what); err != nil {
			return err
		}
	}
	sum, err := text(b, 72, 32, "checksum's name")
	if err != nil {
		return err
	}
	if sum != "sha256" {
		return strict.Refuse(strict.Feature, "the checksum at 0x%x is not sha256: %s (in hex)", off+72, strict.Quote([]byte(sum)))
	}
	return f.Inside(off, size, "the header")
}

// open2 judges the rest of LUKS2, of which b is the first binary header.
func open2(f strict.File, b []byte, rep *strict.Report) error {
	size := binary.BigEndian.Uint64(b[8:])
	first, err := f.Bytes(0, size, "the header")
	if err != nil {
		return err
	}
	second, err := f.Bytes(size, size, "the second header")
	if err != nil {
		return err
	}
	if err := judgeBinary(f, second, secondMagic, size); err != nil {
		return err
	}
	for i, h := range [][]byte{first, second} {
		if !summed(h) {
			return strict.Refuse(strict.Checksum, "the header at 0x%x has another checksum than it says", uint64(i)*size).
				WithHint("download the file again, or let cryptsetup repair it")
		}
	}
	if binary.BigEndian.Uint64(first[8:]) != size || !bytes.Equal(first[8:72], second[8:72]) || !bytes.Equal(first[168:256], second[168:256]) ||
		!bytes.Equal(first[binarySize:], second[binarySize:]) {
		return strict.Refuse(strict.Corrupt, "the two headers at 0x0 and 0x%x differ", size).WithHint("cryptsetup repair makes them one again")
	}
	root, err := parseJSON(first[binarySize:])
	if err != nil {
		return err
	}
	return judgeRoot(f, root, size, rep)
}

// summed reports whether a header has the SHA-256 that it names, over all its
// bytes with the checksum's own being zero.
func summed(h []byte) bool {
	sum := sha256.New()
	sum.Write(h[:sumAt])
	sum.Write(make([]byte, sumSize))
	sum.Write(h[sumAt+sumSize:])
	want := make([]byte, sumSize)
	copy(want, sum.Sum(nil))
	return bytes.Equal(want, h[sumAt:sumAt+sumSize])
}

// judgeRoot judges the JSON object of a header of size bytes (section 3).
func judgeRoot(f strict.File, root object, size uint64, rep *strict.Report) error {
	root.only("keyslots", "tokens", "segments", "digests", "config")
	config := root.child("config")
	keys := span{2 * size, config.bytes("keyslots_size"), "the key slots' area"}
	if n := config.bytes("json_size"); n != size-binarySize {
		root.fail(strict.Corrupt, "a JSON area of %d bytes in a header of %d", n, size)
	}
	if keys.n%4096 != 0 || keys.n > 128<<20 {
		root.fail(strict.Corrupt, "a key slots' area of %d bytes", keys.n)
	}
	if config.has("requirements") {
		for _, r := range config.child("requirements").names("mandatory") {
			if strings.HasPrefix(r, "online-reencrypt") {
				root.fail(strict.Dirty, "the disk is being encrypted anew")
			}
			root.fail(strict.Feature, "opening the disk requires what is not known: %s (in hex)", strict.Quote([]byte(r)))
		}
	}
	if root.err() != nil {
		return root.err()
	}
	if err := f.Inside(keys.off, keys.n, keys.what); err != nil {
		return err
	}
	spans := []span{{0, 2 * size, "the header"}}
	slots := root.numbered("keyslots")
	for _, s := range slots {
		spans = append(spans, s.judgeSlot(keys))
	}
	if root.err() != nil {
		return root.err()
	}
	if err := disjoint(spans); err != nil {
		return err
	}
	if err := judgeSegments(f, root, keys); err != nil {
		return err
	}
	root.judgeReferences()
	rep.Features = append(rep.Features, fmt.Sprintf("%d key slots", len(slots)))
	return root.err()
}

// judgeSlot judges a key slot (section 3.2) and returns where its material lies.
func (o object) judgeSlot(area span) span {
	switch kind := o.text("type"); kind {
	case "luks2":
	case "reencrypt":
		o.fail(strict.Dirty, "%s: the disk is being encrypted anew", o.what)
	default:
		o.fail(strict.Feature, "%s is of a type that is not known: %s (in hex)", o.what, strict.Quote([]byte(kind)))
	}
	key := o.number("key_size")
	if key == 0 || key > maxKey {
		o.fail(strict.Corrupt, "%s has a key of %d bytes", o.what, key)
	}
	split := o.child("af")
	if kind, n := split.text("type"), split.number("stripes"); kind != "luks1" || n != stripes {
		o.fail(strict.Feature, "%s has its key split in another way than into %d stripes", o.what, stripes)
	}
	o.check(knownHash(split.text("hash"), o.what))
	o.judgeKDF(o.child("kdf"))
	a := o.child("area")
	if kind := a.text("type"); kind != "raw" {
		o.fail(strict.Feature, "%s has an area of a type that is not known: %s (in hex)", o.what, strict.Quote([]byte(kind)))
	}
	o.check(knownCipher(a.text("encryption"), o.what))
	if n := a.number("key_size"); n == 0 || n > maxKey {
		o.fail(strict.Corrupt, "%s is encrypted with a key of %d bytes", o.what, n)
	}
	s := span{a.bytes("offset"), a.bytes("size"), "the material of " + o.what}
	switch {
	case s.off < area.off:
		o.fail(strict.Overlap, "%s at 0x%x lies on the header", s.what, s.off)
	case s.off-area.off > area.n || s.n > area.n-(s.off-area.off):
		o.fail(strict.Corrupt, "%s at 0x%x (%d bytes) is not in the key slots' area at 0x%x (%d bytes)", s.what, s.off, s.n, area.off, area.n)
	case s.n < key*stripes:
		o.fail(strict.Corrupt, "%s at 0x%x has %d bytes; its key needs %d", s.what, s.off, s.n, key*stripes)
	}
	return s
}

// judgeKDF judges how a key is derived from a passphrase (section 3.2.2).
func (o object) judgeKDF(kdf object) {
	switch kind := kdf.text("type"); kind {
	case "pbkdf2":
		o.check(knownHash(kdf.text("hash"), o.what))
		o.check(iterations(kdf.number("iterations"), o.what))
	case "argon2i", "argon2id":
		memory, passes, threads := kdf.number("memory"), kdf.number("time"), kdf.number("cpus")
		switch {
		case memory == 0 || passes == 0 || threads == 0:
			o.fail(strict.Corrupt, "%s takes no memory, time or threads", o.what)
		case memory > maxMemory:
			o.fail(strict.Limit, "%s takes %d KiB of memory; %d is the most", o.what, memory, maxMemory)
		case passes > maxWork/memory || threads > maxThreads:
			o.fail(strict.Limit, "%s takes %d passes over %d KiB and %d threads, which is too much", o.what, passes, memory, threads)
		}
	default:
		o.fail(strict.Feature, "%s derives its key in a way that is not known: %s (in hex)", o.what, strict.Quote([]byte(kind)))
	}
}

// judgeSegments judges where the encrypted data lies (section 3.3).
func judgeSegments(f strict.File, root object, keys span) error {
	segments := root.numbered("segments")
	if len(segments) == 0 {
		root.fail(strict.Corrupt, "the header has no segment of encrypted data")
	}
	spans := []span{keys}
	for _, s := range segments {
		off, sector := s.bytes("offset"), s.number("sector_size")
		if kind := s.text("type"); kind != "crypt" {
			s.fail(strict.Feature, "%s is of a type that is not known: %s (in hex)", s.what, strict.Quote([]byte(kind)))
		}
		s.check(knownCipher(s.text("encryption"), s.what))
		s.bytes("iv_tweak")
		switch {
		case s.has("integrity"):
			s.fail(strict.Feature, "%s has checksums of its sectors, which needs another device below", s.what)
		case s.has("flags"):
			s.fail(strict.Feature, "%s has flags; it belongs to a disk that is being encrypted anew", s.what)
		case sector != 512 && sector != 1024 && sector != 2048 && sector != 4096:
			s.fail(strict.Corrupt, "%s has sectors of %d bytes", s.what, sector)
		case off == 0:
			s.fail(strict.External, "%s says that the encrypted data is in another file", s.what)
		case off%sector != 0:
			s.fail(strict.Corrupt, "%s begins at 0x%x, inside a sector", s.what, off)
		case off < keys.off:
			s.fail(strict.Overlap, "%s at 0x%x lies on the header", s.what, off)
		}
		if root.err() != nil {
			return root.err()
		}
		n, err := s.segmentSize(f, off, sector)
		if err != nil {
			return err
		}
		spans = append(spans, span{off, n, s.what})
	}
	return disjoint(spans)
}

// segmentSize returns how many bytes a segment at off has.
func (o object) segmentSize(f strict.File, off, sector uint64) (uint64, error) {
	if o.text("size") == "dynamic" {
		return f.Size - min(off, f.Size), judgeData(f, off, sector, o.what)
	}
	n := o.bytes("size")
	if n == 0 || n%sector != 0 {
		o.fail(strict.Corrupt, "%s has %d bytes, which are no sectors", o.what, n)
	}
	o.check(f.Inside(off, n, o.what))
	return n, o.err()
}

// judgeReferences judges digests and tokens (sections 3.4 and 3.5), which name
// key slots and segments. What else a token holds is the affair of the program
// that made it.
func (o object) judgeReferences() {
	known := map[string]map[string]bool{}
	for _, list := range []string{"keyslots", "segments"} {
		known[list] = map[string]bool{}
		for _, c := range o.numbered(list) {
			known[list][strconv.Itoa(c.index)] = true
		}
	}
	refers := func(c object, list string) {
		for _, name := range c.names(list) {
			if !known[list][name] {
				c.fail(strict.Corrupt, "%s names one of the %s that is not there", c.what, list)
			}
		}
	}
	for _, d := range o.numbered("digests") {
		if kind := d.text("type"); kind != "pbkdf2" {
			d.fail(strict.Feature, "%s is of a type that is not known: %s (in hex)", d.what, strict.Quote([]byte(kind)))
		}
		d.check(knownHash(d.text("hash"), d.what))
		d.check(iterations(d.number("iterations"), d.what))
		refers(d, "keyslots")
		refers(d, "segments")
	}
	for _, t := range o.numbered("tokens") {
		t.text("type")
		refers(t, "keyslots")
	}
}
