package cli

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
)

func (a *app) diskCommand() *cobra.Command {
	return a.noun("disk", "Manage single disks",
		"A disk belongs to an instance and is named by id, serial or INSTANCE/ROLE, as in web1/root or web1/data0.",
		a.diskList, a.diskShow, a.diskCreate, a.diskAttach, a.diskDetach, a.diskResize, a.diskExport, a.diskDelete)
}

const diskHeader = "NAME SIZE FORMAT POOL STATE DEVICE SERIAL ATTACHED"

func diskID(d api.Disk) string { return d.ID }

func diskRow(d api.Disk) []string {
	return []string{diskName(d), size(d.Size), d.Format, d.Pool, d.State, d.Device, d.Serial, holder(d)}
}

// diskName is how a user names a disk.
func diskName(d api.Disk) string { return d.Instance + "/" + d.Name }

// holder says which host may write a disk.
func holder(d api.Disk) string {
	if d.Attached == nil {
		return ""
	}
	if d.Attached.State != "held" {
		return d.Attached.Host + " (" + d.Attached.State + ")"
	}
	return d.Attached.Host
}

func (a *app) diskList() *cobra.Command {
	var instance string
	cmd := a.command(verb{
		use: "list", aliases: []string{"ls"}, short: "List disks", example: "tarn disk list\ntarn disk list --instance web1 -o json",
		run: func(ctx context.Context, c *client.Client, _ []string) error {
			l, err := c.Disks(ctx, instance, everything)
			if err != nil {
				return err
			}
			return printList(a, l, diskID, diskHeader, diskRow)
		},
	})
	cmd.Flags().StringVar(&instance, "instance", "", "only disks of this `INSTANCE`")
	a.completeFlag(cmd, "instance", instanceNames)
	return cmd
}

func (a *app) diskShow() *cobra.Command {
	var as string
	cmd := a.command(verb{
		use: "show DISK", aliases: []string{"info"}, short: "Show a disk", args: []string{"DISK"}, complete: []names{diskNames},
		long:    "With --as it prints what a hypervisor needs, as attach does, but takes no lease.",
		example: "tarn disk show web1/root\ntarn disk show web1/data0 --as qemu",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if as != "" {
				at, err := c.DiskShow(ctx, args[0], as)
				return a.printAttachment(at, as, false, err)
			}
			d, err := c.Disk(ctx, args[0])
			if err != nil {
				return err
			}
			return a.printObject(d, d.ID, diskFields(d))
		},
	})
	asFlag(cmd, &as, false)
	return cmd
}

func diskFields(d api.Disk) []field {
	boot, backing, source := "", "", d.Source.Kind
	if d.BootIndex > 0 {
		boot = strconv.Itoa(d.BootIndex)
	}
	if d.Backing != nil {
		backing = d.Backing.Volume + " (" + d.Backing.Format + ", " + d.Backing.Content + ")"
	}
	for _, detail := range []string{d.Source.Image, d.Source.FS, d.Source.Label} {
		if detail != "" {
			source += " " + detail
		}
	}
	access := ""
	if d.ReadOnly {
		access = "read only"
	}
	return []field{
		{"name", diskName(d)}, {"id", d.ID}, {"serial", d.Serial}, {"role", d.Role}, {"size", size(d.Size)}, {"format", d.Format},
		{"pool", d.Pool}, {"volume", d.Volume}, {"state", d.State}, {"path", d.Path}, {"source", source}, {"backing", backing},
		{"device", d.Device}, {"bus", d.Bus}, {"boot index", boot}, {"access", access}, {"discard", d.Discard}, {"cache", d.Cache},
		{"attached", holder(d)}, {"created", when(d.CreatedAt)},
	}
}

func (a *app) diskCreate() *cobra.Command {
	var f changing
	var data []string
	cmd := f.add(a.command(verb{
		use: "create INSTANCE --data SPEC", short: "Create one more data disk of an instance", args: []string{"INSTANCE"}, complete: []names{instanceNames},
		long:    dataHelp,
		example: "tarn disk create web1 --data 50G\ntarn disk create web1 --data 100G,fs=xfs,pool=fast",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if err := only("--data", data); err != nil {
				return err
			}
			spec, err := parseSpec("data", data[0])
			if err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) {
				return c.DiskCreate(ctx, o, api.DiskCreate{Instance: args[0], Disk: spec})
			}
			return a.change(ctx, c, f, start, result(a, a.diskGetter(ctx, c), "created"))
		},
	}))
	cmd.Flags().StringArrayVar(&data, "data", nil, "the disk, a `SPEC`")
	_ = cmd.MarkFlagRequired("data")
	return cmd
}

