package engine_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/tarn-storage/tarn/api"
	"github.com/tarn-storage/tarn/errs"
	"github.com/tarn-storage/tarn/internal/engine"
	"github.com/tarn-storage/tarn/test/oracle"
)

// adoptedChain has base.raw and middle.qcow2 over it adopted as bases, and
// top.qcow2 over both as the root of web1. It returns what web1 reads.
func adoptedChain(t *testing.T) (b *bench, pool string, content []byte) {
	t.Helper()
	b = newBench(t)
	pool = b.pool("main")
	content = chainOfThree(t, pool)
	b.instance("web1")
	b.adopt("base.raw", "raw", "", "")
	b.adopt("middle.qcow2", "qcow2", "", "")
	b.adopt("top.qcow2", "qcow2", "web1", "root")
	return b, pool, content
}

// TestScrubOfAnAdoptedBase corrupts a layer of an adopted chain: nothing is made
// over it or reads from it, nor does a repair touch it, until somebody has written
// back what it was.
func TestScrubOfAnAdoptedBase(t *testing.T) {
	for name, over := range map[string][]string{
		"base.raw":     {"middle.qcow2", "web1/root"},
		"middle.qcow2": {"web1/root"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, none := context.Background(), api.Options{}
			b, pool, content := adoptedChain(t)
			if r := b.scrub(api.Scrub{}); len(r.Problems) != 0 {
				t.Errorf("a scrub of sound adopted bases found %+v", r.Problems)
			}
			at := filepath.Join(pool, name)
			was := must(os.ReadFile(at))
			unfrozen(t, at, func() { damage(t, at, was) })
			bad, lay := must(os.ReadFile(at)), how(t, at)
			for _, repair := range []bool{false, true} {
				p := b.found(api.Scrub{Repair: repair}, false, "base main/"+name, "where they came", "tarn volume release main/"+name)
				if !slices.Equal(p.Disks, over) {
					t.Errorf("a scrub names %q as what reads from %s, want %q", p.Disks, name, over)
				}
			}
			if got := must(os.ReadFile(at)); !bytes.Equal(got, bad) || how(t, at) != lay {
				t.Errorf("the corrupt %s was changed or moved: %+v, was %+v", name, how(t, at), lay)
			}
			_, err := b.DiskAttach(ctx, "web1/root", api.Attach{As: "qemu"})
			b.fails(errs.Corrupt, api.Outcome{}, err)
			b.fails(errs.Corrupt, api.Outcome{}, b.DiskExport(ctx, "web1/root", api.Export{Format: "raw"}, engine.Sink{Stream: &bytes.Buffer{}}, nil))
			out, err := b.DiskResize(ctx, none, "web1/root", api.DiskResize{By: 1 << 20})
			b.fails(errs.Corrupt, out, err)
			oracle.Run(t, "qemu-utils", "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", name, "-F", map[string]string{"base.raw": "raw", "middle.qcow2": "qcow2"}[name], "other.qcow2", "4M")
			out, err = b.VolumeAdopt(ctx, none, api.VolumeAdopt{Pool: "main", Name: "other.qcow2", Format: "qcow2", Instance: "web1"})
			b.fails(errs.Conflict, out, err)
			b.silent("an adopted base in quarantine")

			unfrozen(t, at, func() { do(t, os.WriteFile(at, was, 0)) })
			b.found(api.Scrub{}, false, "reads as what was adopted again", "takes it into use again")
			b.restart()
			b.found(api.Scrub{Repair: true}, true, "took it into use again")
			b.reads(content, "web1")
			b.silent("an adopted base that was restored")
			if r := b.scrub(api.Scrub{}); len(r.Problems) != 0 {
				t.Errorf("a scrub after that found %+v", r.Problems)
			}
		})
	}
}

// damage changes a byte of the data of the file at path, which holds was.
func damage(t *testing.T, path string, was []byte) {
	t.Helper()
	bad := bytes.Clone(was)
	i := len(bad) - 1
	for bad[i] == 0 { // what nobody refers to
		i--
	}
	bad[i] ^= 0x10
	do(t, os.WriteFile(path, bad, 0))
}

// TestScrubOfAnAdoptedBaseThatIsGone has it lost, and let go.
func TestScrubOfAnAdoptedBaseThatIsGone(t *testing.T) {
	b := newBench(t)
	at := filepath.Join(b.pool("main"), "old.raw")
	do(t, os.WriteFile(at, foreignBytes(), 0o644))
	b.adopt("old.raw", "raw", "", "")
	do(t, os.Rename(at, at+".away"))
	b.found(api.Scrub{Repair: true}, false, "not in the pool", "Move it back", "tarn volume release main/old.raw")
	b.silent("an adopted base that is lost")
	do(t, os.Rename(at+".away", at))
	if r := b.doctor(true); len(r.Problems) != 1 || !r.Problems[0].Repaired {
		t.Errorf("with the file back doctor found %+v, want one problem that it repaired", r.Problems)
	}
	unfrozen(t, at, func() { do(t, corrupt(at)) })
	b.found(api.Scrub{Repair: true}, false, "is not what was adopted")
	b.must(b.VolumeRelease(context.Background(), api.Options{}, "main/old.raw"))
	b.silent("the release of a corrupt base")
}
