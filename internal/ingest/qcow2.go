package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/qcow2/inspect"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// maxHeader is how much of a qcow2 stream is read to judge its header: the
// largest first cluster.
const maxHeader = 2 << 20

// openQcow2 judges size bytes of r, header and tables, and returns a reader of
// the guest's bytes.
func (im *intake) openQcow2(ctx context.Context, r io.ReaderAt, size int64) (*inspect.Source, Header, error) {
	src, rep, err := inspect.Open(ctx, r, size, inspect.Limits{VirtualSize: im.MaxVirtual, Layered: im.Adopt, Progress: func(int64, int64) {
		im.count.walked.Add(1)
	}})
	if err != nil {
		return nil, Header{}, im.hinted(err)
	}
	h := qcow2Header(rep)
	if im.Adopt {
		if err := adoptable(rep, &h); err != nil {
			return nil, Header{}, err
		}
	}
	h.MaxData, err = im.dataBytes(ctx, src, stored{(rep.DataClusters + rep.CompressedClusters) * rep.ClusterSize, rep.ClusterSize})
	return src, h, im.hinted(err)
}

// adoptable refuses what the volumes of tarn do not have, because their readers
// and writers would not know it, and says in h what they have to know.
func adoptable(rep inspect.Report, h *Header) error {
	for _, f := range []struct {
		there      bool
		what, hint string
	}{
		{rep.ExtendedL2, "extended L2 entries", "qemu-img convert -O qcow2 writes it without them"},
		{rep.LazyRefcounts, "lazy refcounts", "qemu-img amend -f qcow2 -o lazy_refcounts=off FILE"},
		{rep.Snapshots > 0, "internal snapshots", "delete them: qemu-img snapshot -d NAME FILE"},
		{rep.Bitmaps > 0, "persistent bitmaps", "remove them: qemu-img bitmap --remove FILE NAME"},
	} {
		if f.there {
			return strict.Refuse(strict.Feature, "the image has %s, which volumes of tarn do not have", f.what).WithHint("%s", f.hint)
		}
	}
	h.Version, h.ClusterSize = rep.Version, rep.ClusterSize
	if rep.Backing {
		h.Backing = &Backing{rep.BackingName, rep.BackingFormat}
	}
	return nil
}

// judgeQcow2 judges the header alone, of a file that begins with head.
func (im *intake) judgeQcow2(head []byte, size int64) (Header, error) {
	rep, err := inspect.Header(bytes.NewReader(head), size, inspect.Limits{VirtualSize: im.MaxVirtual})
	if err != nil {
		return Header{}, im.hinted(err)
	}
	h := qcow2Header(rep)
	h.MaxData = rep.VirtualSize
	return h, nil
}

// qcow2Header says what a report found that a user may want to know.
func qcow2Header(rep inspect.Report) Header {
	h := Header{Format: "qcow2", VirtualSize: rep.VirtualSize, Features: []string{fmt.Sprintf("version %d", rep.Version), fmt.Sprintf("clusters of %d bytes", rep.ClusterSize)}}
	for _, f := range []struct {
		there bool
		text  string
	}{
		{rep.ExtendedL2, "extended L2 entries"},
		{rep.CompressedClusters > 0, rep.Compression + " compression"},
		{rep.LazyRefcounts, "lazy refcounts"},
		{rep.RefcountBits != 16, fmt.Sprintf("refcounts of %d bits", rep.RefcountBits)},
		{rep.Snapshots > 0, fmt.Sprintf("%d internal snapshots, which are left out", rep.Snapshots)},
		{rep.Bitmaps > 0, fmt.Sprintf("%d bitmaps, which are left out", rep.Bitmaps)},
		{rep.LeakedClusters > 0, fmt.Sprintf("%d leaked clusters", rep.LeakedClusters)},
	} {
		if f.there {
			h.Features = append(h.Features, f.text)
		}
	}
	return h
}

// hints say what to do about a refusal.
var hints = map[string]string{
	strict.Quota:    "allow it with --max-virtual-size if you trust the image",
	strict.Mismatch: "say --format raw if it is a raw disk",
	strict.External: "flatten the image first: qemu-img convert on the machine it comes from",
	strict.Dirty:    "repair the image first: qemu-img check -r all",
	strict.Corrupt:  "fetch the image again, or repair it: qemu-img check",
	strict.Overlap:  "fetch the image again, or repair it: qemu-img check",
	strict.Feature:  "convert the image first: qemu-img convert -O qcow2",
	strict.Version:  "convert the image first: qemu-img convert -O qcow2",
	strict.Limit:    "convert the image first, which writes its tables anew: qemu-img convert -O qcow2",
}

// sealed are the hints for formats that nothing converts.
var sealed = map[diskfmt.Format]map[string]string{
	diskfmt.LUKS: {
		strict.Corrupt: "fetch the image again, or restore its header: cryptsetup luksHeaderRestore",
		strict.Overlap: "fetch the image again, or restore its header: cryptsetup luksHeaderRestore",
		strict.Feature: "encrypt it again with cryptsetup's defaults, or open it where it comes from and import what is in it",
		strict.Version: "encrypt it again with cryptsetup's defaults, or open it where it comes from and import what is in it",
		strict.Limit:   "encrypt it again with cryptsetup's defaults, or open it where it comes from and import what is in it",
	},
	diskfmt.ISO: {strict.Corrupt: "fetch the image again", strict.Overlap: "fetch the image again"},
}

func (im *intake) hinted(err error) error {
	var e *errs.Error
	if !errors.As(err, &e) || e.Hint != "" {
		return err
	}
	hint := hints[e.Class]
	if own := sealed[diskfmt.Format(im.Format)]; own != nil && e.Class != strict.Quota && e.Class != strict.Mismatch {
		hint = own[e.Class]
	}
	if hint == "" {
		return err
	}
	return e.WithHint("%s", hint)
}
