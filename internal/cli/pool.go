package cli

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/internal/disk"
)

func (a *app) poolCommand() *cobra.Command {
	return a.noun("pool", "Manage storage pools",
		"A pool is storage that an administrator sets aside, served by one driver. Pools on one file system\n"+
			"share a capacity domain: its space is counted once, and overcommit and reserve belong to it.",
		a.poolCreate, a.poolList, a.poolShow, a.poolBuild, a.poolStart, a.poolStop, a.poolRefresh, a.poolSet, a.poolRename, a.poolImport, a.poolDelete, a.poolCapabilities)
}

func (a *app) poolCreate() *cobra.Command {
	var f changing
	var p api.PoolCreate
	cmd := f.addDestroying(a.command(verb{
		use: "create NAME --driver DRIVER", short: "Set storage aside as a pool", args: []string{"NAME"}, complete: []names{none},
		long: "The driver says how the storage is used and which flags name it: tarn pool capabilities lists both.\n" +
			"A directory is made if it is missing. What is in the storage stays foreign: tarn leaves it alone.\n\n" +
			"With --build the storage is made first, as a file system on a device. With --define the pool is only\n" +
			"recorded: tarn pool build makes its storage, if that is needed, and tarn pool start takes it into use.",
		example: "tarn pool create fast --driver dir --path /srv/tarn/fast\ntarn pool create big --driver dir --path /srv/big --overcommit 2 --reserve 50G",
		run: func(ctx context.Context, c *client.Client, args []string) (err error) {
			p.Name = args[0]
			if err := ownPaths(&p.Path, &p.Source); err != nil {
				return err
			}
			if p.Overwrite {
				if err := a.destroy(f, "Overwrite %s?", disk.PoolSource(p.Source)); err != nil {
					return err
				}
			}
			if p.Reserve != "" {
				if p.Reserve, err = parseReserve(p.Reserve); err != nil {
					return err
				}
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolCreate(ctx, o, p) }
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "created"))
		},
	}))
	sourceFlags(cmd, &p.Driver, &p.Path, &p.Source)
	cmd.Flags().BoolVar(&p.Build, "build", false, "make the storage first; refused where a signature says that it is in use")
	cmd.Flags().BoolVar(&p.Overwrite, "overwrite", false, "build whatever is there: what it holds is lost")
	cmd.Flags().BoolVar(&p.Define, "define", false, "record the pool and leave its storage alone")
	cmd.Flags().Var(newChoice(&p.DiskFormat, "auto", "raw", "qcow2"), "disk-format", "format of new disks; auto lets the driver choose")
	addImageFormats(cmd, &p.ImageFormats, "formats that may be imported into the pool, as raw,qcow2 (any)")
	cmd.Flags().StringVar(&p.Owner, "owner", "", "`USER:GROUP` that disks belong to, QEMU's (the daemon's own)")
	cmd.Flags().Var(ratio{&p.Overcommit}, "overcommit", "promise every byte so many times (1.0)")
	cmd.Flags().StringVar(&p.Reserve, "reserve", "", "percentage or `SIZE` that is never promised (5%)")
	ifAbsentFlag(cmd, &p.IfAbsent, "a pool of that name with those settings")
	return cmd
}

func (a *app) poolGetter(ctx context.Context, c *client.Client) func(string) (api.Pool, error) {
	return func(id string) (api.Pool, error) { return c.Pool(ctx, id) }
}

func (a *app) poolList() *cobra.Command {
	var w watching
	cmd := a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List pools", example: "tarn pool list\ntarn pool list --watch\ntarn pool list -o json",
		long: "A pool is active, full when nothing new fits, degraded when its storage does not serve, or inactive.\n\n" +
			"With --watch the list is kept up until interrupted: a table on a terminal; elsewhere a line for each pool\n" +
			"that changed, or with -o json the whole list, on one line, for each change.",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			if w.on || w.every.set {
				return a.watchPools(ctx, c, w)
			}
			l, err := c.Pools(ctx, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(p api.Pool) string { return p.ID }, "NAME DRIVER STATE CAPACITY COMMITTED AVAILABLE STORAGE", func(p api.Pool) []string {
				return []string{p.Name, p.Driver, p.State, size(p.Capacity), size(p.Committed), size(p.Available), poolWhere(p)}
			})
		},
	})
	cmd.Flags().BoolVarP(&w.on, "watch", "w", false, "go on, and show what changes")
	cmd.Flags().Var(&w.every, "interval", "with --watch, look every so often (2s)")
	return cmd
}

