package hostexec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// The test binary stands in for every program: installed under a program's
// name it records how it was called and does what its last operand says. It
// leaves by syscall.Exit, which spares the race detector's second of waiting.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		syscall.Exit(record("worker", os.NewFile(3, "record")))
	}
	if len(os.Args) > 1 && os.Args[1] == "hang" { // until descriptor 3 ends
		_, _ = io.Copy(io.Discard, os.NewFile(3, "pipe"))
		syscall.Exit(0)
	}
	for _, p := range programs {
		if filepath.Base(os.Args[0]) == p.name {
			f, err := os.Create(filepath.Join(filepath.Dir(os.Args[0]), "record"))
			if err != nil {
				panic(err)
			}
			syscall.Exit(record(os.Args[len(os.Args)-1], f))
		}
	}
	os.Exit(m.Run())
}

// call is what a stand-in saw. Words are bytes, so that JSON keeps them.
type call struct {
	Args     [][]byte
	Env      []string
	Stdin    []byte
	CPU      uint64
	UID      int
	Groups   []int
	Net, Dir string
}

func record(behaviour string, to *os.File) int {
	var c call
	for _, a := range os.Args {
		c.Args = append(c.Args, []byte(a))
	}
	c.Env, c.UID = os.Environ(), os.Getuid()
	c.Stdin, _ = io.ReadAll(os.Stdin)
	c.Groups, _ = os.Getgroups()
	c.Net, _ = os.Readlink("/proc/self/ns/net")
	c.Dir, _ = os.Getwd()
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CPU, &l); err == nil {
		c.CPU = l.Cur
	}
	if err := json.NewEncoder(to).Encode(c); err != nil {
		return 99
	}
	return act(behaviour)
}

func act(behaviour string) int {
	switch {
	case behaviour == "spew":
		fmt.Print(strings.Repeat("o", 1<<20))
		fmt.Fprint(os.Stderr, strings.Repeat("e", 1<<20))
	case behaviour == "full":
		fmt.Fprintln(os.Stderr, "pwrite failed: No space left on device\nsecond\tline\x1b[31m")
		return 1
	case behaviour == "family": // a child that shares our output and descriptor 3; both wait for ever
		held := os.NewFile(3, "held")
		child := exec.Command("/bin/sleep", "1000")
		child.Stdout, child.ExtraFiles = os.Stdout, []*os.File{held}
		if err := child.Start(); err != nil {
			return 99
		}
		_, _ = held.WriteString("x")
		_ = child.Wait()
	case behaviour == "hold": // descriptor 3, until a signal comes
		_, _ = os.NewFile(3, "held").WriteString("x")
		_ = syscall.Pause()
	case behaviour == "deaf": // the same, to all but the second
		asked := make(chan os.Signal, 2)
		signal.Notify(asked, syscall.SIGTERM)
		_, _ = os.NewFile(3, "held").WriteString("x")
		<-asked
		<-asked
	case behaviour == "finish": // when descriptor 4 ends, with a word to everybody
		to, until := os.NewFile(3, "to"), os.NewFile(4, "until")
		_, _ = to.WriteString("x")
		_, _ = io.Copy(io.Discard, until)
		fmt.Print("done")
		fmt.Fprint(os.Stderr, "well")
		_, _ = to.WriteString("finished")
	case strings.HasPrefix(behaviour, "/proc/self/fd/"):
		f, err := os.OpenFile(behaviour, os.O_RDWR, 0)
		if err != nil {
			return 99
		}
		if _, err := f.WriteString("through the descriptor"); err != nil {
			return 99
		}
	case strings.HasPrefix(behaviour, "exit "):
		n, _ := strconv.Atoi(behaviour[len("exit "):])
		return n
	}
	return 0
}

// standIns installs the test binary as every known program and makes it the
// only place where programs are looked for.
func standIns(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if err := os.Symlink(self, filepath.Join(dir, p.name)); err != nil {
			t.Fatal(err)
		}
	}
	was := searchPath
	searchPath = dir
	t.Cleanup(func() { searchPath = was })
	return dir
}

func recorded(t *testing.T, path string) call {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var c call
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatalf("the record %q: %v", b, err)
	}
	return c
}

func words(c call) (w []string) {
	for _, a := range c.Args {
		w = append(w, string(a))
	}
	return w
}

