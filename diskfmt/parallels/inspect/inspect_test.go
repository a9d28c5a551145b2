package inspect_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tarn-storage/tarn/diskfmt"
	"github.com/tarn-storage/tarn/diskfmt/internal/doortest"
	"github.com/tarn-storage/tarn/diskfmt/parallels/inspect"
	"github.com/tarn-storage/tarn/diskfmt/strict"
	"github.com/tarn-storage/tarn/errs"
)

var _ diskfmt.Mapper = (*inspect.Source)(nil)

// The sound images have clusters of 4 KiB: four of the disk, of which 3 and 0
// are stored, in that order, at clusterA and clusterB.
const (
	cluster  = 4096
	bat      = 64
	clusterA = cluster
	clusterB = 2 * cluster
	diskSize = 4*cluster - 512
)

// image makes an image whose BAT counts units of unit bytes.
func image(magic string, unit int) []byte {
	b := make([]byte, 3*cluster)
	copy(b, magic)
	put := func(off int, vs ...uint32) {
		for i, v := range vs {
			binary.LittleEndian.PutUint32(b[off+4*i:], v)
		}
	}
	put(16, 2, 16, 1, cluster/512, 4, diskSize/512, 0, 0x312e3276, cluster/512)
	put(bat, uint32(clusterB/unit), 0, 0, uint32(clusterA/unit))
	copy(b[clusterA:], bytes.Repeat([]byte("cluster three "), cluster/14))
	copy(b[clusterB:], bytes.Repeat([]byte("cluster nought "), cluster/15))
	return b
}

func sound() []byte { return image("WithouFreSpacExt", cluster) }
func older() []byte { return image("WithoutFreeSpace", 512) }

func open(ctx context.Context, img []byte, lim strict.Limits) (*inspect.Source, strict.Report, error) {
	return inspect.Open(ctx, bytes.NewReader(img), int64(len(img)), lim)
}

func TestSoundImages(t *testing.T) {
	// data_off 0 means behind the BAT: 512. Then no cluster begins at a multiple.
	behind := doortest.All(doortest.LE32(48, 0), func(b []byte) []byte { return append(b[:512:512], b[cluster:]...) },
		doortest.LE32(bat, (512+cluster)/512), doortest.LE32(bat+12, 1))(older())
	closed := doortest.LE32(44, 0)(sound())
	empty := doortest.LE32(52, 1)(sound())
	longer := doortest.LE32(32, 9)(sound())
	for _, row := range []struct {
		name string
		img  []byte
	}{{"sound", sound()}, {"older", older()}, {"data behind the BAT", behind}, {"closed by an old program", closed}, {"made empty", empty}, {"longer BAT", longer}} {
		s, rep, err := open(t.Context(), row.img, strict.Limits{})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if rep.VirtualSize != diskSize || rep.DataBytes != 2*cluster || rep.Features[0] != "clusters of 4096 bytes" || s.ClusterSize() != cluster {
			t.Errorf("%s: Open reports %+v", row.name, rep)
		}
		if fast, err := inspect.Header(bytes.NewReader(row.img[:inspect.HeaderSize]), int64(len(row.img)), strict.Limits{}); err != nil || fast.VirtualSize != diskSize {
			t.Errorf("%s: Header = %+v, %v", row.name, fast, err)
		}
		want := make([]byte, diskSize)
		copy(want[3*cluster:], sound()[clusterA:])
		copy(want, sound()[clusterB:])
		if !bytes.Equal(doortest.Contents(t, s, row.img), want) {
			t.Errorf("%s: reads differently", row.name)
		}
		doortest.Bounds(t, s)
	}
}

func TestClustersBehindTheDiskAreLeftOut(t *testing.T) {
	img := doortest.LE64(36, 3*cluster/512)(sound())
	s, rep, err := open(t.Context(), img, strict.Limits{})
	if err != nil || rep.DataBytes != cluster || !strings.Contains(strings.Join(rep.Features, ";"), "1 clusters behind the end") {
		t.Fatalf("Open = %+v, %v", rep, err)
	}
	doortest.Contents(t, s, img)
}

