package engine_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
)

// TestAPoolsDirectoryGoesAway removes, moves and covers the directory of an open
// pool: doctor reports the pool and goes on with the others, no volume is taken
// for lost, commands say what to do, and the pool comes back.
func TestAPoolsDirectoryGoesAway(t *testing.T) {
	ctx := context.Background()
	none := api.Options{}
	for name, away := range map[string]func(t *testing.T, dir, kept string){
		"removed": func(t *testing.T, dir, kept string) { do(t, os.CopyFS(kept, os.DirFS(dir)), os.RemoveAll(dir)) },
		"removed, and an empty one in its place": func(t *testing.T, dir, kept string) {
			do(t, os.CopyFS(kept, os.DirFS(dir)), os.RemoveAll(dir), os.Mkdir(dir, 0o711))
		},
		"moved": func(t *testing.T, dir, kept string) { do(t, os.Rename(dir, kept)) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.pool("other")
			dir := b.pool("gone")
			b.instance("v", api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "gone"}, api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "other"})
			do(t, os.Remove(mustDisk(t, b, "v/data1").Path))
			kept := dir + ".kept"
			away(t, dir, kept)

			r, err := b.Doctor(ctx, api.Doctor{Repair: true})
			if err != nil || len(r.Problems) != 2 || r.Problems[0].Invariant != "I14" || r.Problems[0].Object != "gone" || !strings.Contains(r.Problems[0].Detail, dir) ||
				r.Problems[1].Object != "v/data1" {
				t.Errorf("doctor: got %+v, %v, want I14 of the pool, with its path, and the lost volume of the other", r.Problems, err)
			}
			if d := mustDisk(t, b, "v/data0"); d.State != "ready" {
				t.Errorf("the disk in the pool is %s, want ready", d.State)
			}
			if p := mustPool(t, b, "gone"); p.State != "degraded" || !strings.Contains(p.Reason, dir) {
				t.Errorf("the pool is %s, %q; want degraded, with its path", p.State, p.Reason)
			}
			create := api.DiskCreate{Instance: "v", Disk: api.DiskSpec{Role: "data", Size: 1 << 20, Pool: "gone"}}
			out, err := b.DiskCreate(ctx, none, create)
			b.fails(errs.Unavailable, out, err)
			var e *errs.Error
			if errors.As(err, &e) && !strings.Contains(e.Message, dir) {
				t.Errorf("disk create says %q, want the path %s", e.Message, dir)
			}
			if err := second2(b.DiskAttach(ctx, "v/data0", api.Attach{As: "qemu"})); !errors.Is(err, errs.Unavailable) {
				t.Errorf("attach: got %v, want kind unavailable", err)
			}
			create.Disk.Pool = "other"
			b.must(b.DiskCreate(ctx, none, create))

			do(t, os.RemoveAll(dir), os.Rename(kept, dir))
			b.must(b.PoolStop(ctx, none, "gone"))
			b.must(b.PoolStart(ctx, none, "gone"))
			if p := mustPool(t, b, "gone"); p.State != "active" {
				t.Errorf("the pool that is back is %s, want active", p.State)
			}
		})
	}
}
