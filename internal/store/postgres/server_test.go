package postgres_test

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"
)

// server is the PostgreSQL of this run: the one of TARN_TEST_POSTGRES, or one
// started here on a unix socket.
type server struct {
	dsn  string // of a database in which others may be created
	stop func()
}

var started *server

func TestMain(m *testing.M) {
	code := m.Run()
	if started != nil && started.stop != nil {
		started.stop()
	}
	os.Exit(code)
}

// start returns the server. Where there is none the test is skipped, and fails
// when CI is set.
func start(t testing.TB) *server {
	t.Helper()
	if started != nil {
		return started
	}
	if dsn := os.Getenv("TARN_TEST_POSTGRES"); dsn != "" {
		started = &server{dsn: dsn}
		return started
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		missing(t, "no PostgreSQL: set TARN_TEST_POSTGRES to a DSN, or install Debian's postgresql")
	}
	account, err := user.Lookup("postgres")
	if os.Geteuid() == 0 && err != nil {
		missing(t, "root cannot run PostgreSQL without the user postgres: %v", err)
	}
	s, err := launch(filepath.Dir(found[len(found)-1]), account)
	if err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	started = s
	return s
}

func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// launch makes a cluster in a temporary directory and starts its server, as
// account when this process is root.
func launch(bin string, account *user.User) (*server, error) {
	dir, err := os.MkdirTemp("", "tarn-pg")
	if err != nil {
		return nil, err
	}
	as := func(tool string, args ...string) *exec.Cmd {
		cmd := exec.Command(filepath.Join(bin, tool), args...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		if os.Geteuid() == 0 {
			uid, _ := strconv.Atoi(account.Uid)
			gid, _ := strconv.Atoi(account.Gid)
			cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
			err = os.Chown(dir, uid, gid)
		}
		return cmd
	}
	data := filepath.Join(dir, "data")
	if out, err := as("initdb", "-D", data, "-A", "trust", "-U", "postgres", "-N").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	// pg_ctl -w returns when the server answers.
	ctl := as("pg_ctl", "-D", data, "-w", "-l", filepath.Join(dir, "log"),
		"-o", "-k "+dir+" -c listen_addresses= -c synchronous_commit=off -c max_connections=50", "start")
	ctl.SysProcAttr.Pdeathsig = 0
	if out, err := ctl.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pg_ctl start: %w\n%s", err, out)
	}
	stop := func() {
		_ = as("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop").Run()
		_ = os.RemoveAll(dir)
	}
	dsn := url.URL{Scheme: "postgres", Path: "/postgres", User: url.User("postgres"),
		RawQuery: url.Values{"host": {dir}, "port": {"5432"}}.Encode()}
	return &server{dsn: dsn.String(), stop: stop}, err
}

// database creates an empty database and returns its DSN.
func (s *server) database(t testing.TB) string {
	t.Helper()
	c, err := pgx.Connect(t.Context(), s.dsn)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	databases++
	name := fmt.Sprintf("tarn_test_%d_%d", os.Getpid(), databases)
	if _, err := c.Exec(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatalf("create a database: %v", err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		c, err := pgx.Connect(ctx, s.dsn)
		if err == nil {
			_, err = c.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)")
			_ = c.Close(ctx)
		}
		if err != nil {
			t.Errorf("drop the database: %v", err)
		}
	})
	return within(t, s.dsn, name)
}

var databases int

// within returns dsn, a URL, with another database.
func within(t testing.TB, dsn, name string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" {
		t.Fatalf("the DSN of the test server must be a URL: %v", err)
	}
	u.Path = "/" + name // the slash matters where no host comes before it
	return u.String()
}
