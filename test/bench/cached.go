package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
)

// cachedBase is an image of which a disk is made, so large and with so much
// data in its beginning; the rest is a hole.
type cachedBase struct {
	name, label string
	size, data  int64
}

var cachedBases = []cachedBase{
	{"base64m", "64 MiB", 64 * mib, 32 * mib},
	{"base1g", "1 GiB", 1024 * mib, 256 * mib},
	{"base8g", "8 GiB", 8192 * mib, 256 * mib},
}

// usual is the base of the rows that do not go through the sizes.
const usual = 1

// largeDisk is the size of disks of these bases.
const largeDisk = 10 << 30

// handful is how many disks a round makes of each kind.
const handful = 2

// write makes the image as a raw file.
func (c cachedBase) write(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	random, piece := rand.NewChaCha8([32]byte{byte(c.size >> 20)}), make([]byte, mib)
	for at := int64(0); at < c.data; at += mib {
		_, _ = random.Read(piece) // never fails
		if _, err := f.WriteAt(piece, at); err != nil {
			return err
		}
	}
	return f.Truncate(c.size)
}

// emulated is how many times less data a base has in a guest.
const emulated = 16

// bases writes all of them below dir, under their names.
func (b *bench) bases(dir string) error {
	for _, c := range cachedBases {
		if b.guest {
			c.data /= emulated
		}
		if err := c.write(filepath.Join(dir, c.name)); err != nil {
			return err
		}
	}
	return nil
}

// root makes disks of a base, one at a time.
func (b *bench) root(d *daemon, c cachedBase, format string) work {
	return work{name: fmt.Sprintf("tarn, Go client, base of %s", c.label), n: handful, pid: d.pid, do: func(ctx context.Context) error {
		return parallel(1, handful, func() error { return d.diskOf(ctx, b.name(), c.name, format, largeDisk) })
	}}
}

// bySize compares disks of the largest base with those of smaller ones.
func (b *bench) bySize(ctx context.Context, title string, of func(c cachedBase) work) error {
	last := len(cachedBases) - 1
	var smaller []work
	for _, c := range cachedBases[:last] {
		smaller = append(smaller, of(c))
	}
	return b.compare(ctx, title, of(cachedBases[last]), smaller...)
}
