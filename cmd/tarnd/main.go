// Command tarnd is the daemon of tarn.
package main

import (
	"context"
	"os"

	"github.com/tarn-storage/tarn/internal/daemon"
	"github.com/tarn-storage/tarn/internal/ingest"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "worker" {
		ingest.WorkerMain() // never returns: nothing else of this program runs in it
	}
	os.Exit(daemon.Main(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
