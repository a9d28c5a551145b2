// Package hostexec is the only starter of processes in tarn: external tools
// (Run) and the confined worker, which is tarn's own binary (StartSelf). It
// refuses shells, inherited environments, unbounded output and any argument
// word whose place in argv a value could change.
package hostexec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// Program is one external tool that tarn may start.
type Program int

// The programs. Their zero value is none of them.
const (
	MkfsExt4 Program = iota + 1
	MkfsXFS
	MkfsVFAT
	MkfsBtrfs
	Mount
	Umount
	Wipefs
	LVM // one program of many commands: the first word says which
	Dmsetup
	RBD
	Ceph
	Rados
	QemuStorageDaemon
)

type program struct {
	name       string // looked up in searchPath, never in the caller's PATH
	debian     string // the Debian package that holds it
	terminator bool   // whether "--" ends its options
}

var programs = map[Program]program{
	MkfsExt4: {"mkfs.ext4", "e2fsprogs", true},
	MkfsXFS:  {"mkfs.xfs", "xfsprogs", true},
	MkfsVFAT: {"mkfs.vfat", "dosfstools", true},

	MkfsBtrfs: {"mkfs.btrfs", "btrfs-progs", true},
	Mount:     {"mount", "mount", true},
	Umount:    {"umount", "mount", true},
	Wipefs:    {"wipefs", "util-linux", true},

	LVM:     {"lvm", "lvm2", true},
	Dmsetup: {"dmsetup", "dmsetup", true},

	RBD:               {"rbd", "ceph-common", false},
	Ceph:              {"ceph", "ceph-common", false},
	Rados:             {"rados", "ceph-common", false},
	QemuStorageDaemon: {"qemu-storage-daemon", "qemu-system-common", false},
}

// searchPath is where programs are looked for, and PATH of what is started.
var searchPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// environment is the whole environment of every process that is started. A
// crashing worker says nothing of its memory.
func environment() []string {
	return append([]string{"PATH=" + searchPath, "LC_ALL=C", "GOTRACEBACK=none"}, detector...)
}

// detector is what a build with the race detector tells its like.
var detector []string

// String returns the program's name as it is looked up.
func (p Program) String() string {
	if s, ok := programs[p]; ok {
		return s.name
	}
	return fmt.Sprintf("program(%d)", int(p))
}

// Find returns the absolute path of p. A program that is not installed is
// errs.Unavailable with the package that holds it as the hint.
func (p Program) Find() (string, error) {
	s, ok := programs[p]
	if !ok {
		return "", errs.New(errs.Internal, "tool.find", p.String(), "no such program is known")
	}
	for _, dir := range filepath.SplitList(searchPath) {
		path := filepath.Join(dir, s.name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", errs.New(errs.Unavailable, "tool.find", s.name, "%s is not installed on this host", s.name).
		WithHint("install it: apt-get install %s", s.debian)
}

// Call is one run of a program.
type Call struct {
	Program  Program
	Options  []Option
	Operands []Value
	CPU      time.Duration // processor time after which it is killed; 0 is no limit
	Query    bool          // it changes nothing, so it is no effect
	Finish   bool          // it must not be stopped half-way: the end of neither ctx nor this process ends it
	Output   int           // bytes of each stream that are kept; 0 is MaxOutput
	Files    []*os.File    // its descriptors from 3 on, before those that argv names
}

// Output is what a process wrote, each stream cut at MaxOutput bytes or what its
// Call says.
type Output struct {
	Stdout, Stderr string
}

// Run starts c's program and waits for it. Standard input is /dev/null, and
// the environment is fixed. When ctx ends first, the
// program and all processes of its group are killed and the error's kind is
// errs.Cancelled, unless c says Finish: then Run waits for it, and it goes on
// in a session of its own when this process is killed. A program that is missing is errs.Unavailable, one that
// reports a full file system errs.NoSpace, every other failure errs.Internal;
// the cause of a failed run is an *Exit. The run is one effect (faults.Tool),
// but for a Query.
func Run(ctx context.Context, c Call) (Output, error) {
	const op = "tool.run"
	name := c.Program.String()
	s, err := c.spec(ctx, op)
	if err != nil {
		return Output{}, err
	}
	var out Output
	run := func() error {
		p, err := start(ctx, s)
		if err != nil {
			return errs.Wrap(err, op, name)
		}
		out, err = p.Wait()
		return failure(op, name, err)
	}
	if c.Query {
		err = run()
	} else {
		err = faults.Do(faults.Tool, name, run)
	}
	return out, err
}

// Serve starts c's program and leaves it running until Stop, Kill, the end of
// ctx, or the end of this process however that comes: then it is told to end
// (SIGTERM), so that it lets go of what it holds. What it does is told to it over
// its descriptors; the start itself is no effect.
func Serve(ctx context.Context, c Call) (*Process, error) {
	const op = "tool.serve"
	s, err := c.spec(ctx, op)
	if err != nil {
		return nil, err
	}
	s.attr.Pdeathsig = syscall.SIGTERM
	p, err := start(ctx, s)
	return p, errs.Wrap(err, op, c.Program.String())
}

// spec is how c is started.
func (c Call) spec(ctx context.Context, op string) (spec, error) {
	if err := ctx.Err(); err != nil {
		return spec{}, errs.Wrap(err, op, c.Program.String())
	}
	path, err := c.Program.Find()
	if err != nil {
		return spec{}, err
	}
	argv, files, err := c.words(path)
	s := spec{path: path, argv: argv, files: files, attr: groupLeader(), cpu: c.CPU, output: c.Output, finish: c.Finish}
	if c.Finish {
		s.attr = &syscall.SysProcAttr{Setsid: true}
	}
	return s, err
}

// Exit is how a process that was started ended when it did not end well.
type Exit struct {
	Code    int            // the exit status, or -1 when a signal ended it
	Signal  syscall.Signal // 0 when it exited by itself
	Message string         // the end of what it wrote to standard error, one line
}

// Error says how the process ended and repeats its own message.
func (e *Exit) Error() string {
	how := fmt.Sprintf("exit status %d", e.Code)
	if e.Signal != 0 {
		how = "killed by signal: " + e.Signal.String()
	}
	if e.Message == "" {
		return how
	}
	return how + ": " + e.Message
}

// failure gives the error of a finished process its kind.
func failure(op, subject string, err error) error {
	var exit *Exit
	if !errors.As(err, &exit) {
		return errs.Wrap(err, op, subject)
	}
	kind := errs.Internal
	text := strings.ToLower(exit.Message) // under LC_ALL=C these are strerror's words
	switch {
	case strings.Contains(text, syscall.ENOSPC.Error()):
		kind = errs.NoSpace
	case strings.Contains(text, syscall.EDQUOT.Error()):
		kind = errs.Quota
	}
	return errs.New(kind, op, subject, "%w", exit)
}
