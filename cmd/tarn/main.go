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
	runtime.GOMAXPROCS(1) // a call does one thing after the other; waking more threads costs a tenth of it
	ctx, _ := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM) // never given back: that costs as much as a tenth of a call
	os.Exit(cli.Run(ctx, os.Args[1:], cli.Streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr}))
}
