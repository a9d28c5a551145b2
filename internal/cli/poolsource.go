package cli

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
)

// sourceMeanings says what each flag that names storage means.
var sourceMeanings = map[disk.SourceField]string{
	disk.FieldPath:        "the `DIR`ectory where the volumes are, or are mounted",
	disk.FieldDevice:      "the block `DEVICE`",
	disk.FieldFileSystem:  "`KIND` of the file system on the device: ext4, xfs or btrfs",
	disk.FieldCopyOnWrite: "`off` has btrfs write volumes in place, without checksums of what they hold",
	disk.FieldHost:        "the server's `HOST` name or address",
	disk.FieldExport:      "the `PATH` that the server exports",
	disk.FieldVolumeGroup: "the LVM volume `GROUP`",
	disk.FieldThinPool:    "the thin `POOL` in the volume group",
	disk.FieldWipe:        "`zero` has volumes and snapshots overwritten when they are deleted, not only before their space is used again",
	disk.FieldCephPool:    "the Ceph `POOL`",
	disk.FieldCephConf:    "the cluster's configuration `FILE`",
	disk.FieldCephUser:    "the cephx `USER`, without \"client.\"",
	disk.FieldSecretFile:  "`FILE` with the user's key",
}

// sourceFlags adds the flags that name a pool's storage.
func sourceFlags(cmd *cobra.Command, driver, path *string, s *api.PoolSource) {
	cmd.Flags().StringVar(driver, "driver", "", "how the storage is used, see tarn pool capabilities")
	_ = cmd.MarkFlagRequired("driver")
	targets := map[disk.SourceField]*string{
		disk.FieldPath: path, disk.FieldDevice: &s.Device, disk.FieldFileSystem: &s.FileSystem, disk.FieldCopyOnWrite: &s.CopyOnWrite, disk.FieldHost: &s.Host, disk.FieldExport: &s.Export,
		disk.FieldVolumeGroup: &s.VolumeGroup, disk.FieldThinPool: &s.ThinPool, disk.FieldWipe: &s.Wipe, disk.FieldCephPool: &s.CephPool, disk.FieldCephConf: &s.CephConf,
		disk.FieldCephUser: &s.CephUser, disk.FieldSecretFile: &s.SecretFile,
	}
	for _, f := range disk.SourceFields() {
		cmd.Flags().StringVar(targets[f], string(f), "", sourceMeanings[f])
	}
}

// ownPaths makes the paths absolute that are the caller's to name.
func ownPaths(path *string, s *api.PoolSource) (err error) {
	for _, p := range []*string{path, &s.Device, &s.CephConf, &s.SecretFile} {
		if *p, err = absolute(*p); err != nil {
			return err
		}
	}
	return nil
}

func absolute(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	p, err := filepath.Abs(path)
	return p, errs.Wrap(err, "cli", path)
}

// poolWhere says where a pool's storage is.
func poolWhere(p api.Pool) string {
	return disk.Pool{Path: p.Path, Source: disk.PoolSource(p.Source)}.Where()
}

func (a *app) poolBuild() *cobra.Command {
	var f changing
	var b api.PoolBuild
	cmd := f.addDestroying(a.command(verb{
		use: "build POOL", short: "Make an inactive pool's storage from raw material", args: []string{"POOL"}, complete: []names{poolNames},
		long: "The file system of a pool on a device is made anew, for tarn pool start to take into use. A device that\n" +
			"carries a signature of anything is refused without --overwrite, one that is in use always, and so is\n" +
			"a pool with volumes on record. Building what is built already does nothing.",
		example: "tarn pool build fast",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			if b.Overwrite {
				if err := a.destroy(f, "Overwrite the storage of the pool %s?", args[0]); err != nil {
					return err
				}
			}
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolBuild(ctx, o, args[0], b) }
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "built"))
		},
	}))
	cmd.Flags().BoolVar(&b.Overwrite, "overwrite", false, "build whatever is there: what it holds is lost")
	return cmd
}

func (a *app) poolRefresh() *cobra.Command {
	var f changing
	return f.add(a.command(verb{
		use: "refresh POOL", short: "Measure a pool's space again now", args: []string{"POOL"}, complete: []names{poolNames}, example: "tarn pool refresh fast",
		long: "What others use in the pool's storage and what its volumes take is measured now and then. This does it at once.",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			start := func(ctx context.Context, o api.Options) (api.Outcome, error) { return c.PoolRefresh(ctx, o, args[0]) }
			return a.change(ctx, c, f, start, result(a, a.poolGetter(ctx, c), "refreshed"))
		},
	}))
}

func (a *app) poolCapabilities() *cobra.Command {
	return a.command(verb{
		use: "capabilities [DRIVER]", short: "Show what pool technologies can do and need", args: []string{"[DRIVER]"}, complete: []names{driverNames},
		long:    "The capabilities are what each driver declares of itself.",
		example: "tarn pool capabilities\ntarn pool capabilities dir -o json",
		run: func(ctx context.Context, c *client.Client, args []string) error {
			l, err := c.Drivers(ctx)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				return printList(a, l, func(d api.Driver) string { return d.Name }, "DRIVER FORMATS CLONE SNAPSHOT SHRINK LIVE-GROW HOLES UNIT NEEDS", func(d api.Driver) []string {
					return []string{d.Name, strings.Join(d.Formats, ","), d.Clone, d.Snapshot, yesNo(d.Shrink), yesNo(d.LiveGrow), yesNo(d.HolesKnown), size(d.SizeUnit), flagList(d.Needs)}
				})
			}
			for _, d := range l.Items {
				if d.Name == args[0] {
					return a.printObject(d, d.Name, driverFields(d))
				}
			}
			return errs.New(errs.NotFound, "cli", args[0], "there is no driver %s", args[0]).WithHint("tarn pool capabilities lists them")
		},
	})
}

func driverFields(d api.Driver) []field {
	volumes := ""
	if d.MaxVolumes > 0 {
		volumes = strconv.Itoa(d.MaxVolumes)
	}
	return []field{
		{"driver", d.Name}, {"description", d.Description}, {"needs", flagList(d.Needs)}, {"takes", flagList(d.Takes)}, {"build", yesNo(d.Build)},
		{"formats", strings.Join(d.Formats, ", ")}, {"clone", d.Clone}, {"snapshot", d.Snapshot}, {"shrink", yesNo(d.Shrink)},
		{"live grow", yesNo(d.LiveGrow)}, {"grow with snapshots", yesNo(d.GrowFrozen)}, {"holes known", yesNo(d.HolesKnown)}, {"thick", yesNo(d.Thick)},
		{"size unit", size(d.SizeUnit)}, {"longest name", strconv.Itoa(d.MaxName) + " bytes"}, {"most volumes", volumes},
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// flagList writes the names of flags as they are given.
func flagList(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "--" + strings.Join(names, " --")
}
