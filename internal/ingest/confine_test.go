package ingest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/internal/hostexec"
)

// attempts is everything that a worker must not be able to do, by name. Each
// runs on a thread of its own.
var attempts = map[string]func(p probe) error{
	"open":     func(probe) error { return opened(unix.Open("/etc/passwd", unix.O_RDONLY, 0)) },
	"shadow":   func(probe) error { return opened(unix.Open("/etc/shadow", unix.O_RDONLY, 0)) },
	"maps":     func(probe) error { return opened(unix.Open("/proc/self/maps", unix.O_RDONLY, 0)) },
	"create":   func(probe) error { return opened(unix.Open("/tmp/tarn-worker", unix.O_CREAT|unix.O_RDWR, 0o600)) },
	"stat":     func(probe) error { return unix.Stat("/etc", new(unix.Stat_t)) },
	"unlink":   func(p probe) error { return unix.Unlink(p.File) },
	"truncate": func(p probe) error { return unix.Truncate(p.File, 0) },
	"tcp":      func(p probe) error { return connect(unix.AF_INET, unix.SOCK_STREAM, p.TCP) },
	"udp":      func(p probe) error { return connect(unix.AF_INET, unix.SOCK_DGRAM, p.TCP) },
	"unix": func(p probe) error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Connect(fd, &unix.SockaddrUnix{Name: p.Unix})
	},
	"exec":   func(probe) error { return unix.Exec("/bin/true", []string{"true"}, nil) },
	"kill":   func(p probe) error { return unix.Kill(p.Parent, 0) },
	"tgkill": func(p probe) error { return unix.Tgkill(p.Parent, p.Parent, 0) },
	"ptrace": func(p probe) error { return unix.PtraceAttach(p.Parent) },
	"unshare": func(probe) error {
		runtime.LockOSThread() // never unlocked: the thread dies with its namespace
		return unix.Unshare(unix.CLONE_NEWUSER)
	},
	"io_uring": func(probe) error {
		_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(new([256]byte))), 0)
		return errnoOf(errno)
	},
	"fork": func(probe) error {
		pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		if errno == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
		return errnoOf(errno)
	},
	"raise limit": func(probe) error {
		return unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: maxFiles, Max: maxFiles})
	},
	"write source": func(probe) error {
		_, err := unix.Pwrite(sourceFD, []byte("x"), 0)
		return err
	},
	"write source by a long number": func(probe) error {
		_, _, errno := unix.Syscall6(unix.SYS_PWRITE64, 1<<32|sourceFD, uintptr(unsafe.Pointer(new(byte))), 1, 0, 0, 0)
		return errnoOf(errno)
	},
	"fsync": func(probe) error { return unix.Fsync(sourceFD) },
	"start write-back": func(probe) error {
		return unix.SyncFileRange(sourceFD, 0, 0, unix.SYNC_FILE_RANGE_WRITE)
	},
	"wait for write-back": func(probe) error {
		return unix.SyncFileRange(sourceFD, 0, 0, unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER)
	},
	"map source": func(probe) error {
		_, err := unix.Mmap(sourceFD, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		return err
	},
	"map code": func(probe) error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
		return err
	},
	"memory": func(probe) error {
		for range 8 {
			if _, err := unix.Mmap(-1, 0, dataLimit/4, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE); err != nil {
				return err
			}
		}
		return nil
	},
	"descriptors": func(probe) error {
		for range maxFiles + 1 {
			fd, err := unix.Dup(sourceFD)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
		}
		return nil
	},
}

// probe asks a probe process which layers to put on and what to attempt.
type probe struct {
	Limits, Landlock, Seccomp bool
	Attempts                  []string
	File, Unix                string
	TCP, Parent               int
}

