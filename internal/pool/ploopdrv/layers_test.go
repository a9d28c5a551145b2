package ploopdrv_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/tarn-storage/tarn/internal/disk"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/internal/pool/drivertest"
	"github.com/tarn-storage/tarn/internal/pool/ploopdrv"
	"github.com/tarn-storage/tarn/test/oracle"
)

// TestLayers has QEMU read and write a volume with two snapshots through the
// layers that the driver names, after a QEMU that was killed.
func TestLayers(t *testing.T) {
	ctx := t.Context()
	h := harness(func(t *testing.T) string { return t.TempDir() })
	c := h.Place(t)
	if err := ploopdrv.Type.Prepare(ctx, c, drivertest.Marker(c)); err != nil {
		t.Fatal(err)
	}
	d, _, err := ploopdrv.Type.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	const size = 6 << 20
	r := driver.Ref{ID: disk.VolumeID(drivertest.NewID()), Name: "v"}
	if err := d.Create(ctx, driver.Spec{ID: r.ID, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Publish(ctx, r.ID, r.Name, false, nil); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, size)
	for i := range 3 {
		dev, err := d.Open(ctx, r, driver.Write)
		if err != nil {
			t.Fatal(err)
		}
		p := want[i<<20 : i<<20+1<<20+5000]
		for j := range p {
			p[j] = byte(i + 1)
		}
		if _, err := dev.WriteAt(p, int64(i)<<20); err != nil {
			t.Fatal(err)
		}
		if err := dev.Close(); err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			if err := d.(driver.Snapshotter).Snapshot(ctx, r, disk.SnapshotID(drivertest.NewID())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if h.Hold != nil {
		h.Hold(t, c, r)() // it is killed, and the next QEMU would refuse the image
	}
	layers, err := d.(driver.Layered).Layers(ctx, r)
	if err != nil || len(layers) != 3 {
		t.Fatalf("Layers = %+v, %v; want three", layers, err)
	}
	chain := ""
	for i := len(layers) - 1; i >= 0; i-- {
		below := ""
		if chain != "" {
			below = `,"backing":` + chain
		}
		chain = fmt.Sprintf(`{"driver":"parallels","file":{"driver":"file","filename":%q}%s}`, layers[i].Path, below)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	oracle.Run(t, "qemu-utils", "qemu-img", "compare", "-F", "raw", "json:"+chain, raw)
	oracle.Run(t, "qemu-utils", "qemu-io", "-c", "write -P 9 4k 4k", "json:"+chain)
	dev, err := d.Open(ctx, r, driver.Read)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	got := make([]byte, 12<<10)
	if _, err := dev.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	for i, b := range got {
		if w := map[bool]byte{true: 9, false: 1}[i/4096 == 1]; b != w {
			t.Fatalf("byte %d is %d after QEMU wrote, want %d", i, b, w)
		}
	}
}
