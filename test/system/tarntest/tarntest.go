// Package tarntest runs the two binaries as a user gets them: it builds them,
// starts, stops and kills tarnd, and runs tarn against it. It refuses to reach
// into the daemon: what a test learns, it learns from outputs, exit statuses
// and the files on disk.
package tarntest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
)

var built struct {
	once sync.Once
	dir  string
	err  error
}

// Binaries returns the directory of tarn and tarnd: TARN_TEST_BIN where that is
// set, else one they are built into, once for all packages of a test run.
func Binaries(t testing.TB) string {
	t.Helper()
	built.once.Do(func() { built.dir, built.err = build() })
	if built.err != nil {
		t.Fatalf("tarntest: %v", built.err)
	}
	return built.dir
}

func build() (string, error) {
	if dir := os.Getenv("TARN_TEST_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	_, here, _, _ := runtime.Caller(0)
	top := filepath.Join(filepath.Dir(here), "../../..")
	sum := sha256.Sum256([]byte(top))
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("tarn-test-bin-%d-%s", os.Geteuid(), hex.EncodeToString(sum[:4])))
	if err := ownDir(dir); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "./cmd/tarn", "./cmd/tarnd")
	cmd.Dir, cmd.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
}

// ownDir makes a directory that nobody else can have put binaries into. Others
// may enter it: tests run tarn as another user.
func ownDir(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return err
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a directory of this user alone", dir)
	}
	return nil
}

// Result is what one run of tarn came to.
type Result struct {
	Args           []string
	Status         int
	Stdout, Stderr string
}

// String shows the run in a message.
func (r Result) String() string {
	return fmt.Sprintf("tarn %s: exit status %d\n%s%s", strings.Join(r.Args, " "), r.Status, clip(r.Stdout), clip(r.Stderr))
}

func clip(s string) string {
	if len(s) > 2000 {
		return s[:2000] + "...\n"
	}
	return s
}

// Run runs tarn against d, which need not run. It may be called from any
// goroutine.
func (d *Daemon) Run(args ...string) Result { return d.RunInput(strings.NewReader(""), args...) }

// RunInput is Run with what is on standard input.
func (d *Daemon) RunInput(in io.Reader, args ...string) Result {
	cmd := exec.Command(filepath.Join(d.bin, "tarn"), args...)
	cmd.Env = append(os.Environ(), "TARN_SOCKET="+d.Socket)
	cmd.Stdin = in
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	r := Result{Args: args, Stdout: stdout.String(), Stderr: stderr.String()}
	if err != nil {
		r.Status = -1
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			r.Status = exit.ExitCode()
		} else {
			r.Stderr += err.Error()
		}
	}
	return r
}

// Must is Run for a command that has to succeed.
func (d *Daemon) Must(args ...string) Result {
	d.t.Helper()
	return d.Want(0, args...)
}

// Want is Run for a command that has to end with a status.
func (d *Daemon) Want(status int, args ...string) Result {
	d.t.Helper()
	r := d.Run(args...)
	if r.Status != status {
		d.t.Fatalf("want exit status %d of %v\ntarnd warned:\n%s", status, r, d.Warnings())
	}
	return r
}

// Get runs tarn with -o json and decodes what it prints.
func Get[T any](d *Daemon, args ...string) T {
	d.t.Helper()
	return Decode[T](d.t, d.Must(append(args, "-o", "json")...))
}

// Decode decodes the JSON that a run printed.
func Decode[T any](t testing.TB, r Result) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
		t.Fatalf("tarn %s printed no JSON: %v\n%s", strings.Join(r.Args, " "), err, clip(r.Stdout))
	}
	return v
}

// AssertHealthy fails unless doctor finds nothing.
func (d *Daemon) AssertHealthy() {
	d.t.Helper()
	r := d.Run("doctor", "-o", "json")
	if report := Decode[api.Report](d.t, r); r.Status != 0 || len(report.Problems) > 0 {
		d.t.Errorf("want a silent doctor, got exit status %d and %+v", r.Status, report.Problems)
	}
}

// AssertSettled fails unless every operation has ended, and by itself.
func (d *Daemon) AssertSettled() {
	d.t.Helper()
	for _, op := range Get[api.List[api.Operation]](d, "operation", "list").Items {
		if !op.Final() || op.State == "needs_operator" {
			d.t.Errorf("operation %s %s of %s is %s: %+v", op.ID, op.Kind, op.Subject.Name, op.State, op.Error)
		}
	}
}

// Pattern returns n bytes that look random and depend on seed alone.
func Pattern(seed uint64, n int) []byte {
	b := make([]byte, n)
	x := seed*2862933555777941757 + 3037000493 | 1
	for i := range b {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		b[i] = byte(x >> 24)
	}
	return b
}

// WriteFile writes a file below a directory of the test's own.
func WriteFile(t testing.TB, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// NeedTool returns the path of a program. Where it is missing the test is
// skipped, or fails in CI.
func NeedTool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed: run scripts/install-deps test", name)
	}
	t.Skipf("%s is not installed: run scripts/install-deps test", name)
	return ""
}
