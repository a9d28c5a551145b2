package storetest

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/store"
)

func testRecords(t *testing.T, place Place) {
	s := seeded(t, place)
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		row := newOperation("o2")
		_, _, err := s.InsertOperation(ctx, tx, row)
		return errors.Join(err, tx.Volumes.Insert(ctx, newVolume("v2")))
	})
	life(t, s, "hosts", func(tx *store.Tx) store.Table[disk.HostID, disk.Host] { return tx.Hosts },
		"x", newHost("x"), func(r *disk.Host) { r.BootID = "next" })
	life(t, s, "domains", func(tx *store.Tx) store.Table[disk.DomainID, disk.Domain] { return tx.Domains },
		"x", newDomain("x"), func(r *disk.Domain) { r.Overcommit, r.Reserve = 1000, disk.Reserve{} })
	life(t, s, "pools", func(tx *store.Tx) store.Table[disk.PoolID, disk.Pool] { return tx.Pools },
		"x", newPool("x"), func(r *disk.Pool) {
			r.Name, r.HostID, r.State, r.Source, r.ImageFormats = "renamed", "", disk.PoolInactive, disk.PoolSource{}, nil
		})
	life(t, s, "images", func(tx *store.Tx) store.Table[disk.ImageID, disk.Image] { return tx.Images },
		"x", newImage("x"), func(r *disk.Image) { r.State, r.Proof, r.Source = disk.ImageDeleting, nil, nil })
	life(t, s, "volumes", func(tx *store.Tx) store.Table[disk.VolumeID, disk.Volume] { return tx.Volumes },
		"x", newVolume("x"), func(r *disk.Volume) { r.Backing, r.State, r.Committed = nil, disk.VolumeCorrupt, 1 })
	life(t, s, "instances", func(tx *store.Tx) store.Table[disk.InstanceID, disk.Instance] { return tx.Instances },
		"x", newInstance("x"), func(r *disk.Instance) { r.Name = "renamed" })
	life(t, s, "disks", func(tx *store.Tx) store.Table[disk.DiskID, disk.Disk] { return tx.Disks },
		"x", newDisk("x", "v2"), func(r *disk.Disk) { r.Source, r.DriverInfo, r.ReadOnly = disk.Source{}, nil, false })
	life(t, s, "leases", func(tx *store.Tx) store.Table[disk.VolumeID, disk.Lease] { return tx.Leases },
		"v2", newLease("v2"), func(r *disk.Lease) { r.State, r.Generation = disk.LeaseUnverified, 1<<62 })
}

// life takes one record through every method of its table, each step in a
// transaction of its own.
func life[K ~string, R any](t *testing.T, s *store.Store, name string, table func(*store.Tx) store.Table[K, R], key K, r R, change func(*R)) {
	t.Run(name, func(t *testing.T) {
		do := func(fn func(context.Context, store.Table[K, R]) error) error {
			return s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error { return fn(ctx, table(tx)) })
		}
		insert := func(ctx context.Context, tab store.Table[K, R]) error { return tab.Insert(ctx, r) }
		rewrite := func(ctx context.Context, tab store.Table[K, R]) error { return tab.Update(ctx, r) }
		remove := func(ctx context.Context, tab store.Table[K, R]) error { return tab.Delete(ctx, key) }
		check := func(when string) {
			t.Helper()
			view(t, s, func(ctx context.Context, tx *store.Tx) error {
				got, err := table(tx).Get(ctx, key)
				if diff := cmp.Diff(r, got); diff != "" {
					t.Errorf("%s: Get differs (-want +got):\n%s", when, diff)
				}
				return err
			})
		}
		before := count(t, s, table)
		wantKind(t, "update of a missing record", do(rewrite), errs.NotFound)
		if err := do(insert); err != nil {
			t.Fatalf("insert: %v", err)
		}
		check("after insert")
		if got := count(t, s, table); got != before+1 {
			t.Errorf("count after insert: got %d, want %d", got, before+1)
		}
		wantKind(t, "second insert", do(insert), errs.Exists)
		change(&r)
		if err := do(rewrite); err != nil {
			t.Fatalf("update: %v", err)
		}
		check("after update")
		for _, when := range []string{"delete", "second delete"} {
			if err := do(remove); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		err := s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := table(tx).Get(ctx, key)
			return err
		})
		wantKind(t, "get of a deleted record", err, errs.NotFound)
		if got := count(t, s, table); got != before {
			t.Errorf("count after delete: got %d, want %d", got, before)
		}
	})
}

func count[K ~string, R any](t *testing.T, s *store.Store, table func(*store.Tx) store.Table[K, R]) (n int) {
	t.Helper()
	view(t, s, func(ctx context.Context, tx *store.Tx) (err error) {
		n, err = table(tx).Count(ctx)
		return err
	})
	return n
}

