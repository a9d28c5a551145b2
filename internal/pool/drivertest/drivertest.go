// Package drivertest is the driver contract as a suite: every promise of
// package driver's prose is executed against a driver on its real technology.
// It refuses to know any technology; what only the technology can show it asks
// of the Harness.
package drivertest

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/blkio"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
)

// Harness gives the suite a technology.
type Harness struct {
	Type driver.Type

	// Place returns the configuration of fresh storage that is no pool yet,
	// cleaned up when t ends. At least 512 MiB are free there.
	Place func(t *testing.T) driver.Config

	// Raw is the configuration of material that Build has to make storage of; nil
	// where the type builds nothing.
	Raw func(t *testing.T) driver.Config

	// Small is like Place with about 64 MiB in all, for filling it up; nil where
	// the technology or the user cannot have that.
	Small func(t *testing.T) driver.Config

	// Few is like Place where the pool's MaxVolumes is at most 32: what declares a
	// bound has to show it.
	Few func(t *testing.T) driver.Config

	// Power is like Place on storage whose power can be cut: cut, called
	// while no pool is open there, loses what was not synced and brings the rest
	// back. Nil where that cannot be had.
	Power func(t *testing.T) (c driver.Config, cut func())

	// Hold makes another process use the published volume r for writing, as a
	// guest's QEMU does, until release is called or t ends; nil where the machine
	// has no program for that.
	Hold func(t *testing.T, c driver.Config, r driver.Ref) (release func())

	// Grain is how finely the technology knows holes, in bytes; 0: to the byte.
	Grain int64

	// Settle makes what was done at c show in Stat, where that lags; may be nil.
	Settle func(t *testing.T, c driver.Config)

	// Foreign puts an object called name into the pool at c that tarn did not
	// make; nil where a pool can hold none.
	Foreign func(t *testing.T, c driver.Config, name string)

	// Vanish takes the storage at c away under an open pool, until back is
	// called; nil where what an open pool holds of it cannot be taken from it.
	Vanish func(t *testing.T, c driver.Config) (back func())

	// Residue lists everything that lies in the storage at c, each line with
	// what tells two of them apart, in any stable order. It may leave out what
	// the driver keeps for itself as long as the pool is open.
	Residue func(t *testing.T, c driver.Config) []string

	// Slow says that a call takes most of a second: outside of the slow suite
	// (TARN_SLOW=1) what takes hundreds of calls is left out, and crashes and
	// failures are sampled.
	Slow bool

	// Effects is how many effects each call has at least; a suite that stops
	// seeing effects must not go on passing.
	Effects map[string]int
}

// Run executes the contract.
func Run(t *testing.T, h Harness) { RunParts(t, h) }

// RunParts executes the named parts of the contract, all of them if none is
// named: for a second storage of a technology that passes the whole on its first.
func RunParts(t *testing.T, h Harness, only ...string) {
	for _, part := range []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Place", testPlace}, {"Build", testBuild}, {"Stop", testStop}, {"Served", testServed}, {"Vanished", testVanished}, {"Create", testCreate}, {"Publish", testPublish}, {"Open", testOpen},
		{"Device", testDevice}, {"Extents", testExtents}, {"Locks", testLocks}, {"Resize", testResize},
		{"Clone", testClone}, {"Snapshots", testSnapshots}, {"Delete", testDelete}, {"List", testList}, {"Sidecars", testSidecars},
		{"Names", testNames}, {"Sizes", testSizes}, {"Stat", testStat}, {"Physical", testPhysical},
		{"Cancelled", testCancelled}, {"Concurrent", testConcurrent}, {"Opens", testOpens}, {"Full", testFull}, {"Crowded", testCrowded}, {"Leftovers", testLeftovers}, {"Protector", testProtector}, {"Adopt", testAdopt},
		{"PowerLoss", testPowerLoss}, {"Crashes", testCrashes}, {"Failures", testFailures},
	} {
		if len(only) > 0 && !slices.Contains(only, part.name) {
			continue
		}
		t.Run(part.name, func(t *testing.T) {
			if h.sampled() && slices.Contains([]string{"List", "Names", "Sizes", "Concurrent", "Opens", "Crowded"}, part.name) {
				t.Skip("TARN_SLOW=1 runs this: it takes hundreds of calls, and each is slow here")
			}
			part.run(t, h)
		})
	}
}

// sampled reports whether only a sample of what takes long is to run.
func (h Harness) sampled() bool { return h.Slow && os.Getenv("TARN_SLOW") == "" }

// pool is an open pool under test.
type pool struct {
	driver.Driver
	t    *testing.T
	h    Harness
	c    driver.Config
	caps driver.Capabilities
}

// Marker returns a marker for c: what package pool writes is opaque, but holds
// the pool's id.
func Marker(c driver.Config) []byte {
	return fmt.Appendf(nil, `{"test":"marker","id":%q}`, c.ID)
}

// NewID returns an id for a pool or a volume.
func NewID() string { return uuid.Must(uuid.NewV7()).String() }

func newPool(t *testing.T, h Harness) *pool { return newPoolAt(t, h, h.Place(t)) }

func newPoolAt(t *testing.T, h Harness, c driver.Config) *pool {
	t.Helper()
	if err := h.Type.Prepare(t.Context(), c, Marker(c)); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	p := &pool{t: t, h: h, c: c}
	p.open()
	return p
}

