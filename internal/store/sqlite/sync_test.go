package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
)

// childDir names the directory in which this test binary, started again below,
// plays the daemon whose device fails.
const childDir = "TARN_TEST_SYNC_DIR"

// marker is a file whose creation tells the trace that set-up is over.
const marker = "set-up-is-over"

// insertThrice is what the traced process does; wrong tells what an insert must not
// return.
func insertThrice(t *testing.T, dir string, wrong func(error) bool) {
	s := open(t, sqlite.Options{Dir: dir})
	defer s.Close()
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := insertHost(t.Context(), s, fmt.Sprint(n), "x"); wrong(err) {
			t.Errorf("insert %d: got %v", n, err)
		}
	}
	fmt.Println("child:done")
}

// logCalls runs the calling test in a process of its own, under strace with the
// options, and returns the calls that wrote and synced the log once set-up was over.
func logCalls(t *testing.T, options ...string) []string {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: install Debian's strace", err)
	}
	dir := t.TempDir()
	if err := open(t, sqlite.Options{Dir: dir}).Close(); err != nil { // the schema is there before
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	options = append([]string{"-f", "-y", "-o", trace, "-P", filepath.Join(dir, sqlite.File+"-wal"), "-P", filepath.Join(dir, marker), "-e", "trace=openat,pwrite64,fsync,fdatasync"}, options...)
	cmd := exec.CommandContext(t.Context(), strace, append(options, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")...)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "child:done") {
		t.Fatalf("the traced process: %v\n%s", err, out)
	}
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(b), marker)
	if !found {
		t.Fatalf("the trace does not show the end of set-up:\n%s", b)
	}
	var calls []string
	for _, m := range regexp.MustCompile(`(?m)(pwrite64|f(?:data)?sync)\(\d+<[^>]*tarn\.db-wal>`).FindAllStringSubmatch(after, -1) {
		calls = append(calls, m[1])
	}
	return calls
}

// Every commit writes the log once and syncs it, and so does closing, without its
// time of change. The header of a new log is written and synced before, and with
// it the directory.
func TestSyncs(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		insertThrice(t, dir, func(err error) bool { return err != nil })
		return
	}
	want := append(slices.Repeat([]string{"pwrite64", "fdatasync"}, 4), "fdatasync")
	want[1] = "fsync"
	if got := logCalls(t); !slices.Equal(got, want) {
		t.Errorf("three commits and a close wrote the log by %q, want %q", got, want)
	}
}

// The kernel fails the sync of a commit: the commit is not acknowledged, the
// sync is not tried again, and every later write is refused.
func TestFailedSync(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		insertThrice(t, dir, func(err error) bool { return !errors.Is(err, errs.Unavailable) })
		return
	}
	if got := logCalls(t, "-e", "inject=fsync,fdatasync:error=EIO"); !slices.Equal(got, []string{"pwrite64", "fsync"}) {
		t.Errorf("the log was written by %q, want the header and exactly the sync that failed", got)
	}
}

// The kernel fails the write of what was kept: the commit is not acknowledged.
func TestFailedWrite(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		insertThrice(t, dir, func(err error) bool { return !errors.Is(err, errs.Unavailable) })
		return
	}
	if got := logCalls(t, "-e", "inject=pwrite64:error=EIO"); !slices.Equal(got, []string{"pwrite64"}) {
		t.Errorf("the log was written by %q, want exactly the call that failed", got)
	}
}
