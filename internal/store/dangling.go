package store

import (
	"context"
	"database/sql/driver"

	"github.com/tarn-storage/tarn/internal/disk"
)

// Dangling returns the disks and the leases whose volume is not on record; there
// are none unless somebody changed the tables by other means than this package.
func (tx *Tx) Dangling(ctx context.Context) (disks []disk.DiskID, leases []disk.VolumeID, err error) {
	err = tx.query(ctx, "SELECT d.id FROM disks d LEFT JOIN volumes v ON v.id = d.volume_id WHERE v.id IS NULL ORDER BY d.id", nil, func(row []driver.Value) error {
		var id string
		err := scan(row, &id)
		disks = append(disks, disk.DiskID(id))
		return err
	})
	if err == nil {
		err = tx.query(ctx, "SELECT l.volume_id FROM leases l LEFT JOIN volumes v ON v.id = l.volume_id WHERE v.id IS NULL ORDER BY l.volume_id", nil, func(row []driver.Value) error {
			var id string
			err := scan(row, &id)
			leases = append(leases, disk.VolumeID(id))
			return err
		})
	}
	return disks, leases, tx.failed("volume.read", "", err)
}
