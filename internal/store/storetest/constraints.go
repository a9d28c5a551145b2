package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/store"
)

// act is what a transaction does.
type act = func(context.Context, *store.Tx) error

// breach is a transaction that is refused: with kind, and a message that has words.
type breach struct {
	name  string
	do    act
	kind  errs.Kind
	words string
}

func testConstraints(t *testing.T, place Place) {
	s := seeded(t, place)
	rows := slices.Concat(poolBreaches(), imageBreaches(), volumeBreaches(), diskBreaches(), leaseBreaches(),
		deletingBreaches(), operationBreaches(s))
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			before := everything(t, s)
			err := s.Update(t.Context(), row.do)
			wantKind(t, row.name, err, row.kind)
			if !strings.Contains(fmt.Sprint(err), row.words) {
				t.Errorf("message %q does not say %q", err, row.words)
			}
			if diff := cmp.Diff(before, everything(t, s)); diff != "" {
				t.Errorf("the refused transaction changed records (-before +after):\n%s", diff)
			}
		})
	}
	update(t, s, func(ctx context.Context, tx *store.Tx) error { // what the partial index lets through
		other := with(newBase("y"), func(r *disk.Volume) { r.Content, r.Format = "b3-4m:b", "qcow2" })
		blank := func(id string) disk.Volume { return with(newBase(id), func(r *disk.Volume) { r.Content = "" }) }
		return errors.Join(tx.Volumes.Insert(ctx, other), tx.Volumes.Insert(ctx, blank("y1")), tx.Volumes.Insert(ctx, blank("y2")))
	})
}

func poolBreaches() []breach {
	pool := func(change func(*disk.Pool)) act {
		return func(ctx context.Context, tx *store.Tx) error { return tx.Pools.Insert(ctx, with(newPool("x"), change)) }
	}
	return []breach{
		{"pool name", pool(func(r *disk.Pool) { r.Name = "pool p" }), errs.Exists, `name "pool p"`},
		{"pool name on rename", func(ctx context.Context, tx *store.Tx) error {
			return errors.Join(tx.Pools.Insert(ctx, newPool("x")), tx.Pools.Update(ctx, with(newPool("x"), func(r *disk.Pool) { r.Name = "pool p" })))
		}, errs.Exists, `name "pool p"`},
		{"pool without domain", pool(func(r *disk.Pool) { r.DomainID = "none" }), errs.Conflict, "does not exist"},
		{"pool state", pool(func(r *disk.Pool) { r.State = "open" }), errs.Internal, ""},
		{"pool disk format", pool(func(r *disk.Pool) { r.DiskFormat = "" }), errs.Internal, ""},
		{"domain identity", func(ctx context.Context, tx *store.Tx) error {
			return tx.Domains.Insert(ctx, with(newDomain("x"), func(r *disk.Domain) { r.Identity = "fs:d" }))
		}, errs.Exists, `identity "fs:d"`},
	}
}

func imageBreaches() []breach {
	image := func(change func(*disk.Image)) act {
		return func(ctx context.Context, tx *store.Tx) error {
			return tx.Images.Insert(ctx, with(newImage("x"), change))
		}
	}
	return []breach{
		{"image name", image(func(r *disk.Image) { r.Name = "image i" }), errs.Exists, `name "image i"`},
		{"image format", image(func(r *disk.Image) { r.Format = "" }), errs.Internal, ""},
		{"image size", image(func(r *disk.Image) { r.VirtualSize = -1 }), errs.Internal, ""},
		{"image state", image(func(r *disk.Image) { r.State = "" }), errs.Internal, ""},
	}
}

func volumeBreaches() []breach {
	volume := func(r disk.Volume, change func(*disk.Volume)) act {
		return func(ctx context.Context, tx *store.Tx) error { return tx.Volumes.Insert(ctx, with(r, change)) }
	}
	return []breach{
		{"volume name", volume(newVolume("x"), func(r *disk.Volume) { r.Name = "volume v" }), errs.Exists, `name "volume v"`},
		{"volume without pool", volume(newVolume("x"), func(r *disk.Volume) { r.PoolID = "none" }), errs.Conflict, "does not exist"},
		{"volume without backing volume", volume(newVolume("x"), func(r *disk.Volume) {
			r.Backing = &disk.Backing{VolumeID: "none", Name: "n", Format: "raw"}
		}), errs.Conflict, "does not exist"},
		{"volume's backing format", volume(newVolume("x"), func(r *disk.Volume) {
			r.Backing = &disk.Backing{VolumeID: "b", Name: "n"}
		}), errs.Internal, ""},
		{"volume format", volume(newVolume("x"), func(r *disk.Volume) { r.Format = "" }), errs.Internal, ""},
		{"volume size", volume(newVolume("x"), func(r *disk.Volume) { r.VirtualSize = -1 }), errs.Internal, ""},
		{"volume state", volume(newVolume("x"), func(r *disk.Volume) { r.State = "fine" }), errs.Internal, ""},
		{"volume kind", volume(newVolume("x"), func(r *disk.Volume) { r.Kind = "" }), errs.Internal, ""},
		{"base content", volume(newBase("x"), func(r *disk.Volume) { r.Content = "b3-4m:b" }), errs.Exists, `content "b3-4m:b"`},
	}
}

