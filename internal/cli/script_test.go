package cli_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tarn-storage/tarn/internal/cli"
	"github.com/tarn-storage/tarn/internal/config"
	"github.com/tarn-storage/tarn/internal/daemon"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// TestMain makes the test binary the two programs, and the daemon's worker.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		ingest.WorkerMain()
	}
	testscript.Main(m, map[string]func(){
		"tarn": func() {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			os.Exit(cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
		},
		"tarnd": func() { os.Exit(daemon.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr)) },
	})
}

// TestScripts runs the transcripts of testdata/script, which are also the
// manual's examples. Besides testscript's commands they have:
//
//	daemon start|stop   a daemon on $WORK/state and $TARN_SOCKET, inside the test
//	status N COMMAND    run COMMAND, whose exit status must be N
//	fill FILE SIZE      write a file of that many pseudo-random bytes
//	sparse FILE SIZE    make a file of that many bytes that is all hole
//	fifo FILE           make a FIFO
//	samesize FILE SIZE  FILE is of that many bytes
//	allocated FILE MAX  FILE holds at most that many bytes of storage
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("TARN_SOCKET", filepath.Join(e.WorkDir, "s"))
			e.Setenv("XDG_RUNTIME_DIR", filepath.Join(e.WorkDir, "run"))
			e.Setenv("HOME", e.WorkDir)
			e.Values[daemonKey{}] = &running{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": daemonCommand, "status": statusCommand, "fill": fillCommand, "sparse": sparseCommand,
			"fifo": fifoCommand, "samesize": sizeCommand, "allocated": allocatedCommand,
		},
	})
}

type daemonKey struct{}

type running struct{ d *daemon.Daemon }

func daemonCommand(ts *testscript.TestScript, neg bool, args []string) {
	r := ts.Value(daemonKey{}).(*running)
	if neg || len(args) != 1 {
		ts.Fatalf("usage: daemon start|stop")
	}
	stop := func() error {
		if r.d == nil {
			return nil
		}
		d := r.d
		r.d = nil
		return d.Stop(context.Background())
	}
	switch args[0] {
	case "start":
		c := config.Config{StateDir: ts.MkAbs("state"), Socket: ts.Getenv("TARN_SOCKET"), Log: config.Log{Level: "warn", Format: "text"}}
		c, err := c.WithDefaults(config.Places{})
		ts.Check(err)
		r.d, err = daemon.Start(context.Background(), c, c.Log.Logger(logWriter{ts}))
		ts.Check(err)
		ts.Defer(func() {
			if err := stop(); err != nil {
				ts.Logf("stopping the daemon: %v", err)
			}
		})
	case "stop":
		ts.Check(stop())
	}
}

// logWriter shows the daemon's log with a failed script.
type logWriter struct{ ts *testscript.TestScript }

func (l logWriter) Write(b []byte) (int, error) {
	l.ts.Logf("[tarnd] %s", strings.TrimSpace(string(b)))
	return len(b), nil
}

func statusCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	if err != nil {
		coded, ok := err.(interface{ ExitCode() int })
		if !ok {
			ts.Fatalf("%v", err)
		}
		got = coded.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("%s: exit status %d, want %s", strings.Join(args[1:], " "), got, args[0])
	}
}

func sized(ts *testscript.TestScript, args []string) (path string, n int64) {
	if len(args) != 2 {
		ts.Fatalf("usage: COMMAND FILE SIZE")
	}
	_, err := fmt.Sscan(args[1], &n)
	ts.Check(err)
	return ts.MkAbs(args[0]), n
}

func fillCommand(ts *testscript.TestScript, _ bool, args []string) {
	path, n := sized(ts, args)
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	ts.Check(os.WriteFile(path, b, 0o600))
}

func sparseCommand(ts *testscript.TestScript, _ bool, args []string) {
	path, n := sized(ts, args)
	ts.Check(os.WriteFile(path, nil, 0o600))
	ts.Check(os.Truncate(path, n))
}

func fifoCommand(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(syscall.Mkfifo(ts.MkAbs(args[0]), 0o600))
}

func sizeCommand(ts *testscript.TestScript, _ bool, args []string) {
	path, n := sized(ts, args)
	fi, err := os.Stat(path)
	ts.Check(err)
	if fi.Size() != n {
		ts.Fatalf("%s has %d bytes, want %d", args[0], fi.Size(), n)
	}
}

func allocatedCommand(ts *testscript.TestScript, _ bool, args []string) {
	path, n := sized(ts, args)
	var st syscall.Stat_t
	ts.Check(syscall.Stat(path, &st))
	if st.Blocks*512 > n {
		ts.Fatalf("%s holds %d bytes, want at most %d", args[0], st.Blocks*512, n)
	}
}
