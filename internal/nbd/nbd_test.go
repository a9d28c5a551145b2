package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/nbd"
)

const mib = 1 << 20

// tool returns the path of a program, or ends the test.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: run scripts/install-deps test", name)
		}
		t.Skipf("%s is missing: run scripts/install-deps test", name)
	}
	return path
}

// serve runs a server on a socket and returns how to reach it. The server dies
// with the test.
func serve(t *testing.T, argv func(socket string) []string) func() net.Conn {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // short: a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	args := argv(socket)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { cancel(); <-ended })
	return func() net.Conn {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			c, err := net.Dial("unix", socket)
			if err == nil {
				return c
			}
			select {
			case err := <-ended:
				ended <- err
				t.Fatalf("%s: %v\n%s", args[0], err, said.String())
			case <-time.After(5 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s does not listen: %v", args[0], err)
			}
		}
	}
}

// servers are the real ones, each with a writable export "disk" of 64 MiB zeroes.
func servers(t *testing.T) map[string]func(socket string) []string {
	file := func() string {
		f := filepath.Join(t.TempDir(), "disk")
		if err := errors.Join(os.WriteFile(f, nil, 0o600), os.Truncate(f, 64*mib)); err != nil {
			t.Fatal(err)
		}
		return f
	}
	return map[string]func(string) []string{
		"qemu-nbd": func(s string) []string {
			return []string{tool(t, "qemu-nbd"), "-f", "raw", "-x", "disk", "-k", s, "-e", "8", "-t", "--discard=unmap", file()}
		},
		"qemu-storage-daemon": func(s string) []string {
			return []string{tool(t, "qemu-storage-daemon"), "--blockdev", "driver=file,node-name=f,discard=unmap,filename=" + file(),
				"--nbd-server", "addr.type=unix,addr.path=" + s, "--export", "type=nbd,id=e,node-name=f,name=disk,writable=on"}
		},
		"nbdkit": func(s string) []string {
			return []string{tool(t, "nbdkit"), "-f", "-U", s, "memory", "64M"}
		},
	}
}

