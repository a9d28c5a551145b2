package generate

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/hostexec"
)

// fileSystem is how one type of file system is made. The sector or block size
// is 4096 where it can be chosen, so that the disk works on hosts and guests
// with 512-byte and with 4 KiB sectors. Nothing is discarded: the disk is
// sparse already.
type fileSystem struct {
	limits  limits
	program hostexec.Program
	options []hostexec.Option
	label   func(string) hostexec.Option
}

var fileSystems = map[FS]fileSystem{
	Ext4: {
		// Below 8 MiB mke2fs leaves the journal out.
		limits:  limits{label: 16, min: 8 * mib},
		program: hostexec.MkfsExt4,
		options: []hostexec.Option{
			hostexec.Flag("-q"), hostexec.Flag("-F"),
			hostexec.OptionValue("-b", hostexec.Uint(4096)),
			hostexec.OptionValue("-E", hostexec.Word("lazy_itable_init=1,lazy_journal_init=1,nodiscard")),
		},
		label: func(l string) hostexec.Option { return hostexec.OptionValue("-L", hostexec.Text(l)) },
	},
	XFS: {
		// The smallest that xfsprogs makes since its release 5.19. The log is
		// allocated at once: 64 MiB, and up to 2 GiB on large disks.
		limits:  limits{label: 12, min: 300 * mib},
		program: hostexec.MkfsXFS,
		options: []hostexec.Option{
			hostexec.Flag("-q"), hostexec.Flag("-f"), hostexec.Flag("-K"),
			hostexec.OptionValue("-s", hostexec.Word("size=4096")),
		},
		label: func(l string) hostexec.Option { return hostexec.OptionValue("-L", hostexec.Text(l)) },
	},
	VFAT: {
		// 32-bit counts of 512-byte sectors end at 2 TiB. Above, mkfs.vfat
		// silently makes a smaller file system.
		limits:  limits{label: 11, ascii: true, refused: "*?.,;:/\\|+=<>[]\"", min: 128 * kib, max: 2 * tib},
		program: hostexec.MkfsVFAT,
		options: []hostexec.Option{hostexec.Flag("-I"), hostexec.Flag("--mbr=n")},
		label:   func(l string) hostexec.Option { return hostexec.OptionValue("-n", hostexec.Text(l)) },
	},
}

// maxToolCPU stops a tool that loops. The largest disks take it seconds.
const maxToolCPU = 10 * time.Minute

func (r Request) makeFileSystem(ctx context.Context, t Target) error {
	if t.File == nil {
		return errs.New(errs.Internal, op, string(r.FS), "the target has no descriptor for the tool")
	}
	f := fileSystems[r.FS]
	options := f.options[:len(f.options):len(f.options)]
	if r.Label != "" {
		options = append(options, f.label(r.Label))
	}
	_, err := hostexec.Run(ctx, hostexec.Call{Program: f.program, Options: options,
		Operands: []hostexec.Value{hostexec.File(t.File)}, CPU: maxToolCPU})
	var exit *hostexec.Exit
	if errors.Is(err, errs.Internal) && errors.As(err, &exit) && full(t.File) {
		return errs.New(errs.NoSpace, op, string(r.FS), "the file system that holds the disk is full: %w", exit)
	}
	return err
}

// full reports whether f is a file on a file system without room, for
// mkfs.vfat does not say why it could not write.
func full(f *os.File) bool {
	var fi unix.Stat_t
	var fs unix.Statfs_t
	fd := int(f.Fd())
	if unix.Fstat(fd, &fi) != nil || fi.Mode&unix.S_IFMT != unix.S_IFREG || unix.Fstatfs(fd, &fs) != nil {
		return false
	}
	return fs.Bavail*uint64(fs.Bsize) < uint64(mib)
}
