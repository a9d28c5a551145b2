package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

func (a *app) instanceCommand() *cobra.Command {
	return a.noun("instance", "Manage instances and their sets of disks",
		"An instance is a virtual machine as far as its disks go: tarn stores them, a hypervisor runs it.",
		a.instanceCreate, a.instanceList, a.instanceShow, a.instanceAttach, a.instanceDetach, a.instanceRename, a.instanceDelete)
}

// disksFlags are the flags that describe a new instance's disks.
type disksFlags struct {
	root, swap            []string // at most one each: see only
	ephemeral, data, roms []string
	drive                 driveFlags
}

func (d *disksFlags) add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&d.root, "root", nil, "the root disk, a `SPEC`")
	f.StringArrayVar(&d.ephemeral, "ephemeral", nil, "an ephemeral disk, a `SPEC` (may be repeated)")
	f.StringArrayVar(&d.swap, "swap", nil, "a swap disk, a `SPEC`")
	f.StringArrayVar(&d.data, "data", nil, "a data disk, a `SPEC` (may be repeated)")
	f.StringArrayVar(&d.roms, "cdrom", nil, "a read-only disk of an `IMAGE` (may be repeated)")
	d.drive.add(cmd)
}

// specs returns the disks in the order root, ephemeral, swap, data, cdrom.
func (d *disksFlags) specs() ([]api.DiskSpec, error) {
	disks := []api.DiskSpec{}
	add := func(role string, specs ...string) error {
		for _, s := range specs {
			spec, err := parseSpec(role, s)
			if err != nil {
				return err
			}
			disks = append(disks, spec)
		}
		return nil
	}
	one := func(role string, specs []string) error {
		if err := only("--"+role, specs); err != nil {
			return err
		}
		return add(role, specs...)
	}
	for _, step := range []func() error{
		func() error { return one("root", d.root) },
		func() error { return add("ephemeral", d.ephemeral...) },
		func() error { return one("swap", d.swap) },
		func() error { return add("data", d.data...) },
		func() error { return add("cdrom", d.roms...) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return disks, nil
}

func (a *app) instanceCreate() *cobra.Command {
	var f changing
	var i api.InstanceCreate
	var d disksFlags
	cmd := f.add(a.command(verb{
		use: "create NAME", short: "Create an instance and its disks", args: []string{"NAME"}, complete: []names{none},
		long: specHelp + "\nAll disks are made, or none.",
		example: "tarn instance create web1 --root debian12:20G --ephemeral 10G,fs=xfs --swap 2G --data 100G,pool=fast\n" +
			"tarn instance create setup --root 40G --cdrom installer\n" +
			"tarn instance create web2 --uuid $(virsh domuuid web2) --root debian12 --user-data user-data.yaml",
		run: func(ctx context.Context, c *client.Client, args []string) (err error) {
			i.Name = args[0]
			if i.Disks, err = d.specs(); err != nil {
				return err
			}
			if i.ConfigDrive, err = d.drive.read(); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.InstanceCreate(ctx, o, i) }
			return a.change(ctx, c, f, start, result(a, func(id string) (api.Instance, error) { return c.Instance(ctx, id) }, "created"))
		},
	}))
	cmd.Flags().StringVar(&i.ID, "uuid", "", "the `UUID` the instance has elsewhere")
	cmd.Flags().StringVar(&i.Pool, "pool", "", "`POOL` of disks that name none")
	ifAbsentFlag(cmd, &i.IfAbsent, "an instance of that name and shape")
	a.completeFlag(cmd, "pool", poolNames)
	d.add(cmd)
	return cmd
}

func (a *app) instanceList() *cobra.Command {
	return a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List instances", example: "tarn instance list",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Instances(ctx, everything)
			if err != nil {
				return err
			}
			return printList(a, l, func(i api.Instance) string { return i.ID }, "NAME ID DISKS SIZE CREATED", func(i api.Instance) []string {
				var total int64
				for _, d := range i.Disks {
					total += d.Size
				}
				return []string{i.Name, i.ID, strconv.Itoa(len(i.Disks)), size(total), when(i.CreatedAt)}
			})
		},
	})
}

func (a *app) instanceShow() *cobra.Command {
	var as string
	cmd := a.command(verb{
		use: "show INSTANCE", aliases: []string{"info"}, short: "Show an instance and its disks", args: []string{"INSTANCE"}, complete: []names{instanceNames},
		long:    "With --as it prints what a hypervisor needs, as attach does, but takes no lease.",
		example: "tarn instance show web1\ntarn instance show web1 --as libvirt",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if as != "" {
				at, err := c.InstanceShow(ctx, args[0], as)
				return a.printAttachment(at, as, false, err)
			}
			i, err := c.Instance(ctx, args[0])
			if err != nil {
				return err
			}
			if err := a.printObject(i, i.ID, []field{{"name", i.Name}, {"id", i.ID}, {"created", when(i.CreatedAt)}}); err != nil {
				return err
			}
			if a.quiet || a.output == "json" || len(i.Disks) == 0 {
				return nil
			}
			return printList(a, api.List[api.Disk]{Items: i.Disks}, diskID, diskHeader, diskRow)
		},
	})
	asFlag(cmd, &as, false)
	return cmd
}

func (a *app) instanceAttach() *cobra.Command {
	var at attaching
	return at.add(a.command(verb{
		use: "attach INSTANCE --as libvirt|qemu", short: "Take the leases of all disks and print how to open them", args: []string{"INSTANCE"}, complete: []names{instanceNames},
		long:    attachHelp,
		example: "tarn instance attach web1 --as libvirt\neval \"qemu-system-x86_64 -m 2G $(tarn instance attach web1 --as qemu)\"",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			var out api.Attachment
			var err error
			if at.dryRun {
				out, err = c.InstanceShow(ctx, args[0], at.As)
			} else {
				out, err = c.InstanceAttach(ctx, args[0], at.Attach)
			}
			return a.printAttachment(out, at.As, at.zero, err)
		},
	}))
}

func (a *app) instanceDetach() *cobra.Command {
	var d detaching
	return d.add(a.command(verb{
		use: "detach INSTANCE", short: "Give the leases of all disks up", args: []string{"INSTANCE"}, complete: []names{instanceNames},
		long: detachHelp, example: "tarn instance detach web1\ntarn instance detach web1 --force --yes",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			return a.detach(d, "instance", args[0], func() error { return c.InstanceDetach(ctx, args[0], d.Detach) })
		},
	}))
}

func (a *app) instanceRename() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "rename INSTANCE NEW", short: "Give an instance another name", args: []string{"INSTANCE", "NEW"}, complete: []names{instanceNames, none},
		example: "tarn instance rename web1 web-blue",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.InstanceRename(ctx, o, args[0], args[1])
			}
			return a.change(ctx, c, f, start, result(a, func(id string) (api.Instance, error) { return c.Instance(ctx, id) }, "renamed to "+args[1]))
		},
	}))
}

func (a *app) instanceDelete() *cobra.Command {
	var f changing
	return f.addDestroying(a.command(verb{
		use: "delete INSTANCE", aliases: []string{"rm"}, short: "Delete an instance and its disks", args: []string{"INSTANCE"}, complete: []names{instanceNames},
		example: "tarn instance delete web1 --yes\ntarn instance delete web1 --dry-run",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.destroy(f, "Delete the instance %s and all its disks?", args[0]); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.InstanceDelete(ctx, o, args[0])
			}
			return a.change(ctx, c, f, start, a.gone("deleted"))
		},
	}))
}
