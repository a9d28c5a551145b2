package engine_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/internal/faults"
)

// hold stops the first effect of a kind whose name has a prefix, before it is
// performed or behind it, until it is let go.
type hold struct {
	kind    faults.Kind
	prefix  string
	behind  bool
	once    sync.Once
	let     func() // resumes it
	reached chan struct{}
	resume  chan struct{}
}

func (h *hold) wait(e faults.Effect, behind bool) {
	if behind != h.behind || e.Kind != h.kind || !strings.HasPrefix(e.Name, h.prefix) {
		return
	}
	h.once.Do(func() {
		close(h.reached)
		<-h.resume
	})
}

// holds are several of them at once.
type holds []*hold

func (hs holds) Before(e faults.Effect) error {
	for _, h := range hs {
		h.wait(e, false)
	}
	return nil
}

func (hs holds) After(e faults.Effect, err error) error {
	for _, h := range hs {
		h.wait(e, true)
	}
	return err
}

// before and behind hold the first effect of kind k on what name begins with.
func before(k faults.Kind, name string) *hold {
	h := &hold{kind: k, prefix: name, reached: make(chan struct{}), resume: make(chan struct{})}
	h.let = sync.OnceFunc(func() { close(h.resume) })
	return h
}

func behind(k faults.Kind, name string) *hold {
	h := before(k, name)
	h.behind = true
	return h
}

// begin submits a call and returns its operation, which runs.
func (b *bench) begin(out api.Outcome, err error) api.Operation {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	return *out.Operation
}

// ended waits for an operation that has to succeed.
func (b *bench) ended(op api.Operation) {
	b.t.Helper()
	b.must(api.Outcome{Operation: &op}, nil)
}

// inPool returns the visible files of a pool's directory.
func inPool(t *testing.T, dir string) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dir, "[^.]*"))
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// TestADeletedBaseGetsNoSidecar deletes the last name of a base while the
// deletion of the name before is about to write the base's sidecar.
func TestADeletedBaseGetsNoSidecar(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	dir := b.pool("main")
	data := make([]byte, 8192)
	data[1] = 1
	for _, name := range []string{"n1", "n2"} {
		if op := b.stream(name, "raw", strings.NewReader(string(data))); op.State != "done" {
			t.Fatal(op.Error)
		}
	}
	writing := before(faults.Sync, "sync base_")
	defer faults.Install(holds{writing})()
	defer writing.let()
	first := b.begin(b.ImageDelete(ctx, api.Options{}, "n1"))
	<-writing.reached
	last := b.begin(b.ImageDelete(ctx, api.Options{}, "n2"))
	// The deletion may only end before the writer goes on if it does not wait
	// for it: that is given time to happen.
	if _, err := b.OperationWait(ctx, last.ID, 200*time.Millisecond); err != nil {
		t.Error(err)
	}
	writing.let()
	b.ended(first)
	b.ended(last)
	if left := inPool(t, dir); len(left) > 0 {
		t.Errorf("the base is gone, the pool still holds %v", left)
	}
	b.silent("two deletions of one base's names")
}

// TestASidecarOfAVolumeThatGoes renames an image while one of its bases is
// deleted: the bytes are gone, the record not yet.
func TestASidecarOfAVolumeThatGoes(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("one")
	two := b.pool("two")
	b.image("i", 8192, "one")
	b.must(b.CacheAdd(ctx, api.Options{}, api.CacheAdd{Image: "i", Pool: "two"}))
	writing, gone := before(faults.Sync, "sync base_"), behind(faults.Unlink, "unlink base_")
	defer faults.Install(holds{writing, gone})()
	defer writing.let()
	defer gone.let()
	rename := b.begin(b.ImageRename(ctx, api.Options{}, "i", "j"))
	<-writing.reached
	prune := b.begin(b.CachePrune(ctx, api.Options{}, api.CachePrune{Pool: "two"}))
	<-gone.reached
	writing.let()
	b.ended(rename)
	gone.let()
	b.ended(prune)
	if left := inPool(t, two); len(left) > 0 {
		t.Errorf("the base is gone, the pool still holds %v", left)
	}
	b.silent("a rename during a prune")
}
