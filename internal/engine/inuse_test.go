package engine_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
)

// TestDeleteKeepsWhatWasPutInADisksPlace puts a foreign file under the name of a
// disk's volume, beside its sidecar: no command takes it for the disk, and none
// deletes it.
func TestDeleteKeepsWhatWasPutInADisksPlace(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	b.pool("main")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	for _, ref := range []string{"v/data0", "v/data1"} {
		path := mustDisk(t, b, ref).Path
		own := filepath.Join(t.TempDir(), "own")
		do(t, os.Rename(path, own), os.WriteFile(path, []byte("theirs"), 0o600))
		if ref == "v/data1" { // which doctor has found
			if _, err := b.Doctor(ctx, api.Doctor{Repair: true}); err != nil {
				t.Fatal(err)
			}
		}
		calls := map[string]func() error{
			"attach":          func() error { return second2(b.DiskAttach(ctx, ref, api.Attach{As: "qemu"})) },
			"show":            func() error { return second2(b.DiskShow(ctx, ref, "libvirt")) },
			"detach":          func() error { return b.DiskDetach(ctx, ref, api.Detach{}) },
			"resize":          func() error { return second(b.DiskResize(ctx, none, ref, api.DiskResize{By: 4096})) },
			"delete":          func() error { return second(b.DiskDelete(ctx, none, ref)) },
			"instance delete": func() error { return second(b.InstanceDelete(ctx, none, "v")) },
		}
		for name, call := range calls {
			var e *errs.Error
			err := call()
			if !errors.As(err, &e) || e.Kind != errs.Corrupt || e.Subject != ref && e.Subject != "v/data0" {
				t.Errorf("%s of %s: got %v, want kind corrupt and the disk's name", name, ref, err)
			}
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != "theirs" {
			t.Fatalf("the file in the place of %s reads %q, %v", ref, got, err)
		}
		do(t, os.Rename(path, own+".theirs"))
		b.must(b.DiskDelete(ctx, none, ref)) // what is not there is deleted
		if got, err := filepath.Glob(path + "*"); err != nil || len(got) != 0 {
			t.Errorf("deleting %s left %v, %v", ref, got, err)
		}
	}
	b.silent("disks whose files were replaced")
}

func second2[T any](_ T, err error) error { return err }

// TestAttachLooksAtTheContainer has a guest rewrite the header of its container:
// nobody is told of it any more, with a lease or without.
func TestAttachLooksAtTheContainer(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20, Format: "qcow2"})
	path := mustDisk(t, b, "v/data0").Path
	good, err := os.ReadFile(path)
	do(t, err)
	const dataFile = "\x04" // the incompatible feature "external data file"
	tell := map[string]func() error{
		"disk show":       func() error { return second2(b.DiskShow(ctx, "v/data0", "qemu")) },
		"instance show":   func() error { return second2(b.InstanceShow(ctx, "v", "libvirt")) },
		"disk attach":     func() error { return second2(b.DiskAttach(ctx, "v/data0", api.Attach{As: "libvirt"})) },
		"instance attach": func() error { return second2(b.InstanceAttach(ctx, "v", api.Attach{As: "qemu"})) },
	}
	for _, leased := range []bool{false, true} {
		overwrite(t, path, 79, dataFile)
		for name, call := range tell {
			if err := call(); !errors.Is(err, errs.Corrupt) {
				t.Errorf("%s (leased: %v): got %v, want kind corrupt", name, leased, err)
			}
		}
		if leased {
			let := lockedByQEMU(t, path) // then the header is QEMU's to change
			for name, call := range tell {
				if err := call(); err != nil {
					t.Errorf("%s of a disk that runs: %v", name, err)
				}
			}
			let()
		}
		do(t, os.WriteFile(path, good, 0))
		for name, call := range tell {
			if err := call(); err != nil {
				t.Errorf("%s of a whole container: %v", name, err)
			}
		}
	}
	if d := mustDisk(t, b, "v/data0"); d.Attached == nil {
		t.Errorf("the disk is %+v, want it attached", d)
	}
}

// lockedByQEMU locks a file as a QEMU does that writes it, until the returned
// function is called.
func lockedByQEMU(t *testing.T, path string) (let func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	do(t, err, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 201, Len: 1}))
	return func() { do(t, f.Close()) }
}

