package ingest

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

// spent is what a worker took.
type spent struct {
	cpu  time.Duration
	peak int64 // bytes of memory
}

// gauged has a worker judge an image, and convert it without an output where
// whole is set, and returns what it said last and what it took.
func gauged(t *testing.T, src *os.File, j judge, whole bool) (reply, spent) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "control"), os.NewFile(uintptr(fds[1]), "control")
	defer ours.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cmd := exec.Command("/proc/self/exe", "worker")
	cmd.ExtraFiles = []*os.File{src, theirs}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	most, stop, stopped := int64(0), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.NewTicker(200 * time.Microsecond); ; {
			select {
			case <-stop:
				tick.Stop()
				return
			case <-tick.C:
				most = max(most, peak(t, cmd.Process.Pid))
			}
		}
	}()
	r := converse(t, conn.(*net.UnixConn), j, whole)
	close(stop)
	<-stopped
	most = max(most, peak(t, cmd.Process.Pid))
	conn.Close()
	ours.Close()
	_ = cmd.Wait() // it ends because its socket did
	return r, spent{cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), most}
}

// converse asks a worker for a verdict, then for a conversion, and returns what
// it said last.
func converse(t *testing.T, conn *net.UnixConn, j judge, whole bool) reply {
	t.Helper()
	ask := func(q request) {
		b, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, maxMessage)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("the worker ended: %v", err)
		}
		var r reply
		if err := json.Unmarshal(buf[:n], &r); err != nil {
			t.Fatal(err)
		}
		switch {
		case r.Layers != nil:
			ask(request{Judge: &j})
		case r.Header != nil && whole:
			ask(request{Convert: &convert{Dry: true}})
		case r.Progress == nil:
			return r
		}
	}
}

// million is a qcow2 file of 384 KiB whose tables name one cluster more than a
// million times; mark is what the L2 entries have above the offset.
func million(mark uint64) []byte {
	const cluster, tables = 64 * kib, 130
	b := make([]byte, 6*cluster)
	be := binary.BigEndian
	copy(b, "QFI\xfb\x00\x00\x00\x03")
	be.PutUint32(b[20:], 16)
	be.PutUint64(b[24:], tables*8192*cluster)
	be.PutUint32(b[36:], tables)
	be.PutUint64(b[40:], 3*cluster)
	be.PutUint64(b[48:], 1*cluster)
	be.PutUint32(b[56:], 1)
	be.PutUint32(b[96:], 4)
	be.PutUint32(b[100:], 104)
	be.PutUint64(b[cluster:], 2*cluster)
	for i := range 6 {
		be.PutUint16(b[2*cluster+2*i:], 1)
	}
	for i := range tables {
		be.PutUint64(b[3*cluster+8*i:], 4*cluster|1<<63)
	}
	for i := range cluster / 8 {
		be.PutUint64(b[4*cluster+8*i:], 5*cluster|mark)
	}
	return b
}

// dictionary is an xz file whose one block needs 4 GiB to be unpacked.
func dictionary() []byte {
	sum := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b)) }
	out := append([]byte("\xfd7zXZ\x00"), 0, 1)
	out = binary.LittleEndian.AppendUint32(out, crc32.ChecksumIEEE(out[6:8]))
	return append(append(out, sum([]byte{2, 0, 0x21, 1, 40, 0, 0, 0})...), make([]byte, 64)...)
}

// window is a zstd frame that refers back 2 GiB.
func window() []byte { return append([]byte("\x28\xb5\x2f\xfd\x00\xa8"), 9, 0, 0, 'x') }

// gzipOfZeroes is a gzip file of n times 16 MiB of zeroes.
func gzipOfZeroes(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(make([]byte, 16*mib)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(b.Bytes(), n)
}

// TestBounds gives the worker what is small and asks for much. No verdict on a
// header takes it a second, nothing takes it more memory than the program and 64
// MiB, and the window that the wrapper declares.
func TestBounds(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the worker as it is shipped; -short is for the race detector, which makes it larger")
	}
	const program = 48 * mib // what the worker has before it reads, and the buffers of two threads
	disk := mixed(61, mib)
	sparse, text := imageOf(t, disk, "vmdk"), bytes.Repeat([]byte("the quick brown fox\n"), 4*mib)
	for _, row := range []struct {
		name, format, packed string
		file                 []byte
		whole                bool // or the header alone
		window               int64
		cpu                  time.Duration
		class                string // "" is accepted
	}{
		{"one cluster a million times", "qcow2", "", million(1 << 63), true, 0, time.Second, strict.Overlap},
		{"one compressed cluster a million times", "qcow2", "", million(1 << 62), true, 0, time.Second, strict.Overlap},
		{"xz with 4 GiB of dictionary", "raw", "xz", dictionary(), true, 0, time.Second, strict.Limit},
		{"zstd with 2 GiB of window", "raw", "zstd", window(), true, 0, time.Second, strict.Limit},
		{"xz with all the dictionary allowed", "raw", "xz", packedBy(t, "xz", text, "-9"), true, 64 * mib, 20 * time.Second, ""},
		{"zstd with all the window allowed", "raw", "zstd", packedBy(t, "zstd", text, "--long=27"), true, 128 * mib, 20 * time.Second, ""},
		{"2 GiB of zeroes by gzip", "raw", "gzip", gzipOfZeroes(t, 128), false, 0, time.Second, ""},
		{"2 GiB of zeroes by gzip, unpacked", "raw", "gzip", gzipOfZeroes(t, 128), true, 0, 20 * time.Second, strict.Quota},
		{"2 GiB of zeroes by gzip, said to be qcow2", "qcow2", "gzip", gzipOfZeroes(t, 128), true, 0, time.Second, strict.Mismatch},
		{"64 TiB of vmdk", "vmdk", "", put(sparse, 12, le64(64<<40/512)...), true, 0, time.Second, strict.Corrupt},
		{"64 TiB of vdi", "vdi", "", put(imageOf(t, disk, "vdi"), 0x170, le64(64<<40)...), true, 0, time.Second, strict.Corrupt},
		{"64 TiB of vhd", "vhd", "", vhdOf(t, disk, 64<<40), true, 0, time.Second, strict.Limit},
	} {
		r, took := gauged(t, writeFile(t, row.file), judge{Format: row.format, Compression: row.packed, Size: int64(len(row.file)), MaxVirtual: DefaultMaxVirtualSize, MaxData: 1 << 30, Threads: 2}, row.whole)
		class := ""
		if r.Failure != nil {
			class = r.Failure.Class
		}
		if class != row.class {
			t.Errorf("%s: got %+v, want class %q", row.name, r.Failure, row.class)
		}
		if took.cpu > row.cpu {
			t.Errorf("%s: took %v of CPU, want %v at most", row.name, took.cpu, row.cpu)
		}
		if most := program + 64*mib + row.window; took.peak > most {
			t.Errorf("%s: took %d MiB, want %d at most", row.name, took.peak/mib, most/mib)
		}
		t.Logf("%s: %d KiB, %v of CPU, %d MiB", row.name, len(row.file)/kib, took.cpu, took.peak/mib)
	}
}

