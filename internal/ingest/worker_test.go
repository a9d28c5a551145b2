package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// tripwire gives the bytes of r and calls act once n of them have passed.
type tripwire struct {
	r   io.Reader
	n   int
	act func()
}

func (w *tripwire) Read(p []byte) (int, error) {
	n, err := w.r.Read(p[:min(len(p), 64*kib)])
	if w.n -= n; w.n <= 0 && w.act != nil {
		w.act()
		w.act = nil
	}
	return n, err
}

func openFiles(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestKilledWorker kills the worker at random points of an import.
func TestKilledWorker(t *testing.T) {
	disk := mixed(21, 32*mib)
	file := qcow2Of(t, disk)
	before := openFiles(t)
	for i := range 20 {
		format, b := "raw", disk
		if i%2 == 1 {
			format, b = "qcow2", file
		}
		var s *Session
		opened := make(chan struct{})
		src := &tripwire{r: bytes.NewReader(b), n: 4*mib + rand.IntN(len(b)-4*mib), act: func() {
			<-opened
			if err := syscall.Kill(s.proc.Pid(), syscall.SIGKILL); err != nil {
				t.Error(err)
			}
		}}
		var err error
		if s, err = Open(t.Context(), Config{}, Source{Stream: src, Size: int64(len(b))}, Claim{Format: format}); err != nil {
			t.Fatal(err)
		}
		close(opened)
		dst, kept := output(t, s.Header().VirtualSize), output(t, 0)
		r, err := s.Convert(t.Context(), dst, func() (*os.File, error) { return kept, nil }, nil)
		refusal{errs.Unavailable, "", "killed"}.check(t, fmt.Sprintf("kill %d", i), err)
		if r != (Result{}) {
			t.Errorf("kill %d: a result came: %+v", i, r)
		}
		s.Close()
		dst.Close()
		kept.Close()
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

func TestCancelledConversion(t *testing.T) {
	disk := mixed(22, 16*mib)
	ctx, cancel := context.WithCancel(t.Context())
	src := &tripwire{r: bytes.NewReader(disk), n: 8 * mib, act: cancel}
	s, err := Open(t.Context(), Config{}, Source{Stream: src, Size: int64(len(disk))}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Convert(ctx, output(t, s.Header().VirtualSize), nil, nil)
	refusal{errs.Cancelled, "", ""}.check(t, "cancelled", err)
	if _, err := Open(ctx, Config{}, Source{Stream: src}, Claim{Format: "raw"}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("on an ended context: got %v, want errs.Cancelled", err)
	}
}

func TestStalledSource(t *testing.T) {
	for _, size := range []int{0, 4 * mib} { // before and after the verdict
		r, w := io.Pipe()
		go func() { _, _ = w.Write(mixed(23, size)) }()
		cfg := Config{Idle: 300 * time.Millisecond}
		s, err := Open(t.Context(), cfg, Source{Stream: r, Size: 8 * mib}, Claim{Format: "raw"})
		if err == nil {
			_, err = s.Convert(t.Context(), nil, nil, nil)
			s.Close()
		}
		refusal{errs.Unavailable, "", "no progress for 300ms"}.check(t, fmt.Sprintf("stalled after %d bytes", size), err)
		w.Close()
		r.Close()
	}
}

// TestStoppedWorker has the worker itself stand still in the middle of its work.
func TestStoppedWorker(t *testing.T) {
	if d := (Config{}).withDefaults(); d.Idle != time.Minute || d.Total != 24*time.Hour {
		t.Errorf("a worker may stand still for %v and take %v, want a minute and a day", d.Idle, d.Total)
	}
	disk := mixed(24, 16*mib)
	var s *Session
	opened := make(chan struct{})
	src := &tripwire{r: bytes.NewReader(disk), n: 8 * mib, act: func() {
		<-opened
		if err := syscall.Kill(s.proc.Pid(), syscall.SIGSTOP); err != nil {
			t.Error(err)
		}
	}}
	s, err := Open(t.Context(), Config{Idle: 300 * time.Millisecond}, Source{Stream: src, Size: int64(len(disk))}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	close(opened)
	_, err = s.Convert(t.Context(), output(t, s.Header().VirtualSize), nil, nil)
	refusal{errs.Unavailable, "", "no progress for 300ms"}.check(t, "stopped worker", err)
}

func TestTotalDeadline(t *testing.T) {
	endless := io.MultiReader(bytes.NewReader(make([]byte, mib)), zeroReader{})
	silent, w := io.Pipe()
	defer w.Close()
	for name, source := range map[string]io.Reader{"an endless stream": endless, "one that is not judged": silent} {
		s, err := Open(t.Context(), Config{Total: 900 * time.Millisecond}, Source{Stream: source, Size: -1}, Claim{Format: "raw"})
		if err == nil {
			_, err = s.Convert(t.Context(), nil, nil, nil)
			s.Close()
		}
		refusal{errs.Unavailable, "", "not done after 900ms"}.check(t, name, err)
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestFileThatChangesMeanwhile(t *testing.T) {
	all := samples(t)
	noise := make([]byte, 3*mib)
	rand.NewChaCha8([32]byte{28}).Read(noise)
	packed := all["raw"]
	packed.compression, packed.file = "gzip", packedBy(t, "gzip", noise)
	all["raw, compressed"] = packed
	for variant, image := range all {
		format, b := image.format, image.file
		if image.description != nil || len(b) < 2*mib {
			continue
		}
		for name, change := range map[string]func(f *os.File) error{
			"grows":   func(f *os.File) error { return f.Truncate(int64(len(b)) + 1) },
			"shrinks": func(f *os.File) error { return f.Truncate(int64(len(b)) - mib) },
			"is written": func(f *os.File) error {
				_, err := f.WriteAt([]byte("new"), mib+100)
				return errors.Join(err, os.Chtimes(f.Name(), time.Time{}, time.Unix(1, 0)))
			},
		} {
			f := writeFile(t, b)
			s, err := Open(t.Context(), Config{}, Source{File: f}, Claim{Format: format, Compression: image.compression})
			if err != nil {
				t.Fatal(err)
			}
			w, err := os.OpenFile(f.Name(), os.O_RDWR|unix.O_NONBLOCK, 0)
			if err == nil {
				err = errors.Join(change(w), w.Close())
			}
			if held := s.lease != nil; held != errors.Is(err, unix.EWOULDBLOCK) || !held && err != nil {
				t.Fatalf("%s %s: %v, with a lease: %v", variant, name, err, held)
			}
			_, err = s.Convert(t.Context(), output(t, max(0, s.Header().VirtualSize)), nil, nil)
			var e *errs.Error
			if !errors.As(err, &e) || e.Kind != errs.Conflict {
				t.Errorf("%s %s: got %v, want a conflict", variant, name, err)
			}
			s.Close()
		}
	}
}

// TestFileThatVanishes: a file that loses its name while it is read is still
// the file that was judged.
func TestFileThatVanishes(t *testing.T) {
	disk := mixed(27, 3*mib)
	f := writeFile(t, disk)
	s, err := Open(t.Context(), Config{}, Source{File: f}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Convert(t.Context(), nil, nil, nil); err != nil || r.Content != contentOf(disk) {
		t.Errorf("got %+v, %v, want the disk's content", r, err)
	}
}

func TestFullFileSystem(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tarn", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	disk := mixed(25, 24*mib)
	s, err := Open(t.Context(), Config{}, Source{File: writeFile(t, disk)}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	dst, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if err := dst.Truncate(int64(len(disk))); err != nil {
		t.Fatal(err)
	}
	_, err = s.Convert(t.Context(), dst, nil, nil)
	refusal{errs.NoSpace, "", "no space left"}.check(t, "full", err)
}

// TestWriteBackIsBegun demands that most of what a conversion wrote is on its
// way to the disk when it ends, so that a sync does not wait for all of it.
func TestWriteBackIsBegun(t *testing.T) {
	got, err := importSource(t.Context(), t, Source{File: writeFile(t, mixed(26, 96*mib))}, Claim{Format: "raw"})
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(got.file.Fd()), &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("does not apply: a tmpfs writes nothing back")
	}
	var cache unix.Cachestat_t
	err = unix.Cachestat(uint(got.file.Fd()), &unix.CachestatRange{}, &cache, 0)
	if errors.Is(err, unix.ENOSYS) {
		t.Skip("does not apply: this kernel has no cachestat, which came with Linux 6.5")
	}
	if err != nil {
		t.Fatal(err)
	}
	if written := uint64(got.result.Written) / uint64(os.Getpagesize()); cache.Dirty > written/4 {
		t.Errorf("%d of %d pages are dirty, want a quarter at most", cache.Dirty, written)
	}
}

// peak is the most memory that a process had, in bytes.
func peak(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // it has ended
	}
	for line := range strings.Lines(string(b)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(kb), "kB")), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	return 0
}

// TestMemoryIsBounded watches the worker while it converts what blows up.
func TestMemoryIsBounded(t *testing.T) {
	const bound = 256 * mib
	uniform := bytes.Repeat([]byte{1}, 96*mib)
	file := filepath.Join(t.TempDir(), "terabyte")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", file, "1T")
	terabyte, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		file []byte
		want int64
	}{
		"zlib":                  {qcow2Of(t, uniform, "-c", "-o", "cluster_size=2M"), 96 * mib},
		"zstd":                  {qcow2Of(t, uniform, "-c", "-o", "compression_type=zstd"), 96 * mib},
		"a terabyte of nothing": {terabyte, 1 << 40},
	} {
		s, err := Open(t.Context(), Config{}, Source{File: writeFile(t, row.file)}, Claim{Format: "qcow2"})
		if err != nil {
			t.Fatal(err)
		}
		most, stop, stopped := peak(t, s.proc.Pid()), make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for tick := time.NewTicker(time.Millisecond); ; {
				select {
				case <-stop:
					tick.Stop()
					return
				case <-tick.C:
					most = max(most, peak(t, s.proc.Pid()))
				}
			}
		}()
		r, err := s.Convert(t.Context(), nil, nil, nil)
		close(stop)
		<-stopped
		s.Close()
		if err != nil || r.VirtualSize != row.want {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if most == 0 || most > bound {
			t.Errorf("%s: the worker had %d MiB, want some and at most %d MiB", name, most/mib, bound/mib)
		}
		t.Logf("%s: %d KiB become %d MiB, peak %d MiB", name, len(row.file)/kib, r.VirtualSize/mib, most/mib)
	}
}

// TestOneClusterManyTimes lets every entry of an L2 table give one cluster.
func TestOneClusterManyTimes(t *testing.T) {
	for _, args := range [][]string{nil, {"-c"}} {
		file := qcow2Of(t, append(bytes.Repeat([]byte("abc"), 64*kib), make([]byte, 130*mib)...), args...)
		l1 := beAt(file, 40)
		l2 := beAt(file, l1) & 0x00fffffffffffe00
		for i := uint64(1); i < 2000; i++ {
			copy(file[l2+8*i:], file[l2:l2+8])
		}
		_, err := importSource(t.Context(), t, Source{File: writeFile(t, file)}, Claim{Format: "qcow2"})
		refusal{errs.Unsafe, strict.Overlap, ""}.check(t, fmt.Sprint(args), err)
	}
}

func beAt(b []byte, off uint64) uint64 {
	var v uint64
	for _, c := range b[off : off+8] {
		v = v<<8 | uint64(c)
	}
	return v
}

// TestMessagesOfAHostileWorker feeds the daemon's side what no worker says.
func TestMessagesOfAHostileWorker(t *testing.T) {
	f := failure{Kind: "made_up", Class: strings.Repeat("A", 1000), Message: "\x1b[31mred\nline\xff" + strings.Repeat("x", 1<<20)}
	e := f.error()
	if e.Kind != errs.Internal || len(e.Class) > maxClassLength || len(e.Message) > maxFailureText || strings.ContainsAny(e.Message, "\x1b\n") || !utf8.ValidString(e.Message) {
		t.Errorf("got kind %s, class of %d, message %.40q of %d", e.Kind, len(e.Class), e.Message, len(e.Message))
	}
	good := Result{SourceSHA256: sha256Of(nil), Content: contentOf(nil), VirtualSize: 8192, Written: 4096, Extents: 1}
	s := &Session{claim: Claim{MaxVirtualSize: mib}, header: Header{VirtualSize: 8192, MaxData: 8192}}
	if err := s.checkResult(good); err != nil {
		t.Errorf("a good result: %v", err)
	}
	for name, spoil := range map[string]func(*Result){
		"digest":        func(r *Result) { r.SourceSHA256 = "../../etc/passwd" },
		"content":       func(r *Result) { r.Content = "md5:00" },
		"other size":    func(r *Result) { r.VirtualSize++ },
		"too much data": func(r *Result) { r.Written = 8193 },
		"negative":      func(r *Result) { r.Extents = -1 },
	} {
		r := good
		spoil(&r)
		if err := s.checkResult(r); !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v, want errs.Unavailable", name, err)
		}
	}
	j := judge{Format: "raw", Size: 8192}
	for name, h := range map[string]Header{
		"format":        {Format: "qcow2", VirtualSize: 8192},
		"too large":     {Format: "raw", VirtualSize: 2 * mib},
		"unknown size":  {Format: "raw", VirtualSize: -1},
		"needs a spool": {Format: "raw", VirtualSize: 8192, MaxSpool: 1},
		"features":      {Format: "raw", VirtualSize: 8192, Features: make([]string, 1000)},
	} {
		if err := s.checkHeader(h, j); !errors.Is(err, errs.Unavailable) {
			t.Errorf("%s: got %v, want errs.Unavailable", name, err)
		}
	}
}

// TestErrorsCrossTheSocketWhole packs and unpacks an error of each kind.
func TestErrorsCrossTheSocketWhole(t *testing.T) {
	for _, k := range errs.Kinds() {
		want := errs.New(k, "", "", "what was wrong: ä").WithClass(strict.Overlap).WithHint("do this")
		got := failureOf(want).error()
		if got.Kind != want.Kind || got.Class != want.Class || got.Message != want.Message || got.Hint != want.Hint {
			t.Errorf("%s: got %+v, want %+v", k, got, want)
		}
	}
	if got := failureOf(fmt.Errorf("write: %w", unix.ENOSPC)).error(); got.Kind != errs.NoSpace {
		t.Errorf("ENOSPC became %s", got.Kind)
	}
}
