package ingest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/diskfmt"
)

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

// BenchmarkContent compares a conversion that computes the content digest alone,
// which the worker never does, with qemu-img's, one after the other in turns. The
// image is the raw file that TARN_BENCH_IMAGE names.
func BenchmarkContent(b *testing.B) {
	raw := os.Getenv("TARN_BENCH_IMAGE")
	if raw == "" {
		b.Skip("TARN_BENCH_IMAGE does not name a raw image: go run ./test/bench -only import does")
	}
	if _, err := exec.LookPath("qemu-img"); err != nil {
		b.Skipf("%v; install qemu-utils", err)
	}
	dir, err := os.MkdirTemp(os.Getenv("TARN_BENCH_DIR"), "content-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	convert := func(args ...string) {
		args = append([]string{"convert", "-W", "-m", "16"}, args...)
		if out, err := exec.CommandContext(b.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
			b.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	for _, row := range []struct {
		name, format string
		options      []string
	}{
		{"raw", "raw", nil},
		{"qcow2", "qcow2", nil},
		{"zlib", "qcow2", []string{"-c"}},
		{"zstd", "qcow2", []string{"-c", "-o", "compression_type=zstd"}},
	} {
		b.Run(row.name, func(b *testing.B) {
			src, out := raw, filepath.Join(dir, "out")
			if row.format != "raw" {
				src = filepath.Join(dir, row.name)
				convert(append(row.options, "-f", "raw", "-O", row.format, raw, src)...)
				defer os.Remove(src)
			}
			var ours, theirs []measured
			for b.Loop() {
				theirs = append(theirs, measure(b, func() { convert("-f", row.format, "-O", "raw", src, out) }))
				os.Remove(out)
				ours = append(ours, measure(b, func() { benchContent(b, src, diskfmt.Format(row.format), out) }))
				os.Remove(out)
			}
			wall := func(m measured) time.Duration { return m.wall }
			used := func(m measured) time.Duration { return m.cpu }
			b.ReportMetric(median(ours, used), "tarn-cpu-s")
			b.ReportMetric(median(theirs, used), "peer-cpu-s")
			b.ReportMetric(median(ours, wall)/median(theirs, wall), "wall-ratio")
			b.ReportMetric(median(ours, used)/median(theirs, used), "cpu-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// benchContent judges and converts a file without the source's digest.
func benchContent(b *testing.B, path string, format diskfmt.Format, out string) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	im := &intake{judge: judge{Size: fi.Size(), MaxVirtual: DefaultMaxVirtualSize, Threads: runtime.GOMAXPROCS(0)}}
	disk, h, err := im.openFile(b.Context(), format, descriptor(f.Fd()), fi.Size())
	if err != nil {
		b.Fatal(err)
	}
	dst, err := os.Create(out)
	if err != nil {
		b.Fatal(err)
	}
	defer dst.Close()
	if err := dst.Truncate(h.VirtualSize); err != nil {
		b.Fatal(err)
	}
	d := descriptor(dst.Fd())
	c := newConversion(im.Threads, &d, &im.count)
	c.from(disk)
	if _, err := c.run(b.Context(), im.Threads, c.chunks); err != nil {
		b.Fatal(err)
	}
}