func diskBreaches() []breach {
	disks := func(change func(*disk.Disk)) act {
		return func(ctx context.Context, tx *store.Tx) error {
			return errors.Join(tx.Volumes.Insert(ctx, newVolume("v2")), tx.Disks.Insert(ctx, with(newDisk("x", "v2"), change)))
		}
	}
	return []breach{
		{"instance name", func(ctx context.Context, tx *store.Tx) error {
			return tx.Instances.Insert(ctx, with(newInstance("x"), func(r *disk.Instance) { r.Name = "instance n" }))
		}, errs.Exists, `name "instance n"`},
		{"disk serial", disks(func(r *disk.Disk) { r.Serial = "serialk" }), errs.Exists, `serial "serialk"`},
		{"disk name", disks(func(r *disk.Disk) { r.Name = "data k" }), errs.Exists, `name "data k"`},
		{"disk volume", disks(func(r *disk.Disk) { r.VolumeID = "v" }), errs.Exists, `volume_id "v"`},
		{"disk without volume", disks(func(r *disk.Disk) { r.VolumeID = "none" }), errs.Conflict, "does not exist"},
		{"disk without instance", disks(func(r *disk.Disk) { r.InstanceID = "none" }), errs.Conflict, "does not exist"},
		{"disk role", disks(func(r *disk.Disk) { r.Role = "boot" }), errs.Internal, ""},
		{"disk driver_info", disks(func(r *disk.Disk) { r.DriverInfo = []byte("{") }), errs.Internal, "driver_info"},
	}
}

func leaseBreaches() []breach {
	return []breach{
		{"second lease", func(ctx context.Context, tx *store.Tx) error { return tx.Leases.Insert(ctx, newLease("v")) }, errs.Exists, `volume_id "v"`},
		{"lease without volume", func(ctx context.Context, tx *store.Tx) error { return tx.Leases.Insert(ctx, newLease("none")) }, errs.Conflict, "does not exist"},
		{"lease state", func(ctx context.Context, tx *store.Tx) error {
			return tx.Leases.Insert(ctx, with(newLease("b"), func(r *disk.Lease) { r.State = "" }))
		}, errs.Internal, ""},
	}
}

func deletingBreaches() []breach {
	return []breach{
		{"delete a domain with pools", func(ctx context.Context, tx *store.Tx) error { return tx.Domains.Delete(ctx, "d") }, errs.Busy, "pool records"},
		{"delete a pool with volumes", func(ctx context.Context, tx *store.Tx) error { return tx.Pools.Delete(ctx, "p") }, errs.Busy, "volume records"},
		{"delete a backing volume", func(ctx context.Context, tx *store.Tx) error { return tx.Volumes.Delete(ctx, "b") }, errs.Busy, "volume records"},
		{"delete a disk's volume", func(ctx context.Context, tx *store.Tx) error { return tx.Volumes.Delete(ctx, "v") }, errs.Busy, "disk records"},
		{"delete a leased volume", func(ctx context.Context, tx *store.Tx) error {
			return errors.Join(tx.Disks.Delete(ctx, "k"), tx.Volumes.Delete(ctx, "v"))
		}, errs.Busy, "lease records"},
		{"delete an instance with disks", func(ctx context.Context, tx *store.Tx) error { return tx.Instances.Delete(ctx, "n") }, errs.Busy, "disk records"},
	}
}

func operationBreaches(s *store.Store) []breach {
	return []breach{
		{"insert an operation by hand", func(ctx context.Context, tx *store.Tx) error {
			return tx.Operations.Insert(ctx, newOperation("x"))
		}, errs.Internal, "journal"},
		{"operation state", func(ctx context.Context, tx *store.Tx) error {
			op := newOperation("x")
			op.State = "paused"
			_, _, err := s.InsertOperation(ctx, tx, op)
			return err
		}, errs.Internal, ""},
	}
}