// TestDetachLooksAtLocksWithoutALease has a QEMU run on a disk that nobody
// attached: detach must not say that it is free.
func TestDetachLooksAtLocksWithoutALease(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20}, api.DiskSpec{Role: "data", Size: 1 << 20})
	detach := func(force bool) map[string]error {
		return map[string]error{
			"disk detach":     b.DiskDetach(ctx, "v/data1", api.Detach{Force: force}),
			"instance detach": b.InstanceDetach(ctx, "v", api.Detach{Force: force}),
		}
	}
	let := lockedByQEMU(t, mustDisk(t, b, "v/data1").Path)
	for what, err := range detach(false) {
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != errs.Busy || e.Subject != "v/data1" {
			t.Errorf("%s while QEMU has the disk: got %v, want kind busy, of v/data1", what, err)
		}
	}
	for what, err := range detach(true) {
		if err != nil {
			t.Errorf("forced %s while QEMU has the disk: %v", what, err)
		}
	}
	let()
	for what, err := range detach(false) {
		if err != nil {
			t.Errorf("%s of what nobody has: %v", what, err)
		}
	}
}

// TestAForeignSidecarKeepsNoPool has a file in a pool that is named like a
// sidecar and is none: it lies beside nothing, and the pool can be deleted around
// it. A real one, and one beside a file, is refused.
func TestAForeignSidecarKeepsNoPool(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	dir := b.pool("main")
	lone := filepath.Join(dir, "lone.raw.tarn.json")
	for content, beside := range map[string]bool{`{"format":"tarn-sidecar"}`: false, "theirs": true} {
		do(t, os.WriteFile(lone, []byte(content), 0o600))
		if beside {
			do(t, os.WriteFile(filepath.Join(dir, "lone.raw"), nil, 0o600))
		}
		b.fails(errs.Conflict, api.Outcome{}, second(b.PoolDelete(ctx, none, "main", false)))
		if beside {
			do(t, os.Remove(filepath.Join(dir, "lone.raw")))
		}
	}
	do(t, os.WriteFile(lone, []byte("theirs"), 0o600))
	b.must(b.PoolDelete(ctx, none, "main", false))
	if got, err := os.ReadFile(lone); err != nil || string(got) != "theirs" {
		t.Errorf("the foreign file reads %q, %v", got, err)
	}
}

// TestRefusalsNameWhatUsersKnow asks that a refusal speaks of disks and pools by
// their names, not of files and ids.
func TestRefusalsNameWhatUsersKnow(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	b := newBench(t)
	b.pool("main")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20, Format: "qcow2"})
	export := func() error {
		return b.DiskExport(ctx, "v/data0", api.Export{Format: "raw"}, engine.Sink{Stream: io.Discard}, nil)
	}
	check := func(subject string, calls map[string]func() error) {
		t.Helper()
		for name, call := range calls {
			var e *errs.Error
			if err := call(); !errors.As(err, &e) || e.Subject != subject {
				t.Errorf("%s: got %v, want %s as the subject", name, err, subject)
			}
		}
	}
	path := mustDisk(t, b, "v/data0").Path
	let := lockedByQEMU(t, path)
	check("v/data0", map[string]func() error{
		"export": export,
		"resize": func() error { return second(b.DiskResize(ctx, none, "v/data0", api.DiskResize{By: 4096})) },
		"delete": func() error { return second(b.DiskDelete(ctx, none, "v/data0")) },
	})
	let()
	overwrite(t, path, 0, "gone")
	check("v/data0", map[string]func() error{"export of a damaged disk": export})
	b.must(b.PoolStop(ctx, none, "main"))
	check("main", map[string]func() error{
		"instance rename": func() error { return second(b.InstanceRename(ctx, none, "v", "w")) },
		"instance delete": func() error { return second(b.InstanceDelete(ctx, none, "v")) },
	})
}

// TestAnExportIsNamed has an export under way when another command wants the disk.
func TestAnExportIsNamed(t *testing.T) {
	ctx := context.Background()
	b := newBench(t)
	b.pool("main")
	b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20})
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- b.DiskExport(ctx, "v/data0", api.Export{Format: "raw"}, engine.Sink{Stream: w}, nil)
	}()
	_, err := io.ReadFull(r, make([]byte, 1))
	do(t, err)
	if _, err := b.DiskAttach(ctx, "v/data0", api.Attach{As: "qemu"}); !errors.Is(err, errs.Busy) || !strings.Contains(err.Error(), "exported") {
		t.Errorf("attach during an export: got %v, want kind busy and why", err)
	}
	_, err = io.Copy(io.Discard, io.LimitReader(r, 1<<20-1))
	do(t, err, <-done)
}
