package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// work is one side of a comparison: what is done, how many things it makes at
// once, and whose CPU time counts beside this process and its children.
type work struct {
	name string
	n    int
	do   func(ctx context.Context) error
	pid  int // of a daemon, or 0

	after func(ctx context.Context) error // clears away, unmeasured; may be nil
}

// sample is what one thing took.
type sample struct{ wall, cpu time.Duration }

// compare runs all sides in turn, once to warm up and then for the rounds, and
// prints the medians and their ratios.
func (b *bench) compare(ctx context.Context, title string, ours work, peers ...work) error {
	sides := append([]work{ours}, peers...)
	samples := make([][]sample, len(sides))
	for round := range b.rounds + 1 {
		for i, w := range sides {
			s, err := w.measure(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
			if round > 0 {
				samples[i] = append(samples[i], s)
			}
		}
	}
	fmt.Printf("  %s\n", title)
	x := middle(samples[0])
	printSample(ours, x)
	for i, peer := range peers {
		y := middle(samples[i+1])
		printSample(peer, y)
		fmt.Printf("    %-38s %10.3f      %10.3f\n", "ratio", float64(x.wall)/float64(y.wall), float64(x.cpu)/float64(y.cpu))
	}
	return nil
}

func printSample(w work, s sample) {
	fmt.Printf("    %-38s %10.3f ms   %10.3f ms CPU", w.name, ms(s.wall), ms(s.cpu))
	if w.n > 1 {
		fmt.Printf("   %8.0f/s", 1/s.wall.Seconds())
	}
	fmt.Println()
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

func (w work) measure(ctx context.Context) (sample, error) {
	cpu, begin := cpuOf(w.pid), time.Now()
	err := w.do(ctx)
	wall := time.Since(begin)
	n := time.Duration(max(w.n, 1))
	s := sample{wall / n, (cpuOf(w.pid) - cpu) / n}
	if err == nil && w.after != nil {
		err = w.after(ctx)
	}
	return s, err
}

// middle returns the medians of wall and CPU time, each by itself.
func middle(s []sample) sample {
	var wall, cpu []time.Duration
	for _, x := range s {
		wall, cpu = append(wall, x.wall), append(cpu, x.cpu)
	}
	return sample{median(wall), median(cpu)}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// cpuOf returns the CPU time of this process, its children that have ended, and
// the processes that pid names, with their ended children.
func cpuOf(pid int) time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	if pid == 0 {
		return sum
	}
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|2), &ts) == nil { // CPUCLOCK_SCHED of a process, see clock_getcpuclockid(3)
		sum += time.Duration(ts.Nano())
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:])); len(f) > 14 {
		for _, ticks := range f[13:15] { // cutime, cstime, in 1/100 s
			n, _ := strconv.Atoi(ticks)
			sum += time.Duration(n) * 10 * time.Millisecond
		}
	}
	return sum
}

// flushes returns how many flushes the block device under dir has completed, or
// false where the kernel does not say.
func flushes(dir string) (int, bool) {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0, false
	}
	data, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/stat", unix.Major(st.Dev), unix.Minor(st.Dev)))
	f := strings.Fields(string(data))
	if err != nil || len(f) < 16 {
		return 0, false
	}
	n, err := strconv.Atoi(f[15]) // Documentation/block/stat.rst, "flush I/Os"
	return n, err == nil
}

// machine prints what the figures were measured on.
func machine(dir string) {
	var u unix.Utsname
	_ = unix.Uname(&u)
	cpus, _ := os.ReadFile("/proc/cpuinfo")
	model := "unknown"
	for line := range strings.Lines(string(cpus)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	fmt.Printf("%d CPUs (%s), Linux %s, load %s\n", strings.Count(string(cpus), "processor\t"), model, unix.ByteSliceToString(u.Release[:]), load())
	for _, tool := range [][]string{{"qemu-img", "--version"}, {"virsh", "--version"}, {"findmnt", "-no", "FSTYPE,OPTIONS", "-T", dir}} {
		out, err := exec.Command(tool[0], tool[1:]...).Output()
		if first, _, _ := strings.Cut(string(out), "\n"); err == nil {
			fmt.Printf("%s: %s\n", filepath.Base(tool[0]), first)
		}
	}
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(text))[:1], "")
}

// command runs a program to its end; its output is part of the error.
func command(ctx context.Context, name string, args ...string) error {
	return output(exec.CommandContext(ctx, name, args...))
}

func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, out)
	}
	return nil
}

// parallel calls do n times, from as many goroutines as there are clients.
func parallel(clients, n int, do func() error) error {
	turns, failed := make(chan struct{}, n), make(chan error, clients)
	for range n {
		turns <- struct{}{}
	}
	close(turns)
	for range clients {
		go func() {
			for range turns {
				if err := do(); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	var first error
	for range clients {
		if err := <-failed; first == nil {
			first = err
		}
	}
	return first
}