func TestHostile(t *testing.T) {
	le, le64, all := doortest.LE32, doortest.LE64, doortest.All
	doortest.Refuses(t, inspect.Open, sound, []doortest.Row{
		{"empty", doortest.Cut(0), strict.Empty, "empty"},
		{"one byte", doortest.Cut(1), strict.Mismatch, "magic"},
		{"another magic", doortest.Put(0, "WithoutFreeSpacf"), strict.Mismatch, "magic"},
		{"cut in the header", doortest.Cut(63), strict.Truncated, "header"},
		{"version 1", le(16, 1), strict.Version, "version 1"},
		{"version 3", le(16, 3), strict.Version, "version 3"},
		{"in use", le(44, 0x746f6e59), strict.Dirty, "open"},
		{"in conversion", le(52, 2), strict.Dirty, "open"},
		{"neither open nor closed", le(44, 1), strict.Corrupt, "0x2c"},
		{"unknown flag", le(52, 4), strict.Feature, "flags 0x4"},
		{"format extension", le64(56, 16), strict.Feature, "extension"},
		{"format extension far away", le64(56, 1<<63), strict.Feature, "extension"},
		{"no tracks", le(28, 0), strict.Corrupt, "0x1c"},
		{"clusters over 128 MiB", le(28, 1<<18+1), strict.Limit, "0x1c"},
		{"a BAT of 16 GiB", le(32, 1<<32-1), strict.Limit, "BAT"},
		{"a BAT past the end", all(le(32, 1<<20), le(48, 1<<20)), strict.Truncated, "BAT"},
		{"a short BAT", le(32, 3), strict.Corrupt, "0x20"},
		{"no disk", le64(36, 0), strict.Empty, "virtual size"},
		{"65 TiB", le64(36, 65<<31), strict.Quota, "virtual size"},
		{"2^64-1 sectors", le64(36, 1<<64-1), strict.Quota, "virtual size"},
		{"data at 0", le(48, 0), strict.Overlap, "BAT"},
		{"data misaligned", le(48, 9), strict.Corrupt, "0x30"},
		{"data past the end", le(48, 32), strict.Truncated, "the data"},
		{"entry past the end", le(bat, 3), strict.Truncated, "entry 0 of the block map, at 0x40"},
		{"entry far away", le(bat, 1<<32-1), strict.Truncated, "entry 0"},
		{"entry on the last half cluster", all(le(bat, 3), func(b []byte) []byte { return append(b, make([]byte, cluster-1)...) }), strict.Truncated, "entry 0"},
		{"two of a cluster", le(bat+4, 1), strict.Overlap, "entry 3 of the block map, at 0x4c: the block at 0x1000"},
		{"entry before the data", all(le(48, 2*cluster/512)), strict.Corrupt, "before the data"},
		{"cut by a byte", doortest.Cut(3*cluster - 1), strict.Truncated, "entry 0"},
	})
	doortest.Refuses(t, inspect.Open, older, []doortest.Row{
		{"sizes over 32 bits", le(40, 1), strict.Corrupt, "0x24"},
		{"entry on the BAT", all(le(48, 0), le(32, 200), le(bat, 1)), strict.Overlap, "the header or the BAT"},
		{"entry misaligned", le(bat, clusterB/512-1), strict.Corrupt, "no cluster begins"},
		{"data on the BAT", all(le(32, 4096), le(48, 8)), strict.Overlap, "BAT"},
	})
	doortest.Truncations(t, inspect.Open, sound(), 0, 1, 15, 16, 63, 64, 79, 80, cluster-1, cluster, clusterB, clusterB+1, 3*cluster-1)
}

