// Command ceph runs a command beside a Ceph cluster of one node, which
// TARN_TEST_CEPH names to tests, and returns its status. The cluster ends with it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/tarn-storage/tarn/test/system/ceph"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() > 0 {
			os.Exit(exit.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "ceph:", err)
		os.Exit(1)
	}
}

func run(argv []string) error {
	if len(argv) == 0 {
		return errors.New("which command? (ceph COMMAND ARG...)")
	}
	c, err := ceph.Up()
	if err != nil {
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), "TARN_TEST_CEPH="+c.Conf)
	return cmd.Run()
}
