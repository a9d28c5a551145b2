package store

import (
	"context"
	"database/sql/driver"
	"embed"
	"fmt"
	"io/fs"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

//go:embed schema/*.sql
var schema embed.FS

// migrate brings the schema to this build's version in one transaction and
// returns that version. A newer schema is refused untouched.
func migrate(ctx context.Context, c *conn, e *Engine) (int, error) {
	files, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return 0, err
	}
	if err := c.all(ctx, e.Begin...); err != nil {
		return 0, err
	}
	have, err := apply(ctx, c, e, files)
	if err != nil || have == len(files) {
		_ = c.all(ctx, "ROLLBACK")
		return have, err
	}
	err = faults.Do(faults.Tx, "migrate", func() error { return c.all(ctx, "COMMIT") })
	if err != nil {
		_ = c.all(ctx, "ROLLBACK")
	}
	return len(files), err
}

// apply runs the migrations that the database lacks; the n-th file leads to
// version n. It returns the version found.
func apply(ctx context.Context, c *conn, e *Engine, files []string) (have int, err error) {
	create := e.Words.Replace("CREATE TABLE IF NOT EXISTS schema_version (version INT64 NOT NULL) STRICT")
	if err := c.script(ctx, create); err != nil {
		return 0, err
	}
	err = c.query(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version", nil, func(row []driver.Value) error {
		return scan(row, &have)
	})
	if err != nil {
		return 0, err
	}
	if err := CheckVersion(have); err != nil {
		return have, err
	}
	for n := have; n < len(files); n++ {
		text, err := schema.ReadFile(files[n])
		if err != nil {
			return have, err
		}
		if err := c.script(ctx, e.Words.Replace(string(text))); err != nil {
			return have, fmt.Errorf("migration %s: %w", files[n], err)
		}
	}
	if have < len(files) {
		_, err = c.exec(ctx, "INSERT INTO schema_version (version) VALUES ($1)", int64(len(files)))
	}
	return have, err
}

// CheckVersion refuses a schema version that this build does not know.
func CheckVersion(have int) error {
	files, err := fs.Glob(schema, "schema/*.sql")
	if err != nil {
		return err
	}
	if have > len(files) {
		return errs.New(errs.Version, "store.open", "",
			"the database has schema version %d, this build knows version %d; nothing was changed", have, len(files)).
			WithHint("use the newer tarn that wrote it")
	}
	return nil
}