func (a *app) diskGetter(ctx context.Context, c *client.Client) func(string) (api.Disk, error) {
	return func(id string) (api.Disk, error) { return c.Disk(ctx, id) }
}

func (a *app) diskAttach() *cobra.Command {
	var at attaching
	cmd := at.add(a.command(verb{
		use: "attach DISK --as libvirt|qemu", short: "Take a disk's lease and print how to open it", args: []string{"DISK"}, complete: []names{diskNames},
		long:    attachHelp + "\nThe target is recorded at the first attach and kept.",
		example: "tarn disk attach web1/data0 --as libvirt --target vdb | virsh attach-device web1 /dev/stdin --persistent",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			var out api.Attachment
			var err error
			if at.dryRun {
				out, err = c.DiskShow(ctx, args[0], at.As)
			} else {
				out, err = c.DiskAttach(ctx, args[0], at.Attach)
			}
			return a.printAttachment(out, at.As, at.zero, err)
		},
	}))
	cmd.Flags().StringVar(&at.Target, "target", "", "`DEVICE` name in the guest, for example vdb")
	return cmd
}

func (a *app) diskDetach() *cobra.Command {
	var d detaching
	return d.add(a.command(verb{
		use: "detach DISK", short: "Give a disk's lease up", args: []string{"DISK"}, complete: []names{diskNames},
		long: detachHelp, example: "tarn disk detach web1/data0",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			return a.detach(d, "disk", args[0], func() error { return c.DiskDetach(ctx, args[0], d.Detach) })
		},
	}))
}

func (a *app) diskResize() *cobra.Command {
	var f changing
	var r api.DiskResize
	cmd := f.add(a.command(verb{
		use: "resize DISK SIZE|+SIZE", short: "Give a disk another size", args: []string{"DISK", "SIZE"}, complete: []names{diskNames, none},
		long: "The disk must not be attached. +SIZE grows by that much. A smaller size is refused with exit status 5\n" +
			"unless --shrink is given and what the disk is for allows it; what lies beyond is lost.",
		example: "tarn disk resize web1/data0 200G\ntarn disk resize web1/root +10G",
		run: func(ctx context.Context, c *client.Client, args []string) (err error) {
			if r.Size, r.By, err = parseResize(args[1]); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.DiskResize(ctx, o, args[0], r) }
			return a.change(ctx, c, f, start, result(a, a.diskGetter(ctx, c), "resized"))
		},
	}))
	cmd.Flags().BoolVar(&r.Shrink, "shrink", false, "allow a smaller size")
	return cmd
}

func (a *app) diskExport() *cobra.Command {
	return a.exportCommand(verb{
		use: "export DISK FILE|- --format FORMAT", short: "Write a disk's bytes to a file or to standard output", args: []string{"DISK", "FILE"}, complete: []names{diskNames, nil},
		long: "The disk must not be attached. " + exportLong,
		example: "tarn disk export web1/root web1.qcow2 --format qcow2 --compression zstd\n" +
			"tarn disk export web1/root web1.vhd --format vhd --type fixed\n" +
			"tarn disk export web1/data0 - --format raw | zstd > data0.raw.zst",
	}, func(c *client.Client) exporting { return exporting{"disk", c.DiskExport, c.DiskExportStream} })
}

func (a *app) diskDelete() *cobra.Command {
	var f changing
	return f.addDestroying(a.command(verb{
		use: "delete DISK", aliases: []string{"rm"}, short: "Delete a disk", args: []string{"DISK"}, complete: []names{diskNames},
		example: "tarn disk delete web1/data0 --yes",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if err := a.destroy(f, "Delete the disk %s?", args[0]); err != nil {
				return err
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.DiskDelete(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, a.gone("deleted"))
		},
	}))
}
