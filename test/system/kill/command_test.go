package kill_test

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// TestACommandEndsWithItsKilledDaemon kills a tarnd that runs a command: the
// command, which nobody serves any more, does not stay behind.
func TestACommandEndsWithItsKilledDaemon(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(filepath.Join(tarntest.Binaries(t), "tarnd"), "--state-dir", t.TempDir(), "--", "sh", "-c", "echo up; exec sleep 600")
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := r.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	if line, err := out.ReadString('\n'); line != "up\n" {
		t.Fatalf("the command said %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if rest, err := io.ReadAll(out); err != nil {
		t.Errorf("the command still has its output open (%q): %v", rest, err)
	}
}
