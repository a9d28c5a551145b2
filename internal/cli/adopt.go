package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

// foreignList prints what lies in pools and was not made by tarn.
func (a *app) foreignList(ctx context.Context, c *client.Client, pool string) error {
	l, err := c.Foreign(ctx, pool)
	if err != nil {
		return err
	}
	return printList(a, l, func(o api.ForeignObject) string { return o.Pool + "/" + o.Name }, "POOL SIZE ALLOCATED NAME", func(o api.ForeignObject) []string {
		return []string{o.Pool, size(o.Size), size(o.Allocated), o.Name}
	})
}

func (a *app) volumeAdopt() *cobra.Command {
	var f changing
	var v api.VolumeAdopt
	cmd := f.add(a.command(verb{
		use: "adopt POOL NAME --format FORMAT", short: "Take a file, logical volume, RBD image or ploop bundle into the records where it lies",
		args: []string{"POOL", "NAME"}, complete: []names{poolNames, foreignNames},
		long: "The object must lie in the pool already; nothing of it is copied or renamed. The format is what you say,\n" +
			"it is never guessed, and the gate that judges images has to agree. With --instance it becomes a disk of\n" +
			"that instance. Without, it becomes a base, which nobody writes any more and others read from: adopt a\n" +
			"qcow2 chain from its lowest layer up. From then on it is tarn's: it gets the owner and the permissions of\n" +
			"the pool's volumes, and deleting its disk deletes it. \"tarn volume release\" undoes the adoption.",
		example: "tarn volume adopt fast old.qcow2 --format qcow2 --instance web1 --role root\ntarn volume adopt fast base.raw --format raw --dry-run",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			v.Pool, v.Name = args[0], args[1]
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.VolumeAdopt(ctx, o, v) }
			return a.change(ctx, c, f, start, result(a, func(id string) (api.Volume, error) { return c.Volume(ctx, id) }, "adopted"))
		},
	}))
	formats, roles := []string{"raw", "qcow2", "ploop", "luks", "iso"}, []string{"root", "data", "ephemeral", "swap", "cdrom"}
	cmd.Flags().Var(newChoice(&v.Format, formats...), "format", "what it is: raw, qcow2, ploop in a pool of bundles, or luks or iso, which tarn keeps as raw")
	_ = cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	cmd.Flags().StringVar(&v.Instance, "instance", "", "the `INSTANCE` that it becomes a disk of")
	cmd.Flags().Var(newChoice(&v.Role, roles...), "role", "what it is to the instance (default data)")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(roles, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagRequired("format")
	a.completeFlag(cmd, "instance", instanceNames)
	return cmd
}

func (a *app) volumeRelease() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "release VOLUME", short: "Take an adopted volume out of the records and leave it where it lies", args: []string{"VOLUME"}, complete: []names{volumeNames},
		long: "This undoes an adoption: the record and the sidecar go, the object keeps its name and its bytes, and the\n" +
			"owner, the permissions and, of a ploop bundle, the description that it got when it was adopted. It must not\n" +
			"be attached, and nothing may read from it. Volumes that tarn made are not released.",
		example: "tarn volume release fast/old.qcow2",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.VolumeRelease(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, a.gone("released"))
		},
	}))
}

func foreignNames(ctx context.Context, c *client.Client) ([]string, error) {
	l, err := c.Foreign(ctx, "")
	return namesOf(l, err, func(o api.ForeignObject) string { return o.Name })
}
