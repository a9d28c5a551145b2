package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
)

// exporting is a command that writes what a disk or an image holds.
type exporting struct {
	noun   string
	file   func(ctx context.Context, ref string, x api.Export, f *os.File, progress func(api.Progress)) error
	stream func(ctx context.Context, ref string, x api.Export, w io.Writer) error
}

// exportLong is what help says of every export.
const exportLong = "FILE appears only when it is whole; one that exists is kept unless\n" +
	"--force is given. vmdk is streamOptimized, the kind that an OVA holds. All formats can go to standard output\n" +
	"(-), except qcow2 with --compression, which needs a file."

// exportCommand makes the command; calls gives what it does with a client.
func (a *app) exportCommand(v verb, calls func(*client.Client) exporting) *cobra.Command {
	var x api.Export
	var force bool
	v.run = func(ctx context.Context, c *client.Client, args []string) error {
		e := calls(c)
		if args[1] != "-" {
			return a.exportFile(ctx, e, args[0], args[1], x, force)
		}
		if terminal(a.Out) {
			return usage("standard output is a terminal").WithHint("redirect it, or name a file")
		}
		return e.stream(ctx, args[0], x, a.Out)
	}
	cmd := a.command(v)
	cmd.Flags().Var(newChoice(&x.Format, "raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"), "format", "the format to write")
	_ = cmd.MarkFlagRequired("format")
	cmd.Flags().Var(newChoice(&x.Compression, "zlib", "zstd"), "compression", "compress a qcow2 file")
	cmd.Flags().Var(newChoice(&x.Type, "dynamic", "fixed"), "type", "of vhd: fixed holds every byte, as Azure wants it")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE")
	return cmd
}

func (a *app) imageExport() *cobra.Command {
	return a.exportCommand(verb{
		use: "export IMAGE FILE|- --format FORMAT", short: "Write an image's content to a file or to standard output", args: []string{"IMAGE", "FILE"}, complete: []names{imageNames, nil},
		long: "The content is what was imported, in any format. " + exportLong,
		example: "tarn image export debian12 debian12.qcow2 --format qcow2 --compression zstd\n" +
			"tarn image export debian12 debian12.vmdk --format vmdk\n" +
			"tarn image export debian12 - --format raw | sha256sum",
	}, func(c *client.Client) exporting { return exporting{"image", c.ImageExport, c.ImageExportStream} })
}

// exportFile writes to path with the user's rights: into PATH.partial, synced,
// then renamed, so that path is whole or absent. A failed export leaves no
// partial file; one that is there already belongs to somebody else and is not
// touched.
func (a *app) exportFile(ctx context.Context, e exporting, ref, path string, x api.Export, force bool) error {
	if err := checkTarget(path, force); err != nil {
		return err
	}
	partial := path + ".partial"
	f, err := os.OpenFile(partial, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return errs.New(errs.Exists, "export", partial, "%s is there: another export runs, or one was cut off", partial).
				WithHint("remove it if no export runs")
		}
		return fileError(path, err)
	}
	p := a.progress()
	err = e.file(ctx, ref, x, f, func(now api.Progress) { p.show("export", now) })
	p.close()
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = publish(partial, path, force)
	}
	if err != nil {
		_ = os.Remove(partial)
		return fileError(path, err)
	}
	return a.exported(e.noun, ref, path, x.Format)
}

// exported says that an export is done.
func (a *app) exported(noun, ref, path, format string) error {
	if a.output == "json" {
		return printJSON(a.Out, map[string]string{noun: ref, "file": path, "format": format})
	}
	if a.quiet {
		_, err := fmt.Fprintln(a.Out, path)
		return wrote(err)
	}
	return a.say("%s %s exported to %s", noun, ref, path)
}

// checkTarget refuses early what publish would refuse at the end.
func checkTarget(path string, force bool) error {
	fi, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fileError(path, err)
	case !fi.Mode().IsRegular():
		return notRegular(path, fi.Mode()).WithHint("name a new file, or write to standard output with - and redirect it")
	case !force:
		return exists(path)
	}
	return nil
}

func exists(path string) error {
	return errs.New(errs.Exists, "export", path, "%s exists", path).WithHint("add --force to replace it")
}

// publish gives the finished file its name; without force never over another
// file, even one that appeared in the meantime.
func publish(partial, path string, force bool) error {
	flags := uint(unix.RENAME_NOREPLACE)
	if force {
		flags = 0
	}
	err := unix.Renameat2(unix.AT_FDCWD, partial, unix.AT_FDCWD, path, flags)
	if errors.Is(err, unix.EINVAL) && !force { // a file system without the flag
		if err = os.Link(partial, path); err == nil {
			err = os.Remove(partial)
		}
	}
	if errors.Is(err, fs.ErrExist) {
		return exists(path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func fileError(path string, err error) error {
	var e *errs.Error
	if errors.As(err, &e) {
		return e
	}
	return errs.New(pathKind(err), "export", path, "%s cannot be written: %w", path, err)
}
