// Package inspect judges files that somebody claims to be optical discs of
// ISO 9660, and hands on those that it found whole, as they are. It refuses to
// read what is on a disc: a guest does that. It opens and returns no name and
// takes no record. Only ingest may use it. The format is that of ECMA-119.
//
// A disc of UDF alone, without ISO 9660, is refused as UNSUPPORTED_FORMAT: what
// says how long it must be lies scattered over structures of its own, so that a
// download that ended early would pass. Discs that have both are accepted.
package inspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	"github.com/tarn-storage/tarn/diskfmt/internal/whole"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// HeaderSize is how many of a file's first bytes Header needs, or all of a
// shorter file: the system area and 16 volume descriptors.
const HeaderSize = 64 << 10

const (
	op     = "iso.inspect"
	sector = 2048
	first  = 16 // sector of the first volume descriptor
	most   = HeaderSize/sector - first
)

// Types of volume descriptors (ECMA-119, section 8.1.1).
const (
	bootRecord    = 0
	primary       = 1
	supplementary = 2
	partition     = 3
	terminator    = 255
)

// Source reads a file that Open has accepted, as it is. It is a diskfmt.Mapper,
// safe for concurrent use.
type Source struct{ *whole.Source }

// Header gives the whole verdict, by the first HeaderSize bytes of a file of
// size bytes: the descriptors must be there, of version 1, the first of them the
// primary one, and end in a terminator; numbers that are there in both byte
// orders must be equal; blocks have 2048 bytes; volumes, path tables, root
// directories and boot catalogues must be inside the file. What is before the
// descriptors, as an MBR or a GPT of a hybrid disc, and what is behind the volume
// is not looked at. Errors are errs.Unsafe with one of the classes EMPTY,
// FORMAT_MISMATCH, UNSUPPORTED_FORMAT, UNSUPPORTED_VERSION, UNSUPPORTED_FEATURE,
// TRUNCATED, CORRUPT, OVERLAP, LIMIT and QUOTA.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	rep, err := judge(strict.File{R: r, Size: uint64(size)}, lim)
	return rep, errs.Wrap(err, op, "")
}

// Open gives Header's verdict.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	f := strict.File{R: r, Size: uint64(size)}
	rep, err := judge(f, lim)
	if err == nil {
		err = lim.Tell(ctx, 1, 1)
	}
	if err != nil {
		return nil, rep, errs.Wrap(err, op, "")
	}
	rep.DataBytes = size
	return &Source{whole.NewSource(f, "iso")}, rep, nil
}

func judge(f strict.File, lim strict.Limits) (strict.Report, error) {
	var rep strict.Report
	if f.Size == 0 {
		return rep, strict.Refuse(strict.Empty, "the file is empty")
	}
	b := make([]byte, HeaderSize)
	if err := f.Read(b[:min(HeaderSize, f.Size)], 0, "the volume descriptors"); err != nil {
		return rep, err
	}
	if !isDescriptor(b[first*sector:]) {
		if isUDF(b) {
			return rep, strict.Refuse(strict.Format, "the disc has UDF alone, without the ISO 9660 volume descriptor that belongs at 0x8000").
				WithHint("write it again as a disc that has both, as genisoimage -udf does")
		}
		return rep, strict.Refuse(strict.Mismatch, "the bytes %s at 0x8001 are not those of ISO 9660", strict.Quote(b[first*sector+1:first*sector+6]))
	}
	rep.VirtualSize = int64(f.Size)
	if err := lim.Check(f.Size); err != nil {
		return rep, err
	}
	rep.Features = []string{"ISO 9660"}
	if err := judgeDescriptors(f, b, &rep); err != nil {
		return rep, err
	}
	if isUDF(b) {
		rep.Features = append(rep.Features, "UDF")
	}
	return rep, nil
}

func isDescriptor(b []byte) bool { return string(b[1:6]) == "CD001" }

// isUDF reports whether one of the descriptors says that there is UDF (ECMA-167,
// part 3, section 9.1).
func isUDF(b []byte) bool {
	for i := first * sector; i < len(b); i += sector {
		if bytes.HasPrefix(b[i+1:], []byte("NSR0")) {
			return true
		}
	}
	return false
}

// judgeDescriptors walks the volume descriptor set (section 6.7.1).
func judgeDescriptors(f strict.File, b []byte, rep *strict.Report) error {
	for i := range most {
		off := uint64(first+i) * sector
		if err := f.Inside(off, sector, "a volume descriptor"); err != nil {
			return err
		}
		d := descriptor{b[off : off+sector], off}
		switch {
		case !isDescriptor(d.b):
			return strict.Refuse(strict.Corrupt, "the volume descriptors end at 0x%x without a terminator", off)
		case i == 0 && d.b[0] != primary:
			return strict.Refuse(strict.Corrupt, "the volume descriptor at 0x%x is of type %d, not the primary one", off, d.b[0])
		}
		if d.b[0] == terminator {
			return nil
		}
		feature, err := d.judge(f)
		if err != nil {
			return err
		}
		if feature != "" {
			rep.Features = append(rep.Features, feature)
		}
	}
	return strict.Refuse(strict.Limit, "more than %d volume descriptors", most)
}

// descriptor is a volume descriptor that lies at off.
type descriptor struct {
	b   []byte
	off uint64
}

