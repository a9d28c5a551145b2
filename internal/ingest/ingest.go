// Package ingest is the one gate for bytes whose format somebody else claims:
// it has them judged by strict parsers in a confined worker, and converted to
// a sparse raw disk with both digests on the way. It refuses to parse a byte
// of an image in this process, to open a path, and to work without the
// worker's system call filter.
//
// A refusal is errs.Unsafe with one of the classes as Class. Everything the
// worker says is taken as what a hostile program may say: texts are cut and
// cleaned, numbers checked against what was asked.
package ingest

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"strings"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/diskfmt/unpack"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/hostexec"
)

// DefaultMaxVirtualSize is the largest virtual size that a claim may have
// unless it says less.
const DefaultMaxVirtualSize = strict.DefaultSize

// PloopImage is the file of a ploop image that a description may name.
const PloopImage = "root.hds"

// Stdin is the name of a source whose descriptor may be a pipe or socket.
const Stdin = "-"

// Source is where an image's bytes come from: an open descriptor, or a stream.
// Both stay the caller's.
type Source struct {
	File   *os.File  // regular, or anything that can be read when Name is Stdin; nil for Stream
	Stream io.Reader // read up to its end, or to Close
	Size   int64     // bytes a stream announces, -1 unknown; ignored for a regular file
	Name   string    // as the user named it, for messages
	// Description is the DiskDescriptor.xml of a ploop image that comes with
	// one; it is judged together with the image.
	Description []byte
}

// Claim is what somebody says the bytes are.
type Claim struct {
	Format         string // one of diskfmt.ImageFormats
	Compression    string // what it is wrapped in, one of unpack.Names; "" nothing
	SHA256         string // of the bytes as delivered, hex; "" claims nothing
	Promised       bool   // the caller itself holds the bytes as delivered against something
	MaxVirtualSize int64  // 0 means DefaultMaxVirtualSize
	// Adopt says that the source is to be a volume as it is. What volumes do not
	// have is refused; a qcow2 file may read from another, as Header says.
	Adopt bool
	// MaxUnannounced bounds what comes in turn and does not announce its size, a
	// stream or what a packed source holds, and the data that such content may
	// have, in bytes: what the caller can reserve. 0 means MaxVirtualSize.
	MaxUnannounced int64
}

// Config says how workers run. The zero value is right for a daemon.
type Config struct {
	User    *hostexec.User // whom workers run as; nil: nobody when this process is root, else itself
	Threads int            // that convert; 0 means one for each processor
	// Idle is how long a worker may stand still, Total how long a session may
	// take, judging and converting. Zeroes mean 60 seconds and 24 hours.
	Idle, Total time.Duration
	// Spool makes an empty, nameless file for Inspect to keep a stream in whose
	// tables may come last; nil refuses such streams.
	Spool func() (*os.File, error)
}

// nobody is whom root's workers run as.
var nobody = hostexec.User{UID: 65534, GID: 65534}

func (c Config) withDefaults() Config {
	if c.User == nil && os.Geteuid() == 0 {
		c.User = &nobody
	}
	for _, d := range []struct {
		value *time.Duration
		def   time.Duration
	}{{&c.Idle, time.Minute}, {&c.Total, 24 * time.Hour}} {
		if *d.value == 0 {
			*d.value = d.def
		}
	}
	return c
}

// Header is the verdict on what stands before the data.
type Header struct {
	Format      diskfmt.Format `json:"format"`
	VirtualSize int64          `json:"virtual_size"` // -1: of what comes in turn, known at its end
	Features    []string       `json:"features"`
	MaxData     int64          `json:"max_data"`  // a conversion writes at most so many bytes
	MaxSpool    int64          `json:"max_spool"` // and so many into a spool; 0: it needs none

	// Of what is to be adopted as qcow2.
	Version     int      `json:"version,omitempty"` // 2 or 3
	ClusterSize int64    `json:"cluster_size,omitempty"`
	Backing     *Backing `json:"backing,omitempty"`
}

// Backing is what a qcow2 header says of the file that the image reads from. Both
// are somebody's words: they are compared, never opened.
type Backing struct {
	Name   string `json:"name"`
	Format string `json:"format"`
}

// Result is what a conversion found.
type Result struct {
	SourceSHA256 string `json:"source_sha256"` // hex
	Content      string `json:"content"`       // b3-4m:HEX over VirtualSize bytes
	VirtualSize  int64  `json:"virtual_size"`
	Written      int64  `json:"written"` // bytes of data in the output
	Extents      int64  `json:"extents"` // runs of data in the output
}

// Inspect returns the gate's verdict on an image without writing anything. It
// judges, reads and digests everything that an import would. A refused image
// is a verdict, not an error.
func Inspect(ctx context.Context, cfg Config, src Source, claim Claim) (api.Verdict, error) {
	v := api.Verdict{Verdict: "accept", Format: claim.Format, Features: []string{}}
	err := dryRun(ctx, cfg, src, claim, &v)
	var e *errs.Error
	if errors.As(err, &e) && e.Kind == errs.Unsafe {
		v.Verdict, v.Error, v.Detail, v.Hint = "reject", e.Class, e.Message, e.Hint
		return v, nil
	}
	return v, err
}

func dryRun(ctx context.Context, cfg Config, src Source, claim Claim, v *api.Verdict) error {
	s, err := Open(ctx, cfg, src, claim)
	if err != nil {
		return err
	}
	defer s.Close()
	h := s.Header()
	v.VirtualSize, v.Features = h.VirtualSize, h.Features
	if h.MaxSpool != 0 && cfg.Spool == nil {
		return errs.New(errs.Unsupported, "image.inspect", src.Name, "a stream of %s cannot be judged without space to keep it", h.Format).
			WithHint("inspect a file")
	}
	var kept *os.File
	r, err := s.Convert(ctx, nil, func() (f *os.File, err error) {
		kept, err = cfg.Spool()
		return kept, err
	}, nil)
	if kept != nil {
		kept.Close()
	}
	if err != nil {
		return err
	}
	if r.VirtualSize%512 != 0 {
		v.Features = append(v.Features, "a size that is no multiple of 512 bytes: its disks have zeroes behind its end")
	}
	v.VirtualSize, v.SourceSHA256, v.Content = r.VirtualSize, r.SourceSHA256, r.Content
	return nil
}

// check validates the claim and fills in its defaults.
func (c *Claim) check() error {
	if _, err := diskfmt.ParseImageFormat(c.Format); err != nil {
		return strict.Refuse(strict.Format, "%w", err)
	}
	if c.Compression != "" && !unpack.Known(c.Compression) {
		return strict.Refuse(strict.Format, "%q is no compression of images; use %s", cut(c.Compression, 80), strings.Join(unpack.Names(), ", "))
	}
	if c.SHA256 != "" {
		if b, err := hex.DecodeString(c.SHA256); err != nil || len(b) != 32 {
			return errs.New(errs.Invalid, "", "", "%q is not a SHA-256 in hex, which has 64 digits", cut(c.SHA256, 80))
		}
	}
	if c.MaxVirtualSize == 0 {
		c.MaxVirtualSize = DefaultMaxVirtualSize
	}
	if c.MaxUnannounced == 0 {
		c.MaxUnannounced = c.MaxVirtualSize
	}
	return nil
}
