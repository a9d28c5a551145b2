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
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", run[0], "-benchtime", run[1], "-timeout", "30m", "./internal/store/sqlite")
		cmd.Dir = b.repo
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "TARN_BENCH_DIR="+b.dir)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("go test -bench %s: %w\n%s", run[0], err, out)
		}
		for line := range strings.Lines(string(out)) {
			if text, ok := strings.CutPrefix(line, "Benchmark"); ok {
				fmt.Printf("    %s", text)
			}
		}
	}
	return nil
}
