package ingest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"

	seccomp "github.com/elastic/go-seccomp-bpf"
	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// What the worker may use. dataLimit is counted from what the runtime and the
// binary take at the start; heapTarget makes the collector work before the
// limit is met.
const (
	dataLimit  = 384 << 20
	heapTarget = 160 << 20
	maxFiles   = 32
)

// Layers says which parts of the confinement a worker has. Seccomp is there
// always: a worker without it reads nothing.
type Layers struct {
	Seccomp    bool `json:"seccomp"`
	Landlock   int  `json:"landlock"`   // the kernel's ABI version, 0 when it has none
	Namespaces bool `json:"namespaces"` // network and IPC namespaces of its own
	UID        int  `json:"uid"`
}

// confine takes everything from this process but its memory and its open
// descriptors, and proves that on several threads before it returns. The order
// matters: limits and landlock need system calls that the filter forbids.
func confine() (Layers, error) {
	l := Layers{UID: os.Getuid()}
	debug.SetGCPercent(-1) // a conversion makes little garbage: collect when the target is met
	debug.SetMemoryLimit(heapTarget)
	if err := limit(dataLimit); err != nil {
		return l, err
	}
	var err error
	if l.Landlock, err = restrictFiles(); err != nil {
		return l, err
	}
	if err := filterCalls(); err != nil {
		return l, err
	}
	l.Seccomp = true
	return l, nil
}

