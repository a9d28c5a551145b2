package store

import (
	"context"
	"database/sql/driver"

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

// pending is what the volumes that were written add to the sums of their pools.
// It is stored once for all transactions of a batch.
type pending map[disk.PoolID]Sums

func (p pending) add(id disk.PoolID, s Sums) {
	p[id] = p[id].plus(s)
}

func (s Sums) plus(o Sums) Sums {
	return Sums{Committed: s.Committed + o.Committed, Writing: s.Writing + o.Writing,
		Provisioned: s.Provisioned + o.Provisioned, Allocated: s.Allocated + o.Allocated}
}

func (s Sums) minus(o Sums) Sums {
	return s.plus(Sums{Committed: -o.Committed, Writing: -o.Writing, Provisioned: -o.Provisioned, Allocated: -o.Allocated})
}

const poolSums = `SELECT p.id, COALESCE(s.committed, 0), COALESCE(s.writing, 0), COALESCE(s.provisioned, 0), COALESCE(s.allocated, 0)
	FROM pools p LEFT JOIN pool_sums s ON s.pool_id = p.id WHERE `

// DomainSums returns the sums over all pools of a domain.
func (tx *Tx) DomainSums(ctx context.Context, id disk.DomainID) (Sums, error) {
	return tx.sums(ctx, poolSums+"p.domain_id = $1", string(id))
}

// PoolSums returns the sums over one pool.
func (tx *Tx) PoolSums(ctx context.Context, id disk.PoolID) (Sums, error) {
	return tx.sums(ctx, poolSums+"p.id = $1", string(id))
}

func (tx *Tx) sums(ctx context.Context, text, id string) (all Sums, err error) {
	err = tx.query(ctx, text, []any{id}, func(row []driver.Value) error {
		var pool disk.PoolID
		var s Sums
		err := scan(row, textCodec[disk.PoolID]{&pool}, &s.Committed, &s.Writing, &s.Provisioned, &s.Allocated)
		all = all.plus(s).plus(tx.before[pool]).plus(tx.adds[pool])
		return err
	})
	return all, tx.failed("pool.read", id, err)
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

// account moves the sums from what a volume added before to what it adds now.
func (tx *Tx) account(before, after volumeSums) {
	if before == after {
		return
	}
	if tx.adds == nil {
		tx.adds = pending{}
	}
	tx.adds.add(before.pool, Sums{}.minus(before.Sums))
	tx.adds.add(after.pool, after.Sums)
}

// forget drops what is pending for a pool that was deleted; what was stored went
// with its record.
func (tx *Tx) forget(id disk.PoolID) {
	if tx.adds == nil {
		tx.adds = pending{}
	}
	tx.adds[id] = Sums{}.minus(tx.before[id])
}

// store writes what is pending.
func (p pending) store(ctx context.Context, c *conn) error {
	for id, s := range p {
		if id == "" || s == (Sums{}) {
			continue
		}
		_, err := c.exec(ctx, `INSERT INTO pool_sums (pool_id, committed, writing, provisioned, allocated)
			VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (pool_id) DO UPDATE SET committed = pool_sums.committed + excluded.committed, writing = pool_sums.writing + excluded.writing,
			provisioned = pool_sums.provisioned + excluded.provisioned, allocated = pool_sums.allocated + excluded.allocated`,
			string(id), s.Committed, s.Writing, s.Provisioned, s.Allocated)
		if err != nil {
			return err
		}
	}
	return nil
}