func (a *app) poolShow() *cobra.Command {
	return a.command(verb{
		use: "show POOL", aliases: []string{"info"}, short: "Show a pool", args: []string{"POOL"}, complete: []names{poolNames},
		example: "tarn pool show fast\ntarn pool show fast -o json",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			p, err := c.Pool(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printObject(p, p.ID, poolFields(p))
		},
	})
}

func poolFields(p api.Pool) []field {
	shares := ""
	for i, name := range p.SharesWith {
		if i > 0 {
			shares += ", "
		}
		shares += name
	}
	foreign := size(p.Foreign)
	if !p.ForeignAt.IsZero() {
		foreign += " at " + when(p.ForeignAt)
	}
	fields := []field{{"name", p.Name}, {"id", p.ID}, {"driver", p.Driver}, {"state", p.State}, {"reason", p.Reason}}
	of := disk.Pool{Path: p.Path, Source: disk.PoolSource(p.Source)}
	for _, f := range disk.SourceFields() {
		fields = append(fields, field{strings.ReplaceAll(string(f), "-", " "), *of.Field(f)})
	}
	return append(fields, []field{
		{"owner", p.Owner}, {"disk format", p.DiskFormat}, {"image formats", (&imageFormats{&p.ImageFormats}).String()}, {"identity", p.Identity}, {"domain", p.Domain}, {"shares with", shares},
		{"capacity", size(p.Capacity)}, {"provisioned", size(p.Provisioned)}, {"committed", size(p.Committed)},
		{"allocated", size(p.Allocated)}, {"foreign", foreign}, {"free", size(p.Free)}, {"reserved", size(p.Reserved)}, {"available", size(p.Available)},
		{"data used", share(p.DataPercent)}, {"metadata used", share(p.MetadataPercent)}, {"time to full", fullIn(p)},
		{"overcommit", strconv.FormatFloat(p.Overcommit, 'f', -1, 64)}, {"created", when(p.CreatedAt)},
	}...)
}

func (a *app) poolStart() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "start POOL", short: "Make a pool active", args: []string{"POOL"}, complete: []names{poolNames}, example: "tarn pool start fast",
		long: "The storage is set going where its driver has to, as by a mount.",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolStart(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "started"))
		},
	}))
}

func (a *app) poolStop() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "stop POOL", short: "Make a pool inactive", args: []string{"POOL"}, complete: []names{poolNames}, example: "tarn pool stop fast",
		long: "Nothing is read from or written to an inactive pool. What starting it set going, as a mount, is ended;\n" +
			"while guests use that, the pool stays active and the command fails as busy.",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolStop(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "stopped"))
		},
	}))
}

func (a *app) poolSet() *cobra.Command {
	var f changing
	var set api.PoolSet
	var reserve, format string
	var formats []string
	var cmd *cobra.Command
	cmd = f.add(a.command(verb{
		use: "set POOL", short: "Change a pool's settings", args: []string{"POOL"}, complete: []names{poolNames},
		long:    "Overcommit and reserve belong to the capacity domain: they change for all its pools, which are named.",
		example: "tarn pool set fast --overcommit 1.5\ntarn pool set fast --disk-format qcow2\ntarn pool set fast --image-formats raw,qcow2",
		run: func(ctx context.Context, c *client.Client, args []string) (err error) {
			if cmd.Flags().Changed("reserve") {
				if reserve, err = parseReserve(reserve); err != nil {
					return err
				}
				set.Reserve = &reserve
			}
			if format != "" {
				set.DiskFormat = &format
			}
			if cmd.Flags().Changed("image-formats") {
				set.ImageFormats = &formats
			}
			if set == (api.PoolSet{}) {
				return usage("tarn pool set changes nothing without a setting").WithHint("give --overcommit, --reserve, --disk-format or --image-formats")
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolSet(ctx, o, args[0], set) }
			return a.change(ctx, c, f, start, a.poolIsSet(ctx, c))
		},
	}))
	cmd.Flags().Var(ratio{&set.Overcommit}, "overcommit", "promise every byte so many times")
	cmd.Flags().StringVar(&reserve, "reserve", "", "percentage or `SIZE` that is never promised")
	cmd.Flags().Var(newChoice(&format, "auto", "raw", "qcow2"), "disk-format", "format of new disks")
	addImageFormats(cmd, &formats, "formats that may be imported into the pool from now on")
	return cmd
}

