// Package inspect judges files that somebody claims to be VHD (Virtual PC,
// Hyper-V, Azure), and reads those that it found harmless. It refuses
// everything that is not exactly one self-contained fixed or dynamic disk: it
// opens and returns no name that a file carries, and takes no record. Only
// ingest may use it. The format is that of Microsoft's "Virtual Hard Disk Image
// Format Specification" of October 2006.
package inspect

import (
	"context"
	"fmt"
	"io"
	"math/bits"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhd/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// Bounds that hold whatever strict.Limits say. A table of maxEntries takes
// 32 MiB of memory and holds the largest disk in blocks of 256 KiB. Blocks under
// minBlock have a bitmap by the specification and none by QEMU.
const (
	maxEntries   = 8 << 20
	minBlock     = 4096
	maxBlock     = 256 << 20
	maxContainer = 4 << 40 // BAT entries reach 2 TiB
)

// image is a file whose footer and header were found sound.
type image struct {
	file   strict.File
	footer layout.Footer
	header layout.Header // of dynamic disks
	size   uint64        // virtual, in bytes
	data   uint64        // bytes of the file before the footer
}

// Header reads the footer, its copy and the dynamic disk header of a file of
// size bytes and gives the fast verdict. It needs both ends of the file: the
// footer at the end is the authority, and only it tells a fixed disk. The head
// of a stream therefore decides nothing.
//
// The virtual size is the one that a guest saw. Hyper-V, Azure, XenServer,
// VirtualBox and qemu-img's force_size go by the footer's current size; Virtual
// PC ("vpc ") and qemu-img without force_size ("qemu") by the geometry, unless it is
// the largest that there is. So does QEMU's block/vpc.c since it lists the
// programs that use the geometry; QEMU 7.2 lists the others, and cuts the disks
// of a program that it does not know. Where the geometry decides it may be
// less than a cylinder short of the current size, and nothing but zeroes may
// lie in between: a guest's bytes are never cut off.
//
// A footer of 511 bytes, as programs before Virtual PC 2004 wrote it, is read.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	im, err := open(r, size, lim)
	if err != nil {
		return strict.Report{}, errs.Wrap(err, "vhd.inspect", "")
	}
	return im.report(), nil
}

// Open gives the full verdict: Header's, and then a walk over the block
// allocation table, which checks that each block lies inside the file, and that
// nothing lies on anything else. The error is errs.Unsafe with a class of
// package strict. Time is linear in the table; ctx ends the walk.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	im, err := open(r, size, lim)
	if err != nil {
		return nil, strict.Report{}, errs.Wrap(err, "vhd.inspect", "")
	}
	rep := im.report()
	s, err := im.walk(ctx, lim)
	if err != nil {
		return nil, rep, errs.Wrap(err, "vhd.inspect", "")
	}
	rep.DataBytes = int64(s.stored)
	return s, rep, nil
}

func (im *image) report() strict.Report {
	f := []string{"fixed"}
	if im.footer.Type == layout.Dynamic {
		f = []string{"dynamic", fmt.Sprintf("blocks of %d bytes", im.header.BlockSize)}
	}
	if im.size != im.footer.CurrentSize {
		f = append(f, "size by geometry")
	}
	if im.file.Size-im.data == layout.FooterSize-1 {
		f = append(f, "footer of 511 bytes")
	}
	return strict.Report{VirtualSize: int64(im.size), Features: f}
}

// open reads and judges the footer, its copy and the dynamic disk header.
func open(r io.ReaderAt, size int64, lim strict.Limits) (*image, error) {
	switch {
	case size <= 0:
		return nil, strict.Refuse(strict.Empty, "the file is empty")
	case size < layout.FooterSize:
		return nil, strict.Refuse(strict.Mismatch, "the file of %d bytes is too small to be VHD", size)
	case size > maxContainer:
		return nil, strict.Refuse(strict.Limit, "the file has %d bytes; a VHD has at most %d", size, int64(maxContainer))
	}
	im := &image{file: strict.File{R: r, Size: uint64(size)}}
	head, err := im.file.Bytes(0, layout.FooterSize, "the footer's copy")
	if err != nil {
		return nil, err
	}
	end, err := im.readFooter(string(head[:8]) == layout.Cookie)
	if err != nil {
		return nil, err
	}
	if err := im.judgeFooter(); err != nil {
		return nil, err
	}
	if im.size, err = visible(&im.footer); err != nil {
		return nil, err
	}
	if err := lim.Check(im.size); err != nil {
		return nil, err
	}
	if im.footer.Type == layout.Fixed {
		return im, im.judgeFixed(head)
	}
	return im, im.judgeDynamic(head, end)
}

