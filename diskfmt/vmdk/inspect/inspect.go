// Package inspect judges files that somebody claims to be VMDK, and reads those
// that it found harmless: one sparse extent with its descriptor inside, of the
// type monolithicSparse or streamOptimized. It refuses everything else that is
// called VMDK, above all what refers to another file; it opens and returns no
// name that a file carries. Only ingest may use it. The format is that of
// VMware's "Virtual Disk Format 5.0".
package inspect

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vmdk/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// HeaderSize is how many of a file's first bytes Header looks at, at most.
const HeaderSize = 1 << 20

// Bounds that hold whatever Limits say.
const (
	maxDescriptor = HeaderSize/layout.Sector - 1 // sectors
	minGrain      = 8                            // sectors; the specification's least
	maxGrain      = 2048                         // sectors; the specification ends at 128, qemu-img goes further
	maxTables     = 4 << 20                      // grain tables: 128 TiB with grains of 64 KiB
	maxContainer  = 4 << 40                      // bytes; a sector's number reaches 2 TiB
)

// Header gives the fast verdict on a file of size bytes from its header and
// descriptor, for which the first HeaderSize bytes suffice. The error is
// errs.Unsafe with a class of package strict.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	_, rep, err := readHeader(strict.File{R: r, Size: uint64(max(size, 0))}, lim)
	return rep, refuse("vmdk.inspect", err)
}

// refuse adds the operation to an error. io.EOF stays bare.
func refuse(op string, err error) error {
	if err == io.EOF {
		return err
	}
	return errs.Wrap(err, op, "")
}

// readHeader reads and judges the header and the descriptor. What refers to
// another file is named before anything else that is wrong.
func readHeader(f strict.File, lim strict.Limits) (layout.Header, strict.Report, error) {
	var rep strict.Report
	h, err := readSector(f)
	if err != nil {
		return h, rep, err
	}
	d, err := readDescriptor(f, &h)
	if err != nil {
		return h, rep, err
	}
	if err := checkHeader(&h, d, lim); err != nil {
		return h, rep, err
	}
	if h.Overhead > f.Size/layout.Sector {
		return h, rep, strict.Refuse(strict.Truncated, "the header at 0x40 says that grains begin at sector %d, past the end of the file (%d bytes)", h.Overhead, f.Size)
	}
	rep.VirtualSize = int64(h.Capacity * layout.Sector)
	rep.Features = features(&h, d)
	return h, rep, nil
}

// readSector reads the header's sector, if that is what the file begins with.
func readSector(f strict.File) (layout.Header, error) {
	var b [layout.Sector]byte
	if f.Size == 0 {
		return layout.Header{}, strict.Refuse(strict.Empty, "the file is empty")
	}
	n := min(f.Size, uint64(len(b)))
	if err := f.Read(b[:n], 0, "the header"); err != nil {
		return layout.Header{}, err
	}
	h := layout.Decode(b[:])
	switch {
	case isText(b[:n]):
		return h, strict.Refuse(strict.Format, "the file is only the descriptor of a VMDK, whose data is in other files").
			WithHint("export the disk as one file, for example as streamOptimized")
	case h.Magic == layout.MagicCOWD:
		return h, strict.Refuse(strict.Format, "the file is an ESX Server sparse extent (COWD)").
			WithHint("export the disk as streamOptimized")
	case h.Magic == layout.MagicSE:
		return h, strict.Refuse(strict.Format, "the file is a space-efficient sparse extent").
			WithHint("export the disk as streamOptimized")
	case h.Magic == layout.MagicUnmade:
		return h, strict.Refuse(strict.Dirty, "the magic at 0x0 says that the file was never finished")
	case h.Magic != layout.Magic:
		return h, strict.Refuse(strict.Mismatch, "the magic at 0x0 is %s, not that of a VMDK (4b444d56)", strict.Quote(b[:min(n, 4)]))
	case n < layout.Sector:
		return h, strict.Refuse(strict.Truncated, "the file has %d bytes, not even a header", f.Size)
	case h.Version < 1 || h.Version > 3:
		return h, strict.Refuse(strict.Version, "the header at 0x4 has version %d; 1, 2 and 3 are known", h.Version)
	}
	return h, nil
}

// isText reports whether b begins like a descriptor file: comments and blank
// lines, then a version, as readers recognise one.
func isText(b []byte) bool {
	if bytes.HasPrefix(bytes.ToLower(b), []byte("# disk descriptorfile")) {
		return true
	}
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		line = bytes.Trim(line, " \t\r")
		if len(line) > 0 && line[0] != '#' {
			return bytes.HasPrefix(line, []byte("version=")) || bytes.HasPrefix(line, []byte("version ="))
		}
		b = rest
	}
	return false
}

// readDescriptor reads the embedded descriptor. An extent without one is a part
// of a disk that has its descriptor elsewhere.
func readDescriptor(f strict.File, h *layout.Header) (*descriptor, error) {
	switch {
	case h.DescOffset == 0 || h.DescSize == 0:
		return nil, strict.Refuse(strict.Format, "the header at 0x1c has no descriptor: the file is one part of a disk").
			WithHint("export the disk as one file, for example as streamOptimized")
	case h.DescOffset != 1:
		return nil, strict.Refuse(strict.Corrupt, "the header at 0x1c has the descriptor at sector %d, not behind the header", h.DescOffset)
	case h.DescSize > maxDescriptor:
		return nil, strict.Refuse(strict.Limit, "the descriptor has %d sectors; %d is the most", h.DescSize, maxDescriptor)
	}
	b, err := f.Bytes(layout.Sector, h.DescSize*layout.Sector, "the descriptor")
	if err != nil {
		return nil, err
	}
	return parseDescriptor(b)
}