func le64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// vhdOf is a dynamic VHD of the disk b whose footers say that it has size bytes.
func vhdOf(t *testing.T, b []byte, size uint64) []byte {
	t.Helper()
	file := imageOf(t, b, "vpc", "-o", "force_size=on")
	for _, at := range []int{0, len(file) - 512} {
		footer := file[at : at+512]
		binary.BigEndian.PutUint64(footer[48:], size)
		binary.BigEndian.PutUint32(footer[64:], 0)
		sum := uint32(0)
		for _, c := range footer {
			sum += uint32(c)
		}
		binary.BigEndian.PutUint32(footer[64:], ^sum)
	}
	return file
}

// TestLargerThanAllowed: 64 TiB is the most where nobody says otherwise, and
// what a caller allows is no more than that.
func TestLargerThanAllowed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", file, "65T")
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = Open(t.Context(), Config{}, Source{File: f}, Claim{Format: "qcow2"})
	refusal{errs.Unsafe, strict.Quota, "70368744177664"}.check(t, "65 TiB", err)
}

// TestWalksAreLinear: a verdict reads no more than the file and its two ends,
// whatever the format.
func TestWalksAreLinear(t *testing.T) {
	for name, s := range samples(t) {
		im := &intake{judge: judge{Format: s.format, Size: int64(len(s.file)), MaxVirtual: DefaultMaxVirtualSize}}
		f := &counted{part: part{io.NewSectionReader(bytes.NewReader(s.file), 0, int64(len(s.file)))}}
		if s.description != nil {
			if err := im.describe(s.description); err != nil {
				t.Fatal(err)
			}
		}
		if _, _, err := im.openFile(t.Context(), diskfmt.Format(s.format), f, im.Size); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if most := im.Size + 128*kib; f.n == 0 || f.n > most {
			t.Errorf("%s: %d bytes of %d were read, want some and at most %d", name, f.n, im.Size, most)
		}
		t.Logf("%s: %d KiB of %d were read", name, f.n/kib, im.Size/kib)
	}
}

// counted is a file that counts the bytes read of it.
type counted struct {
	part
	n int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.part.ReadAt(p, off)
	c.n += int64(n)
	return n, err
}

// TestLargestDisks has a verdict on disks of 64 TiB, sound ones, as quickly.
func TestLargestDisks(t *testing.T) {
	if testing.Short() {
		t.Skip("measures the worker as it is shipped; -short is for the race detector, which makes it larger")
	}
	for name, args := range map[string]string{
		"qcow2": "qcow2 -o cluster_size=2M", "vhdx": "vhdx -o block_size=256M", "ploop": "parallels -o cluster_size=128M", "raw": "raw",
	} {
		file := filepath.Join(t.TempDir(), "file")
		size := int64(64 << 40)
		if name == "raw" {
			f, err := os.Create(file)
			if err != nil {
				t.Fatal(err)
			}
			for err = f.Truncate(size); errors.Is(err, syscall.EFBIG) && size > 1<<40; err = f.Truncate(size) {
				size /= 2 // as much as this file system has
			}
			f.Close()
			if err != nil {
				t.Fatal(err)
			}
		} else {
			tool(t, "qemu-img", append(append([]string{"create", "-q", "-f"}, strings.Fields(args)...), file, "64T")...)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		r, took := gauged(t, f, judge{Format: name, Size: fi.Size(), MaxVirtual: DefaultMaxVirtualSize, Threads: 2}, false)
		if r.Header == nil || r.Header.VirtualSize != size || r.Header.MaxData != 0 {
			t.Errorf("%s: got %+v, %+v, want a disk of %d bytes without data", name, r.Header, r.Failure, size)
		}
		if took.cpu > time.Second || took.peak > 112*mib {
			t.Errorf("%s: took %v of CPU and %d MiB, want a second and 112 MiB at most", name, took.cpu, took.peak/mib)
		}
		t.Logf("%s: %d KiB of file, %v of CPU, %d MiB", name, fi.Size()/kib, took.cpu, took.peak/mib)
		_, err = Open(t.Context(), Config{}, Source{File: f}, Claim{Format: name, MaxVirtualSize: size - 1})
		refusal{errs.Unsafe, strict.Quota, "virtual size"}.check(t, name+" over the limit", err)
	}
}
