package hostexec

import (
	"context"
	"errors"
	"io"
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

	output int  // bytes to keep of each stream; 0 is MaxOutput
	finish bool // ctx does not end it, and it writes to what outlives this process
}

// groupLeader returns the attributes of every process that may be stopped: a group of its own,
// which is killed as a whole, and death with the thread that started it.
func groupLeader() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// start starts a process and reaps it on a thread that lives as long as the
// process does: Pdeathsig is sent when the starting thread ends, not when the
// starting process does.
func start(ctx context.Context, s spec) (*Process, error) {
	if s.finish {
		ctx = context.WithoutCancel(ctx)
	}
	stdout, stderr := head{limit: s.output}, head{limit: s.output}
	cmd := exec.CommandContext(ctx, s.path)
	cmd.Args, cmd.Env, cmd.ExtraFiles, cmd.SysProcAttr = s.argv, environment(), s.files, s.attr
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	written := func() {}
	if s.finish {
		var err error
		if written, err = lasting(cmd, &stdout, &stderr); err != nil {
			return nil, err
		}
	}
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
			written()
			return
		}
		err = cmd.Wait()
		written()
		p.out = Output{Stdout: stdout.String(), Stderr: stderr.String()}
		p.err = ended(ctx, cmd, err, p.out.Stderr)
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// lasting gives cmd files in memory to write to: a pipe that nobody reads any
// more would end it. written reads them and lets go of them.
func lasting(cmd *exec.Cmd, stdout, stderr *head) (written func(), err error) {
	var files [2]*os.File
	for i := range files {
		fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
		if err != nil {
			if i > 0 {
				files[0].Close()
			}
			return nil, os.NewSyscallError("memfd_create", err)
		}
		files[i] = os.NewFile(uintptr(fd), "output")
	}
	cmd.Stdout, cmd.Stderr = files[0], files[1]
	return func() {
		for i, to := range []*head{stdout, stderr} {
			_, _ = io.Copy(to, io.NewSectionReader(files[i], 0, to.room()))
			files[i].Close()
		}
	}, nil
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

// again is how often a process is asked to end: a daemon that looks whether it was
// asked and then sleeps can miss a signal in between.
const again = 500 * time.Millisecond

// Stop asks the process to end (SIGTERM) until it has, and kills it when it has
// not after grace.
func (p *Process) Stop(grace time.Duration) {
	late, ask := time.NewTimer(grace), time.NewTicker(again)
	defer late.Stop()
	defer ask.Stop()
	for {
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		select {
		case <-p.done:
			return
		case <-late.C:
			_ = p.Kill()
			<-p.done
			return
		case <-ask.C:
		}
	}
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

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

// head keeps the first bytes written to it, as many as its limit says.
type head struct {
	strings.Builder
	limit int // 0 is MaxOutput
}

func (h *head) Write(b []byte) (int, error) {
	h.Builder.Write(b[:min(h.room(), int64(len(b)))])
	return len(b), nil
}

// room is how many more bytes it keeps.
func (h *head) room() int64 {
	limit := h.limit
	if limit == 0 {
		limit = MaxOutput
	}
	return int64(limit - h.Len())
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
