package rbddrv_test

import (
	"testing"

	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/pool/driver"
	"github.com/tarn-storage/tarn/test/system/ceph"
)

// TestAdoptRefuses tries images that rbd made otherwise than the driver would.
func TestAdoptRefuses(t *testing.T) {
	c, at := ceph.Start(t), place(t)
	a := started(t, at).(driver.Adopter)
	in := at.Source.CephPool + "/"
	c.Run(t, "rbd", "create", "--size", "8M", in+"plain")
	c.Run(t, "rbd", "create", "--size", "8M", in+"frozen")
	c.Run(t, "rbd", "snap", "create", "--no-progress", in+"frozen@s")
	c.Run(t, "rbd", "clone", "--rbd-default-clone-format", "2", in+"frozen@s", in+"clone")
	c.Run(t, "rbd", "create", "--size", "8M", "--image-feature", "layering", in+"lockless")
	c.Run(t, "rbd", "create", "--size", "8M", "--image-feature", "exclusive-lock,journaling", in+"mirrored")
	for name, want := range map[string]errs.Kind{"frozen": errs.Conflict, "clone": errs.Conflict, "lockless": errs.Unsafe, "mirrored": errs.Unsafe, "nosuch": errs.NotFound} {
		_, err := a.Candidate(t.Context(), name)
		if errs.KindOf(err) != want || err == nil {
			t.Errorf("Candidate %s: %v, want %s", name, err, want)
		}
	}
	d, err := a.Candidate(t.Context(), "plain")
	if err != nil {
		t.Fatal(err)
	}
	if d.Object.Size != 8<<20 || d.Size() != 8<<20 {
		t.Errorf("Candidate plain is %+v with %d bytes, want 8 MiB", d.Object, d.Size())
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
