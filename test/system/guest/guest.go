// Package guest boots real virtual machines under QEMU and returns what they
// report of their disks. It refuses to interpret the arguments it is given:
// what tarn prints is what QEMU gets.
package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// Machine is a virtual machine that reports over the virtio-serial port
// tarn.report. The zero value of each field but Args serves.
type Machine struct {
	Args    []string            // QEMU's arguments for the disks
	Memory  int                 // MiB; 0 is 512
	Timeout time.Duration       // until the report is complete; 0 is 180 s
	User    *syscall.Credential // who QEMU runs as; nil is the caller
	Console io.Writer           // gets the serial console; may be nil
	Say     func(string)        // told what Boot tries; may be nil
}

const (
	defaultTimeout = 180 * time.Second
	powerOff       = 90 * time.Second // from the report's end to QEMU's exit
	stall          = 12 * time.Second // silence under KVM that means it does not work here
	tailBytes      = 4 << 10
)

// kvmStalled remembers for this process that KVM made no progress: /dev/kvm
// can be opened on machines where no guest ever runs in it.
var kvmStalled atomic.Bool

var errNoLife = errors.New("the guest showed no sign of life")

// Boot starts the machine, waits for its report and for it to power itself
// off. It uses KVM where a guest makes progress in it, else emulation, or what
// TARN_GUEST_ACCEL (kvm or tcg) says. When it returns, QEMU is gone. An error
// carries the end of the serial console.
func (m Machine) Boot(ctx context.Context) (Report, error) {
	say := m.Say
	if say == nil {
		say = func(string) {}
	}
	accel := os.Getenv("TARN_GUEST_ACCEL")
	if accel == "" && !kvmStalled.Load() && writable("/dev/kvm") {
		say("trying KVM")
		r, err := m.run(ctx, "kvm", stall)
		if !errors.Is(err, errNoLife) || ctx.Err() != nil {
			return r, err
		}
		kvmStalled.Store(true)
		say("no guest comes to life under KVM here")
	}
	if accel == "" {
		accel = "tcg"
		say("QEMU emulates the processor, which takes its time")
	}
	return m.run(ctx, accel, 0)
}

func writable(path string) bool {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err == nil
}

// arguments is the whole command line. Console and report are descriptors 3
// and 4: with append=on QEMU does not try to truncate them.
func (m Machine) arguments(accel string) []string {
	memory := m.Memory
	if memory == 0 {
		memory = 512
	}
	return append([]string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-machine", "q35", "-accel", accel, "-m", fmt.Sprint(memory),
		"-add-fd", "fd=3,set=900", "-chardev", "file,id=tarn-console,append=on,path=/dev/fdset/900",
		"-serial", "chardev:tarn-console",
		"-add-fd", "fd=4,set=901", "-chardev", "file,id=tarn-report,append=on,path=/dev/fdset/901",
		"-device", "virtio-serial-pci,id=tarn-serial",
		"-device", "virtserialport,bus=tarn-serial.0,chardev=tarn-report,name=tarn.report",
	}, m.Args...)
}

// run boots once. With silence > 0, that long without a byte ends the try. One
// that ends without any byte is errNoLife.
func (m Machine) run(ctx context.Context, accel string, silence time.Duration) (Report, error) {
	timeout := m.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	deadline := time.AfterFunc(timeout, func() { cancel(fmt.Errorf("no report within %v", timeout)) })
	defer deadline.Stop()

	alive := func() {}
	if silence > 0 {
		watchdog := time.AfterFunc(silence, func() { cancel(errNoLife) })
		defer watchdog.Stop()
		alive = func() { watchdog.Reset(silence) }
	}
	console := &console{copy: m.Console, alive: alive}
	report := Report{Accelerator: accel}
	reported := false
	stderr, err := m.qemu(ctx, accel, console, func(lines io.Reader) error {
		var err error
		reported, err = report.read(lines, alive)
		if reported {
			deadline.Reset(powerOff)
		}
		return err
	})
	switch cause := context.Cause(ctx); {
	case reported && err == nil:
		return report, nil
	case reported:
		return report, fmt.Errorf("guest reported but QEMU did not end well: %w\n%s", err, stderr)
	case cause != nil:
		err = cause
	case err == nil:
		err = errors.New("the guest powered off without a complete report")
	}
	tail, live := console.tail()
	if !live && !errors.Is(err, errNoLife) {
		err = fmt.Errorf("%w: %w", errNoLife, err)
	}
	return report, fmt.Errorf("guest (%s): %w\n%s%s", accel, err, stderr, tail)
}

// read takes lines until the last one of the report, then drains the rest.
func (r *Report) read(from io.Reader, alive func()) (complete bool, err error) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		alive()
		last, err := r.add(lines.Bytes())
		if last || err != nil {
			_, _ = io.Copy(io.Discard, from)
			return last, err
		}
	}
	return false, lines.Err()
}

// qemu runs QEMU in a process group of its own until it ends or ctx does, and
// returns what it said on stderr. Nothing of the group survives, nor QEMU this
// process.
func (m Machine) qemu(ctx context.Context, accel string, console io.Writer, report func(io.Reader) error) (string, error) {
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments(accel)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: m.User}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stderr, &stderr
	consoleR, consoleW, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer consoleR.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		consoleW.Close()
		return "", err
	}
	defer reportR.Close()
	cmd.ExtraFiles = []*os.File{consoleW, reportW}
	err = cmd.Start()
	consoleW.Close()
	reportW.Close()
	if err != nil {
		return "", err
	}
	var readers sync.WaitGroup
	var reportErr error
	readers.Go(func() { _, _ = io.Copy(console, consoleR) })
	readers.Go(func() { reportErr = report(reportR) })
	readers.Wait() // both pipes end with QEMU
	err = cmd.Wait()
	return stderr.String(), errors.Join(reportErr, err)
}

// console keeps the end of what the guest printed.
type console struct {
	copy  io.Writer
	alive func()

	mu  sync.Mutex
	end []byte
}

func (c *console) Write(p []byte) (int, error) {
	c.alive()
	if c.copy != nil {
		_, _ = c.copy.Write(p)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = append(c.end, p...)
	if over := len(c.end) - tailBytes; over > 0 {
		c.end = append(c.end[:0], c.end[over:]...)
	}
	return len(p), nil
}

// tail returns the end of what the guest printed, and whether it printed at all.
func (c *console) tail() (text string, live bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.end) == 0 {
		return "the serial console stayed empty", false
	}
	return "end of the serial console:\n" + strings.ToValidUTF8(string(c.end), "?"), true
}

// Image returns the path of a small bootable raw image whose only process is
// the reporter. It is built once per machine; do not write to it. Where QEMU or
// the image's tools are missing the test is skipped, or fails in CI.
func Image(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		why := "qemu-system-x86_64 is not installed: run scripts/install-deps"
		if os.Getenv("CI") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if path := os.Getenv("TARN_GUEST_IMAGE"); path != "" {
		return path
	}
	_, here, _, _ := runtime.Caller(0)
	build := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(here), "../../guest/build"))
	var stderr strings.Builder
	build.Stderr = &stderr
	out, err := build.Output()
	if err != nil {
		t.Fatalf("build the guest image: %v\n%s", err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}
