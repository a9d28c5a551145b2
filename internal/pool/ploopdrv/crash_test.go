package ploopdrv_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/faults/faultstest"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// content returns what dev holds.
func content(t *testing.T, dev driver.Device, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	b := make([]byte, dev.Size())
	if _, err := dev.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

// write fills 4 KiB at off.
func (v volume) write(t *testing.T, off int64, with byte) {
	t.Helper()
	dev, err := v.Open(t.Context(), v.r, driver.Write)
	if err == nil {
		_, err = dev.WriteAt(bytes.Repeat([]byte{with}, 4096), off)
		err = errors.Join(err, dev.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// grown makes a volume of 6 MiB whose snapshots a and b have 2 MiB and 4 MiB.
func grown(t *testing.T) volume {
	t.Helper()
	v := newVolume(t, 2<<20)
	for i, id := range []disk.SnapshotID{"a", "b"} {
		v.write(t, int64(i)<<21, 'a'+byte(i))
		v.snapshot(t, id)
		if err := v.Resize(t.Context(), v.r, int64(i+2)<<21); err != nil {
			t.Fatal(err)
		}
	}
	v.write(t, 5<<20, 'c')
	return v
}

// TestTwoCrashes ends the process in one call and then in another: the volume
// and the snapshots that nobody deletes stay what they were, and both calls can
// be completed.
func TestTwoCrashes(t *testing.T) {
	type call struct {
		name string
		do   func(ctx context.Context, v volume) error
		of   disk.SnapshotID
	}
	remove := func(id disk.SnapshotID) call {
		return call{"delete " + string(id), func(ctx context.Context, v volume) error { return v.DeleteSnapshot(ctx, v.r, id) }, id}
	}
	steps := 3
	switch {
	case os.Getenv("TARN_SLOW") == "1":
		steps = 1
	case testing.Short():
		steps = 5
	}
	resize := call{"resize", func(ctx context.Context, v volume) error { return v.Resize(ctx, v.r, 8<<20) }, ""}
	for _, calls := range [][2]call{{resize, remove("b")}, {remove("b"), resize}, {remove("a"), remove("b")}, {remove("b"), remove("a")}} {
		for n := 0; ; n += steps {
			first := faultstest.CrashAt(n, faultstest.After)
			for m := n % (2*steps + 1); ; m += 2*steps + 1 {
				second := faultstest.CrashAt(m, faultstest.After)
				t.Run(fmt.Sprintf("%s %d, %s %d", calls[0].name, n, calls[1].name, m), func(t *testing.T) {
					v, ctx := grown(t), t.Context()
					first = faultstest.CrashAt(n, faultstest.After)
					for i, c := range []*faultstest.Crash{first, second} {
						done := faults.Install(c)
						err := calls[i].do(ctx, v)
						done()
						if !c.Crashed() && err != nil && (i == 0 || !errors.Is(err, errs.Conflict)) {
							t.Fatalf("%s after %v: %v", calls[i].name, first, err)
						}
					}
					v.wantGrown(t, calls[0].of, calls[1].of)
					for i, c := range []call{calls[0], calls[1], calls[0]} { // the first waits for the second if it had not begun
						if err := c.do(ctx, v); err != nil && (i > 0 || !errors.Is(err, errs.Conflict)) {
							t.Errorf("%s, crashed %v and %v, repeated: %v", c.name, first, second, err)
						}
					}
					v.wantGrown(t, calls[0].of, calls[1].of)
				})
				if t.Failed() {
					return
				}
				if !second.Crashed() {
					break
				}
			}
			if !first.Crashed() {
				break
			}
		}
	}
}

// wantGrown checks that v is what grown made, but for the snapshots gone and
// zeroes behind the end.
func (v volume) wantGrown(t *testing.T, gone ...disk.SnapshotID) {
	t.Helper()
	want := make([]byte, 8<<20)
	for i, id := range []disk.SnapshotID{"a", "b"} {
		copy(want[i<<21:], bytes.Repeat([]byte{'a' + byte(i)}, 4096))
		if !slices.Contains(gone, id) {
			dev, err := v.OpenSnapshot(t.Context(), v.r, id)
			if got := content(t, dev, err); !bytes.Equal(got, want[:(i+1)<<21]) {
				t.Errorf("the snapshot %s has %d bytes, or other ones", id, len(got))
			}
		}
	}
	copy(want[5<<20:], bytes.Repeat([]byte{'c'}, 4096))
	dev, err := v.Open(t.Context(), v.r, driver.Read)
	if got := content(t, dev, err); len(got) < 6<<20 || !bytes.Equal(got, want[:len(got)]) {
		t.Errorf("the volume has %d bytes, or other ones", len(got))
	}
}
