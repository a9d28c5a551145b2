package ingest

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// TestMain makes this test binary its own worker, as tarnd is.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch os.Args[1] {
		case "worker":
			WorkerMain()
		case "probe":
			probeMain()
		}
	}
	goleak.VerifyTestMain(m)
}
