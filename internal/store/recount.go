package store

import (
	"context"

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
	return tx.add(ctx, volumeSums{pool: id, Sums: Sums{
		Committed: want.Committed - have.Committed, Writing: want.Writing - have.Writing,
		Provisioned: want.Provisioned - have.Provisioned, Allocated: want.Allocated - have.Allocated,
	}})
}