// readFooter finds the footer in the last 512 or 511 bytes and returns its
// bytes. copied tells that the file begins with a footer.
func (im *image) readFooter(copied bool) ([]byte, error) {
	b, err := im.file.Bytes(im.file.Size-layout.FooterSize, layout.FooterSize, "the footer")
	if err != nil {
		return nil, err
	}
	im.data = im.file.Size - layout.FooterSize
	switch {
	case string(b[:8]) == layout.Cookie:
	case string(b[1:9]) == layout.Cookie:
		b = append(b[1:], 0)
		im.data++
	case copied:
		return nil, strict.Refuse(strict.Truncated, "the last 512 bytes, at 0x%x, are not the footer: the end of the file is missing", im.data).
			WithHint("fetch or copy the image again, whole")
	default:
		return nil, strict.Refuse(strict.Mismatch, "the file has no VHD footer, neither at its end nor at its beginning").
			WithHint("a fixed VHD whose end is missing looks like this, too: compare the file's size with the original's")
	}
	var ok bool
	if im.footer, ok = layout.ParseFooter(b); !ok {
		return nil, strict.Refuse(strict.Corrupt, "the checksum 0x%08x of the footer at 0x%x is wrong", im.footer.Checksum, im.data)
	}
	return b, nil
}

// judgeFooter refuses what the footer says of the disk as a whole.
func (im *image) judgeFooter() error {
	f := &im.footer
	switch {
	case f.Version>>16 != layout.Version1>>16:
		return strict.Refuse(strict.Version, "the footer at 0x%x has version 0x%08x; 0x%08x is known", im.data, f.Version, layout.Version1)
	case f.Type == layout.Differencing:
		return strict.Refuse(strict.External, "the footer at 0x%x says that this disk is the difference to another file", im.data).
			WithHint("merge the disk with its parent first")
	case f.Type != layout.Fixed && f.Type != layout.Dynamic:
		return strict.Refuse(strict.Format, "the footer at 0x%x has the disk type %d; 2 (fixed) and 3 (dynamic) are supported", im.data, f.Type)
	case f.Features&^layout.KnownFeatures != 0:
		return strict.Refuse(strict.Feature, "the footer at 0x%x has the unknown features 0x%x", im.data, f.Features&^layout.KnownFeatures)
	case f.SavedState != 0:
		return strict.Refuse(strict.Dirty, "the footer at 0x%x says that the machine's state was saved with this disk", im.data).
			WithHint("shut the machine down, so that all its data is in the disk")
	case f.CurrentSize == 0:
		return strict.Refuse(strict.Empty, "the footer at 0x%x says that the disk has 0 bytes", im.data)
	case f.CurrentSize%layout.Sector != 0:
		return strict.Refuse(strict.Corrupt, "the current size of %d bytes in the footer at 0x%x is not one of whole sectors", f.CurrentSize, im.data)
	case f.CurrentSize > layout.MaxSize:
		return strict.Refuse(strict.Limit, "the footer at 0x%x says %d bytes; a VHD has at most %d", im.data, f.CurrentSize, int64(layout.MaxSize))
	}
	return nil
}

// visible returns the size that a guest saw: see Header.
func visible(f *layout.Footer) (uint64, error) {
	app := string(f.CreatorApp[:])
	if app != "vpc " && app != "qemu" || f.MaxGeometry() {
		return f.CurrentSize, nil
	}
	chs := f.GeometrySize()
	if chs == 0 || chs > f.CurrentSize || f.CurrentSize-chs >= f.Cylinder() {
		return 0, strict.Refuse(strict.Corrupt, "the footer's geometry (%d cylinders of %d bytes) contradicts its current size of %d bytes",
			f.Cylinders, f.Cylinder(), f.CurrentSize).WithHint("convert the image with the program that made it")
	}
	return chs, nil
}