func open(t *testing.T, conn net.Conn, export string) *nbd.Client {
	t.Helper()
	c, err := nbd.New(conn, nbd.Config{Export: export, Patience: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestRealServers(t *testing.T) {
	for name, argv := range servers(t) {
		t.Run(name, func(t *testing.T) {
			dial := serve(t, argv)
			c := open(t, dial(), "disk")
			if c.Size() != 64*mib || c.ReadOnly() {
				t.Fatalf("%d bytes, read-only %v; want 64 MiB to write", c.Size(), c.ReadOnly())
			}
			want := concurrently(t, c)
			if err := c.Flush(); err != nil {
				t.Error(err)
			}
			for _, r := range [][2]int64{{5, 4090}, {17 * mib, 2*mib + 1}, {64*mib - 1, 1}} {
				if err := c.Zero(r[0], r[1]); err != nil {
					t.Errorf("Zero%v: %v", r, err)
				}
				clear(want[r[0] : r[0]+r[1]])
			}
			if err := c.Trim(40*mib, mib); err != nil {
				t.Errorf("Trim: %v", err)
			}
			if n, err := c.WriteDurable(want[40*mib:41*mib], 40*mib); n != mib || err != nil {
				t.Errorf("WriteDurable: %d bytes, %v", n, err)
			}
			got := make([]byte, 64*mib+1)
			if n, err := c.ReadAt(got, 0); n != 64*mib || err != io.EOF || !bytes.Equal(got[:n], want) {
				t.Errorf("ReadAt past the end: %d bytes, %v, the same %v", n, err, bytes.Equal(got[:n], want))
			}
			checkStatus(t, c, want)
			checkRefusals(t, c)
			if err := c.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
			if _, err := c.ReadAt(got[:1], 0); !errors.Is(err, errs.Unavailable) {
				t.Errorf("ReadAt after Close: %v, want errs.Unavailable", err)
			}
			if again := open(t, dial(), "disk"); again.Size() != 64*mib {
				t.Errorf("a second connection sees %d bytes", again.Size())
			}
		})
	}
}

// concurrently writes odd ranges from many goroutines, reads them back, and
// returns what the export holds.
func concurrently(t *testing.T, c *nbd.Client) []byte {
	t.Helper()
	want := make([]byte, 64*mib)
	var wg sync.WaitGroup
	for i := range 16 {
		part := want[i*2*mib+i : (i+1)*2*mib]
		random := rand.NewChaCha8([32]byte{byte(i)})
		wg.Go(func() {
			_, _ = random.Read(part)
			off := int64(i*2*mib + i)
			if n, err := c.WriteAt(part, off); n != len(part) || err != nil {
				t.Errorf("WriteAt %d: %d bytes, %v", off, n, err)
			}
			got := make([]byte, len(part))
			if n, err := c.ReadAt(got, off); n != len(got) || err != nil || !bytes.Equal(got, part) {
				t.Errorf("ReadAt %d: %d bytes, %v, the same %v", off, n, err, bytes.Equal(got, part))
			}
		})
	}
	wg.Wait()
	return want
}

// checkStatus checks that what is told to be zero is, and that the end, which
// nobody wrote, is told to be.
func checkStatus(t *testing.T, c *nbd.Client, want []byte) {
	t.Helper()
	zero := int64(0)
	for off := int64(0); off < c.Size(); {
		extents, err := c.Status(off, c.Size()-off)
		if err != nil || len(extents) == 0 {
			t.Fatalf("Status(%d): %v, %v", off, extents, err)
		}
		for _, e := range extents {
			if e.Zero && bytes.Count(want[off:off+e.Length], []byte{0}) != int(e.Length) {
				t.Errorf("%d bytes at %d are told to be zero and hold something", e.Length, off)
			}
			if e.Zero {
				zero += e.Length
			}
			off += e.Length
		}
	}
	if zero < 20*mib {
		t.Errorf("%d bytes are told to be zero, 23 MiB were never written", zero)
	}
}

func checkRefusals(t *testing.T, c *nbd.Client) {
	t.Helper()
	_, w := c.WriteAt(make([]byte, 2), 64*mib-1)
	_, n := c.WriteAt(nil, -1)
	_, r := c.ReadAt(nil, -1)
	_, s := c.Status(64*mib, 1)
	for what, err := range map[string]error{"write past the end": w, "write before the beginning": n, "read before the beginning": r,
		"zero past the end": c.Zero(63*mib, 2*mib), "trim past the end": c.Trim(63*mib, 2*mib), "status past the end": s} {
		if !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want errs.Invalid", what, err)
		}
	}
	if n, err := c.ReadAt(make([]byte, 1), 65*mib); n != 0 || err != io.EOF {
		t.Errorf("a read behind the end: %d, %v, want EOF", n, err)
	}
}

func TestMissingExport(t *testing.T) {
	for _, name := range []string{"qemu-nbd", "qemu-storage-daemon"} {
		dial := serve(t, servers(t)[name])
		if _, err := nbd.New(dial(), nbd.Config{Export: "other", Patience: 20 * time.Second}); !errors.Is(err, errs.NotFound) {
			t.Errorf("%s: %v, want errs.NotFound", name, err)
		}
	}
}

// A server's error fails its request and no other.
func TestServerErrors(t *testing.T) {
	dial := serve(t, func(s string) []string {
		return []string{tool(t, "nbdkit"), "-f", "-U", s, "--filter=error", "memory", "64M",
			"error-pread=EIO", "error-pread-rate=100%", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"}
	})
	c := open(t, dial(), "")
	if _, err := c.ReadAt(make([]byte, 10), 0); !errors.Is(err, errs.Unavailable) {
		t.Errorf("EIO: %v, want errs.Unavailable", err)
	}
	if _, err := c.WriteAt(make([]byte, 10), 0); !errors.Is(err, errs.NoSpace) {
		t.Errorf("ENOSPC: %v, want errs.NoSpace", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("after two errors Flush: %v", err)
	}
}

// A server that stops answering is given up.
func TestServerHangs(t *testing.T) {
	dial := serve(t, func(s string) []string {
		return []string{tool(t, "nbdkit"), "-f", "-U", s, "--filter=delay", "memory", "64M", "rdelay=1000"}
	})
	c, err := nbd.New(dial(), nbd.Config{Patience: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ReadAt(make([]byte, 10), 0); !errors.Is(err, errs.Unavailable) {
		t.Errorf("got %v, want errs.Unavailable", err)
	}
	if _, err := c.WriteAt(make([]byte, 10), 0); !errors.Is(err, errs.Unavailable) {
		t.Errorf("afterwards: %v, want errs.Unavailable", err)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, parallel := range []int{1, 16} {
		b.Run(fmt.Sprint(parallel), func(b *testing.B) {
			path, err := exec.LookPath("nbdkit")
			if err != nil {
				b.Skip("nbdkit is missing")
			}
			dir := b.TempDir()
			cmd := exec.CommandContext(b.Context(), path, "-f", "-U", dir+"/s", "memory", "64M")
			if err := cmd.Start(); err != nil {
				b.Fatal(err)
			}
			var conn net.Conn
			for conn == nil {
				conn, _ = net.Dial("unix", dir+"/s")
			}
			c, err := nbd.New(conn, nbd.Config{Patience: 10 * time.Second})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			b.SetBytes(4096)
			b.SetParallelism(parallel)
			b.RunParallel(func(p *testing.PB) {
				for buf := make([]byte, 4096); p.Next(); {
					if _, err := c.ReadAt(buf, 4096); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
