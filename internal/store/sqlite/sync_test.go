package sqlite_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

// failSyncs is what the traced process of TestFailedSync does.
func failSyncs(t *testing.T, dir string) {
	s := open(t, sqlite.Options{Dir: dir})
	defer s.Close()
	if err := os.WriteFile(filepath.Join(dir, marker), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := insertHost(t.Context(), s, fmt.Sprint(n), "x"); !errors.Is(err, errs.Unavailable) {
			t.Errorf("insert %d: got %v, want unavailable", n, err)
		}
	}
	fmt.Println("child:done")
}

// The kernel fails the sync of a commit: the commit is not acknowledged, the
// sync is not tried again, and every later write is refused.
func TestFailedSync(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		failSyncs(t, dir)
		return
	}
	strace, err := exec.LookPath("strace")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("%v: install Debian's strace", err)
	}
	dir := t.TempDir()
	if err := open(t, sqlite.Options{Dir: dir}).Close(); err != nil { // the schema is there before syncs fail
		t.Fatal(err)
	}
	trace := filepath.Join(t.TempDir(), "trace")
	cmd := exec.CommandContext(t.Context(), strace, "-f", "-y", "-o", trace, "-e", "trace=openat,fsync,fdatasync",
		"-e", "inject=fsync,fdatasync:error=EIO", os.Args[0], "-test.run=^TestFailedSync$", "-test.v")
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
	syncs := regexp.MustCompile(`(?m)f(?:data)?sync\(\d+<[^>]*tarn\.db-wal>`).FindAllString(after, -1)
	if !found || len(syncs) != 1 {
		t.Errorf("set-up seen: %v; syncs of the log after it: %q, want exactly the one that failed", found, syncs)
	}
}
