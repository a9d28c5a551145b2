package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
)

// conn is one connection with its prepared statements. It calls the driver
// itself: the store keeps its connections for good and binds and scans nothing
// but text and numbers, and what database/sql does around every statement beyond
// that costs as much as SQLite's own work. One goroutine uses it at a time.
type conn struct {
	driver.Conn
	positional bool
	stmts      map[string]*statement
	fatal      error // an error after which the transaction cannot be trusted
	emitted    int   // events
}

// statement is a prepared statement with room for the values of one execution.
type statement struct {
	preparer
	order []int // the argument that each parameter takes, where they have places only
	args  []driver.NamedValue
	row   []driver.Value
}

// preparer is what the driver's statements must be able to do.
type preparer interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

func connect(ctx context.Context, c driver.Connector, e *Engine) (*conn, error) {
	raw, err := c.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: raw, positional: e.Positional, stmts: map[string]*statement{}}, nil
}

// parameter is a place in a statement where an argument goes: $1, $2, ...
var parameter = regexp.MustCompile(`\$[0-9]+`)

// prepared returns the statement for text, which is prepared once.
func (c *conn) prepared(ctx context.Context, text string) (*statement, error) {
	if s, ok := c.stmts[text]; ok {
		return s, nil
	}
	s, native := &statement{}, text
	if c.positional {
		native = parameter.ReplaceAllStringFunc(text, func(p string) string {
			n, _ := strconv.Atoi(p[1:])
			s.order = append(s.order, n-1)
			return "?"
		})
	}
	raw, err := c.Conn.(driver.ConnPrepareContext).PrepareContext(context.WithoutCancel(ctx), native)
	if err != nil {
		return nil, err
	}
	s.preparer = raw.(preparer)
	c.stmts[text] = s
	return s, nil
}

// bind puts args, each a string, an int64 or nil, where the parameters want them.
func (s *statement) bind(args []any) []driver.NamedValue {
	s.args = s.args[:0]
	if s.order == nil {
		for i, v := range args {
			s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: v})
		}
		return s.args
	}
	for i, n := range s.order {
		s.args = append(s.args, driver.NamedValue{Ordinal: i + 1, Value: args[n]})
	}
	return s.args
}

// exec runs a statement and returns how many rows it changed.
func (c *conn) exec(ctx context.Context, text string, args ...any) (int64, error) {
	s, err := c.prepared(ctx, text)
	if err != nil {
		return 0, err
	}
	res, err := s.ExecContext(ctx, s.bind(args))
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// query runs a statement and calls each for every row, whose values are good
// until each returns.
func (c *conn) query(ctx context.Context, text string, args []any, each func([]driver.Value) error) (err error) {
	s, err := c.prepared(ctx, text)
	if err != nil {
		return err
	}
	rows, err := s.QueryContext(ctx, s.bind(args))
	if err != nil {
		return err
	}
	defer func() {
		if e := rows.Close(); err == nil {
			err = e
		}
	}()
	if s.row == nil {
		s.row = make([]driver.Value, len(rows.Columns()))
	}
	for {
		if err := rows.Next(s.row); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := each(s.row); err != nil {
			return err
		}
	}
}

// scan moves the values of a row to where into points.
func scan(row []driver.Value, into ...any) error {
	for i, p := range into {
		var err error
		switch p := p.(type) {
		case *int64:
			err = numberCodec[int64]{p}.Scan(row[i])
		case *int:
			err = numberCodec[int]{p}.Scan(row[i])
		case *string:
			*p, err = scanText(row[i])
		case sql.Scanner:
			err = p.Scan(row[i])
		default:
			err = fmt.Errorf("column %d cannot be scanned into a %T", i, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// all runs statements until one fails.
func (c *conn) all(ctx context.Context, texts ...string) error {
	for _, text := range texts {
		if _, err := c.exec(ctx, text); err != nil {
			return err
		}
	}
	return nil
}

// script runs a text that is used once and may hold several statements.
func (c *conn) script(ctx context.Context, text string) error {
	_, err := c.Conn.(driver.ExecerContext).ExecContext(ctx, text, nil)
	return err
}

// Close closes the connection and its statements: SQLite keeps a connection open
// while it has any.
func (c *conn) Close() error {
	for _, s := range c.stmts {
		_ = s.Close()
	}
	clear(c.stmts)
	return c.Conn.Close()
}
