// Command tarn is the command line of tarn.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/tarn-storage/tarn/internal/cli"
)

func main() {
	// A call does one thing after the other: more threads cost more than they do.
	runtime.GOMAXPROCS(1)
	// The handler stays until the end: to give it back costs a tenth of a call.
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	os.Exit(cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