// checkHeader judges what the header says of itself and against its descriptor.
func checkHeader(h *layout.Header, d *descriptor, lim strict.Limits) error {
	const both = layout.FlagCompress | layout.FlagMarkers
	packed := h.Flags&both == both
	switch {
	case h.Flags&^uint32(layout.KnownFlags) != 0:
		return strict.Refuse(strict.Feature, "the header at 0x8 has unknown flags: 0x%x", h.Flags)
	case h.Flags&layout.FlagNewline != 0 && string(h.Newline[:]) != layout.Newline:
		return strict.Refuse(strict.Corrupt, "the newline test bytes at 0x49 are %s, not 0a200d0a: the file was moved as text", strict.Quote(h.Newline[:])).
			WithHint("transfer the file again, as binary")
	case h.Padding:
		return strict.Refuse(strict.Feature, "the header has bytes behind its fields, which nothing explains")
	case h.Unclean:
		return strict.Refuse(strict.Dirty, "the header at 0x48 says that the disk was not closed by its last writer").
			WithHint("open the disk with the program that wrote it, shut it down and export it again")
	case h.Flags&both != 0 && !packed:
		return strict.Refuse(strict.Feature, "the flags 0x%x at 0x8 have compressed grains or markers, but not both", h.Flags)
	case h.Compression > layout.Deflate:
		return strict.Refuse(strict.Feature, "the header at 0x4d has the unknown compression %d", h.Compression)
	case packed != (h.Compression == layout.Deflate):
		return strict.Refuse(strict.Corrupt, "the flags 0x%x at 0x8 and the compression %d at 0x4d contradict each other", h.Flags, h.Compression)
	case packed != (d.createType == streamOptimized):
		return strict.Refuse(strict.Corrupt, "the flags 0x%x at 0x8 do not fit the descriptor's createType", h.Flags)
	case h.TableSize != layout.TableEntries:
		return strict.Refuse(strict.Feature, "the header at 0x2c has grain tables of %d entries; only %d are known", h.TableSize, layout.TableEntries)
	case h.Grain < minGrain || h.Grain&(h.Grain-1) != 0:
		return strict.Refuse(strict.Corrupt, "the header at 0x14 has grains of %d sectors, no power of two from %d", h.Grain, minGrain)
	case h.Grain > maxGrain:
		return strict.Refuse(strict.Limit, "the header at 0x14 has grains of %d sectors; %d is the most", h.Grain, maxGrain)
	case !packed && h.GDOffset == layout.AtEnd:
		return strict.Refuse(strict.Corrupt, "the header at 0x38 has the grain directory behind a stream, which the file is not")
	case h.GDOffset == 0:
		return strict.Refuse(strict.Corrupt, "the header at 0x38 has no grain directory")
	}
	if err := lim.Check(min(h.Capacity, 1<<54) * layout.Sector); err != nil {
		return err
	}
	// VirtualBox has written capacities rounded up to a grain.
	if d.sectors > h.Capacity || h.Capacity-d.sectors >= h.Grain {
		return strict.Refuse(strict.Corrupt, "the header at 0xc has %d sectors, the descriptor's extent %d", h.Capacity, d.sectors)
	}
	if n := h.Tables(); n > maxTables {
		return strict.Refuse(strict.Limit, "the disk needs %d grain tables; %d is the most", n, maxTables)
	}
	return nil
}

// features describes the file for people.
func features(h *layout.Header, d *descriptor) []string {
	out := []string{d.createType, fmt.Sprintf("version %d", h.Version), fmt.Sprintf("grains of %d bytes", h.GrainBytes())}
	for _, f := range []struct {
		has  bool
		text string
	}{
		{h.Flags&layout.FlagCompress != 0, "zlib grains"},
		{h.Flags&layout.FlagZeroGrain != 0, "zeroed grains"},
		{redundant(h), "redundant grain directory"},
		{h.GDOffset == layout.AtEnd, "grain directory at the end"},
	} {
		if f.has {
			out = append(out, f.text)
		}
	}
	return out
}

// redundant reports whether there is a second grain directory to compare.
func redundant(h *layout.Header) bool {
	return h.Flags&layout.FlagRedundant != 0 && h.RGDOffset != 0
}

// Open gives the full verdict on a file of size bytes and returns a Source of
// its guest bytes. Header's verdict comes first, then the footer's, if the grain
// directory is at the end; then every grain table is walked: each reference lies
// inside the file, nothing lies on anything else, the redundant directory says
// the same as the first, and each compressed grain's marker names its own
// sector and a size that fits. What the compressed bytes hold is checked when
// they are read: they must give exactly one grain. ctx ends the walk.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	f := strict.File{R: r, Size: uint64(max(size, 0))}
	h, rep, err := readHeader(f, lim)
	if err == nil && f.Size > maxContainer {
		err = strict.Refuse(strict.Limit, "the file has %d bytes; a VMDK has at most %d", size, int64(maxContainer))
	}
	if err != nil {
		return nil, rep, refuse("vmdk.inspect", err)
	}
	w := &walker{ctx: ctx, f: f, h: h, lim: lim}
	if err := w.run(); err != nil {
		return nil, rep, refuse("vmdk.inspect", err)
	}
	rep.DataBytes = int64(min(w.grains*h.GrainBytes(), h.Capacity*layout.Sector))
	return newSource(f, w.h, w.gd), rep, nil
}
