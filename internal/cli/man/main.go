// Package man is a program that writes the manual pages of tarn into a directory.
// It is one of its own because a manual's tools would make every call of tarn
// slower. It refuses to say what the commands' own texts do not say.
package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra/doc"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/cli"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: man DIR")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

// write writes a page for every command into dir, which is made if it is missing.
func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := cli.Tree()
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "1", Source: "tarn " + api.Build().Version, Manual: "tarn"}
	return doc.GenManTree(root, header, dir)
}
