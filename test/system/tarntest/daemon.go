package tarntest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ready is how long a start may take. It is far above what one takes, because
// the machine may be busy.
const ready = 60 * time.Second

// Daemon is a tarnd, running or not, on a state directory and a socket that
// outlive its processes.
type Daemon struct {
	StateDir string
	Socket   string
	Config   string // a file for --config; empty: none

	t    testing.TB
	bin  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	log  log
}

// log collects what all processes of a daemon said.
type log struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// New returns a daemon that is not running yet.
func New(t testing.TB, stateDir string) *Daemon {
	t.Helper()
	d := &Daemon{StateDir: stateDir, t: t, bin: Binaries(t)}
	short, err := os.MkdirTemp("", "t") // a socket's path has 107 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	d.Socket = filepath.Join(short, "s")
	t.Cleanup(func() {
		d.Kill()
		os.RemoveAll(short)
	})
	return d
}

// Start starts a daemon on stateDir that is killed when t ends.
func Start(t testing.TB, stateDir string) *Daemon {
	t.Helper()
	d := New(t, stateDir)
	d.Start()
	return d
}

// Start runs the daemon and returns when it answers.
func (d *Daemon) Start() {
	d.t.Helper()
	if err := d.TryStart(); err != nil {
		d.t.Fatalf("tarntest: %v", err)
	}
}

// TryStart is Start where the daemon may refuse; the error has what it said.
func (d *Daemon) TryStart() error {
	if d.cmd != nil {
		return errors.New("tarnd runs already")
	}
	before := len(d.Log())
	sock := d.Socket + ".notify"
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer os.Remove(sock)
	defer notify.Close()
	args := []string{"--state-dir", d.StateDir, "--socket", d.Socket}
	if d.Config != "" {
		args = append(args, "--config", d.Config)
	}
	cmd := exec.Command(filepath.Join(d.bin, "tarnd"), args...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+sock)
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its state has the status
		notify.Close() // ends the wait below
		close(done)
	}()
	if err := notify.SetReadDeadline(time.Now().Add(ready)); err != nil {
		return err
	}
	buf := make([]byte, 256)
	n, err := notify.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "READY=1") {
		_ = cmd.Process.Kill()
		<-done
		return fmt.Errorf("tarnd did not start: %v\n%s", cmd.ProcessState, d.Log()[before:])
	}
	d.cmd, d.done = cmd, done
	return nil
}

// Stop ends the daemon in an orderly way, which must take its status to 0.
func (d *Daemon) Stop() {
	d.t.Helper()
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(ready):
		d.t.Fatalf("tarnd did not stop within %v", ready)
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		d.t.Errorf("tarnd ended with %v\n%s", d.cmd.ProcessState, clip(d.Log()))
	}
	d.cmd = nil
}

// Kill ends the daemon with SIGKILL and returns when it is gone.
func (d *Daemon) Kill() { d.KillAnd(func() {}) }

// KillAnd is Kill, with more that happens at that very moment: the daemon does
// nothing any more, and a system call it was in may have come to any point.
func (d *Daemon) KillAnd(more func()) {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	more()
	<-d.done
	d.cmd = nil
}

// Restart is Stop and Start.
func (d *Daemon) Restart() {
	d.t.Helper()
	d.Stop()
	d.Start()
}

// LoseDatabase stops the daemon, deletes every record and starts it again.
func (d *Daemon) LoseDatabase() {
	d.t.Helper()
	d.Stop()
	left, err := filepath.Glob(filepath.Join(d.StateDir, "tarn.db*"))
	if err != nil || len(left) == 0 {
		d.t.Fatalf("no database in %s: %v", d.StateDir, err)
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			d.t.Fatal(err)
		}
	}
	d.Start()
}

// Log returns what all processes of the daemon said so far.
func (d *Daemon) Log() string {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	return d.log.text.String()
}

// Warnings returns the lines of the log that are not about normal work.
func (d *Daemon) Warnings() string {
	var out strings.Builder
	for line := range strings.Lines(d.Log()) {
		if !strings.Contains(line, `"level":"INFO"`) {
			out.WriteString(line)
		}
	}
	return clip(out.String())
}
