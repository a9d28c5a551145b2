package store

import (
	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/journal"
)

// The tables of the records: for each its columns, the key first, and who
// refers to it.
var (
	hosts = newTable("hosts", "host", func(r *disk.Host) []column {
		return []column{
			text("id", &r.ID), text("name", &r.Name), text("boot_id", &r.BootID),
			stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	})

	domains = newTable("domains", "capacity domain", func(r *disk.Domain) []column {
		return []column{
			text("id", &r.ID), text("identity", &r.Identity), number("overcommit", &r.Overcommit),
			number("reserve_permille", &r.Reserve.Permille), number("reserve_bytes", &r.Reserve.Bytes),
			stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	}, reference{"pool", "pools", "domain_id"})

	pools = newTable("pools", "pool", func(r *disk.Pool) []column {
		return []column{
			text("id", &r.ID), text("name", &r.Name), text("driver", &r.Driver),
			optional("host_id", &r.HostID), text("state", &r.State), text("path", &r.Path),
			number("owner_uid", &r.Owner.UID), number("owner_gid", &r.Owner.GID),
			text("identity", &r.Identity), text("domain_id", &r.DomainID), text("disk_format", &r.DiskFormat),
			document("image_formats", &r.ImageFormats), document("source", &r.Source),
			stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	}, reference{"volume", "volumes", "pool_id"})

	images = newTable("images", "image", func(r *disk.Image) []column {
		return []column{
			text("id", &r.ID), text("name", &r.Name), text("state", &r.State), text("format", &r.Format),
			number("virtual_size", &r.VirtualSize), number("min_disk", &r.MinDisk),
			text("source_sha256", &r.SourceSHA256), text("content", &r.Content), number("generation", &r.Generation),
			document("proof", &r.Proof), document("source", &r.Source), stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	})

	volumes = newTable("volumes", "volume", func(r *disk.Volume) []column {
		return []column{
			text("id", &r.ID), text("pool_id", &r.PoolID), text("name", &r.Name), word("kind", &r.Kind),
			text("state", &r.State), text("format", &r.Format), number("virtual_size", &r.VirtualSize),
			number("requested_size", &r.RequestedSize), number("cluster_size", &r.ClusterSize),
			backing("backing_id", &r.Backing, func(b *disk.Backing) *disk.VolumeID { return &b.VolumeID }),
			backing("backing_name", &r.Backing, func(b *disk.Backing) *string { return &b.Name }),
			backing("backing_format", &r.Backing, func(b *disk.Backing) *diskfmt.Format { return &b.Format }),
			backing("backing_content", &r.Backing, func(b *disk.Backing) *string { return &b.Content }),
			text("content", &r.Content), number("content_size", &r.ContentSize), number("extents", &r.Extents), flag("pinned", &r.Pinned), flag("adopted", &r.Adopted),
			number("committed", &r.Committed), number("writing", &r.Writing), number("allocated", &r.Allocated), text("backend_id", &r.BackendID),
			number("generation", &r.Generation), text("created_by", &r.CreatedBy),
			stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	}, reference{"volume", "volumes", "backing_id"}, reference{"disk", "disks", "volume_id"}, reference{"lease", "leases", "volume_id"})

	instances = newTable("instances", "instance", func(r *disk.Instance) []column {
		return []column{
			text("id", &r.ID), text("name", &r.Name), number("generation", &r.Generation),
			stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	}, reference{"disk", "disks", "instance_id"})

	disks = newTable("disks", "disk", func(r *disk.Disk) []column {
		return []column{
			text("id", &r.ID), text("instance_id", &r.InstanceID), text("name", &r.Name), text("role", &r.Role),
			number("position", &r.Index), number("size", &r.Size), text("volume_id", &r.VolumeID),
			text("serial", &r.Serial), text("bus", &r.Bus), text("device", &r.Device),
			number("boot_index", &r.BootIndex), flag("read_only", &r.ReadOnly), text("discard", &r.Discard),
			text("cache", &r.Cache), text("prealloc", &r.Prealloc), document("source", &r.Source),
			document("driver_info", &r.DriverInfo),
			stamp("created_at", &r.CreatedAt), stamp("updated_at", &r.UpdatedAt),
		}
	})

	leases = newTable("leases", "lease", func(r *disk.Lease) []column {
		return []column{
			text("volume_id", &r.VolumeID), text("host_id", &r.HostID), text("boot_id", &r.BootID),
			number("generation", &r.Generation), text("state", &r.State), stamp("created_at", &r.CreatedAt),
		}
	})

	operations = newTable("operations", "operation", func(r *journal.Operation) []column {
		return []column{
			text("id", &r.ID), text("kind", &r.Kind).fixed(), text("state", &r.State),
			text("subject_type", &r.Subject.Type).fixed(), text("subject_id", &r.Subject.ID).fixed(), text("subject_name", &r.Subject.Name).fixed(),
			optional("key", &r.Key).fixed(), document("request", &r.Request).fixed(), document("result", &r.Result),
			document("resources", &r.Resources).fixed(), document("steps", &r.Steps), document("progress", &r.Progress),
			document("error", &r.Error), flag("cancel", &r.Cancel), number("attempts", &r.Attempts),
			text("owner", &r.Owner).fixed(), number("fence", &r.Fence),
			stamp("created_at", &r.CreatedAt).fixed(), stamp("updated_at", &r.UpdatedAt),
		}
	}).journal()
)
