package daemon

import (
	"context"
	"io"
	"math"
	"runtime/debug"
	"testing"
)

func TestMemoryIsTunedUnlessSet(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	for _, c := range []struct {
		name    string
		env     map[string]string
		percent int
		limit   int64
	}{
		{"neither", nil, gcPercent, memoryLimit},
		{"GOGC", map[string]string{"GOGC": "100"}, 77, memoryLimit},
		{"GOMEMLIMIT", map[string]string{"GOMEMLIMIT": "off"}, gcPercent, math.MaxInt64},
		{"both", map[string]string{"GOGC": "100", "GOMEMLIMIT": "1GiB"}, 77, math.MaxInt64},
	} {
		debug.SetGCPercent(77)
		debug.SetMemoryLimit(math.MaxInt64)
		tuneMemory(func(name string) string { return c.env[name] })
		if percent, limit := debug.SetGCPercent(77), debug.SetMemoryLimit(-1); percent != c.percent || limit != c.limit {
			t.Errorf("%s in the environment: GOGC %d and a limit of %d bytes, want %d and %d", c.name, percent, limit, c.percent, c.limit)
		}
	}
}

// TestTheDaemonTunesItsMemory fails to start one, behind the tuning.
func TestTheDaemonTunesItsMemory(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(77))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(math.MaxInt64))
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	ctx, stop := context.WithCancel(context.Background())
	stop()
	Main(ctx, []string{"--state-dir", t.TempDir(), "--", "true"}, io.Discard, io.Discard)
	if percent, limit := debug.SetGCPercent(-1), debug.SetMemoryLimit(-1); percent != gcPercent || limit != memoryLimit {
		t.Errorf("a daemon runs with GOGC %d and a limit of %d bytes, want %d and %d", percent, limit, gcPercent, memoryLimit)
	}
}
