package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"
)

// syncs counts what a durable root disk costs in calls of the fsync family and
// in flushes of the device, and measures it where a sync takes 2 ms longer.
func (b *bench) syncs(ctx context.Context) error {
	src, err := b.small()
	if err != nil {
		return err
	}
	peer, err := b.overlays(src)
	if err != nil {
		return err
	}
	return errors.Join(b.deviceFlushes(ctx, src, peer), b.traced(ctx, src, peer))
}

// deviceFlushes counts flushes of everybody on the device: the machine has to be
// idle for them to mean anything.
func (b *bench) deviceFlushes(ctx context.Context, src string, peer func(string) []string) error {
	if _, ok := flushes(b.dir); !ok {
		fmt.Println("  device flushes are left out: the kernel does not show them for this file system")
		return nil
	}
	d, err := b.ready(ctx, src)
	if err != nil {
		return err
	}
	defer d.stop()
	count := func(name string, clients, n int, do func() error) error {
		before, _ := flushes(b.dir)
		err := parallel(clients, n, do)
		after, _ := flushes(b.dir)
		fmt.Printf("    %-38s %10.2f device flushes each\n", name, float64(after-before)/float64(n))
		return err
	}
	ours := func() error { return d.disk(ctx, b.name(), "i", "qcow2") }
	return errors.Join(
		count("tarn, one at a time", 1, 50, ours),
		count(fmt.Sprintf("tarn, %d clients", crowd), crowd, 640, ours),
		count("qemu-img, one at a time", 1, 50, func() error { return command(ctx, "qemu-img", peer(b.name())...) }),
	)
}

// delay is what a sync of a consumer's SSD takes longer than one of a virtual
// machine's disk.
const delay = 2 * time.Millisecond

var syncCall = regexp.MustCompile(`(?m)\b(fsync|fdatasync|sync_file_range|syncfs|sync)\(`)

// traced runs both sides under strace, which stops them at calls of the fsync
// family only: once to count the calls, once to lengthen each.
func (b *bench) traced(ctx context.Context, src string, peer func(string) []string) error {
	if _, err := exec.LookPath("strace"); err != nil {
		fmt.Println("  calls of the fsync family are left out: there is no strace")
		return nil
	}
	trace := b.path("trace")
	for _, late := range []bool{false, true} {
		strace := []string{"strace", "-f", "--seccomp-bpf", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync,sync_file_range,syncfs,sync"}
		if late {
			strace = append(strace, "-e", fmt.Sprintf("inject=fsync,fdatasync:delay_exit=%d", delay.Microseconds()))
		}
		d, err := b.ready(ctx, src, strace...)
		if err != nil {
			return err
		}
		ours := func() error { return d.disk(ctx, b.name(), "i", "qcow2") }
		err = errors.Join(
			counted("tarn, one at a time", trace, late, 50, func() error { return parallel(1, 50, ours) }),
			counted(fmt.Sprintf("tarn, %d clients", crowd), trace, late, 640, func() error { return parallel(crowd, 640, ours) }),
			d.stop(),
			counted("qemu-img, one at a time", trace, late, 50, func() error {
				script := append([]string{"-c", `for i in $(seq 50); do "$@" || exit; done`, "sh", "qemu-img"}, peer(b.name())...)
				args := append(append(strace[1:len(strace):len(strace)], "sh"), script...)
				return command(ctx, strace[0], args...)
			}),
		)
		if err != nil {
			return err
		}
	}
	return nil
}

// counted prints how many of the calls in the trace do made for each of n
// things or, with syncs that take longer, how long each thing took.
func counted(name, trace string, late bool, n int, do func() error) error {
	before, _ := os.ReadFile(trace)
	begin := time.Now()
	err := do()
	took := time.Since(begin)
	after, rerr := os.ReadFile(trace)
	calls := len(syncCall.FindAll(bytes.TrimPrefix(after, before), -1))
	if late {
		fmt.Printf("    %-38s %10.3f ms each with syncs of %v more\n", name, ms(took)/float64(n), delay)
	} else {
		fmt.Printf("    %-38s %10.2f fsync-family calls each\n", name, float64(calls)/float64(n))
	}
	return errors.Join(err, rerr)
}
