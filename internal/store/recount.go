package store

import (
	"context"
	"database/sql/driver"

	"github.com/tarn-storage/tarn/internal/disk"
)

const countSums = `SELECT CAST(COALESCE(SUM(committed), 0) AS BIGINT), CAST(COALESCE(SUM(writing), 0) AS BIGINT),
	CAST(COALESCE(SUM(virtual_size), 0) AS BIGINT), CAST(COALESCE(SUM(allocated), 0) AS BIGINT) FROM volumes WHERE pool_id = $1`

// CountSums adds up the volumes of a pool one by one: what PoolSums returns
// unless somebody changed the tables by other means than this package.
func (tx *Tx) CountSums(ctx context.Context, id disk.PoolID) (Sums, error) {
	var s Sums
	_, err := tx.row(ctx, countSums, []any{string(id)}, &s.Committed, &s.Writing, &s.Provisioned, &s.Allocated)
	return s, err
}

// Recount sets what PoolSums returns to what CountSums does.
func (tx *Tx) Recount(ctx context.Context, id disk.PoolID) error {
	have, err := tx.PoolSums(ctx, id)
	if err != nil {
		return err
	}
	want, err := tx.CountSums(ctx, id)
	if err != nil {
		return err
	}
	if err := tx.writes(ctx); err != nil {
		return err
	}
	tx.account(volumeSums{}, volumeSums{pool: id, Sums: want.minus(have)})
	return nil
}

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

// HeldByEnded returns the resources that operations still hold which have
// ended; there are none unless somebody changed the tables by other means than
// this package.
func (tx *Tx) HeldByEnded(ctx context.Context) (resources []string, err error) {
	err = tx.query(ctx, `SELECT r.resource FROM operation_resources r JOIN operations o ON o.id = r.operation_id
		WHERE o.state <> 'queued' AND o.state <> 'running' AND o.state <> 'undoing' ORDER BY r.resource`, nil, func(row []driver.Value) error {
		resources = append(resources, "")
		return scan(row, &resources[len(resources)-1])
	})
	return resources, tx.failed("operation.read", "", err)
}

// ReleaseEnded gives up what HeldByEnded returns.
func (tx *Tx) ReleaseEnded(ctx context.Context) error {
	_, err := tx.exec(ctx, `DELETE FROM operation_resources WHERE operation_id IN
		(SELECT id FROM operations WHERE state <> 'queued' AND state <> 'running' AND state <> 'undoing')`)
	return tx.failed("operation.update", "", err)
}
