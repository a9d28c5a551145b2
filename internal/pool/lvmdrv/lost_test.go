package lvmdrv

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/faults"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/test/system/volumegroup"
)

// opened prepares and opens a pool at c with a published volume of 16 MiB.
func opened(t *testing.T, typ driver.Type, c driver.Config) (driver.Driver, driver.Ref) {
	t.Helper()
	ctx := t.Context()
	if err := typ.Prepare(ctx, c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	p, _, err := typ.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "a"}
	if err := p.Create(ctx, driver.Spec{ID: r.ID, Size: 16 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Publish(ctx, r.ID, r.Name, false, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	return p, r
}

func write(t *testing.T, p driver.Driver, r driver.Ref, n int) {
	t.Helper()
	d, err := p.Open(t.Context(), r, driver.Write)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.WriteAt(bytes.Repeat([]byte{7}, n), 0); err != nil {
		t.Fatal(err)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestOverflowedSnapshot has a snapshot with less room than the driver gives it.
func TestOverflowedSnapshot(t *testing.T) {
	c := place(false, 64<<20, 1<<20)(t)
	p, r := opened(t, Logical, c)
	o, err := p.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	id := disk.SnapshotID(drivertest.NewID())
	run(t, "lvm", "lvcreate", "-q", "-y", "-s", "-p", "r", "-L", "4m", "-n", snapName(id, o.BackendID), c.Source.VolumeGroup+"/"+r.Name)
	s := p.(driver.Snapshotter)
	d, err := s.OpenSnapshot(t.Context(), r, id)
	if err != nil {
		t.Fatalf("while it has room: %v", err)
	}
	d.Close()
	write(t, p, r, 12<<20)
	if _, err := s.OpenSnapshot(t.Context(), r, id); !errors.Is(err, errs.Corrupt) {
		t.Errorf("a snapshot that overflowed: %v, want corrupt", err)
	}
	if err := s.DeleteSnapshot(t.Context(), r, id); err != nil {
		t.Error(err)
	}
}

// TestThinPercent compares what the pool says of itself with LVM's own figures.
func TestThinPercent(t *testing.T) {
	c := place(true, 64<<20, 1<<20)(t)
	p, r := opened(t, Thin, c)
	write(t, p, r, 16<<20)
	u, err := p.Stat(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("lvm", "lvs", "--noheadings", "-o", "data_percent,metadata_percent", c.Source.VolumeGroup+"/"+thinName).Output()
	var data, metadata float64
	if err == nil {
		_, err = fmt.Sscan(strings.TrimSpace(string(out)), &data, &metadata)
	}
	if err != nil || math.Abs(u.DataPercent-data) > 0.01 || math.Abs(u.MetadataPercent-metadata) > 0.5 {
		t.Errorf("Stat says %.2f %% and %.2f %%, LVM %q, %v", u.DataPercent, u.MetadataPercent, out, err)
	}
}

// message tells a thin pool in the kernel something (Linux, Documentation/
// admin-guide/device-mapper/thin-provisioning.rst).
func message(t *testing.T, pool, text string) {
	t.Helper()
	const targetMessage = 0xc138fd0e // DM_TARGET_MSG
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	var buf [128]uint64
	h := (*dmHeader)(unsafe.Pointer(&buf[0]))
	*h = dmHeader{Version: [3]uint32{4, 0, 0}, DataSize: uint32(unsafe.Sizeof(buf)), DataStart: uint32(unsafe.Sizeof(*h))}
	copy(h.Name[:], pool)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&buf[0])), unsafe.Sizeof(buf))[unsafe.Sizeof(*h)+8:], text) // struct dm_target_msg
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), targetMessage, uintptr(unsafe.Pointer(h))); errno != 0 {
		t.Fatalf("%s to %s: %v", text, pool, errno)
	}
}

