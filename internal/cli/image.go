package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/exit"
)

func (a *app) imageCommand() *cobra.Command {
	return a.noun("image", "Manage images",
		"An image is immutable content, judged once at its import. Disks are made from it; it is never a disk.",
		a.imageImport, a.imageList, a.imageShow, a.imageInspect, a.imageExport, a.imageRename, a.imageDelete)
}

func (a *app) imageImport() *cobra.Command {
	var f changing
	var i api.ImageImport
	var minDisk string
	cmd := f.add(a.command(verb{
		use: "import NAME SOURCE --format raw|qcow2", short: "Import an image", args: []string{"NAME", "SOURCE"}, complete: []names{none, nil},
		long: "SOURCE is a file or - for standard input. The format is what you say it is; an image that contradicts\n" +
			"it, or that could do harm, is refused with exit status 5. A stream cannot be imported with --no-wait.",
		example: "tarn image import debian12 debian12.qcow2 --format qcow2\ncurl -s https://example.org/disk.raw | tarn image import disk - --format raw --sha256 $SUM",
		run: func(ctx context.Context, c *client.Client, args []string) (err error) {
			i.Name, i.Source = args[0], args[1]
			if minDisk != "" {
				if i.MinDisk, err = parseSize("--min-disk", minDisk); err != nil {
					return err
				}
			}
			src, closed, err := a.openSource(args[1])
			if err != nil {
				return err
			}
			defer closed()
			out, err := a.upload(ctx, c, f.Options, i, src)
			return a.finish(ctx, c, f, out, err, result(a, func(id string) (api.Image, error) { return c.Image(ctx, id) }, "imported"))
		},
	}))
	formatFlag(cmd, &i.Format)
	cmd.Flags().StringVar(&i.SHA256, "sha256", "", "what the SHA-256 of the source must be, in `HEX`")
	cmd.Flags().StringVar(&minDisk, "min-disk", "", "smallest `SIZE` of a root disk made from it")
	cmd.Flags().StringVar(&i.Pool, "pool", "", "`POOL` that gets the content first")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

func formatFlag(cmd *cobra.Command, format *string) {
	cmd.Flags().Var(newChoice(format, "raw", "qcow2"), "format", "the format; it is never guessed")
	_ = cmd.MarkFlagRequired("format")
}

// upload imports; it shows how much of a stream was read, because the daemon
// answers only at its end.
func (a *app) upload(ctx context.Context, c *client.Client, o api.Options, i api.ImageImport, src client.Source) (api.Outcome, error) {
	if src.Stream == nil {
		return c.ImageImport(ctx, o, i, src)
	}
	p := a.progress()
	defer p.close()
	m := &metered{r: src.Stream, p: p, start: time.Now()}
	src.Stream = m
	out, err := c.ImageImport(ctx, o, i, src)
	switch {
	case err == nil || ctx.Err() == nil || !errors.Is(err, errs.Cancelled):
		return out, err
	case m.whole.Load(): // then the daemon may have all it needs
		return out, errs.New(errs.Cancelled, "cli", "", "stopped waiting; the import may go on").WithHint("see tarn operation list")
	}
	return out, errs.New(errs.Cancelled, "cli", "", "the import was stopped; nothing is kept")
}

// metered shows how much was read, once a second.
type metered struct {
	r           io.Reader
	p           progress
	start, last time.Time
	n           int64
	whole       atomic.Bool // r was read to its end
}

// Read reads as an io.Reader does.
func (m *metered) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.n += int64(n)
	if err == io.EOF {
		m.whole.Store(true)
	}
	if now := time.Now(); now.Sub(m.last) >= time.Second {
		m.last = now
		rate := int64(float64(m.n) / max(now.Sub(m.start).Seconds(), 0.001))
		m.p.show("upload", api.Progress{Done: m.n, Unit: "bytes", Rate: rate})
	}
	return n, err
}

