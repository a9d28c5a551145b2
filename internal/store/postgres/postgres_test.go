package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/store/postgres"
	"github.com/tarn-storage/tarn/internal/store/storetest"
)

func TestStore(t *testing.T) {
	server := start(t)
	storetest.Run(t, func(t *testing.T) func(*testing.T) *store.Store {
		dsn := server.database(t)
		return func(t *testing.T) *store.Store { return open(t, dsn) }
	})
}

func open(t testing.TB, dsn string) *store.Store {
	t.Helper()
	s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return s
}

// raw returns a plain connection to the database.
func raw(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c
}

func insertHost(t testing.TB, s *store.Store, id string) error {
	return s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		return tx.Hosts.Insert(ctx, disk.Host{ID: disk.HostID(id), Name: id})
	})
}

// The test server's default is synchronous_commit=off; what a store writes must
// be flushed all the same: the setting of its sessions is seen by a trigger.
func TestCommitsAreSynchronous(t *testing.T) {
	dsn := start(t).database(t)
	s := open(t, dsn)
	defer s.Close()
	c := raw(t, dsn)
	_, err := c.Exec(t.Context(), `CREATE TABLE seen (setting TEXT, fsync TEXT);
		CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			INSERT INTO seen VALUES (current_setting('synchronous_commit'), current_setting('fsync')); RETURN NULL; END $$;
		CREATE TRIGGER look AFTER INSERT ON hosts EXECUTE FUNCTION look()`)
	if err != nil {
		t.Fatalf("make the trigger: %v", err)
	}
	if err := insertHost(t, s, "h"); err != nil {
		t.Fatalf("insert: %v", err)
	}
	var setting, fsync string
	if err := c.QueryRow(t.Context(), "SELECT setting, fsync FROM seen").Scan(&setting, &fsync); err != nil {
		t.Fatalf("read what the trigger saw: %v", err)
	}
	if setting != "on" || fsync != "on" {
		t.Errorf("synchronous_commit, fsync = %s, %s, want on, on", setting, fsync)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	dsn := start(t).database(t)
	if err := open(t, dsn).Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	c := raw(t, dsn)
	if _, err := c.Exec(t.Context(), "INSERT INTO schema_version (version) VALUES (99)"); err != nil {
		t.Fatalf("raise the version: %v", err)
	}
	// The transaction id of each table's last change says that none was touched.
	const state = `SELECT string_agg(c.relname || c.xmin::text, ',' ORDER BY c.relname) FROM pg_class c
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public'`
	var before, after string
	if err := c.QueryRow(t.Context(), state).Scan(&before); err != nil {
		t.Fatalf("read the catalogue: %v", err)
	}
	_, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn})
	if !errors.Is(err, errs.Version) {
		t.Errorf("open: got %v, want newer_version", err)
	}
	if err := c.QueryRow(t.Context(), state).Scan(&after); err != nil || before != after {
		t.Errorf("the refused database changed (%v):\nbefore %s\nafter  %s", err, before, after)
	}
}

// Two daemons on one database: no increment is lost, and both migrate at once.
func TestTwoStoresShareADatabase(t *testing.T) {
	dsn := start(t).database(t)
	const each = 200
	var all sync.WaitGroup
	for n := range 2 {
		all.Go(func() {
			s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn})
			if err != nil {
				t.Errorf("store %d: open: %v", n, err)
				return
			}
			defer s.Close()
			for i := range each {
				err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
					hosts, err := tx.Hosts.Count(ctx) // read, then write what was read
					return errors.Join(err, tx.Hosts.Insert(ctx, disk.Host{ID: disk.HostID(fmt.Sprint(hosts)), Name: "x"}))
				})
				if err != nil {
					t.Errorf("store %d, update %d: %v", n, i, err)
				}
			}
		})
	}
	all.Wait()
	s := open(t, dsn)
	defer s.Close()
	err := s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		n, err := tx.Hosts.Count(ctx)
		if n != 2*each {
			t.Errorf("rows: got %d, want %d", n, 2*each)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A server that cuts every connection costs at most the transaction that ran.
func TestReconnects(t *testing.T) {
	dsn := start(t).database(t)
	s := open(t, dsn)
	defer s.Close()
	c := raw(t, dsn)
	cut := func() {
		t.Helper()
		if _, err := c.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`); err != nil {
			t.Fatalf("cut connections: %v", err)
		}
	}
	look := func() error {
		return s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
			_, err := tx.Hosts.Count(ctx)
			return err
		})
	}
	if err := errors.Join(insertHost(t, s, "a"), look()); err != nil {
		t.Fatalf("before the cut: %v", err)
	}
	cut()
	if err := errors.Join(insertHost(t, s, "b"), look()); err != nil {
		t.Errorf("after a cut of idle connections: %v", err)
	}
	err := s.Update(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		cut()
		return tx.Hosts.Insert(ctx, disk.Host{ID: "c", Name: "c"})
	})
	if !errors.Is(err, errs.Unavailable) {
		t.Errorf("cut in a transaction: got %v, want unavailable", err)
	}
	if err := insertHost(t, s, "c"); err != nil {
		t.Errorf("after a cut transaction: %v", err)
	}
}

func TestUnreachable(t *testing.T) {
	for dsn, kind := range map[string]errs.Kind{
		"postgres://nobody@127.0.0.1:1/none?connect_timeout=2": errs.Unavailable,
		"postgres://%zz": errs.Invalid,
	} {
		if s, err := postgres.Open(t.Context(), postgres.Options{DSN: dsn}); !errors.Is(err, kind) {
			t.Errorf("open %s: got %v, %v, want %s", dsn, s, err, kind)
		}
	}
}
