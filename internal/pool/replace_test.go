package pool_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// replaced is a shelf with a base whose file has other bytes than it was made
// with, the bytes and the record of the next making.
func replaced(t *testing.T) (s *shelf, good, bad []byte, old, next disk.Volume) {
	t.Helper()
	s = newShelf(t, t.TempDir(), diskfmt.Raw)
	good = content(1 << 20)
	old = s.base(good)
	sum, err := blkio.SumSource(s.ctx, s.open(driver.Ref{ID: old.ID, Name: old.Name}, driver.Base), int64(len(good)), func(int64) {})
	if err != nil {
		t.Fatal(err)
	}
	old.Content, old.ContentSize = sum, int64(len(good))
	bad = bytes.Clone(good)
	bad[4711] ^= 1
	at := filepath.Join(s.dir, old.Name)
	if err := errors.Join(os.Chmod(at, 0o640), os.WriteFile(at, bad, 0)); err != nil {
		t.Fatal(err)
	}
	next = old
	next.State, next.BackendID = disk.VolumeCreating, ""
	return s, good, bad, old, next
}

func (s *shelf) open(r driver.Ref, m driver.Mode) driver.Device {
	s.t.Helper()
	d, err := s.Driver.Open(s.ctx, r, m)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { d.Close() })
	return d
}

// holds asks what has the name of v reads as.
func (s *shelf) holds(when string, v disk.Volume, want []byte) {
	s.t.Helper()
	if got, err := os.ReadFile(filepath.Join(s.dir, v.Name)); err != nil || !bytes.Equal(got, want) {
		s.t.Errorf("%s: the base has %d bytes that are not what they must be, %v", when, len(got), err)
	}
}

// TestReplace replaces a base, twice with one result, takes it back, and keeps to
// the old one when the new one cannot be made.
func TestReplace(t *testing.T) {
	s, good, bad, old, next := replaced(t)
	broken := errors.New("broken")
	m := pool.Making{Method: plan.Generate, Fill: fill(good)}
	failing := pool.Making{Method: plan.Generate, Fill: func(context.Context, driver.Device) error { return broken }}
	if _, err := s.Replace(s.ctx, disk.Sidecar{Volume: next}, old, failing); !errors.Is(err, broken) {
		t.Errorf("Replace with what cannot be made = %v, want the reason", err)
	}
	s.holds("a failed making", old, bad)
	var made [2]disk.Volume
	for i := range made {
		var err error
		if made[i], err = s.Replace(s.ctx, disk.Sidecar{Volume: next}, old, m); err != nil {
			t.Fatal(err)
		}
		s.holds("replaced", old, good)
	}
	if made[0].BackendID == old.BackendID || made[0].BackendID != made[1].BackendID || made[0].ID != old.ID || made[0].State != disk.VolumeReady {
		t.Errorf("Replace twice makes %+v and %+v of %+v, want the same new object under the old identity", made[0], made[1], old)
	}
	if aside, err := os.ReadFile(filepath.Join(s.dir, ".tarn-quarantine", old.Name)); err != nil || !bytes.Equal(aside, bad) {
		t.Errorf("the old object was not kept as it was: %v", err)
	}
	for range 2 {
		if kept, err := s.TakeBack(s.ctx, next.ID, old); kept || err != nil {
			t.Errorf("TakeBack of what replaced a base = %v, %v, want that the old one is gone", kept, err)
		}
	}
	if _, err := s.Describe(s.ctx, driver.Ref{ID: old.ID, Name: old.Name}); !errors.Is(err, errs.NotFound) {
		t.Errorf("behind TakeBack the name has something: %v", err)
	}
}

// TestPublishInstead stages other bytes than the record says, as a worker could
// that an image has taken over: they replace nothing.
func TestPublishInstead(t *testing.T) {
	s, good, bad, old, next := replaced(t)
	for _, row := range []struct {
		what   string
		staged []byte
	}{{"nothing", nil}, {"other bytes", bad}, {"the bytes", good}} {
		what, staged := row.what, row.staged
		id := next.ID + "-new"
		if staged != nil {
			if err := s.Driver.Create(s.ctx, driver.Spec{ID: id, Size: next.VirtualSize}); err != nil {
				t.Fatal(err)
			}
			d := s.open(driver.Ref{ID: id}, driver.Staged)
			if _, err := io.Copy(io.NewOffsetWriter(d, 0), bytes.NewReader(staged)); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.PublishInstead(s.ctx, id, disk.Sidecar{Volume: next}, old, func(int64) {})
		switch {
		case what == "the bytes":
			if err != nil {
				t.Errorf("PublishInstead with the recorded bytes = %v", err)
			}
			s.holds(what, old, good)
			return
		case what == "other bytes" && !errors.Is(err, errs.Corrupt), what == "nothing" && !errors.Is(err, errs.NotFound):
			t.Errorf("PublishInstead with %s staged = %v", what, err)
		}
		s.holds(what, old, bad)
		if kept, err := s.TakeBack(s.ctx, id, old); !kept || err != nil {
			t.Errorf("TakeBack of what replaced nothing = %v, %v, want that the old one is there", kept, err)
		}
		s.holds("taken back", old, bad)
	}
}

// TestReplaceKeepsForeignFiles has another file under the base's name.
func TestReplaceKeepsForeignFiles(t *testing.T) {
	s, good, _, old, next := replaced(t)
	at := filepath.Join(s.dir, old.Name)
	if err := errors.Join(os.WriteFile(at+".new", []byte("theirs"), 0o600), os.Rename(at+".new", at)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Replace(s.ctx, disk.Sidecar{Volume: next}, old, pool.Making{Method: plan.Generate, Fill: fill(good)}); !errors.Is(err, errs.Exists) {
		t.Errorf("Replace of another's file = %v, want exists", err)
	}
	if kept, err := s.TakeBack(s.ctx, next.ID, old); kept || err != nil {
		t.Errorf("TakeBack with another's file = %v, %v", kept, err)
	}
	s.holds("theirs", old, []byte("theirs"))
}