func (a *app) imageList() *cobra.Command {
	return a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List images", example: "tarn image list\ntarn image list -q",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Images(ctx, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(i api.Image) string { return i.ID }, "NAME STATE FORMAT SIZE POOLS CREATED", func(i api.Image) []string {
				return []string{i.Name, i.State, i.Format, size(i.VirtualSize), basePools(i), when(i.CreatedAt)}
			})
		},
	})
}

func basePools(i api.Image) string {
	pools := make([]string, 0, len(i.Bases))
	for _, b := range i.Bases {
		pools = append(pools, b.Pool)
	}
	return strings.Join(pools, ",")
}

func (a *app) imageShow() *cobra.Command {
	return a.command(verb{
		use: "show IMAGE", aliases: []string{"info"}, short: "Show an image", args: []string{"IMAGE"}, complete: []names{imageNames},
		example: "tarn image show debian12\ntarn image show debian12 -o json",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			i, err := c.Image(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printObject(i, i.ID, []field{
				{"name", i.Name}, {"id", i.ID}, {"state", i.State}, {"format", i.Format}, {"virtual size", size(i.VirtualSize)},
				{"min disk", sizeIfAny(i.MinDisk)}, {"sha256", i.SourceSHA256}, {"content", i.Content}, {"pools", basePools(i)}, {"created", when(i.CreatedAt)},
			})
		},
	})
}

func (a *app) imageInspect() *cobra.Command {
	var i api.ImageInspect
	cmd := a.command(verb{
		use: "inspect SOURCE --format raw|qcow2", short: "Say whether an image would be accepted", args: []string{"SOURCE"}, complete: []names{nil},
		long:    "The same gate as at import judges SOURCE, a file or -. Exit status 0 is accept, 5 reject.",
		example: "tarn image inspect debian12.qcow2 --format qcow2\ntarn image inspect - --format raw -o json < disk.raw",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			i.Source = args[0]
			src, closed, err := a.openSource(args[0])
			if err != nil {
				return err
			}
			defer closed()
			v, err := c.ImageInspect(ctx, i, src)
			if err != nil {
				return err
			}
			if err := a.printVerdict(v); err != nil {
				return err
			}
			if v.Verdict != "accept" {
				return exit.Refused
			}
			return nil
		},
	})
	formatFlag(cmd, &i.Format)
	cmd.Flags().StringVar(&i.SHA256, "sha256", "", "what the SHA-256 of the source must be, in `HEX`")
	return cmd
}

func (a *app) printVerdict(v api.Verdict) error {
	virtual := ""
	if v.VirtualSize > 0 {
		virtual = size(v.VirtualSize)
	}
	return a.printObject(v, v.Verdict, []field{
		{"verdict", v.Verdict}, {"error", v.Error}, {"detail", v.Detail}, {"hint", v.Hint}, {"format", v.Format}, {"virtual size", virtual},
		{"features", strings.Join(v.Features, ", ")}, {"sha256", v.SourceSHA256}, {"content", v.Content},
	})
}

func (a *app) imageRename() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "rename IMAGE NEW", short: "Give an image another name", args: []string{"IMAGE", "NEW"}, complete: []names{imageNames, none},
		example: "tarn image rename debian12 debian12-old",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.ImageRename(ctx, o, args[0], args[1])
			}
			return a.change(ctx, c, f, start, result(a, func(id string) (api.Image, error) { return c.Image(ctx, id) }, "renamed to "+args[1]))
		},
	}))
}

func (a *app) imageDelete() *cobra.Command {
	var f changing
	return f.addDestroying(a.command(verb{
		use: "delete IMAGE", aliases: []string{"rm"}, short: "Delete an image", args: []string{"IMAGE"}, complete: []names{imageNames},
		long:    "Its name is free at once. Content that disks read from stays until no disk needs it.",
		example: "tarn image delete debian12 --yes",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.destroy(f, "Delete the image %s?", args[0]); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.ImageDelete(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, a.gone("deleted"))
		},
	}))
}