// with returns r after change.
func with[R any](r R, change func(*R)) R {
	change(&r)
	return r
}

// everything returns all records for comparison.
func everything(t *testing.T, s *store.Store) (all []any) {
	t.Helper()
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(
			list(ctx, tx.Hosts, &all), list(ctx, tx.Domains, &all), list(ctx, tx.Pools, &all), list(ctx, tx.Images, &all),
			list(ctx, tx.Volumes, &all), list(ctx, tx.Instances, &all), list(ctx, tx.Disks, &all),
			list(ctx, tx.Leases, &all), list(ctx, tx.Operations, &all))
	})
	return all
}

func list[K ~string, R any](ctx context.Context, table store.Table[K, R], all *[]any) error {
	items, _, err := table.List(ctx, store.Query{})
	for _, item := range items {
		*all = append(*all, item)
	}
	return err
}

func testFailedStatement(t *testing.T, place Place) {
	s := seeded(t, place)
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		wantKind(t, "duplicate", tx.Pools.Insert(ctx, with(newPool("x"), func(r *disk.Pool) { r.Name = "pool p" })), errs.Exists)
		wantKind(t, "referenced", tx.Volumes.Delete(ctx, "b"), errs.Busy)
		wantKind(t, "no reference", tx.Volumes.Insert(ctx, with(newVolume("x"), func(r *disk.Volume) { r.PoolID = "none" })), errs.Conflict)
		return tx.Pools.Insert(ctx, newPool("y"))
	})
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		if n, err := tx.Pools.Count(ctx); err != nil || n != 2 {
			t.Errorf("pools: got %d, %v, want p and y", n, err)
		}
		return nil
	})
}

func testQueries(t *testing.T, place Place) {
	s := seeded(t, place)
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		rows := []struct {
			name  string
			where []store.Where
			want  int
		}{
			{"all", nil, 2},
			{"one column", []store.Where{store.Eq("kind", disk.KindBase)}, 1},
			{"two columns", []store.Where{store.Eq("pool_id", disk.PoolID("p")), store.Eq("state", disk.VolumeReady)}, 2},
			{"NULL", []store.Where{store.Eq("backing_id", nil)}, 1},
			{"empty optional", []store.Where{store.Eq("backing_id", disk.VolumeID(""))}, 1},
			{"reference", []store.Where{store.Eq("backing_id", disk.VolumeID("b"))}, 1},
			{"number", []store.Where{store.Eq("generation", 3)}, 1},
			{"time", []store.Where{store.Eq("created_at", epoch)}, 2},
			{"nothing", []store.Where{store.Eq("name", "none")}, 0},
			{"a base's content", []store.Where{store.Eq("pool_id", "p"), store.Eq("kind", disk.KindBase), store.Eq("content", "b3-4m:b")}, 1},
			{"no word", []store.Where{store.Eq("kind", "base' OR kind <> '")}, 0},
			{"the empty word", []store.Where{store.Eq("kind", "")}, 0},
		}
		for _, row := range rows {
			if n, err := tx.Volumes.Count(ctx, row.where...); err != nil || n != row.want {
				t.Errorf("%s: Count = %d, %v, want %d", row.name, n, err, row.want)
			}
			if items, _, err := tx.Volumes.List(ctx, store.Query{Where: row.where}); err != nil || len(items) != row.want {
				t.Errorf("%s: List gives %d, %v, want %d", row.name, len(items), err, row.want)
			}
		}
		v, err := tx.Volumes.One(ctx, store.Eq("name", "volume v"))
		if err != nil || v.ID != "v" {
			t.Errorf("One by name: got %q, %v, want v", v.ID, err)
		}
		_, err = tx.Volumes.One(ctx, store.Eq("name", "none"))
		wantKind(t, "One of none", err, errs.NotFound)
		_, err = tx.Volumes.One(ctx, store.Eq("pool_id", "p"))
		wantKind(t, "One of two", err, errs.Conflict)
		_, err = tx.Volumes.Count(ctx, store.Eq("name = '' OR name", "x"))
		wantKind(t, "unknown column", err, errs.Internal)
		_, err = tx.Volumes.Count(ctx, store.Eq("name", []string{"x"}))
		wantKind(t, "value of no column's type", err, errs.Internal)
		k, err := tx.Disks.One(ctx, store.Eq("read_only", true), store.Eq("role", disk.RoleData))
		if err != nil || k.ID != "k" {
			t.Errorf("One by bool: got %q, %v, want k", k.ID, err)
		}
		return nil
	})
}

