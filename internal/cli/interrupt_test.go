package cli_test

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/client"
	"github.com/tarn-storage/tarn/internal/cli"
	"github.com/tarn-storage/tarn/internal/config"
	"github.com/tarn-storage/tarn/internal/daemon"
	"github.com/tarn-storage/tarn/internal/faults"
)

// watched starts a daemon behind a socket that calls seen with every piece
// that a client sends. It returns that socket and a client of the daemon.
func watched(t *testing.T, seen func([]byte)) (string, *client.Client) {
	t.Helper()
	dir := t.TempDir()
	c, err := config.Config{StateDir: filepath.Join(dir, "state"), Socket: filepath.Join(dir, "s")}.WithDefaults(config.Places{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := daemon.Start(t.Context(), c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cl := client.New(client.Search{Socket: c.Socket})
	front, err := net.Listen("unix", filepath.Join(dir, "front"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cl.Close()
		front.Close()
		if err := d.Stop(context.Background()); err != nil {
			t.Errorf("Stop: %v", err)
		}
	})
	go func() {
		for {
			in, err := front.Accept()
			if err != nil {
				return
			}
			go forward(in, c.Socket, seen)
		}
	}()
	return front.Addr().String(), cl
}

func forward(in net.Conn, to string, seen func([]byte)) {
	defer in.Close()
	out, err := net.Dial("unix", to)
	if err != nil {
		return
	}
	defer out.Close()
	go func() {
		defer in.Close()
		_, _ = io.Copy(in, out)
	}()
	b := make([]byte, 64<<10)
	for {
		n, err := in.Read(b)
		if n > 0 {
			if _, err := out.Write(b[:n]); err != nil {
				return
			}
			seen(b[:n])
		}
		if err != nil {
			return
		}
	}
}

// run runs tarn with files as its standard streams and returns its status and
// what it wrote on standard error.
func run(t *testing.T, ctx context.Context, in *os.File, args ...string) (int, string) {
	t.Helper()
	dir := t.TempDir()
	var files [2]*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(dir, string(rune('a'+i))))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	status := cli.Run(ctx, args, cli.Streams{In: in, Out: files[0], Err: files[1]})
	text, err := os.ReadFile(files[1].Name())
	if err != nil {
		t.Fatal(err)
	}
	return status, string(text)
}

func makePool(t *testing.T, c *client.Client) {
	t.Helper()
	out, err := c.PoolCreate(t.Context(), api.Options{}, api.PoolCreate{Name: "p", Driver: "dir", Path: filepath.Join(t.TempDir(), "p")})
	if err != nil {
		t.Fatal(err)
	}
	for op := *out.Operation; !op.Final(); {
		if op, err = c.OperationWait(t.Context(), op.ID, 1e9); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInterruptStopsWaitingOnly interrupts "tarn operation wait" once it waits:
// the operation goes on.
func TestInterruptStopsWaitingOnly(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	socket, c := watched(t, func(b []byte) {
		if bytes.Contains(b, []byte("?wait=")) {
			interrupt()
		}
	})
	makePool(t, c)
	image, stop := io.Pipe() // an import that runs as long as the test wants
	imported := make(chan error, 1)
	go func() {
		_, err := c.ImageImport(t.Context(), api.Options{}, api.ImageImport{Name: "slow", Format: "raw"}, client.Source{Stream: image, Size: -1})
		imported <- err
	}()
	if _, err := stop.Write(make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	id := runningImport(t, c)
	status, text := run(t, ctx, nil, "--socket", socket, "operation", "wait", id)
	if status != 9 || !strings.Contains(text, "operation "+id+" goes on") || !strings.Contains(text, "tarn operation cancel "+id) || !strings.Contains(text, "tarn operation wait "+id) {
		t.Errorf("got status %d and %q, want 9 and how to go on", status, text)
	}
	stop.Close()
	if err := <-imported; err != nil {
		t.Errorf("the import: %v", err)
	}
	if status, text := run(t, t.Context(), nil, "--socket", socket, "operation", "wait", id); status != 0 {
		t.Errorf("waiting again: got status %d and %q", status, text)
	}
}

// runningImport returns the id of the import that was begun.
func runningImport(t *testing.T, c *client.Client) string {
	t.Helper()
	for ev, err := range c.Events(t.Context(), 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Type == "operation.queued" && ev.Subject.Type == "image" {
			return ev.Op
		}
	}
	t.Fatal("the events ended")
	return ""
}

// interruptible returns a context that ends as a signal ends the command's.
func interruptible(t *testing.T) (context.Context, func()) {
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGUSR1)
	t.Cleanup(stop)
	return ctx, func() {
		if err := syscall.Kill(os.Getpid(), syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
	}
}

// TestInterruptedCallIsOneSentence interrupts a call in its middle.
func TestInterruptedCallIsOneSentence(t *testing.T) {
	ctx, interrupt := interruptible(t)
	socket, _ := watched(t, func(b []byte) {
		if bytes.Contains(b, []byte("POST /v1/images/inspect")) {
			interrupt()
		}
	})
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	status, text := run(t, ctx, in, "--socket", socket, "image", "inspect", "-", "--format", "raw")
	if want := "tarn: stopped before the daemon had answered\n"; status != 9 || text != want {
		t.Errorf("got status %d and %q, want 9 and %q", status, text, want)
	}
}

// TestInterruptedChangeIsFollowed interrupts a call that starts an operation
// before its answer is there: what became of it is said all the same.
func TestInterruptedChangeIsFollowed(t *testing.T) {
	ctx, interrupt := interruptible(t)
	socket, c := watched(t, func(b []byte) {
		if bytes.Contains(b, []byte("POST /v1/instances")) {
			interrupt()
		}
	})
	makePool(t, c)
	status, text := run(t, ctx, nil, "--socket", socket, "instance", "create", "web1", "--data", "1M")
	ended := status == 0 && text == ""
	goesOn := status == 9 && strings.Contains(text, "tarn operation wait ")
	if !ended && !goesOn {
		t.Errorf("got status %d and %q, want what became of the operation", status, text)
	}
	if i, err := c.Instance(t.Context(), "web1"); ended && (err != nil || len(i.Disks) != 1) {
		t.Errorf("it ended well, and the instance is %+v, %v", i, err)
	}
}

// held is a hook that keeps the first sync waiting until it may go on.
type held struct {
	once        sync.Once
	reached, on chan struct{}
}

func (h *held) Before(e faults.Effect) error {
	if e.Kind == faults.Sync {
		h.once.Do(func() { close(h.reached); <-h.on })
	}
	return nil
}

func (h *held) After(_ faults.Effect, err error) error { return err }

// TestInterruptedStreamGoesOn interrupts an import whose every byte the daemon
// has: how to get back to it is said.
func TestInterruptedStreamGoesOn(t *testing.T) {
	ctx, interrupt := interruptible(t)
	socket, c := watched(t, func([]byte) {})
	makePool(t, c)
	h := &held{reached: make(chan struct{}), on: make(chan struct{})}
	defer faults.Install(h)()
	goOn := sync.OnceFunc(func() { close(h.on) })
	defer goOn()
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	go func() {
		_, _ = out.Write(bytes.Repeat([]byte("tarn"), 1024))
		out.Close()
		<-h.reached
		interrupt()
	}()
	status, text := run(t, ctx, in, "--socket", socket, "image", "import", "slow", "-", "--format", "raw")
	goOn()
	id := runningImport(t, c)
	if status != 9 || !strings.Contains(text, "operation "+id+" goes on") || !strings.Contains(text, "tarn operation cancel "+id) {
		t.Errorf("got status %d and %q, want 9 and how to get back to operation %s", status, text, id)
	}
	if status, text := run(t, t.Context(), nil, "--socket", socket, "operation", "wait", id); status != 0 {
		t.Errorf("waiting for it: got status %d and %q", status, text)
	}
}

// TestInterruptedStreamIsUndone interrupts an import from a pipe in its
// middle: a short body leaves nothing.
func TestInterruptedStreamIsUndone(t *testing.T) {
	ctx, interrupt := interruptible(t)
	socket, c := watched(t, func([]byte) {})
	makePool(t, c)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	go func() {
		runningImport(t, c)
		interrupt()
	}()
	status, text := run(t, ctx, in, "--socket", socket, "image", "import", "cut", "-", "--format", "raw")
	if want := "tarn: the import was stopped; nothing is kept\n"; status != 9 || text != want {
		t.Errorf("got status %d and %q, want 9 and %q", status, text, want)
	}
	for ev, err := range c.Events(t.Context(), 0, true) {
		if err != nil {
			t.Fatal(err)
		}
		if ev.Type == "operation.failed" || ev.Type == "operation.cancelled" {
			break
		}
	}
	if l, err := c.Images(t.Context(), api.Page{}); err != nil || len(l.Items) != 0 {
		t.Errorf("images: %v, %v, want none", l.Items, err)
	}
	if l, err := c.Volumes(t.Context(), "", api.Page{}); err != nil || len(l.Items) != 0 {
		t.Errorf("volumes: %v, %v, want none", l.Items, err)
	}
}
