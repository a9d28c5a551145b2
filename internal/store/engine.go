package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"strings"
)

// Class says what a database error means to the store.
type Class int

// The classes of database errors.
const (
	Other   Class = iota
	Unique        // a value that must be unique exists
	Foreign       // a reference leads nowhere, or something refers to the row
	Check         // the schema refuses the value
	Full          // no space is left for the database
	Failed        // an I/O error: what the device holds is unknown
	Lost          // the connection is gone, or another process holds the database
	Damaged       // the database file is not sound
)

// Problem is a classified database error. Columns names the columns of a
// Unique one, where the engine says them.
type Problem struct {
	Class   Class
	Columns []string
}

// Engine is what differs between database engines.
type Engine struct {
	Writer  *sql.DB // gives the one connection that writes
	Reader  *sql.DB // gives at most Readers connections that read
	Readers int

	Begin      []string          // opens a write transaction and waits until it is the only one
	BeginRead  []string          // opens a read transaction with one snapshot
	Savepoints bool              // a failed statement spoils the transaction unless it has its own savepoint
	Cancels    bool              // reading statements may be given a context that ends
	Words      *strings.Replacer // turns the schema's words into the engine's

	Classify func(error) Problem // never given nil
	OnFull   func() error        // makes room when the database cannot grow; may be nil
	Close    func() error        // gives back what the engine holds beside the two pools; may be nil
}

// conn is one connection with its prepared statements.
type conn struct {
	*sql.Conn
	stmts map[string]*sql.Stmt
	fatal error // an error after which the transaction cannot be trusted
}

func connect(ctx context.Context, db *sql.DB) (*conn, error) {
	c, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, stmts: map[string]*sql.Stmt{}}, nil
}

// prepared returns the statement for text, which is prepared once.
func (c *conn) prepared(ctx context.Context, text string) (*sql.Stmt, error) {
	if s, ok := c.stmts[text]; ok {
		return s, nil
	}
	s, err := c.PrepareContext(context.WithoutCancel(ctx), text)
	if err == nil {
		c.stmts[text] = s
	}
	return s, err
}

func (c *conn) exec(ctx context.Context, text string, args ...any) (sql.Result, error) {
	s, err := c.prepared(ctx, text)
	if err != nil {
		return nil, err
	}
	return s.ExecContext(ctx, args...)
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

// Close closes the statements, which belong to this connection alone, and gives
// the connection back to its pool.
func (c *conn) Close() error {
	c.closeStatements()
	return c.Conn.Close()
}

// discard closes the connection for good.
func (c *conn) discard() {
	c.closeStatements()
	_ = c.Raw(func(any) error { return driver.ErrBadConn })
	_ = c.Conn.Close()
}

// closeStatements frees what database/sql does not: SQLite keeps a connection
// open while it has statements.
func (c *conn) closeStatements() {
	for _, s := range c.stmts {
		_ = s.Close()
	}
	clear(c.stmts)
}