func testDangling(t *testing.T, place Place) {
	s := seeded(t, place)
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		have, err := tx.Disks.Count(ctx)
		disks, leases, derr := tx.Dangling(ctx)
		if have == 0 || len(disks) > 0 || len(leases) > 0 {
			t.Errorf("of %d disks %q refer to no volume, and so do the leases %q; want none", have, disks, leases)
		}
		return errors.Join(err, derr)
	})
}

func testPaging(t *testing.T, place Place) {
	s := seeded(t, place)
	const total = 25
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		for n := total - 1; n >= 0; n-- { // against the order of the pages
			v := with(newVolume(id(n)), func(r *disk.Volume) {
				if n%2 == 1 {
					r.State = disk.VolumeLost
				}
			})
			if err := tx.Volumes.Insert(ctx, v); err != nil {
				return err
			}
		}
		return nil
	})
	rows := []struct {
		name  string
		where []store.Where
		limit int
		pages []int
	}{
		{"no limit", nil, 0, []int{total + 2}},
		{"exact pages", nil, 9, []int{9, 9, 9}},
		{"a rest", nil, 10, []int{10, 10, 7}},
		{"one page", nil, 100, []int{total + 2}},
		{"filtered", []store.Where{store.Eq("state", disk.VolumeLost)}, 5, []int{5, 5, 2}},
	}
	for _, row := range rows {
		var pages []int
		last := ""
		q := store.Query{Where: row.where, Limit: row.limit}
		for more := true; more; more = q.After != "" {
			view(t, s, func(ctx context.Context, tx *store.Tx) error {
				items, next, err := tx.Volumes.List(ctx, q)
				for _, v := range items {
					if string(v.ID) <= last {
						t.Errorf("%s: id %s comes after %s", row.name, v.ID, last)
					}
					last = string(v.ID)
				}
				pages = append(pages, len(items))
				q.After = next
				return err
			})
		}
		if diff := cmp.Diff(row.pages, pages); diff != "" {
			t.Errorf("%s: sizes of the pages differ (-want +got):\n%s", row.name, diff)
		}
	}
}

func testSums(t *testing.T, place Place) {
	s := seeded(t, place)
	base, v := newBase("b"), newVolume("v")
	pool := store.Sums{Committed: base.Committed + v.Committed, Writing: base.Writing + v.Writing, Provisioned: base.VirtualSize + v.VirtualSize,
		Allocated: base.Allocated + v.Allocated}
	second := store.Sums{}
	check := func(when string) {
		t.Helper()
		view(t, s, func(ctx context.Context, tx *store.Tx) error {
			p, err1 := tx.PoolSums(ctx, "p")
			p2, err2 := tx.PoolSums(ctx, "p2")
			d, err3 := tx.DomainSums(ctx, "d")
			want := store.Sums{Committed: pool.Committed + second.Committed, Writing: pool.Writing + second.Writing,
				Provisioned: pool.Provisioned + second.Provisioned, Allocated: pool.Allocated + second.Allocated}
			if p != pool || p2 != second || d != want {
				t.Errorf("%s: got pools %+v, %+v, domain %+v\nwant %+v, %+v, %+v", when, p, p2, d, pool, second, want)
			}
			counted, err4 := tx.CountSums(ctx, "p")
			if counted != pool {
				t.Errorf("%s: counted one by one %+v, want %+v", when, counted, pool)
			}
			return errors.Join(err1, err2, err3, err4)
		})
		update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.Recount(ctx, "p") })
	}
	check("seeded")
	x := with(newVolume("x"), func(r *disk.Volume) {
		r.PoolID, r.Committed, r.Writing, r.VirtualSize, r.Allocated = "p2", 100, 50, 200, 300
	})
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.Pools.Insert(ctx, newPool("p2")), tx.Volumes.Insert(ctx, x))
	})
	second = store.Sums{Committed: 100, Writing: 50, Provisioned: 200, Allocated: 300}
	check("volume in a second pool")
	x.Committed, x.Writing, x.State = 150, 70, disk.VolumeDeleting
	update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.Volumes.Update(ctx, x) })
	second.Committed, second.Writing = 150, 70
	check("changed")
	sentinel := errors.New("stop")
	err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.Volumes.Delete(ctx, "x"), sentinel)
	})
	if !errors.Is(err, sentinel) {
		t.Errorf("update: got %v, want its function's error", err)
	}
	check("rolled back")
	x.PoolID = "p"
	update(t, s, func(ctx context.Context, tx *store.Tx) error { return tx.Volumes.Update(ctx, x) })
	pool = store.Sums{Committed: pool.Committed + 150, Writing: pool.Writing + 70, Provisioned: pool.Provisioned + 200, Allocated: pool.Allocated + 300}
	second = store.Sums{}
	check("moved")
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.Volumes.Delete(ctx, "x"), tx.Volumes.Delete(ctx, "x"), tx.Pools.Delete(ctx, "p2"))
	})
	pool = store.Sums{Committed: pool.Committed - 150, Writing: pool.Writing - 70, Provisioned: pool.Provisioned - 200, Allocated: pool.Allocated - 300}
	check("deleted")
}

