// Package generate makes the first content of disks that come from no image:
// nothing at all, an empty file system, a swap area or a config drive. It
// refuses to read a disk, to open a path and to keep a secret: a config
// drive's input is named by digest in the request and handed in as a stream.
package generate

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/tarn-storage/tarn/errs"
)

// Kind is what a generator makes. Its text goes into the journal.
type Kind string

// The kinds.
const (
	Blank       Kind = "blank"        // a disk that reads as zeroes
	FileSystem  Kind = "filesystem"   // an empty file system over the whole disk
	Swap        Kind = "swap"         // a Linux swap area
	ConfigDrive Kind = "config-drive" // an ISO 9660 file system of the spooled input
)

// FS is the type of a file system.
type FS string

// The file systems.
const (
	Ext4 FS = "ext4"
	XFS  FS = "xfs"
	VFAT FS = "vfat"
)

// Request says what to make. The zero value of a field means its default; a
// field that the kind does not use must be zero.
type Request struct {
	Kind  Kind      `json:"kind"`
	FS    FS        `json:"fs,omitempty"`    // of a FileSystem
	Label string    `json:"label,omitempty"` // of all but Blank; empty is none
	Input *Input    `json:"input,omitempty"` // of a ConfigDrive
	Time  time.Time `json:"time,omitzero"`   // of a ConfigDrive: every date in it
}

// Input names a spooled archive (see WriteSpool) without holding its content.
type Input struct {
	ID     string `json:"id"`
	SHA256 string `json:"sha256"` // of the archive's bytes, in hexadecimal
	Size   int64  `json:"size"`   // of the archive, in bytes
}

// The labels by which guests find a config drive.
const (
	LabelOpenStack = "config-2"
	LabelNoCloud   = "cidata"
	LabelSwap      = "swap0" // the default of the first swap disk
)

// Target is the disk to write: Size bytes that read as zeroes, or what an
// earlier run of the same request left.
type Target struct {
	// W takes what tarn writes itself.
	W io.WriterAt
	// File is the same bytes as a regular file or block device that was opened
	// for reading and writing. Only file systems need it: their tool opens it
	// again by its descriptor.
	File *os.File
	Size int64
}

// Validate returns errs.Invalid, with a hint, when r contradicts itself or
// does not fit a disk of size bytes. Whether a config drive's content fits is
// known by Size only.
func (r Request) Validate(size int64) error {
	if r.Kind != FileSystem && r.FS != "" {
		return invalid("a %s disk has no file system to choose", r.Kind)
	}
	if r.Kind != ConfigDrive && (r.Input != nil || !r.Time.IsZero()) {
		return invalid("a %s disk takes no input and no time", r.Kind)
	}
	switch r.Kind {
	case Blank:
		if r.Label != "" {
			return invalid("a blank disk has no label").WithHint("leave the label out, or choose a file system")
		}
		return nil
	case FileSystem:
		f, ok := fileSystems[r.FS]
		if !ok {
			return invalid("the file system %q is not known", r.FS).WithHint("use ext4, xfs or vfat")
		}
		return f.limits.check(string(r.FS), r.Label, size)
	case Swap:
		return swapLimits.check("swap", r.Label, size)
	case ConfigDrive:
		if err := r.Input.check(); err != nil {
			return err
		}
		return isoLimits.check("config drive", r.Label, size)
	}
	return invalid("the generator %q is not known", r.Kind)
}

// Run makes r's content on t. input is the spooled archive of a config drive,
// nil for the others; one that differs from r.Input is errs.Corrupt and
// nothing is written. Repeating Run on the same target converges; after nil
// the caller still has to sync.
func (r Request) Run(ctx context.Context, t Target, input io.Reader) error {
	if err := r.Validate(t.Size); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, string(r.Kind))
	}
	var err error
	switch r.Kind {
	case FileSystem:
		err = r.makeFileSystem(ctx, t)
	case Swap:
		err = writeSwap(t.W, r.Label, t.Size)
	case ConfigDrive:
		err = r.writeConfigDrive(ctx, t, input)
	}
	return errs.Wrap(err, op, string(r.Kind))
}

const op = "disk.generate"

func invalid(format string, args ...any) *errs.Error {
	return errs.New(errs.Invalid, op, "", format, args...)
}
