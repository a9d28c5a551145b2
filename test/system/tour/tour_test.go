// Package tour_test walks through the README's tour with the real programs,
// and holds that they print what it shows.
package tour_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/tarn-storage/tarn/internal/cli"
	"github.com/tarn-storage/tarn/internal/daemon"
	"github.com/tarn-storage/tarn/internal/ingest"
)

// TestMain makes the test binary the two programs, by the name it is started
// with, and the daemon's worker.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "worker":
		ingest.WorkerMain()
	case filepath.Base(os.Args[0]) == "tarn":
		os.Exit(cli.Run(context.Background(), os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
	case filepath.Base(os.Args[0]) == "tarnd":
		os.Exit(daemon.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// session is a home directory with the two programs.
type session struct{ home, bin string }

func newSession(t *testing.T) session {
	t.Helper()
	s := session{t.TempDir(), t.TempDir()}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tarn", "tarnd"} {
		if err := os.Symlink(self, filepath.Join(s.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// run runs a script of bash with a private daemon and returns what it prints.
func (s session) run(t *testing.T, state, script string) string {
	t.Helper()
	c := exec.CommandContext(t.Context(), filepath.Join(s.bin, "tarnd"), "--state-dir", filepath.Join(s.home, state), "--", "bash", "-c", script)
	c.Dir = s.home
	c.Env = append(os.Environ(), "HOME="+s.home, "PATH="+s.bin+":"+os.Getenv("PATH"))
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// image makes home/debian12.qcow2.
func (s session) image(t *testing.T) {
	t.Helper()
	content := make([]byte, 9<<20)
	for i := range 1 << 20 {
		content[i] = byte(i*7 + i>>8)
	}
	if err := os.WriteFile(filepath.Join(s.home, "seed.raw"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, "seed-state", "set -e; tarn pool create seed --driver dir --path ~/seed; tarn image import seed seed.raw --format raw;"+
		"tarn instance create seed --root seed; tarn disk export seed/root debian12.qcow2 --format qcow2")
}

var block = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")

// tour returns the session in the README from the first command after the
// private daemon is started.
func tour(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := block.FindAllStringSubmatch(string(readme), -1)
	if len(blocks) < 2 || !strings.Contains(blocks[0][1], "$ tarnd ") {
		t.Fatalf("the README's tour does not begin with a private daemon: %q", blocks)
	}
	var text strings.Builder
	for _, b := range blocks[1:] {
		text.WriteString(b[1])
	}
	return text.String()
}

// variable is what differs from run to run. Whether the root disk is raw is the
// file system's affair.
var variable = []struct {
	form *regexp.Regexp
	by   string
}{
	{regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\b[a-z0-9]{20}\b`), "SERIAL"},
	{regexp.MustCompile(`file="[^"]*/tarn-tour/`), `file="HOME/tarn-tour/`},
	{regexp.MustCompile(`(web1/root .*) (raw|qcow2) `), "$1 FORMAT "},
	{regexp.MustCompile(` +\n`), "\n"},
	{regexp.MustCompile(`([^ \n]) +`), "$1 "},
}

func settled(text string) string {
	for _, v := range variable {
		text = v.form.ReplaceAllString(text, v.by)
	}
	return text
}

func TestReadme(t *testing.T) {
	if _, err := os.Stat("/usr/sbin/mkfs.xfs"); err != nil && os.Getenv("CI") == "" {
		t.Skip("the tour makes an XFS: install xfsprogs")
	}
	s := newSession(t)
	s.image(t)
	want := tour(t)
	script, commands := "", 0
	for line := range strings.Lines(want) {
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			commands++
			script += "cat <<'END'\n$ " + command + "END\n" + command
		}
	}
	if commands < 10 {
		t.Fatalf("the tour has only %d commands", commands)
	}
	if diff := cmp.Diff(settled(want), settled(s.run(t, "tarn-tour/state", script))); diff != "" {
		t.Errorf("the README shows something else than what happens (-README +now):\n%s", diff)
	}
}
