package engine_test

import (
	"bytes"
	"context"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
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

// deadly gives the bytes of r, and once n of them have passed ends what this
// process started.
type deadly struct {
	r      io.Reader
	n      int
	spared []string
	t      *testing.T
}

func (d *deadly) Read(p []byte) (int, error) {
	n, err := d.r.Read(p[:min(len(p), 64<<10)])
	if before := d.n; before > 0 && before <= n {
		for _, pid := range children(d.t) {
			if id, err := strconv.Atoi(pid); err == nil && !slices.Contains(d.spared, pid) {
				_ = syscall.Kill(id, syscall.SIGKILL) // it may have ended
			}
		}
	}
	d.n -= n
	return n, err
}

// TestAKilledWorkerLeavesNothing kills the worker at random points of imports.
func TestAKilledWorkerLeavesNothing(t *testing.T) {
	b := newBench(t)
	dir := b.pool("main")
	data := noise(8 << 20)
	before := children(t)
	for range 10 {
		at := 1 + mathrand.IntN(len(data)-2<<20) // with more to come than pipes hold
		op := b.stream("i", "raw", &deadly{bytes.NewReader(data), at, before, t})
		if op.State != "failed" || op.Error.Kind != errs.Unavailable || !strings.Contains(op.Error.Message, "worker") {
			t.Errorf("killed at byte %d the import is %s: %+v, want an error about the worker", at, op.State, op.Error)
		}
		b.empty("main")
	}
	for pattern, want := range map[string]int{"[^.]*": 0, ".tarn-tmp/*": 1} { // the ballast
		if left, err := filepath.Glob(filepath.Join(dir, pattern)); err != nil || len(left) != want {
			t.Errorf("the pool has %v, %v, want %d", left, err, want)
		}
	}
	if op := b.stream("i", "raw", bytes.NewReader(data)); op.State != "done" {
		t.Errorf("undisturbed the import is %s: %+v", op.State, op.Error)
	}
}
