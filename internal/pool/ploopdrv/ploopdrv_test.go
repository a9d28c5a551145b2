package ploopdrv_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/ploopdrv"
	"github.com/tarn-storage/tarn/test/oracle"
	"github.com/tarn-storage/tarn/test/system/fsloop"
)

// effects are what each call has on any file system.
var effects = map[string]int{
	"Disown": 2, "Adopt": 10, "Adopt immutable": 10,
	"Prepare": 11, "Remove": 8, "Create": 9, "Create preallocated": 11, "Publish": 8, "Publish immutable": 11,
	"Resize": 20, "Delete": 6, "Delete staged": 4, "PutSidecar": 5, "Snapshot": 13, "Snapshot, the second": 13, "DeleteSnapshot": 14,
}

// harness tests directories that root makes. When a test ends QEMU checks every
// image of its pools.
func harness(root func(t *testing.T) string) drivertest.Harness {
	h := drivertest.Directory(ploopdrv.Type, root)
	h.Effects, h.Grain = effects, 1<<20
	place := h.Place
	h.Place = func(t *testing.T) driver.Config {
		c := place(t)
		t.Cleanup(func() { check(t, c) })
		return c
	}
	if _, err := exec.LookPath("qemu-io"); err == nil || os.Getenv("CI") != "" {
		h.Hold = hold
	}
	return h
}

// check has QEMU check every image of the volumes at c.
func check(t *testing.T, c driver.Config) {
	images, err := filepath.Glob(filepath.Join(c.Path, "*", "root.hds*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range images {
		cmd := exec.Command("qemu-img", "check", "-f", "parallels", image) // t.Context is done
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "No errors") {
			t.Errorf("qemu-img check of %s: %v\n%s", image, err, out)
		}
	}
}

// top returns the path of the image of r that is written.
func top(t *testing.T, c driver.Config, r driver.Ref) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.Path, r.Name, "DiskDescriptor.xml"))
	if err != nil {
		t.Fatal(err)
	}
	files := strings.Split(string(b), "<File>")
	name, _, _ := strings.Cut(files[len(files)-1], "<")
	return filepath.Join(c.Path, r.Name, name)
}

// hold has QEMU open the volume for writing until it is killed.
func hold(t *testing.T, c driver.Config, r driver.Ref) func() {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "qemu-io", "-f", "parallels", top(t, c, r))
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
	release := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(release)
	if _, err := in.Write([]byte("length\n")); err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(out); s.Scan(); {
		if strings.Contains(s.Text(), "MiB") {
			return release
		}
	}
	t.Fatal("qemu-io ended before it was ready")
	return nil
}

func TestContract(t *testing.T) {
	oracle.Run(t, "qemu-utils", "qemu-img", "--version")
	drivertest.Run(t, harness(func(t *testing.T) string { return t.TempDir() }))
}

func TestContractUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("TestContract itself is unprivileged")
	}
	oracle.AsNobody(t, "TestContract")
}

// TestContractOn runs the suite on file systems with and without reflinks.
func TestContractOn(t *testing.T) {
	oracle.Run(t, "qemu-utils", "qemu-img", "--version")
	for _, kind := range []string{"xfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			f := fsloop.New(t, kind, 4<<30)
			n := 0
			h := harness(func(t *testing.T) string {
				n++
				dir := filepath.Join(f.Dir, fmt.Sprint(n))
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(dir) })
				return dir
			})
			h.Power = func(t *testing.T) (driver.Config, func()) {
				fs := fsloop.New(t, kind, 512<<20)
				return harness(func(*testing.T) string { return fs.Dir }).Place(t), func() { fs.Shutdown(); fs.Remount() }
			}
			h.Small = func(t *testing.T) driver.Config {
				return harness(func(t *testing.T) string { return fsloop.New(t, kind, 64<<20).Dir }).Place(t)
			}
			drivertest.Run(t, h)
		})
	}
}
