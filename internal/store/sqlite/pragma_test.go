package sqlite

import (
	"database/sql"
	"database/sql/driver"
	"path/filepath"
	"testing"
)

// The settings that durability and the invariants stand on hold on every
// connection that the store is given, also on one that replaces another.
func TestPragmas(t *testing.T) {
	e, err := engine(filepath.Join(t.TempDir(), File))
	if err != nil {
		t.Fatal(err)
	}
	for name, connector := range map[string]driver.Connector{"writer": e.Writer, "reader": e.Reader} {
		pool := sql.OpenDB(connector)
		defer pool.Close()
		pool.SetMaxIdleConns(0) // every round connects anew
		for round := range 3 {
			c, err := pool.Conn(t.Context())
			if err != nil {
				t.Fatalf("%s: connect: %v", name, err)
			}
			for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1", "busy_timeout": "10000"} {
				var got string
				if err := c.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
					t.Errorf("%s, connection %d: PRAGMA %s = %q, %v, want %s", name, round, pragma, got, err, want)
				}
			}
			if err := c.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
		}
	}
}
