package ingest

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// benchSize is the virtual size of the benchmark's disk, in MiB:
// TARN_BENCH_MIB, or what a continuous run can afford.
func benchSize(b *testing.B) int {
	if s := os.Getenv("TARN_BENCH_MIB"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
	return 768
}

// benchDisk writes a raw disk, four fifths of it data, half of that random.
func benchDisk(b *testing.B, path string) {
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	n := benchSize(b)
	if err := f.Truncate(int64(n) * mib); err != nil {
		b.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, mib)
	for i := range n {
		switch {
		case i%5 == 4:
			continue
		case i%2 == 0:
			random.Read(buf)
		default:
			for j := 0; j < len(buf); j += 16 {
				random.Read(buf[j : j+5])
			}
		}
		if _, err := f.WriteAt(buf, int64(i)*mib); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}

// cpu returns the processor time of this process and of its children so far.
func cpu(b *testing.B) time.Duration {
	var total time.Duration
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		total += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return total
}

// measured is one run's cost.
type measured struct{ wall, cpu time.Duration }

func measure(b *testing.B, run func()) measured {
	c, t := cpu(b), time.Now()
	run()
	return measured{time.Since(t), cpu(b) - c}
}

func median(ms []measured, of func(measured) time.Duration) float64 {
	var d []time.Duration
	for _, m := range ms {
		d = append(d, of(m))
	}
	slices.Sort(d)
	return d[len(d)/2].Seconds()
}

// BenchmarkImport compares an import, both digests included, with openssl's
// digest followed by qemu-img's conversion, one after the other in turns.
func BenchmarkImport(b *testing.B) {
	for _, tool := range []string{"qemu-img", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			b.Skipf("%v; install qemu-utils and openssl", err)
		}
	}
	dir := b.TempDir()
	raw := filepath.Join(dir, "disk.raw")
	benchDisk(b, raw)
	tool := func(name string, args ...string) {
		if out, err := exec.CommandContext(b.Context(), name, args...).CombinedOutput(); err != nil {
			b.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	for _, row := range []struct{ name, format, options string }{
		{"raw", "raw", ""},
		{"qcow2", "qcow2", ""},
		{"qcow2-zlib", "qcow2", "compression_type=zlib"},
		{"qcow2-zstd", "qcow2", "compression_type=zstd"},
	} {
		b.Run(row.name, func(b *testing.B) {
			source := raw
			if row.format != "raw" {
				source = filepath.Join(dir, row.name)
				args := []string{"convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "16"}
				if row.options != "" {
					args = append(args, "-c", "-o", row.options)
				}
				tool("qemu-img", append(args, raw, source)...)
			}
			f, err := os.Open(source)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			out := filepath.Join(dir, "out")
			var ours, theirs []measured
			for b.Loop() {
				os.Remove(out)
				theirs = append(theirs, measure(b, func() {
					tool("openssl", "dgst", "-sha256", source)
					tool("qemu-img", "convert", "-f", row.format, "-O", "raw", "-W", "-m", "16", source, out)
				}))
				os.Remove(out)
				ours = append(ours, measure(b, func() { benchImport(b, f, row.format, out) }))
			}
			wall := func(m measured) time.Duration { return m.wall }
			used := func(m measured) time.Duration { return m.cpu }
			b.ReportMetric(median(ours, wall), "tarn-s")
			b.ReportMetric(median(theirs, wall), "peer-s")
			b.ReportMetric(median(ours, wall)/median(theirs, wall), "wall-ratio")
			b.ReportMetric(median(ours, used)/median(theirs, used), "cpu-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func benchImport(b *testing.B, f *os.File, format, out string) {
	s, err := Open(b.Context(), Config{}, Source{File: f}, Claim{Format: format})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	dst, err := os.Create(out)
	if err != nil {
		b.Fatal(err)
	}
	defer dst.Close()
	if err := dst.Truncate(s.Header().VirtualSize); err != nil {
		b.Fatal(err)
	}
	if _, err := s.Convert(b.Context(), dst, nil, nil); err != nil {
		b.Fatal(err)
	}
}