// judgeFixed refuses a fixed disk whose data is not exactly what precedes the
// footer, and one that begins with a footer: QEMU would read it as dynamic.
func (im *image) judgeFixed(head []byte) error {
	f := &im.footer
	switch {
	case string(head[:8]) == layout.Cookie:
		return strict.Refuse(strict.Mismatch, "the footer at 0x%x says that the disk is fixed, but the file begins with a footer as a dynamic disk does", im.data)
	case f.DataOffset != layout.NoOffset && f.DataOffset != layout.Absent:
		return strict.Refuse(strict.Corrupt, "the footer at 0x%x of a fixed disk points to a header at 0x%x", im.data, f.DataOffset)
	case im.data < f.CurrentSize:
		return strict.Refuse(strict.Truncated, "the fixed disk has %d bytes, but only %d precede the footer", f.CurrentSize, im.data)
	case im.data > f.CurrentSize:
		return strict.Refuse(strict.Corrupt, "the fixed disk has %d bytes, but %d precede the footer", f.CurrentSize, im.data)
	}
	return nil
}

// judgeDynamic checks the footer's copy and the dynamic disk header.
func (im *image) judgeDynamic(head, end []byte) error {
	if string(head) != string(end) {
		if string(head[:8]) != layout.Cookie {
			return strict.Refuse(strict.Mismatch, "the file ends with the footer of a dynamic disk, but does not begin with its copy")
		}
		return strict.Refuse(strict.Corrupt, "the footer at 0x%x and its copy at 0x0 differ", im.data).
			WithHint("repair the image with the program that made it")
	}
	off := im.footer.DataOffset
	if off%layout.Sector != 0 {
		return strict.Refuse(strict.Corrupt, "the dynamic disk header at 0x%x does not begin at a sector", off)
	}
	b, err := im.file.Bytes(off, layout.HeaderSize, "the dynamic disk header")
	if err != nil {
		return err
	}
	h, ok := layout.ParseHeader(b)
	im.header = h
	switch {
	case string(h.Cookie[:]) != layout.HeaderCookie:
		return strict.Refuse(strict.Corrupt, "the dynamic disk header at 0x%x begins with %s", off, strict.Quote(b[:8]))
	case !ok:
		return strict.Refuse(strict.Corrupt, "the checksum 0x%08x of the dynamic disk header at 0x%x is wrong", h.Checksum, off)
	case h.Version>>16 != layout.Version1>>16:
		return strict.Refuse(strict.Version, "the dynamic disk header at 0x%x has version 0x%08x; 0x%08x is known", off, h.Version, layout.Version1)
	case h.ParentID != [16]byte{} || h.ParentName != [512]byte{} || h.Locators != [8]layout.Locator{}:
		return strict.Refuse(strict.External, "the dynamic disk header at 0x%x names a parent", off)
	case h.DataOffset != layout.NoOffset && h.DataOffset != layout.Absent:
		return strict.Refuse(strict.Feature, "the dynamic disk header at 0x%x points to another at 0x%x", off, h.DataOffset)
	}
	return im.judgeTable()
}

// judgeTable checks what the dynamic disk header says of the blocks.
func (im *image) judgeTable() error {
	h, off := &im.header, im.footer.DataOffset
	block := uint64(h.BlockSize)
	switch {
	case bits.OnesCount64(block) != 1 || block < layout.Sector:
		return strict.Refuse(strict.Corrupt, "the dynamic disk header at 0x%x has blocks of %d bytes; a power of two from 512 on is needed", off, block)
	case block < minBlock:
		return strict.Refuse(strict.Feature, "the dynamic disk header at 0x%x has blocks of %d bytes; under %d, programs disagree on their layout", off, block, minBlock)
	case block > maxBlock:
		return strict.Refuse(strict.Limit, "the dynamic disk header at 0x%x has blocks of %d bytes; %d is the most", off, block, maxBlock)
	case h.Entries > maxEntries:
		return strict.Refuse(strict.Limit, "the dynamic disk header at 0x%x has a table of %d blocks; %d is the most", off, h.Entries, maxEntries)
	case uint64(h.Entries)*block < im.footer.CurrentSize:
		return strict.Refuse(strict.Corrupt, "the dynamic disk header at 0x%x has %d blocks of %d bytes, too few for a disk of %d bytes",
			off, h.Entries, block, im.footer.CurrentSize)
	case h.TableOffset%layout.Sector != 0:
		return strict.Refuse(strict.Corrupt, "the block allocation table at 0x%x does not begin at a sector", h.TableOffset)
	}
	return im.file.Inside(h.TableOffset, uint64(h.Entries)*4, "the block allocation table")
}
