package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
)

const mib = 1 << 20

// image returns the image that is imported and exported, raw: a Debian on ext4,
// which is made once on a machine.
func (b *bench) image(ctx context.Context) (string, error) {
	var args []string
	if b.full {
		args = append(args, "--full")
	}
	cmd := exec.CommandContext(ctx, "test/bench/debian", args...)
	cmd.Dir, cmd.Stderr = b.repo, os.Stderr
	path, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("making the image: %w", err)
	}
	return strings.TrimSpace(string(path)), nil
}

// small returns a small image: making a disk must not cost more for a large one.
func (b *bench) small() (string, error) {
	path := b.path("small.raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	data := make([]byte, 8*mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data[:len(data)/2]) // never fails
	return path, os.WriteFile(path, data, 0o644)
}
