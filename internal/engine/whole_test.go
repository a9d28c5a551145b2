package engine_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/test/oracle"
)

// TestNothingIsMadeOfACutBase asks that what is missing of a base is never taken
// for zeroes.
func TestNothingIsMadeOfACutBase(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	for _, format := range []string{"raw", "qcow2"} {
		t.Run(format, func(t *testing.T) {
			b := newBench(t)
			pool := b.pool("main")
			b.image("debian", 3<<20, "main")
			b.instance("web1")
			bases := must(filepath.Glob(filepath.Join(pool, "base_*.raw")))
			if len(bases) != 1 {
				t.Fatalf("the pool has the bases %q, want one", bases)
			}
			do(t, os.Chmod(bases[0], 0o600))
			do(t, os.Truncate(bases[0], 1<<20))
			out, err := b.DiskCreate(ctx, none, api.DiskCreate{Instance: "web1", Disk: api.DiskSpec{Role: "root", Image: "debian", Format: format}})
			b.fails(errs.Corrupt, out, err)
			if got := listOf(b.Disks(ctx, "web1", api.Page{})).Items; len(got) != 0 {
				t.Errorf("disks are %+v, want none", got)
			}
		})
	}
}

// TestForeignFilesHinderNothing puts files beside the volumes whose names or size
// no volume's or sidecar's can have.
func TestForeignFilesHinderNothing(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	long := strings.Repeat("a", 255)
	do(t, os.WriteFile(filepath.Join(pool, long), []byte("mine"), 0o600))
	for _, name := range []string{"big", "big.tarn.json"} {
		do(t, os.WriteFile(filepath.Join(pool, name), bytes.Repeat([]byte("x"), 2<<20), 0o600))
	}
	if got := b.foreign(); !slices.Contains(got, long) {
		t.Errorf("foreign are %q, want the long name among them", got)
	}
	b.instance("web1", api.DiskSpec{Role: "data", Size: 1 << 20})
	report := must(b.Doctor(ctx, api.Doctor{}))
	for _, p := range report.Problems {
		if !strings.Contains(p.Object, "big") {
			t.Errorf("doctor found %+v, want nothing but what calls itself a sidecar", p)
		}
	}
	b.loseDatabase()
	b.must(b.PoolImport(ctx, none, api.PoolImport{Driver: "dir", Path: pool}))
	if _, err := b.Disk(ctx, "web1/data0"); err != nil {
		t.Errorf("after a lost database: %v", err)
	}
}

// TestAdoptOverWhatIsCorrupt adopts a layer two above a base that is quarantined.
func TestAdoptOverWhatIsCorrupt(t *testing.T) {
	ctx, none := context.Background(), api.Options{}
	b := newBench(t)
	pool := b.pool("main")
	b.image("debian", 3<<20, "main")
	base := must(filepath.Glob(filepath.Join(pool, "base_*.raw")))[0]
	layer := func(name, over, format string) {
		oracle.Run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", filepath.Base(over), "-F", format, filepath.Join(pool, name), "3M")
	}
	layer("mid", base, "raw")
	b.adopt("mid", "qcow2", "", "")
	layer("top", "mid", "qcow2")
	do(t, corrupt(base))
	b.scrub(api.Scrub{})
	out, err := b.VolumeAdopt(ctx, none, api.VolumeAdopt{Pool: "main", Name: "top", Format: "qcow2"})
	b.fails(errs.Conflict, out, err)
}