// hostile returns strings that have broken argument handling elsewhere, and
// random ones up to n in all.
func hostile(n int) []string {
	s := []string{"", "-", "--", "-L", "--help", "-F --", "a b", "a\nb", "\n-f", "$(id)", "`id`", "${IFS}", "'", `"`, `\`,
		"*", "~", "%n%s", ";reboot", "|cat", "&", ">x", "LC_ALL=de", "PATH=/x", "\x7f\xff\xfe", "é\u202e", strings.Repeat("A", 100_000)}
	r := rand.New(rand.NewPCG(1, 2))
	const alphabet = "-= \n\t$()`'\"\\;|&<>*?~{}[]!#%=/.,:@aZ09\x01\x7f\x80\xff"
	for len(s) < n {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = alphabet[r.IntN(len(alphabet))]
		}
		s = append(s, string(b))
	}
	return s
}

func TestValuesStayInTheirSlot(t *testing.T) {
	dir := standIns(t)
	values := hostile(1000)
	all := slices.Sorted(maps.Keys(programs))
	for i, chunk := range slices.Collect(slices.Chunk(values, 40)) {
		p := all[i%len(all)]
		c := Call{Program: p, Options: []Option{Flag("-q"), OptionValue("-s", Word("size=4096")), OptionValue("-b", Uint(7))}}
		want := []string{filepath.Join(dir, p.String()), "-q", "-s", "size=4096", "-b", "7"}
		for _, v := range chunk {
			c.Options = append(c.Options, OptionValue("-L", Text(v)))
			want = append(want, "-L", v)
		}
		operands := append(slices.Clone(chunk), "end")
		if programs[p].terminator {
			want = append(want, "--")
		} else {
			operands = slices.DeleteFunc(operands, func(v string) bool { return strings.HasPrefix(v, "-") })
		}
		for _, v := range operands {
			c.Operands = append(c.Operands, Text(v))
			want = append(want, v)
		}
		if _, err := Run(t.Context(), c); err != nil {
			t.Fatalf("%v with %q: %v", p, chunk, err)
		}
		got := recorded(t, filepath.Join(dir, "record"))
		if !slices.Equal(words(got), want) {
			t.Fatalf("argv: got %q, want %q", words(got), want)
		}
		if want := append([]string{"PATH=" + dir, "LC_ALL=C", "GOTRACEBACK=none"}, detector...); !slices.Equal(got.Env, want) {
			t.Fatalf("environment: got %q, want %q", got.Env, want)
		}
		if len(got.Stdin) != 0 || got.Dir != "/" {
			t.Fatalf("standard input %q and directory %q, want none and /", got.Stdin, got.Dir)
		}
	}
}

// A program that knows no end of options gets no operand that looks like one.
func TestOperandsAreNoOptions(t *testing.T) {
	dir := standIns(t)
	for p, s := range programs {
		if s.terminator {
			continue
		}
		_, err := Run(t.Context(), Call{Program: p, Operands: []Value{Text("a"), Text("-rf")}})
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%v: got %v, want errs.Invalid", p, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "record")); err == nil {
		t.Error("a program was started")
	}
}

func TestNULIsRefused(t *testing.T) {
	dir := standIns(t)
	_, err := Run(t.Context(), Call{Program: MkfsXFS, Operands: []Value{Text("a\x00b")}})
	if !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v, want errs.Invalid", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "record")); err == nil {
		t.Error("the program was started")
	}
}

func TestFixedSearchPath(t *testing.T) {
	t.Setenv("PATH", "/nowhere")
	want := append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "GOTRACEBACK=none"}, detector...)
	if got := environment(); !slices.Equal(got, want) {
		t.Errorf("environment: got %q, want %q", got, want)
	}
}

func TestMissingProgramNamesItsPackage(t *testing.T) {
	was := searchPath
	searchPath = t.TempDir()
	t.Cleanup(func() { searchPath = was })
	for p, s := range programs {
		_, err := Run(t.Context(), Call{Program: p})
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Unavailable || !strings.Contains(e.Hint, s.debian) {
			t.Errorf("%v: got %#v, want errs.Unavailable with a hint that names %s", p, err, s.debian)
		}
	}
	if _, err := Run(t.Context(), Call{}); !errors.Is(err, errs.Internal) {
		t.Errorf("the zero program: got %v, want errs.Internal", err)
	}
}

