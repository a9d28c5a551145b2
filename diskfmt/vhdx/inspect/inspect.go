// Package inspect judges files that somebody claims to be VHDX, and reads those
// that it found harmless. It refuses everything that is not exactly one
// self-contained disk with an empty log: it opens and returns no name that a
// file carries, replays nothing and takes no record. Only ingest may use it. The
// format is that of Microsoft's [MS-VHDX].
package inspect

import (
	"context"
	"fmt"
	"io"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/vhdx/internal/layout"
	"github.com/tarn-storage/tarn/errs"
)

// maxContainer bounds what is noted of a file: twice the largest disk takes
// 16 MiB.
const maxContainer = 128 << 40

// image is a file whose headers, region tables and metadata were found sound.
type image struct {
	file          strict.File
	log           [2]uint64 // offset and length
	regions       []layout.Region
	bat, metadata layout.Region
	items         map[layout.GUID]layout.Item // the known ones
	size          uint64                      // virtual, in bytes
	block         uint64                      // bytes of a payload block
	sector        uint32                      // bytes of a logical sector
	blocks        uint64
	chunk         uint64 // payload blocks between two sector bitmaps
	fixed         bool
}

// Header reads the headers, the region tables and the metadata and gives the
// fast verdict. The metadata may lie anywhere in the file, so that the head of a
// stream decides nothing.
//
// It is stricter than the specification, which wants one valid header and one
// valid region table: where one of a pair is broken the last writer did not end
// its work, and where they differ two readers may see two disks. The log must be
// empty: a reader that replays none would see old metadata, and one that
// replays it lets the file write anywhere.
//
// Disks with logical sectors of 4096 bytes are read by their size in bytes;
// QEMU up to at least 7.2 takes an eighth of it.
func Header(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error) {
	im, err := open(r, size, lim)
	if err != nil {
		return strict.Report{}, errs.Wrap(err, "vhdx.inspect", "")
	}
	return im.report(), nil
}

