package store

import (
	"context"

	"github.com/tarn-storage/tarn/internal/disk"
)

// Sums adds up the volumes of a pool or domain, whatever their state, in bytes.
// Committed is what they may come to need, Writing what running operations will
// still write to them, Provisioned what guests see, Allocated what was measured.
type Sums struct {
	Committed   int64
	Writing     int64
	Provisioned int64
	Allocated   int64
}

// volumeSums is what one volume adds to its pool; the zero value adds nothing.
type volumeSums struct {
	pool disk.PoolID
	Sums
}

// DomainSums returns the sums over all pools of a domain.
func (tx *Tx) DomainSums(ctx context.Context, id disk.DomainID) (Sums, error) {
	var s Sums
	_, err := tx.row(ctx, `SELECT CAST(COALESCE(SUM(s.committed), 0) AS BIGINT), CAST(COALESCE(SUM(s.writing), 0) AS BIGINT),
		CAST(COALESCE(SUM(s.provisioned), 0) AS BIGINT), CAST(COALESCE(SUM(s.allocated), 0) AS BIGINT)
		FROM pool_sums s JOIN pools p ON p.id = s.pool_id WHERE p.domain_id = $1`,
		[]any{string(id)}, &s.Committed, &s.Writing, &s.Provisioned, &s.Allocated)
	return s, err
}

// PoolSums returns the sums over one pool.
func (tx *Tx) PoolSums(ctx context.Context, id disk.PoolID) (Sums, error) {
	var s Sums
	_, err := tx.row(ctx, "SELECT committed, writing, provisioned, allocated FROM pool_sums WHERE pool_id = $1",
		[]any{string(id)}, &s.Committed, &s.Writing, &s.Provisioned, &s.Allocated)
	return s, err
}

// volumeSums returns what the stored record with the given id adds to its pool.
func (t Table[K, R]) volumeSums(ctx context.Context, id string) (volumeSums, error) {
	var s volumeSums
	if t.spec.name != volumes.name {
		return s, nil
	}
	_, err := t.tx.row(ctx, "SELECT pool_id, committed, writing, virtual_size, allocated FROM volumes WHERE id = $1",
		[]any{id}, textCodec[disk.PoolID]{&s.pool}, &s.Committed, &s.Writing, &s.Provisioned, &s.Allocated)
	return s, err
}

// account moves pool_sums from what a volume added before to what it adds now.
func (t Table[K, R]) account(ctx context.Context, before, after volumeSums) error {
	if before == after {
		return nil
	}
	if before.pool == after.pool {
		after.Committed -= before.Committed
		after.Writing -= before.Writing
		after.Provisioned -= before.Provisioned
		after.Allocated -= before.Allocated
		return t.tx.add(ctx, after)
	}
	before.Committed, before.Writing = -before.Committed, -before.Writing
	before.Provisioned, before.Allocated = -before.Provisioned, -before.Allocated
	if err := t.tx.add(ctx, before); err != nil {
		return err
	}
	return t.tx.add(ctx, after)
}

func (tx *Tx) add(ctx context.Context, s volumeSums) error {
	if s.pool == "" {
		return nil
	}
	_, err := tx.exec(ctx, `INSERT INTO pool_sums (pool_id, committed, writing, provisioned, allocated) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (pool_id) DO UPDATE SET committed = pool_sums.committed + excluded.committed, writing = pool_sums.writing + excluded.writing,
		provisioned = pool_sums.provisioned + excluded.provisioned, allocated = pool_sums.allocated + excluded.allocated`,
		string(s.pool), s.Committed, s.Writing, s.Provisioned, s.Allocated)
	return tx.failed("pool.account", string(s.pool), err)
}
