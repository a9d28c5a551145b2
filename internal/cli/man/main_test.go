package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pages")
	if err := write(dir); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"tarn.1": "tarn-disk(1)", "tarn-disk-resize.1": "--shrink", "tarn-instance-create.1": "EXAMPLE"} {
		page, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(strings.ReplaceAll(string(page), "\\", ""), want) {
			t.Errorf("%s: %v, and it does not say %q", name, err, want)
		}
	}
}
