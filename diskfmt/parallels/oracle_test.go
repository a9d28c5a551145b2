package parallels_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/parallels"
	"github.com/tarn-storage/tarn/test/oracle"
)

func qemuIO(t *testing.T, path string, commands ...string) string {
	t.Helper()
	args := []string{"-f", "parallels"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	return oracle.Run(t, "qemu-utils", "qemu-io", append(args, path)...)
}

// save writes an image and, beside it, what its disk holds.
func save(t *testing.T, f *memFile, model []byte) (img, raw string) {
	t.Helper()
	img, raw = filepath.Join(t.TempDir(), "root.hds"), filepath.Join(t.TempDir(), "raw")
	for path, b := range map[string][]byte{img: f.B, raw: model} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return img, raw
}

// compare has QEMU compare an image with the bytes that its disk should have.
func compare(t *testing.T, img, raw string) {
	t.Helper()
	oracle.Run(t, "qemu-utils", "qemu-img", "compare", "-f", "parallels", "-F", "raw", img, raw)
	if out := oracle.Run(t, "qemu-utils", "qemu-img", "check", "-f", "parallels", img); !strings.Contains(out, "No errors") {
		t.Errorf("qemu-img check: %s", out)
	}
}

// TestQEMU has QEMU read what the writer wrote, write into it, and reads that.
func TestQEMU(t *testing.T) {
	for _, cluster := range []int64{4096, 64 << 10, parallels.DefaultClusterSize} {
		t.Run(fmt.Sprint(cluster), func(t *testing.T) {
			size := 20*cluster + 1536
			times := max(3, 480<<10/cluster) // the BAT of the small clusters moves some
			f := create(t, size, cluster)
			want := record(size, cluster, nil)
			empty, raw := save(t, f, make([]byte, size))
			compare(t, empty, raw)
			w, err := parallels.OpenWriter(f, want, nil, parallels.Options{})
			if err != nil {
				t.Fatal(err)
			}
			model := make([]byte, size)
			for i, off := range []int64{5 * cluster, 0, 7*cluster + 511, size - 100} {
				n := copy(model[off:], pattern(uint64(i), int(min(cluster+100, size-off))))
				if _, err := w.WriteAt(model[off:off+int64(n)], off); err != nil {
					t.Fatal(err)
				}
			}
			clear(model[5*cluster : 6*cluster])
			if err := w.Zero(5*cluster, cluster); err != nil {
				t.Fatal(err)
			}
			if err := w.Grow(size * times); err != nil {
				t.Fatal(err)
			}
			model = append(model, make([]byte, size*(times-1))...)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			want.VirtualSize = size * times
			img, raw := save(t, f, model)
			compare(t, img, raw)

			qemuIO(t, img, fmt.Sprintf("write -P 0xab %d 4096", 3*cluster+1024), fmt.Sprintf("write -P 0xcd %d %d", size*(times-1), cluster))
			copy(model[3*cluster+1024:], bytes.Repeat([]byte{0xab}, 4096))
			copy(model[size*(times-1):], bytes.Repeat([]byte{0xcd}, int(cluster)))
			b, err := os.ReadFile(img)
			if err != nil {
				t.Fatal(err)
			}
			f = inMemory(b)
			w, err = parallels.OpenWriter(f, want, nil, parallels.Options{})
			if err != nil {
				t.Fatal(err)
			}
			wantContent(t, "what QEMU wrote", content(t, w, nil), model)
			model = append(model, make([]byte, 1<<20)...)
			if err := w.Grow(int64(len(model))); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			img, raw = save(t, f, model)
			compare(t, img, raw)
		})
	}
}

// TestKilledQEMU repairs what a QEMU leaves that is killed: everything that it
// flushed is there.
func TestKilledQEMU(t *testing.T) {
	const size, cluster = 32 << 20, parallels.DefaultClusterSize
	f := create(t, size, cluster)
	img, _ := save(t, f, nil)
	// The command ends qemu-io at once, as a signal would.
	qemuKilled(t, img, "write -P 0x11 1M 3M", "flush", "write -P 0x22 9M 2M", "sigraise 9")
	b, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	f = inMemory(b)
	want := record(size, cluster, nil)
	if left, err := parallels.Abandoned(f); err != nil || !left {
		t.Fatalf("the image of a killed QEMU is abandoned: %v, %v", left, err)
	}
	if _, err := parallels.Repair(f, want); err != nil {
		t.Fatal(err)
	}
	r, err := parallels.Open(f, f.Size(), want)
	if err != nil {
		t.Fatal(err)
	}
	got := content(t, r, nil)
	model := make([]byte, size)
	copy(model[1<<20:], bytes.Repeat([]byte{0x11}, 3<<20))
	wantContent(t, "what was flushed", got[:9<<20], model[:9<<20])
	copy(model[9<<20:], got[9<<20:11<<20]) // QEMU had not been asked to keep this
	img, raw := save(t, f, model)
	compare(t, img, raw)
	qemuIO(t, img, "write -P 0x33 0 4096") // and QEMU opens it again
}

func qemuKilled(t *testing.T, img string, commands ...string) {
	t.Helper()
	args := "exec qemu-io -f parallels"
	for _, c := range commands {
		args += " -c '" + c + "'"
	}
	oracle.Run(t, "qemu-utils", "sh", "-c", "("+args+" "+img+"); test $? -ne 0")
}

// TestDelta has QEMU read and write a chain whose top the writer made, with
// every node named.
func TestDelta(t *testing.T) {
	const size, cluster = 8 << 20, 64 << 10
	lower := create(t, size, cluster)
	w, err := parallels.OpenWriter(lower, record(size, cluster, nil), nil, parallels.Options{})
	if err != nil {
		t.Fatal(err)
	}
	model := make([]byte, size)
	copy(model[100<<10:], pattern(1, 2<<20))
	if _, err := w.WriteAt(model[100<<10:100<<10+2<<20], 100<<10); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	back, err := parallels.Open(lower, lower.Size(), record(size, cluster, nil))
	if err != nil {
		t.Fatal(err)
	}
	grown := int64(size + 1<<20)
	top := create(t, grown, cluster)
	model = append(model, make([]byte, 1<<20)...)
	if w, err = parallels.OpenWriter(top, record(grown, cluster, back), back, parallels.Options{}); err != nil {
		t.Fatal(err)
	}
	p := pattern(2, 70000)
	copy(model[200001:], p)
	if _, err := w.WriteAt(p, 200001); err != nil {
		t.Fatal(err)
	}
	clear(model[1<<20 : 1<<20+cluster+99])
	if err := w.Zero(1<<20, cluster+99); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, _ := save(t, lower, nil)
	b, raw := save(t, top, model)
	chain := fmt.Sprintf(`json:{"driver":"parallels","file":{"driver":"file","filename":%q},"backing":{"driver":"parallels","file":{"driver":"file","filename":%q}}}`, b, a)
	oracle.Run(t, "qemu-utils", "qemu-img", "compare", "-F", "raw", chain, raw)
	oracle.Run(t, "qemu-utils", "qemu-io", "-c", "write -P 0x77 500k 10k", "-c", "write -P 0x66 8400k 1k", chain)
	copy(model[500<<10:], bytes.Repeat([]byte{0x77}, 10<<10))
	copy(model[8400<<10:], bytes.Repeat([]byte{0x66}, 1<<10))
	got, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	r, err := parallels.Open(bytes.NewReader(got), int64(len(got)), record(grown, cluster, back))
	if err != nil {
		t.Fatal(err)
	}
	var below diskfmt.Reader = flat(content(t, back, nil))
	wantContent(t, "what QEMU wrote over a delta", content(t, r, below), model)
}

// flat is a layer all of which is data.
type flat []byte

func (l flat) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(l).ReadAt(p, off) }
func (l flat) Size() int64                             { return int64(len(l)) }
func (l flat) Extent(off int64) (diskfmt.Extent, error) {
	return diskfmt.Extent{Offset: off, Length: l.Size() - off, Kind: diskfmt.Data}, nil
}
