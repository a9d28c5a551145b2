package hostexec

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// MaxOutput is how many bytes of each output stream are kept; the rest is
// read and dropped, so that a chatty process neither blocks nor fills memory.
const MaxOutput = 64 << 10

// maxMessage bounds the part of standard error that an Exit carries.
const maxMessage = 1 << 10

// drainTimeout is how long after a process's end its output may stay open in
// the hands of a process that left the group.
const drainTimeout = 5 * time.Second

// Process is a started process. It is reaped whether or not Wait is called;
// its methods are safe for concurrent use.
type Process struct {
	cmd      *exec.Cmd
	isolated bool
	done     chan struct{} // closed once out and err are set
	out      Output
	err      error
}

// spec is what start needs to know.
type spec struct {
	path  string
	argv  []string
	files []*os.File
	attr  *syscall.SysProcAttr
	cpu   time.Duration
}

// groupLeader returns the attributes every process gets: a group of its own,
// which is killed as a whole, and death with the thread that started it.
func groupLeader() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// start starts a process and reaps it on a thread that lives as long as the
// process does: Pdeathsig is sent when the starting thread ends, not when the
// starting process does.
func start(ctx context.Context, s spec) (*Process, error) {
	var stdout, stderr head
	cmd := exec.CommandContext(ctx, s.path)
	cmd.Args, cmd.Env, cmd.ExtraFiles, cmd.SysProcAttr = s.argv, environment(), s.files, s.attr
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Dir = "/"
	cmd.WaitDelay = drainTimeout
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	p := &Process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			limitCPU(cmd.Process.Pid, s.cpu)
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		p.out = Output{Stdout: stdout.String(), Stderr: stderr.String()}
		p.err = ended(ctx, cmd, err, p.out.Stderr)
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// ended turns the result of exec's Wait into nil, the context's error or an
// *Exit.
func ended(ctx context.Context, cmd *exec.Cmd, err error, stderr string) error {
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if ctx.Err() != nil && (!errors.As(err, &exit) || !exit.Exited()) {
		return ctx.Err()
	}
	if !errors.As(err, &exit) {
		return err
	}
	e := &Exit{Code: exit.ExitCode(), Message: lastLines(stderr)}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	return e
}

// Wait returns what the process wrote once it has ended, and nil, the ended
// context's error, or an *Exit.
func (p *Process) Wait() (Output, error) {
	<-p.done
	return p.out, p.err
}

// Kill ends the process and its group. Killing one that ended is not an
// error.
func (p *Process) Kill() error {
	select {
	case <-p.done:
		return nil
	default:
		return killGroup(p.cmd.Process.Pid)
	}
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Isolated reports whether the process got network and IPC namespaces of its
// own.
func (p *Process) Isolated() bool { return p.isolated }

// limitCPU caps the processor time of a process that was just started and
// not yet reaped. It fails only when the process has ended already.
func limitCPU(pid int, d time.Duration) {
	if d <= 0 {
		return
	}
	seconds := uint64((d + time.Second - 1) / time.Second)
	_ = unix.Prlimit(pid, unix.RLIMIT_CPU, &unix.Rlimit{Cur: seconds, Max: seconds}, nil)
}

func killGroup(pid int) error {
	if err := syscall.Kill(-pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return nil
}

// head keeps the first MaxOutput bytes written to it.
type head struct{ strings.Builder }

func (h *head) Write(b []byte) (int, error) {
	if room := MaxOutput - h.Len(); room > 0 {
		h.Builder.Write(b[:min(room, len(b))])
	}
	return len(b), nil
}

// lastLines makes one printable line of the end of a tool's message.
func lastLines(s string) string {
	s = strings.TrimSpace(s)
	s = strings.ReplaceAll(s[max(0, len(s)-maxMessage):], "\n", "; ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