// probeMain is the life of a probe: descriptor 4 carries a probe in and the
// errno of each attempt out.
func probeMain() {
	control := os.NewFile(controlFD, "control")
	var p probe
	if err := json.NewDecoder(control).Decode(&p); err != nil {
		panic(err)
	}
	if p.Limits {
		must(limit(dataLimit))
	}
	if p.Landlock {
		if _, err := restrictFiles(); err != nil {
			panic(err)
		}
	}
	if p.Seccomp {
		must(filterCalls())
	}
	got := map[string]unix.Errno{}
	for _, name := range p.Attempts {
		result := make(chan error)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			result <- attempts[name](p)
		}()
		got[name] = 0
		if err := <-result; err != nil {
			var no unix.Errno
			if !errors.As(err, &no) {
				panic(err)
			}
			got[name] = no
		}
	}
	b, err := json.Marshal(got)
	must(err)
	_, err = descriptor(controlFD).Write(b)
	must(err)
	os.Exit(0)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func opened(fd int, err error) error {
	if err == nil {
		unix.Close(fd)
	}
	return err
}

func errnoOf(no unix.Errno) error {
	if no != 0 {
		return no
	}
	return nil
}

func connect(family, kind, port int) error {
	fd, err := unix.Socket(family, kind, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a := &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
	if kind == unix.SOCK_DGRAM {
		return unix.Sendto(fd, []byte("x"), 0, a)
	}
	return unix.Connect(fd, a)
}

// runProbe runs p in a process of its own and returns the errno of every
// attempt, or how the process ended.
func runProbe(t *testing.T, p probe, user *hostexec.User, isolate bool) (map[string]unix.Errno, error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "probe") // every user can reach it
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	p.File, p.Parent = filepath.Join(dir, "victim"), os.Getpid()
	if err := errors.Join(os.WriteFile(p.File, []byte("victim"), 0o666), os.Chmod(p.File, 0o666)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p.TCP = l.Addr().(*net.TCPAddr).Port
	p.Unix = filepath.Join(dir, "s")
	u, err := net.Listen("unix", p.Unix)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if err := os.Chmod(p.Unix, 0o777); err != nil {
		t.Fatal(err)
	}
	source, err := os.Create(filepath.Join(dir, "source"))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	if err := source.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	proc, err := hostexec.StartSelf(t.Context(), hostexec.Self{Mode: "probe", Files: []*os.File{source, theirs}, User: user, Isolate: isolate})
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(ours).Encode(p); err != nil {
		t.Fatal(err)
	}
	got := map[string]unix.Errno{}
	decodeErr := json.NewDecoder(ours).Decode(&got)
	if _, err := proc.Wait(); err != nil {
		return nil, err
	}
	if decodeErr != nil {
		return nil, fmt.Errorf("no answer: %w", decodeErr)
	}
	b, err := os.ReadFile(source.Name())
	if p.Seccomp && (err != nil || !slices.Equal(b, make([]byte, 4096))) {
		t.Errorf("the source was changed: %v", err)
	}
	return got, nil
}

const none = unix.Errno(0)

// TestLayers puts each layer on alone, and all together.
func TestLayers(t *testing.T) {
	user := Config{}.withDefaults().User
	eperm := func(names ...string) map[string]unix.Errno {
		m := map[string]unix.Errno{}
		for _, n := range names {
			m[n] = unix.EPERM
		}
		return m
	}
	all := eperm("open", "shadow", "maps", "create", "stat", "unlink", "truncate", "tcp", "udp", "unix", "exec", "kill", "tgkill", "ptrace",
		"unshare", "io_uring", "fork", "raise limit", "write source", "map source", "map code", "descriptors",
		"fsync", "wait for write-back")
	all["start write-back"] = none
	all["write source by a long number"] = unix.EPERM
	for _, row := range []struct {
		name    string
		probe   probe
		isolate bool
		want    map[string]unix.Errno
	}{
		{"nothing", probe{}, false, map[string]unix.Errno{
			"open": none, "stat": none, "tcp": none, "unix": none, "fork": none, "truncate": none,
			"write source": none, "map code": none, "memory": none, "descriptors": none,
		}},
		{"namespaces", probe{}, true, map[string]unix.Errno{
			"tcp": unix.ENETUNREACH, "udp": unix.ENETUNREACH, "open": none,
		}},
		{"limits", probe{Limits: true}, false, map[string]unix.Errno{
			"memory": unix.ENOMEM, "descriptors": unix.EMFILE, "open": none,
		}},
		{"landlock", probe{Landlock: true}, false, map[string]unix.Errno{
			"open": unix.EACCES, "maps": unix.EACCES, "create": unix.EACCES, "unlink": unix.EACCES,
			"truncate": unix.EACCES, "tcp": unix.EACCES, "exec": unix.EACCES, "stat": none, "memory": none,
		}},
		{"seccomp", probe{Seccomp: true}, false, all},
		{"everything", probe{Limits: true, Landlock: true, Seccomp: true}, true, func() map[string]unix.Errno {
			m := map[string]unix.Errno{"memory": unix.ENOMEM}
			for k, v := range all {
				m[k] = v
			}
			return m
		}()},
	} {
		t.Run(row.name, func(t *testing.T) {
			if row.name == "namespaces" && os.Getuid() != 0 {
				t.Skip("only root gets namespaces without a user namespace")
			}
			for name := range row.want {
				row.probe.Attempts = append(row.probe.Attempts, name)
			}
			slices.Sort(row.probe.Attempts)
			got, err := runProbe(t, row.probe, user, row.isolate)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range row.want {
				if got[name] != want {
					t.Errorf("%s: got %d (%v), want %d (%v)", name, int(got[name]), got[name], int(want), want)
				}
			}
		})
	}
}

// TestEveryRunIsConfined starts many workers: a filter that misses one way in
// which the runtime makes threads fails only sometimes.
func TestEveryRunIsConfined(t *testing.T) {
	for i := range 40 {
		r, err := Confinement(t.Context(), Config{})
		if err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		if !r.Seccomp || r.UID == 0 {
			t.Fatalf("run %d: %+v", i, r)
		}
		if os.Getuid() == 0 && !r.Namespaces {
			t.Fatalf("run %d: root's worker has no namespaces of its own: %+v", i, r)
		}
	}
}

// checkThreads demands that every thread of a process is filtered and can gain
// no privilege.
func checkThreads(t *testing.T, pid int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/task", pid)
	tasks, err := os.ReadDir(dir)
	if err != nil || len(tasks) < 2 {
		t.Fatalf("%d threads, %v: the test shows nothing", len(tasks), err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(filepath.Join(dir, task.Name(), "status"))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"Seccomp:\t2\n", "NoNewPrivs:\t1\n"} {
			if !strings.Contains(string(status), line) {
				t.Errorf("thread %s lacks %q:\n%s", task.Name(), line, status)
			}
		}
	}
}

func TestEveryThreadIsFiltered(t *testing.T) {
	s, err := Open(t.Context(), Config{}, Source{File: writeFile(t, mixed(1, 8*mib))}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	checkThreads(t, s.proc.Pid())
}

// shippedBinary returns a tarnd as users get it: out of TARN_TEST_BIN where that
// is set, else built here.
func shippedBinary(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("TARN_TEST_BIN"); dir != "" {
		return filepath.Join(dir, "tarnd")
	}
	bin := filepath.Join(t.TempDir(), "tarnd")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", bin, "github.com/tarn-storage/tarn/cmd/tarnd")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// TestShippedBinary looks at the worker of the daemon that users get.
func TestShippedBinary(t *testing.T) {
	bin := shippedBinary(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	cmd := exec.CommandContext(t.Context(), bin, "worker")
	cmd.ExtraFiles = []*os.File{writeFile(t, mixed(1, mib)), theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	buf := make([]byte, maxMessage)
	n, err := descriptor(fds[0]).Read(buf)
	var r reply
	if err != nil || json.Unmarshal(buf[:n], &r) != nil || r.Layers == nil || !r.Layers.Seccomp {
		t.Errorf("the worker says %q, %v", buf[:max(n, 0)], err)
	} else {
		checkThreads(t, cmd.Process.Pid)
	}
	ours.Close() // the end of the daemon is the end of its worker
	if err := cmd.Wait(); err != nil {
		t.Errorf("the worker ended with %v", err)
	}
}
