// Package postgres opens a store in a PostgreSQL database, which several hosts
// may share. It refuses to weaken durability: its sessions commit
// synchronously whatever the server's default is.
//
// Write transactions run one at a time, over all hosts, under an advisory lock
// that is taken before the first statement. Under READ COMMITTED every
// statement then sees everything committed before, exactly as on SQLite: no
// serialization failures, sums that cannot be outrun by a second planner, and
// event ids in the order of commits. Throughput comes from committing waiting
// transactions together.
package postgres

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/store"
)

// readers is how many read transactions run at the same time.
const readers = 8

// lockKey is the advisory lock of whoever writes ("tarn" in ASCII).
const lockKey = 0x7461726e

// session is set in every session. The time-outs, in seconds unless they say
// otherwise, make the server end the transaction of a host that is gone, which
// would keep the others from writing.
var session = map[string]string{
	"application_name":                    "tarnd",
	"synchronous_commit":                  "on",
	"idle_in_transaction_session_timeout": "60s",
	"tcp_keepalives_idle":                 "15",
	"tcp_keepalives_interval":             "5",
	"tcp_keepalives_count":                "3",
	"tcp_user_timeout":                    "30s",
}

// Options say where the database is.
type Options struct {
	DSN string // a URL or keywords as libpq takes them
}

// Open opens the database, whose schema it makes or migrates. A newer schema is
// errs.Version and left as it was; a server that does not answer is
// errs.Unavailable.
func Open(ctx context.Context, o Options) (*store.Store, error) {
	config, err := pgx.ParseConfig(o.DSN)
	if err != nil {
		return nil, errs.New(errs.Invalid, "store.open", "", "the PostgreSQL DSN cannot be read: %w", err)
	}
	for name, value := range session {
		config.RuntimeParams[name] = value
	}
	connector := stdlib.GetConnector(*config)
	return store.Open(ctx, store.Engine{
		Writer: connector, Reader: connector, Readers: readers,
		Begin: []string{
			"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
			fmt.Sprintf("SELECT pg_advisory_xact_lock(%d)", lockKey),
		},
		BeginRead:  []string{"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"},
		Savepoints: true, Cancels: true,
		Words: strings.NewReplacer("INT64", "BIGINT", "TEXT", `TEXT COLLATE "C"`,
			"SERIAL64", "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", " STRICT", "", " KEYED", ""),
		Classify: classify,
	})
}

// failedKey finds the columns in the detail `Key (pool_id, name)=(...) ...`.
var failedKey = regexp.MustCompile(`\(([a-z_, ]+)\)=\(`)

// classify goes by SQLSTATE (PostgreSQL documentation, appendix A).
func classify(err error) store.Problem {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		if lost(err) {
			return store.Problem{Class: store.Lost}
		}
		return store.Problem{}
	}
	switch {
	case e.Code == "23505":
		p := store.Problem{Class: store.Unique}
		if m := failedKey.FindStringSubmatch(e.Detail); m != nil {
			p.Columns = strings.Split(m[1], ", ")
		}
		return p
	case e.Code == "23503":
		return store.Problem{Class: store.Foreign}
	case strings.HasPrefix(e.Code, "23"), strings.HasPrefix(e.Code, "22"):
		return store.Problem{Class: store.Check}
	case e.Code == "53100":
		return store.Problem{Class: store.Full}
	case e.Code == "XX001", e.Code == "XX002":
		return store.Problem{Class: store.Damaged}
	case strings.HasPrefix(e.Code, "08"), strings.HasPrefix(e.Code, "57P"), strings.HasPrefix(e.Code, "53"),
		strings.HasPrefix(e.Code, "58"), e.Code == "25006":
		return store.Problem{Class: store.Lost}
	}
	return store.Problem{}
}

// lost reports whether err says that the server was not reached or went away.
func lost(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	return errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, driver.ErrBadConn)
}
