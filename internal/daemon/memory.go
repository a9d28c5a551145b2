package daemon

import "runtime/debug"

// What the garbage collector gets where the environment does not say. The
// daemon's live heap is a few MiB, and at the default of 100 % under 64 clients
// a fifth of its CPU time went into collecting it again and again. The limit
// keeps what a list of 10,000 volumes allocates within 150 MiB resident: near it
// the collector works harder, nothing fails.
const (
	gcPercent   = 400
	memoryLimit = 100 << 20
)

// tuneMemory sets the collector up for a daemon, but for what GOGC and
// GOMEMLIMIT set, which getenv finds.
func tuneMemory(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
