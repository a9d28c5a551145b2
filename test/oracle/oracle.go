// Package oracle runs the tools of others that tests believe more than tarn, and
// tests as somebody else. It refuses to hide that a tool is missing where CI runs.
package oracle

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Run runs the tool name of the Debian package deb and returns what it says. A
// tool that fails ends the test; one that is missing skips it, but in CI.
func Run(t testing.TB, deb, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: install %s", name, deb)
		}
		t.Skipf("%s is missing: install %s", name, deb)
	}
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
