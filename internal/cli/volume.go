package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

func (a *app) volumeCommand() *cobra.Command {
	return a.noun("volume", "Look at the volumes of pools, adopt and release them",
		"A volume is one named, sized block of bytes in a pool: a base or a disk's content.",
		a.volumeList, a.volumeShow, a.volumeAdopt, a.volumeRelease)
}

func (a *app) volumeList() *cobra.Command {
	var pool string
	var foreign bool
	cmd := a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List volumes", example: "tarn volume list\ntarn volume list --pool fast --foreign",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			if foreign {
				return a.foreignList(ctx, c, pool)
			}
			l, err := c.Volumes(ctx, pool, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(v api.Volume) string { return v.ID }, "ID POOL KIND STATE FORMAT SIZE ALLOCATED NAME", func(v api.Volume) []string {
				return []string{v.ID, v.Pool, v.Kind, v.State, v.Format, size(v.VirtualSize), size(v.AllocatedSize), v.Name}
			})
		},
	})
	cmd.Flags().StringVar(&pool, "pool", "", "only volumes in this `POOL`")
	cmd.Flags().BoolVar(&foreign, "foreign", false, "what lies in pools and was not made by tarn instead: it is left alone until it is adopted")
	a.completeFlag(cmd, "pool", poolNames)
	return cmd
}

func (a *app) volumeShow() *cobra.Command {
	return a.command(verb{
		use: "show VOLUME", aliases: []string{"info"}, short: "Show a volume", args: []string{"VOLUME"}, complete: []names{volumeNames},
		example: "tarn volume show 0197f1c2-8a51-7c3e-9f02-3a5b7d8e9f01",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			v, err := c.Volume(ctx, args[0])
			if err != nil {
				return err
			}
			backing, origin := "", ""
			if v.Adopted {
				origin = "adopted"
			}
			if v.Backing != nil {
				backing = v.Backing.Volume + " (" + v.Backing.Format + ", " + v.Backing.Content + ")"
			}
			return a.printObject(v, v.ID, []field{
				{"name", v.Name}, {"id", v.ID}, {"pool", v.Pool}, {"kind", v.Kind}, {"state", v.State}, {"format", v.Format},
				{"virtual size", size(v.VirtualSize)}, {"requested size", size(v.RequestedSize)}, {"allocated size", size(v.AllocatedSize)},
				{"committed", size(v.Committed)}, {"origin", origin}, {"backing", backing}, {"content", v.Content}, {"path", v.Path}, {"created", when(v.CreatedAt)},
			})
		},
	})
}