// limit bounds memory (by RLIMIT_DATA: RLIMIT_AS would count what Go only
// reserves), core files and descriptors.
func limit(data uint64) error {
	used, err := dataInUse()
	if err != nil {
		return err
	}
	for _, r := range []struct {
		which int
		max   uint64
	}{{unix.RLIMIT_DATA, used + data}, {unix.RLIMIT_CORE, 0}, {unix.RLIMIT_NOFILE, maxFiles}} {
		if err := unix.Setrlimit(r.which, &unix.Rlimit{Cur: r.max, Max: r.max}); err != nil {
			return fmt.Errorf("resource limit %d: %w", r.which, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("not dumpable: %w", err)
	}
	return nil
}

// dataInUse returns how many bytes the kernel counts against RLIMIT_DATA now.
func dataInUse() (uint64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if text, ok := strings.CutPrefix(line, "VmData:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(text), "kB")), 10, 53)
			return kib << 10, err
		}
	}
	return 0, errors.New("/proc/self/status has no VmData")
}

// restrictFiles applies landlock without any rule to all threads and returns
// the kernel's ABI version. A kernel without landlock is no error.
func restrictFiles() (int, error) {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch errno {
	case 0:
	case unix.ENOSYS, unix.EOPNOTSUPP:
		return 0, nil
	default:
		return 0, fmt.Errorf("landlock: %w", errno)
	}
	if err := landlock.V7.BestEffort().Restrict(); err != nil {
		return 0, fmt.Errorf("landlock: %w", err)
	}
	err := onThreads(func() error { return denied("open", openRoot(), unix.EACCES) })
	return int(abi), err
}

// filterCalls installs the system call filters on all threads. TSYNC_ESRCH
// makes a thread that could not be filtered an error; without it the kernel
// answers with that thread's id, which reads as success.
func filterCalls() error {
	for _, p := range policies() {
		err := seccomp.LoadFilter(seccomp.Filter{
			NoNewPrivs: true,
			Flag:       seccomp.FilterFlagTSync | seccomp.FilterFlag(unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH),
			Policy:     p,
		})
		if err != nil {
			return fmt.Errorf("seccomp: %w", err)
		}
	}
	return onThreads(func() error {
		if err := denied("open", openRoot(), unix.EPERM); err != nil {
			return err
		}
		_, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		return denied("socket", err, unix.EPERM)
	})
}

// policies returns the filters in the order of their installation: those that
// look at arguments, then the list of what Go's runtime and the worker need.
// The kernel runs all of them and the strictest answer counts.
//
// A filter has one call with conditions, and it comes last, because the library
// compares what follows a failed condition with the argument instead of the
// call's number. Descriptors are compared by order, because the kernel ignores
// their upper half and the filter sees it.
func policies() []seccomp.Policy {
	const eperm = seccomp.ActionErrno
	arg := func(n uint32, op seccomp.Operation, v uint64) seccomp.ArgumentConditions {
		return seccomp.ArgumentConditions{{Argument: n, Operation: op, Value: v}}
	}
	call := func(action seccomp.Action, name string, or ...seccomp.ArgumentConditions) seccomp.SyscallGroup {
		g := seccomp.SyscallGroup{Action: action}
		for _, c := range or {
			g.NamesWithCondtions = append(g.NamesWithCondtions, seccomp.NameWithConditions{Name: name, Conditions: c})
		}
		return g
	}
	deny := func(name string, or ...seccomp.ArgumentConditions) seccomp.Policy {
		return seccomp.Policy{DefaultAction: seccomp.ActionAllow, Syscalls: []seccomp.SyscallGroup{call(eperm, name, or...)}}
	}
	// Threads as Go makes them, without and with CLONE_SETTLS, and as a C
	// library makes them for Go.
	const thread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD
	const cThread = thread | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
	return []seccomp.Policy{
		// Descriptors come over the control socket alone.
		deny("recvmsg", arg(0, seccomp.NotEqual, controlFD)),
		// The runtime preempts its own threads by signals; other processes of
		// this user get none.
		deny("tgkill", arg(0, seccomp.NotEqual, uint64(os.Getpid()))),
		// The source is never written, even if its descriptor would allow it,
		// nor mapped; no memory becomes executable.
		deny("write", arg(0, seccomp.Equal, sourceFD), arg(0, seccomp.GreaterOrEqual, maxFiles)),
		deny("pwrite64", arg(0, seccomp.Equal, sourceFD), arg(0, seccomp.GreaterOrEqual, maxFiles)),
		// Write-back is started, never waited for: waiting would take a failed
		// write's error, which the daemon's sync must see.
		deny("sync_file_range", arg(3, seccomp.NotEqual, unix.SYNC_FILE_RANGE_WRITE)),
		deny("mmap", arg(3, seccomp.BitsNotSet, unix.MAP_ANONYMOUS), arg(2, seccomp.BitsSet, unix.PROT_EXEC)),
		deny("mprotect", arg(2, seccomp.BitsSet, unix.PROT_EXEC)),
		{DefaultAction: eperm, Syscalls: []seccomp.SyscallGroup{
			// A C library falls back to clone, whose flags a filter can see.
			{Action: eperm | seccomp.Action(unix.ENOSYS), Names: []string{"clone3"}},
			{Action: seccomp.ActionAllow, Names: allowed},
			call(seccomp.ActionAllow, "clone", arg(0, seccomp.Equal, thread),
				arg(0, seccomp.Equal, thread|unix.CLONE_SETTLS), arg(0, seccomp.Equal, cThread)),
		}},
	}
}

// allowed is every call but clone that may pass, some of them with arguments
// that another filter judges.
var allowed = []string{
	"read", "write", "pread64", "pwrite64", "sync_file_range", "lseek", "fstat", "close", "ppoll", "recvmsg",
	"mmap", "munmap", "mprotect", "madvise", "brk",
	"futex", "nanosleep", "clock_nanosleep", "clock_gettime", "sched_yield", "sched_getaffinity",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
	"gettid", "getpid", "getuid", "tgkill", "set_robust_list", "rseq",
	"epoll_create1", "eventfd2", "epoll_pwait", "epoll_ctl",
	"exit", "exit_group", "getrandom",
}

func openRoot() error {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// denied turns the result of an attempt into an error unless it was refused as
// it must be.
func denied(what string, got error, want unix.Errno) error {
	if got == want {
		return nil
	}
	return fmt.Errorf("confinement does not hold: %s gave %v instead of %v", what, got, want)
}

// onThreads runs check on several threads at once, old and new ones.
func onThreads(check func() error) error {
	const n = 4
	var ready, done sync.WaitGroup
	ready.Add(n)
	result := make([]error, n)
	for i := range result {
		done.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			ready.Done()
			ready.Wait()
			result[i] = check()
		})
	}
	done.Wait()
	return errors.Join(result...)
}
