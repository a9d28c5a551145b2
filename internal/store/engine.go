package store

import (
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
	Writer  driver.Connector // makes the one connection that writes
	Reader  driver.Connector // makes the connections that read, at most Readers at a time
	Readers int

	Begin      []string          // opens a write transaction and waits until it is the only one
	BeginRead  []string          // opens a read transaction with one snapshot
	Savepoints bool              // a failed statement spoils the transaction unless it has its own savepoint
	Cancels    bool              // reading statements may be given a context that ends
	Positional bool              // parameters are known by their place: ?, not $1
	Words      *strings.Replacer // turns the schema's words into the engine's

	Classify func(error) Problem // never given nil
	OnFull   func() error        // makes room when the database cannot grow; may be nil
	Close    func() error        // gives back what the engine holds beside its connections; may be nil
}