// TestThinMetadata fills the metadata of a thin pool behind LVM's back: above the
// mark nothing new is made, and what frees some works.
func TestThinMetadata(t *testing.T) {
	ctx := t.Context()
	c := config(t, volumegroup.Spec{Size: 64 << 20, Extent: 1 << 20, Thin: true, Metadata: 2 << 20})
	p, r := opened(t, Thin, c)
	s, kept, more := p.(driver.Snapshotter), disk.SnapshotID(drivertest.NewID()), disk.SnapshotID(drivertest.NewID())
	if err := s.Snapshot(ctx, r, kept); err != nil {
		t.Fatal(err)
	}
	thin, first, last := dmName(c.Source.VolumeGroup, thinName)+"-tpool", 1000, 1000
	used := func() float64 {
		t.Helper()
		u, err := p.Stat(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return u.MetadataPercent
	}
	for used() < highWater {
		for range 16 {
			message(t, thin, fmt.Sprintf("create_thin %d", last))
			last++
		}
	}
	create := func() error {
		return p.Create(ctx, driver.Spec{ID: disk.VolumeID(drivertest.NewID()), Size: 4 << 20})
	}
	for what, err := range map[string]error{"Create": create(), "Snapshot": s.Snapshot(ctx, r, more), "Resize": p.Resize(ctx, r, 32<<20)} {
		if !errors.Is(err, errs.NoSpace) || !strings.Contains(err.Error(), fmt.Sprintf("%.0f %% of the metadata", used())) {
			t.Errorf("%s with %.1f %% of the metadata used: %v, want no_space with that", what, used(), err)
		}
	}
	write(t, p, r, 16<<20)
	if err := errors.Join(s.DeleteSnapshot(ctx, r, kept), p.Delete(ctx, r)); err != nil {
		t.Errorf("deleting with %.1f %% of the metadata used: %v", used(), err)
	}
	for ; first < last && used() >= highWater-10; first++ {
		message(t, thin, fmt.Sprintf("delete %d", first))
	}
	if err := create(); err != nil {
		t.Errorf("Create with %.1f %% of the metadata used: %v", used(), err)
	}
}

// TestUnzeroedThinPool has a pool that would show what others wrote.
func TestUnzeroedThinPool(t *testing.T) {
	c := place(true, 64<<20, 1<<20)(t)
	run(t, "lvm", "lvchange", "-q", "--zero", "n", c.Source.VolumeGroup+"/"+thinName)
	if err := Thin.Prepare(t.Context(), c, drivertest.Marker(c)); !errors.Is(err, errs.Unsafe) {
		t.Errorf("Prepare of a thin pool that does not zero: %v, want unsafe", err)
	}
}

// TestForeignSnapshotHoldsItsVolume has a snapshot of LVM's that is not tarn's.
func TestForeignSnapshotHoldsItsVolume(t *testing.T) {
	for thin, typ := range map[bool]driver.Type{false: Logical, true: Thin} {
		t.Run(typ.Name, func(t *testing.T) {
			c := place(thin, 64<<20, 1<<20)(t)
			p, r := opened(t, typ, c)
			backup := c.Source.VolumeGroup + "/backup"
			run(t, "lvm", "lvcreate", "-q", "-y", "-s", "-L", "4m", "-n", "backup", c.Source.VolumeGroup+"/"+r.Name)
			if err := p.Delete(t.Context(), r); !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), backup) {
				t.Errorf("Delete of a volume that has the foreign snapshot %s: %v, want a conflict that names it", backup, err)
			}
			run(t, "lvm", "lvremove", "-q", "-y", backup) // which is still there
			if err := p.Delete(t.Context(), r); err != nil {
				t.Errorf("Delete without it: %v", err)
			}
			if _, err := p.Describe(t.Context(), r); !errors.Is(err, errs.NotFound) {
				t.Errorf("Describe after Delete: %v, want not_found", err)
			}
		})
	}
}

// stopTool crashes before the n-th command of LVM's that changes something.
type stopTool struct{ n int }

func (s *stopTool) Before(e faults.Effect) error {
	if e.Kind == faults.Tool {
		s.n--
	}
	if s.n < 0 {
		return faults.ErrCrash
	}
	return nil
}

func (s *stopTool) After(_ faults.Effect, err error) error { return err }

// wantBytes reads the volume: size bytes, of which the first n are sevens, as
// write has them, and the rest zeroes.
func wantBytes(t *testing.T, p driver.Driver, r driver.Ref, m driver.Mode, n, size int) {
	t.Helper()
	d, err := p.Open(t.Context(), r, m)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	want := append(bytes.Repeat([]byte{7}, n), make([]byte, size-n)...)
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Errorf("byte %d of %d is %d, want %d", i, len(got), got[i], want[i])
			return
		}
	}
	if len(got) != size {
		t.Errorf("the volume has %d bytes, want %d", len(got), size)
	}
}

// TestInterruptedResize stops a shrink, and the grow after it, at each of their
// commands: the volume is whole or small, and what comes back reads zero.
func TestInterruptedResize(t *testing.T) {
	const mib = 1 << 20
	for thin, typ := range map[bool]driver.Type{false: Logical, true: Thin} {
		t.Run(typ.Name, func(t *testing.T) {
			p, r := opened(t, typ, place(thin, 160*mib, mib)(t))
			resize := func(n, mb int) error {
				defer faults.Install(&stopTool{n})()
				return p.Resize(t.Context(), r, int64(mb)*mib)
			}
			stopped, n := true, 0
			if os.Getenv("TARN_SLOW") == "" {
				n = 2 // the volume has grown by then, and still has its tag
			}
			for ; stopped; n++ {
				write(t, p, r, 16*mib)
				if err := resize(0, 8); !errors.Is(err, faults.ErrCrash) {
					t.Fatalf("a shrink that is stopped at once: %v", err)
				}
				wantBytes(t, p, r, driver.Base, 16*mib, 16*mib)
				if err := p.Resize(t.Context(), r, 8*mib); err != nil {
					t.Fatal(err)
				}
				err := resize(n, 16)
				stopped = errors.Is(err, faults.ErrCrash)
				if err != nil && !stopped || !stopped && n < 2 {
					t.Fatalf("a grow that is stopped at command %d: %v", n, err)
				}
				if err := p.Resize(t.Context(), r, 16*mib); err != nil {
					t.Fatal(err)
				}
				wantBytes(t, p, r, driver.Base, 8*mib, 16*mib)
			}
		})
	}
}