// Open gives the full verdict: Header's, and then a walk over the block
// allocation table, which checks that the state of each block is known, that it
// lies inside the file, and that nothing lies on anything else. The error is
// errs.Unsafe with a class of package strict. Time is linear in the table; ctx
// ends the walk.
func Open(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (*Source, strict.Report, error) {
	im, err := open(r, size, lim)
	if err != nil {
		return nil, strict.Report{}, errs.Wrap(err, "vhdx.inspect", "")
	}
	rep := im.report()
	stored, err := im.walk(ctx, lim)
	if err != nil {
		return nil, rep, errs.Wrap(err, "vhdx.inspect", "")
	}
	rep.DataBytes = int64(stored)
	return &Source{im: im}, rep, nil
}

func (im *image) report() strict.Report {
	f := []string{"dynamic", fmt.Sprintf("blocks of %d bytes", im.block), fmt.Sprintf("logical sectors of %d bytes", im.sector)}
	if im.fixed {
		f[0] = "fixed"
	}
	return strict.Report{VirtualSize: int64(im.size), Features: f}
}

func open(r io.ReaderAt, size int64, lim strict.Limits) (*image, error) {
	switch {
	case size <= 0:
		return nil, strict.Refuse(strict.Empty, "the file is empty")
	case size > maxContainer:
		return nil, strict.Refuse(strict.Limit, "the file has %d bytes; %d is the most", size, int64(maxContainer))
	}
	im := &image{file: strict.File{R: r, Size: uint64(size)}}
	id, err := im.file.Bytes(0, min(uint64(size), uint64(len(layout.Signature))), "the file identifier")
	if err != nil {
		return nil, err
	}
	if string(id) != layout.Signature {
		return nil, strict.Refuse(strict.Mismatch, "the file begins with %s, not with VHDX's signature", strict.Quote(id))
	}
	if err := im.file.Inside(0, layout.HeaderSection, "the header section"); err != nil {
		return nil, err
	}
	for _, step := range []func() error{im.readHeaders, im.readRegions, im.readItems, im.readParameters, func() error { return im.readSize(lim) }} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return im, nil
}

// readHeaders finds the current header, that of the higher sequence number.
func (im *image) readHeaders() error {
	var hs [2]layout.Header
	var raw [2][]byte
	for i, at := range []uint64{layout.Header1, layout.Header2} {
		b, err := im.file.Bytes(at, layout.HeaderSize, "the header")
		if err != nil {
			return err
		}
		raw[i] = b
		layout.Decode(b, &hs[i])
		switch h := &hs[i]; {
		case string(h.Signature[:]) != layout.HeaderSignature:
			return strict.Refuse(strict.Corrupt, "the header at 0x%x begins with %s", at, strict.Quote(b[:4]))
		case layout.Sum(b) != h.Checksum:
			return strict.Refuse(strict.Corrupt, "the checksum 0x%08x of the header at 0x%x is wrong", h.Checksum, at).
				WithHint("the program that wrote it did not end its work: open and close the image with that program")
		case h.Version != layout.Version:
			return strict.Refuse(strict.Version, "the header at 0x%x has version %d; %d is known", at, h.Version, layout.Version)
		}
	}
	h := hs[0]
	if hs[1].Sequence > h.Sequence {
		h = hs[1]
	}
	// Disk2vhd writes two headers that are the same.
	if hs[0].Sequence == hs[1].Sequence && string(raw[0]) != string(raw[1]) {
		return strict.Refuse(strict.Corrupt, "the headers at 0x%x and 0x%x differ but have the same sequence number %d", layout.Header1, layout.Header2, h.Sequence)
	}
	return im.judgeLog(&h)
}

func (im *image) judgeLog(h *layout.Header) error {
	im.log = [2]uint64{h.LogOffset, uint64(h.LogLength)}
	switch {
	case h.Log != layout.GUID{}:
		return strict.Refuse(strict.Dirty, "the log at 0x%x is not empty: the image was not closed", h.LogOffset).
			WithHint("open and close the image with the program that wrote it, or run: qemu-img check -r all -f vhdx FILE")
	case h.LogVersion != 0:
		return strict.Refuse(strict.Version, "the log at 0x%x has version %d; 0 is known", h.LogOffset, h.LogVersion)
	case h.LogOffset%layout.MiB != 0 || h.LogLength%layout.MiB != 0:
		return strict.Refuse(strict.Corrupt, "the log at 0x%x (%d bytes) does not lie on whole MiB", h.LogOffset, h.LogLength)
	}
	return im.file.Inside(h.LogOffset, uint64(h.LogLength), "the log")
}

// readRegions reads the region tables, which must be equal.
func (im *image) readRegions() error {
	b, err := im.file.Bytes(layout.Region1, layout.TableSize, "the region table")
	if err != nil {
		return err
	}
	second, err := im.file.Bytes(layout.Region2, layout.TableSize, "the second region table")
	if err != nil {
		return err
	}
	switch {
	case string(b[:4]) != layout.RegionSignature:
		return strict.Refuse(strict.Corrupt, "the region table at 0x%x begins with %s", layout.Region1, strict.Quote(b[:4]))
	case layout.Sum(b) != layout.SumOf(b):
		return strict.Refuse(strict.Corrupt, "the checksum 0x%08x of the region table at 0x%x is wrong", layout.SumOf(b), layout.Region1)
	case string(b) != string(second):
		return strict.Refuse(strict.Corrupt, "the region tables at 0x%x and 0x%x differ", layout.Region1, layout.Region2)
	}
	var head struct{ Signature, Checksum, Count, Reserved uint32 }
	layout.Decode(b, &head)
	if head.Count > layout.MaxEntries {
		return strict.Refuse(strict.Limit, "the region table at 0x%x has %d entries; %d is the most", layout.Region1, head.Count, layout.MaxEntries)
	}
	seen := map[layout.GUID]bool{}
	for i := range int(head.Count) {
		at := 16 + i*layout.EntrySize
		var e layout.Region
		layout.Decode(b[at:], &e)
		if err := im.addRegion(e, uint64(layout.Region1+at), seen); err != nil {
			return err
		}
	}
	if !seen[layout.RegionBAT] || !seen[layout.RegionMetadata] {
		return strict.Refuse(strict.Corrupt, "the region table at 0x%x lacks the block allocation table or the metadata", layout.Region1)
	}
	return nil
}

// addRegion judges the entry e that lies at at.
func (im *image) addRegion(e layout.Region, at uint64, seen map[layout.GUID]bool) error {
	switch {
	case seen[e.ID]:
		return strict.Refuse(strict.Corrupt, "the region table's entry at 0x%x is there twice", at)
	case e.Offset < layout.HeaderSection || e.Offset%layout.MiB != 0 || e.Length%layout.MiB != 0 || e.Length == 0:
		return strict.Refuse(strict.Corrupt, "the region table's entry at 0x%x names the region at 0x%x (%d bytes), which is not of whole MiB behind the headers", at, e.Offset, e.Length)
	case e.Required&^layout.RegionRequired != 0:
		return strict.Refuse(strict.Feature, "the region table's entry at 0x%x has the unknown flags 0x%x", at, e.Required)
	}
	if err := im.file.Inside(e.Offset, uint64(e.Length), "a region"); err != nil {
		return err
	}
	seen[e.ID] = true
	im.regions = append(im.regions, e)
	switch {
	case e.ID == layout.RegionBAT:
		im.bat = e
	case e.ID == layout.RegionMetadata:
		im.metadata = e
	case e.Required != 0:
		return strict.Refuse(strict.Feature, "the region table's entry at 0x%x requires the unknown region %s", at, strict.Quote(e.ID[:]))
	}
	return nil
}