// open starts the pool, as after a restart.
func (p *pool) open() {
	p.t.Helper()
	if p.Driver != nil {
		p.Driver.Close()
	}
	d, caps, err := p.h.Type.Open(p.t.Context(), p.c)
	if err != nil {
		p.t.Fatalf("Open: %v", err)
	}
	p.Driver, p.caps = d, caps
	p.t.Cleanup(func() { d.Close() })
}

// unit is the size of a small volume: 1 MiB, or the technology's unit if that is
// more.
func (p *pool) unit() int64 { return disk.RoundUp(mib, p.h.Type.Capabilities.SizeUnit) }

// round rounds a size up to what the technology can have.
func (p *pool) round(size int64) int64 {
	return disk.RoundUp(size, p.h.Type.Capabilities.SizeUnit)
}

func newRef(name string) driver.Ref { return driver.Ref{ID: disk.VolumeID(NewID()), Name: name} }

func staged(r driver.Ref) driver.Ref { return driver.Ref{ID: r.ID} }

// volume makes and publishes a volume that begins with content.
func (p *pool) volume(name string, size int64, content []byte, immutable bool) driver.Ref {
	p.t.Helper()
	r := newRef(name)
	p.create(r, size)
	if len(content) > 0 {
		p.write(staged(r), driver.Staged, content, 0)
	}
	o, err := p.Publish(p.t.Context(), r.ID, name, immutable, sidecarOf(r))
	if err != nil {
		p.t.Fatalf("Publish %s: %v", name, err)
	}
	r.BackendID = o.BackendID
	return r
}

func sidecarOf(r driver.Ref) []byte { return []byte("sidecar of " + string(r.ID)) }

func (p *pool) create(r driver.Ref, size int64) {
	p.t.Helper()
	if err := p.Create(p.t.Context(), driver.Spec{ID: r.ID, Size: size}); err != nil {
		p.t.Fatalf("Create: %v", err)
	}
}

// device opens r and closes it when the test ends.
func (p *pool) device(r driver.Ref, m driver.Mode) driver.Device {
	p.t.Helper()
	d, err := p.Open(p.t.Context(), r, m)
	if err != nil {
		p.t.Fatalf("Open %v in mode %d: %v", r, m, err)
	}
	p.t.Cleanup(func() { d.Close() })
	return d
}

func (p *pool) write(r driver.Ref, m driver.Mode, content []byte, off int64) {
	p.t.Helper()
	d := p.device(r, m)
	if n, err := d.WriteAt(content, off); n != len(content) || err != nil {
		p.t.Fatalf("WriteAt %v: %d of %d bytes, %v", r, n, len(content), err)
	}
	if err := d.Close(); err != nil {
		p.t.Fatalf("Close %v: %v", r, err)
	}
}

// bytes reads all of r, which is published unless its name is empty.
func (p *pool) bytes(r driver.Ref) []byte {
	p.t.Helper()
	m := driver.Base
	if r.Name == "" {
		m = driver.Staged
	}
	d := p.device(r, m)
	defer d.Close()
	content := make([]byte, d.Size())
	if n, err := d.ReadAt(content, 0); n != len(content) || err != nil && err != io.EOF {
		p.t.Fatalf("ReadAt %v: %d of %d bytes, %v", r, n, len(content), err)
	}
	return content
}

// wantBytes checks that r is want and zeroes up to size.
func (p *pool) wantBytes(r driver.Ref, want []byte, size int64) {
	p.t.Helper()
	got := p.bytes(r)
	if int64(len(got)) != size {
		p.t.Errorf("%v has %d bytes, want %d", r, len(got), size)
		return
	}
	n := min(len(want), len(got))
	if !bytes.Equal(got[:n], want[:n]) {
		p.t.Errorf("%v does not hold what was written", r)
	}
	if !blkio.IsZero(got[n:]) {
		p.t.Errorf("%v does not read as zeroes after %d bytes", r, n)
	}
}

// names returns what List yields.
func (p *pool) names() map[string]driver.Object {
	p.t.Helper()
	all := map[string]driver.Object{}
	for o, err := range p.List(p.t.Context()) {
		if err != nil {
			p.t.Fatalf("List: %v", err)
		}
		if _, twice := all[o.Name]; twice {
			p.t.Errorf("List yields %q twice", o.Name)
		}
		all[o.Name] = o
	}
	return all
}

// sidecars returns what Sidecars yields.
func (p *pool) sidecars() map[string]string {
	p.t.Helper()
	all := map[string]string{}
	for r, err := range p.Sidecars(p.t.Context()) {
		if err != nil {
			p.t.Fatalf("Sidecars: %v", err)
		}
		all[r.Name] = string(r.Data)
	}
	return all
}

// wantKind checks that err is an *errs.Error of kind want.
func wantKind(t *testing.T, what string, err error, want errs.Kind) {
	t.Helper()
	var e *errs.Error
	switch {
	case err == nil:
		t.Errorf("%s succeeded, want %s", what, want)
	case !errors.As(err, &e):
		t.Errorf("%s: %v is no *errs.Error", what, err)
	case e.Kind != want:
		t.Errorf("%s: %v is %s, want %s", what, err, e.Kind, want)
	}
}

func wantNil(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// pattern returns n random bytes, none of them zero.
func pattern(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.Read(p)
	for i := range p {
		p[i] |= 1
	}
	return p
}
