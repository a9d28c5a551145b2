package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
)

// chunk is the grain of the test image.
const chunk = 1 << 20

// image makes a raw file of size bytes as a system's disk is: a third of each
// kind of megabyte, holes, text and bytes that do not compress. The seed is
// fixed, so that two runs measure the same bytes.
func image(path string, size int64) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	noise := rand.NewChaCha8([32]byte{1})
	data := make([]byte, chunk)
	for i := range size / chunk {
		switch i % 3 {
		case 0:
			continue
		case 1:
			line := fmt.Appendf(nil, "%08x: the quick brown fox jumps over the lazy dog\n", i)
			copy(data, bytes.Repeat(line, chunk/len(line)+1))
		case 2:
			_, _ = noise.Read(data) // never fails
		}
		if _, err := f.WriteAt(data, i*chunk); err != nil {
			return err
		}
	}
	return f.Sync()
}

// image returns the test image as a raw file; it is made once.
func (b *bench) image() (string, error) {
	path := b.path("image.raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, image(path, b.size)
}

// small returns a small image: making a disk must not cost more for a large one.
func (b *bench) small() (string, error) {
	path := b.path("small.raw")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, image(path, 8*chunk)
}