// TestStaleGrowTag has a volume that is smaller than its tag says is clean.
func TestStaleGrowTag(t *testing.T) {
	const mib = 1 << 20
	c := place(false, 64*mib, mib)(t)
	p, r := opened(t, Logical, c)
	write(t, p, r, 16*mib)
	if err := p.Resize(t.Context(), r, 8*mib); err != nil {
		t.Fatal(err)
	}
	run(t, "lvm", "lvchange", "-q", "--addtag", fmt.Sprint(growTag, 16*mib), c.Source.VolumeGroup+"/"+r.Name)
	if err := p.Resize(t.Context(), r, 16*mib); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, p, r, driver.Base, 8*mib, 16*mib)
}

// TestCloneOfAShrunkBase makes a clone that is larger than its base.
func TestCloneOfAShrunkBase(t *testing.T) {
	const mib = 1 << 20
	p, base := opened(t, Thin, place(true, 64*mib, mib)(t))
	write(t, p, base, 16*mib)
	if err := p.Resize(t.Context(), base, 8*mib); err != nil {
		t.Fatal(err)
	}
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID())}
	if err := p.(driver.Cloner).Clone(t.Context(), driver.Spec{ID: r.ID, Size: 24 * mib}, base); err != nil {
		t.Fatal(err)
	}
	wantBytes(t, p, r, driver.Staged, 8*mib, 24*mib)
}

// TestZeroOfOddChunks has chunks that do not divide the steps of a discard.
func TestZeroOfOddChunks(t *testing.T) {
	const mib, chunk = 1 << 20, 192 << 10
	p, _ := opened(t, Thin, config(t, volumegroup.Spec{Size: 60 * mib, Extent: 4 * mib, Thin: true, Chunk: "192k"}))
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID())}
	if err := p.Create(t.Context(), driver.Spec{ID: r.ID, Size: 4 << 30}); err != nil {
		t.Fatal(err)
	}
	d, err := p.Open(t.Context(), r, driver.Staged)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const edge = 1<<30 - 8*chunk
	full, got := bytes.Repeat([]byte{7}, 16*chunk), make([]byte, 16*chunk)
	if _, err = d.WriteAt(full, edge); err == nil {
		err = errors.Join(d.Sync(), d.Zero(5, 3<<30))
	}
	if err == nil {
		_, err = d.ReadAt(got, edge)
	}
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexByte(got, 7); i >= 0 {
		t.Errorf("byte %d of the zeroed range is still there", edge+i)
	}
}

// TestPublishStoppedInRename has LVM stopped between writing the name of what is
// published down and giving it to the device.
func TestPublishStoppedInRename(t *testing.T) {
	for _, row := range []struct {
		name string
		then func(p driver.Driver, r driver.Ref) error
		want error
	}{
		{"a repeat publishes it", func(p driver.Driver, r driver.Ref) error {
			_, err := p.Publish(t.Context(), r.ID, r.Name, false, []byte("{}"))
			return err
		}, nil},
		{"Delete removes it", func(p driver.Driver, r driver.Ref) error { return p.Delete(t.Context(), r) }, errs.NotFound},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := place(false, 64<<20, 1<<20)(t)
			p, _ := opened(t, Logical, c)
			r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "b"}
			if err := p.Create(t.Context(), driver.Spec{ID: r.ID, Size: 4 << 20}); err != nil {
				t.Fatal(err)
			}
			vg, staged := c.Source.VolumeGroup, stagedPrefix+string(r.ID)
			o, err := p.(*pool).find(t.Context(), "find", r, staged)
			if err == nil {
				err = p.(*pool).recs.put(record{Name: r.Name, ID: r.ID, Object: o.uuid, Data: []byte("{}")})
			}
			if err != nil {
				t.Fatal(err)
			}
			run(t, "lvm", "lvrename", "-q", vg, staged, r.Name)
			run(t, "dmsetup", "rename", dmName(vg, r.Name), dmName(vg, staged))
			if err := row.then(p, r); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Describe(t.Context(), r); !errors.Is(err, row.want) {
				t.Errorf("Describe: %v, want %v", err, row.want)
			}
			if _, err := p.Sidecar(t.Context(), r.Name); !errors.Is(err, row.want) {
				t.Errorf("Sidecar: %v, want %v", err, row.want)
			}
			if row.want == nil {
				wantBytes(t, p, r, driver.Read, 0, 4<<20)
			}
		})
	}
}

