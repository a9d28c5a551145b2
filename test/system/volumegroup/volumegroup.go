// Package volumegroup gives tests volume groups of LVM on the disk that
// TARN_TEST_LVM names, which it overwrites: as root, where the kernel has
// device-mapper (test/lvm/run makes a guest of that kind). A command of LVM's
// takes most of a second in such a guest, so a group that a test is done with is
// not removed: what LVM wrote into it is put back as it was when the group was
// new. It refuses disks that nobody named.
package volumegroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const (
	variable = "TARN_TEST_LVM"

	// ThinPool is the name of the thin pool that a group for thin volumes has.
	ThinPool = "thin"

	mib      = 1 << 20
	slotSize = 4 << 30 // the most that a group may have
	reserve  = 24 * mib
)

// Spec says how large a group is, or with Thin its thin pool, and its extents, in
// bytes.
type Spec struct {
	Size, Extent int64
	Thin         bool
	Chunk        string // of the thin pool, "" for LVM's choice
	Metadata     int64  // of the thin pool, 0 for 4 MiB
}

// slot is a part of the disk with a physical volume at a time.
type slot struct {
	node   string
	busy   bool
	last   string // the group that it had, whose devices may be active still
	groups map[Spec]*group
}

// group is a group that a slot has had.
type group struct {
	name  string
	fresh []piece
}

// piece is a part of a slot as it was when its group was new.
type piece struct {
	at   int64
	data []byte
}

var disk struct {
	mu    sync.Mutex
	slots []*slot
	made  int
}

// Need returns the disk, and skips t where there is none.
func Need(t testing.TB) string {
	t.Helper()
	dev := os.Getenv(variable)
	if dev == "" {
		t.Skipf("%s names no disk to overwrite: \"scripts/test lvm\" runs this in a guest that has one", variable)
	}
	return dev
}

// New returns the name of a fresh group that ends with t. What is in its extents
// is what others wrote before. Of a thin pool the volumes are gone, and it is not
// active.
func New(t testing.TB, s Spec) string {
	t.Helper()
	Need(t)
	sl := take(t)
	if sl.last != "" {
		drop(t, sl.last)
	}
	g := sl.groups[s]
	if g == nil {
		g = sl.build(t, s)
		sl.groups[s] = g
	} else if err := sl.restore(g); err != nil {
		t.Fatalf("volumegroup: %v", err)
	}
	t.Cleanup(func() { // who serves the group may end only after this
		disk.mu.Lock()
		sl.busy, sl.last = false, g.name
		disk.mu.Unlock()
	})
	return g.name
}

// take returns a slot that nobody has.
func take(t testing.TB) *slot {
	t.Helper()
	disk.mu.Lock()
	defer disk.mu.Unlock()
	for _, sl := range disk.slots {
		if !sl.busy {
			sl.busy = true
			return sl
		}
	}
	n := len(disk.slots)
	name := fmt.Sprintf("tarn.slot%d", n)
	Run(t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d linear %s %d", slotSize/512, Need(t), (mib+int64(n)*slotSize)/512))
	sl := &slot{node: "/dev/mapper/" + name, busy: true, groups: map[Spec]*group{}}
	disk.slots = append(disk.slots, sl)
	return sl
}

// build makes a group and remembers what it is made of.
func (sl *slot) build(t testing.TB, s Spec) *group {
	t.Helper()
	disk.mu.Lock()
	disk.made++
	g := &group{name: fmt.Sprintf("vg-%d", disk.made)}
	disk.mu.Unlock()
	size := s.Size
	if s.Thin {
		size += reserve
	}
	if s.Metadata == 0 {
		s.Metadata = 4 * mib
	}
	if err := sl.write(piece{data: make([]byte, mib)}); err != nil { // LVM's own of another group
		t.Fatalf("volumegroup: %v", err)
	}
	Run(t, "lvm", "pvcreate", "-qq", "--yes", "--setphysicalvolumesize", bytes(size+s.Extent+mib), sl.node)
	Run(t, "lvm", "vgcreate", "-qq", "--physicalextentsize", bytes(s.Extent), g.name, sl.node)
	parts := map[int64]int64{0: mib}
	if s.Thin {
		options := []string{"lvcreate", "-qq", "--yes", "--errorwhenfull", "y", "--poolmetadatasize", bytes(s.Metadata), "--size", bytes(s.Size)}
		if s.Chunk != "" {
			options = append(options, "--chunksize", s.Chunk)
		}
		Run(t, "lvm", append(options, "--thinpool", g.name+"/"+ThinPool)...)
		parts[metadata(t, g.name)] = s.Metadata
	}
	drop(t, g.name)
	for at, n := range parts {
		p := piece{at, make([]byte, n)}
		f, err := os.Open(sl.node)
		if err == nil {
			_, err = f.ReadAt(p.data, p.at)
			f.Close()
		}
		if err != nil {
			t.Fatalf("volumegroup: %v", err)
		}
		g.fresh = append(g.fresh, p)
	}
	return g
}

func bytes(n int64) string { return strconv.FormatInt(n, 10) + "b" }

// Run runs a command that has to succeed.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

var linear = regexp.MustCompile(`^0 [0-9]+ linear [0-9:]+ ([0-9]+)\s*$`)

// metadata returns where the metadata of the thin pool lie on the physical volume.
func metadata(t testing.TB, vg string) int64 {
	t.Helper()
	table := Run(t, "dmsetup", "table", mapper(vg)+ThinPool+"_tmeta")
	m := linear.FindStringSubmatch(table)
	if m == nil {
		t.Fatalf("volumegroup: the metadata of the thin pool lie at %q", table)
	}
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * 512
}

func (sl *slot) restore(g *group) error {
	for _, p := range g.fresh {
		if err := sl.write(p); err != nil {
			return err
		}
	}
	return nil
}

func (sl *slot) write(p piece) error {
	f, err := os.OpenFile(sl.node, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt(p.data, p.at); err != nil {
		return err
	}
	return f.Sync()
}

// mapper begins the names of device-mapper's devices of a group.
func mapper(vg string) string { return strings.ReplaceAll(vg, "-", "--") + "-" }

// devices returns the active devices of the group, also where it was renamed.
func devices(t testing.TB, vg string) (names []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/dm-*/dm/name")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has just gone
		}
		name := strings.TrimSpace(string(b))
		if strings.HasPrefix(name, mapper(vg)) || strings.HasPrefix(name, mapper(vg+Gone)) {
			names = append(names, name)
		}
	}
	return names
}

// Gone is what a test may put behind a group's name to have it renamed.
const Gone = "-gone"

// layer says how many layers of LVM's may lie over a device.
func layer(name string) int {
	for depth, ends := range [][]string{1: {"-real", "-cow"}, 2: {"-tpool"}, 3: {"_tmeta", "_tdata"}} {
		for _, end := range ends {
			if strings.HasSuffix(name, end) {
				return depth
			}
		}
	}
	return 0
}

// drop takes all devices of a group away, whatever LVM knows of them.
func drop(t testing.TB, vg string) {
	t.Helper()
	names := devices(t, vg)
	slices.SortFunc(names, func(a, b string) int { return layer(a) - layer(b) })
	if len(names) > 0 {
		Run(t, "dmsetup", append([]string{"remove"}, names...)...)
	}
	for _, name := range names {
		_ = os.Remove("/dev/mapper/" + name)
	}
	for _, dir := range []string{vg, vg + Gone} {
		_ = os.RemoveAll("/dev/" + dir)
	}
	if left := devices(t, vg); len(left) > 0 {
		t.Errorf("volumegroup: somebody still has %v open", left)
	}
}
