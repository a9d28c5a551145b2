package pool_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/plan"
	"github.com/tarn-storage/tarn/internal/pool"
	"github.com/tarn-storage/tarn/internal/pool/dirdrv"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// conform is what volumes of every format promise in every directory pool.
var conform = []struct {
	name string
	test func(t *testing.T, s *shelf)
}{
	{"blank volumes read as zeroes", testBlank},
	{"disks from a base begin with it and leave it alone", testFromBase},
	{"grown ranges read as zeroes", testGrow},
	{"creates converge and keep foreign files", testRepeat},
	{"generated content is what was written", testGenerated},
	{"a changed header is corruption", testHeader},
	{"a delete leaves nothing", testDelete},
}

// TestVolumes runs the suite for raw and qcow2 volumes on what file system the
// temporary directory is on and, as root, on XFS, btrfs and ext4.
func TestVolumes(t *testing.T) {
	places := map[string]func(t *testing.T) string{"here": func(t *testing.T) string { return t.TempDir() }}
	if os.Geteuid() == 0 {
		for _, kind := range []string{"xfs", "btrfs", "ext4"} {
			places[kind] = func(t *testing.T) string { return fsloop.New(t, kind, 512<<20).Dir }
		}
	}
	for place, dir := range places {
		t.Run(place, func(t *testing.T) {
			root := dir(t)
			for _, format := range []diskfmt.Format{diskfmt.Raw, diskfmt.Qcow2} {
				for _, c := range conform {
					t.Run(string(format)+"/"+c.name, func(t *testing.T) { c.test(t, newShelf(t, root, format)) })
				}
			}
		})
	}
}

// shelf is a pool and the format its volumes get.
type shelf struct {
	*pool.Pool
	ctx    context.Context
	t      testing.TB
	dir    string
	format diskfmt.Format
}

