package hostexec

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/tarn-storage/tarn/errs"
)

// Foreground runs a command that the user of this process gave, as a shell
// would: with this process's standard streams, directory, process group and
// environment, to which env is added. It returns the command's exit status,
// 128 and the signal's number for one that a signal ended. SIGTERM and SIGHUP
// are passed on; the terminal's SIGINT and SIGQUIT reach the command by
// themselves and are ignored here until it has ended. When ctx ends the
// command gets SIGTERM, and so it does when this process is killed: nobody
// serves it any more. It is no effect: what it does is the user's doing.
func Foreground(ctx context.Context, argv, env []string) (status int, err error) {
	const op = "command.run"
	if len(argv) == 0 {
		return 0, errs.New(errs.Invalid, op, "", "there is no command to run")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, errs.New(errs.NotFound, op, argv[0], "%s cannot be run: %w", argv[0], err)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT)
	defer signal.Stop(signals)
	cmd := &exec.Cmd{Path: path, Args: argv, Env: append(os.Environ(), env...), Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}}
	started, done := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // which Pdeathsig waits for the end of, as in start
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return 0, errs.New(errs.Invalid, op, argv[0], "%s cannot be run: %w", argv[0], err)
	}
	ended := ctx.Done()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGTERM || s == syscall.SIGHUP {
				_ = cmd.Process.Signal(s) // it may have just ended
			}
		case <-ended:
			ended = nil
			_ = cmd.Process.Signal(syscall.SIGTERM)
		case err := <-done:
			return statusOf(err)
		}
	}
}

func statusOf(err error) (int, error) {
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) {
		return 0, err
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return exit.ExitCode(), nil
}
