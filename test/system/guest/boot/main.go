// Command boot starts one virtual machine from disks that tarn attached and
// compares what the guest reports with what tarn says of each disk. It refuses
// to run without both.
//
//	boot ATTACHMENT DISKS
//
// ATTACHMENT is the output of "tarn instance attach I --as qemu -o json", DISKS
// that of "tarn disk list --instance I -o json".
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/guest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "boot:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("usage: boot ATTACHMENT DISKS")
	}
	var attachment api.Attachment
	var disks api.List[api.Disk]
	if err := decode(args[0], &attachment); err != nil {
		return err
	}
	if err := decode(args[1], &disks); err != nil {
		return err
	}
	if len(attachment.QEMU) == 0 || len(disks.Items) == 0 {
		return fmt.Errorf("%s and %s name no disks", args[0], args[1])
	}
	report, err := boot(ctx, attachment.QEMU)
	if err != nil {
		return err
	}
	return compare(report, disks.Items)
}

// boot says every ten seconds that it still waits.
func boot(ctx context.Context, args []string) (guest.Report, error) {
	start := time.Now()
	say := func(what string) { fmt.Printf("%4.0f s: %s\n", time.Since(start).Seconds(), what) }
	done := make(chan struct{})
	var waiting sync.WaitGroup
	waiting.Go(func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				say("waiting for the guest")
			case <-done:
				return
			}
		}
	})
	r, err := guest.Machine{Args: args, Say: say}.Boot(ctx)
	close(done)
	waiting.Wait()
	return r, err
}

func decode(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// compare prints one line a disk and fails when any is not as recorded.
func compare(report guest.Report, disks []api.Disk) error {
	fmt.Printf("The guest (Linux %s, %s) reported after %.1f s:\n", report.Kernel, report.Accelerator, report.Uptime)
	wrong := 0
	for _, d := range disks {
		seen, _ := report.Disk(d.Serial)
		if bad := report.Check(d); len(bad) > 0 {
			wrong++
			fmt.Printf("  WRONG %-11s %s\n        %s\n", d.Name, seen, strings.Join(bad, "\n        "))
			continue
		}
		fmt.Printf("  ok    %-11s %s\n", d.Name, seen)
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d disks are not what tarn says they are", wrong, len(disks))
	}
	fmt.Printf("All %d disks have the size, serial, label and file system that tarn recorded.\n", len(disks))
	return nil
}
