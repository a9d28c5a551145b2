package lvmdrv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"sync"
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/hostexec"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/metamorph"
	"github.com/tarn-storage/tarn/test/system/volumegroup"
)

// hold names a device for this binary to keep open for writing, as QEMU does.
const hold = "TARN_TEST_HOLD"

func TestMain(m *testing.M) {
	if path := os.Getenv(hold); path != "" {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("open")
		_, _ = io.ReadAll(os.Stdin) // until the test ends, or wants it back
		_ = f.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const thinName = volumegroup.ThinPool

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	volumegroup.Run(t, name, args...)
}

func place(thin bool, size, extent int64) func(t *testing.T) driver.Config {
	return func(t *testing.T) driver.Config {
		t.Helper()
		return config(t, volumegroup.Spec{Size: size, Extent: extent, Thin: thin})
	}
}

func config(t *testing.T, s volumegroup.Spec) driver.Config {
	t.Helper()
	c := driver.Config{ID: disk.PoolID(drivertest.NewID())}
	c.Source.VolumeGroup = volumegroup.New(t, s)
	if s.Thin {
		c.Source.ThinPool = thinName
	}
	return c
}

func harness(thin bool) drivertest.Harness {
	return drivertest.Harness{
		Type:  map[bool]driver.Type{false: Logical, true: Thin}[thin],
		Place: place(thin, 560<<20, 4<<20),
		Small: place(thin, 64<<20, 1<<20),
		Few:   place(thin, 160<<20, 1<<20),
		Hold: func(t *testing.T, c driver.Config, r driver.Ref) func() {
			return holdOpen(t, "/dev/"+c.Source.VolumeGroup+"/"+r.Name)
		},
		Foreign: func(t *testing.T, c driver.Config, name string) {
			how := []string{"-L", "4m"}
			if thin {
				how = []string{"-V", "4m", "--thinpool", thinName}
			}
			run(t, "lvm", append(append([]string{"lvcreate", "-q", "-y", "-n", name}, how...), c.Source.VolumeGroup)...)
		},
		Vanish: func(t *testing.T, c driver.Config) func() {
			vg := c.Source.VolumeGroup
			run(t, "lvm", "vgrename", "-q", vg, vg+volumegroup.Gone)
			return func() { run(t, "lvm", "vgrename", "-q", vg+volumegroup.Gone, vg) }
		},
		Residue: residue,
		Slow:    true,
		Effects: effects(thin),
	}
}

func effects(thin bool) map[string]int {
	n := map[string]int{"Prepare": 5, "Remove": 2, "Publish": 4, "Publish immutable": 5, "Delete": 3, "Delete staged": 1,
		"Snapshot": 2, "DeleteSnapshot": 1, "SetAside": 3, "PutSidecar": 2, "PutSidecar of the marker": 2, "Disown": 3, "Adopt": 3, "Adopt immutable": 4}
	if thin {
		n["Create"], n["Create preallocated"], n["Clone"], n["Resize"] = 1, 4, 4, 2
	} else {
		n["Create"], n["Create preallocated"], n["Resize"] = 3, 3, 6
	}
	return n
}

// holdOpen has another process open path for writing.
func holdOpen(t *testing.T, path string) (release func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), hold+"="+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	t.Cleanup(release)
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "open\n" {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return release
}

var (
	generation = regexp.MustCompile(`(tarn\.v1\..*)\.[0-9]+`)
	owner      = regexp.MustCompile(`^(\.tarn-snap-.*)-[A-Za-z0-9]+$`)
)

// residue lists the group's logical volumes and the pool's records, without what
// differs each time.
func residue(t *testing.T, c driver.Config) []string {
	t.Helper()
	s := &source{vg: c.Source.VolumeGroup, thinPool: c.Source.ThinPool}
	rows, err := report(t.Context(), "residue", s.vg, "lv", []hostexec.Option{hostexec.Flag("lvs"),
		hostexec.OptionValue("-o", hostexec.Word("lv_name,lv_size,lv_tags,lv_permissions,lv_active"))}, s.vg)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, r := range rows {
		name := owner.ReplaceAllString(r["lv_name"], "$1")
		if name == thinName {
			r["lv_permissions"], r["lv_active"] = "", "" // they change with its first volume, and when the pool is opened
		}
		all = append(all, fmt.Sprintf("%s %s %s %s %s", name, r["lv_size"], generation.ReplaceAllString(r["lv_tags"], "$1"), r["lv_permissions"], r["lv_active"]))
	}
	if _, err := os.Stat(s.node(s.recordsName())); err == nil {
		recs, err := openRecords(s.node(s.recordsName()))
		if err != nil {
			t.Fatal(err)
		}
		defer recs.close()
		m, _ := recs.marker()
		all = append(all, fmt.Sprintf("marker %s", m))
		for _, rec := range recs.all() {
			all = append(all, fmt.Sprintf("record %s of %s, %d bytes", rec.Name, rec.ID, len(rec.Data)))
		}
	}
	slices.Sort(all)
	return all
}

func TestLogical(t *testing.T) {
	volumegroup.Need(t)
	drivertest.Run(t, harness(false))
}

// TestThin leaves what TestLogical shows of both, the records, names, locks and
// crashes, to the slow suite.
func TestThin(t *testing.T) {
	volumegroup.Need(t)
	var parts []string
	if os.Getenv("TARN_SLOW") == "" {
		parts = []string{"Create", "Device", "Resize", "Clone", "Snapshots", "Delete", "Stat", "Full"}
	}
	drivertest.RunParts(t, harness(true), parts...)
}

// The histories are short: each operation is several calls of LVM.
func TestMetamorphicLogical(t *testing.T) {
	volumegroup.Need(t)
	metamorph.Run(t, Logical, place(false, 560<<20, 4<<20), 20)
}

func TestMetamorphicThin(t *testing.T) {
	volumegroup.Need(t)
	metamorph.Run(t, Thin, place(true, 560<<20, 4<<20), 20)
}
