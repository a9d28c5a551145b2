package engine_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
)

// children returns the processes that this one started and that have not been
// waited for.
func children(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil || len(lists) == 0 {
		t.Fatalf("no lists of children: %v", err)
	}
	var pids []string
	for _, name := range lists {
		if b, err := os.ReadFile(name); err == nil { // else the thread has ended
			pids = append(pids, strings.Fields(string(b))...)
		}
	}
	slices.Sort(pids)
	return pids
}

// TestNoWorkerOutlivesItsImport ends imports in every way and looks for what
// they started.
func TestNoWorkerOutlivesItsImport(t *testing.T) {
	b := newBench(t)
	b.pool("main")
	before := children(t)
	good, bad := bytes.Repeat([]byte("0123456789abcdef"), 512<<10), []byte("QFI\xfb, but not of a disk")
	imported := func(name string, data []byte, state string) {
		t.Helper()
		if op := b.stream(name, "raw", bytes.NewReader(data)); string(op.State) != state {
			t.Fatalf("import of %s ended as %s, want %s: %+v", name, op.State, state, op.Error)
		}
		if left := children(t); !slices.Equal(left, before) {
			t.Errorf("import of %s: the processes %v became %v", name, before, left)
		}
	}
	imported("good", good, "done")
	imported("bad", bad, "failed")
	p := mustPool(t, b, "main")
	reserve := strconv.FormatInt(p.Capacity-p.Foreign-p.Committed-4<<20, 10)
	b.must(b.PoolSet(context.Background(), api.Options{}, "main", api.PoolSet{Reserve: &reserve}))
	imported("too large for the pool", good[:len(good)-1], "failed")
}
