// Package sqlite opens a store in a SQLite database in the daemon's state
// directory. It refuses to share the directory with a second daemon, to touch a
// database of a newer schema, and to weaken durability: there is no option for
// the synchronous mode.
package sqlite

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	driver "modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/store"
)

// File is the name of the database in the state directory.
const File = "tarn.db"

// readers is how many read transactions run at the same time.
const readers = 8

// Options say where the database is.
type Options struct {
	Dir string // the state directory, which exists

	// OnFull is called when the database cannot grow; when it returns nil the
	// transaction is tried once more. It may be nil.
	OnFull func() error
}

// Open locks the state directory and opens its database, which is created if it
// does not exist. A directory that another daemon has locked is errs.Busy; a
// newer schema is errs.Version and leaves every byte as it was. On a full disk
// OnFull is called and opening tried once more.
func Open(ctx context.Context, o Options) (*store.Store, error) {
	s, err := openDir(ctx, o)
	if errors.Is(err, errs.NoSpace) && o.OnFull != nil && o.OnFull() == nil {
		return openDir(ctx, o)
	}
	return s, err
}

func openDir(ctx context.Context, o Options) (*store.Store, error) {
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(o.Dir, File)
	err = prepare(ctx, path)
	var e store.Engine
	if err == nil {
		e, err = engine(path)
	}
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	e.OnFull, e.Close = o.OnFull, func() error {
		// A process that is being started still has the descriptor for a moment.
		return errors.Join(syscall.Flock(int(lock.Fd()), syscall.LOCK_UN), lock.Close())
	}
	return store.Open(ctx, e)
}

// engine returns the database at path as the store wants it.
func engine(path string) (store.Engine, error) {
	writer, err := open(path)
	if err != nil {
		return store.Engine{}, err
	}
	reader, err := open(path, "query_only(on)")
	if err != nil {
		return store.Engine{}, err
	}
	return store.Engine{
		Writer: writer, Reader: reader, Readers: readers,
		Begin: []string{"BEGIN IMMEDIATE"}, BeginRead: []string{"BEGIN"},
		Positional: true,
		Words:      strings.NewReplacer("INT64", "INTEGER", "SERIAL64", "INTEGER PRIMARY KEY", " KEYED", ", WITHOUT ROWID"),
		Classify:   classify,
	}, nil
}

// open returns what makes connections, which all have the same settings. With
// synchronous=FULL the log is synced before a commit returns. What undoes a
// savepoint stays in memory: it never outlives the process, and batches of
// transactions would write it to a temporary file. The log is folded into the
// database every 16 MiB: each time costs two syncs more.
func open(path string, pragmas ...string) (sqldriver.Connector, error) {
	pragmas = append(pragmas, "busy_timeout(10000)", "journal_mode(wal)", "wal_autocheckpoint(4000)", "synchronous(full)", "foreign_keys(on)",
		"cache_size(-8192)", "temp_store(memory)", "journal_size_limit(67108864)")
	vfs, err := logVFS()
	if err != nil {
		return nil, err
	}
	return driver.NewConnector(dsn(path, url.Values{"_pragma": pragmas, "vfs": {vfs}}))
}

func dsn(path string, q url.Values) string {
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// lockDir locks the state directory for as long as the returned file is open.
// The lock file holds the pid of its holder.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "tarn.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errs.New(kindOf(err), "store.open", dir, "the state directory cannot be used: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		if err = f.Truncate(0); err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
		}
		if err == nil {
			return f, nil
		}
	}
	defer f.Close()
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, errs.Wrap(err, "store.open", dir)
	}
	holder := make([]byte, 20)
	n, _ := f.ReadAt(holder, 0)
	return nil, errs.New(errs.Busy, "store.open", dir, "another tarnd, process %s, uses the state directory", strings.TrimSpace(string(holder[:n]))).
		WithHint("stop that daemon, or give this one another directory with --state-dir")
}

// prepare makes the database file, durably and readable by its owner only, or
// refuses an existing one whose schema is newer.
func prepare(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return checkVersion(ctx, path)
	}
	if err != nil {
		return errs.New(kindOf(err), "store.open", path, "the database cannot be made: %w", err)
	}
	defer f.Close()
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return errs.Wrap(err, "store.open", path)
	}
	defer dir.Close()
	return errs.Wrap(dir.Sync(), "store.open", path)
}

// checkVersion reads the schema version through a connection that cannot write,
// not even to move the log into the database.
func checkVersion(ctx context.Context, path string) error {
	db, err := sql.Open("sqlite", dsn(path, url.Values{"mode": {"ro"}, "_pragma": {"busy_timeout(10000)"}}))
	if err != nil {
		return errs.Wrap(err, "store.open", path)
	}
	defer db.Close()
	var tables, version int
	err = db.QueryRowContext(ctx, "SELECT COUNT(*) FROM sqlite_master WHERE name = 'schema_version'").Scan(&tables)
	if err == nil && tables > 0 {
		err = db.QueryRowContext(ctx, "SELECT COALESCE(MAX(version), 0) FROM schema_version").Scan(&version)
	}
	if err != nil {
		return errs.New(kindOf(err), "store.open", path, "the database cannot be read: %w", err)
	}
	return store.CheckVersion(version)
}

// kindOf returns the kind of an error that keeps the database from opening.
func kindOf(err error) errs.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return errs.NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return errs.Unavailable
	}
	switch classify(err).Class {
	case store.Damaged:
		return errs.Corrupt
	case store.Full:
		return errs.NoSpace
	case store.Lost, store.Failed:
		return errs.Unavailable
	}
	return errs.KindOf(err)
}

func code(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

// failedUnique finds the columns in "UNIQUE constraint failed: pools.name".
var failedUnique = regexp.MustCompile(`UNIQUE constraint failed: ([a-z_.]+(?:, [a-z_.]+)*)`)

func classify(err error) store.Problem {
	c := code(err)
	switch c {
	case lib.SQLITE_CONSTRAINT_UNIQUE, lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		p := store.Problem{Class: store.Unique}
		if m := failedUnique.FindStringSubmatch(err.Error()); m != nil {
			for _, column := range strings.Split(m[1], ", ") {
				_, name, _ := strings.Cut(column, ".")
				p.Columns = append(p.Columns, name)
			}
		}
		return p
	case lib.SQLITE_CONSTRAINT_FOREIGNKEY:
		return store.Problem{Class: store.Foreign}
	case lib.SQLITE_IOERR_SHMSIZE: // the log's index could not grow
		return store.Problem{Class: store.Full}
	}
	switch c & 0xff {
	case lib.SQLITE_CONSTRAINT, lib.SQLITE_MISMATCH:
		return store.Problem{Class: store.Check}
	case lib.SQLITE_FULL:
		return store.Problem{Class: store.Full}
	case lib.SQLITE_IOERR:
		return store.Problem{Class: store.Failed}
	case lib.SQLITE_BUSY, lib.SQLITE_CANTOPEN, lib.SQLITE_READONLY:
		return store.Problem{Class: store.Lost}
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return store.Problem{Class: store.Damaged}
	}
	return store.Problem{}
}