func newShelf(t testing.TB, root string, format diskfmt.Format) *shelf {
	t.Helper()
	ctx := context.Background()
	rec := disk.Pool{ID: disk.PoolID(uuid.NewString()), Name: "p", Driver: "dir", Owner: disk.Owner{UID: os.Getuid(), GID: os.Getgid()}}
	rec.Path = filepath.Join(root, string(rec.ID))
	marker, err := pool.SealMarker(disk.Marker{Pool: rec})
	if err != nil {
		t.Fatal(err)
	}
	if err := dirdrv.Type.Prepare(ctx, pool.Config(rec), marker); err != nil {
		t.Fatal(err)
	}
	p, err := pool.Open(ctx, dirdrv.Type, rec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return &shelf{Pool: p, ctx: ctx, t: t, dir: rec.Path, format: format}
}

// record returns the record of a new volume of the shelf's format.
func (s *shelf) record(name string, size int64) disk.Volume {
	v := disk.Volume{ID: disk.VolumeID(uuid.NewString()), Name: name + "." + string(s.format), Kind: disk.KindDisk, State: disk.VolumeCreating, Format: s.format, VirtualSize: size}
	if s.format == diskfmt.Qcow2 {
		v.ClusterSize = plan.ClusterSize
	}
	return v
}

func (s *shelf) create(v disk.Volume, m pool.Making) disk.Volume {
	s.t.Helper()
	made, err := s.Create(s.ctx, disk.Sidecar{Volume: v}, m)
	if err != nil {
		s.t.Fatal(err)
	}
	if made.State != disk.VolumeReady || made.BackendID == "" {
		s.t.Errorf("the made volume is %s with backend id %q", made.State, made.BackendID)
	}
	return made
}

// read returns what a guest would read of a chain, the top first.
func (s *shelf) read(chain ...disk.Volume) []byte {
	s.t.Helper()
	c, err := s.OpenChain(s.ctx, chain, driver.Read)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	b, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// fill returns a Fill that writes b at the start.
func fill(b []byte) pool.Fill {
	return func(_ context.Context, dev driver.Device) error {
		_, err := dev.WriteAt(b, 0)
		return err
	}
}

// content returns n bytes in which data and zeroes alternate.
func content(n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(1, uint64(n)))
	for off := 0; off < n; off += 200_000 {
		for i := off; i < min(off+70_000, n); i++ {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

func testBlank(t *testing.T, s *shelf) {
	for _, size := range []int64{4096, 64 << 10, 5<<20 + 4096} {
		v := s.create(s.record("blank"+time.Duration(size).String(), size), pool.Making{Method: plan.Blank})
		if got := s.read(v); int64(len(got)) != size || len(bytes.Trim(got, "\x00")) != 0 {
			t.Errorf("a blank volume of %d bytes reads as %d bytes, %d of them not zero", size, len(got), len(bytes.Trim(got, "\x00")))
		}
	}
}

// base makes a raw base that holds b.
func (s *shelf) base(b []byte) disk.Volume {
	s.t.Helper()
	size := disk.RoundUp(int64(len(b)), disk.SizeUnit)
	v := disk.Volume{ID: disk.VolumeID(uuid.NewString()), Name: "base.raw", Kind: disk.KindBase, Format: diskfmt.Raw, VirtualSize: size, ContentSize: int64(len(b)), Content: "b3-4m:test"}
	return s.create(v, pool.Making{Method: plan.Generate, Fill: fill(b)})
}

// fromBase makes a disk over a base the way a plan would.
func (s *shelf) fromBase(name string, base disk.Volume, size int64) disk.Volume {
	s.t.Helper()
	p, err := plan.Volume(plan.VolumeRequest{Caps: s.Caps, Want: disk.FormatPolicy(s.format), Size: size, Base: &base})
	if err != nil {
		s.t.Fatal(err)
	}
	v := s.record(name, p.VirtualSize)
	if p.Method == plan.Overlay {
		v.Backing = &disk.Backing{VolumeID: base.ID, Name: base.Name, Format: base.Format, Content: base.Content}
	}
	return s.create(v, pool.Making{Method: p.Method, Base: &base})
}

func (s *shelf) chain(v, base disk.Volume) []disk.Volume {
	if v.Backing != nil {
		return []disk.Volume{v, base}
	}
	return []disk.Volume{v}
}

func testFromBase(t *testing.T, s *shelf) {
	data := content(3<<20 + 1000)
	base := s.base(data)
	for _, size := range []int64{base.ContentSize, 8 << 20} {
		v := s.fromBase("disk"+time.Duration(size).String(), base, size)
		got := s.read(s.chain(v, base)...)
		if !bytes.Equal(got[:len(data)], data) || len(bytes.Trim(got[len(data):], "\x00")) != 0 {
			t.Errorf("a disk of %d bytes does not read as the base and zeroes", size)
		}
		s.scribble(v)
	}
	if got := s.read(base); !bytes.Equal(got[:len(data)], data) {
		t.Error("writing to a disk changed its base")
	}
}

// scribble writes into a volume as a guest does, through QEMU.
func (s *shelf) scribble(v disk.Volume) {
	s.t.Helper()
	out, err := exec.Command("qemu-io", "-f", string(v.Format), "-c", "write -P 0xee 4096 128k", s.Path(v)).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		if os.Getenv("CI") != "" {
			s.t.Fatal("qemu-io is not installed")
		}
		s.t.Skip("qemu-io is not installed (package qemu-utils)")
	}
	if err != nil {
		s.t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

func testGrow(t *testing.T, s *shelf) {
	data := content(6 << 20)
	base := s.base(data)
	short := s.record("short", 4<<20+4096)
	if s.format == diskfmt.Qcow2 { // a base longer than the overlay must not show in what grows
		short.Backing = &disk.Backing{VolumeID: base.ID, Name: base.Name, Format: base.Format, Content: base.Content}
		short = s.create(short, pool.Making{Method: plan.Overlay, Base: &base})
	} else {
		short = s.create(short, pool.Making{Method: plan.Generate, Fill: fill(data[:4<<20+4096])})
	}
	chain := s.chain(short, base)
	for range 2 { // a repeat converges
		if err := s.Resize(s.ctx, chain, 9<<20); err != nil {
			t.Fatal(err)
		}
	}
	chain[0].VirtualSize = 9 << 20
	got := s.read(chain...)
	if !bytes.Equal(got[:4<<20+4096], data[:4<<20+4096]) || len(bytes.Trim(got[4<<20+4096:], "\x00")) != 0 {
		t.Error("the grown volume lost its content, or the grown range is not zero")
	}
	if err := s.Resize(s.ctx, chain, 4<<20+4096); err != nil {
		t.Errorf("taking the grow back: %v", err)
	}
	chain[0].VirtualSize = 4<<20 + 4096
	if got := s.read(chain...); !bytes.Equal(got, data[:4<<20+4096]) {
		t.Error("the volume differs after a grow that was taken back")
	}
}

func testRepeat(t *testing.T, s *shelf) {
	v := s.record("twice", 1<<20)
	data := content(300_000)
	m := pool.Making{Method: plan.Generate, Fill: fill(data)}
	s.create(v, m)
	again := s.create(v, m)
	if got := s.read(again); !bytes.Equal(got[:len(data)], data) {
		t.Error("a repeated create changed the content")
	}
	other := s.record("foreign", 1<<20)
	path := filepath.Join(s.dir, other.Name)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(s.ctx, disk.Sidecar{Volume: other}, m); !errors.Is(err, errs.Exists) {
		t.Errorf("a create over a foreign file: got %v, want kind exists", err)
	}
	if err := s.Delete(s.ctx, other); err != nil {
		t.Errorf("undoing it: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Errorf("the foreign file is now %q, %v", b, err)
	}
}

func testGenerated(t *testing.T, s *shelf) {
	data := content(2 << 20)
	v := s.create(s.record("generated", 4<<20), pool.Making{Method: plan.Generate, Fill: fill(data)})
	if got := s.read(v); !bytes.Equal(got[:len(data)], data) {
		t.Error("the volume differs from what was generated")
	}
	boom := errors.New("boom")
	w := s.record("failed", 4<<20)
	_, err := s.Create(s.ctx, disk.Sidecar{Volume: w}, pool.Making{Method: plan.Generate, Fill: func(context.Context, driver.Device) error { return boom }})
	if !errors.Is(err, boom) {
		t.Errorf("got %v, want the generator's error", err)
	}
	if err := s.Delete(s.ctx, w); err != nil {
		t.Error(err)
	}
	s.onlyHas(v)
}

func testHeader(t *testing.T, s *shelf) {
	if s.format == diskfmt.Raw {
		v := s.create(s.record("raw", 1<<20), pool.Making{Method: plan.Blank})
		header := append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 504)...)
		f, err := os.OpenFile(s.Path(v), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(header); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if got := s.read(v); !bytes.Equal(got[:512], header) {
			t.Error("a qcow2 header in a raw volume was not read as data")
		}
		return
	}
	v := s.create(s.record("v", 1<<20), pool.Making{Method: plan.Blank})
	out, err := exec.Command("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/hostname", s.Path(v)).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) && os.Getenv("CI") == "" {
		t.Skip("qemu-img is not installed (package qemu-utils)")
	}
	if err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	if c, err := s.OpenChain(s.ctx, []disk.Volume{v}, driver.Read); !errors.Is(err, errs.Corrupt) {
		if err == nil {
			c.Close()
		}
		t.Errorf("a header with another backing: got %v, want kind corrupt", err)
	}
}

func testDelete(t *testing.T, s *shelf) {
	v := s.create(s.record("gone", 1<<20), pool.Making{Method: plan.Generate, Fill: fill(content(100_000))})
	for range 2 {
		if err := s.Delete(s.ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	s.onlyHas()
	if _, err := s.OpenChain(s.ctx, []disk.Volume{v}, driver.Read); !errors.Is(err, errs.Corrupt) {
		t.Errorf("opening a volume whose bytes are gone: got %v, want kind corrupt", err)
	}
}

// onlyHas asks that nothing but vols and their sidecars is in the pool, staged
// leftovers included.
func (s *shelf) onlyHas(vols ...disk.Volume) {
	s.t.Helper()
	want := map[string]bool{}
	for _, v := range vols {
		want[v.Name], want[v.Name+".tarn.json"] = true, true
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] && e.Name()[0] != '.' { // the pool's own files have a dot
			s.t.Errorf("the pool still holds %s", e.Name())
		}
	}
	staged, _ := os.ReadDir(filepath.Join(s.dir, ".tarn-tmp"))
	for _, e := range staged {
		if e.Name() != "ballast" {
			s.t.Errorf("%s is still staged", e.Name())
		}
	}
}
