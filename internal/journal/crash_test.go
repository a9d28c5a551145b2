package journal_test

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/journal"
	"github.com/tarn-storage/tarn/internal/store"
	"github.com/tarn-storage/tarn/internal/store/sqlite"
)

// The records of these tests are hosts: the boot id is the state of a file.

func open(dir string) (*store.Store, error) {
	return sqlite.Open(context.Background(), sqlite.Options{Dir: dir})
}

func set(ctx context.Context, t *store.Tx, name, state string) error {
	h := disk.Host{ID: disk.HostID(name), Name: name, BootID: state, CreatedAt: time.Now(), UpdatedAt: time.Now()}
	if err := t.Hosts.Update(ctx, h); !errors.Is(err, errs.NotFound) {
		return err
	}
	return t.Hosts.Insert(ctx, h)
}

func unset(ctx context.Context, t *store.Tx, name string) error {
	err := t.Hosts.Delete(ctx, disk.HostID(name))
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func records(ctx context.Context, t *store.Tx) (map[string]string, error) {
	hosts, _, err := t.Hosts.List(ctx, store.Query{})
	m := map[string]string{}
	for _, h := range hosts {
		m[h.Name] = h.BootID
	}
	return m, err
}

// world is a state directory and a directory of files that operations make.
type world struct {
	state, files string
	id           journal.ID
	acked        journal.State // what a client was told
}

// newWorld returns a world whose store is laid out as that in template.
func newWorld(t *testing.T, template string) *world {
	t.Helper()
	w := &world{state: t.TempDir(), files: t.TempDir(), id: "0192d000-0000-7000-8000-000000000001"}
	err := errors.Join(os.CopyFS(w.state, os.DirFS(template)), os.WriteFile(w.path("foreign"), nil, 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.files, name) }

// maker makes one file of two pages per step, in four effects.
type maker struct {
	w      *world
	runner **journal.Runner[*store.Tx]
}

type making struct {
	Name string
	Ends string // how its Act ends: "", "fails", "cancels"
}

func (m *maker) Act(ctx context.Context, c *journal.Call) error {
	var a making
	if err := c.Args(&a); err != nil {
		return err
	}
	path := m.w.path(a.Name)
	var f *os.File
	err := faults.Do(faults.Create, a.Name, func() (err error) {
		f, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	defer f.Close()
	if err := faults.Do(faults.Write, a.Name, func() error { _, err := f.WriteAt(page, 0); return err }); err != nil {
		return err
	}
	if err := c.SaveCursor(ctx, len(page)); err != nil {
		return err
	}
	switch a.Ends {
	case "fails":
		return errs.New(errs.NoSpace, "file.make", a.Name, "full")
	case "cancels":
		if _, err := (*m.runner).Cancel(ctx, c.Op.ID); err != nil {
			return err
		}
		return ctx.Err()
	}
	return faults.Do(faults.Sync, a.Name, f.Sync)
}

var page = make([]byte, 4096)

func (m *maker) Commit(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	var a making
	return errors.Join(c.Args(&a), set(ctx, tx, a.Name, "ready"))
}

func (m *maker) Undo(_ context.Context, c *journal.Call) error {
	var a making
	if err := c.Args(&a); err != nil {
		return err
	}
	return faults.Do(faults.Unlink, a.Name, func() error {
		if err := os.Remove(m.w.path(a.Name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func (m *maker) UndoCommit(ctx context.Context, tx *store.Tx, c *journal.Call) error {
	var a making
	return errors.Join(c.Args(&a), unset(ctx, tx, a.Name))
}

// process runs f with a runner as one life of a daemon.
func (w *world) process(f func(ctx context.Context, r *journal.Runner[*store.Tx]) error) error {
	ctx := context.Background()
	s, err := open(w.state)
	if err != nil {
		return err
	}
	var r *journal.Runner[*store.Tx]
	r = journal.NewRunner(s, journal.Options[*store.Tx]{Owner: "host",
		Handlers: map[string]journal.Handler[*store.Tx]{"file.make/v1": &maker{w, &r}}})
	err = r.Recover(ctx)
	if err == nil && f != nil {
		err = f(ctx, r)
	}
	return errors.Join(err, r.Settle(ctx), r.Close(ctx), s.Close())
}

var names = []string{"one", "two", "three"}

// run makes three files, of which the last ends as told.
func (w *world) run(ends string) error {
	return w.process(func(ctx context.Context, r *journal.Runner[*store.Tx]) error {
		op := journal.Operation{ID: w.id, Kind: "file.make", Resources: []string{"files"}}
		for _, n := range names {
			op.Steps = append(op.Steps, journal.NewStep("file.make/v1", making{Name: n}))
		}
		op.Steps[2] = journal.NewStep("file.make/v1", making{Name: "three", Ends: ends})
		_, _, err := r.Submit(ctx, op, func(ctx context.Context, tx *store.Tx) error {
			for _, n := range names {
				if err := set(ctx, tx, n, "creating"); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		op, err = r.Wait(ctx, w.id, time.Hour)
		if err == nil {
			w.acked = op.State
		}
		return err
	})
}

// check demands all or nothing, as the operation's row says, and no more than
// the operation made.
func (w *world) check(t *testing.T, want journal.State) {
	t.Helper()
	s, err := open(w.state)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var op journal.Operation
	var got map[string]string
	err = s.View(t.Context(), func(ctx context.Context, tx *store.Tx) error {
		var err error
		if got, err = records(ctx, tx); err != nil {
			return err
		}
		op, err = s.Operation(ctx, tx, w.id)
		return err
	})
	if err != nil && !(errors.Is(err, errs.NotFound) && w.acked == "") {
		t.Fatalf("the operation's row: %v; it was acknowledged as %q", err, w.acked)
	}
	if err == nil && op.State != want || w.acked != "" && w.acked != op.State {
		t.Errorf("the operation is %s, acknowledged as %q, want %s", op.State, w.acked, want)
	}
	entries, err := os.ReadDir(w.files)
	if err != nil {
		t.Fatal(err)
	}
	wantFiles, wantRecords := 1, map[string]string{}
	if op.State == journal.Done {
		wantFiles, wantRecords = 4, map[string]string{"one": "ready", "two": "ready", "three": "ready"}
	}
	if len(entries) != wantFiles || !maps.Equal(got, wantRecords) {
		t.Errorf("%s: files %v, records %v; want %d files and %v", op.State, entries, got, wantFiles, wantRecords)
	}
	for name := range wantRecords {
		if i, err := os.Stat(w.path(name)); err != nil || i.Size() != int64(len(page)) {
			t.Errorf("%s: %v %v, want %d bytes", name, i, err, len(page))
		}
	}
}

// The making of three files is crashed everywhere.
func TestCrash(t *testing.T) {
	template := t.TempDir()
	s, err := open(template)
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ends    string
		want    journal.State
		effects int
	}{
		{"", journal.Done, 16},
		{"fails", journal.Failed, 21},
		{"cancels", journal.Cancelled, 21},
	} {
		t.Run("ends="+c.ends, func(t *testing.T) {
			faultstest.Exhaust(t, faultstest.Options{MinEffects: c.effects},
				func(t *testing.T) *world { return newWorld(t, template) },
				func(w *world) error { return w.run(c.ends) },
				func(w *world) error { return w.process(nil) },
				func(t *testing.T, w *world) { w.check(t, c.want) })
		})
	}
}
