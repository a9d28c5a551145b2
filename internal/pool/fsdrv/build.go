package fsdrv

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// defaultKind shares extents between files, as cheap clones need.
const defaultKind = "xfs"

// kinds are the file systems that can be built and mounted.
var kinds = []string{"ext4", "xfs", "btrfs"}

// signature is one that wipefs finds on a device.
type signature struct {
	Type string `json:"type"`
	UUID string `json:"uuid"`
}

// signatures looks for what anybody may have on a device. It reads only.
func signatures(ctx context.Context, op, device string) ([]signature, error) {
	out, err := hostexec.Run(ctx, hostexec.Call{
		Program:  hostexec.Wipefs,
		Options:  []hostexec.Option{hostexec.Flag("--no-act"), hostexec.Flag("--json")},
		Operands: []hostexec.Value{hostexec.Text(device)},
	})
	if err != nil {
		return nil, failed(op, device, err)
	}
	var found struct {
		Signatures []signature `json:"signatures"`
	}
	if text := strings.TrimSpace(out.Stdout); text != "" {
		if err := json.Unmarshal([]byte(text), &found); err != nil {
			return nil, errs.New(errs.Internal, op, device, "wipefs does not print what was asked for: %w", err)
		}
	}
	return found.Signatures, nil
}

// checkKind refuses a file system that this driver does not make.
func checkKind(op string, c driver.Config) error {
	if k := c.Source.FileSystem; k != "" && !slices.Contains(kinds, k) {
		return errs.New(errs.Invalid, op, k, "%q is no file system that tarn makes", k).WithHint("use one of: %s", strings.Join(kinds, ", "))
	}
	return nil
}

// kindOf returns which file system to mount: the one that the pool names, else
// that of the device's one signature.
func kindOf(ctx context.Context, op string, c driver.Config) (string, error) {
	if err := checkKind(op, c); err != nil || c.Source.FileSystem != "" {
		return c.Source.FileSystem, err
	}
	found, err := signatures(ctx, op, c.Source.Device)
	if err != nil {
		return "", err
	}
	if len(found) == 1 && slices.Contains(kinds, found[0].Type) {
		return found[0].Type, nil
	}
	what := "nothing"
	if len(found) > 0 {
		what = names(found)
	}
	none := errs.New(errs.Unavailable, op, c.Source.Device, "%s carries %s, not one file system of %s", c.Source.Device, what, strings.Join(kinds, ", ")).
		WithHint("tarn pool create --build and tarn pool build make a file system")
	if !slices.ContainsFunc(found, func(s signature) bool { return slices.Contains(kinds, s.Type) }) {
		return "", nothing(none)
	}
	return "", none
}

func names(found []signature) string {
	var all []string
	for _, s := range found {
		if !slices.Contains(all, s.Type) {
			all = append(all, s.Type)
		}
	}
	return strings.Join(all, ", ")
}

// build implements driver.Type.Build. The file system's UUID is the pool's id:
// by that a repeat knows what it has made.
func build(ctx context.Context, c driver.Config, overwrite bool) error {
	const op = "pool.build"
	name := c.Source.Device
	if err := ctx.Err(); err != nil {
		return errs.Wrap(err, op, name)
	}
	if err := checkKind(op, c); err != nil {
		return err
	}
	if c.Source.FileSystem == "" {
		c.Source.FileSystem = defaultKind
	}
	id, err := uuid.Parse(string(c.ID))
	if err != nil {
		return errs.New(errs.Internal, op, name, "the pool's id %q is no UUID", c.ID)
	}
	if err := unused(op, c); err != nil {
		return err
	}
	found, err := signatures(ctx, op, name)
	switch {
	case err != nil:
		return err
	case overwrite:
	case len(found) == 1 && found[0].Type == c.Source.FileSystem && found[0].UUID == id.String():
		begun, err := unfinished(op, name, found[0].Type)
		if err != nil || !begun {
			return err
		}
	case len(found) > 0:
		return errs.New(errs.Conflict, op, name, "%s carries signatures: %s", name, names(found)).
			WithHint("see what it is: wipefs %s; --overwrite destroys it", name)
	}
	return format(ctx, op, c, id, len(found) > 0)
}

// unfinished reports whether the file system on a device is one that mkfs.xfs was
// stopped at. That writes the superblock, with its UUID, early and clears
// sb_inprogress in it last; the kernel mounts none that has it set (xfs_sb.c,
// xfs_validate_sb_common). The others write theirs last.
func unfinished(op, device, kind string) (bool, error) {
	const inProgress = 126 // offset of sb_inprogress in struct xfs_dsb (xfs_format.h)
	if kind != "xfs" {
		return false, nil
	}
	f, err := os.Open(device)
	if err != nil {
		return false, failed(op, device, err)
	}
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], inProgress)
	return b[0] != 0, failed(op, device, err)
}

// unused refuses a device that is mounted or held by anything else.
func unused(op string, c driver.Config) error {
	name := c.Source.Device
	dev, err := number(op, c)
	if err != nil {
		return err
	}
	here, elsewhere, err := find(op, c, dev)
	if err != nil {
		return err
	}
	if here != nil && here.On(dev) {
		elsewhere = c.Path
	}
	if elsewhere != "" {
		return errs.New(errs.Busy, op, name, "%s is mounted at %s", name, elsewhere).WithHint("unmount it, or stop its pool, first")
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return errs.New(errs.Busy, op, name, "%s is in use", name).WithHint("lsblk %s shows by what", name)
	}
	if err != nil {
		return failed(op, name, err)
	}
	return failed(op, name, unix.Close(fd))
}

// format wipes what is there, if anything is, and makes the file system.
func format(ctx context.Context, op string, c driver.Config, id uuid.UUID, wipe bool) error {
	call := mkfs(c.Source.FileSystem, id)
	call.Operands = []hostexec.Value{hostexec.Text(c.Source.Device)}
	if _, err := call.Program.Find(); err != nil {
		return err // before anything is lost
	}
	if wipe {
		_, err := hostexec.Run(ctx, hostexec.Call{
			Program:  hostexec.Wipefs,
			Options:  []hostexec.Option{hostexec.Flag("--all"), hostexec.Flag("--quiet")},
			Operands: call.Operands,
		})
		if err != nil {
			return failed(op, c.Source.Device, err)
		}
	}
	_, err := hostexec.Run(ctx, call)
	return failed(op, c.Source.Device, err)
}

// mkfs is the call that makes a file system of one of kinds. The pool has a
// reserve of its own, so ext4's is left out.
func mkfs(kind string, id uuid.UUID) hostexec.Call {
	quiet := hostexec.Flag("-q")
	switch kind {
	case "ext4":
		return hostexec.Call{Program: hostexec.MkfsExt4, Options: []hostexec.Option{quiet,
			hostexec.OptionValue("-m", hostexec.Uint(0)), hostexec.OptionValue("-U", hostexec.Text(id.String()))}}
	case "btrfs":
		return hostexec.Call{Program: hostexec.MkfsBtrfs, Options: []hostexec.Option{quiet, hostexec.OptionValue("-U", hostexec.Text(id.String()))}}
	}
	return hostexec.Call{Program: hostexec.MkfsXFS, Options: []hostexec.Option{quiet,
		hostexec.OptionValue("-m", hostexec.Text("reflink=1,uuid="+id.String()))}}
}