func TestLimits(t *testing.T) {
	if _, _, err := open(t.Context(), sound(), strict.Limits{VirtualSize: diskSize - 1}); strict.ClassOf(err) != strict.Quota {
		t.Errorf("a disk larger than allowed: got %v, want QUOTA", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := open(ctx, sound(), strict.Limits{}); !errors.Is(err, errs.Cancelled) {
		t.Errorf("a cancelled context: got %v, want %v", err, errs.Cancelled)
	}
	head := doortest.All(doortest.LE32(28, 1), doortest.LE32(48, 8), doortest.LE32(bat, 0), doortest.LE32(bat+12, 0), doortest.LE64(36, 4))(sound()[:cluster])
	f := doortest.Sparse{Size: 2 << 40, Pieces: map[int64][]byte{0: head}}
	if _, _, err := inspect.Open(t.Context(), f, f.Size, strict.Limits{}); strict.ClassOf(err) != strict.Limit {
		t.Errorf("4 Gi clusters: got %v, want LIMIT", err)
	}
}

func TestChangedFile(t *testing.T) {
	img := sound()
	s, _, err := open(t.Context(), img, strict.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(img[bat:], 70)
	if _, err := s.ReadAt(make([]byte, 512), 0); strict.ClassOf(err) != strict.Truncated {
		t.Errorf("a BAT that changed: got %v, want TRUNCATED", err)
	}
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: install qemu-utils", name)
		}
		t.Skipf("%s is missing: install qemu-utils", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Every kind of image that qemu-img can write is accepted and read back as
// qemu-img reads it, and so is the same image with the older magic.
func TestImagesOfQEMU(t *testing.T) {
	for _, size := range []int{512, 32256, 64 << 10, 256 << 10, 1 << 20, 4 << 20} {
		for _, disk := range []int{512, 3<<20 + 512, 9 << 20} {
			name := fmt.Sprintf("%d bytes in clusters of %d", disk, size)
			file := filepath.Join(t.TempDir(), "q.hds")
			tool(t, "qemu-img", "create", "-f", "parallels", "-o", fmt.Sprintf("cluster_size=%d", size), file, fmt.Sprint(disk))
			tool(t, "qemu-io", append(scatter(uint64(disk), disk), file)...)
			img, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, older := range []bool{false, true} {
				if older {
					img = rewritten(img)
					if err := os.WriteFile(file, img, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				raw := file + ".raw"
				tool(t, "qemu-img", "convert", "-f", "parallels", "-O", "raw", file, raw)
				want, err := os.ReadFile(raw)
				if err != nil {
					t.Fatal(err)
				}
				s, rep, err := open(t.Context(), img, strict.Limits{})
				if err != nil {
					t.Errorf("%s, older %v: %v", name, older, err)
				} else if rep.VirtualSize != int64(disk) || !bytes.Equal(doortest.Contents(t, s, img), want) {
					t.Errorf("%s, older %v: reads differently: %+v", name, older, rep)
				}
			}
		}
	}
}

// scatter makes qemu-io's arguments that write here and there.
func scatter(seed uint64, size int) []string {
	rng := rand.New(rand.NewPCG(seed, 3))
	args := []string{"-f", "parallels"}
	for range 1 + min(6, size>>19) {
		n := min(size, 512*(1+rng.IntN(200)))
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), rng.IntN(size-n+1)/512*512, n))
	}
	return args
}

// rewritten turns an image of QEMU into one with the older magic.
func rewritten(b []byte) []byte {
	le := binary.LittleEndian
	copy(b, "WithoutFreeSpace")
	for i := range le.Uint32(b[32:]) {
		e := b[64+4*i:]
		le.PutUint32(e, le.Uint32(e)*le.Uint32(b[28:]))
	}
	return b
}

// An image that QEMU holds open is marked as in use.
func TestImageInUse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "q.hds")
	tool(t, "qemu-img", "create", "-f", "parallels", file, "4M")
	tool(t, "qemu-io", "-f", "parallels", "-c", "write -P 1 0 64k", file)
	img, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if mark := binary.LittleEndian.Uint32(img[44:]); mark != 0 && mark != 0x312e3276 {
		t.Errorf("QEMU leaves the mark 0x%x", mark)
	}
	out, err := exec.Command("qemu-io", "-f", "parallels", "-c", "write -P 2 0 64k", "-c", "abort", file).CombinedOutput()
	if err == nil {
		t.Fatalf("qemu-io survived an abort: %s", out)
	}
	if img, err = os.ReadFile(file); err != nil {
		t.Fatal(err)
	}
	if _, _, err := open(t.Context(), img, strict.Limits{}); strict.ClassOf(err) != strict.Dirty {
		t.Errorf("an image whose writer died: got %v, want DIRTY", err)
	}
}

func FuzzInspect(f *testing.F) {
	f.Fuzz(func(t *testing.T, img []byte, zeroes uint32) {
		doortest.Fuzz(t, img, zeroes, inspect.Open, inspect.Header, inspect.HeaderSize)
	})
}