// imageFormats is a flag that lists formats; none in the list is every format.
type imageFormats struct{ list *[]string }

const anyFormat = "any"

func addImageFormats(cmd *cobra.Command, list *[]string, text string) {
	cmd.Flags().Var(&imageFormats{list}, "image-formats", text)
	_ = cmd.RegisterFlagCompletionFunc("image-formats", completeFormats)
}

// String returns the present value, nothing for none.
func (f *imageFormats) String() string {
	switch {
	case f.list == nil || *f.list == nil:
		return ""
	case len(*f.list) == 0:
		return anyFormat
	}
	return strings.Join(*f.list, ",")
}

// Set accepts formats with commas between them, or any.
func (f *imageFormats) Set(s string) error {
	*f.list = []string{}
	if s == anyFormat {
		return nil
	}
	for _, word := range strings.Split(s, ",") {
		if _, err := diskfmt.ParseImageFormat(word); err != nil {
			return err
		}
		*f.list = append(*f.list, word)
	}
	return nil
}

// Type is what help calls the value.
func (f *imageFormats) Type() string { return "LIST|any" }

// completeFormats completes the last format of a list with those that are not
// in it.
func completeFormats(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	head := typed[:strings.LastIndexByte(typed, ',')+1]
	var out []string
	if head == "" {
		out = append(out, anyFormat)
	}
	for _, f := range words(diskfmt.ImageFormats()) {
		if !slices.Contains(strings.Split(head, ","), f) {
			out = append(out, head+f)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// poolIsSet names the other pools that a domain's settings hold for.
func (a *app) poolIsSet(ctx context.Context, c *client.Client) func(api.Operation) error {
	return func(op api.Operation) error {
		p, err := c.Pool(ctx, op.Subject.ID)
		if err != nil {
			return err
		}
		if err := result(a, func(string) (api.Pool, error) { return p, nil }, "changed")(op); err != nil {
			return err
		}
		for _, other := range p.SharesWith {
			if err := a.say("overcommit and reserve also hold for pool %s, which shares its capacity", other); err != nil {
				return err
			}
		}
		return nil
	}
}

func (a *app) poolRename() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "rename POOL NEW", short: "Give a pool another name", args: []string{"POOL", "NEW"}, complete: []names{poolNames, none},
		example: "tarn pool rename fast nvme",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.PoolSet(ctx, o, args[0], api.PoolSet{Name: &args[1]})
			}
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "renamed to "+args[1]))
		},
	}))
}

func (a *app) poolImport() *cobra.Command {
	var f changing
	var p api.PoolImport
	cmd := f.add(a.command(verb{
		use: "import --driver DRIVER", short: "Take a pool into the records again",
		long: "A pool describes itself: its images, volumes, instances and disks come back from what stands beside\n" +
			"them, without looking into any disk. Leases come back unverified.",
		example: "tarn pool import --driver dir --path /srv/tarn/fast",
		run: func(ctx context.Context, c *client.Client, _ []string) (err error) {
			if err := ownPaths(&p.Path, &p.Source); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolImport(ctx, o, p) }
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "imported"))
		},
	}))
	sourceFlags(cmd, &p.Driver, &p.Path, &p.Source)
	return cmd
}

func (a *app) poolDelete() *cobra.Command {
	var f changing
	var keep bool
	cmd := f.addDestroying(a.command(verb{
		use: "delete POOL", aliases: []string{"rm"}, short: "Delete a pool", args: []string{"POOL"}, complete: []names{poolNames},
		long:    "With --keep-data the pool is only forgotten: its bytes stay, and tarn pool import brings it back.",
		example: "tarn pool delete fast --yes\ntarn pool delete fast --keep-data --yes",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			what := "Delete the pool %s?"
			if keep {
				what = "Forget the pool %s and keep its data?"
			}
			if err := a.destroy(f, what, args[0]); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.PoolDelete(ctx, o, args[0], keep)
			}
			return a.change(ctx, c, f, start, a.gone("deleted"))
		},
	}))
	cmd.Flags().BoolVar(&keep, "keep-data", false, "forget the pool and leave its bytes where they are")
	return cmd
}
