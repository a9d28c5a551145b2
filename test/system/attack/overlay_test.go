package attack_test

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/test/system/storage"
	"github.com/tarn-storage/tarn/test/system/tarntest"
)

// overlay is the file of a qcow2 disk that a guest has written to: its tables
// can be changed in place.
type overlay []byte

var be = binary.BigEndian

func (o overlay) l1() uint64      { return be.Uint64(o[40:]) }
func (o overlay) l2() uint64      { return be.Uint64(o[o.l1():]) &^ (1 << 63) }
func (o overlay) first() uint64   { return be.Uint64(o[o.l2():]) &^ (1 << 63) }
func (o overlay) table() uint64   { return be.Uint64(o[48:]) }
func (o overlay) setL1(v uint64)  { be.PutUint64(o[o.l1():], v) }
func (o overlay) setL2(v uint64)  { be.PutUint64(o[o.l2():], v) }
func (o overlay) size() uint64    { return uint64(len(o)) }
func (o overlay) cluster() uint64 { return 1 << be.Uint32(o[20:]) }

// damages are what a guest that can write its overlay's file may do to it.
var damages = []struct {
	name string
	do   func(o overlay, canary string)
	deep bool // in an L2 table, which opening does not read
}{
	{"backing name in place", func(o overlay, canary string) {
		at := be.Uint64(o[8:])
		be.PutUint32(o[16:], uint32(len(canary)))
		copy(o[at:], canary)
	}, false},
	{"no backing name", func(o overlay, _ string) { be.PutUint64(o[8:], 0); be.PutUint32(o[16:], 0) }, false},
	{"no header", func(o overlay, _ string) { clear(o[:512]) }, false},
	{"another virtual size", func(o overlay, _ string) { be.PutUint64(o[24:], 64<<20) }, false},
	{"other cluster bits", func(o overlay, _ string) { be.PutUint32(o[20:], 9) }, false},
	{"an unknown feature", func(o overlay, _ string) { be.PutUint64(o[72:], 1<<40) }, false},
	{"marked corrupt", func(o overlay, _ string) { be.PutUint64(o[72:], 1<<1) }, false},
	{"encrypted", func(o overlay, _ string) { be.PutUint32(o[32:], 2) }, false},
	{"L1 table out of the file", func(o overlay, _ string) { be.PutUint64(o[40:], o.size()+o.cluster()) }, false},
	{"L1 table over the header", func(o overlay, _ string) { be.PutUint64(o[40:], 0) }, false},
	{"L1 table of 2^31 entries", func(o overlay, _ string) { be.PutUint32(o[36:], 1<<31) }, false},
	{"L1 entry to the L1 table", func(o overlay, _ string) { o.setL1(o.l1() | 1<<63) }, false},
	{"L1 entry to the refcount table", func(o overlay, _ string) { o.setL1(o.table() | 1<<63) }, false},
	{"L1 entry out of the file", func(o overlay, _ string) { o.setL1(1<<40 | 1<<63) }, false},
	{"L1 entry between clusters", func(o overlay, _ string) { o.setL1(o.l2() + 512 | 1<<63) }, false},
	{"L2 entry to the header", func(o overlay, _ string) { o.setL2(1 << 63) }, true},
	{"L2 entry to the L1 table", func(o overlay, _ string) { o.setL2(o.l1() | 1<<63) }, true},
	{"L2 entry to the L2 table", func(o overlay, _ string) { o.setL2(o.l2() | 1<<63) }, true},
	{"L2 entry to the refcount table", func(o overlay, _ string) { o.setL2(o.table() | 1<<63) }, true},
	{"L2 entry out of the file", func(o overlay, _ string) { o.setL2(1<<50 | 1<<63) }, true},
	{"L2 entry between clusters", func(o overlay, _ string) { o.setL2(o.first() + 512 | 1<<63) }, true},
	{"compressed cluster out of the file", func(o overlay, _ string) { o.setL2(1<<62 | 1<<45) }, true},
	{"compressed cluster of garbage", func(o overlay, _ string) { o.setL2(1<<62 | o.first()) }, true},
}

// overBase asks for a disk that is an overlay of the image's base.
const overBase = "--root img:2M,disk-format=qcow2"

// TestDamagedOverlay damages overlays, one each way, and also replaces whole
// headers by those that attack raw disks. Reading them is the same on every
// file system, so that all places but the first try a part.
func TestDamagedOverlay(t *testing.T) {
	qemuIO := tarntest.NeedTool(t, "qemu-io")
	for n, tech := range storage.Directories() {
		t.Run(tech.Name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, tech)
			w.corrupt = true
			hit := func(name, spec string, do func(o overlay)) {
				owner := "victim"
				if n := len(w.targets); n > 0 {
					owner = fmt.Sprintf("victim%d", n)
				}
				w.d.Must(append([]string{"instance", "create", owner, "--pool", "main"}, strings.Fields(spec)...)...)
				role := map[bool]string{true: "root", false: "data0"}[strings.HasPrefix(spec, "--root")]
				w.attack(owner+"/"+role, name, func(path string, _ []byte) []byte {
					out, err := exec.Command(qemuIO, "-f", "qcow2", "-c", "write -P 7 0 64k", "-c", "write -P 8 1M 128k", path).CombinedOutput()
					if err != nil {
						t.Fatalf("qemu-io: %v\n%s", err, out)
					}
					o := overlay(read(t, path))
					do(o)
					return o
				})
			}
			for i, d := range damages {
				if n == 0 || i%6 == 0 {
					hit(d.name, overBase, func(o overlay) { d.do(o, w.canary.Path) })
					w.targets[len(w.targets)-1].deep = d.deep
				}
			}
			for i, f := range forms {
				if n == 0 || i%3 == 0 {
					hit(f.name, overBase, func(o overlay) { copy(o, f.bytes(w.canary.Path)) })
					if n == 0 {
						hit(f.name+", without a backing", "--data 2M,disk-format=qcow2", func(o overlay) { copy(o, f.bytes(w.canary.Path)) })
					}
				}
			}
			w.runAll()
		})
	}
}

// TestWholeOverlayReads is the control of TestDamagedOverlay: without damage
// the same overlay is exported.
func TestWholeOverlayReads(t *testing.T) {
	qemuIO := tarntest.NeedTool(t, "qemu-io")
	w := newWorld(t, storage.Directory)
	w.d.Must("instance", "create", "victim", "--root", "img:2M,disk-format=qcow2")
	w.attack("victim/root", "none", func(path string, _ []byte) []byte {
		if out, err := exec.Command(qemuIO, "-f", "qcow2", "-c", "write -P 7 0 64k", path).CombinedOutput(); err != nil {
			t.Fatalf("qemu-io: %v\n%s", err, out)
		}
		return read(t, path)
	})
	got := w.d.Must("disk", "export", "victim/root", "-", "--format", "raw").Stdout
	want := string(slices.Repeat([]byte{7}, 64<<10)) + string(tarntest.Pattern(1, 300_000)[64<<10:])
	if len(got) != 2<<20 || got[:len(want)] != want {
		t.Errorf("the export of %d bytes is not what the guest wrote over the image", len(got))
	}
	w.d.AssertHealthy()
}
