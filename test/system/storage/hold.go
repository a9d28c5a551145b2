package storage

import (
	"bytes"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// hold has a qemu-io open what options name, for writing, as a guest's QEMU does.
func hold(t testing.TB, options string) (release func()) {
	t.Helper()
	cmd := exec.Command(tarntest.NeedTool(t, "qemu-io"), "--image-opts", options)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(in, "length\n"); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer // it answers when the image is open and locked
	for !strings.Contains(said.String(), "MiB") {
		if _, err := io.CopyN(&said, out, 1); err != nil {
			t.Fatalf("qemu-io: %v: %s", err, said.String())
		}
	}
	done := false
	release = func() {
		if !done {
			done = true
			in.Close()
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(release)
	return release
}
