package ingest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// traced is a worker under ptrace since its first instruction: a process that
// cannot be dumped may no longer be attached to, nor may its memory be written.
// What it is told to use it reads from its source. All calls come from one
// thread.
type traced struct {
	pid    int
	source *os.File
}

// start starts cmd and lets it run.
func (p *traced) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	p.pid = cmd.Process.Pid
	if _, err := p.stopped(); err != nil { // at its start
		return err
	}
	return syscall.PtraceCont(p.pid, 0)
}

// stopped waits until the main thread stops, and returns the signal.
func (p *traced) stopped() (syscall.Signal, error) {
	var status syscall.WaitStatus
	_, err := syscall.Wait4(p.pid, &status, syscall.WALL, nil)
	if err == nil && !status.Stopped() {
		err = fmt.Errorf("the process ended with %#x", status)
	}
	return status.StopSignal(), err
}

// pause has the main thread stop.
func (p *traced) pause() error { return unix.Tgkill(p.pid, p.pid, unix.SIGSTOP) }

// halted waits for a pause, inside a system call.
func (p *traced) halted() error {
	for {
		signal, err := p.stopped()
		if err != nil {
			return err
		}
		if signal != syscall.SIGSTOP {
			if err := syscall.PtraceCont(p.pid, int(signal)); err != nil {
				return err
			}
			continue
		}
		var regs syscall.PtraceRegs
		if err := syscall.PtraceGetRegs(p.pid, &regs); err != nil || int64(regs.Orig_rax) >= 0 {
			return err
		}
		if err := errors.Join(syscall.PtraceCont(p.pid, 0), p.pause()); err != nil {
			return err
		}
	}
}

// call has the halted thread make a system call. A []byte is passed by its
// address.
func (p *traced) call(number uint64, args ...any) (uint64, error) {
	var regs syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(p.pid, &regs); err != nil {
		return 0, err
	}
	was := regs
	room := int(regs.Rsp - 512) // behind what the thread may have there
	to := []*uint64{&regs.Rdi, &regs.Rsi, &regs.Rdx, &regs.R10, &regs.R8, &regs.R9}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			*to[i] = uint64(a)
		case []byte:
			*to[i] = uint64(room)
			if _, err := p.source.WriteAt(a, 0); err != nil {
				return 0, err
			}
			if n, err := p.call(unix.SYS_PREAD64, sourceFD, room, len(a), 0); err != nil || n != uint64(len(a)) {
				return 0, fmt.Errorf("it read %d bytes of %d: %v", n, len(a), err)
			}
		}
	}
	regs.Rip, regs.Rax, regs.Orig_rax = regs.Rip-2, number, ^uint64(0) // the instruction again
	if err := syscall.PtraceSetRegs(p.pid, &regs); err != nil {
		return 0, err
	}
	for signal := syscall.SIGSTOP; signal != syscall.SIGTRAP; {
		err := syscall.PtraceSingleStep(p.pid)
		if err == nil {
			signal, err = p.stopped()
		}
		if err != nil {
			return 0, err
		}
	}
	if err := errors.Join(syscall.PtraceGetRegs(p.pid, &regs), syscall.PtraceSetRegs(p.pid, &was)); err != nil {
		return 0, err
	}
	if no := -int64(regs.Rax); no > 0 && no < 4096 {
		return 0, syscall.Errno(no)
	}
	return regs.Rax, nil
}

// TestShippedWorkerIsTold makes the worker of the daemon that users get do what
// an image that took it over would: the process itself is told, by a debugger.
func TestShippedWorkerIsTold(t *testing.T) {
	runtime.LockOSThread() // a debugger is a thread
	defer runtime.UnlockOSThread()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	p := traced{source: writable(t, writeFile(t, mixed(1, mib)))}
	cmd := exec.Command(shippedBinary(t), "worker")
	cmd.ExtraFiles = []*os.File{p.source, theirs}
	if err := p.start(cmd); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	defer func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}()
	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, maxMessage)
		n, err := descriptor(fds[0]).Read(buf)
		var r reply
		if err == nil && (json.Unmarshal(buf[:n], &r) != nil || r.Layers == nil) {
			err = fmt.Errorf("the worker says %q", buf[:n])
		}
		ready <- errors.Join(err, p.pause())
	}()
	if err := p.halted(); err != nil {
		t.Fatal(err)
	}
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	path := func(s string) []byte { return append([]byte(s), 0) }
	web := binary.BigEndian.AppendUint16([]byte{unix.AF_INET, 0}, 443)
	web = append(web, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
	const cwd, private, writable = unix.AT_FDCWD, unix.MAP_ANONYMOUS | unix.MAP_PRIVATE, unix.PROT_READ | unix.PROT_WRITE
	for _, row := range []struct {
		name   string
		number uint64
		args   []any
		want   error
	}{
		{"which process it is", unix.SYS_GETPID, nil, nil},
		{"take some memory", unix.SYS_MMAP, []any{0, mib, writable, private, -1, 0}, nil},
		{"take more memory than its bound", unix.SYS_MMAP, []any{0, dataLimit, writable, private, -1, 0}, syscall.ENOMEM},
		{"open a host file", unix.SYS_OPENAT, []any{cwd, path("/etc/passwd"), unix.O_RDONLY, 0}, syscall.EPERM},
		{"open a secret", unix.SYS_OPEN, []any{path("/etc/shadow"), unix.O_RDONLY, 0}, syscall.EPERM},
		{"make a file", unix.SYS_OPENAT, []any{cwd, path("/tmp/tarn-worker"), unix.O_CREAT | unix.O_WRONLY, 0o600}, syscall.EPERM},
		{"make a socket", unix.SYS_SOCKET, []any{unix.AF_INET, unix.SOCK_STREAM, 0}, syscall.EPERM},
		{"connect", unix.SYS_CONNECT, []any{controlFD, web, len(web)}, syscall.EPERM},
		{"start a program", unix.SYS_EXECVE, []any{path("/bin/true"), 0, 0}, syscall.EPERM},
		{"start a process", unix.SYS_CLONE, []any{int(unix.SIGCHLD), 0, 0, 0, 0}, syscall.EPERM},
		{"end its daemon", unix.SYS_KILL, []any{os.Getpid(), 0}, syscall.EPERM},
		{"write to the image", unix.SYS_PWRITE64, []any{sourceFD, path("x"), 1, 0}, syscall.EPERM},
	} {
		got, err := p.call(row.number, row.args...)
		if err != row.want {
			t.Errorf("told to %s the worker gets %d, %v, want %v", row.name, got, err, row.want)
		}
		if row.number == unix.SYS_GETPID && got != uint64(p.pid) {
			t.Errorf("the worker is process %d, it says %d: the test shows nothing", p.pid, got)
		}
	}
}
