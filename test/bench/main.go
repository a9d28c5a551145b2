// Command bench measures tarn against what people use today for the same work,
// in one interleaved run, and prints tarn's figure, the peer's and the ratio. It
// builds the shipped binaries, starts a daemon of its own in a temporary
// directory and removes everything again. It refuses to be a gate: a figure says
// as much about the machine as about the program, and only a ratio travels.
//
//	go run ./test/bench [-full] [-dir DIR] [-only PART,...]
//
// docs/benchmarks.md says what the rows mean.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
)

// bench is one run.
type bench struct {
	dir     string // of everything this run makes
	repo    string
	full    bool // the large image
	guest   bool // inside of a guest that another run started
	rounds  int
	volumes int
	names   atomic.Int64 // that were given
}

// parts are what can be measured alone, in the order they run; those that need
// more than the shipped tests do run only where they are named.
var parts = []struct {
	name  string
	run   func(*bench, context.Context) error
	named bool
}{
	{"create", (*bench).create, false},
	{"syncs", (*bench).syncs, false},
	{"extents", (*bench).extents, false},
	{"nova", (*bench).nova, true},
	{"clone", (*bench).clone, false},
	{"rbd", (*bench).rbd, true},
	{"lvmthin", (*bench).lvmthin, true},
	{"import", (*bench).imports, false},
	{"export", (*bench).exports, false},
	{"list", (*bench).list, false},
	{"store", (*bench).store, false},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var b bench
	flag.BoolVar(&b.guest, "guest", false, "measure in a guest that a run of this program started")
	bin := flag.String("bin", "", "`DIR` of tarn and tarnd; they are built where it is not given")
	flag.BoolVar(&b.full, "full", false, "import and export an image of 2.5 GiB, not 600 MiB")
	dir := flag.String("dir", os.TempDir(), "`DIR` to work in; its file system is what is measured")
	only := flag.String("only", "", "measure only these `PARTS`, separated by commas: "+strings.Join(partNames(), ", "))
	flag.IntVar(&b.rounds, "rounds", 5, "rounds of each pair")
	flag.IntVar(&b.volumes, "volumes", 10_000, "volumes to list and to restart with")
	flag.Parse()
	var err error
	if b.repo, err = os.Getwd(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*dir, "tarn-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := os.Chmod(b.dir, 0o755); err != nil { // the confined worker is nobody
		return err
	}
	if err := b.build(ctx, *bin); err != nil {
		return err
	}
	machine(b.dir)
	for _, p := range parts {
		named := strings.Contains(","+*only+",", ","+p.name+",")
		if !named && (*only != "" || p.named) {
			continue
		}
		fmt.Printf("\n%s (load %s)\n", p.name, load())
		if err := p.run(&b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

// build builds the shipped binaries, unless they are in bin.
func (b *bench) build(ctx context.Context, bin string) error {
	if bin != "" {
		return os.Symlink(bin, b.path("bin"))
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.path("bin")+"/", "./cmd/tarn", "./cmd/tarnd")
	cmd.Dir, cmd.Env = b.repo, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building, in the root of the sources? %w\n%s", err, out)
	}
	return nil
}

func (b *bench) path(name ...string) string {
	return filepath.Join(append([]string{b.dir}, name...)...)
}

// fresh makes a new directory. It stays to the end of the run: where many files
// were just removed ext4 makes new ones several times slower, for everybody.
func (b *bench) fresh(name string) (string, error) {
	dir := b.path(name + b.name())
	return dir, os.Mkdir(dir, 0o711)
}

// name returns a name that nothing has yet.
func (b *bench) name() string {
	return fmt.Sprintf("vm%06d", b.names.Add(1))
}