func TestDescriptorsArriveFromThreeOn(t *testing.T) {
	standIns(t)
	var files []Value
	var last *os.File
	for i := range 3 {
		f, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, last = append(files, File(f)), f
	}
	if _, err := Run(t.Context(), Call{Program: MkfsExt4, Options: []Option{OptionValue("-d", files[0])}, Operands: files[1:]}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(last.Name())
	if err != nil || string(got) != "through the descriptor" {
		t.Errorf("the last operand's file holds %q, %v", got, err)
	}
}

func TestFailures(t *testing.T) {
	standIns(t)
	run := func(behaviour string) (Output, error) {
		return Run(t.Context(), Call{Program: MkfsXFS, Operands: []Value{Text(behaviour)}})
	}
	var exit *Exit
	if _, err := run("exit 3"); !errors.Is(err, errs.Internal) || !errors.As(err, &exit) || exit.Code != 3 || exit.Signal != 0 {
		t.Errorf("exit 3: got %v (%+v)", err, exit)
	}
	_, err := run("full")
	if !errors.Is(err, errs.NoSpace) || !errors.As(err, &exit) {
		t.Fatalf("full: got %v, want errs.NoSpace", err)
	}
	if want := "pwrite failed: No space left on device; second line [31m"; exit.Message != want {
		t.Errorf("message: got %q, want %q", exit.Message, want)
	}
	out, err := run("spew")
	if err != nil || len(out.Stdout) != MaxOutput || len(out.Stderr) != MaxOutput {
		t.Errorf("spew: got %d and %d bytes, %v, want %d of each", len(out.Stdout), len(out.Stderr), err, MaxOutput)
	}
}

func TestCPULimit(t *testing.T) {
	dir := standIns(t)
	// The stand-in reads its limit after its start; the cap is set at once
	// behind fork, so the first readings may race and are repeated.
	for range 50 {
		if _, err := Run(t.Context(), Call{Program: MkfsXFS, CPU: 1500 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		if recorded(t, filepath.Join(dir, "record")).CPU == 2 {
			return
		}
	}
	t.Error("no run saw a limit of 2 s")
}

func TestCancelKillsTheGroup(t *testing.T) {
	standIns(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		defer w.Close()
		_, err := Run(ctx, Call{Program: MkfsXFS, Options: []Option{OptionValue("-d", File(w))}, Operands: []Value{Text("family")}})
		done <- err
	}()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, errs.Cancelled) {
		t.Errorf("got %v, want errs.Cancelled", err)
	}
	// The end of file comes when the last holder of the pipe is dead.
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil {
		t.Errorf("the child outlived its group: %q, %v", b, err)
	}
	if _, err := Run(ctx, Call{Program: MkfsXFS}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("on an ended context: got %v, want errs.Cancelled", err)
	}
}

// counter fails or crashes the n-th effect.
type counter struct {
	effects       []faults.Effect
	before, after error
}

func (c *counter) Before(e faults.Effect) error {
	c.effects = append(c.effects, e)
	return c.before
}

func (c *counter) After(_ faults.Effect, err error) error {
	if c.after != nil {
		return c.after
	}
	return err
}

func TestEveryRunIsAnEffect(t *testing.T) {
	dir := standIns(t)
	for _, row := range []struct {
		name    string
		inject  counter
		started bool
	}{
		{"counted", counter{}, true},
		{"crash before", counter{before: faults.ErrCrash}, false},
		{"crash after", counter{after: faults.ErrCrash}, true},
	} {
		_ = os.Remove(filepath.Join(dir, "record"))
		remove := faults.Install(&row.inject)
		_, err := Run(t.Context(), Call{Program: MkfsVFAT})
		remove()
		want := errors.Join(row.inject.before, row.inject.after)
		if (want == nil) != (err == nil) || want != nil && !errors.Is(err, faults.ErrCrash) {
			t.Errorf("%s: got %v, want %v", row.name, err, want)
		}
		if e := []faults.Effect{{Kind: faults.Tool, Name: "mkfs.vfat"}}; !slices.Equal(row.inject.effects, e) {
			t.Errorf("%s: effects %v, want %v", row.name, row.inject.effects, e)
		}
		if _, err := os.Stat(filepath.Join(dir, "record")); (err == nil) != row.started {
			t.Errorf("%s: started is %v, want %v", row.name, err == nil, row.started)
		}
	}
	var none counter
	defer faults.Install(&none)()
	if _, err := Run(t.Context(), Call{Program: MkfsVFAT, Query: true}); err != nil || len(none.effects) != 0 {
		t.Errorf("a query: %v, effects %v, want none", err, none.effects)
	}
}
