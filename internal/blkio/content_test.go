package blkio

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/errs"
)

// vector returns the content that a line of testdata/b3-4m.txt describes. The
// pattern "index" is byte i = (i + i/251) mod 256, which no shift by a chunk
// maps onto itself.
func vector(t *testing.T, pattern string, size int64) []byte {
	t.Helper()
	p := make([]byte, size)
	switch pattern {
	case "zero":
	case "index":
		for i := range p {
			p[i] = byte(i + i/251)
		}
	case "last": // all zero but the last byte, which is 1
		p[size-1] = 1
	case "second": // "index" in the second chunk, all else zero
		for i := ChunkSize; i < min(2*ChunkSize, len(p)); i++ {
			p[i] = byte(i + i/251)
		}
	default:
		t.Fatalf("unknown pattern %q", pattern)
	}
	return p
}

func TestContentVectors(t *testing.T) {
	f, err := os.Open("testdata/b3-4m.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for s := bufio.NewScanner(f); s.Scan(); {
		line := s.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		lines++
		field := strings.Fields(line)
		size, err := strconv.ParseInt(field[1], 10, 64)
		if err != nil || len(field) != 3 {
			t.Fatalf("bad line %q: %v", line, err)
		}
		content := vector(t, field[0], size)
		var c Content
		for i := (size + ChunkSize - 1) / ChunkSize; i > 0; i-- { // from the end: any order
			c.Chunk(i-1, content[(i-1)*ChunkSize:min(i*ChunkSize, size)])
		}
		if got := c.Sum(size); got != field[2] {
			t.Errorf("%s %d: got %s, want %s", field[0], size, got, field[2])
		}
		dev := sparseFile(t, content)
		got, err := SumSource(t.Context(), dev, size, nil)
		if err != nil || got != field[2] {
			t.Errorf("%s %d as a file: got %s, %v; want %s", field[0], size, got, err, field[2])
		}
	}
	if lines < 10 {
		t.Errorf("only %d vectors read", lines)
	}
}

func TestContentTellsSizes(t *testing.T) {
	seen := map[string]int64{}
	for _, size := range []int64{0, 1, 4096, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2 * ChunkSize} {
		sum := new(Content).Sum(size)
		if other, dup := seen[sum]; dup {
			t.Errorf("%d and %d bytes of zero have one digest", size, other)
		}
		seen[sum] = size
	}
}

func TestContentParallel(t *testing.T) {
	content := vector(t, "index", 5*ChunkSize+77)
	var one, many Content
	for i := range 6 {
		one.Chunk(int64(i), content[i*ChunkSize:min((i+1)*ChunkSize, len(content))])
	}
	var wg sync.WaitGroup
	for _, i := range rand.Perm(6) {
		wg.Go(func() { many.Chunk(int64(i), content[i*ChunkSize:min((i+1)*ChunkSize, len(content))]) })
	}
	wg.Wait()
	if a, b := one.Sum(int64(len(content))), many.Sum(int64(len(content))); a != b {
		t.Errorf("in order %s, in parallel %s", a, b)
	}
}

func TestSumSourceReportsFailure(t *testing.T) {
	dev := sparseFile(t, vector(t, "index", 3*ChunkSize))
	if _, err := SumSource(t.Context(), dev, dev.Size()+1, nil); errs.KindOf(err) != errs.Invalid {
		t.Errorf("size past the end: got %v, want invalid", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := SumSource(ctx, dev, dev.Size(), nil); errs.KindOf(err) != errs.Cancelled {
		t.Errorf("cancelled: got %v, want cancelled", err)
	}
	if err := os.Truncate(dev.Descriptor().Name(), ChunkSize); err != nil {
		t.Fatal(err)
	}
	if sum, err := SumSource(t.Context(), dev, dev.Size(), nil); err == nil {
		t.Errorf("a file that lost its end: got %s, want an error", sum)
	}
}

func BenchmarkSumSource(b *testing.B) {
	content := make([]byte, 64<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	dev := sparseFile(b, content)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		if _, err := SumSource(b.Context(), dev, dev.Size(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func ExampleContent() {
	var c Content
	c.Chunk(0, []byte("hello"))
	fmt.Println(c.Sum(5))
	// Output: b3-4m:7aad4a38db8e2ec9715490210049eafd38a165f8201314ba7eb98c76b46c7e03
}

// TestLeafing shows that a leaf is the same in parts as at once.
func TestLeafing(t *testing.T) {
	for _, zeroes := range []int{0, 1, 64 << 10, 64<<10 + 1, ChunkSize - 1, ChunkSize} {
		chunk := make([]byte, ChunkSize)
		for i := zeroes; i < len(chunk); i++ {
			chunk[i] = byte(i | 1)
		}
		for _, part := range []int{1 << 20, 256 << 10, 99_991} {
			var l Leafing
			for p := range slices.Chunk(chunk, part) {
				_, _ = l.Write(p)
			}
			if got, want := l.Leaf(), ChunkLeaf(chunk); got != want {
				t.Errorf("%d zeroes in parts of %d: leaf %x, want %x", zeroes, part, got, want)
			}
		}
	}
}