// judge judges a descriptor and names what it adds to a disc.
func (d descriptor) judge(f strict.File) (string, error) {
	version := d.b[6]
	switch d.b[0] {
	case bootRecord:
		return d.judgeBoot(f)
	case primary:
		if version != 1 {
			return "", strict.Refuse(strict.Version, "the volume descriptor at 0x%x is of version %d; only 1 is known", d.off, version)
		}
		return "", d.judgeVolume(f)
	case supplementary:
		if version != 1 && version != 2 { // 2: an enhanced one, of ISO 9660:1999
			return "", strict.Refuse(strict.Version, "the volume descriptor at 0x%x is of version %d; 1 and 2 are known", d.off, version)
		}
		feature := "a second directory tree"
		if e := string(d.b[88:91]); e == "%/@" || e == "%/C" || e == "%/E" {
			feature = "Joliet"
		}
		return feature, d.judgeVolume(f)
	case partition:
		return "", strict.Refuse(strict.Feature, "the volume descriptor at 0x%x names a partition, which nobody uses", d.off)
	}
	return "", strict.Refuse(strict.Feature, "the volume descriptor at 0x%x is of type %d, which is not known", d.off, d.b[0])
}

// judgeBoot judges a boot record ("El Torito" specification, figure 7).
func (d descriptor) judgeBoot(f strict.File) (string, error) {
	if !bytes.HasPrefix(d.b[7:], []byte("EL TORITO SPECIFICATION\x00")) {
		return "", nil
	}
	return "El Torito", d.inside(f, uint64(binary.LittleEndian.Uint32(d.b[71:])), sector, f.Size/sector, "the boot catalogue")
}

// judgeVolume judges a primary or supplementary descriptor (sections 8.4, 8.5).
func (d descriptor) judgeVolume(f strict.File) error {
	var space, block, set, number, table uint64
	for _, n := range []struct {
		at, width int
		what      string
		value     *uint64
	}{
		{80, 4, "size of the volume", &space}, {120, 2, "size of the volume set", &set}, {124, 2, "number of the volume", &number},
		{128, 2, "size of a block", &block}, {132, 4, "size of the path table", &table},
	} {
		v, err := d.both(n.at, n.width, n.what)
		if err != nil {
			return err
		}
		*n.value = v
	}
	switch {
	case block != sector:
		return strict.Refuse(strict.Feature, "blocks of %d bytes at 0x%x; only 2048 is known", block, d.off+128)
	case set == 0 || number == 0 || number > set:
		return strict.Refuse(strict.Corrupt, "volume %d of %d at 0x%x", number, set, d.off+120)
	case table == 0:
		return strict.Refuse(strict.Corrupt, "a path table of no bytes at 0x%x", d.off+132)
	}
	if err := f.Inside(0, space*sector, "the volume"); err != nil {
		return err
	}
	for _, t := range []struct {
		at       uint64
		optional bool
		order    binary.ByteOrder
	}{{140, false, binary.LittleEndian}, {144, true, binary.LittleEndian}, {148, false, binary.BigEndian}, {152, true, binary.BigEndian}} {
		at := uint64(t.order.Uint32(d.b[t.at:]))
		if at == 0 && t.optional {
			continue
		}
		if err := d.inside(f, at, table, space, "a path table"); err != nil {
			return err
		}
	}
	return d.judgeRoot(f, space)
}

// judgeRoot judges the record of the root directory (section 9.1).
func (d descriptor) judgeRoot(f strict.File, space uint64) error {
	const at = 156
	extent, err := d.both(at+2, 4, "place of the root directory")
	if err != nil {
		return err
	}
	n, err := d.both(at+10, 4, "size of the root directory")
	if err != nil {
		return err
	}
	if length, name := d.b[at], d.b[at+32]; length != 34 || name != 1 || d.b[at+25]&2 == 0 || n == 0 {
		return strict.Refuse(strict.Corrupt, "the record at 0x%x is not that of a root directory", d.off+at)
	}
	return d.inside(f, extent, n, space, "the root directory")
}

// both reads a number of width bytes that is there in little-endian and then in
// big-endian order (sections 7.2.3 and 7.3.3).
func (d descriptor) both(at, width int, what string) (uint64, error) {
	le, be := uint64(binary.LittleEndian.Uint16(d.b[at:])), uint64(binary.BigEndian.Uint16(d.b[at+2:]))
	if width == 4 {
		le, be = uint64(binary.LittleEndian.Uint32(d.b[at:])), uint64(binary.BigEndian.Uint32(d.b[at+4:]))
	}
	if le != be {
		return 0, strict.Refuse(strict.Corrupt, "the %s at 0x%x is %d in one byte order and %d in the other", what, d.off+uint64(at), le, be)
	}
	return le, nil
}

// inside refuses n bytes at a block that are not in the volume of space blocks,
// or lie on the descriptors.
func (d descriptor) inside(f strict.File, block, n, space uint64, what string) error {
	switch {
	case block <= first:
		return strict.Refuse(strict.Overlap, "%s at block %d, says the descriptor at 0x%x, lies on the descriptors or before them", what, block, d.off)
	case block >= space || (n+sector-1)/sector > space-block:
		return strict.Refuse(strict.Corrupt, "%s at block %d (%d bytes), says the descriptor at 0x%x, is not in the volume of %d blocks", what, block, n, d.off, space)
	}
	return f.Inside(block*sector, n, what)
}
