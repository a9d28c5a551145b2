package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/config"
	"github.com/tarn-storage/tarn/internal/exit"
	"github.com/tarn-storage/tarn/internal/hostexec"
)

const usageText = `tarnd keeps the disks of virtual machines in storage pools; tarn talks to it.

usage: tarnd [flags]                  serve until SIGTERM or SIGINT
       tarnd [flags] -- COMMAND ...   serve on a private socket while COMMAND runs,
                                      with TARN_SOCKET set; its status is returned

`

// Main is tarnd's command line, without the program's name. It returns the
// exit status.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	status, err := run(ctx, args, stdout, stderr)
	if err != nil {
		exit.Print(stderr, "tarnd", err, false)
		return exit.Status(err)
	}
	return status
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	var command []string
	if i := slices.Index(args, "--"); i >= 0 {
		args, command = args[:i], args[i+1:]
		if len(command) == 0 {
			return 0, errs.New(errs.Invalid, "daemon.flags", "", "no command follows --")
		}
	}
	c, done, err := parse(args, stdout)
	if err != nil || done {
		return 0, err
	}
	if c, err = c.WithDefaults(config.Environment()); err != nil {
		return 0, err
	}
	tuneMemory(os.Getenv)
	if command != nil {
		return runCommand(ctx, c, command, stderr)
	}
	return 0, serve(ctx, c, c.Log.Logger(stderr))
}

// parse reads the flags, and the file that they name. It reports done when
// they asked for a text that it printed.
func parse(args []string, stdout io.Writer) (c config.Config, done bool, err error) {
	f := flag.NewFlagSet("tarnd", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	stateDir := f.String("state-dir", "", "`DIR` of records, lock and ballast (root: /var/lib/tarn; others: $XDG_STATE_HOME/tarn)")
	socket := f.String("socket", "", "`PATH` of the socket (root: /run/tarn/tarn.sock; others: $XDG_RUNTIME_DIR/tarn/tarn.sock)")
	file := f.String("config", "", "YAML `FILE` of the configuration; flags win over it")
	version := f.Bool("version", false, "print the version")
	err = f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		f.SetOutput(stdout)
		fmt.Fprint(stdout, usageText)
		f.PrintDefaults()
		return c, true, nil
	case err != nil:
		return c, false, errs.New(errs.Invalid, "daemon.flags", "", "%w", err).WithHint("see tarnd --help")
	case f.NArg() > 0:
		return c, false, errs.New(errs.Invalid, "daemon.flags", "", "tarnd does not take the argument %q", f.Arg(0)).
			WithHint("a command follows --: tarnd -- %s", f.Arg(0))
	case *version:
		v := api.Build()
		fmt.Fprintf(stdout, "tarnd %s (%s)\n", v.Version, v.Go)
		return c, true, nil
	}
	if *file != "" {
		if c, err = config.Read(*file); err != nil {
			return c, false, err
		}
	}
	for _, p := range []struct {
		given string
		to    *string
	}{{*stateDir, &c.StateDir}, {*socket, &c.Socket}} {
		if p.given == "" {
			continue
		}
		if *p.to, err = filepath.Abs(p.given); err != nil {
			return c, false, errs.Wrap(err, "daemon.flags", p.given)
		}
	}
	return c, false, nil
}

// serve runs a daemon until a signal or the end of ctx.
func serve(ctx context.Context, c config.Config, log *slog.Logger) error {
	signals, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	d, err := Start(signals, c, log)
	if err != nil {
		return err
	}
	if err := notify("READY=1"); err != nil {
		log.Warn("the service manager does not listen", "error", err)
	}
	var failed error
	select {
	case <-signals.Done():
		stop() // a second signal ends the process at once
		log.Info("stopping")
	case failed = <-d.Failed():
	}
	_ = notify("STOPPING=1") // it sees the end of the process anyway
	return errors.Join(failed, d.Stop(context.WithoutCancel(ctx)))
}

// runCommand runs a daemon on a socket of its own while command runs.
func runCommand(ctx context.Context, c config.Config, command []string, stderr io.Writer) (status int, err error) {
	dir, err := os.MkdirTemp("", "tarnd-")
	if err != nil {
		return 0, errs.Wrap(err, "daemon.start", os.TempDir())
	}
	defer os.RemoveAll(dir)
	c.Socket = filepath.Join(dir, "tarn.sock")
	if c.Log == (config.Log{}) {
		c.Log = config.Log{Level: "warn", Format: "text"} // standard error is the command's
	}
	d, err := Start(ctx, c, c.Log.Logger(stderr))
	if err != nil {
		return 0, err
	}
	status, err = hostexec.Foreground(ctx, command, []string{"TARN_SOCKET=" + c.Socket})
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*grace)
	defer cancel()
	return status, errors.Join(err, d.Stop(stopping))
}
