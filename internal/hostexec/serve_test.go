package hostexec

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
)

// served starts the stand-in of qemu-storage-daemon, which runs until it is told
// to end, and returns a pipe that ends with it.
func served(t *testing.T, ctx context.Context, how string) (*Process, *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	p, err := Serve(ctx, Call{Program: QemuStorageDaemon, Files: []*os.File{w}, Operands: []Value{Text(how)}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	return p, r
}

func TestServe(t *testing.T) {
	dir := standIns(t)
	var none counter
	remove := faults.Install(&none)
	p, _ := served(t, t.Context(), "hold")
	remove()
	if len(none.effects) != 0 {
		t.Errorf("the start had effects: %v", none.effects)
	}
	if want, got := []string{filepath.Join(dir, "qemu-storage-daemon"), "hold"}, words(recorded(t, filepath.Join(dir, "record"))); !slices.Equal(got, want) {
		t.Errorf("argv: got %q, want %q", got, want)
	}
	p.Stop(time.Minute)
	<-p.Done()
	var exit *Exit
	if _, err := p.Wait(); !errors.As(err, &exit) || exit.Signal != syscall.SIGTERM {
		t.Errorf("stopped: %v, want the end by SIGTERM", err)
	}
	p.Stop(time.Minute) // what has ended stays so
	p, _ = served(t, t.Context(), "deaf")
	p.Stop(time.Minute)
	if _, err := p.Wait(); err != nil {
		t.Errorf("stopped, the first time unheard: %v, want that it ended by itself", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	p, r := served(t, ctx, "hold")
	cancel()
	if _, err := p.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("when its context ended: %v", err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Error(err)
	}
	if _, err := Serve(ctx, Call{Program: QemuStorageDaemon}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("on an ended context: %v, want errs.Cancelled", err)
	}
}

// TestServedEndsWithItsStarter kills a process that serves.
func TestServedEndsWithItsStarter(t *testing.T) {
	if os.Getenv("TARN_TEST_SERVE") == "1" {
		searchPath = os.Getenv("TARN_TEST_SEARCH")
		held := os.NewFile(3, "held")
		if _, err := Serve(t.Context(), Call{Program: QemuStorageDaemon, Files: []*os.File{held}, Operands: []Value{Text("hold")}}); err != nil {
			t.Fatal(err)
		}
		held.Close()
		select {}
	}
	dir := standIns(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestServedEndsWithItsStarter$")
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), "TARN_TEST_SERVE=1", "TARN_TEST_SEARCH="+dir), []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(cmd.Process.Kill(), r.SetReadDeadline(time.Now().Add(20*time.Second))); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("what it served lives on: %v", err)
	}
}

// An option and its value in one word stay one word, whatever the value.
func TestJoined(t *testing.T) {
	dir := standIns(t)
	c, want := Call{Program: RBD}, []string{filepath.Join(dir, "rbd")}
	for _, v := range hostile(200) {
		c.Options, want = append(c.Options, Joined("--image", Text(v))), append(want, "--image="+v)
	}
	if _, err := Run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := words(recorded(t, filepath.Join(dir, "record"))); !slices.Equal(got, want) {
		t.Errorf("argv: got %q, want %q", got, want)
	}
}