// TestWipe deletes a volume that somebody's words were in, a snapshot that kept
// them and a base, and looks for the words in all of the group.
func TestWipe(t *testing.T) {
	for _, wipe := range []string{"", wipeZero} {
		t.Run("wipe="+wipe, func(t *testing.T) {
			const mib = 1 << 20
			ctx := t.Context()
			c := place(false, 64*mib, mib)(t)
			c.Source.Wipe = wipe
			p, r := opened(t, Logical, c)
			words := []byte(drivertest.NewID())
			fill := func(r driver.Ref, m driver.Mode, with []byte) {
				d, err := p.Open(ctx, r, m)
				if err == nil {
					_, err = d.WriteAt(bytes.Repeat(with, mib/len(with)), 0)
				}
				if err == nil {
					err = errors.Join(d.Sync(), d.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			base, id := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "base"}, disk.SnapshotID(drivertest.NewID())
			s := p.(driver.Snapshotter)
			fill(r, driver.Write, words)
			err := errors.Join(s.Snapshot(ctx, r, id), p.Create(ctx, driver.Spec{ID: base.ID, Size: 4 * mib}))
			if err == nil {
				fill(r, driver.Write, []byte("other"))
				fill(driver.Ref{ID: base.ID}, driver.Staged, words)
				_, err = p.Publish(ctx, base.ID, base.Name, true, []byte("{}"))
			}
			err = errors.Join(err, s.DeleteSnapshot(ctx, r, id), p.Delete(ctx, r), p.Delete(ctx, base))
			if err != nil {
				t.Fatal(err)
			}
			all := c.Source.VolumeGroup + "/all"
			run(t, "lvm", "lvcreate", "-q", "-y", "-Zn", "-Wn", "-l", "100%FREE", "-n", "all", c.Source.VolumeGroup)
			got, err := os.ReadFile("/dev/" + all)
			if err != nil {
				t.Fatal(err)
			}
			if found := bytes.Count(got, words); (found == 0) != (wipe == wipeZero) {
				t.Errorf("the words are there %d times", found)
			}
		})
	}
	c := place(false, 64<<20, 1<<20)(t)
	c.Source.Wipe = "twice"
	if err := Logical.Prepare(t.Context(), c, drivertest.Marker(c)); !errors.Is(err, errs.Invalid) {
		t.Errorf("Prepare with the wipe %q: %v, want invalid", c.Source.Wipe, err)
	}
}

// TestOwner has a pool for guests of another user.
func TestOwner(t *testing.T) {
	const nobody = 65534
	ctx, c := t.Context(), place(false, 64<<20, 1<<20)(t)
	c.Owner = disk.Owner{UID: nobody, GID: nobody}
	p, r := opened(t, Logical, c)
	base := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "base"}
	err := p.Create(ctx, driver.Spec{ID: base.ID, Size: 4 << 20})
	if err == nil {
		_, err = p.Publish(ctx, base.ID, base.Name, true, []byte("{}"))
	}
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for name, want := range map[string]uint32{r.Name: nobody, base.Name: 0} {
			var st unix.Stat_t
			if err := unix.Stat("/dev/"+c.Source.VolumeGroup+"/"+name, &st); err != nil || st.Uid != want {
				t.Errorf("%s %s is user %d's, %v; want %d", when, name, st.Uid, err, want)
			}
		}
	}
	check("published")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, "lvm", "lvchange", "-q", "-an", c.Source.VolumeGroup+"/"+r.Name)
	if p, _, err = Logical.Open(ctx, c); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	check("after a restart of the host")
}

// TestForeignGroup has a volume group that LVM keeps for another host.
func TestForeignGroup(t *testing.T) {
	c := place(false, 64<<20, 1<<20)(t)
	vg := c.Source.VolumeGroup
	run(t, "lvm", "vgchange", "-q", "-y", "--systemid", "elsewhere", vg)
	_, _, opened := Logical.Open(t.Context(), c)
	for what, err := range map[string]error{"Prepare": Logical.Prepare(t.Context(), c, drivertest.Marker(c)), "Open": opened, "Remove": Logical.Remove(t.Context(), c)} {
		if !errors.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "elsewhere") {
			t.Errorf("%s of another host's group: %v, want a conflict that names elsewhere", what, err)
		}
	}
}
