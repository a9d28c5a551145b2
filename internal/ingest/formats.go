package ingest

import (
	"context"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	iso "github.com/tarn-storage/tarn/diskfmt/iso/inspect"
	luks "github.com/tarn-storage/tarn/diskfmt/luks/inspect"
	"github.com/tarn-storage/tarn/diskfmt/ova"
	"github.com/tarn-storage/tarn/diskfmt/parallels/bundle"
	parallels "github.com/tarn-storage/tarn/diskfmt/parallels/inspect"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	vdi "github.com/tarn-storage/tarn/diskfmt/vdi/inspect"
	vhd "github.com/tarn-storage/tarn/diskfmt/vhd/inspect"
	vhdx "github.com/tarn-storage/tarn/diskfmt/vhdx/inspect"
	vmdk "github.com/tarn-storage/tarn/diskfmt/vmdk/inspect"
)

// door is the strict door of a format.
type door struct {
	open func(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (diskfmt.Reader, strict.Report, error)
	// header judges what a stream begins with, so many bytes; nil: only the
	// whole file says what it is.
	header func(r io.ReaderAt, size int64, lim strict.Limits) (strict.Report, error)
	head   int
	flat   bool // the file's bytes are the guest's
	inTurn bool // flat, and the head says all: a stream needs no spool
}

// doors has every format but raw, qcow2 and ova, which have ways of their own.
var doors = map[diskfmt.Format]door{
	diskfmt.VMDK:  {open: opens(vmdk.Open), header: vmdk.Header, head: vmdk.HeaderSize},
	diskfmt.VHD:   {open: opens(vhd.Open)},
	diskfmt.VHDX:  {open: opens(vhdx.Open)},
	diskfmt.VDI:   {open: opens(vdi.Open), header: vdi.Header, head: vdi.HeaderSize},
	diskfmt.Ploop: {open: opens(parallels.Open), header: parallels.Header, head: parallels.HeaderSize},
	diskfmt.ISO:   {open: opens(iso.Open), header: iso.Header, head: iso.HeaderSize, flat: true, inTurn: true},
	diskfmt.LUKS:  {open: opens(luks.Open), header: luks.Header, head: luks.HeaderSize, flat: true},
}

// opens makes Open functions of different sources alike.
func opens[S diskfmt.Reader](open func(context.Context, io.ReaderAt, int64, strict.Limits) (S, strict.Report, error)) func(context.Context, io.ReaderAt, int64, strict.Limits) (diskfmt.Reader, strict.Report, error) {
	return func(ctx context.Context, r io.ReaderAt, size int64, lim strict.Limits) (diskfmt.Reader, strict.Report, error) {
		return open(ctx, r, size, lim)
	}
}

// file is a source that can be read anywhere: a descriptor, or a part of one.
type file interface {
	io.ReaderAt
	extent(off, size int64) (diskfmt.Extent, error)
}

// part is a piece of a file of its own, without knowledge of holes.
type part struct{ *io.SectionReader }

func (p part) extent(off, size int64) (diskfmt.Extent, error) {
	return diskfmt.Extent{Offset: off, Length: size - off, Kind: diskfmt.Data}, nil
}

func (im *intake) limits() strict.Limits {
	return strict.Limits{VirtualSize: im.MaxVirtual, Progress: func(int64, int64) { im.count.walked.Add(1) }}
}

// openFile judges size bytes of f, claimed to be of the given format, and
// returns a reader of the guest's bytes.
func (im *intake) openFile(ctx context.Context, format diskfmt.Format, f file, size int64) (diskfmt.Reader, Header, error) {
	if size == 0 {
		return nil, Header{}, errEmpty()
	}
	head, tail, far, err := ends(f, size)
	if err == nil {
		err = checkLooks(im.stored(format), head, tail, far, size)
	}
	if err != nil {
		return nil, Header{}, err
	}
	return im.openTables(ctx, format, f, size)
}

// stored returns the format of the image's file: a ploop image may be raw, if
// its description says so.
func (im *intake) stored(format diskfmt.Format) diskfmt.Format {
	if format == diskfmt.Ploop && im.description != nil && im.description.Plain {
		return diskfmt.Raw
	}
	return format
}

// openTables is openFile behind the look at both ends.
func (im *intake) openTables(ctx context.Context, format diskfmt.Format, f file, size int64) (diskfmt.Reader, Header, error) {
	var err error
	format = im.stored(format)
	var disk diskfmt.Reader
	h := Header{Format: format, Features: []string{}}
	all := anything
	switch format {
	case diskfmt.Raw:
		disk, h.VirtualSize = rawFile{f, size}, size
		err = im.limits().Check(uint64(size))
	case diskfmt.Qcow2:
		disk, h, err = im.openQcow2(ctx, f, size)
	case diskfmt.OVA:
		disk, h, err = im.openOVA(ctx, f, size)
	default:
		var rep strict.Report
		disk, rep, err = doors[format].open(ctx, f, size, im.limits())
		h.VirtualSize, h.Features = rep.VirtualSize, append(h.Features, rep.Features...)
		if doors[format].flat {
			disk = rawFile{f, size}
		} else {
			all = stored{rep.DataBytes, 512}
		}
	}
	if err == nil && format != diskfmt.Qcow2 && format != diskfmt.OVA { // which are measured
		h.MaxData, err = im.dataBytes(ctx, disk, all)
	}
	if err == nil && im.description != nil {
		err = im.checkDescription(disk)
	}
	return disk, h, im.hinted(err)
}

// openOVA opens the one disk in an archive. What its manifest says is compared
// while the disk is converted.
func (im *intake) openOVA(ctx context.Context, f file, size int64) (diskfmt.Reader, Header, error) {
	d, err := ova.Open(f, size)
	if err != nil {
		return nil, Header{}, err
	}
	format, err := diskfmt.ParseImageFormat(d.Format)
	if err != nil || format == diskfmt.OVA {
		return nil, Header{}, strict.Refuse(strict.Format, "the disk in the archive is of the format %s", d.Format)
	}
	disk, h, err := im.openFile(ctx, format, part{io.NewSectionReader(f, d.Offset, d.Size)}, d.Size)
	h.Format = diskfmt.OVA
	h.Features = append([]string{"a disk in " + d.Format}, append(d.Features, h.Features...)...)
	if err == nil {
		err = d.CheckSize(disk.Size())
	}
	im.base = d.Offset
	im.manifest = func(ctx context.Context) error { return d.Check(ctx, f, nil) }
	return disk, h, err
}

// describe takes a bundle's description.
func (im *intake) describe(b []byte) error {
	if im.Format != string(diskfmt.Ploop) {
		return strict.Refuse(strict.Mismatch, "a description comes with ploop images only")
	}
	d, err := bundle.Parse(b)
	if err == nil && d.File != PloopImage {
		err = strict.Refuse(strict.External, "the description names another file than %s", PloopImage).
			WithHint("import the image's file itself")
	}
	im.description = &d
	return err
}

// checkDescription compares a bundle's description with its image.
func (im *intake) checkDescription(disk diskfmt.Reader) error {
	if want := im.description.Size(); disk.Size() != want {
		return strict.Refuse(strict.Corrupt, "the description says that the disk has %d bytes, its image %d", want, disk.Size())
	}
	if p, ok := disk.(*parallels.Source); ok && p.ClusterSize() != im.description.BlockSize {
		return strict.Refuse(strict.Corrupt, "the description says that clusters have %d bytes, the image %d", im.description.BlockSize, p.ClusterSize())
	}
	return nil
}