// testSumsAgree runs a random history of volumes, some of it rolled back, and
// adds up what is left.
func testSumsAgree(t *testing.T, place Place) {
	s := fresh(t, place)
	update(t, s, func(ctx context.Context, tx *store.Tx) error {
		return errors.Join(tx.Domains.Insert(ctx, newDomain("d")), tx.Pools.Insert(ctx, newPool("p")), tx.Pools.Insert(ctx, newPool("p2")))
	})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	step := func(ctx context.Context, tx *store.Tx) error {
		v := with(newVolume(id(random.IntN(10))), func(r *disk.Volume) {
			r.Backing, r.PoolID = nil, []disk.PoolID{"p", "p2"}[random.IntN(2)]
			r.Committed, r.Writing = random.Int64N(1000), random.Int64N(1000)
			r.VirtualSize, r.Allocated = random.Int64N(1000), random.Int64N(1000)
		})
		switch random.IntN(3) {
		case 0:
			return tx.Volumes.Insert(ctx, v)
		case 1:
			return tx.Volumes.Update(ctx, v)
		}
		return tx.Volumes.Delete(ctx, v.ID)
	}
	for range 100 {
		err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			return errors.Join(step(ctx, tx), step(ctx, tx)) // a refused step takes the other back
		})
		if err != nil && !errors.Is(err, errs.Exists) && !errors.Is(err, errs.NotFound) {
			t.Fatalf("random step: %v", err)
		}
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		var want store.Sums
		items, _, err := tx.Volumes.List(ctx, store.Query{})
		for _, v := range items {
			want.Committed += v.Committed
			want.Writing += v.Writing
			want.Provisioned += v.VirtualSize
			want.Allocated += v.Allocated
		}
		got, err2 := tx.DomainSums(ctx, "d")
		if got != want {
			t.Errorf("sums of %d volumes: got %+v, want %+v", len(items), got, want)
		}
		return errors.Join(err, err2)
	})
}

// testSumsOfBatch has transactions that are committed together see what those
// before them added, and nothing of those that failed.
func testSumsOfBatch(t *testing.T, place Place) {
	s := seeded(t, place)
	sentinel := errors.New("stop")
	sums := func(ctx context.Context, tx *store.Tx) (pool, domain, counted store.Sums, err error) {
		pool, err1 := tx.PoolSums(ctx, "p")
		domain, err2 := tx.DomainSums(ctx, "d")
		counted, err3 := tx.CountSums(ctx, "p")
		return pool, domain, counted, errors.Join(err1, err2, err3)
	}
	var fns []func(context.Context, *store.Tx) error
	for n := range 40 {
		fns = append(fns, func(ctx context.Context, tx *store.Tx) error {
			for _, when := range []string{"before", "after"} {
				if when == "after" {
					if err := tx.Volumes.Insert(ctx, newVolume(id(n))); err != nil {
						return err
					}
				}
				if pool, domain, counted, err := sums(ctx, tx); err != nil || pool != counted || domain != counted {
					t.Errorf("volume %d, %s: got pool %+v, domain %+v, %v\nwant %+v", n, when, pool, domain, err, counted)
				}
			}
			switch n % 4 {
			case 1:
				return sentinel
			case 2:
				return tx.Volumes.Delete(ctx, newVolume(id(n)).ID)
			case 3: // a pool that comes and goes; the next of these makes it again
				other := with(newVolume("other"), func(v *disk.Volume) { v.PoolID, v.Backing = "p2", nil })
				return errors.Join(tx.Pools.Insert(ctx, newPool("p2")), tx.Volumes.Insert(ctx, other), tx.Volumes.Delete(ctx, other.ID), tx.Pools.Delete(ctx, "p2"))
			}
			return nil
		})
	}
	for n, err := range together(t, s, fns) {
		if n%4 == 1 && !errors.Is(err, sentinel) || n%4 != 1 && err != nil {
			t.Errorf("update %d: %v", n, err)
		}
	}
	view(t, s, func(ctx context.Context, tx *store.Tx) error {
		pool, domain, counted, err := sums(ctx, tx)
		if pool != counted || domain != counted || counted.Committed < 20*newVolume("").Committed {
			t.Errorf("afterwards: got pool %+v, domain %+v\nwant %+v of at least 20 volumes", pool, domain, counted)
		}
		return err
	})
}
