package journal_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/journal"
)

// files is a store in one synced file: operations, and records as the handlers
// of the tests keep them.
type files struct {
	dir string

	mu      sync.Mutex
	updates int                         // transactions that were committed
	fail    func(after *content) error  // fails the commit of a transaction
	lie     func(after *content) error  // fails the answer of one that is committed
	changed func(before, after content) // sees every commit
}

type content struct {
	Operations []journal.Operation
	Records    map[string]string
}

// tx is the transaction of files.
type tx struct{ content }

func newFiles(t *testing.T) *files {
	t.Helper()
	return &files{dir: t.TempDir()}
}

func (f *files) load() (content, error) {
	c := content{Records: map[string]string{}}
	b, err := os.ReadFile(filepath.Join(f.dir, "store.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(b, &c)
}

func (f *files) save(c content) error {
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return replace(filepath.Join(f.dir, "store.json"), b)
}

// replace writes a file so that it survives power loss whole or not at all.
func replace(path string, b []byte) error {
	w, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	_, err = w.Write(b)
	if err := errors.Join(err, w.Sync(), w.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (f *files) Update(ctx context.Context, fn func(context.Context, *tx) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, err := f.load()
	if err != nil {
		return err
	}
	t := &tx{content{slices.Clone(before.Operations), maps.Clone(before.Records)}}
	if err := fn(ctx, t); err != nil {
		return err
	}
	if f.fail != nil {
		if err := f.fail(&t.content); err != nil {
			return err
		}
	}
	if err := faults.Do(faults.Tx, "store", func() error { return f.save(t.content) }); err != nil {
		return err
	}
	f.updates++
	if f.changed != nil {
		f.changed(before, t.content)
	}
	if f.lie != nil {
		return f.lie(&t.content)
	}
	return nil
}

func (f *files) View(ctx context.Context, fn func(context.Context, *tx) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.load()
	if err != nil {
		return err
	}
	return fn(ctx, &tx{c})
}

func (f *files) InsertOperation(_ context.Context, t *tx, op journal.Operation) (journal.Operation, bool, error) {
	for _, o := range t.Operations {
		if op.Key != "" && o.Key == op.Key && o.Kind == op.Kind {
			if string(o.Request) != string(op.Request) {
				return o, false, errs.New(errs.Conflict, "operation.submit", op.Key, "the key was used for another request")
			}
			return o, true, nil
		}
		for _, r := range o.Resources {
			if !o.State.Final() && slices.Contains(op.Resources, r) {
				return o, false, errs.New(errs.Busy, "operation.submit", r, "operation %s holds it", o.ID)
			}
		}
	}
	t.Operations = append(t.Operations, op)
	return op, false, nil
}

func (f *files) UpdateOperation(_ context.Context, t *tx, op journal.Operation) error {
	i := slices.IndexFunc(t.Operations, func(o journal.Operation) bool { return o.ID == op.ID && o.Fence == op.Fence })
	if i < 0 {
		return errs.New(errs.Conflict, "operation.update", string(op.ID), "it is not under fence %d", op.Fence)
	}
	t.Operations[i] = op
	return nil
}

func (f *files) Operation(_ context.Context, t *tx, id journal.ID) (journal.Operation, error) {
	i := slices.IndexFunc(t.Operations, func(o journal.Operation) bool { return o.ID == id })
	if i < 0 {
		return journal.Operation{}, errs.New(errs.NotFound, "operation.get", string(id), "no such operation")
	}
	return t.Operations[i], nil
}

func (f *files) TakeUnfinished(_ context.Context, t *tx, owner string, fence int64) ([]journal.Operation, error) {
	var taken []journal.Operation
	for i, o := range t.Operations {
		if o.Owner == owner && !o.State.Final() {
			t.Operations[i].Fence = fence
			taken = append(taken, t.Operations[i])
		}
	}
	return taken, nil
}

// commits returns how many transactions were committed so far.
func (f *files) commits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.updates
}

// on changes the store's behaviour while a runner uses it.
func (f *files) on(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *files) content(t *testing.T) content {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	c, err := f.load()
	if err != nil {
		t.Fatal(err)
	}
	return c
}
