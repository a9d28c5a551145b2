// Package lvm_test runs the shipped binaries on a volume group that has a pool of
// thick volumes and one of thin ones, and on what can be no pool. What holds on
// every technology is tested elsewhere.
package lvm_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/test/system/tarntest"
	"github.com/tarn-storage/tarn/test/system/volumegroup"
)

// lvs lists the group's logical volumes.
func lvs(t *testing.T, vg string) string {
	t.Helper()
	return volumegroup.Run(t, "lvm", "lvs", "--noheadings", "-o", "lv_name,lv_size", vg)
}

func TestTwoPoolsInOneGroup(t *testing.T) {
	vg := volumegroup.New(t, volumegroup.Spec{Size: 64 << 20, Extent: 1 << 20, Thin: true})
	d := tarntest.Start(t, filepath.Join(t.TempDir(), "state"))
	before := lvs(t, vg)
	create := func(args string) []string {
		return append([]string{"pool", "create"}, strings.Fields(strings.ReplaceAll(args, "VG", vg))...)
	}
	for _, row := range []struct {
		status int
		args   string
	}{
		{8, "none --driver logical --vg no-such-group"},
		{8, "none --driver lvmthin --vg VG --thin-pool no-such-pool"},
		{2, "none --driver logical --vg VG --wipe twice"},
		{2, "none --driver lvmthin --vg VG --thin-pool thin --wipe zero"},
		{0, "thick --driver logical --vg VG --reserve 1% --wipe zero"},
		{4, "again --driver logical --vg VG"},
		{0, "thin --driver lvmthin --vg VG --thin-pool thin --reserve 1%"},
	} {
		d.Want(row.status, create(row.args)...)
	}
	d.Must("instance", "create", "web1", "--data", "5M,pool=thick", "--data", "6M,pool=thin")
	d.LoseDatabase()
	d.Must("pool", "import", "--driver", "logical", "--vg", vg)
	d.Must("pool", "import", "--driver", "lvmthin", "--vg", vg, "--thin-pool", "thin")
	if p := tarntest.Get[api.Pool](d, "pool", "show", "thick"); p.Source.Wipe != "zero" {
		t.Errorf("the pool that was imported is %+v, want that it still wipes", p)
	}
	d.AssertHealthy()
	d.Must("instance", "delete", "web1", "--yes")
	for _, name := range []string{"thick", "thin"} {
		d.Must("pool", "delete", name, "--yes")
	}
	if after := lvs(t, vg); after != before {
		t.Errorf("the pools left\n%s\nin the beginning there was\n%s", after, before)
	}
}
