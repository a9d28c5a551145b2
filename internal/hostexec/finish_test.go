package hostexec

import (
	"context"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// pipe returns the ends of a pipe; what is read from it comes within 20 s.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return r, w
}

func finish(to, until *os.File) Call {
	return Call{Program: LVM, Files: []*os.File{to, until}, Operands: []Value{Text("finish")}, Finish: true}
}

func TestFinishIsNotCancelled(t *testing.T) {
	standIns(t)
	said, to := pipe(t)
	until, end := pipe(t)
	ctx, cancel := context.WithCancel(t.Context())
	var out Output
	done := make(chan error, 1)
	go func() {
		var err error
		out, err = Run(ctx, finish(to, until))
		done <- err
	}()
	if _, err := io.ReadFull(said, make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	cancel()
	end.Close()
	if err := <-done; err != nil || out.Stdout != "done" || out.Stderr != "well" {
		t.Errorf("cancelled: got %q, %q, %v, want it to finish with done and well", out.Stdout, out.Stderr, err)
	}
}

// TestFinishOutlivesItsStarter kills a process that waits for what must finish.
func TestFinishOutlivesItsStarter(t *testing.T) {
	if os.Getenv("TARN_TEST_FINISH") == "1" {
		searchPath = os.Getenv("TARN_TEST_SEARCH")
		_, err := Run(t.Context(), finish(os.NewFile(3, "to"), os.NewFile(4, "until")))
		t.Fatalf("it ended: %v", err)
	}
	dir := standIns(t)
	said, to := pipe(t)
	until, end := pipe(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestFinishOutlivesItsStarter$")
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), "TARN_TEST_FINISH=1", "TARN_TEST_SEARCH="+dir), []*os.File{to, until}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	to.Close()
	if _, err := io.ReadFull(said, make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	end.Close()
	if b, err := io.ReadAll(said); string(b) != "finished" || err != nil {
		t.Errorf("after its starter was killed it said %q, %v, want finished", b, err)
	}
}
