package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// store runs the store's own benchmarks on the file system that is measured:
// durable commits beside appends of a file in alternating rounds, and pages of
// 1,000,000 records.
func (b *bench) store(ctx context.Context) error {
	for _, run := range [][]string{{"Commit/(volume|lease|operation)", "5x"}, {"Page", "50x"}} {
		if err := b.goBench(ctx, "./internal/store/sqlite", run[0], run[1]); err != nil {
			return err
		}
	}
	return nil
}

// goBench runs benchmarks of a package and prints their figures. They work in
// the directory that TARN_BENCH_DIR names.
func (b *bench) goBench(ctx context.Context, pkg, name, times string, vars ...string) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", name, "-benchtime", times, "-timeout", "30m", pkg)
	cmd.Dir = b.repo
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "TARN_BENCH_DIR="+b.dir), vars...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("go test -bench %s: %w\n%s", name, err, out)
	}
	for line := range strings.Lines(string(out)) {
		if text, ok := strings.CutPrefix(line, "Benchmark"); ok {
			fmt.Printf("    %s", text)
		}
	}
	return nil
}
