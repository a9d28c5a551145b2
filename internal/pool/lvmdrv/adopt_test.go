package lvmdrv

import (
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/test/system/volumegroup"
)

// TestAdoptRefuses tries logical volumes that hang together with others.
func TestAdoptRefuses(t *testing.T) {
	c := config(t, volumegroup.Spec{Size: 64 << 20, Extent: 1 << 20})
	p, _ := opened(t, Logical, c)
	run(t, "lvm", "lvcreate", "-q", "-y", "-W", "n", "-L", "4m", "-n", "origin", c.Source.VolumeGroup)
	a := p.(driver.Adopter)
	d, err := a.Candidate(t.Context(), "origin")
	if err != nil {
		t.Fatal(err)
	}
	if d.Object.Size != 4<<20 || d.Size() != 4<<20 {
		t.Errorf("Candidate is %+v with %d bytes, want 4 MiB", d.Object, d.Size())
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	run(t, "lvm", "lvcreate", "-q", "-y", "-s", "-L", "4m", "-n", "later", c.Source.VolumeGroup+"/origin")
	for _, name := range []string{"origin", "later"} {
		if _, err := a.Candidate(t.Context(), name); err == nil || errs.KindOf(err) != errs.Conflict {
			t.Errorf("Candidate %s: %v, want conflict", name, err)
		}
	}
}
